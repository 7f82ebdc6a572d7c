//! Where each disk is to be, and each function of the host's: its address or its slot, its line or its vectors, and how
//! many IOAPICs the lines take.

use super::acpi::SCI_GSI;
use super::layout;
use super::options::{DiskOption, Interface, IrqchipKind, Legacy, VfioOption};
use crate::devices::pci::SLOTS;
use crate::devices::serial::COM1_GSI;
use crate::devices::virtio::{MOST_QUEUES, SignalBy};
use crate::error::Error;
use irqfabric::chip::pic::INPUTS;
use irqfabric::msg::Trigger;
use irqfabric::pci::intx::{IntxPin, RootLines, RootRouting};
use irqfabric::pci::msix::MAX_VECTORS;
use std::collections::HashMap;

/// The first GSI that a disk gets: those below are a PC's keyboard, cascade and serial ports.
const FIRST_GSI: u32 = 5;
const PINS: u32 = 24;
/// Inputs of the PIC that are edges whatever its ELCR is told: timer, keyboard, cascade, clock, floating-point unit (ICH).
const EDGE_ONLY: [u32; 5] = [0, 1, 2, 8, 13];
/// As many as their four bits of id can tell apart.
const MOST_IOAPICS: u32 = 16;
/// As many queues as a PCI disk has unless it is told otherwise.
const USUAL_QUEUES: u16 = 4;
/// Where the pins of PCI slots end.
pub const PCI_ROUTING: RootRouting = RootRouting { first: 16, lines: RootLines::Four };
/// The pin that a single-function device has.
pub const PCI_PIN: IntxPin = IntxPin::A;

/// Where each disk is to be.
#[derive(Debug, Default)]
pub struct Disks {
    /// Those on virtio-mmio.
    pub mmio: Vec<MmioDisk>,
    /// Those on the PCI bus, in slots 1 and up.
    pub pci: Vec<PciDisk>,
    /// What is passed through, in the slots behind them.
    pub vfio: Vec<PassedThrough>,
}

/// What the user said of a disk.
#[derive(Clone, Debug)]
pub struct Image {
    /// `disk0`, `disk1`, … in the order of the command line.
    pub name: String,
    /// The image and whether it is read-only.
    pub option: DiskOption,
}

/// A disk on virtio-mmio, in its place.
#[derive(Debug)]
pub struct MmioDisk {
    /// The user's words.
    pub image: Image,
    /// Where its registers are.
    pub address: u64,
    /// Its line.
    pub gsi: u32,
    /// How it interrupts.
    pub trigger: Trigger,
    /// How it raises a level.
    pub signal_by: SignalBy,
    /// Whether another disk is on the same line.
    pub shared: bool,
}

/// A disk on the PCI bus.
#[derive(Debug)]
pub struct PciDisk {
    /// The user's words.
    pub image: Image,
    /// Its slot, which is its device number.
    pub slot: u8,
    /// How many queues it has.
    pub queues: u16,
    /// How many vectors.
    pub vectors: u16,
    /// How it signals them.
    pub signal_by: SignalBy,
}

/// A function of the host's on the PCI bus.
#[derive(Debug)]
pub struct PassedThrough {
    /// The user's words.
    pub option: VfioOption,
    /// Its slot.
    pub slot: u8,
}

/// The GSI of a slot's pin.
pub fn gsi_of(slot: u8) -> u32 {
    PCI_ROUTING.gsi(slot, PCI_PIN)
}

impl Disks {
    /// Gives every disk and every function its place in a machine of so many vCPUs.
    pub fn plan(
        options: &[DiskOption],
        functions: &[VfioOption],
        irqchip: IrqchipKind,
        legacy: Legacy,
        vcpus: usize,
    ) -> Result<Self, Error> {
        let image =
            |(index, option): (usize, &DiskOption)| Image { name: format!("disk{index}"), option: option.clone() };
        let images = options.iter().enumerate().map(image);
        let (pci, mmio): (Vec<_>, Vec<_>) =
            images.partition(|image| matches!(image.option.interface, Interface::Pci { .. }));
        let slots = pci.len() + functions.len();
        let taken = |gsi: u32| gsi == COM1_GSI || slots > 0 && gsi.wrapping_sub(PCI_ROUTING.first) < 4;
        let mmio = match legacy {
            Legacy::None => plan_mmio(mmio, irqchip, taken)?,
            Legacy::Pic => {
                let no_level = |gsi| gsi >= INPUTS.into() || gsi == SCI_GSI || EDGE_ONLY.contains(&gsi);
                plan_mmio(mmio, irqchip, |gsi| taken(gsi) || no_level(gsi))?
            }
        };
        let most = usize::from(SLOTS) - 1;
        if slots > most {
            return Err(Error::Options(format!("{slots} PCI functions are more than the {most} slots of the bus")));
        }
        let pci = plan_pci(pci, vcpus)?;
        let vfio = plan_vfio(functions, pci.len() as u8 + 1)?;
        Ok(Self { mmio, pci, vfio })
    }

