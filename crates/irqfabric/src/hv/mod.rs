//! The contract to a hypervisor: deliver one interrupt, publish one table.
//!
//! A backend performs; it decides nothing. What is delivered when, which routes there are and what an end
//! of interrupt means is the fabric's business.

mod counted;
#[cfg(feature = "kvm")]
mod kvm;
#[cfg(feature = "sim")]
pub mod sim;

pub use counted::{Calls, Counted};
#[cfg(feature = "kvm")]
pub use kvm::Kvm;
#[cfg(feature = "sim")]
pub use sim::Sim;

use crate::line::Pin;
use crate::msg::{Acceptance, Interrupt};
use std::io;
use std::sync::Arc;

/// What the fabric asks of a hypervisor.
pub trait Hypervisor: Send + Sync {
    /// Prepares the virtual machine for our chips: called once, by
    /// [`FabricBuilder::build`](crate::fabric::FabricBuilder::build), before the first vCPU and before any other method.
    ///
    /// GSIs below `pins` belong to our IOAPICs. From then on the end of a level interrupt that has a
    /// [`Route`] there is reported to the vCPU's loop, which calls
    /// [`Fabric::end_of_interrupt`](crate::fabric::Fabric::end_of_interrupt).
    fn start(&self, pins: u32) -> Result<(), HvError>;

    /// The pins of the hypervisor's own interrupt controllers, by GSI: where lines end on a machine whose IOAPIC is not ours.
    /// None unless it says so. Asked once, after [`start`](Self::start).
    fn pins(&self) -> Vec<Arc<dyn Pin>> {
        Vec::new()
    }

    /// Delivers one interrupt, at once. On the interrupt path: one system call at the most.
    ///
    /// That nobody took it is an answer, not an error.
    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError>;

    /// Replaces the table of GSI routes by `routes`, which are in the order of their GSIs, each GSI once. On
    /// return the new table is in force and the old one is not.
    ///
    /// May take as long as every vCPU of the machine needs to notice; never called with a chip's lock held.
    fn commit(&self, routes: &[Route]) -> Result<(), HvError>;
}

/// A route: the interrupt that a GSI stands for in the hypervisor's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Global system interrupt number.
    pub gsi: u32,
    /// What it stands for.
    pub interrupt: Interrupt,
}

/// What a hypervisor could not do.
#[derive(Debug, thiserror::Error)]
pub enum HvError {
    /// A capability that it needs is not there.
    #[error("{capability} is missing: {remedy}")]
    Missing {
        /// Its name, as the kernel's documentation spells it.
        capability: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// More pins than it can reserve.
    #[error("{pins} pins of our own IOAPICs are more than the {most} that the hypervisor takes beside its own chips")]
    TooManyPins {
        /// How many were asked for.
        pins: u32,
        /// How many there can be.
        most: u32,
    },
    /// More routes than its table has entries.
    #[error("{routes} routes are more than the {most} of the hypervisor's table")]
    TooManyRoutes {
        /// How many there were.
        routes: usize,
        /// How many there can be.
        most: usize,
    },
    /// A system call failed.
    #[error("{call}: {source}")]
    Call {
        /// Its name.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl<H: Hypervisor + ?Sized> Hypervisor for Arc<H> {
    fn start(&self, pins: u32) -> Result<(), HvError> {
        (**self).start(pins)
    }

    fn pins(&self) -> Vec<Arc<dyn Pin>> {
        (**self).pins()
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        (**self).deliver(interrupt)
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        (**self).commit(routes)
    }
}
