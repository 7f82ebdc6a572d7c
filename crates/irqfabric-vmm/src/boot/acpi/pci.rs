//! The PCI host bridge in the DSDT: which bus, which ports, which window, and where the slots' pins end.

use crate::boot::disks::{Disks, PCI_PIN, gsi_of};
use crate::boot::layout;
use crate::devices::pci::{LAST_PORT, PORTS};
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Name, Package, ResourceTemplate, ZERO,
};

/// Any function of a slot, as `_PRT` names it (ACPI 6.5, 6.2.13).
const ANY_FUNCTION: u32 = 0xffff;

/// A conventional PCI bus, configured by ports: no MCFG, and no `_OSC` that would have to be answered.
pub fn host_bridge(disks: &Disks, code: &mut Vec<u8>) {
    let id = EISAName::new("PNP0A03");
    let buses = AddressSpace::new_bus_number(0u16, 0u16);
    let ports = IO::new(PORTS, PORTS, 1, (LAST_PORT - PORTS + 1) as u8);
    let (first, last) = (layout::PCI.start as u32, layout::PCI.end as u32 - 1);
    let window = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let routes: Vec<_> = disks.slots().map(|slot| (u32::from(slot) << 16 | ANY_FUNCTION, gsi_of(slot))).collect();
    // `_PRT` counts pins from 0, the Interrupt Pin register from 1.
    let pin = PCI_PIN.register() - 1;
    let routes: Vec<_> = routes.iter().map(|(slot, gsi)| Package::new(vec![slot, &pin, &ZERO, gsi])).collect();
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &id),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&buses, &ports, &window])),
            &Name::new("_PRT".into(), &Package::new(routes.iter().map(|route| route as &dyn Aml).collect())),
        ],
    )
    .to_aml_bytes(code);
}
