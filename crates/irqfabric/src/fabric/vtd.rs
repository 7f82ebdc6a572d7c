//! A VT-d unit in its place: the guest's registers and its queue, what is in force for those who translate, and the faults.
//!
//! Two locks, so that no delivery waits for the guest's registers. *Registers* is held for an access, and to ask what is
//! to be done next; *faults*, the last of all, to record one. Which table is in force is one atomic word.
//!
//! **Who runs the queue.** Whoever writes a register performs what follows from it, unless somebody does so already: then
//! that one finds it. Invalidations are performed with neither lock held, so registers can be read and written
//! meanwhile; what the guest sees of an effect it sees when that has been performed. After [`TURN`] effects, and from an
//! invalidation on that would begin later than [`LONG`] after the start, the rest is the dispatcher's, so much at a time and with
//! the eventfds that are ready in between: a guest may ask for anything, and its vCPU must come back. What is left of a turn's
//! length is the system calls of one invalidation: a commit, or a detach for each hot vector that lost its entry (4,000 of them
//! take about a tenth of a second), and then a commit and a delivery for each level pin that it lets go. What tells the guest
//! that it is over does not wait for another turn: the guest mostly waits for nothing else.

use super::Inner;
use super::core::Core;
use crate::memory::Memory;
use crate::msg::{DestinationFormat, Interrupt, Message, NotAnInterrupt};
use crate::record::{Tape, Taped};
use crate::remap::vtd::{self, Effect, Faults, FaultsState, Tables, Vtd, VtdState};
use crate::remap::{Entries, Fault, Refusal, Remapper, Translation};
use crate::sync::{AtomicU64, Condvar, Mutex, Stopwatch};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How many effects are performed in one go. Each is one invalidation at the most, for as many descriptors as could be
/// merged; Linux asks for two effects at a time.
const TURN: usize = 16;

/// How long a turn goes on to another invalidation.
const LONG: Duration = Duration::from_millis(1);

pub(crate) struct VtdPort {
    memory: Arc<dyn Memory>,
    registers: Mutex<Registers>,
    /// Somebody waits for the queue to be at rest, and it is.
    rests: Condvar,
    /// [`Tables`], in one word: read for each translation.
    tables: AtomicU64,
    /// A leaf.
    faults: Mutex<Taped<Faults>>,
}

struct Registers {
    vtd: Vtd,
    /// Somebody performs effects, or is going to.
    runs: bool,
}

impl VtdPort {
    pub(super) fn new(vtd: Vtd, faults: Faults, memory: Arc<dyn Memory>, tape: Tape) -> Self {
        let tables = AtomicU64::new(vtd.tables().into_word());
        let registers = Mutex::new(Registers { vtd, runs: false });
        Self { memory, registers, rests: Condvar::default(), tables, faults: Mutex::new(Taped::new(faults, tape)) }
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.registers.lock();
        self.faults.lock().read(&registers.vtd, offset, data);
    }

    pub(super) fn write(&self, offset: u64, data: &[u8], fabric: &Arc<Inner>) {
        {
            let mut registers = self.registers.lock();
            self.faults.lock().write(&mut registers.vtd, offset, data);
        }
        self.run(fabric);
    }

    /// Performs what is to be done, or the first of it, unless somebody does so already.
    pub(super) fn run(&self, fabric: &Arc<Inner>) {
        let others = std::mem::replace(&mut self.registers.lock().runs, true);
        if !others {
            self.go_on(fabric, Effect::Nothing);
        }
    }

    /// The state of registers and faults once the queue is at rest.
    pub(super) fn save(&self) -> (VtdState, FaultsState) {
        let mut registers = self.registers.lock();
        while registers.runs {
            registers = self.rests.wait(registers);
        }
        (registers.vtd.save(), self.faults.lock().save())
    }

    /// One turn, from this effect on. What is left is for the dispatcher; if there cannot be one, nobody else would do it.
    fn go_on(&self, fabric: &Arc<Inner>, mut effect: Effect) {
        while let Some(next) = self.turn(fabric, effect) {
            effect = next;
            if let Ok(dispatcher) = Core::dispatcher(&fabric.core) {
                let fabric = Arc::downgrade(fabric);
                return dispatcher.at(Instant::now(), move || {
                    if let Some(fabric) = fabric.upgrade()
                        && let Some(unit) = &fabric.vtd
                    {
                        unit.port.go_on(&fabric, effect);
                        fabric.ring();
                    }
                });
            }
        }
    }

    /// Returns the effect that the next turn begins with, if there may be more.
    fn turn(&self, fabric: &Inner, mut effect: Effect) -> Option<Effect> {
        let stopwatch = Stopwatch::start();
        for _ in 0..TURN {
            self.perform(fabric, effect);
            effect = self.next(&fabric.core)?;
            let is_short = matches!(effect, Effect::Write { .. } | Effect::Send(_) | Effect::Nothing);
            if !is_short && stopwatch.elapsed() > LONG {
                break;
            }
        }
        Some(effect)
    }

    fn perform(&self, fabric: &Inner, effect: Effect) {
        match effect {
            Effect::Retranslate(tables) => {
                self.tables.store(tables.into_word(), Ordering::Release);
                fabric.invalidate(&Entries::All);
            }
            Effect::Invalidate(entries) => fabric.invalidate(&entries),
            // Performed already.
            Effect::Write { .. } | Effect::Send(_) | Effect::Nothing => {}
        }
    }

    /// The effect before it has been performed. What the guest is told by is performed here, before anybody can write the
    /// registers again: nothing is written for a queue that was switched off, nor sent for an event that was masked.
    fn next(&self, core: &Core) -> Option<Effect> {
        let mut registers = self.registers.lock();
        let effect = self.faults.lock().next(&mut registers.vtd, &*self.memory);
        match &effect {
            Some(Effect::Write { address, data }) => self.store(*address, *data),
            Some(Effect::Send(message)) => self.send(message, &|interrupt| {
                let _ = core.deliver(interrupt);
            }),
            Some(Effect::Retranslate(_) | Effect::Invalidate(_) | Effect::Nothing) => {}
            None => {
                registers.runs = false;
                self.rests.notify_all();
            }
        }
        effect
    }

    /// A message of the unit's own, which is not remapped. Outside the interrupt window it is a write to memory.
    fn send(&self, message: &Message, deliver: &dyn Fn(&Interrupt)) {
        match message.decode(DestinationFormat::ThirtyTwo) {
            Ok(interrupt) => deliver(&interrupt),
            Err(NotAnInterrupt::Memory(address)) => self.store(address, message.data),
            Err(NotAnInterrupt::ReservedDeliveryMode(_)) => {}
        }
    }

    /// What is not memory swallows it.
    fn store(&self, address: u64, data: u32) {
        let _ = self.memory.write(address, &data.to_le_bytes());
    }
}

impl Remapper for VtdPort {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        let tables = Tables::from_word(self.tables.load(Ordering::Acquire));
        Ok(tables.translate(message, &*self.memory)?)
    }

    fn record(&self, message: &Message, fault: Fault, send: &dyn Fn(&Interrupt)) {
        let Some(fault) = vtd::Fault::of(message, fault) else { return };
        let mut faults = self.faults.lock();
        if let Some(event) = faults.record(&fault) {
            self.send(&event, send);
        }
    }
}