    /// The slots of the bus that have a function. A machine without any has no bus.
    pub fn slots(&self) -> impl Iterator<Item = u8> + '_ {
        let disks = self.pci.iter().map(|disk| disk.slot);
        disks.chain(self.vfio.iter().map(|function| function.slot))
    }

    /// How many IOAPICs the lines need; one at the least.
    pub fn ioapics(&self) -> u8 {
        let highest = self.mmio.iter().map(|disk| disk.gsi).max().unwrap_or_default();
        (highest / PINS + 1) as u8
    }
}

fn plan_mmio(images: Vec<Image>, irqchip: IrqchipKind, taken: impl Fn(u32) -> bool) -> Result<Vec<MmioDisk>, Error> {
    let pins = match irqchip {
        IrqchipKind::Split => PINS * MOST_IOAPICS,
        IrqchipKind::Kernel => PINS,
    };
    let wishes = |image: &Image| match image.option.interface {
        Interface::Mmio { trigger, gsi, signal_by } => (trigger, gsi, signal_by),
        Interface::Pci { signal_by, .. } => (Trigger::Level, None, signal_by),
    };
    let chosen: Vec<u32> = images.iter().filter_map(|image| wishes(image).1).collect();
    let free = (FIRST_GSI..pins).filter(|gsi| !taken(*gsi));
    let room = free.clone().count();
    let mut free = free.filter(|gsi| !chosen.contains(gsi));
    let count = images.len();
    let mut disks = Vec::with_capacity(count);
    let mut lines: HashMap<u32, (Trigger, usize)> = HashMap::new();
    for (image, address) in images.into_iter().zip((layout::VIRTIO..).step_by(layout::VIRTIO_STEP)) {
        let (trigger, gsi, signal_by) = wishes(&image);
        let gsi = gsi.or_else(|| free.next()).ok_or_else(|| too_many(count, room, irqchip))?;
        if gsi >= pins || taken(gsi) {
            let why = format!(
                "gsi={gsi}: disks can have GSIs up to {} but not the serial port's, nor PCI's, and with --pic 5, 6, 7, 10, 11, \
                 12, 14 and 15",
                pins - 1
            );
            return Err(Error::file("disk", &image.option.path, why));
        }
        let line = lines.entry(gsi).or_insert((trigger, 0));
        if line.0 != trigger {
            let why = format!("gsi={gsi}: a line is either level or edge for all that share it");
            return Err(Error::file("disk", &image.option.path, why));
        }
        line.1 += 1;
        disks.push(MmioDisk { image, address, gsi, trigger, signal_by, shared: false });
    }
    for disk in &mut disks {
        disk.shared = lines.get(&disk.gsi).is_some_and(|(_, users)| *users > 1);
    }
    Ok(disks)
}

fn plan_pci(images: Vec<Image>, vcpus: usize) -> Result<Vec<PciDisk>, Error> {
    let most_queues = u16::try_from(vcpus).unwrap_or(MOST_QUEUES).clamp(1, MOST_QUEUES);
    let place = |(image, slot): (Image, u8)| {
        let (queues, vectors, signal_by) = match image.option.interface {
            Interface::Pci { queues, vectors, signal_by } => (queues, vectors, signal_by),
            Interface::Mmio { .. } => (None, None, SignalBy::default()),
        };
        let queues = queues.unwrap_or(most_queues.min(USUAL_QUEUES));
        if !(1..=most_queues).contains(&queues) {
            let why = format!("queues={queues}: a disk of this machine has 1 to {most_queues}, one for each vCPU");
            return Err(Error::file("disk", &image.option.path, why));
        }
        let vectors = vectors.unwrap_or(queues + 1);
        if !(1..=MAX_VECTORS).contains(&vectors) {
            let why = format!("vectors={vectors}: a function has 1 to {MAX_VECTORS}");
            return Err(Error::file("disk", &image.option.path, why));
        }
        Ok(PciDisk { image, slot, queues, vectors, signal_by })
    };
    images.into_iter().zip(1..).map(place).collect()
}

