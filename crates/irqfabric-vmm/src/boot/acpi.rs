//! The ACPI tables: which processors, IOAPICs and devices there are, and how to switch the machine off.
//!
//! Hardware-reduced (ACPI 6.5, 4.1) unless there is a PIC: no power management timer, no SCI, no legacy devices. Linux then expects no PIC and
//! no PIT (`acpi_generic_reduced_hw_init`), takes its time from kvm-clock and the TSC-deadline timer, and powers off by
//! the sleep control register. With a PIC there are the fixed registers that a PC needs, and no more (4.8.3): PM1 events,
//! which never come, and PM1 control, which switches off. Linux takes a hardware-reduced machine for one without a
//! PIC whatever the MADT says. GSIs are ISA interrupts nowhere: there are no source overrides.

mod dmar;
mod pci;

use super::disks::Disks;
use super::layout::{ACPI, ACPI_END};
use super::options::Legacy;
use crate::devices::power;
use crate::devices::serial::{COM1, COM1_GSI, PORTS};
use crate::devices::virtio;
use crate::error::Error;
use crate::machine::Machine;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, aml};
use irqfabric::fabric::IOAPIC_ADDRESS;
use irqfabric::msg::{RequesterId, Trigger};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{Immutable, IntoBytes};

const OEM: [u8; 6] = *b"IRQFAB";
const OEM_TABLE: [u8; 8] = *b"IRQFABVM";
const LOCAL_APIC: u32 = 0xfee0_0000;
/// The first APIC id that a local APIC structure cannot name: 255 is the broadcast id.
const FIRST_X2APIC_ID: u32 = 255;

/// IAPC_BOOT_ARCH: no VGA to probe, no CMOS clock. Bits for legacy devices and an 8042 stay clear.
const NO_VGA: u16 = 1 << 2;
const NO_RTC: u16 = 1 << 5;

/// Where the system control interrupt of a PC is.
pub const SCI_GSI: u32 = 9;
/// Flag of the MADT: there is a PIC as well.
const PCAT_COMPAT: u8 = 1;

/// What the tables are about.
pub struct Tables<'a> {
    pub apic_ids: &'a [u32],
    pub ioapics: &'a [PlacedIoapic],
    pub disks: &'a Disks,
    /// Where the unit that remaps interrupts is, if there is one.
    pub remapping: Option<u64>,
    pub legacy: Legacy,
}

/// An IOAPIC as the guest finds it.
#[derive(Clone, Copy, Debug)]
pub struct PlacedIoapic {
    pub id: u8,
    pub address: u32,
    pub first_gsi: u32,
    /// Who its messages come from.
    pub requester: RequesterId,
}

/// The machine's IOAPICs: the fabric's, or KVM's one.
pub fn ioapics(machine: &Machine) -> Vec<PlacedIoapic> {
    let ours = machine.fabric().ioapics();
    let ours = ours.map(|(address, first_gsi, state)| PlacedIoapic {
        id: state.id,
        address: address as u32,
        first_gsi,
        requester: state.requester,
    });
    let mut ioapics: Vec<_> = ours.collect();
    if ioapics.is_empty() {
        // IOAPIC_DEFAULT_BASE_ADDRESS in Linux' arch/x86/kvm/ioapic.h is where ours begin as well.
        let (address, requester) = (IOAPIC_ADDRESS as u32, RequesterId::default());
        ioapics.push(PlacedIoapic { id: 0, address, first_gsi: 0, requester });
    }
    ioapics
}

/// Local x2APIC structure (ACPI 6.5, 5.2.12.12), which acpi_tables has not got.
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct LocalX2apic {
    kind: u8,
    length: u8,
    reserved: u16,
    apic_id: u32,
    flags: u32,
    uid: u32,
}

impl LocalX2apic {
    fn new(uid: u32, apic_id: u32) -> Self {
        Self {
            kind: 9,
            length: size_of::<Self>() as u8,
            reserved: 0,
            apic_id,
            flags: EnabledStatus::Enabled as u32,
            uid,
        }
    }
}

impl Aml for LocalX2apic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.as_bytes());
    }
}

