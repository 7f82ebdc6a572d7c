//! The machines that are run again: the chips themselves, and for what is not a chip the rule that it has to follow, written
//! down a second time.

use super::file::Problem;
use super::step::{Begins, Effects, IoapicStep, LineStep, Outcome, PicStep, Sent, Step, VectorStep, VtdStep};
use super::taped::number;
use crate::chip::ioapic::Ioapic;
use crate::chip::pic::Pic;
use crate::hv::Ends;
use crate::line::Level;
use crate::memory::{Memory, OutsideMemory};
use crate::msg::{Interrupt, Masking, Message, Trigger};
use crate::remap::vtd::{Fault, Faults, Vtd};
use crate::remap::{self, Cookie};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

pub(super) enum Machine {
    Ioapic { chip: Ioapic, parked: Vec<Option<Interrupt>> },
    Pic(Pic),
    Vtd(Box<Unit>),
    Vector(Vector),
    Line(Sources),
}

pub(super) struct Unit {
    vtd: Vtd,
    faults: Faults,
    /// What the next step will read of the guest's memory.
    memory: VecDeque<Read>,
}

/// Where, how many bytes, and what: 16 at most, or nothing if it was no memory.
type Read = (u64, u8, Option<[u64; 2]>);

#[derive(Default, Serialize)]
pub(super) struct Vector {
    message: Option<Message>,
    masking: Masking,
    pending: bool,
}

#[derive(Default, Serialize)]
pub(super) struct Sources(BTreeMap<u32, Source>);

#[derive(Clone, Copy, Serialize)]
struct Source {
    resampling: bool,
    level: Level,
}

/// What a step leads to: itself with the outputs that belong there, and the rule that it breaks.
pub(super) struct Played {
    pub step: Step,
    pub broken: Option<&'static str>,
}

const DUE: &str = "nothing was due on that pin";
const PARKED: &str =
    "a level interrupt was delivered before its parked route was in force: its end would not be reported";
const DETACHED: &str = "a message went out, and the step does not say what became of it";
const MEMORY: &str = "the unit reads something else of the guest's memory than what was recorded";

impl Machine {
    pub(super) fn new(begins: &Begins) -> Result<Self, Problem> {
        fn state(error: impl std::fmt::Display) -> Problem {
            Problem::State(error.to_string())
        }
        Ok(match begins {
            Begins::Ioapic { gsi: _, ends, state: saved } => {
                let chip = match saved {
                    None => Ioapic::default(),
                    Some(saved) => Ioapic::restore(saved).map_err(state)?,
                };
                let chip = if *ends == Ends::Hidden { chip.with_edges_only() } else { chip };
                Self::Ioapic { parked: vec![None; chip.pins()], chip }
            }
            Begins::Pic { state } => Self::Pic(state.as_ref().map(Pic::restore).unwrap_or_default()),
            Begins::Vtd { state: saved } => {
                let (vtd, faults) = match saved.as_deref() {
                    None => (Vtd::default(), Faults::default()),
                    Some((vtd, faults)) => (Vtd::restore(vtd).map_err(state)?, Faults::restore(faults).map_err(state)?),
                };
                Self::Vtd(Box::new(Unit { vtd, faults, memory: VecDeque::new() }))
            }
            Begins::Vector { .. } => Self::Vector(Vector::default()),
            Begins::Line { .. } => Self::Line(Sources::default()),
        })
    }

    pub(super) fn play(&mut self, step: &Step) -> Played {
        match (self, *step) {
            (Self::Ioapic { chip, parked }, Step::Ioapic(step)) => play_ioapic(chip, parked, step),
            (Self::Pic(pic), Step::Pic(step)) => Played { step: Step::Pic(play_pic(pic, step)), broken: None },
            (Self::Vtd(unit), Step::Vtd(step)) => unit.play(step),
            (Self::Vector(vector), Step::Vector(step)) => vector.play(step),
            (Self::Line(line), Step::Line(step)) => Played { step: Step::Line(line.play(step)), broken: None },
            // The file was checked for it.
            (_, step) => Played { step, broken: Some("this is a step of another kind of machine") },
        }
    }

