//! A PCI function of the host, given to the guest by VFIO (Linux `Documentation/driver-api/vfio.rst`).
//!
//! ```text
//! vCPU: configuration space ──► Function ──► Config (BARs, capabilities) ──► the device's own, by VFIO
//!       BARs ─────────────────► Mappings (KVM memory slots), or Function ──► its regions, by VFIO
//! device: interrupt ──► VFIO ──► eventfd ──► the fabric: MsiVector, or LineEventfds and back
//! ```
//!
//! The device never knows where its interrupts go: its host vectors are VFIO's, and what the guest writes into MSI
//! and MSI-X registers is the fabric's. A mask is a matter of the fabric alone; VFIO is told when the guest changes
//! *what* the function signals with, and never for a mask.

mod address;
mod bars;
mod config;
mod function;
mod host;
mod signals;
mod sysfs;

pub use address::Address;
pub use bars::Slots;
pub use function::{Function, Place};
pub use host::Container;
pub use sysfs::Sysfs;

#[cfg(test)]
mod tests;
