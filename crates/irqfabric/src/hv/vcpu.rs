//! The contract to a vCPU on its own thread, between two entries into the guest: to take an interrupt of the 8259's.
//!
//! Such an external interrupt (ExtINT, Intel SDM vol. 3A, 11.5.1) has no vector before the processor acknowledges it, and the
//! 8259 must not be asked for one before the processor takes it at once: what was acknowledged cannot be taken back. So a
//! vCPU says first whether it [would](Vcpu::takes), and asks to be brought back when it does not yet.

use super::HvError;
use crate::msg::{Acceptance, DestinationMode};

/// What a [kick](crate::fabric::FabricBuilder::kick) is given for every vCPU there is: the x2APIC broadcast id.
pub const EVERY_VCPU: u32 = u32::MAX;

/// A vCPU, as [`Fabric::before_run`](crate::fabric::Fabric::before_run) needs it. Called on the vCPU's own thread and while
/// it is not in the guest, with no lock held.
pub trait Vcpu {
    /// Whether this vCPU would take an external interrupt that comes this way, if it entered the guest now.
    fn takes(&mut self, external: &External) -> Result<Takes, HvError>;

    /// Gives it the vector that the 8259 has answered: taken at the next entry, also if that is from HLT.
    ///
    /// [`Acceptance::Refused`] if another one is still to be taken. The caller keeps the vector and comes again after the
    /// next entry.
    fn interrupt(&mut self, vector: u8) -> Result<Acceptance, HvError>;

    /// Whether the vCPU is to leave the guest as soon as it would take an external interrupt. Costs no system call.
    fn set_window(&mut self, window: InterruptWindow);
}

/// The way that an external interrupt comes to a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum External {
    /// By a wire, from the 8259's INTR to the pin LINT0 of the boot processor.
    Lint0,
    /// By a message with delivery mode ExtINT: to one of these, whichever takes it first.
    Message {
        /// APIC id or logical destination, 32 bits.
        destination: u32,
        /// How to read it.
        destination_mode: DestinationMode,
    },
}

/// What a vCPU says to an external interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// It is taken if its vector is given now.
    Now,
    /// Not now: interrupts are off, the local APIC lets none through, or another one is on its way.
    Later,
    /// It is for others.
    Never,
}

/// Whether a vCPU leaves the guest when it becomes ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterruptWindow {
    /// It stays.
    #[default]
    Unwanted,
    /// It leaves: KVM_EXIT_IRQ_WINDOW_OPEN.
    Wanted,
}