    /// For somebody who wants to know why.
    pub(super) fn state(&self) -> Value {
        match self {
            Self::Ioapic { chip, parked } => {
                let routes: BTreeMap<_, _> =
                    parked.iter().enumerate().filter_map(|(pin, route)| Some((pin, (*route)?))).collect();
                json!({ "chip": chip.save(), "parked": routes })
            }
            Self::Pic(pic) => json!(pic.save()),
            Self::Vtd(unit) => json!({ "registers": unit.vtd.save(), "faults": unit.faults.save() }),
            Self::Vector(vector) => json!(vector),
            Self::Line(line) => json!(line),
        }
    }
}

fn play_ioapic(chip: &mut Ioapic, parked: &mut [Option<Interrupt>], step: IoapicStep) -> Played {
    let mut broken = None;
    let step = match step {
        IoapicStep::Set { pin, level, asks: _ } => IoapicStep::Set { pin, level, asks: Some(chip.set(pin, level)) },
        IoapicStep::Read { offset, length, data: _ } => {
            let mut bytes = vec![0; length.into()];
            chip.read(offset, &mut bytes);
            IoapicStep::Read { offset, length, data: Some(number(&bytes)) }
        }
        IoapicStep::Write { offset, length, data, led_to: _ } => {
            let written = chip.write(offset, &bytes(length, data));
            for (pin, route) in (0..).zip(parked) {
                // A pin that became edge owns no route.
                *route = route.filter(|_| chip.trigger(pin) == Some(Trigger::Level));
            }
            IoapicStep::Write { offset, length, data, led_to: Some(written) }
        }
        IoapicStep::End { pin, vector, ended: _ } => {
            IoapicStep::End { pin, vector, ended: Some(chip.end(pin, vector)) }
        }
        IoapicStep::Deliver { pin, outcome, acceptance, message: _ } => {
            let message = chip.due(pin);
            if message.is_none() {
                broken = Some(DUE);
            } else if let Outcome::Interrupt(interrupt) = outcome {
                // Only then can an EOI exit mean this pin.
                let parks = chip.trigger(pin) == Some(Trigger::Level)
                    && interrupt.trigger == Trigger::Level
                    && chip.vector(pin) == Some(interrupt.vector);
                if parks && parked.get(usize::from(pin)) != Some(&Some(interrupt)) {
                    broken = Some(PARKED);
                }
            }
            chip.delivered(pin, acceptance);
            IoapicStep::Deliver { pin, outcome, acceptance, message }
        }
        IoapicStep::Parked { pin, interrupt } => {
            parked.iter_mut().skip(pin.into()).take(1).for_each(|route| *route = Some(interrupt));
            step
        }
        IoapicStep::Unparked { pin } => {
            parked.iter_mut().skip(pin.into()).take(1).for_each(|route| *route = None);
            step
        }
    };
    Played { step: Step::Ioapic(step), broken }
}

fn play_pic(pic: &mut Pic, step: PicStep) -> PicStep {
    match step {
        PicStep::Set { input, level, intr: _ } => {
            pic.set(input, level);
            PicStep::Set { input, level, intr: Some(pic.output()) }
        }
        PicStep::Pulse { input, intr: _ } => {
            pic.pulse(input);
            PicStep::Pulse { input, intr: Some(pic.output()) }
        }
        PicStep::Read { port, length, data: _, intr: _ } => {
            let mut bytes = vec![0; length.into()];
            pic.read(port, &mut bytes);
            PicStep::Read { port, length, data: Some(number(&bytes)), intr: Some(pic.output()) }
        }
        PicStep::Write { port, length, data, intr: _ } => {
            pic.write(port, &bytes(length, data));
            PicStep::Write { port, length, data, intr: Some(pic.output()) }
        }
        PicStep::Acknowledge { vector: _, intr: _ } => {
            let vector = pic.acknowledge();
            PicStep::Acknowledge { vector: Some(vector), intr: Some(pic.output()) }
        }
        PicStep::Ended { input, level, intr: _ } => {
            pic.ended(input, level);
            PicStep::Ended { input, level, intr: Some(pic.output()) }
        }
    }
}

