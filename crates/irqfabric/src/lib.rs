//! irqfabric carries an interrupt from a virtual device's wire or message to a guest CPU's vector.
//!
//! It is the interrupt subsystem that every virtual machine monitor needs, as a library: IOAPIC, lines, message
//! vectors and routes for KVM's split irqchip, correct under a hostile guest and at the cost of the system call that
//! does the work.
//!
//! ```text
//!  device face                    controllers               translation        delivery
//!  Line  (level wire) ──► Pin ──► Ioapic ───────Message───► decode ──► vCPU vector (KVM_SIGNAL_MSI,
//!    │                    └────► Pic ──► vCPU's own thread    │
//!  MsiVector (message) ─────────────────────────Message───►   │        software local APIC)
//! ```
//!
//! Start with [`fabric::Fabric`]; its example is a whole machine. The parts, each of which knows only those before it:
//!
//! | part | what it is |
//! | --- | --- |
//! | [`msg`] | messages and what they ask for, in their own types |
//! | [`mod@line`] | a wire with any number of sources, resampling ones among them; what it ends in; edge and level for generic devices |
//! | [`chip`] | IOAPIC, PIC and local APIC: register-exact state machines without I/O |
//! | [`pci`] | MSI, MSI-X and INTx: what a guest programs of a PCI function, as state machines |
//! | [`memory`] | the guest's memory, in two methods |
//! | [`remap`] | interrupt remapping: its contract, and Intel VT-d, 15-bit destinations and Xen's PIRQs by it |
//! | [`hv`] | the contracts to a hypervisor and to its vCPUs; KVM, and a simulated machine |
//! | [`fabric`] | the parts put together for one virtual machine |
//!
//! # Features
//!
//! `kvm` and `sim` (both on by default) are the two backends. `serde` makes snapshots and reports serializable.
//! `record` has the recorder of a fabric's inputs and outputs, and their replay.
//! `vm-memory` and `vm-superio` implement our traits for, and those of, the rust-vmm crates of these names; so does
//! `vm-device`, whose buses take the chips of a fabric ([`Fabric::register`](fabric::Fabric)).

#![deny(unsafe_code)]
// Under loom the models play the dispatcher: its deadlines go unused.
#![cfg_attr(loom, allow(dead_code))]

pub mod fabric;
pub mod hv;
pub mod line;
pub mod memory;
#[cfg(feature = "record")]
pub mod record;
#[cfg(not(feature = "record"))]
mod record;
mod route;
mod sync;

/// The modules that calculate with numbers of the guest's choice: nothing in them may panic, overflow or truncate, and each
/// of these lints is a wall. Here is where they stand, so that it is stated once.
#[path = ""]
#[cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]
mod guest_facing {
    pub mod chip;
    pub mod msg;
    pub mod pci;
    pub mod remap;
}

pub use guest_facing::{chip, msg, pci, remap};
