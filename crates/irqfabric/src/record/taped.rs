//! A chip with a tape: its questions are the chip's own, its verbs leave a step behind.

use super::step::{Effects, IoapicStep, Outcome, PicStep, Step, VtdStep};
use super::tape::Tape;
use crate::chip::ioapic::{Ioapic, Written};
use crate::chip::pic::{Acknowledged, Pic};
use crate::line::Level;
use crate::memory::{Memory, OutsideMemory};
use crate::msg::{Acceptance, Interrupt, Message};
use crate::remap::vtd::{Effect, Fault, FaultProcessing, Faults, Vtd};
use crate::remap::{Entries, Refusal, Translation};
use crate::sync::Mutex;
use std::ops::Deref;

/// How many bytes of an access a step has room for. No chip of ours looks at more of a write, and behind them a read of the
/// chips with fewer registers is zeros or ones.
const WIDEST: usize = 8;

pub(crate) struct Taped<M> {
    machine: M,
    tape: Tape,
}

impl<M> Taped<M> {
    pub(crate) const fn new(machine: M, tape: Tape) -> Self {
        Self { machine, tape }
    }
}

impl<M> Deref for Taped<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.machine
    }
}

/// The number whose bytes these are.
pub(crate) fn number(data: &[u8]) -> u64 {
    data.iter().take(WIDEST).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn length(data: &[u8]) -> u8 {
    u8::try_from(data.len()).unwrap_or(u8::MAX)
}

impl Taped<Ioapic> {
    #[inline]
    #[must_use]
    pub(crate) fn set(&mut self, pin: u8, level: Level) -> bool {
        let asks = self.machine.set(pin, level);
        self.tape.push(move || Step::Ioapic(IoapicStep::Set { pin, level, asks: Some(asks) }));
        asks
    }

    #[inline]
    pub(crate) fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.machine.read(offset, data);
        let step = move || IoapicStep::Read { offset, length: length(data), data: Some(number(data)) };
        self.tape.push(move || Step::Ioapic(step()));
    }

    #[inline]
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Written {
        let written = self.machine.write(offset, data);
        let step =
            move || IoapicStep::Write { offset, length: length(data), data: number(data), led_to: Some(written) };
        self.tape.push(move || Step::Ioapic(step()));
        written
    }

    #[inline]
    #[must_use]
    pub(crate) fn end(&mut self, pin: u8, vector: u8) -> bool {
        let ended = self.machine.end(pin, vector);
        self.tape.push(move || Step::Ioapic(IoapicStep::End { pin, vector, ended: Some(ended) }));
        ended
    }

    /// `message`, which was due, was `translated` so, and this is what came of it.
    #[inline]
    pub(crate) fn delivered(
        &mut self,
        pin: u8,
        message: &Message,
        translated: &Result<Translation, Refusal>,
        acceptance: Acceptance,
    ) {
        self.machine.delivered(pin, acceptance);
        let step = move || {
            let outcome = Outcome::of(translated);
            IoapicStep::Deliver { pin, outcome, acceptance, message: Some(*message) }
        };
        self.tape.push(move || Step::Ioapic(step()));
    }

    /// A commit is over: the pin's route is in force, or none is certain to be.
    pub(crate) fn parked(&mut self, pin: u8, route: Option<Interrupt>) {
        self.tape.push(move || {
            Step::Ioapic(match route {
                Some(interrupt) => IoapicStep::Parked { pin, interrupt },
                None => IoapicStep::Unparked { pin },
            })
        });
    }
}

impl Taped<Pic> {
    #[inline]
    pub(crate) fn set(&mut self, input: u8, level: Level) {
        self.machine.set(input, level);
        let intr = || Some(self.machine.output());
        self.tape.push(move || Step::Pic(PicStep::Set { input, level, intr: intr() }));
    }

    #[inline]
    pub(crate) fn pulse(&mut self, input: u8) {
        self.machine.pulse(input);
        let intr = || Some(self.machine.output());
        self.tape.push(move || Step::Pic(PicStep::Pulse { input, intr: intr() }));
    }

    pub(crate) fn read_acknowledging(&mut self, port: u16, data: &mut [u8]) -> Option<u8> {
        let input = self.machine.read_acknowledging(port, data);
        let intr = || Some(self.machine.output());
        self.tape.push(move || {
            Step::Pic(PicStep::Read { port, length: length(data), data: Some(number(data)), intr: intr() })
        });
        input
    }