fn plan_vfio(options: &[VfioOption], first: u8) -> Result<Vec<PassedThrough>, Error> {
    let place = |(index, slot): (usize, u8)| {
        let option = options[index];
        match options[..index].iter().any(|other| other.address == option.address) {
            true => Err(Error::vfio(option.address, "it is there twice")),
            false => Ok(PassedThrough { option, slot }),
        }
    };
    (0..options.len()).zip(first..).map(place).collect()
}

fn too_many(disks: usize, room: usize, irqchip: IrqchipKind) -> Error {
    let advice = match irqchip {
        IrqchipKind::Split => "let some share a line (gsi=N)",
        IrqchipKind::Kernel => "KVM's own IOAPIC has 24 pins; use --irqchip split, or let some share a line (gsi=N)",
    };
    Error::Options(format!("{disks} disks are more than the {room} that can have a line of their own: {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(texts: &[&str], irqchip: IrqchipKind) -> Result<Disks, Error> {
        let options: Vec<_> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Disks::plan(&options, &[], irqchip, Legacy::None, 2)
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
        let lines: Vec<_> = disks.mmio.iter().map(|disk| (disk.gsi, disk.shared)).collect();
        assert_eq!(lines, [(6, false), (5, true), (7, false), (5, true)]);
    }

    #[test]
    fn a_line_is_either_level_or_edge_and_never_the_serial_ports() {
        assert!(plan(&["a,gsi=9", "b,gsi=9,edge"], IrqchipKind::Split).is_err());
        assert!(plan(&["a,gsi=4"], IrqchipKind::Split).is_err());
        assert!(plan(&["a,gsi=24"], IrqchipKind::Kernel).is_err());
    }

    #[test]
    fn pci_disks_have_a_queue_for_each_vcpu_and_a_vector_for_each_queue_and_one_more() {
        let disks = plan(&["a,pci", "b", "c,pci,queues=1,vectors=9"], IrqchipKind::Split).unwrap();
        let places: Vec<_> =
            disks.pci.iter().map(|disk| (disk.slot, disk.queues, disk.vectors, gsi_of(disk.slot))).collect();
        assert_eq!(places, [(1, 2, 3, 17), (2, 1, 9, 18)]);
        assert_eq!(disks.pci[1].image.name, "disk2");
        for text in ["a,pci,queues=3", "a,pci,queues=0", "a,pci,vectors=0", "a,pci,vectors=2049"] {
            assert!(plan(&[text], IrqchipKind::Split).is_err(), "{text}");
        }
        assert!(plan(&["a,pci"; 32], IrqchipKind::Split).is_err());
    }

    #[test]
    fn where_pci_pins_end_no_other_disk_is_put() {
        let mut texts = vec!["a"; 12];
        texts.push("b,pci");
        let disks = plan(&texts, IrqchipKind::Split).unwrap();
        assert_eq!(disks.mmio.iter().map(|disk| disk.gsi).max(), Some(20));
        assert!(plan(&["a,gsi=18", "b,pci"], IrqchipKind::Split).is_err());
        assert!(plan(&["a,gsi=18"], IrqchipKind::Split).is_ok());
    }

    #[test]
    fn functions_that_are_passed_through_have_the_slots_behind_the_disks() {
        let functions = ["00:04.0", "00:05.0,intx"].map(|text| text.parse().unwrap());
        let disks = ["a,pci", "b,gsi=5"].map(|text| text.parse().unwrap());
        let plan = Disks::plan(&disks, &functions, IrqchipKind::Split, Legacy::None, 1).unwrap();
        assert!(plan.slots().eq(1..=3));
        assert_eq!(plan.vfio.iter().map(|function| gsi_of(function.slot)).collect::<Vec<_>>(), [18, 19]);
        let refused = |functions: &[VfioOption]| {
            Disks::plan(&[], functions, IrqchipKind::Split, Legacy::None, 1).unwrap_err().to_string()
        };
        assert_eq!(refused(&[functions[0]; 2]), "VFIO device 0000:00:04.0: it is there twice");
        assert!(refused(&[functions[0]; 32]).contains("more than the 31 slots"));
        let pin = "a,gsi=17".parse().unwrap();
        assert!(
            Disks::plan(&[pin], &functions, IrqchipKind::Split, Legacy::None, 1).is_err(),
            "the pins of the slots end there"
        );
    }
}
