//! What all transports have in common: feature negotiation, the device status, and the set-up of queues (virtio 1.2, 2
//! and 3.1).
//!
//! Everything the driver writes is checked where it is used.

use super::block::Disk;
use super::interrupt::Interrupt;
use super::worker::{Served, Shared, Work};
use crate::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// How many descriptors a queue may have.
pub const QUEUE_SIZE: u16 = 256;

/// A block device without its registers. Dropping it ends its threads.
pub struct Device {
    shared: Arc<Shared>,
    selected: Mutex<Selected>,
    workers: Vec<JoinHandle<()>>,
}

/// What the driver selects before it reads or writes something else, and what it has negotiated.
#[derive(Default)]
pub struct Selected {
    /// Which 32 of the device's features it wants to see.
    pub device_features: u32,
    /// Which 32 of its own it tells.
    pub driver_features: u32,
    /// The queue that it sets up.
    pub queue: u32,
    accepted: u64,
}

impl Device {
    /// The device, with its threads: as many queues as the disk has. It interrupts by `interrupt`.
    pub fn new(disk: Disk, memory: GuestMemoryMmap, interrupt: Arc<dyn Interrupt>) -> Result<Self, Error> {
        let host = |what| move |source| Error::Host { what, source };
        let queue = |_| {
            let queue = Queue::new(QUEUE_SIZE).map_err(|error| Error::Options(error.to_string()))?;
            let doorbell = EventFd::new(libc::EFD_CLOEXEC).map_err(host("make an eventfd for a disk"))?;
            Ok(Served::new(doorbell, queue))
        };
        let count = disk.queues();
        let queues = (0..count).map(queue).collect::<Result<_, Error>>()?;
        let (status, closing) = (AtomicU32::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { disk, memory, interrupt, queues, status, closing });
        // From here on dropping it ends what has been started.
        let mut device = Self { shared, selected: Mutex::default(), workers: Vec::with_capacity(count.into()) };
        for index in 0..count {
            let serve = device.shared.clone();
            let worker = std::thread::Builder::new().name("disk".into());
            let worker = worker.spawn(move || serve.serve(index)).map_err(host("start a thread for a disk"))?;
            device.workers.push(worker);
        }
        Ok(device)
    }

    /// How many queues it has.
    pub fn queues(&self) -> u16 {
        self.shared.queues.len() as u16
    }

    /// What the guest's notifications of a queue may write to directly, by KVM_IOEVENTFD.
    pub fn doorbell(&self, queue: u16) -> Option<&EventFd> {
        self.shared.queues.get(usize::from(queue)).map(|served| &served.doorbell)
    }

    /// The driver has something in this queue. One that there is not is none of ours.
    pub fn notify(&self, queue: u32) {
        if let Some(served) = self.served(queue) {
            served.ring();
        }
    }

    /// The selectors, which every access to a register looks at.
    pub fn selected(&self) -> MutexGuard<'_, Selected> {
        self.selected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Features.

    /// The 32 features that are selected.
    pub fn features(&self, selected: &Selected) -> u32 {
        half(self.offered(), selected.device_features)
    }

    /// The driver tells which of the 32 that are selected it accepts. Too late once both have agreed (3.1.1).
    pub fn accept(&self, selected: &mut Selected, features: u32) {
        let (keep, shift) = match selected.driver_features {
            0 => (0xffff_ffff << 32, 0),
            1 => (0xffff_ffff, 32),
            _ => return,
        };
        if self.status() & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            selected.accepted = selected.accepted & keep | u64::from(features) << shift;
        }
    }

    /// What the driver has told of the 32 that are selected.
    pub fn accepted(selected: &Selected) -> u32 {
        half(selected.accepted, selected.driver_features)
    }

    fn offered(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | self.shared.disk.features()
    }

    // Status.

    /// The device status register.
    pub fn status(&self) -> u32 {
        self.shared.status.load(Ordering::Acquire)
    }

    /// The driver goes a step further, or resets the device by writing zero. FEATURES_OK stays clear when it accepted what
    /// was not offered, or not VERSION_1 (3.1.1, 6.1).
    pub fn set_status(&self, selected: &mut Selected, value: u32) {
        if value == 0 {
            return self.reset(selected);
        }
        let accepted = selected.accepted;
        let agreed = accepted & !self.offered() == 0 && accepted >> VIRTIO_F_VERSION_1 & 1 == 1;
        let refused = if agreed { 0 } else { VIRTIO_CONFIG_S_FEATURES_OK };
        let ok = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        let status = &self.shared.status;
        // Whatever the driver writes, a broken device stays broken until it is reset.
        let step = |before| Some(value & !refused | before & VIRTIO_CONFIG_S_NEEDS_RESET);
        let _ = status.fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
        if value & !refused & ok != ok {
            return;
        }
        for served in &self.shared.queues {
            let mut work = served.work();
            let broken = self.status() & VIRTIO_CONFIG_S_NEEDS_RESET != 0;
            if !work.running && !broken && work.queue.is_valid(&self.shared.memory) {
                work.running = true;
                // What the driver queued before it was done, if it did.
                served.ring();
            }
        }
    }

    /// Waits for the requests under way, if any.
    fn reset(&self, selected: &mut Selected) {
        for served in &self.shared.queues {
            let mut work = served.work();
            work.running = false;
            work.queue.reset();
        }
        self.shared.interrupt.reset();
        self.shared.status.store(0, Ordering::Release);
        *selected = Selected::default();
    }

    // Queues.

    /// Looks at the queue that is selected.
    pub fn queue<T>(&self, selected: &Selected, look: impl FnOnce(&Queue) -> T) -> Option<T> {
        self.served(selected.queue).map(|served| look(&served.work().queue))
    }

    /// Sets up the queue that is selected, unless it is ready: nothing of it may change then (4.1.4.3.2, 4.2.3.2).
    pub fn set_up(&self, selected: &Selected, change: impl FnOnce(&mut Queue)) {
        if let Some(served) = self.served(selected.queue) {
            let Work { queue, .. } = &mut *served.work();
            if !queue.ready() {
                change(queue);
            }
        }
    }

    /// Makes the selected queue ready, or takes that back as long as the device does not serve it.
    pub fn set_ready(&self, selected: &Selected, ready: bool) {
        if let Some(served) = self.served(selected.queue) {
            let Work { queue, running } = &mut *served.work();
            if !*running {
                queue.set_ready(ready);
            }
        }
    }

    fn served(&self, queue: u32) -> Option<&Served> {
        usize::try_from(queue).ok().and_then(|queue| self.shared.queues.get(queue))
    }

    // The configuration space.

    /// The driver reads of it. Behind its end it is zero; nothing in it can be written.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.shared.disk.config();
        let from = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(from) {
            *to = *from;
        }
    }
}

fn half(features: u64, selector: u32) -> u32 {
    match selector {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        for served in &self.shared.queues {
            served.ring();
        }
        for worker in self.workers.drain(..) {
            // A worker that panicked has said so.
            let _ = worker.join();
        }
    }
}
