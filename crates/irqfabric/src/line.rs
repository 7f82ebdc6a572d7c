//! A level wire: any number of sources on one end, one or more pins on the other.
//!
//! The wire is a wired-OR: it is high while at least one source has raised it. What it carries is
//! *assertion*, not voltage: a device asserts its interrupt by raising its source whether the guest
//! programs the pin active high or active low, as in KVM (Linux commit 100943c54e09) and QEMU.
//!
//! A source speaks for itself only. Dropping it lowers what it raised, and nothing else.
//!
//! **Resampling.** A device that cannot tell when it was served, or that must not look before (VFIO masks the interrupt of
//! a device it does not know), takes a [resampling source](Line::resampling_source), with the semantics of KVM's
//! resampler: raising it holds the wire high, the guest's end of interrupt lowers it and then tells the device, and a
//! device that still needs service raises it again. Any number of both kinds of source share a wire.

mod device;

pub use device::{EdgeInterrupt, EdgeSource, LevelInterrupt};

use crate::record::{LineStep, Step, Tape};
use crate::sync::Mutex;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Weak};

/// The level of a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Level {
    /// Not asserted.
    #[default]
    Low,
    /// Asserted.
    High,
}

/// Where a wire ends: a pin of one of our chips, or of a hypervisor's own. One method to implement.
///
/// `set` is called with the wire's lock held, so that two sources cannot overtake each other. It is called
/// when the level changes, and once more with an unchanged [`Level::High`] after the guest has ended the
/// interrupt, which is when a level that still stands is delivered again. It must not call back into the
/// line, and it may cost one system call.
pub trait Pin: Send + Sync {
    /// Drives the pin to `level`.
    fn set(&self, level: Level);

    /// Drives a low pin high and low again, with nobody in between. Worth its own code only where that is cheaper.
    fn pulse(&self) {
        self.set(Level::High);
        self.set(Level::Low);
    }
}

/// A handle to a wire. All handles to a wire are alike; what drives it are its [sources](Line::source).
///
/// ```
/// use irqfabric::line::{Level, Line, Pin};
/// use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
///
/// #[derive(Default)]
/// struct Lamp(AtomicBool);
/// impl Pin for Lamp {
///     fn set(&self, level: Level) {
///         self.0.store(level == Level::High, Ordering::Relaxed);
///     }
/// }
///
/// let lamp = Arc::new(Lamp::default());
/// let line = Line::new(vec![lamp.clone()]);
/// let (disk, network) = (line.source("disk"), line.source("network"));
/// disk.raise();
/// network.raise();
/// disk.lower();
/// assert!(lamp.0.load(Ordering::Relaxed), "the network still holds the wire");
/// drop(network);
/// assert!(!lamp.0.load(Ordering::Relaxed));
/// ```
#[derive(Clone)]
pub struct Line(Arc<Wire>);

/// One device's hold on a wire.
///
/// Not `Clone`: two devices on a wire are two sources, or one of them could lower what the other raised.
pub struct LineSource {
    wire: Arc<Wire>,
    slot: usize,
}

/// What a source has done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SourceStats {
    /// The name it was made with.
    pub name: String,
    /// How often it went from lowered to raised, pulses included.
    pub raised: u64,
}

struct Wire {
    pins: Box<[Arc<dyn Pin>]>,
    /// Who raises the pins for the resampling sources, if not we.
    resampler: Option<Box<dyn Resampler>>,
    /// What follows when the pins may have been driven and the lock is free again: other callbacks.
    then: Option<Then>,
    state: Mutex<State>,
}

/// For a wire into chips that are not ours, where an interrupt ends before we hear of it: a hypervisor's own resampler.
///
/// It raises the wire for the resampling sources, lowers it at the end of an interrupt, and has
/// [`Line::acknowledge`] called after that.
pub(crate) trait Resampler: Send + Sync {
    /// `line` gets a resampling source. Called before each, with no lock held.
    fn start(&self, line: &Line) -> io::Result<()>;

    /// A resampling source rises. Called with the wire's lock held.
    fn raise(&self);

    /// The last resampling source that was raised was lowered by its device, not by an end. Called with no lock held, so that
    /// it may take its time; what has risen by then is raised again afterwards.
    fn lower(&self);
}

#[derive(Default)]
struct State {
    // How many slots are raised: the wire is high while one of these is not zero.
    plain: usize,
    resampling: usize,
    slots: Vec<Slot>,
    tape: Tape,
}

struct Slot {
    stats: SourceStats,
    raised: bool,
    /// Called after the end of an interrupt has lowered the source: it is a resampling one.
    acknowledged: Option<Acknowledged>,
    /// Its source was dropped: the next source takes the place.
    free: bool,
}

