//! Opens the images of planned disks and the host's functions, and puts the devices into the machine.
//!
//! A notification goes straight to a disk's thread, by ioeventfd.

use super::disks::{Disks, Image, MmioDisk, PCI_PIN, PassedThrough, PciDisk, gsi_of};
use super::layout;
use crate::devices::pair::Pair;
use crate::devices::pci::{self, Bus, LAST_PORT, PORTS, Ports, Window};
use crate::devices::vfio::{self, Container, Slots, Sysfs};
use crate::devices::virtio::{
    self, Device, Disk, Doorbells, Function, LineInterrupt, Mmio, Place, QUEUE_NOTIFY, REGISTERS_SIZE, SIZE, SignalBy,
    Signals, VECTORS_BAR,
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

/// The first memory slot of KVM's that a device may have: memory itself has those below.
const FIRST_SLOT: u32 = 16;

/// What is told of devices that no line and no fabric tells.
#[derive(Default)]
pub struct Attached {
    /// The vectors of those that have some.
    pub vectors: Vec<NamedVectors>,
    /// The pairs of eventfds, by the devices' names.
    pub pairs: Vec<(String, Arc<Pair>)>,
}

/// All of them. A machine without a PCI function has no PCI bus either.
pub fn attach(disks: &Disks, machine: &mut Machine) -> Result<Attached, Error> {
    let mut pairs = Vec::new();
    for disk in &disks.mmio {
        pairs.extend(attach_mmio(disk, machine)?.map(|pair| (disk.image.name.clone(), pair)));
    }
    let count = disks.slots().count();
    if count == 0 {
        return Ok(Attached { vectors: Vec::new(), pairs });
    }
    let mut functions: Vec<Arc<dyn pci::Function>> = Vec::with_capacity(count);
    let mut named = Vec::with_capacity(count);
    let mut bars = Bars { next: layout::PCI.start };
    for disk in &disks.pci {
        let (function, vectors) = function(disk, machine, &mut bars)?;
        functions.push(Arc::new(function));
        named.push(NamedVectors { device: disk.image.name.clone(), vectors });
    }
    for function in pass_through(&disks.vfio, machine, &mut bars)? {
        named.push(NamedVectors { device: function.name(), vectors: function.vectors() });
        functions.push(Arc::new(function));
    }
    let bus = Arc::new(Bus::new(functions));
    machine.register_pio(PORTS, LAST_PORT - PORTS + 1, Arc::new(Ports::new(bus.clone())))?;
    machine.register_mmio(layout::PCI.start, layout::PCI.end - layout::PCI.start, Arc::new(Window(bus)))?;
    Ok(Attached { vectors: named, pairs })
}

/// What can be refused without a machine.
pub fn check(disks: &Disks) -> Result<(), Error> {
    disks.vfio.iter().try_for_each(|function| Sysfs::default().find(function.option.address).map(drop))
}

/// Takes functions over from the host.
fn pass_through(functions: &[PassedThrough], machine: &Machine, bars: &mut Bars) -> Result<Vec<vfio::Function>, Error> {
    let (sysfs, slots) = (Sysfs::default(), Slots::from(FIRST_SLOT));
    let Some(first) = functions.first() else { return Ok(Vec::new()) };
    let mut container = Container::new(machine.vm(), machine.memory(), first.option.address)?;
    let open = |PassedThrough { option, slot }: &PassedThrough| {
        let device = container.open(&sysfs, option.address)?;
        let place = vfio::Place {
            slot: *slot,
            pin: PCI_PIN,
            gsi: gsi_of(*slot),
            only_pin: option.only_pin,
            window: layout::PCI,
            bar: &mut |size| bars.take(size),
        };
        vfio::Function::new(option.address, device, place, machine.fabric(), machine.vm().clone(), &slots)
    };
    functions.iter().map(open).collect()
}

fn open(image: &Image) -> Result<Disk, Error> {
    Disk::open(&image.option.path, image.option.read_only, &image.name)
}

fn attach_mmio(disk: &MmioDisk, machine: &mut Machine) -> Result<Option<Arc<Pair>>, Error> {
    let (interrupt, pair) = match disk.signal_by {
        SignalBy::Call => {
            let source = machine.fabric().line(disk.gsi)?.source(&disk.image.name);
            (LineInterrupt::new(source, disk.trigger), None)
        }
        SignalBy::Eventfd => {
            let pair = Pair::new(machine.fabric(), disk.gsi, &disk.image.name)?;
            (LineInterrupt::by_eventfds(pair.clone())?, Some(pair))
        }
    };
    let interrupt = Arc::new(interrupt);
    let device = Device::new(open(&disk.image)?, machine.memory().clone(), interrupt.clone())?;
    for queue in 0..device.queues() {
        let notify = IoEventAddress::Mmio(disk.address + QUEUE_NOTIFY);
        if let Some(doorbell) = device.doorbell(queue) {
            let bound = machine.vm().register_ioevent(doorbell, &notify, u32::from(queue));
            bound.map_err(Error::kvm("KVM_IOEVENTFD"))?;
        }
    }
    machine.register_mmio(disk.address, SIZE, Arc::new(Mmio::new(device, interrupt)))?;
    Ok(pair)
}

fn function(disk: &PciDisk, machine: &Machine, bars: &mut Bars) -> Result<(Function, Box<[MsiVector]>), Error> {
    let msix = virtio::msix(disk.vectors).map_err(|why| Error::file("disk", &disk.image.option.path, why))?;
    let requester = RequesterId::new(0, disk.slot, 0);
    let vectors = machine.fabric().msi_vectors(requester, disk.vectors.into());
    let handles = vectors.to_vec().into();
    let gsi = gsi_of(disk.slot);
    let pin = machine.fabric().line(gsi)?.source(&disk.image.name);
    let signals = Arc::new(Signals::new(vectors, disk.signal_by, disk.queues, pin));
    let image = open(&disk.image)?.with_queues(disk.queues);
    let device = Device::new(image, machine.memory().clone(), signals.clone())?;
    let sizes = [REGISTERS_SIZE.into(), msix.bar_size(VECTORS_BAR)].map(|size| bars.take(size));
    let [Some(registers), Some(table)] = sizes else {
        return Err(Error::Options("the PCI bus has no room for so many disks".into()));
    };
    let place = Place { bars: [registers, table], pin: PCI_PIN.register(), line: gsi as u8 };
    let doorbells = Doorbells::new(machine.vm().clone());
    Ok((Function::new(device, signals, msix, place, doorbells), handles))
}

/// Hands out the window: 31 disks with all the vectors that there can be take less than a hundredth of it.
struct Bars {
    next: u64,
}

impl Bars {
    /// An address aligned to its size, as a BAR has to be.
    fn take(&mut self, size: u64) -> Option<u32> {
        let start = self.next.checked_next_multiple_of(size)?;
        let end = start.checked_add(size).filter(|end| *end <= layout::PCI.end)?;
        self.next = end;
        u32::try_from(start).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_aligned_to_their_sizes_and_all_fit_into_the_window() {
        let mut bars = Bars { next: layout::PCI.start };
        for _ in 0..31 {
            for size in [u64::from(REGISTERS_SIZE), 0x1_0000] {
                assert_eq!(bars.take(size).map(|start| u64::from(start) % size), Some(0));
            }
        }
        assert_eq!(bars.take(1 << 28), None, "the window is as large as that, and not free");
        assert!(bars.take(1 << 27).is_some());
    }
}