impl Unit {
    fn play(&mut self, step: VtdStep) -> Played {
        let mut broken = None;
        let Self { vtd, faults, memory } = self;
        let step = match step {
            VtdStep::Read { offset, length, data: _ } => {
                let mut bytes = vec![0; length.into()];
                vtd.read(faults, offset, &mut bytes);
                VtdStep::Read { offset, length, data: Some(number(&bytes)) }
            }
            VtdStep::Write { offset, length, data } => {
                vtd.write(faults, offset, &bytes(length, data));
                step
            }
            VtdStep::Memory { address, length, data } => {
                memory.push_back((address, length, data));
                step
            }
            VtdStep::Next { effect: _ } => {
                let recorded = RecordedMemory(Mutex::new((std::mem::take(memory), true)));
                let effect = vtd.next(faults, &recorded);
                let (left, as_recorded) = recorded.0.into_inner().unwrap_or_else(PoisonError::into_inner);
                if !(left.is_empty() && as_recorded) {
                    broken = Some(MEMORY);
                }
                VtdStep::Next { effect: Some(Effects::of(effect.as_ref())) }
            }
            VtdStep::Fault { reason, index, requester, silent, event: _ } => {
                let message = Message { requester, ..Message::default() };
                let fault = remap::Fault { reason, cookie: Some(Cookie(index.into())), silent };
                let event = Fault::of(&message, fault).and_then(|fault| faults.record(&fault));
                let event = Some(event.map_or(Effects::Nothing, Effects::Send));
                VtdStep::Fault { reason, index, requester, silent, event }
            }
        };
        Played { step: Step::Vtd(step), broken }
    }
}

/// What was read, in the order in which it was, and whether that is what is asked for.
struct RecordedMemory(Mutex<(VecDeque<Read>, bool)>);

impl Memory for RecordedMemory {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (reads, as_recorded) = &mut *recorded;
        let (outside, mut filled) = (OutsideMemory { address, length: data.len() }, 0);
        while let Some(rest) = data.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let next = reads.pop_front().filter(|(at, ..)| *at == address.saturating_add(filled as u64));
            let Some((_, length, words)) =
                next.filter(|(_, length, _)| usize::from(*length) <= rest.len() && *length > 0)
            else {
                *as_recorded = false;
                return Err(outside);
            };
            let Some([low, high]) = words else { return Err(outside) };
            let bytes = low.to_le_bytes().into_iter().chain(high.to_le_bytes());
            rest.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            filled += usize::from(length);
        }
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        // A unit writes by its owner.
        Err(OutsideMemory { address, length: data.len() })
    }
}

impl Vector {
    fn play(&mut self, step: VectorStep) -> Played {
        let mut broken = None;
        let step = match step {
            VectorStep::Program { message } => {
                self.message = message;
                step
            }
            VectorStep::Pending => {
                self.pending = true;
                step
            }
            VectorStep::Mask { masking, sends_pending: _ } => {
                self.masking = masking;
                // What waited is sent, or given up.
                let waited = masking != Masking::Masked && std::mem::take(&mut self.pending);
                VectorStep::Mask { masking, sends_pending: Some(waited && masking == Masking::Unmasked) }
            }
            VectorStep::Signal { outcome, acceptance, signal: _ } => {
                let signal = match (self.masking, self.message) {
                    (Masking::Unmasked, Some(message)) => {
                        broken = outcome.is_none().then_some(DETACHED);
                        Sent::Message(message)
                    }
                    (Masking::Masked, _) => {
                        self.pending = true;
                        Sent::Pending
                    }
                    (Masking::Unmasked, None) | (Masking::Disabled, _) => Sent::Dropped,
                };
                VectorStep::Signal { outcome, acceptance, signal: Some(signal) }
            }
        };
        Played { step: Step::Vector(step), broken }
    }
}

impl Sources {
    fn play(&mut self, step: LineStep) -> LineStep {
        let Self(sources) = self;
        match step {
            LineStep::Add { source, resampling } => {
                sources.insert(source, Source { resampling, level: Level::Low });
                step
            }
            LineStep::Drop { source, wire: _ } => {
                sources.remove(&source);
                LineStep::Drop { source, wire: Some(self.wire()) }
            }
            LineStep::Set { source, level, wire: _ } => {
                sources.entry(source).and_modify(|source| source.level = level);
                LineStep::Set { source, level, wire: Some(self.wire()) }
            }
            LineStep::End { .. } => {
                let held = sources.values_mut().filter(|source| source.resampling && source.level == Level::High);
                let lowered = held.map(|source| source.level = Level::Low).count() as u32;
                LineStep::End { lowered: Some(lowered), wire: Some(self.wire()) }
            }
        }
    }

    /// A wired-OR.
    fn wire(&self) -> Level {
        if self.0.values().any(|source| source.level == Level::High) { Level::High } else { Level::Low }
    }
}

fn bytes(length: u8, data: u64) -> Vec<u8> {
    data.to_le_bytes().into_iter().chain(std::iter::repeat(0)).take(length.into()).collect()
}
