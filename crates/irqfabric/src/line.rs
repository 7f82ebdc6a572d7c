//! A level wire: any number of sources on one end, one or more pins on the other.
//!
//! The wire is a wired-OR: it is high while at least one source has raised it. What it carries is
//! *assertion*, not voltage: a device asserts its interrupt by raising its source whether the guest
//! programs the pin active high or active low, as in KVM (Linux commit 100943c54e09) and QEMU.
//!
//! A source speaks for itself only. Dropping it lowers what it raised, and nothing else.

use crate::sync::Mutex;
use std::fmt;
use std::sync::Arc;

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
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many slots are raised: the wire is high while this is not zero.
    raised: usize,
    slots: Vec<Slot>,
}

struct Slot {
    stats: SourceStats,
    raised: bool,
    /// Its source was dropped: the next source takes the place.
    free: bool,
}

impl Line {
    /// A wire that ends in `pins`. [`Fabric::line`](crate::fabric::Fabric::line) gives those of a machine.
    pub fn new<P: Pin + 'static>(pins: Vec<Arc<P>>) -> Self {
        Self::to_pins(pins.into_iter().map(|pin| pin as Arc<dyn Pin>).collect())
    }

    pub(crate) fn to_pins(pins: Box<[Arc<dyn Pin>]>) -> Self {
        Self(Arc::new(Wire { pins, state: Mutex::default() }))
    }

    /// A new source on this wire, lowered. The name is for reports only.
    pub fn source(&self, name: impl Into<String>) -> LineSource {
        let new = Slot { stats: SourceStats { name: name.into(), raised: 0 }, raised: false, free: false };
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
        LineSource { wire: self.0.clone(), slot }
    }

    /// The wire's level.
    pub fn level(&self) -> Level {
        self.0.state.lock().level()
    }

    /// What the sources that are alive have done.
    pub fn stats(&self) -> Vec<SourceStats> {
        let state = self.0.state.lock();
        state.slots.iter().filter(|slot| !slot.free).map(|slot| slot.stats.clone()).collect()
    }

    /// The guest has ended the interrupt: a level that still stands goes to the pins again.
    pub(crate) fn end_of_interrupt(&self) {
        self.drive_again();
    }

    /// A level that stands goes to the pins again: what stopped it may be gone.
    pub(crate) fn drive_again(&self) {
        let state = self.0.state.lock();
        if state.level() == Level::High {
            self.0.drive(Level::High);
        }
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
        self.wire.set(&mut self.wire.state.lock(), self.slot, level);
    }

    /// Raises and lowers with nobody in between: one edge. On a wire that another source holds high there
    /// is no edge to see.
    pub fn pulse(&self) {
        let mut state = self.wire.state.lock();
        let low = state.level() == Level::Low;
        state.store(self.slot, Level::High);
        state.store(self.slot, Level::Low);
        match (low, state.level()) {
            (true, _) => self.wire.pins.iter().for_each(|pin| pin.pulse()),
            // This source alone held the wire high: there is no edge, but now it is low.
            (false, Level::Low) => self.wire.drive(Level::Low),
            (false, Level::High) => {}
        }
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
        self.wire.set(&mut state, self.slot, Level::Low);
        state.slots[self.slot].free = true;
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

/// A device that only knows how to trigger sends one edge.
#[cfg(feature = "vm-superio")]
impl vm_superio::Trigger for LineSource {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.pulse();
        Ok(())
    }
}

impl Wire {
    fn set(&self, state: &mut State, slot: usize, level: Level) {
        let before = state.level();
        state.store(slot, level);
        if state.level() != before {
            self.drive(state.level());
        }
    }

    fn drive(&self, level: Level) {
        for pin in &self.pins {
            pin.set(level);
        }
    }
}

impl State {
    fn level(&self) -> Level {
        if self.raised == 0 { Level::Low } else { Level::High }
    }

    fn store(&mut self, slot: usize, level: Level) {
        let slot = &mut self.slots[slot];
        match (slot.level(), level) {
            (Level::Low, Level::High) => {
                slot.raised = true;
                slot.stats.raised += 1;
                self.raised += 1;
            }
            (Level::High, Level::Low) => {
                slot.raised = false;
                self.raised -= 1;
            }
            _ => {}
        }
    }
}

