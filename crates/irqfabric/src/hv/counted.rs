//! A backend that counts the calls it passes on: how a test or a report knows what was asked of a hypervisor.

use super::{Capacity, HvError, Hypervisor, Route};
use crate::line::Pin;
use crate::msg::{Acceptance, Interrupt};
use crate::sync::EventFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Any backend, with its calls counted.
#[derive(Debug, Default)]
pub struct Counted<H> {
    inner: H,
    counters: Counters,
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
    /// Eventfds attached (KVM_IRQFD).
    pub attaches: u64,
    /// Eventfds detached (KVM_IRQFD_FLAG_DEASSIGN).
    pub detaches: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    deliveries: AtomicU64,
    refused: AtomicU64,
    commits: AtomicU64,
    attaches: AtomicU64,
    detaches: AtomicU64,
}

impl Counters {
    pub(super) fn delivered(&self, answer: &Result<Acceptance, HvError>) {
        self.deliveries.fetch_add(1, Relaxed);
        if !matches!(answer, Ok(Acceptance::Accepted)) {
            self.refused.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn committed(&self) {
        self.commits.fetch_add(1, Relaxed);
    }

    pub(super) fn calls(&self) -> Calls {
        let Self { deliveries, refused, commits, attaches, detaches } = self;
        Calls {
            deliveries: deliveries.load(Relaxed),
            refused: refused.load(Relaxed),
            commits: commits.load(Relaxed),
            attaches: attaches.load(Relaxed),
            detaches: detaches.load(Relaxed),
        }
    }
}

impl<H> Counted<H> {
    /// Counts the calls to `inner` from now on.
    pub fn new(inner: H) -> Self {
        Self { inner, counters: Counters::default() }
    }

    /// The backend itself.
    pub const fn inner(&self) -> &H {
        &self.inner
    }

    /// The calls so far.
    pub fn calls(&self) -> Calls {
        self.counters.calls()
    }
}

impl<H: Hypervisor> Hypervisor for Counted<H> {
    fn start(&self, pins: u32) -> Result<Capacity, HvError> {
        self.inner.start(pins)
    }

    fn pins(&self) -> Vec<Arc<dyn Pin>> {
        self.inner.pins()
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        let answer = self.inner.deliver(interrupt);
        self.counters.delivered(&answer);
        answer
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        self.counters.committed();
        self.inner.commit(routes)
    }

    fn attach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        self.counters.attaches.fetch_add(1, Relaxed);
        self.inner.attach(gsi, eventfd)
    }

    fn attach_line(&self, gsi: u32, trigger: &EventFd, resample: &EventFd) -> Result<(), HvError> {
        self.counters.attaches.fetch_add(1, Relaxed);
        self.inner.attach_line(gsi, trigger, resample)
    }

    fn detach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        self.counters.detaches.fetch_add(1, Relaxed);
        self.inner.detach(gsi, eventfd)
    }
}
