//! A virtio-pci function (virtio 1.2, 4.1), modern only: its configuration space and its two BARs.
//!
//! BAR 0 has what the driver works with, a page for each structure; BAR 1 has the MSI-X table and PBA. Where each lies the
//! capabilities say. Their accesses meet in one order: the header's lock, then whatever a vector takes; the registers in BAR 0
//! have locks of their own, so that nobody waits there for a change of vectors.

mod common;
mod doorbells;
mod signals;

pub use doorbells::Doorbells;
pub use signals::{SignalBy, Signals};

use super::device::Device;
use crate::devices::pci::{self, Bar, Header, Identity, capability, command, overlap};
use irqfabric::fabric::MsiVectors;
use irqfabric::msg::Masking;
use irqfabric::pci::VectorConfig;
use irqfabric::pci::intx::STATUS_INTERRUPT;
use irqfabric::pci::msix::{LayoutError, Msix};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

/// The size of BAR 0.
pub const REGISTERS_SIZE: u32 = 0x4000;
/// The BAR of the MSI-X table.
pub const VECTORS_BAR: u8 = 1;
/// As many queues as BAR 0 has room to notify.
pub const MOST_QUEUES: u16 = (PAGE / NOTIFY_STEP) as u16;

const REGISTERS_BAR: u8 = 0;
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = PAGE;
const DEVICE: u64 = 2 * PAGE;
const NOTIFY: u64 = 3 * PAGE;
/// From one queue's notification address to the next.
const NOTIFY_STEP: u64 = 4;

/// `cfg_type` of virtio's capabilities (4.1.4).
mod structure {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const PCI: u8 = 5;
}
/// What virtio's structure capabilities have in common takes so many bytes.
const CAPABILITY_SIZE: u8 = 16;

/// Virtio's vendor id, and the device ids of its modern devices (4.1.2.1).
const VENDOR: u16 = 0x1af4;
const MODERN: u16 = 0x1040;
/// Mass storage, SCSI: what virtio-blk says everywhere.
const CLASS: u32 = 0x01_0000;

/// Where a function is to be found.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The addresses of BAR 0 and BAR 1, aligned to their sizes.
    pub bars: [u32; 2],
    /// The interrupt pin and what the Interrupt Line register says about it.
    pub pin: u8,
    pub line: u8,
}

/// A virtio block device as a PCI function.
pub struct Function {
    device: Device,
    signals: Arc<Signals>,
    registers: Mutex<Registers>,
}

struct Registers {
    header: Header,
    msix: Msix,
    /// Where its capability begins, and that of the PCI configuration access.
    msix_at: u8,
    window_at: u8,
    doorbells: Doorbells,
}

/// The MSI-X table and PBA of a function of so many vectors.
pub fn msix(vectors: u16) -> Result<Msix, LayoutError> {
    Msix::new(vectors, VECTORS_BAR)
}

impl Function {
    /// `device`, which interrupts by `signals`.
    pub fn new(device: Device, signals: Arc<Signals>, msix: Msix, place: Place, doorbells: Doorbells) -> Self {
        let id = MODERN + VIRTIO_ID_BLOCK as u16;
        let (vendor, subsystem) = (VENDOR, id);
        let identity = Identity { vendor, device: id, revision: 1, class: CLASS, subsystem_vendor: vendor, subsystem };
        let mut header = Header::new(&identity)
            .with_bar(REGISTERS_BAR, REGISTERS_SIZE, place.bars[0])
            .with_bar(VECTORS_BAR, msix.bar_size(VECTORS_BAR) as u32, place.bars[1])
            .with_interrupt(place.pin, place.line);
        let mut bytes = [0; 12];
        msix.read(0, &mut bytes);
        let msix_at = header.add_capability(capability::MSIX, &bytes[2..]);
        for (kind, offset, length) in [
            (structure::COMMON, COMMON, common::SIZE as u32),
            (structure::ISR, ISR, 1),
            (structure::DEVICE, DEVICE, PAGE as u32),
        ] {
            header.add_capability(capability::VENDOR, &body(kind, offset, length, &[]));
        }
        let length = u32::from(device.queues()) * NOTIFY_STEP as u32;
        let step = (NOTIFY_STEP as u32).to_le_bytes();
        header.add_capability(capability::VENDOR, &body(structure::NOTIFY, NOTIFY, length, &step));
        // A window to the BARs for whoever cannot map them (4.1.4.9): BAR, offset, length and data are the driver's.
        let window_at = header.add_capability(capability::VENDOR, &body(structure::PCI, 0, 0, &[0; 4]));
        header.allow(usize::from(window_at) + 4, &[0xff]);
        header.allow(usize::from(window_at) + 8, &[0xff; 12]);
        let registers = Registers { header, msix, msix_at, window_at, doorbells };
        let function = Self { device, signals, registers: Mutex::new(registers) };
        function.registers().configure(&function.signals, 0..function.signals.vectors().len());
        function
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The PCI configuration access capability: what it points at, if that is an access that there is.
    fn window(&self) -> Option<(u8, u64, usize)> {
        let Registers { header, window_at, .. } = &*self.registers();
        let mut fields = [0; 12];
        header.read(window_at + 4, &mut fields);
        let [bar, _, _, _, offset @ .., a, b, c, d] = fields;
        let (offset, length) = (u32::from_le_bytes(offset), u32::from_le_bytes([a, b, c, d]));
        let fits = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        fits.then_some((bar, offset.into(), length as usize))
    }

    /// Its data, if an access to configuration space touches them.
    fn touches_window(&self, offset: u8, length: usize) -> Option<u8> {
        let data = self.registers().window_at + CAPABILITY_SIZE;
        overlap(data, 4, offset, length).map(|_| data)
    }
}

impl Registers {
    /// Makes vectors what the registers say. A function that may not master the bus sends no message either
    /// (PCI Local Bus 3.0, 6.2.2).
    fn configure(&self, signals: &Signals, changed: impl Iterator<Item = usize>) {
        let master = self.header.command() & command::BUS_MASTER != 0;
        let config = |index: usize| {
            let config = self.msix.vector(index as u16);
            let masking = if master { config.masking } else { Masking::Disabled };
            (index, VectorConfig { masking, ..config })
        };
        let vectors: &MsiVectors = signals.vectors();
        if let Err(error) = vectors.configure(changed.map(config)) {
            // There are as many as the table has entries.
            tracing::error!(%error, "configuring the vectors of a function");
        }
    }
}

impl pci::Function for Function {
    fn read_config(&self, offset: u8, data: &mut [u8]) {
        if let Some(at) = self.touches_window(offset, data.len())
            && let Some((bar, from, length)) = self.window()
        {
            let mut bytes = [0; 4];
            self.read_bar(bar, from, &mut bytes[..length]);
            self.registers().header.put(at.into(), &bytes);
        }
        let mut registers = self.registers();
        registers.header.set_status(STATUS_INTERRUPT, self.signals.asks());
        registers.header.read(offset, data);
    }

