//! What a device asks of its interrupt, for devices that do not care what it is connected to.
//!
//! One method each. A device with an interrupt status register drives a *level*, which it may hold for as long as it likes:
//! only a line can carry it. A device that only says that something has happened sends an *edge*: a line can carry it,
//! and so can a message.

use super::{Level, Line, LineSource};
use std::fmt;

/// An interrupt that is held until the device was served.
///
/// ```
/// use irqfabric::line::{Level, LevelInterrupt};
/// use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
///
/// /// A device with a status register whose bits are cleared by writing ones.
/// struct Device<I> {
///     status: AtomicU32,
///     interrupt: I,
/// }
///
/// impl<I: LevelInterrupt> Device<I> {
///     fn done(&self) {
///         self.status.fetch_or(1, SeqCst);
///         self.interrupt.set(Level::High);
///     }
///
///     fn write_status(&self, value: u32) {
///         let left = self.status.fetch_and(!value, SeqCst) & !value;
///         self.interrupt.set(if left == 0 { Level::Low } else { Level::High });
///     }
/// }
///
/// # use irqfabric::{chip::ioapic::Ioapic, fabric::Fabric, hv::Sim};
/// # let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).build()?;
/// let line = fabric.line(10)?;
/// let device = Device { status: AtomicU32::new(0), interrupt: line.source("device") };
/// device.done();
/// assert_eq!(line.level(), Level::High);
/// device.write_status(1);
/// assert_eq!(line.level(), Level::Low);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub trait LevelInterrupt: Send + Sync {
    /// Drives the interrupt to `level`; what it has already costs nothing.
    fn set(&self, level: Level);
}

/// An interrupt that says that something has happened, once.
///
/// ```
/// use irqfabric::line::EdgeInterrupt;
///
/// struct Timer<I> {
///     interrupt: I,
/// }
///
/// impl<I: EdgeInterrupt> Timer<I> {
///     fn expires(&self) {
///         self.interrupt.trigger();
///     }
/// }
///
/// # use irqfabric::{chip::ioapic::Ioapic, fabric::Fabric, hv::Sim, msg::RequesterId};
/// # let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).build()?;
/// // By a wire, or by a message.
/// Timer { interrupt: fabric.edge_source(8, "timer")? }.expires();
/// Timer { interrupt: fabric.msi_vectors(RequesterId::new(0, 4, 0), 1)[0].clone() }.expires();
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub trait EdgeInterrupt: Send + Sync {
    /// Sends one interrupt.
    fn trigger(&self);
}

/// A source of a line that cannot hold it: what a device gets that has no use for a level, or on a machine that has none for it.
///
/// Not `Clone`, like [`LineSource`].
pub struct EdgeSource(LineSource);

impl EdgeSource {
    pub(crate) fn new(line: &Line, name: String) -> Self {
        Self(line.source(name))
    }

    /// Sends one edge. On a line that another source holds high there is none to see.
    pub fn pulse(&self) {
        self.0.pulse();
    }
}

impl LevelInterrupt for LineSource {
    fn set(&self, level: Level) {
        self.set(level);
    }
}

impl EdgeInterrupt for LineSource {
    fn trigger(&self) {
        self.pulse();
    }
}

impl EdgeInterrupt for EdgeSource {
    fn trigger(&self) {
        self.pulse();
    }
}

impl fmt::Debug for EdgeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EdgeSource").field(&self.0).finish()
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

#[cfg(feature = "vm-superio")]
impl vm_superio::Trigger for EdgeSource {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.pulse();
        Ok(())
    }
}