pub(crate) type Acknowledged = Arc<dyn Fn() + Send + Sync>;

pub(crate) type Then = Arc<dyn Fn() + Send + Sync>;

impl Line {
    /// A wire that ends in `pins`. [`Fabric::line`](crate::fabric::Fabric::line) gives those of a machine.
    pub fn new<P: Pin + 'static>(pins: Vec<Arc<P>>) -> Self {
        Self::to_pins(pins.into_iter().map(|pin| pin as Arc<dyn Pin>).collect())
    }

    pub(crate) fn to_pins(pins: Box<[Arc<dyn Pin>]>) -> Self {
        Self::with_callback(pins, None)
    }

    /// A wire of a machine where driving a pin may call somebody back: `then` does so, with no lock held.
    pub(crate) fn with_callback(pins: Box<[Arc<dyn Pin>]>, then: Option<Then>) -> Self {
        Self(Arc::new(Wire { pins, resampler: None, then, state: Mutex::default() }))
    }

    pub(crate) fn to_foreign_pin(pin: Arc<dyn Pin>, resampler: impl Resampler + 'static) -> Self {
        Self(Arc::new(Wire {
            pins: [pin].into(),
            resampler: Some(Box::new(resampler)),
            then: None,
            state: Mutex::default(),
        }))
    }

    /// Leaves its steps on `tape`, from the first on: it has no source yet.
    pub(crate) fn record(&self, tape: Tape) {
        self.0.state.lock().tape = tape;
    }

    /// A new source on this wire, lowered. The name is for reports only.
    pub fn source(&self, name: impl Into<String>) -> LineSource {
        self.add(name.into(), None)
    }

    /// A new source that the end of an interrupt lowers: then, if it was raised, `acknowledged` is called, once, with no lock held
    /// and on the thread that ended the interrupt, mostly a vCPU's. A device that still needs service raises it again,
    /// there or later.
    ///
    /// A source that is not raised is not told. On a line into a hypervisor's own chips the fabric's thread calls, a moment
    /// later, and a source that was raised in that moment is told with the others. That is harmless: to be told is to be asked
    /// to look at one's own state, and to raise again if there is something. A call that is under way when the source is dropped
    /// is finished.
    ///
    /// An edge-triggered pin knows no end: while the guest has programmed it so the source stays raised, until its device lowers it.
    /// Nor does a wire that is not a [fabric's](crate::fabric::Fabric::line).
    ///
    /// There, too, to lower or to drop the last one that is raised costs two system calls that wait for the kernel, and while
    /// a [pair of eventfds](crate::fabric::Fabric::line_eventfds) is on the line does not lower it before the next end.
    ///
    /// Fails only for lines into a hypervisor's own chips: for want of descriptors, or of the capability.
    ///
    /// ```
    /// # use irqfabric::{chip::ioapic::Ioapic, fabric::Fabric, hv::Sim};
    /// use std::sync::{Arc, atomic::{AtomicBool, Ordering::Relaxed}};
    ///
    /// # let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).build()?;
    /// let served = Arc::new(AtomicBool::new(false));
    /// let source = fabric.line(10)?.resampling_source("disk", {
    ///     let served = served.clone();
    ///     move || served.store(true, Relaxed)
    /// })?;
    /// source.raise();
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn resampling_source(
        &self,
        name: impl Into<String>,
        acknowledged: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<LineSource> {
        if let Some(resampler) = &self.0.resampler {
            resampler.start(self)?;
        }
        Ok(self.add(name.into(), Some(Arc::new(acknowledged))))
    }

    fn add(&self, name: String, acknowledged: Option<Acknowledged>) -> LineSource {
        let resampling = acknowledged.is_some();
        let new = Slot { stats: SourceStats { name, raised: 0 }, raised: false, acknowledged, free: false };
        let mut state = self.0.state.lock();
        let slot = match state.slots.iter().position(|slot| slot.free) {
            Some(slot) => {
                state.slots[slot] = new;
                slot
            }
            None => {
                state.slots.push(new);
                state.slots.len() - 1
            }
        };
        state.push(|_| LineStep::Add { source: slot as u32, resampling });
        LineSource { wire: self.0.clone(), slot }
    }

    /// The wire's level, as far as its sources are ours: not what a pair of eventfds holds in a hypervisor's own chips.
    pub fn level(&self) -> Level {
        self.0.state.lock().level()
    }

    /// What the sources that are alive have done.
    pub fn stats(&self) -> Vec<SourceStats> {
        let state = self.0.state.lock();
        state.slots.iter().filter(|slot| !slot.free).map(|slot| slot.stats.clone()).collect()
    }

    /// The guest ends the interrupt: `end` does so at the chip, and says whether there was one to end. The resampling sources are
    /// lowered, what still stands goes to the pins again, and those that were lowered are told.
    ///
    /// `end` is called with the wire's lock held, so that nobody raises, and is delivered, between it and the rest. It is given the
    /// level that is left, for the chip to have it before it forgets what is in service: else a write to the entry could
    /// deliver, in between, what is just being lowered.
    pub(crate) fn end_of_interrupt(&self, end: impl FnOnce(Level) -> bool) {
        let wire = &*self.0;
        let mut state = wire.state.lock();
        let before = state.level();
        let after = if state.plain == 0 { Level::Low } else { Level::High };
        if !end(after) {
            return;
        }
        let acknowledged = state.acknowledge();
        if before == Level::High {
            wire.drive(after);
        }
        drop(state);
        wire.then();
        tell(&acknowledged);
    }

    /// The guest is about to end the interrupt at a chip that must not see the level of the resampling sources any more when
    /// it does: they are lowered. The answer is whom to tell afterwards, with no lock held.
    pub(crate) fn lower_resampling(&self) -> Vec<Acknowledged> {
        let wire = &*self.0;
        let mut state = wire.state.lock();
        let before = state.level();
        let acknowledged = state.acknowledge();
        if (before, state.level()) == (Level::High, Level::Low) {
            wire.drive(Level::Low);
        }
        acknowledged
    }

    /// Chips that are not ours have ended the interrupt, and have lowered the wire as far as the resampling sources held it.
    pub(crate) fn acknowledge(&self) {
        let acknowledged = self.0.state.lock().acknowledge();
        tell(&acknowledged);
    }

    /// A level that stands goes to the pins again.
    pub(crate) fn drive_again(&self) {
        let state = self.0.state.lock();
        if state.level() == Level::High {
            self.0.drive(Level::High);
        }
        drop(state);
        self.0.then();
    }

    /// Whether its interrupts end where we do not see it.
    pub(crate) fn is_foreign(&self) -> bool {
        self.0.resampler.is_some()
    }

    pub(crate) fn downgrade(&self) -> WeakLine {
        WeakLine(Arc::downgrade(&self.0))
    }
}

