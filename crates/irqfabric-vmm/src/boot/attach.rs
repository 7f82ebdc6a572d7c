//! Opens the images of planned disks and puts the devices into the machine.
//!
//! A notification goes straight to a disk's thread, by ioeventfd.

use super::disks::{Disks, Image, MmioDisk, PCI_PIN, PciDisk};
use super::layout;
use crate::devices::pci::{self, Bus, LAST_PORT, PORTS, Ports, Window};
use crate::devices::virtio::{
    self, Device, Disk, Doorbells, Function, LineInterrupt, Mmio, Place, QUEUE_NOTIFY, REGISTERS_SIZE, SIZE, Signals,
    VECTORS_BAR,
};
use crate::error::Error;
use crate::machine::Machine;
use irqfabric::fabric::MsiVector;
use irqfabric::msg::RequesterId;
use kvm_ioctls::IoEventAddress;
use std::sync::Arc;

/// The vectors of a device that has some, for the report.
pub struct NamedVectors {
    /// The device's name.
    pub device: String,
    /// Its vectors, in order.
    pub vectors: Box<[MsiVector]>,
}

/// All of them. A machine without a PCI disk has no PCI bus either.
pub fn attach(disks: &Disks, machine: &mut Machine) -> Result<Vec<NamedVectors>, Error> {
    for disk in &disks.mmio {
        attach_mmio(disk, machine)?;
    }
    if disks.pci.is_empty() {
        return Ok(Vec::new());
    }
    let mut functions: Vec<Arc<dyn pci::Function>> = Vec::with_capacity(disks.pci.len());
    let mut named = Vec::with_capacity(disks.pci.len());
    let mut bars = Bars { next: layout::PCI.start };
    for disk in &disks.pci {
        let (function, vectors) = function(disk, machine, &mut bars)?;
        functions.push(Arc::new(function));
        named.push(NamedVectors { device: disk.image.name.clone(), vectors });
    }
    let bus = Arc::new(Bus::new(functions));
    machine.register_pio(PORTS, LAST_PORT - PORTS + 1, Arc::new(Ports::new(bus.clone())))?;
    machine.register_mmio(layout::PCI.start, layout::PCI.end - layout::PCI.start, Arc::new(Window(bus)))?;
    Ok(named)
}

fn open(image: &Image) -> Result<Disk, Error> {
    Disk::open(&image.option.path, image.option.read_only, &image.name)
}

fn attach_mmio(disk: &MmioDisk, machine: &mut Machine) -> Result<(), Error> {
    let source = machine.fabric().line(disk.gsi)?.source(&disk.image.name);
    let interrupt = Arc::new(LineInterrupt::new(source, disk.trigger));
    let device = Device::new(open(&disk.image)?, machine.memory().clone(), interrupt.clone())?;
    for queue in 0..device.queues() {
        let notify = IoEventAddress::Mmio(disk.address + QUEUE_NOTIFY);
        if let Some(doorbell) = device.doorbell(queue) {
            let bound = machine.vm().register_ioevent(doorbell, &notify, u32::from(queue));
            bound.map_err(Error::kvm("KVM_IOEVENTFD"))?;
        }
    }
    machine.register_mmio(disk.address, SIZE, Arc::new(Mmio::new(device, interrupt)))
}

fn function(disk: &PciDisk, machine: &Machine, bars: &mut Bars) -> Result<(Function, Box<[MsiVector]>), Error> {
    let msix = virtio::msix(disk.vectors).map_err(|why| Error::file("disk", &disk.image.option.path, why))?;
    let requester = RequesterId::new(0, disk.slot, 0);
    let vectors = machine.fabric().msi_vectors(requester, disk.vectors.into());
    let handles = vectors.to_vec().into();
    let gsi = disk.gsi();
    let pin = machine.fabric().line(gsi)?.source(&disk.image.name);
    let signals = Arc::new(Signals::new(vectors, disk.signal_by, disk.queues, pin));
    let image = open(&disk.image)?.with_queues(disk.queues);
    let device = Device::new(image, machine.memory().clone(), signals.clone())?;
    let sizes = [REGISTERS_SIZE, msix.bar_size(VECTORS_BAR) as u32];
    let place = Place { bars: sizes.map(|size| bars.take(size)), pin: PCI_PIN.register(), line: gsi as u8 };
    let doorbells = Doorbells::new(machine.vm().clone());
    Ok((Function::new(device, signals, msix, place, doorbells), handles))
}

/// Hands out the window: 31 functions with all the vectors that there can be take less than a hundredth of it.
struct Bars {
    next: u64,
}

impl Bars {
    /// An address aligned to its size, as a BAR has to be.
    fn take(&mut self, size: u32) -> u32 {
        let start = self.next.next_multiple_of(size.into());
        self.next = start + u64::from(size);
        start as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_aligned_to_their_sizes_and_all_fit_into_the_window() {
        let mut bars = Bars { next: layout::PCI.start };
        for _ in 0..31 {
            for size in [REGISTERS_SIZE, 0x1_0000] {
                assert_eq!(bars.take(size) % size, 0);
            }
        }
        assert!(bars.next <= layout::PCI.end);
    }
}
