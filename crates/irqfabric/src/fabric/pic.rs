//! The PIC in its place, and the way of its interrupts to a processor: on the vCPU's own thread, before it enters the guest.
//!
//! A PIC's interrupt has no vector until a processor acknowledges it, and what was acknowledged cannot be taken back. So the
//! PIC is asked in [`Fabric::before_run`](super::Fabric::before_run) only, and only for a vCPU that takes the vector at once
//! ([`Takes::Now`]); one that does not yet leaves the guest when it is ready ([`InterruptWindow::Wanted`]), and is asked again.
//!
//! ```text
//!  line n ──► PIC input n ──► INTR ──► LINT0 of the boot processor ──┐
//!  IOAPIC pin, ExtINT ──────► a message to its destination ──────────┴──► waits for before_run: INTA, vector
//! ```
//!
//! **The wires** are those of KVM's own chips (`arch/x86/kvm/irq.c`, default_routing): GSI n below 16 is input n and pin n of
//! the first IOAPIC, also for n = 0: without ACPI source override that is what firmware tables say. Input 2 is the cascade
//! and has no line. INTR ends at the boot processor (APIC id 0): virtual wire mode by LINT0, MultiProcessor
//! Specification 1.4, 3.6.2.2.
//!
//! **A message with delivery mode ExtINT** is one INTA for one of its destinations, the first that takes it, whatever
//! INTR says by then: without a request the PIC answers the vector of its default IR7. The same message sent
//! twice before it is taken is one. Nobody need be there to take it; the oldest of too many gives way to the next.
//!
//! **Nobody sleeps through it.** INTR rises, or a message comes, before the vCPU is kicked; a kicked vCPU comes back to
//! `before_run` before it enters the guest again, or leaves it. See [`FabricBuilder::kick`](super::FabricBuilder::kick).

use super::core::Core;
use crate::chip::pic::{Acknowledged, CASCADE, INPUTS, Pic, PicState};
use crate::hv::{EVERY_VCPU, External, HvError, InterruptWindow, Takes, Vcpu};
use crate::line::{Level, Line, Pin};
use crate::msg::{Acceptance, DestinationMode, Interrupt};
use crate::record::{Tape, Taped};
use crate::sync::{AtomicBool, Mutex};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// The APIC id of the processor at whose LINT0 INTR ends.
const BOOT_PROCESSOR: u32 = 0;

/// Different messages that can wait for a processor at the same time, each of which a vCPU looks at before it runs. A guest
/// that needs a second one is no PC's.
const MOST_MESSAGES: usize = 4;

/// Gets a vCPU out of the guest.
pub(super) type Kick = Box<dyn Fn(u32) + Send + Sync>;

pub(crate) struct PicPort {
    kick: Kick,
    /// Whether a processor has something to take: all that is looked at while none has. Stored under `state`'s lock.
    waiting: AtomicBool,
    /// Whether somebody is to be kicked as soon as no lock is held. Stored under `state`'s lock.
    rings: AtomicBool,
    /// A leaf.
    state: Mutex<State>,
}

#[derive(Clone)]
struct State {
    chip: Taped<Pic>,
    /// What waits for a processor besides INTR.
    pending: Vec<PendingExternal>,
    // Not saved.
    /// How often each input was acknowledged.
    acknowledged: [u64; INPUTS as usize],
    kicks: Vec<u32>,
}

/// An external interrupt on its way to a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PendingExternal {
    /// The way that it came.
    pub external: External,
    /// What the PIC has answered, if it was asked: the processor had another vector to take first.
    pub vector: Option<u8>,
}

impl PendingExternal {
    /// INTR is high, and the PIC has not been asked.
    const INTR: Self = Self { external: External::Lint0, vector: None };
}

/// Inputs of the PIC, a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InputSet(u16);

impl InputSet {
    pub(super) fn iter(self) -> impl Iterator<Item = u8> {
        (0..INPUTS).filter(move |input| self.0 >> input & 1 != 0)
    }
}

/// Everything about a PIC in its place that a guest can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PicSnapshot {
    /// The chip.
    pub chip: PicState,
    /// What waits for a processor besides its INTR.
    pub pending: Vec<PendingExternal>,
}

/// A line's end at one of the PIC's inputs.
struct PicPin {
    port: Arc<PicPort>,
    input: u8,
}

impl Pin for PicPin {
    fn set(&self, level: Level) {
        self.port.change(|state| state.chip.set(self.input, level));
    }

    fn pulse(&self) {
        self.port.change(|state| state.chip.pulse(self.input));
    }
}

