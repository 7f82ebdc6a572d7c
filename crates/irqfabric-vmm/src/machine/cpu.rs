//! What a vCPU is and where it starts: its CPUID, and the register states that loaders ask for.
//!
//! The topology is flat, one thread a core and all cores in one package, with APIC ids as the caller gave them: leaf 1 for
//! ids that fit into 8 bits, leaves 0xb and 0x1f for all (Intel SDM vol. 2A, CPUID), 0x8000_001e for AMD. The KVM leaf
//! says whether 15-bit message destinations may be used (Linux `Documentation/virt/kvm/x86/cpuid.rst`).

use super::Host;
use crate::error::Error;
use irqfabric::msg::DestinationFormat;
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Cap, VcpuFd};

const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
const KVM_FEATURES: u32 = 0x4000_0001;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
/// What leaf 0 must reach for the topology leaf to be looked at.
const LEAST_HIGHEST_LEAF: u32 = 0xb;

const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HYPER_THREADING: u32 = 1 << 28;
const KVM_FEATURE_MSI_EXT_DEST_ID: u32 = 1 << 15;

/// The CPUID of a machine's vCPUs.
pub struct Cpuid {
    common: Vec<kvm_cpuid_entry2>,
    logical_processors: u32,
    /// By how many bits an APIC id is shifted to give the package: all of them.
    package_shift: u32,
}

impl Cpuid {
    /// What this KVM supports, made one machine's.
    pub fn new(host: &Host, apic_ids: &[u32], destinations: DestinationFormat) -> Result<Self, Error> {
        let supported = host.kvm().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let supported = supported.map_err(Error::kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let deadline = host.kvm().check_extension(Cap::TscDeadlineTimer);
        let mut common: Vec<_> =
            supported.as_slice().iter().filter(|leaf| !TOPOLOGY.contains(&leaf.function)).copied().collect();
        for leaf in &mut common {
            match leaf.function {
                0 => leaf.eax = leaf.eax.max(LEAST_HIGHEST_LEAF),
                FEATURES => {
                    leaf.ecx |= ECX_X2APIC | ECX_HYPERVISOR;
                    // KVM leaves it out of what it supports while there is no in-kernel local APIC to be seen (api.rst).
                    if deadline {
                        leaf.ecx |= ECX_TSC_DEADLINE;
                    }
                }
                KVM_FEATURES if destinations == DestinationFormat::Fifteen => leaf.eax |= KVM_FEATURE_MSI_EXT_DEST_ID,
                _ => {}
            }
        }
        let widest = apic_ids.iter().copied().max().unwrap_or_default();
        let package_shift = u32::BITS - widest.leading_zeros();
        Ok(Self { common, logical_processors: apic_ids.len() as u32, package_shift })
    }

    /// The CPUID of the vCPU with this APIC id.
    pub fn of(&self, apic_id: u32) -> Result<CpuId, Error> {
        let mut leaves = self.common.clone();
        for leaf in &mut leaves {
            match leaf.function {
                FEATURES => {
                    let logical = self.logical_processors.min(255);
                    leaf.ebx = leaf.ebx & 0xffff | logical << 16 | apic_id << 24;
                    if logical > 1 {
                        leaf.edx |= EDX_HYPER_THREADING;
                    }
                }
                // EAX 25:14, threads that share a cache: one; 31:26, cores in the package. None where there is no cache.
                CACHES if leaf.eax & 0x1f != 0 => {
                    leaf.eax = leaf.eax & 0x3fff | ((1 << self.package_shift.min(6)) - 1) << 26;
                }
                AMD_TOPOLOGY => (leaf.eax, leaf.ebx, leaf.ecx) = (apic_id, apic_id & 0xff, 0),
                _ => {}
            }
        }
        leaves.extend(TOPOLOGY.into_iter().flat_map(|function| self.topology(function, apic_id)));
        CpuId::from_entries(&leaves).map_err(|_| Error::Capability {
            capability: "room for our CPUID leaves",
            remedy: "it reports more than kvm-bindings can hold",
        })
    }

    /// Sub-leaves: threads of a core (one), cores of the package (all), and the end.
    fn topology(&self, function: u32, apic_id: u32) -> [kvm_cpuid_entry2; 3] {
        const THREADS: u32 = 1;
        const CORES: u32 = 2;
        let level = |index, shift, processors, kind: u32| kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: kind << 8 | index,
            edx: apic_id,
            ..Default::default()
        };
        [level(0, 0, 1, THREADS), level(1, self.package_shift, self.logical_processors, CORES), level(2, 0, 0, 0)]
    }
}