    fn write_config(&self, offset: u8, data: &[u8]) {
        let mut guard = self.registers();
        let registers = &mut *guard;
        let before = registers.header.command();
        registers.header.write(offset, data);
        let command = registers.header.command();
        let written = overlap(registers.msix_at, registers.msix.size(), offset, data.len());
        let changed = written.map(|(offset, part)| registers.msix.write(offset, &data[part]));
        let mut capability = [0; 12];
        registers.msix.read(0, &mut capability);
        registers.header.put(usize::from(registers.msix_at) + 2, &capability[2..]);
        if (before ^ command) & command::BUS_MASTER != 0 {
            registers.configure(&self.signals, 0..self.signals.vectors().len());
        } else if let Some(changed) = changed {
            registers.configure(&self.signals, changed.map(usize::from));
        }
        self.signals.write_command(command, registers.msix.is_enabled());
        let notify = registers.header.bars().find(|bar| bar.number == REGISTERS_BAR);
        registers.doorbells.move_to(&self.device, notify.map(|bar| bar.range.start + NOTIFY));
        drop(guard);

        if let Some(at) = self.touches_window(offset, data.len())
            && let Some((bar, to, length)) = self.window()
        {
            let mut bytes = [0; 4];
            self.registers().header.read(at, &mut bytes);
            self.write_bar(bar, to, &bytes[..length]);
        }
    }

    fn bars(&self) -> Vec<Bar> {
        self.registers().header.bars().collect()
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match (bar, offset & !(PAGE - 1)) {
            (VECTORS_BAR, _) => {
                let pending = |index| self.signals.vectors().pending(usize::from(index));
                self.registers().msix.read_bar(bar, offset, data, pending);
            }
            (REGISTERS_BAR, COMMON) => common::read(&self.device, &self.signals, offset, data),
            // One byte, and what reads it takes it (4.1.4.5).
            (REGISTERS_BAR, ISR) if offset == ISR => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.signals.take_isr();
                }
            }
            (REGISTERS_BAR, DEVICE) => self.device.read_config(offset - DEVICE, data),
            _ => {}
        }
    }

    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) {
        match (bar, offset & !(PAGE - 1)) {
            (VECTORS_BAR, _) => {
                let mut registers = self.registers();
                let changed = registers.msix.write_bar(bar, offset, data);
                registers.configure(&self.signals, changed.map(usize::from));
            }
            (REGISTERS_BAR, COMMON) => common::write(&self.device, &self.signals, offset, data),
            // The queue is the address's; what is written is its number once more.
            (REGISTERS_BAR, NOTIFY) => self.device.notify(((offset - NOTIFY) / NOTIFY_STEP) as u32),
            _ => {}
        }
    }
}

/// The body of a structure's capability (4.1.4): its length, what it is, BAR, offset, length, and what else it has.
fn body(kind: u8, offset: u64, length: u32, more: &[u8]) -> Vec<u8> {
    let mut body = vec![CAPABILITY_SIZE + more.len() as u8, kind, REGISTERS_BAR, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more);
    body
}

#[cfg(test)]
mod tests;