impl Tables<'_> {
    /// Writes them all. The answer is the RSDP's address.
    pub fn write(&self, memory: &GuestMemoryMmap) -> Result<u64, Error> {
        // The root comes first, where guests look for it, and can be written last.
        let mut placed = Placed { memory, next: ACPI + aligned(Rsdp::len()) };
        let dsdt = placed.place(self.dsdt().as_slice())?;
        let fadt = match self.legacy {
            Legacy::None => reduced_fadt(dsdt),
            Legacy::Pic => {
                // ACPI 6.5, 5.2.10: on a 64-byte boundary.
                placed.next = placed.next.next_multiple_of(64);
                fixed_fadt(dsdt, placed.place(&bytes(&FACS::new()))?)
            }
        };
        let fadt = placed.place(&bytes(&fadt))?;
        let madt = placed.place(&self.madt_bytes())?;
        let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
        xsdt.add_entry(fadt);
        xsdt.add_entry(madt);
        if let Some(address) = self.remapping {
            let dmar = placed.place(dmar::dmar(address, self.ioapics).as_slice())?;
            xsdt.add_entry(dmar);
        }
        let xsdt = placed.place(&bytes(&xsdt))?;
        placed.next = ACPI;
        placed.place(&bytes(&Rsdp::new(OEM, xsdt)))
    }

    fn madt(&self) -> MADT {
        let mut madt = MADT::new(OEM, OEM_TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
        for (uid, &apic_id) in (0..).zip(self.apic_ids) {
            match u8::try_from(apic_id) {
                Ok(id) if apic_id < FIRST_X2APIC_ID => {
                    madt.add_structure(ProcessorLocalApic::new(uid as u8, id, EnabledStatus::Enabled));
                }
                _ => madt.add_structure(LocalX2apic::new(uid, apic_id)),
            }
        }
        for &PlacedIoapic { id, address, first_gsi, requester: _ } in self.ioapics {
            madt.add_structure(IoApic::new(id, address, first_gsi));
        }
        madt
    }

    /// acpi_tables has no way to set the MADT's flags, which are the byte at 40 and the three that follow.
    fn madt_bytes(&self) -> Vec<u8> {
        const FLAGS: usize = 40;
        const CHECKSUM: usize = 9;
        let mut madt = bytes(&self.madt());
        if self.legacy == Legacy::Pic {
            madt[FLAGS] |= PCAT_COMPAT;
            madt[CHECKSUM] = madt[CHECKSUM].wrapping_sub(PCAT_COMPAT);
        }
        madt
    }

    fn dsdt(&self) -> Sdt {
        let mut code = Vec::new();
        let (s5, zero) = (power::SLEEP_TYPE_S5, aml::ZERO);
        aml::Name::new("_S5_".into(), &aml::Package::new(vec![&s5, &s5, &zero, &zero])).to_aml_bytes(&mut code);
        serial_port(&mut code);
        for (index, disk) in self.disks.mmio.iter().enumerate() {
            let line = Line { gsi: disk.gsi, trigger: disk.trigger, shared: disk.shared };
            virtio_mmio(&mut code, index, disk.address as u32, line);
        }
        if self.disks.slots().next().is_some() {
            pci::host_bridge(self.disks, &mut code);
        }
        let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, 1);
        dsdt.append_slice(&code);
        dsdt
    }
}

/// Hands out the room for tables.
struct Placed<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Placed<'_> {
    fn place(&mut self, table: &[u8]) -> Result<u64, Error> {
        let address = self.next;
        self.next += aligned(table.len());
        if self.next > ACPI_END {
            let room = ACPI_END - ACPI;
            return Err(Error::Options(format!(
                "the ACPI tables for so many vCPUs and disks do not fit into their {room} bytes: take fewer"
            )));
        }
        let written = self.memory.write_slice(table, GuestAddress(address));
        written.map_err(|_| Error::NoRoom("the ACPI tables"))?;
        Ok(address)
    }
}

fn aligned(length: usize) -> u64 {
    (length as u64).next_multiple_of(16)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address.into())
}

/// What both kinds have. The buttons are not fixed ones, and there are none.
fn fadt(dsdt: u64) -> FADTBuilder {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1).dsdt_64(dsdt);
    for flag in [Flags::ResetRegSup, Flags::PwrButton, Flags::SlpButton] {
        fadt = fadt.flag(flag);
    }
    fadt.iapc_boot_arch = (NO_VGA | NO_RTC).into();
    fadt.reset_reg = port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt
}

fn reduced_fadt(dsdt: u64) -> FADT {
    let mut fadt = fadt(dsdt).flag(Flags::HwReducedAcpi);
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    fadt.finalize()
}

/// Without an SMI command port the machine is in ACPI mode from the start. No timer, no general-purpose events.
fn fixed_fadt(dsdt: u64, facs: u64) -> FADT {
    let mut fadt = fadt(dsdt).firmware_ctrl_64(facs).flag(Flags::FixRtc);
    fadt.sci_int = (SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(power::PM1_EVENT).into();
    fadt.pm1_evt_len = power::PM1_EVENT_LENGTH;
    fadt.pm1a_cnt_blk = u32::from(power::PM1_CONTROL).into();
    fadt.pm1_cnt_len = power::PM1_CONTROL_LENGTH;
    fadt.finalize()
}

/// A device's interrupt resource: active high, since a line carries assertion.
struct Line {
    gsi: u32,
    trigger: Trigger,
    shared: bool,
}

impl Aml for Line {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let Self { gsi, trigger, shared } = *self;
        let (consumer, edge, active_low) = (true, trigger == Trigger::Edge, false);
        aml::Interrupt::new(consumer, edge, active_low, shared, gsi).to_aml_bytes(sink);
    }
}