impl PicPort {
    /// With what a snapshot says is pending, as far as a machine could have saved it.
    pub(super) fn new(chip: Pic, mut pending: Vec<PendingExternal>, kick: Kick, tape: Tape) -> Self {
        pending.retain(|pending| *pending != PendingExternal::INTR);
        pending.truncate(MOST_MESSAGES);
        let chip = Taped::new(chip, tape);
        let state = State { chip, pending, acknowledged: Default::default(), kicks: Vec::new() };
        Self { kick, waiting: AtomicBool::new(state.waits()), rings: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// A poll takes an interrupt.
    pub(super) fn read(&self, port: u16, data: &mut [u8], lines: &[Line]) {
        self.acknowledging(lines, |state| {
            let input = state.chip.read_acknowledging(port, data);
            ((), state.acknowledged(input))
        });
    }

    /// Does `act`, which may acknowledge an interrupt. If that was its end as well (automatic end of interrupt), it ends on its
    /// line too, in one go: INTR, once high, outlives the level, so nobody may see the one without the other. `act` says which
    /// input's that was; it is tried on a copy first.
    fn acknowledging<R>(&self, lines: &[Line], mut act: impl FnMut(&mut State) -> (R, Option<u8>)) -> R {
        // Each further round was caused by somebody who changed something meanwhile.
        loop {
            let mut ends = |state: &State| act(&mut state.clone()).1;
            let ended = ends(&self.state.lock());
            let mut done = None;
            let mut end = |left| {
                self.change(|state| {
                    if act(&mut state.clone()).1 == ended {
                        done = Some(act(state).0);
                        if let (Some(input), Some(left)) = (ended, left) {
                            state.chip.ended(input, left);
                        }
                    }
                });
                done.is_some()
            };
            match ended.and_then(|input| lines.get(usize::from(input))) {
                Some(line) => line.end_of_interrupt(|left| end(Some(left))),
                None => drop(end(None)),
            }
            if let Some(result) = done {
                return result;
            }
        }
    }

    /// The inputs that a write will end. Their resampling sources must be lowered before: INTR, once high, outlives the level.
    /// The cascade is no line's.
    pub(super) fn ending(&self, port: u16, data: &[u8]) -> InputSet {
        let state = self.state.lock();
        let before = state.chip.in_service();
        if before == 0 {
            return InputSet::default();
        }
        let mut trial = Pic::clone(&state.chip);
        trial.write(port, data);
        InputSet(before & !trial.in_service() & !(1 << CASCADE))
    }

    pub(super) fn write(&self, port: u16, data: &[u8]) {
        self.change(|state| state.chip.write(port, data));
    }

    /// A translated message asks for an ExtINT. The answer is the one that is dropped for it. Called with locks held: whoever does
    /// so [rings](Self::ring) without.
    pub(crate) fn message(&self, interrupt: &Interrupt) -> Option<PendingExternal> {
        let Interrupt { destination, destination_mode, .. } = *interrupt;
        let new = PendingExternal { external: External::Message { destination, destination_mode }, vector: None };
        self.change(|state| {
            if state.pending.contains(&new) {
                return None;
            }
            let full = state.pending.len() >= MOST_MESSAGES;
            // Not what the PIC was asked for already: that is in service.
            let oldest = state.pending.iter().position(|pending| pending.vector.is_none()).filter(|_| full);
            let dropped = oldest.map(|oldest| state.pending.remove(oldest));
            state.pending.push(new);
            state.kicks.push(match destination_mode {
                // 0xff is everybody to a processor in xAPIC mode.
                DestinationMode::Physical if destination != 0xff => destination,
                DestinationMode::Physical | DestinationMode::Logical => EVERY_VCPU,
            });
            dropped
        })
    }

    /// Kicks who has something to take since the last time. Called with no lock held, after every change.
    #[inline]
    pub(crate) fn ring(&self) {
        // Whoever clears it after this thread has set it takes this thread's kick along.
        if self.rings.load(Relaxed) {
            self.ring_now();
        }
    }

    #[cold]
    fn ring_now(&self) {
        let kicks = {
            let mut state = self.state.lock();
            self.rings.store(false, Relaxed);
            mem::take(&mut state.kicks)
        };
        kicks.into_iter().for_each(&self.kick);
    }

    /// See [`Fabric::before_run`](super::Fabric::before_run). Who is told of an automatic end may raise again, on this thread,
    /// which nobody kicks: it looks again after each that it gives.
    pub(super) fn before_run(&self, vcpu: &mut (impl Vcpu + ?Sized), lines: &[Line]) -> Result<(), HvError> {
        let mut window = InterruptWindow::Unwanted;
        let mut looks = self.waiting.load(Acquire);
        while looks {
            (looks, window) = (false, InterruptWindow::Unwanted);
            for pending in self.pending() {
                match vcpu.takes(&pending.external)? {
                    Takes::Now => {
                        // It takes one at a time. Whether it will have to take another is seen by looking again.
                        match self.give(pending, vcpu, lines)? {
                            Acceptance::Accepted => looks = true,
                            Acceptance::Refused => window = InterruptWindow::Wanted,
                        }
                        break;
                    }
                    Takes::Later => window = InterruptWindow::Wanted,
                    Takes::Never => {}
                }
            }
        }
        vcpu.set_window(window);
        Ok(())
    }

    /// What waits for a processor, INTR included.
    fn pending(&self) -> Vec<PendingExternal> {
        let state = self.state.lock();
        let intr = (state.chip.output() == Level::High).then_some(PendingExternal::INTR);
        // First what was acknowledged before.
        state.pending.iter().copied().chain(intr).collect()
    }

    /// `vcpu` takes it, if another one has not and the request is not gone. Refused, its vector waits.
    fn give(
        &self,
        pending: PendingExternal,
        vcpu: &mut (impl Vcpu + ?Sized),
        lines: &[Line],
    ) -> Result<Acceptance, HvError> {
        let Some(vector) = self.acknowledging(lines, |state| state.take(pending)) else {
            return Ok(Acceptance::Accepted);
        };
        let answer = vcpu.interrupt(vector);
        if !matches!(answer, Ok(Acceptance::Accepted)) {
            let kept = PendingExternal { vector: Some(vector), ..pending };
            self.change(|state| state.pending.insert(0, kept));
        }
        self.ring();
        answer
    }

    pub(super) fn save(&self) -> PicSnapshot {
        let state = self.state.lock();
        let State { chip, pending, acknowledged: _, kicks: _ } = &*state;
        PicSnapshot { chip: chip.save(), pending: pending.clone() }
    }

    pub(super) fn acknowledged(&self, input: u32) -> u64 {
        self.state.lock().acknowledged.get(input as usize).copied().unwrap_or_default()
    }

    /// Every change of the state: who has to hear of it is kicked at the next [ring](Self::ring).
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let before = state.chip.output();
        let result = change(&mut state);
        if (before, state.chip.output()) == (Level::Low, Level::High) {
            state.kicks.push(BOOT_PROCESSOR);
        }
        state.kicks.dedup();
        // Release: who sees it sees what there is to take, though nobody takes the lock to find nothing.
        self.waiting.store(state.waits(), Release);
        if !state.kicks.is_empty() {
            self.rings.store(true, Relaxed);
        }
        result
    }
}

impl Core {
    /// The line of a GSI, which ends in a pin of an IOAPIC's if there is one, and in an input of the PIC's likewise.
    pub(super) fn line(&self, gsi: u32, ioapic: Option<Arc<dyn Pin>>) -> Line {
        let Some(port) = &self.pic else { return Line::to_pins(ioapic.into_iter().collect()) };
        let input = u8::try_from(gsi).ok().filter(|input| *input < INPUTS && *input != CASCADE);
        let input = input.map(|input| Arc::new(PicPin { port: port.clone(), input }) as Arc<dyn Pin>);
        let ring = {
            let port = port.clone();
            move || port.ring()
        };
        Line::with_callback(input.into_iter().chain(ioapic).collect(), Some(Arc::new(ring)))
    }
}

impl State {
    fn waits(&self) -> bool {
        self.chip.output() == Level::High || !self.pending.is_empty()
    }

    /// The vector of what waits, which does so no longer; and the input whose interrupt that ended.
    fn take(&mut self, pending: PendingExternal) -> (Option<u8>, Option<u8>) {
        if pending == PendingExternal::INTR {
            return match self.chip.output() {
                Level::High => self.acknowledge(),
                Level::Low => (None, None),
            };
        }
        let Some(place) = self.pending.iter().position(|waits| *waits == pending) else { return (None, None) };
        self.pending.remove(place);
        match pending.vector {
            Some(vector) => (Some(vector), None),
            None => self.acknowledge(),
        }
    }

    fn acknowledge(&mut self) -> (Option<u8>, Option<u8>) {
        let Acknowledged { vector, input } = self.chip.acknowledge_input();
        (Some(vector), self.acknowledged(input))
    }

    /// `input` was. The answer is whether that was its end: with automatic end of interrupt it is not in service any more.
    fn acknowledged(&mut self, input: Option<u8>) -> Option<u8> {
        let input = input?;
        if let Some(count) = self.acknowledged.get_mut(usize::from(input)) {
            *count += 1;
        }
        (self.chip.in_service() >> input & 1 == 0).then_some(input)
    }
}
