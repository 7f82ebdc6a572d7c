//! A backend that counts the calls it passes on: how a test or a report knows what was asked of a hypervisor.

use super::{HvError, Hypervisor, Route};
use crate::line::Pin;
use crate::msg::{Acceptance, Interrupt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Any backend, with its calls counted.
#[derive(Debug, Default)]
pub struct Counted<H> {
    inner: H,
    deliveries: AtomicU64,
    refused: AtomicU64,
    commits: AtomicU64,
}

/// How often a backend was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Calls {
    /// Interrupts to deliver (KVM_SIGNAL_MSI).
    pub deliveries: u64,
    /// Those of them that nobody took, or that failed.
    pub refused: u64,
    /// Tables published (KVM_SET_GSI_ROUTING).
    pub commits: u64,
}

impl<H> Counted<H> {
    /// Counts the calls to `inner` from now on.
    pub const fn new(inner: H) -> Self {
        Self { inner, deliveries: AtomicU64::new(0), refused: AtomicU64::new(0), commits: AtomicU64::new(0) }
    }

    /// The backend itself.
    pub const fn inner(&self) -> &H {
        &self.inner
    }

    /// The calls so far.
    pub fn calls(&self) -> Calls {
        let Self { inner: _, deliveries, refused, commits } = self;
        Calls { deliveries: deliveries.load(Relaxed), refused: refused.load(Relaxed), commits: commits.load(Relaxed) }
    }
}

impl<H: Hypervisor> Hypervisor for Counted<H> {
    fn start(&self, pins: u32) -> Result<(), HvError> {
        self.inner.start(pins)
    }

    fn pins(&self) -> Vec<Arc<dyn Pin>> {
        self.inner.pins()
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        self.deliveries.fetch_add(1, Relaxed);
        let answer = self.inner.deliver(interrupt);
        if !matches!(answer, Ok(Acceptance::Accepted)) {
            self.refused.fetch_add(1, Relaxed);
        }
        answer
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        self.commits.fetch_add(1, Relaxed);
        self.inner.commit(routes)
    }
}
