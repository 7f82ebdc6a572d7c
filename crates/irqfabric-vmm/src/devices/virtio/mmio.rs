//! The registers of a virtio-mmio device, version 2 (virtio 1.2, 4.2.2).
//!
//! Registers are 32 bits wide and answer to aligned accesses of that width only; the configuration space behind them
//! takes any. There is one queue. Everything the driver writes is checked where it is used.

use super::block::Disk;
use super::interrupt::Interrupt;
use super::worker::{Shared, Work};
use crate::error::Error;
use irqfabric::line::LineSource;
use irqfabric::msg::Trigger;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_mmio as register;
use virtio_queue::{Queue, QueueT};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// How many bytes of address space the device answers to.
pub const SIZE: u64 = 0x200;
/// Where QueueNotify is in them.
pub const QUEUE_NOTIFY: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"irqf");
const QUEUE_SIZE: u16 = 256;

/// A block device behind its registers. Dropping it ends its thread.
pub struct Transport {
    shared: Arc<Shared>,
    selectors: Mutex<Selectors>,
    worker: Option<JoinHandle<()>>,
}

/// What the driver selects before it reads or writes something else, and what it has negotiated.
#[derive(Default)]
struct Selectors {
    device_features: u32,
    driver_features: u32,
    queue: u32,
    accepted: u64,
}

impl Transport {
    /// The device, with its thread. It interrupts by `source`, as a level or an edge.
    pub fn new(disk: Disk, memory: GuestMemoryMmap, source: LineSource, trigger: Trigger) -> Result<Self, Error> {
        let host = |what| move |source| Error::Host { what, source };
        let queue = Queue::new(QUEUE_SIZE).map_err(|error| Error::Options(error.to_string()))?;
        let shared = Arc::new(Shared {
            disk,
            memory,
            interrupt: Interrupt::new(source, trigger),
            doorbell: EventFd::new(libc::EFD_CLOEXEC).map_err(host("make an eventfd for a disk"))?,
            status: AtomicU32::new(0),
            work: Mutex::new(Work { queue, running: false }),
            closing: AtomicBool::new(false),
        });
        let serve = shared.clone();
        let worker = std::thread::Builder::new().name("disk".into());
        let worker = worker.spawn(move || serve.serve()).map_err(host("start a thread for a disk"))?;
        Ok(Self { shared, selectors: Mutex::default(), worker: Some(worker) })
    }

    /// What the guest's notifications may write to directly (KVM_IOEVENTFD at [`QUEUE_NOTIFY`], value 0).
    pub fn doorbell(&self) -> &EventFd {
        &self.shared.doorbell
    }

    fn selectors(&self) -> MutexGuard<'_, Selectors> {
        self.selectors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offered(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | self.shared.disk.features()
    }

    fn read(&self, offset: u32) -> u32 {
        let selectors = self.selectors();
        let first_queue = selectors.queue == 0;
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => VIRTIO_ID_BLOCK,
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered(), selectors.device_features),
            register::VIRTIO_MMIO_QUEUE_NUM_MAX if first_queue => QUEUE_SIZE.into(),
            register::VIRTIO_MMIO_QUEUE_READY if first_queue => self.shared.work().queue.ready().into(),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.shared.interrupt.status(),
            register::VIRTIO_MMIO_STATUS => self.shared.status.load(Ordering::Acquire),
            // "If no shared memory region is there, reads return -1."
            register::VIRTIO_MMIO_SHM_LEN_LOW..=register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write(&self, offset: u32, value: u32) {
        let mut selectors = self.selectors();
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => selectors.device_features = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => selectors.driver_features = value,
            register::VIRTIO_MMIO_QUEUE_SEL => selectors.queue = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES if !self.has(VIRTIO_CONFIG_S_FEATURES_OK) => {
                selectors.accept(value);
            }
            register::VIRTIO_MMIO_QUEUE_NOTIFY => {
                // Only fails when the count is at its end: it has been rung.
                let _ = self.shared.doorbell.write(1);
            }
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.shared.interrupt.acknowledge(value),
            register::VIRTIO_MMIO_STATUS if value == 0 => self.reset(&mut selectors),
            register::VIRTIO_MMIO_STATUS => self.set_status(value, selectors.accepted),
            // The queue's own registers, none of which may change once it is ready (4.2.3.2).
            _ if selectors.queue == 0 => {
                let mut work = self.shared.work();
                let Work { queue, running } = &mut *work;
                match offset {
                    register::VIRTIO_MMIO_QUEUE_READY if !*running => queue.set_ready(value == 1),
                    _ if queue.ready() => {}
                    // Sizes that cannot be are refused by the queue, which then keeps its old one.
                    register::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
                    register::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
                    register::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
                    register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
                    register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
                    register::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
                    register::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.shared.status.load(Ordering::Acquire) & bit != 0
    }

    /// The driver goes a step further. FEATURES_OK stays clear when it accepted what was not offered, or not
    /// VERSION_1 (3.1.1, 6.1).
    fn set_status(&self, value: u32, accepted: u64) {
        let agreed = accepted & !self.offered() == 0 && accepted >> VIRTIO_F_VERSION_1 & 1 == 1;
        let refused = if agreed { 0 } else { VIRTIO_CONFIG_S_FEATURES_OK };
        let mut work = self.shared.work();
        let broken = self.shared.status.load(Ordering::Acquire) & VIRTIO_CONFIG_S_NEEDS_RESET;
        self.shared.status.store(value & !refused | broken, Ordering::Release);
        let ok = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        let starts = value & !refused & ok == ok && broken == 0;
        if starts && !work.running && work.queue.is_valid(&self.shared.memory) {
            work.running = true;
            // What the driver queued before it was done, if it did.
            let _ = self.shared.doorbell.write(1);
        }
    }

    /// Waits for the request under way, if any.
    fn reset(&self, selectors: &mut Selectors) {
        let mut work = self.shared.work();
        work.running = false;
        work.queue.reset();
        self.shared.interrupt.acknowledge(u32::MAX);
        self.shared.status.store(0, Ordering::Release);
        *selectors = Selectors::default();
    }
}

impl Selectors {
    fn accept(&mut self, value: u32) {
        let (keep, shift) = match self.driver_features {
            0 => (0xffff_ffff << 32, 0),
            1 => (0xffff_ffff, 32),
            _ => return,
        };
        self.accepted = self.accepted & keep | u64::from(value) << shift;
    }
}

fn half(features: u64, selector: u32) -> u32 {
    match selector {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl DeviceMmio for Transport {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        let config = u64::from(register::VIRTIO_MMIO_CONFIG);
        if let Some(into) = offset.checked_sub(config) {
            let config = self.shared.disk.config();
            for (byte, from) in data.iter_mut().zip(into as usize..) {
                *byte = config.get(from).copied().unwrap_or(0);
            }
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read(offset as u32).to_le_bytes());
        }
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Ok(value) = data.try_into()
            && offset.is_multiple_of(4)
        {
            self.write(offset as u32, u32::from_le_bytes(value));
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        let _ = self.shared.doorbell.write(1);
        if let Some(worker) = self.worker.take() {
            // A worker that panicked has said so.
            let _ = worker.join();
        }
    }
}
