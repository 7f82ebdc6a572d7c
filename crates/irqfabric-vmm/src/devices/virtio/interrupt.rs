//! How a virtio device reaches its driver, and the one of virtio-mmio: the InterruptStatus register, and the line that
//! follows it.
//!
//! As a level, the line is high while a bit of the register is set (virtio 1.2, 4.2.2: the driver clears them by
//! InterruptACK). As an edge, each new reason is one pulse, also while an older one is not acknowledged yet. By eventfds,
//! a level as another process would have it: the device triggers, and triggers again if a bit is still set when the guest has
//! ended the interrupt.

use crate::devices::pair::{Listener, Pair};
use crate::error::Error;
use irqfabric::line::{Level, LineSource};
use irqfabric::msg::Trigger;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    wire: Wire,
    /// The register. Its lock is held across the line's change: the line never disagrees with the register for longer.
    status: Arc<Mutex<u32>>,
}

enum Wire {
    Level(LineSource),
    Edge(LineSource),
    Eventfds { pair: Arc<Pair>, _listener: Listener },
}

impl LineInterrupt {
    /// A device's interrupt, with no reason for one yet.
    pub fn new(source: LineSource, trigger: Trigger) -> Self {
        let wire = match trigger {
            Trigger::Level => Wire::Level(source),
            Trigger::Edge => Wire::Edge(source),
        };
        Self { wire, status: Arc::default() }
    }

    /// That of a device which has a level line by its two eventfds.
    pub fn by_eventfds(pair: Arc<Pair>) -> Result<Self, Error> {
        let status = Arc::<Mutex<u32>>::default();
        let look = {
            let status = status.clone();
            move |pair: &Pair| {
                let status = lock(&status);
                if *status != 0 {
                    pair.trigger();
                }
            }
        };
        let listener = pair.listen(look)?;
        Ok(Self { wire: Wire::Eventfds { pair, _listener: listener }, status })
    }

    /// What the register reads.
    pub fn status(&self) -> u32 {
        *lock(&self.status)
    }

    /// The driver has seen these reasons.
    pub fn acknowledge(&self, reasons: u32) {
        let mut status = lock(&self.status);
        *status &= !reasons;
        match &self.wire {
            Wire::Level(source) => source.set(if *status == 0 { Level::Low } else { Level::High }),
            Wire::Edge(source) => source.lower(),
            // The end of the interrupt lowers it.
            Wire::Eventfds { .. } => {}
        }
    }

    fn raise(&self, reasons: u32) {
        let mut status = lock(&self.status);
        *status |= reasons;
        match &self.wire {
            Wire::Level(source) => source.raise(),
            Wire::Edge(source) => source.pulse(),
            Wire::Eventfds { pair, .. } => pair.trigger(),
        }
    }
}

fn lock(status: &Mutex<u32>) -> MutexGuard<'_, u32> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
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
