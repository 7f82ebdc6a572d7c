//! The DMAR table: where the remapping unit's registers are, and who the IOAPICs' messages come from.
//!
//! Intel VT-d specification, chapter 8 (BIOS considerations), which acpi_tables has not got. One unit for everything: it
//! does not translate DMA, and says so itself.

use super::{OEM, OEM_TABLE, PlacedIoapic};
use acpi_tables::sdt::Sdt;
use zerocopy::{Immutable, IntoBytes};

/// DMAR flags (8.1): the platform supports interrupt remapping. Bit 1, which asks not to use x2APIC mode, stays clear.
const INTR_REMAP: u8 = 1 << 0;
/// DRHD flags (8.3): all PCI functions of the segment are under this unit.
const INCLUDE_PCI_ALL: u8 = 1 << 0;
/// Device scope type (8.3.1).
const IOAPIC: u8 = 3;
/// What addresses have at the most, less one: as many bits as the units of our guests' processors.
const HOST_ADDRESS_WIDTH: u8 = 46 - 1;

/// Behind the header (8.1).
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Remapping {
    host_address_width: u8,
    flags: u8,
    reserved: [u8; 10],
}

/// DMA remapping hardware unit definition (8.3).
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Unit {
    kind: u16,
    length: u16,
    flags: u8,
    /// 2 to the power of this many pages.
    size: u8,
    segment: u16,
    address: u64,
}

/// Device scope with a path of one step (8.3.1).
#[repr(C, packed)]
#[derive(Clone, Copy, IntoBytes, Immutable)]
struct Scope {
    kind: u8,
    length: u8,
    reserved: u16,
    enumeration_id: u8,
    bus: u8,
    device: u8,
    function: u8,
}

impl Scope {
    /// By the id that its MADT structure has, and by the requester id of its messages.
    fn ioapic(ioapic: &PlacedIoapic) -> Self {
        let requester = ioapic.requester.0;
        Self {
            kind: IOAPIC,
            length: size_of::<Self>() as u8,
            reserved: 0,
            enumeration_id: ioapic.id,
            bus: (requester >> 8) as u8,
            device: (requester >> 3 & 0x1f) as u8,
            function: (requester & 7) as u8,
        }
    }
}

/// The table for one unit whose page is at `address`.
pub fn dmar(address: u64, ioapics: &[PlacedIoapic]) -> Sdt {
    let remapping = Remapping { host_address_width: HOST_ADDRESS_WIDTH, flags: INTR_REMAP, reserved: [0; 10] };
    let length = (size_of::<Unit>() + size_of::<Scope>() * ioapics.len()) as u16;
    let unit = Unit { kind: 0, length, flags: INCLUDE_PCI_ALL, size: 0, segment: 0, address };
    let mut dmar = Sdt::new(*b"DMAR", 36, 1, OEM, OEM_TABLE, 1);
    dmar.append_slice(remapping.as_bytes());
    dmar.append_slice(unit.as_bytes());
    for ioapic in ioapics {
        dmar.append_slice(Scope::ioapic(ioapic).as_bytes());
    }
    dmar
}

#[cfg(test)]
mod tests {
    use super::*;
    use irqfabric::msg::RequesterId;

    #[test]
    fn one_unit_includes_all_and_names_each_ioapic() {
        let ioapic = |id, requester| PlacedIoapic { id, address: 0, first_gsi: 0, requester };
        let ioapics = [ioapic(0, RequesterId::new(0xff, 0, 0)), ioapic(5, RequesterId::new(0xfe, 0x1f, 7))];
        let table = dmar(0xfed9_0000, &ioapics);
        let table = table.as_slice();
        assert_eq!(
            (&table[..4], table[37]),
            (b"DMAR".as_slice(), 1),
            "interrupt remapping, and x2APIC not opted out of"
        );
        let unit = &table[48..];
        assert_eq!((&unit[..4], unit[4], &unit[6..8]), ([0, 0, 32, 0].as_slice(), 1, [0, 0].as_slice()));
        assert_eq!(unit[8..16], 0xfed9_0000_u64.to_le_bytes());
        assert_eq!(unit[16..], [3, 8, 0, 0, 0, 0xff, 0, 0, 3, 8, 0, 0, 5, 0xfe, 0x1f, 7]);
    }
}
