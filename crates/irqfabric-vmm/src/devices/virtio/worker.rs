//! The thread that serves a device's queue, and what it shares with the registers.
//!
//! The queue's lock is held while requests are done: whoever resets the device waits for the one under way and knows that
//! no memory is touched afterwards (virtio 1.2, 2.4). Everything that a running driver touches on its interrupt path has
//! other locks.

use super::block::Disk;
use super::interrupt::Interrupt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// What the registers and the worker share.
pub struct Shared {
    pub disk: Disk,
    pub memory: GuestMemoryMmap,
    pub interrupt: Interrupt,
    /// Written by the guest's notifications, by way of KVM or of the register.
    pub doorbell: EventFd,
    /// The device status register.
    pub status: AtomicU32,
    pub work: Mutex<Work>,
    /// The machine is going away.
    pub closing: AtomicBool,
}

/// The queue and whether it may be served.
pub struct Work {
    pub queue: Queue,
    /// Between DRIVER_OK and reset, and not after the driver broke its queue.
    pub running: bool,
}

impl Shared {
    pub fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker's thread: serves the queue at each ring of the doorbell, until the device is closed.
    pub fn serve(&self) {
        while self.doorbell.read().is_ok() && !self.closing.load(Ordering::Acquire) {
            let mut work = self.work();
            if work.running && self.drain(&mut work.queue).is_err() {
                work.running = false;
                self.status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::AcqRel);
                self.interrupt.raise(VIRTIO_MMIO_INT_CONFIG);
            }
        }
    }

    /// Does what is in the queue. An error is the driver's: rings outside memory, or indices that cannot be.
    fn drain(&self, queue: &mut Queue) -> Result<(), Error> {
        loop {
            queue.disable_notification(&self.memory)?;
            while let Some(chain) = queue.iter(&self.memory)?.next() {
                if self.closing.load(Ordering::Acquire) {
                    return Ok(());
                }
                let head = chain.head_index();
                let length = self.disk.execute(&self.memory, chain);
                queue.add_used(&self.memory, head, length)?;
                if queue.needs_notification(&self.memory)? {
                    self.interrupt.raise(VIRTIO_MMIO_INT_VRING);
                }
            }
            if !queue.enable_notification(&self.memory)? {
                return Ok(());
            }
        }
    }
}
