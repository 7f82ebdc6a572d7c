//! A virtio-mmio device's interrupt: the InterruptStatus register, and the line that follows it.
//!
//! As a level, the line is high while a bit of the register is set (virtio 1.2, 4.2.2: the driver clears them by
//! InterruptACK). As an edge, each new reason is one pulse, also while an older one is not acknowledged yet.

use irqfabric::line::{Level, LineSource};
use irqfabric::msg::Trigger;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The register and the line.
pub struct Interrupt {
    trigger: Trigger,
    source: LineSource,
    /// The register. Its lock is held across the line's change: the line never disagrees with the register for longer.
    status: Mutex<u32>,
}

impl Interrupt {
    /// A device's interrupt, with no reason for one yet.
    pub fn new(source: LineSource, trigger: Trigger) -> Self {
        Self { trigger, source, status: Mutex::new(0) }
    }

    /// What the register reads.
    pub fn status(&self) -> u32 {
        *self.lock()
    }

    /// There is a reason for an interrupt. One system call, at the most.
    pub fn raise(&self, reasons: u32) {
        let mut status = self.lock();
        *status |= reasons;
        match self.trigger {
            Trigger::Level => self.source.raise(),
            Trigger::Edge => self.source.pulse(),
        }
    }

    /// The driver has seen these reasons.
    pub fn acknowledge(&self, reasons: u32) {
        let mut status = self.lock();
        *status &= !reasons;
        self.source.set(if *status == 0 || self.trigger == Trigger::Edge { Level::Low } else { Level::High });
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn probed(trigger: Trigger) -> (Interrupt, Arc<Probe>) {
        let probe = Arc::new(Probe::default());
        (Interrupt::new(Line::new(vec![probe.clone()]).source("disk"), trigger), probe)
    }

    #[test]
    fn a_level_stands_until_every_reason_is_acknowledged() {
        let (interrupt, probe) = probed(Trigger::Level);
        interrupt.raise(1);
        interrupt.raise(2);
        interrupt.acknowledge(1);
        assert_eq!((interrupt.status(), probe.0.lock().unwrap().clone()), (2, vec![Level::High]));
        interrupt.acknowledge(2);
        assert_eq!(*probe.0.lock().unwrap(), [Level::High, Level::Low]);
    }

    #[test]
    fn an_edge_is_a_pulse_for_each_reason() {
        let (interrupt, probe) = probed(Trigger::Edge);
        interrupt.raise(1);
        interrupt.raise(1);
        interrupt.acknowledge(1);
        assert_eq!(*probe.0.lock().unwrap(), [Level::High, Level::Low, Level::High, Level::Low]);
    }
}
