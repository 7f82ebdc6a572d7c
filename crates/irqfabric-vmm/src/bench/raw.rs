//! The floor: the same job by bare system calls, on a virtual machine of its own that is set up like ours.

use super::error::Error;
use super::host::need_descriptors;
use super::machine::{ADDRESS, vcpu, vector_of, vm};
use irqfabric::hv::{Hypervisor, Kvm};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi, kvm_msi};
use kvm_ioctls::{VcpuFd, VmFd};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The GSIs below are the IOAPIC's pins.
const FIRST_GSI: u32 = 24;

pub struct Raw {
    pub vm: Arc<VmFd>,
    _vcpu: VcpuFd,
}

impl Raw {
    pub fn new() -> Result<Self, Error> {
        let vm = vm()?;
        Kvm::split(vm.clone()).start(FIRST_GSI)?;
        let vcpu = vcpu(&vm)?;
        Ok(Self { vm, _vcpu: vcpu })
    }

    /// KVM_SET_GSI_ROUTING of a table made before.
    pub fn commit(&self, table: &KvmIrqRouting) -> Result<(), Error> {
        self.vm.set_gsi_routing(table).map_err(Error::call("KVM_SET_GSI_ROUTING"))
    }

    /// KVM_IRQFD.
    pub fn assign(&self, eventfd: &EventFd, index: usize) -> Result<(), Error> {
        self.vm.register_irqfd(eventfd, FIRST_GSI + index as u32).map_err(Error::call("KVM_IRQFD"))
    }

    /// KVM_IRQFD with KVM_IRQFD_FLAG_DEASSIGN.
    pub fn deassign(&self, eventfd: &EventFd, index: usize) -> Result<(), Error> {
        self.vm.unregister_irqfd(eventfd, FIRST_GSI + index as u32).map_err(Error::call("KVM_IRQFD (deassign)"))
    }

    /// `count` eventfds with an irqfd each.
    pub fn hot(&self, count: usize) -> Result<Vec<EventFd>, Error> {
        self.commit(&table(count)?)?;
        let eventfds = eventfds(count)?;
        for (index, eventfd) in eventfds.iter().enumerate() {
            self.assign(eventfd, index)?;
        }
        Ok(eventfds)
    }

    /// Deassigns the first of them from as many threads as there are: all at once if there is one.
    pub fn deassign_all(&self, eventfds: &[EventFd], threads: usize) -> Result<(), Error> {
        let failed = Mutex::new(Ok(()));
        let deassign = |first: usize, chunk: &[EventFd]| {
            for (index, eventfd) in chunk.iter().enumerate() {
                if let Err(error) = self.deassign(eventfd, first + index)
                    && let Ok(mut failed) = failed.lock()
                {
                    *failed = Err(error);
                }
            }
        };
        let chunk = eventfds.len().div_ceil(threads).max(1);
        if threads == 1 {
            deassign(0, eventfds);
        } else {
            std::thread::scope(|scope| {
                for (number, eventfds) in eventfds.chunks(chunk).enumerate() {
                    let deassign = &deassign;
                    scope.spawn(move || deassign(number * chunk, eventfds));
                }
            });
        }
        failed.into_inner().unwrap_or(Ok(()))
    }
}

pub fn eventfds(count: usize) -> Result<Vec<EventFd>, Error> {
    need_descriptors(count)?;
    (0..count).map(|_| EventFd::new(EFD_NONBLOCK).map_err(Error::call("eventfd"))).collect()
}

/// The message of the vector at `index`.
pub fn msi(index: usize) -> kvm_msi {
    kvm_msi { address_lo: ADDRESS as u32, data: vector_of(index).into(), ..Default::default() }
}

/// The route of the vector at `index`.
pub fn route(index: usize) -> kvm_irq_routing_entry {
    route_to(index, index)
}

/// The route of the vector at `index`, with the vector number of another.
pub fn route_to(index: usize, other: usize) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi: FIRST_GSI + index as u32, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi =
        kvm_irq_routing_msi { address_lo: ADDRESS as u32, data: vector_of(other).into(), ..Default::default() };
    entry
}

/// The routes of `count` vectors.
pub fn table(count: usize) -> Result<KvmIrqRouting, Error> {
    let entries: Vec<_> = (0..count).map(route).collect();
    from_entries(&entries)
}

pub fn from_entries(entries: &[kvm_irq_routing_entry]) -> Result<KvmIrqRouting, Error> {
    let too_many = |_| Error::Call { call: "KVM_SET_GSI_ROUTING", source: std::io::ErrorKind::OutOfMemory.into() };
    KvmIrqRouting::from_entries(entries).map_err(too_many)
}

pub fn signal(vm: &VmFd, msi: kvm_msi) -> Result<(), Error> {
    vm.signal_msi(msi).map(drop).map_err(Error::call("KVM_SIGNAL_MSI"))
}