fn serial_port(code: &mut Vec<u8>) {
    let ports = aml::IO::new(COM1, COM1, 1, PORTS as u8);
    let line = Line { gsi: COM1_GSI, trigger: Trigger::Edge, shared: false };
    let id = aml::EISAName::new("PNP0501");
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &id),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&ports, &line])),
        ],
    )
    .to_aml_bytes(code);
}

fn virtio_mmio(code: &mut Vec<u8>, index: usize, address: u32, line: Line) {
    let registers = aml::Memory32Fixed::new(true, address, virtio::SIZE as u32);
    aml::Device::new(
        format!("_SB_.V{index:03X}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &(index as u32)),
            // Linux takes DMA of a device without it for incoherent.
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&registers, &line])),
        ],
    )
    .to_aml_bytes(code);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::options::IrqchipKind;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    fn table(memory: &GuestMemoryMmap, address: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut table = vec![0; length as usize];
        memory.read_slice(&mut table, GuestAddress(address)).unwrap();
        table
    }

    fn written(apic_ids: &[u32]) -> (GuestMemoryMmap, Vec<Vec<u8>>) {
        written_with(apic_ids, Legacy::None)
    }

    fn written_with(apic_ids: &[u32], legacy: Legacy) -> (GuestMemoryMmap, Vec<Vec<u8>>) {
        let memory = memory();
        let options = ["a", "b,edge", "c,pci"].map(|text| text.parse().unwrap());
        let disks = Disks::plan(&options, &[], IrqchipKind::Split, legacy, 1).unwrap();
        let requester = RequesterId::default();
        let ioapics = [PlacedIoapic { id: 0, address: 0xfec0_0000, first_gsi: 0, requester }];
        let remapping = Some(0xfed9_0000);
        let tables = Tables { apic_ids, ioapics: &ioapics, disks: &disks, remapping, legacy };
        let rsdp = tables.write(&memory).unwrap();
        let xsdt: u64 = memory.read_obj(GuestAddress(rsdp + 24)).unwrap();
        let root = table(&memory, xsdt);
        let entries = root[36..].chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap()));
        let tables = [xsdt].into_iter().chain(entries).map(|address| table(&memory, address)).collect();
        (memory, tables)
    }

    #[test]
    fn every_table_that_the_root_leads_to_has_a_right_checksum() {
        for legacy in [Legacy::None, Legacy::Pic] {
            let (memory, tables) = written_with(&[0, 1, 300], legacy);
            let dsdt = u64::from_le_bytes(tables[1][140..148].try_into().unwrap());
            for table in tables.into_iter().chain([table(&memory, dsdt)]) {
                let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                assert_eq!(sum, 0, "{:?}", str::from_utf8(&table[..4]));
            }
        }
    }

    #[test]
    fn a_machine_with_a_pic_says_so_and_has_the_fixed_registers() {
        let (memory, tables) = written_with(&[0], Legacy::Pic);
        let (fadt, madt) = (&tables[1], &tables[2]);
        let dword = |at: usize| u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap());
        assert_eq!(madt[40], PCAT_COMPAT);
        assert_eq!(dword(112) & Flags::HwReducedAcpi as u32, 0);
        assert_eq!([dword(56), dword(64)], [power::PM1_EVENT, power::PM1_CONTROL].map(u32::from));
        let facs = u64::from_le_bytes(fadt[132..140].try_into().unwrap());
        assert_eq!((facs % 64, &table(&memory, facs)[..4]), (0, &b"FACS"[..]));
    }

    #[test]
    fn apic_ids_from_255_on_are_named_by_x2apic_structures() {
        let (_, tables) = written(&[0, 254, 255, 300]);
        let madt = &tables[2];
        let mut structures = Vec::new();
        let mut at = 44;
        while at < madt.len() {
            structures.push((madt[at], madt[at + 1]));
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(structures, [(0, 8), (0, 8), (9, 16), (9, 16), (1, 12)]);
    }

    #[test]
    fn more_processors_than_the_tables_have_room_for_are_refused() {
        let ids: Vec<u32> = (0..20_000).collect();
        let disks = Disks::default();
        let (remapping, legacy) = (None, Legacy::None);
        let tables = Tables { apic_ids: &ids, ioapics: &[], disks: &disks, remapping, legacy };
        assert!(tables.write(&memory()).is_err());
    }
}
