//! What the testbed proves: each scenario is a machine to boot, a time limit, and a judge of what came back.
//!
//! A judge looks at evidence only: the console, the files sent back. It says what was expected and what was
//! seen. A scenario on the `Reference` machine judges the guest tests themselves, by QEMU's devices.

mod evidence;
mod intremap;
mod l1;
pub mod linux;
mod moves;
mod pci;
pub mod recorded;
mod shared;
mod vfio;

pub use evidence::Evidence;

use crate::testbed::Passable;
use anyhow::Result;
use std::time::Duration;

/// Content of one disk: small enough to be made in L1's memory, many requests to read.
pub const DISK_BYTES: u64 = 1 << 20;

/// How thorough.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Quick,
    Full,
}

pub struct Scenario {
    pub name: String,
    /// One sentence.
    pub proves: String,
    /// QEMU is killed after it.
    pub limit: Duration,
    pub machine: Machine,
    pub judge: Judge,
}

/// `Ok`, or what was expected and what was seen.
pub type Judge = Box<dyn Fn(&Evidence) -> Result<()>>;

pub enum Machine {
    /// Stock Linux with a real KVM. `script` runs in it; what it leaves in /out comes back.
    L1 {
        script: String,
        needs: Needs,
        /// The script needs a guest's kernel and initramfs in /l2.
        linux: Option<Linux>,
    },
    /// The same with an IOMMU and these devices, each with a disk of its own, to be passed on; it has the product.
    L1WithIommu { script: String, linux: Option<Linux>, devices: Vec<Passable> },
    /// Stock Linux on QEMU's own virtio-mmio disks and IOAPICs.
    Reference { linux: Linux, cpus: u32, disks: u32 },
}

/// What of ours a script in L1 needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// The binary `irqfabric`.
    Product,
    /// That, and the test program of its testdev profile, `testdev`.
    Testdev,
    /// The library's tests on real KVM, `kvm`.
    KvmTests,
}

/// Stock Linux as a guest.
pub struct Linux {
    /// Shell commands that run in it, with `section` and `guest-probe` at hand; then it powers off.
    pub test: String,
}

/// What proves something of ours: what `cargo xtask test` runs.
pub fn ours(scale: Scale) -> Vec<Scenario> {
    let mut list = all(scale);
    list.retain(|scenario| !matches!(scenario.machine, Machine::Reference { .. }));
    list
}

/// Those, and the ones that judge the guest tests by QEMU's own devices. The latter run on demand only: QEMU's microvm
/// is reset before the kernel's first byte, on some hosts and in some hours in most of its starts, and nothing of ours is
/// in it.
pub fn all(scale: Scale) -> Vec<Scenario> {
    let mut list = vec![l1::kvm(), linux::reference(), moves::reference(scale), l1::run(), l1::testdev()];
    list.extend([l1::run_with_pic(), l1::kvm_tests(), l1::differential(scale)]);
    list.extend([1, 2, 4].map(linux::boots));
    list.extend([linux::noapic(), linux::thirty_disks(), linux::same_as_kernel_irqchip(), moves::under_load(scale)]);
    list.extend([pci::linux(), pci::without_msix(), moves::msix_under_load(scale)]);
    list.extend([2, 4].map(|cpus| intremap::boots(cpus, scale)));
    list.extend([intremap::apic_ids(), intremap::apic_ids_without()]);
    list.extend(recorded::BOOTS.iter().map(recorded::Boot::scenario));
    list.extend([shared::level(scale), vfio::refusals(), vfio::intx(), vfio::messages()]);
    list
}
