//! A guest's notifications straight to the workers, by KVM_IOEVENTFD, wherever the guest has put the BAR.
//!
//! They spare an exit and nothing else: without them, or where KVM refuses one, the write comes out to the function, which rings.

use super::NOTIFY_STEP;
use crate::devices::virtio::device::Device;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::sync::Arc;

/// The doorbells of one function.
#[derive(Default)]
pub struct Doorbells {
    vm: Option<Arc<VmFd>>,
    /// Where they are bound now.
    at: Option<u64>,
}

impl Doorbells {
    /// Of a function of this machine.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm: Some(vm), at: None }
    }

    /// The notification addresses of `device` begin at `address` now, or are nowhere. No system call if they did before.
    pub fn move_to(&mut self, device: &Device, address: Option<u64>) {
        if self.at == address {
            return;
        }
        let (Some(vm), before) = (&self.vm, std::mem::replace(&mut self.at, address)) else { return };
        for queue in 0..device.queues() {
            let Some(doorbell) = device.doorbell(queue) else { return };
            let at = |address: u64| IoEventAddress::Mmio(address + u64::from(queue) * NOTIFY_STEP);
            if let Some(before) = before {
                // Fails for one that could not be bound.
                let _ = vm.unregister_ioevent(doorbell, &at(before), NoDatamatch);
            }
            if let Some(address) = address
                && let Err(error) = vm.register_ioevent(doorbell, &at(address), NoDatamatch)
            {
                tracing::warn!(%error, queue, "KVM_IOEVENTFD: notifications take the longer way");
            }
        }
    }
}
