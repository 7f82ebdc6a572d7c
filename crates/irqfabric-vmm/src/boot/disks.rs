//! Which disk interrupts on which line, how many IOAPICs that takes, and putting the disks into the machine.

use super::layout;
use super::options::{DiskOption, IrqchipKind};
use crate::devices::serial::COM1_GSI;
use crate::devices::virtio::{Disk, QUEUE_NOTIFY, SIZE, Transport};
use crate::error::Error;
use crate::machine::Machine;
use irqfabric::msg::Trigger;
use kvm_ioctls::IoEventAddress;
use std::collections::HashMap;
use std::sync::Arc;

/// The first GSI that a disk gets: those below are a PC's keyboard, cascade and serial ports.
const FIRST_GSI: u32 = 5;
const PINS: u32 = 24;
/// As many as their four bits of id can tell apart.
const MOST_IOAPICS: u32 = 16;

/// Where each disk is to be.
#[derive(Debug)]
pub struct Disks(Vec<PlacedDisk>);

/// A disk in its place.
#[derive(Debug)]
pub struct PlacedDisk {
    /// The user's words.
    option: DiskOption,
    /// Where its registers are.
    pub address: u64,
    /// Its line.
    pub gsi: u32,
    /// How it interrupts.
    pub trigger: Trigger,
    /// Whether another disk is on the same line.
    pub shared: bool,
}

impl Disks {
    /// Gives every disk a line and an address.
    pub fn plan(options: &[DiskOption], irqchip: IrqchipKind) -> Result<Self, Error> {
        let pins = match irqchip {
            IrqchipKind::Split => PINS * MOST_IOAPICS,
            IrqchipKind::Kernel => PINS,
        };
        let chosen: Vec<u32> = options.iter().filter_map(|option| option.gsi).collect();
        let mut free = (FIRST_GSI..pins).filter(|gsi| !chosen.contains(gsi));
        let mut disks = Vec::with_capacity(options.len());
        let mut lines: HashMap<u32, (Trigger, usize)> = HashMap::new();
        for (option, address) in options.iter().zip((layout::VIRTIO..).step_by(layout::VIRTIO_STEP)) {
            let gsi = option.gsi.or_else(|| free.next()).ok_or_else(|| too_many(options.len(), pins, irqchip))?;
            if gsi >= pins || gsi == COM1_GSI {
                let why = format!("gsi={gsi}: disks can have GSIs up to {} but not the serial port's", pins - 1);
                return Err(Error::file("disk", &option.path, why));
            }
            let trigger = option.trigger;
            let line = lines.entry(gsi).or_insert((trigger, 0));
            if line.0 != trigger {
                let why = format!("gsi={gsi}: a line is either level or edge for all that share it");
                return Err(Error::file("disk", &option.path, why));
            }
            line.1 += 1;
            disks.push(PlacedDisk { option: option.clone(), address, gsi, trigger, shared: false });
        }
        for disk in &mut disks {
            disk.shared = lines.get(&disk.gsi).is_some_and(|(_, users)| *users > 1);
        }
        Ok(Self(disks))
    }

    /// How many IOAPICs the lines need; one at the least.
    pub fn ioapics(&self) -> u8 {
        let highest = self.0.iter().map(|disk| disk.gsi).max().unwrap_or_default();
        (highest / PINS + 1) as u8
    }

    /// In the order of the command line.
    pub fn iter(&self) -> impl Iterator<Item = &PlacedDisk> {
        self.0.iter()
    }

    /// Opens the images and puts the devices on the bus. A notification goes straight to a disk's thread, by ioeventfd.
    pub fn attach(&self, machine: &mut Machine) -> Result<(), Error> {
        for (index, placed) in self.0.iter().enumerate() {
            let name = format!("disk{index}");
            let disk = Disk::open(&placed.option.path, placed.option.read_only, &name)?;
            let source = machine.fabric().line(placed.gsi)?.source(name);
            let transport = Arc::new(Transport::new(disk, machine.memory().clone(), source, placed.trigger)?);
            let notify = IoEventAddress::Mmio(placed.address + QUEUE_NOTIFY);
            let bound = machine.vm().register_ioevent(transport.doorbell(), &notify, 0u32);
            bound.map_err(Error::kvm("KVM_IOEVENTFD"))?;
            machine.register_mmio(placed.address, SIZE, transport)?;
        }
        Ok(())
    }
}

fn too_many(disks: usize, pins: u32, irqchip: IrqchipKind) -> Error {
    let (most, advice) = match irqchip {
        IrqchipKind::Split => (pins - FIRST_GSI, "let some share a line (gsi=N)"),
        IrqchipKind::Kernel => {
            (pins - FIRST_GSI, "KVM's own IOAPIC has 24 pins; use --irqchip split, or let some share a line (gsi=N)")
        }
    };
    Error::Options(format!("{disks} disks are more than the {most} that can have a line of their own: {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(texts: &[&str], irqchip: IrqchipKind) -> Result<Disks, Error> {
        let options: Vec<_> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Disks::plan(&options, irqchip)
    }

    #[test]
    fn thirty_disks_take_two_ioapics_and_are_too_many_for_kvms_own() {
        let disks = plan(&["a"; 30], IrqchipKind::Split).unwrap();
        assert_eq!(disks.ioapics(), 2);
        let refusal = plan(&["a"; 30], IrqchipKind::Kernel).unwrap_err().to_string();
        assert!(refusal.contains("30 disks are more than the 19"), "{refusal}");
    }

    #[test]
    fn no_two_disks_share_a_line_unless_they_are_told_to() {
        let disks = plan(&["a", "b,gsi=5", "c", "d,gsi=5"], IrqchipKind::Split).unwrap();
        let lines: Vec<_> = disks.iter().map(|disk| (disk.gsi, disk.shared)).collect();
        assert_eq!(lines, [(6, false), (5, true), (7, false), (5, true)]);
    }

    #[test]
    fn a_line_is_either_level_or_edge_and_never_the_serial_ports() {
        assert!(plan(&["a,gsi=9", "b,gsi=9,edge"], IrqchipKind::Split).is_err());
        assert!(plan(&["a,gsi=4"], IrqchipKind::Split).is_err());
        assert!(plan(&["a,gsi=24"], IrqchipKind::Kernel).is_err());
    }
}
