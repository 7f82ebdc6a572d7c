//! What the test needs of a guest, beyond what the board sees of it: to stop, and to show what it leaves behind.

use super::layout;
use crate::machine::{Exits, Stop};
use irqfabric::hv::Calls;

/// A running guest. It stops when dropped.
pub trait Guest {
    /// Stops the vCPUs, whatever they are doing.
    fn stop(self: Box<Self>) -> Stopped;
}

/// A guest that was stopped.
#[derive(Debug)]
pub struct Stopped {
    /// Why: [`Stop::Finished`] if nothing happened before.
    pub why: Stop,
    /// The local APICs by vCPU.
    pub apics: Vec<ApicRegisters>,
    /// What the fabric asked of the hypervisor.
    pub calls: Calls,
    /// What all vCPUs came out of the guest for; nothing where there is no guest to come out of.
    pub exits: Option<Exits>,
}

/// The registers of a local APIC that tell where an interrupt is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApicRegisters {
    /// Interrupt request register.
    pub irr: [u32; 8],
    /// In-service register.
    pub isr: [u32; 8],
    /// Processor priority: vectors up to its class wait.
    pub ppr: u32,
}

impl ApicRegisters {
    /// From the registers at offsets in the local APIC's page.
    pub fn read(register: impl Fn(u64) -> u32) -> Self {
        let words = |base: u64| std::array::from_fn(|word| register(base - layout::APIC + word as u64 * 0x10));
        Self {
            irr: words(layout::APIC_IRR),
            isr: words(layout::APIC_ISR),
            ppr: register(layout::APIC_PPR - layout::APIC),
        }
    }

    /// The vectors of a register.
    pub fn vectors(register: &[u32; 8]) -> impl Iterator<Item = u8> + '_ {
        (0..=255u8).filter(|vector| register[usize::from(vector / 32)] >> (vector % 32) & 1 != 0)
    }
}