/// Calls all of them, also if one panics: the others were lowered as well.
pub(crate) fn tell(acknowledged: &[Acknowledged]) {
    let panics = acknowledged.iter().filter_map(|acknowledged| catch_unwind(AssertUnwindSafe(|| acknowledged())).err());
    if let Some(first) = panics.reduce(|first, _| first) {
        resume_unwind(first);
    }
}

/// What does not keep a wire.
pub(crate) struct WeakLine(Weak<Wire>);

impl WeakLine {
    pub(crate) fn upgrade(&self) -> Option<Line> {
        self.0.upgrade().map(Line)
    }
}

impl LineSource {
    /// Asserts the interrupt. No system call if the wire is high already.
    pub fn raise(&self) {
        self.set(Level::High);
    }

    /// Takes the assertion back. The wire stays high while another source holds it.
    pub fn lower(&self) {
        self.set(Level::Low);
    }

    /// Drives this source to `level`: what a device with an interrupt status register calls after each change.
    pub fn set(&self, level: Level) {
        let falls = self.wire.set(&mut self.wire.state.lock(), self.slot, level);
        self.wire.lower_foreign(falls);
        self.wire.then();
    }

    /// Raises it for a caller that holds a lock of its own: what [follows](Wire::then) without that is the answer.
    pub(crate) fn raise_first(&self) -> Option<Then> {
        self.wire.set(&mut self.wire.state.lock(), self.slot, Level::High);
        self.wire.then.clone()
    }

    /// Raises and lowers with nobody in between: one edge. On a wire that another source holds high there
    /// is no edge to see.
    pub fn pulse(&self) {
        let mut state = self.wire.state.lock();
        let low = self.wire.driven(&state) == Level::Low;
        state.store(self.slot, Level::High);
        state.store(self.slot, Level::Low);
        match (low, self.wire.driven(&state)) {
            (true, _) => self.wire.pins.iter().for_each(|pin| pin.pulse()),
            // This source alone held the wire high: there is no edge, but now it is low.
            (false, Level::Low) => self.wire.drive(Level::Low),
            (false, Level::High) => {}
        }
        drop(state);
        self.wire.then();
    }

    /// This source's own level.
    pub fn level(&self) -> Level {
        self.wire.state.lock().slots[self.slot].level()
    }

