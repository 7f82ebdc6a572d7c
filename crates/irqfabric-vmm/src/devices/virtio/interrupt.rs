//! How a virtio device reaches its driver, and the one of virtio-mmio: the InterruptStatus register, and the line that
//! follows it.
//!
//! As a level, the line is high while a bit of the register is set (virtio 1.2, 4.2.2: the driver clears them by
//! InterruptACK). As an edge, each new reason is one pulse, also while an older one is not acknowledged yet.

use irqfabric::line::{Level, LineSource};
use irqfabric::msg::Trigger;
use std::sync::{Mutex, MutexGuard, PoisonError};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

/// A device's way to its driver. It is taken from any thread, and costs a system call at the most.
pub trait Interrupt: Send + Sync {
    /// The device has used buffers of this queue and the driver wants to know.
    fn used(&self, queue: u16);

    /// The device's configuration or its status has changed.
    fn configuration_changed(&self);

    /// The driver resets the device: it has no reason to interrupt any more.
    fn reset(&self);
}

/// The register and the line.
pub struct LineInterrupt {
    trigger: Trigger,
    source: LineSource,
    /// The register. Its lock is held across the line's change: the line never disagrees with the register for longer.
    status: Mutex<u32>,
}

impl LineInterrupt {
    /// A device's interrupt, with no reason for one yet.
    pub fn new(source: LineSource, trigger: Trigger) -> Self {
        Self { trigger, source, status: Mutex::new(0) }
    }

    /// What the register reads.
    pub fn status(&self) -> u32 {
        *self.lock()
    }

    /// The driver has seen these reasons.
    pub fn acknowledge(&self, reasons: u32) {
        let mut status = self.lock();
        *status &= !reasons;
        self.source.set(if *status == 0 || self.trigger == Trigger::Edge { Level::Low } else { Level::High });
    }

    fn raise(&self, reasons: u32) {
        let mut status = self.lock();
        *status |= reasons;
        match self.trigger {
            Trigger::Level => self.source.raise(),
            Trigger::Edge => self.source.pulse(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupt for LineInterrupt {
    fn used(&self, _: u16) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn configuration_changed(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn reset(&self) {
        self.acknowledge(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use irqfabric::line::{Line, Pin};
    use std::sync::Arc;

    #[derive(Default)]
    struct Probe(Mutex<Vec<Level>>);

    impl Pin for Probe {
        fn set(&self, level: Level) {
            self.0.lock().unwrap().push(level);
        }
    }

    fn probed(trigger: Trigger) -> (LineInterrupt, Arc<Probe>) {
        let probe = Arc::new(Probe::default());
        (LineInterrupt::new(Line::new(vec![probe.clone()]).source("disk"), trigger), probe)
    }

    #[test]
    fn a_level_stands_until_every_reason_is_acknowledged() {
        let (interrupt, probe) = probed(Trigger::Level);
        interrupt.used(0);
        interrupt.configuration_changed();
        interrupt.acknowledge(VIRTIO_MMIO_INT_VRING);
        assert_eq!(interrupt.status(), VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(*probe.0.lock().unwrap(), [Level::High]);
        interrupt.acknowledge(VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(*probe.0.lock().unwrap(), [Level::High, Level::Low]);
    }

    #[test]
    fn an_edge_is_a_pulse_for_each_reason() {
        let (interrupt, probe) = probed(Trigger::Edge);
        interrupt.used(0);
        interrupt.used(0);
        interrupt.acknowledge(VIRTIO_MMIO_INT_VRING);
        assert_eq!(*probe.0.lock().unwrap(), [Level::High, Level::Low, Level::High, Level::Low]);
    }
}