impl Slot {
    fn level(&self) -> Level {
        if self.raised { Level::High } else { Level::Low }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers every level it was driven to.
    #[derive(Default)]
    struct Probe(Mutex<Vec<Level>>);

    impl Pin for Probe {
        fn set(&self, level: Level) {
            self.0.lock().push(level);
        }
    }

    fn probed() -> (Line, Arc<Probe>) {
        let probe = Arc::new(Probe::default());
        (Line::new(vec![probe.clone()]), probe)
    }

    #[test]
    fn a_wire_is_high_while_any_source_is() {
        let (line, probe) = probed();
        let (a, b) = (line.source("a"), line.source("b"));
        a.raise();
        b.raise();
        a.lower();
        assert_eq!(line.level(), Level::High);
        b.lower();
        assert_eq!(*probe.0.lock(), [Level::High, Level::Low]);
    }

    #[test]
    fn a_source_speaks_for_itself_only() {
        let (line, probe) = probed();
        let (a, b) = (line.source("a"), line.source("b"));
        a.raise();
        b.lower();
        assert_eq!(line.level(), Level::High, "b never raised it");
        drop(b);
        assert_eq!(line.level(), Level::High, "nor did dropping b lower it");
        drop(a);
        assert_eq!(*probe.0.lock(), [Level::High, Level::Low]);
    }

    #[test]
    fn a_source_that_takes_a_dropped_ones_place_starts_lowered() {
        let (line, _) = probed();
        let a = line.source("a");
        a.raise();
        drop(a);
        let b = line.source("b");
        assert_eq!((b.level(), line.level()), (Level::Low, Level::Low));
        assert_eq!(line.stats(), [SourceStats { name: "b".into(), raised: 0 }]);
    }

    #[test]
    fn the_level_it_has_already_does_not_reach_the_pins() {
        let (line, probe) = probed();
        let a = line.source("a");
        a.lower();
        a.raise();
        a.raise();
        assert_eq!(*probe.0.lock(), [Level::High]);
    }

    #[test]
    fn a_pulse_is_one_edge_unless_another_source_holds_the_wire() {
        let (line, probe) = probed();
        let (a, b) = (line.source("a"), line.source("b"));
        a.pulse();
        b.raise();
        a.pulse();
        assert_eq!(*probe.0.lock(), [Level::High, Level::Low, Level::High]);
    }

    #[test]
    fn a_pulse_of_a_source_that_is_raised_lowers_it() {
        let (line, probe) = probed();
        let a = line.source("a");
        a.raise();
        a.pulse();
        assert_eq!((line.level(), &probe.0.lock()[..]), (Level::Low, &[Level::High, Level::Low][..]));
    }

    #[test]
    fn every_pin_of_a_wire_sees_the_same() {
        let pins = [Arc::new(Probe::default()), Arc::new(Probe::default())];
        let line = Line::new(pins.to_vec());
        line.source("a").pulse();
        assert_eq!(*pins[0].0.lock(), *pins[1].0.lock());
    }

    #[test]
    fn a_level_that_still_stands_after_the_end_of_interrupt_is_driven_again() {
        let (line, probe) = probed();
        let a = line.source("a");
        line.end_of_interrupt();
        assert_eq!(*probe.0.lock(), []);
        a.raise();
        line.end_of_interrupt();
        assert_eq!(*probe.0.lock(), [Level::High, Level::High]);
    }

    #[test]
    fn restoring_a_level_makes_no_edge() {
        let (line, probe) = probed();
        let a = line.source("a");
        a.restore(Level::High);
        assert_eq!((line.level(), probe.0.lock().len()), (Level::High, 0));
        a.lower();
        assert_eq!(*probe.0.lock(), [Level::Low]);
    }

    #[cfg(feature = "vm-superio")]
    #[test]
    fn a_superio_device_triggers_a_source_as_it_is() {
        let (line, probe) = probed();
        vm_superio::Trigger::trigger(&line.source("serial")).unwrap();
        assert_eq!(*probe.0.lock(), [Level::High, Level::Low]);
    }
}