    #[inline]
    pub(crate) fn write(&mut self, port: u16, data: &[u8]) {
        self.machine.write(port, data);
        let intr = || Some(self.machine.output());
        let step = move || PicStep::Write { port, length: length(data), data: number(data), intr: intr() };
        self.tape.push(move || Step::Pic(step()));
    }

    #[inline]
    pub(crate) fn acknowledge_input(&mut self) -> Acknowledged {
        let acknowledged = self.machine.acknowledge_input();
        let intr = || Some(self.machine.output());
        self.tape.push(move || Step::Pic(PicStep::Acknowledge { vector: Some(acknowledged.vector), intr: intr() }));
        acknowledged
    }

    pub(crate) fn ended(&mut self, input: u8, left: Level) {
        self.machine.ended(input, left);
        let intr = || Some(self.machine.output());
        self.tape.push(move || Step::Pic(PicStep::Ended { input, level: left, intr: intr() }));
    }
}

/// A copy to try something on, which leaves nothing on the tape.
impl Clone for Taped<Pic> {
    fn clone(&self) -> Self {
        Self::new(self.machine.clone(), Tape::default())
    }
}

/// A unit's faults, whose lock every entry into the unit takes: its steps are numbered here.
impl Taped<Faults> {
    #[inline]
    pub(crate) fn read(&mut self, vtd: &Vtd, offset: u64, data: &mut [u8]) {
        vtd.read(&self.machine, offset, data);
        let step = move || VtdStep::Read { offset, length: length(data), data: Some(number(data)) };
        self.tape.push(move || Step::Vtd(step()));
    }

    #[inline]
    pub(crate) fn write(&mut self, vtd: &mut Vtd, offset: u64, data: &[u8]) {
        vtd.write(&mut self.machine, offset, data);
        self.tape.push(move || Step::Vtd(VtdStep::Write { offset, length: length(data), data: number(data) }));
    }

    pub(crate) fn next(&mut self, vtd: &mut Vtd, memory: &dyn Memory) -> Option<Effect> {
        if !self.tape.is_on() {
            return vtd.next(&mut self.machine, memory);
        }
        let effect = vtd.next(&mut self.machine, &TapedMemory { memory, tape: Mutex::new(&mut self.tape) });
        self.tape.push(|| Step::Vtd(VtdStep::Next { effect: Some(Effects::of(effect.as_ref())) }));
        effect
    }

    pub(crate) fn record(&mut self, fault: &Fault) -> Option<Message> {
        let event = self.machine.record(fault);
        let Fault { reason, index, requester, processing } = *fault;
        let silent = processing == FaultProcessing::Disabled;
        let effect = Some(event.map_or(Effects::Nothing, Effects::Send));
        self.tape
            .push(move || Step::Vtd(VtdStep::Fault { reason: reason as u8, index, requester, silent, event: effect }));
        event
    }
}

impl Effects {
    pub(crate) fn of(effect: Option<&Effect>) -> Self {
        match effect {
            None => Self::None,
            Some(Effect::Nothing) => Self::Nothing,
            Some(Effect::Retranslate(tables)) => {
                let (table, remapping, compatibility_format) = tables.registers();
                Self::Retranslate { table, remapping, compatibility_format }
            }
            Some(Effect::Invalidate(Entries::All)) => Self::InvalidateAll,
            Some(Effect::Invalidate(Entries::Range(range))) => {
                Self::Invalidate { first: range.start().0, last: range.end().0 }
            }
            Some(Effect::Write { address, data }) => Self::Write { address: *address, data: *data },
            Some(Effect::Send(message)) => Self::Send(*message),
        }
    }
}

/// The guest's memory for one step of a unit's, with what was read of it on the tape.
struct TapedMemory<'a> {
    memory: &'a dyn Memory,
    tape: Mutex<&'a mut Tape>,
}

impl Memory for TapedMemory<'_> {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
        let read = self.memory.read(address, data);
        let mut tape = self.tape.lock();
        let mut step = |address, length, data| tape.push(move || Step::Vtd(VtdStep::Memory { address, length, data }));
        match read {
            Ok(()) => (address..).step_by(2 * WIDEST).zip(data.chunks(2 * WIDEST)).for_each(|(address, part)| {
                step(address, length(part), Some([number(part), number(part.get(WIDEST..).unwrap_or_default())]));
            }),
            Err(_) => step(address, length(data), None),
        }
        read
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        self.memory.write(address, data)
    }
}
