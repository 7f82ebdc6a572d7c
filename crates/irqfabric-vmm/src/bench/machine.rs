//! The machine that is measured: a fabric on real KVM with one vCPU, which never runs.

use super::error::Error;
use super::host::need_descriptors;
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{Fabric, FabricBuilder, IOAPIC_ADDRESS, MsiVectors, Program, Promotion};
use irqfabric::hv::{Calls, Counted, Kvm};
use irqfabric::msg::RequesterId;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::{VcpuFd, VmFd};
use std::sync::Arc;

/// Where messages to the vCPU go.
pub const ADDRESS: u64 = 0xfee0_0000;

/// The first of the vectors that are used: those below are exceptions.
pub const FIRST: u8 = 0x30;

pub struct Machine {
    pub fabric: Fabric,
    /// Counts our calls, unless the machine was made [`uncounted`](Self::uncounted).
    pub hypervisor: Arc<Counted<Kvm>>,
    pub vm: Arc<VmFd>,
    _vcpu: VcpuFd,
}

/// Whether there is KVM at all.
pub fn check() -> Result<(), Error> {
    kvm().map(drop)
}

fn kvm() -> Result<kvm_ioctls::Kvm, Error> {
    kvm_ioctls::Kvm::new().map_err(|errno| Error::NoKvm(errno.into()))
}

pub fn vm() -> Result<Arc<VmFd>, Error> {
    Ok(Arc::new(kvm()?.create_vm().map_err(Error::call("KVM_CREATE_VM"))?))
}

/// A vCPU of APIC id 0 with its local APIC switched on, in x2APIC mode.
pub fn vcpu(vm: &VmFd) -> Result<VcpuFd, Error> {
    let vcpu = vm.create_vcpu(0).map_err(Error::call("KVM_CREATE_VCPU"))?;
    let mut cpuid =
        kvm()?.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::call("KVM_GET_SUPPORTED_CPUID"))?;
    for leaf in cpuid.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1) {
        leaf.ecx |= 1 << 21; // x2APIC.
    }
    vcpu.set_cpuid2(&cpuid).map_err(Error::call("KVM_SET_CPUID2"))?;
    let mut sregs = vcpu.get_sregs().map_err(Error::call("KVM_GET_SREGS"))?;
    sregs.apic_base |= 0xc00; // Enabled, x2APIC.
    vcpu.set_sregs(&sregs).map_err(Error::call("KVM_SET_SREGS"))?;
    let mut lapic = vcpu.get_lapic().map_err(Error::call("KVM_GET_LAPIC"))?;
    lapic.regs[0xf1] = 1; // Bit 8 of the spurious-interrupt vector register: software enable.
    vcpu.set_lapic(&lapic).map_err(Error::call("KVM_SET_LAPIC"))?;
    Ok(vcpu)
}

impl Machine {
    pub fn new(promotion: Promotion) -> Result<Self, Error> {
        Self::build(|builder| builder.promotion(promotion))
    }

    /// Counting a delivery takes about a fortieth of it: not where the fortieth matters.
    pub fn uncounted(promotion: Promotion) -> Result<Self, Error> {
        let vm = vm()?;
        let builder = Fabric::builder(Kvm::split(vm.clone())).ioapic(Ioapic::default());
        let fabric = builder.promotion(promotion).build()?;
        let hypervisor = Arc::new(Counted::new(Kvm::split(vm.clone())));
        let vcpu = vcpu(&vm)?;
        Ok(Self { fabric, hypervisor, vm, _vcpu: vcpu })
    }

    pub fn build(parts: impl FnOnce(FabricBuilder) -> FabricBuilder) -> Result<Self, Error> {
        let vm = vm()?;
        let hypervisor = Arc::new(Counted::new(Kvm::split(vm.clone())));
        let fabric = parts(Fabric::builder(hypervisor.clone()).ioapic(Ioapic::default())).build()?;
        let vcpu = vcpu(&vm)?;
        Ok(Self { fabric, hypervisor, vm, _vcpu: vcpu })
    }

    /// `count` vectors with eventfds, not programmed.
    pub fn vectors(&self, count: usize) -> Result<MsiVectors, Error> {
        need_descriptors(count)?;
        let vectors = self.fabric.msi_vectors(RequesterId::new(0, 3, 0), count);
        for vector in vectors.iter() {
            vector.eventfd().map_err(Error::call("eventfd"))?;
        }
        Ok(vectors)
    }

    /// System calls of the fabric's so far, other than to wait for eventfds and to read them: an attach is one with its read.
    pub fn system_calls(&self) -> u64 {
        let Calls { deliveries, refused: _, commits, attaches, detaches } = self.hypervisor.calls();
        deliveries + commits + 2 * attaches + detaches
    }

    /// [System calls](Self::system_calls) that one operation takes.
    pub fn calls_of(&self, operations: usize, operation: impl Fn()) -> f64 {
        let before = self.system_calls();
        (0..operations).for_each(|_| operation());
        (self.system_calls() - before) as f64 / operations as f64
    }

    pub fn write_select(&self, index: u8) {
        self.fabric.mmio_write(IOAPIC_ADDRESS, &u32::from(index).to_le_bytes());
    }

    pub fn write_window(&self, value: u32) {
        self.fabric.mmio_write(IOAPIC_ADDRESS + 0x10, &value.to_le_bytes());
    }

    pub fn read_window(&self) -> u32 {
        let mut data = [0; 4];
        self.fabric.mmio_read(IOAPIC_ADDRESS + 0x10, &mut data);
        u32::from_le_bytes(data)
    }

    /// As Linux does: the high half first, so that a pin is whole when it is unmasked.
    pub fn program_pin(&self, pin: u8, entry: u64) {
        self.write_select(0x11 + 2 * pin);
        self.write_window((entry >> 32) as u32);
        self.write_select(0x10 + 2 * pin);
        self.write_window(entry as u32);
    }
}

/// Gives every vector a message: vector numbers that repeat when there are more than a CPU has.
pub fn program_all(vectors: &MsiVectors) -> Result<(), Error> {
    let programs: Vec<_> =
        (0..vectors.len()).map(|index| Program { index, address: ADDRESS, data: vector_of(index).into() }).collect();
    Ok(vectors.program_all(&programs)?)
}

/// The vector number of the vector at `index`.
pub const fn vector_of(index: usize) -> u8 {
    FIRST + (index % 192) as u8
}

pub fn fire(vectors: &MsiVectors, index: usize) -> Result<(), Error> {
    let eventfd = vectors[index].eventfd().map_err(Error::call("eventfd"))?;
    eventfd.write(1).map_err(Error::call("write of an eventfd"))
}