/// Switches a vCPU's local APIC to x2APIC mode: what firmware does before it hands over a machine with APIC ids that xAPIC
/// mode cannot name. Linux ignores such processors otherwise (`acpi_parse_x2apic`), and to one in xAPIC mode, id 255 is
/// everybody.
pub fn enter_x2apic_mode(vcpu: &VcpuFd) -> Result<(), Error> {
    const APIC_BASE_X2APIC: u64 = 1 << 10;
    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
    sregs.apic_base |= APIC_BASE_X2APIC;
    vcpu.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))
}

/// Control register bits (Intel SDM vol. 3A, 2.5).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// The descriptors that the segments below stand for, for a guest that loads them again: null, a spare, code, data.
pub const fn gdt(long_mode: bool) -> [u64; 4] {
    let code = if long_mode { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    [0, 0, code, 0x00cf_9300_0000_ffff]
}

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;

/// 32-bit protected mode, flat segments, no paging, interrupts off: what Multiboot (3.2) and PVH (Xen
/// `docs/misc/pvh.pandoc`) ask for. `regs` gives the instruction pointer and what the loader passes in registers.
pub fn start_protected_mode(vcpu: &VcpuFd, gdt_address: u64, regs: kvm_regs) -> Result<(), Error> {
    start(vcpu, gdt_address, regs, |sregs| {
        sregs.cs.db = 1;
        sregs.cr0 = CR0_PE | CR0_ET;
    })
}

/// 64-bit mode on the page tables at `page_tables`, flat segments, interrupts off: what Linux'
/// 64-bit entry asks for (`Documentation/arch/x86/boot.rst`).
pub fn start_long_mode(vcpu: &VcpuFd, gdt_address: u64, page_tables: u64, regs: kvm_regs) -> Result<(), Error> {
    start(vcpu, gdt_address, regs, |sregs| {
        sregs.cs.l = 1;
        sregs.cr3 = page_tables;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
    })
}

fn start(
    vcpu: &VcpuFd,
    gdt_address: u64,
    regs: kvm_regs,
    mode: impl FnOnce(&mut kvm_bindings::kvm_sregs),
) -> Result<(), Error> {
    const CODE: u8 = 0xb;
    const DATA: u8 = 0x3;
    const BUSY_TSS: u8 = 0xb;
    let flat = |selector, type_| kvm_segment {
        selector,
        type_,
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        db: u8::from(type_ == DATA),
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
    sregs.cs = flat(CODE_SELECTOR, CODE);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = flat(DATA_SELECTOR, DATA);
    }
    sregs.tr = kvm_segment { type_: BUSY_TSS, limit: 0x67, present: 1, ..Default::default() };
    sregs.gdt.base = gdt_address;
    sregs.gdt.limit = (size_of_val(&gdt(true)) - 1) as u16;
    sregs.idt = Default::default();
    mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
    // Bit 1 of RFLAGS is always set.
    vcpu.set_regs(&kvm_regs { rflags: 2, ..regs }).map_err(Error::kvm("KVM_SET_REGS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuid(apic_ids: &[u32]) -> Cpuid {
        let leaf = |function| kvm_cpuid_entry2 { function, ..Default::default() };
        let widest = apic_ids.iter().max().unwrap();
        Cpuid {
            common: [0, FEATURES, CACHES, AMD_TOPOLOGY].map(leaf).to_vec(),
            logical_processors: apic_ids.len() as u32,
            package_shift: u32::BITS - widest.leading_zeros(),
        }
    }

    #[test]
    fn every_leaf_that_names_the_apic_id_names_the_same() {
        let cpuid = cpuid(&[0, 255, 300]);
        let leaves = cpuid.of(300).unwrap();
        let leaf = |function| leaves.as_slice().iter().find(|leaf| leaf.function == function).unwrap();
        assert_eq!(leaf(FEATURES).ebx >> 24, 300 & 0xff);
        assert_eq!(leaf(0xb).edx, 300);
        assert_eq!(leaf(0x1f).edx, 300);
        assert_eq!(leaf(AMD_TOPOLOGY).eax, 300);
    }

    #[test]
    fn all_cores_are_in_one_package() {
        let cpuid = cpuid(&[0, 255, 300]);
        let cores = cpuid.topology(0xb, 300)[1];
        assert_eq!((300 >> cores.eax, cores.ebx), (0, 3));
        assert_eq!(cpuid.topology(0xb, 0)[2].ecx, 2, "the last sub-leaf has no level type");
    }
}
