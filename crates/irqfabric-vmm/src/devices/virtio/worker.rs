//! The threads that serve a device's queues, and what they share with the registers.
//!
//! A queue's lock is held while requests are done: whoever resets the device waits for the one under way and knows that
//! no memory is touched afterwards (virtio 1.2, 2.4). Everything that a running driver touches on its interrupt path has
//! other locks.

use super::block::Disk;
use super::interrupt::Interrupt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// What the registers and the workers share.
pub struct Shared {
    pub disk: Disk,
    pub memory: GuestMemoryMmap,
    pub interrupt: Arc<dyn Interrupt>,
    pub queues: Box<[Served]>,
    /// The device status register.
    pub status: AtomicU32,
    /// The machine is going away.
    pub closing: AtomicBool,
}

/// A queue with its worker's doorbell.
pub struct Served {
    /// Written by the guest's notifications, by way of KVM or of the register.
    pub doorbell: EventFd,
    work: Mutex<Work>,
}

/// The queue and whether it may be served.
pub struct Work {
    pub queue: Queue,
    /// Between DRIVER_OK and reset, and not after the driver broke its queue.
    pub running: bool,
}

impl Served {
    pub fn new(doorbell: EventFd, queue: Queue) -> Self {
        Self { doorbell, work: Mutex::new(Work { queue, running: false }) }
    }

    pub fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only fails when the count is at its end: it has been rung.
    pub fn ring(&self) {
        let _ = self.doorbell.write(1);
    }
}

impl Shared {
    /// A worker's thread: serves its queue at each ring of the doorbell, until the device is closed.
    pub fn serve(&self, index: u16) {
        let Some(served) = self.queues.get(usize::from(index)) else { return };
        while served.doorbell.read().is_ok() && !self.closing.load(Ordering::Acquire) {
            let mut work = served.work();
            if work.running && self.drain(index, &mut work.queue).is_err() {
                work.running = false;
                self.status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::AcqRel);
                self.interrupt.configuration_changed();
            }
        }
    }

    /// Does what is in the queue. An error is the driver's: rings outside memory, or indices that cannot be.
    fn drain(&self, index: u16, queue: &mut Queue) -> Result<(), Error> {
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
                    self.interrupt.used(index);
                }
            }
            if !queue.enable_notification(&self.memory)? {
                return Ok(());
            }
        }
    }
}
