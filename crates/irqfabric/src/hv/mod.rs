//! The contract to a hypervisor: deliver one interrupt, publish one table, take one eventfd.
//!
//! A backend performs; it decides nothing. What is delivered when, which routes there are and what an end
//! of interrupt means is the fabric's business.

mod counted;
#[cfg(feature = "kvm")]
mod kvm;
#[cfg(feature = "sim")]
pub mod sim;
mod vcpu;

pub use counted::{Calls, Counted};
#[cfg(feature = "kvm")]
pub use kvm::Kvm;
#[cfg(feature = "sim")]
pub use sim::Sim;
pub use vcpu::{EVERY_VCPU, External, InterruptWindow, Takes, Vcpu};

use crate::line::Pin;
use crate::msg::{Acceptance, Interrupt};
use crate::sync::EventFd;
use std::io;
use std::sync::Arc;

/// What the fabric asks of a hypervisor.
pub trait Hypervisor: Send + Sync {
    /// Prepares the virtual machine for our chips: called once, by
    /// [`FabricBuilder::build`](crate::fabric::FabricBuilder::build), before the first vCPU and before any other method.
    ///
    /// GSIs below `pins` belong to our IOAPICs. From then on, unless the answer says [`Ends::Hidden`], the end of a level interrupt that has a
    /// [`Route`] there is reported to the vCPU's loop, which calls
    /// [`Fabric::end_of_interrupt`](crate::fabric::Fabric::end_of_interrupt).
    fn start(&self, pins: u32) -> Result<Capacity, HvError>;

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

    /// From now on the hypervisor itself takes the events of `eventfd`, and nobody else sees them: each becomes one
    /// interrupt by the route of `gsi`, which is in force.
    ///
    /// A count that is in the eventfd already becomes one interrupt too and stays there: the caller reads and discards it.
    /// A hypervisor that cannot take events exclusively answers [`HvError::Missing`], always.
    fn attach(&self, _gsi: u32, _eventfd: &EventFd) -> Result<(), HvError> {
        Err(HvError::Missing { capability: "irqfd", remedy: "vectors are delivered from userspace instead" })
    }

    /// [`attach`](Self::attach) for a line of the hypervisor's [own pins](Self::pins): each event of `trigger` raises pin `gsi`,
    /// until the guest ends the interrupt. Then the hypervisor lowers it and after that writes `resample`, for every pair that is
    /// attached to the pin, whether or not it had raised it.
    fn attach_line(&self, _gsi: u32, _trigger: &EventFd, _resample: &EventFd) -> Result<(), HvError> {
        Err(HvError::Missing { capability: "irqfd with resampling", remedy: "lines end in IOAPICs of ours instead" })
    }

    /// Takes [`attach`](Self::attach) or [`attach_line`](Self::attach_line) back, which was given this `eventfd` first. On return no interrupt comes of an earlier event any more, and later ones stay
    /// in the eventfd. May wait for as long as it takes the hypervisor to be sure.
    fn detach(&self, _gsi: u32, _eventfd: &EventFd) -> Result<(), HvError> {
        Ok(())
    }
}

/// What a hypervisor has room for, and what it can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// GSIs that can have a route: 0 up to but not this one.
    pub gsis: u32,
    /// Whether ends of interrupts come back.
    pub ends: Ends,
}

/// What becomes of the end of a level interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Ends {
    /// It reaches the chip that sent the interrupt: ours by [`Fabric::end_of_interrupt`](crate::fabric::Fabric::end_of_interrupt),
    /// the hypervisor's own without us.
    #[default]
    Reported,
    /// Nobody outside the guest learns of it, as with TDX: there are no level lines, and the pins of our IOAPICs are
    /// [edge-triggered](crate::chip::ioapic::Ioapic::with_edges_only) whatever the guest writes.
    Hidden,
}

/// A route: what a GSI stands for in the hypervisor's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Global system interrupt number.
    pub gsi: u32,
    /// What it stands for.
    pub target: Target,
}

/// What a GSI can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An interrupt.
    Interrupt(Interrupt),
    /// Something that only the VMM and the hypervisor know: a Hyper-V SINT, a Xen event channel. Passed through.
    Opaque(OpaqueTarget),
}

/// An entry of the VMM's own, in the layout of the kernel's `struct kvm_irq_routing_entry`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpaqueTarget {
    /// KVM_IRQ_ROUTING_*.
    pub kind: u32,
    /// Its flags.
    pub flags: u32,
    /// The union's bytes.
    pub data: [u32; 8],
}

impl From<Interrupt> for Target {
    fn from(interrupt: Interrupt) -> Self {
        Self::Interrupt(interrupt)
    }
}

impl From<OpaqueTarget> for Target {
    fn from(opaque: OpaqueTarget) -> Self {
        Self::Opaque(opaque)
    }
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
    fn start(&self, pins: u32) -> Result<Capacity, HvError> {
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

    fn attach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        (**self).attach(gsi, eventfd)
    }

    fn attach_line(&self, gsi: u32, trigger: &EventFd, resample: &EventFd) -> Result<(), HvError> {
        (**self).attach_line(gsi, trigger, resample)
    }

    fn detach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        (**self).detach(gsi, eventfd)
    }
}