    /// Sets the level that a snapshot says without driving the pins: the machine that was saved has seen
    /// this edge already, and the chip's own snapshot holds what came of it.
    pub fn restore(&self, level: Level) {
        self.wire.state.lock().store(self.slot, level);
    }
}

impl Drop for LineSource {
    fn drop(&mut self) {
        let mut state = self.wire.state.lock();
        let falls = self.wire.set(&mut state, self.slot, Level::Low);
        let slot = &mut state.slots[self.slot];
        slot.free = true;
        let acknowledged = slot.acknowledged.take();
        let source = self.slot as u32;
        state.push(|state| LineStep::Drop { source, wire: Some(state.level()) });
        // Dropping it may run the device's code: not with the lock held.
        drop(state);
        drop(acknowledged);
        self.wire.lower_foreign(falls);
        self.wire.then();
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("level", &self.level()).field("sources", &self.stats()).finish()
    }
}

impl fmt::Debug for LineSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.wire.state.lock();
        let slot = &state.slots[self.slot];
        f.debug_struct("LineSource").field("name", &slot.stats.name).field("level", &slot.level()).finish()
    }
}

impl Wire {
    /// Returns whether the resampler is to [lower](Self::lower_foreign) the wire, once the lock is free.
    ///
    /// Inlined: behind a system call the processor predicts no return, and each one costs as much as a lock.
    #[inline(always)]
    fn set(&self, state: &mut State, slot: usize, level: Level) -> bool {
        let (before, resampling) = (self.driven(state), state.resampling);
        let rises = state.store(slot, level);
        let after = self.driven(state);
        if after != before {
            self.drive(after);
        } else if let Some(resampler) = &self.resampler
            && rises
            && state.slots[slot].acknowledged.is_some()
        {
            resampler.raise();
        }
        self.resampler.is_some() && state.resampling == 0 && resampling > 0
    }

    fn lower_foreign(&self, falls: bool) {
        if falls && let Some(resampler) = &self.resampler {
            resampler.lower();
            // Who has risen meanwhile may have been lowered with it.
            if self.state.lock().resampling > 0 {
                resampler.raise();
            }
        }
    }

    /// The level that we hold the pins at.
    fn driven(&self, state: &State) -> Level {
        match self.resampler {
            None => state.level(),
            Some(_) if state.plain == 0 => Level::Low,
            Some(_) => Level::High,
        }
    }

    fn drive(&self, level: Level) {
        for pin in &self.pins {
            pin.set(level);
        }
    }

    fn then(&self) {
        if let Some(then) = &self.then {
            then();
        }
    }
}

impl State {
    fn level(&self) -> Level {
        if self.plain + self.resampling == 0 { Level::Low } else { Level::High }
    }

    /// Leaves a step on the tape. Called after what it is about.
    #[inline]
    fn push(&mut self, step: impl FnOnce(&Self) -> LineStep) {
        if self.tape.is_on() {
            let step = step(self);
            self.tape.push(|| Step::Line(step));
        }
    }

    /// Returns whether the slot rises.
    fn store(&mut self, slot: usize, level: Level) -> bool {
        let source = slot as u32;
        let rises = self.hold(slot, level);
        self.push(|state| LineStep::Set { source, level, wire: Some(state.level()) });
        rises
    }

    #[inline]
    fn hold(&mut self, slot: usize, level: Level) -> bool {
        let slot = &mut self.slots[slot];
        let raised = match slot.acknowledged {
            None => &mut self.plain,
            Some(_) => &mut self.resampling,
        };
        match (slot.level(), level) {
            (Level::Low, Level::High) => {
                slot.raised = true;
                slot.stats.raised += 1;
                *raised += 1;
                return true;
            }
            (Level::High, Level::Low) => {
                slot.raised = false;
                *raised -= 1;
            }
            _ => {}
        }
        false
    }

    /// Lowers the resampling sources that are raised. The answer is whom to tell, once the lock is free.
    fn acknowledge(&mut self) -> Vec<Acknowledged> {
        if self.resampling == 0 {
            return Vec::new();
        }
        self.resampling = 0;
        let raised = self.slots.iter_mut().filter(|slot| slot.raised);
        let acknowledged: Vec<_> = raised
            .filter_map(|slot| {
                let acknowledged = slot.acknowledged.clone()?;
                slot.raised = false;
                Some(acknowledged)
            })
            .collect();
        let lowered = Some(acknowledged.len() as u32);
        self.push(|state| LineStep::End { lowered, wire: Some(state.level()) });
        acknowledged
    }
}

impl Slot {
    fn level(&self) -> Level {
        if self.raised { Level::High } else { Level::Low }
    }
}

#[cfg(test)]
mod tests;
