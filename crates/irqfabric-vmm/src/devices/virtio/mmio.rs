//! The registers of a virtio-mmio device, version 2 (virtio 1.2, 4.2.2).
//!
//! Registers are 32 bits wide and answer to aligned accesses of that width only; the configuration space behind them
//! takes any.

use super::device::{Device, QUEUE_SIZE};
use super::interrupt::LineInterrupt;
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_mmio as register;
use virtio_queue::{Queue, QueueT};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

/// How many bytes of address space the device answers to.
pub const SIZE: u64 = 0x200;
/// Where QueueNotify is in them. What is written there is the queue's number.
pub const QUEUE_NOTIFY: u64 = register::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"irqf");

/// A block device behind its registers.
pub struct Mmio {
    device: Device,
    interrupt: Arc<LineInterrupt>,
}

impl Mmio {
    /// `device`, which interrupts by `interrupt`.
    pub fn new(device: Device, interrupt: Arc<LineInterrupt>) -> Self {
        Self { device, interrupt }
    }

    fn read(&self, offset: u32) -> u32 {
        let selected = self.device.selected();
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => VIRTIO_ID_BLOCK,
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => self.device.features(&selected),
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => self.device.queue(&selected, |_| QUEUE_SIZE).unwrap_or(0).into(),
            register::VIRTIO_MMIO_QUEUE_READY => self.device.queue(&selected, Queue::ready).unwrap_or(false).into(),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            register::VIRTIO_MMIO_STATUS => self.device.status(),
            // "If no shared memory region is there, reads return -1."
            register::VIRTIO_MMIO_SHM_LEN_LOW..=register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write(&self, offset: u32, value: u32) {
        let mut selected = self.device.selected();
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => selected.device_features = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => selected.driver_features = value,
            register::VIRTIO_MMIO_QUEUE_SEL => selected.queue = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => self.device.accept(&mut selected, value),
            register::VIRTIO_MMIO_QUEUE_NOTIFY => self.device.notify(value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::VIRTIO_MMIO_STATUS => self.device.set_status(&mut selected, value),
            register::VIRTIO_MMIO_QUEUE_READY => self.device.set_ready(&selected, value == 1),
            _ => self.device.set_up(&selected, |queue| match offset {
                // Sizes that cannot be are refused by the queue, which then keeps its old one.
                register::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
                register::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
                register::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
                register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
                register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
                register::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
                register::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
                _ => {}
            }),
        }
    }
}

impl DeviceMmio for Mmio {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(register::VIRTIO_MMIO_CONFIG.into()) {
            self.device.read_config(offset, data);
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
