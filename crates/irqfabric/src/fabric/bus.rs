//! The chips on the buses of rust-vmm's `vm-device`.
//!
//! A chip's register write may deliver, commit and kick: that is the fabric's business, so the device on the bus is a handle
//! to the fabric, and which chip is meant is told by the address. A bare [`Ioapic`](crate::chip::ioapic::Ioapic) is no
//! bus device: what its [`Written`](crate::chip::ioapic::Written) asks for would be lost. A bare [`Pic`] is one, see there.

use super::{Fabric, VTD_WINDOW_SIZE, WINDOW_SIZE};
use crate::chip::pic::{PORTS, Pic};
use std::sync::Arc;
use vm_device::bus::{self, MmioAddress, MmioAddressOffset, MmioRange, PioAddress, PioAddressOffset, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, DevicePio, MutDevicePio};

impl Fabric {
    /// Puts the windows of the IOAPICs, the register page of the VT-d unit and the ports of the PIC, as far as there are such,
    /// on the buses of `manager`.
    ///
    /// Ends of interrupts do not come by a bus: [`end_of_interrupt`](Self::end_of_interrupt) is still the vCPU loop's to
    /// call.
    ///
    /// ```
    /// use irqfabric::chip::{ioapic::Ioapic, pic::Pic};
    /// use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS};
    /// use irqfabric::hv::Sim;
    /// use vm_device::bus::{MmioAddress, PioAddress};
    /// use vm_device::device_manager::{IoManager, MmioManager, PioManager};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).pic(Pic::default()).kick(|_| {}).build()?;
    /// let mut manager = IoManager::new();
    /// fabric.register(&mut manager)?;
    ///
    /// // The guest asks the IOAPIC for its version, and masks all of the master PIC.
    /// let mut version = [0; 4];
    /// manager.mmio_write(MmioAddress(IOAPIC_ADDRESS), &[1])?;
    /// manager.mmio_read(MmioAddress(IOAPIC_ADDRESS + 0x10), &mut version)?;
    /// assert_eq!(u32::from_le_bytes(version), 0x17_0020);
    /// manager.pio_write(PioAddress(0x21), &[0xff])?;
    /// let mut mask = [0];
    /// manager.pio_read(PioAddress(0x21), &mut mask)?;
    /// assert_eq!(mask, [0xff]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn register(&self, manager: &mut IoManager) -> Result<(), bus::Error> {
        let ioapics = self.0.ioapics.iter().map(|ioapic| (ioapic.address, WINDOW_SIZE));
        let vtd = self.0.vtd.iter().map(|vtd| (vtd.address, VTD_WINDOW_SIZE));
        for (address, size) in ioapics.chain(vtd) {
            manager.register_mmio(MmioRange::new(MmioAddress(address), size)?, Arc::new(self.clone()))?;
        }
        // A guest may access a pair of ports as one of two bytes: it is one range.
        for pair in PORTS.chunks_exact(2).filter(|pair| self.0.pic_at(pair[0]).is_some()) {
            let ports = PioRange::new(PioAddress(pair[0]), pair.len() as PioAddressOffset)?;
            manager.register_pio(ports, Arc::new(self.clone()))?;
        }
        Ok(())
    }
}

/// Where no chip is, reads are all ones.
impl DeviceMmio for Fabric {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        if !Self::mmio_read(self, base.0.wrapping_add(offset), data) {
            data.fill(0xff);
        }
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let _ = Self::mmio_write(self, base.0.wrapping_add(offset), data);
    }
}

/// Where no chip is, reads are all ones.
impl DevicePio for Fabric {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        if !Self::pio_read(self, base.0.wrapping_add(offset), data) {
            data.fill(0xff);
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let _ = Self::pio_write(self, base.0.wrapping_add(offset), data);
    }
}

/// For a VMM without a fabric: a `Mutex<Pic>` on its bus, whose [`output`](Pic::output) it looks at before each entry of its
/// vCPU. Nobody is told that it has changed.
impl MutDevicePio for Pic {
    fn pio_read(&mut self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        self.read(base.0.wrapping_add(offset), data);
    }

    fn pio_write(&mut self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.write(base.0.wrapping_add(offset), data);
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::chip::ioapic::Ioapic;
    use crate::fabric::IOAPIC_ADDRESS;
    use crate::hv::Sim;
    use crate::line::Level;
    use crate::memory::{Memory, OutsideMemory};
    use crate::remap::vtd::{Faults, Vtd};
    use std::sync::Mutex;

    fn write_register(manager: &IoManager, base: u64, index: u8, value: u32) {
        manager.mmio_write(MmioAddress(base), &[index]).unwrap();
        manager.mmio_write(MmioAddress(base + 0x10), &value.to_le_bytes()).unwrap();
    }

    #[test]
    fn a_register_write_on_the_bus_delivers() {
        let machine = Arc::new(Sim::new(1));
        machine.vcpus()[0].enable();
        let builder = Fabric::builder(machine.clone()).ioapic(Ioapic::default()).ioapic(Ioapic::default());
        let fabric = builder.build().unwrap();
        let mut manager = IoManager::new();
        fabric.register(&mut manager).unwrap();
        let source = fabric.line(24 + 5).unwrap().source("disk");
        source.raise();
        // Pin 5 of the second chip: level, vector 0x41.
        write_register(&manager, IOAPIC_ADDRESS + 0x1000, 0x1a, 0x8041);
        assert_eq!(machine.vcpus()[0].acknowledge(), Some(0x41));
    }

    /// A machine's memory, of which nothing is there.
    struct Nowhere;

    impl Memory for Nowhere {
        fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
            Err(OutsideMemory { address, length: data.len() })
        }

        fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
            Err(OutsideMemory { address, length: data.len() })
        }
    }

    #[test]
    fn a_vtd_unit_is_switched_on_over_the_bus() {
        const UNIT: u64 = 0xfed9_0000;
        const GCMD: u64 = 0x18;
        const GSTS: u64 = 0x1c;
        const QIE: u32 = 1 << 26;
        let unit = (Vtd::default(), Faults::default());
        let builder = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).memory(Nowhere);
        let fabric = builder.vtd(UNIT, unit.0, unit.1).build().unwrap();
        let mut manager = IoManager::new();
        fabric.register(&mut manager).unwrap();
        let mut status = [0; 4];
        manager.mmio_write(MmioAddress(UNIT + GCMD), &QIE.to_le_bytes()).unwrap();
        manager.mmio_read(MmioAddress(UNIT + GSTS), &mut status).unwrap();
        assert_eq!(u32::from_le_bytes(status), QIE);
        // The page's last register is there as well, and no further one.
        manager.mmio_read(MmioAddress(UNIT + 0xffc), &mut status).unwrap();
        assert!(manager.mmio_read(MmioAddress(UNIT + 0x1000), &mut status).is_err());
    }

    #[test]
    fn without_a_pic_its_ports_stay_free() {
        let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).build().unwrap();
        let mut manager = IoManager::new();
        fabric.register(&mut manager).unwrap();
        assert!(PORTS.iter().all(|port| manager.pio_device(PioAddress(*port)).is_none()));
    }

    #[test]
    fn a_window_that_is_taken_is_an_error() {
        let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).build().unwrap();
        let mut manager = IoManager::new();
        fabric.register(&mut manager).unwrap();
        assert_eq!(fabric.register(&mut manager), Err(bus::Error::DeviceOverlap));
    }

    #[test]
    fn a_range_of_the_vmms_own_reads_all_ones_where_no_chip_is() {
        let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).build().unwrap();
        let mut manager = IoManager::new();
        let range = MmioRange::new(MmioAddress(IOAPIC_ADDRESS), 0x1000).unwrap();
        manager.register_mmio(range, Arc::new(fabric)).unwrap();
        let mut data = [0; 4];
        manager.mmio_read(MmioAddress(IOAPIC_ADDRESS + 0x800), &mut data).unwrap();
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn a_bare_pic_is_a_device_whose_output_its_owner_looks_at() {
        let pic = Arc::new(Mutex::new(Pic::default()));
        pic.lock().unwrap().set(4, Level::High);
        let mut manager = IoManager::new();
        manager.register_pio(PioRange::new(PioAddress(0x20), 2).unwrap(), pic.clone()).unwrap();
        manager.pio_write(PioAddress(0x21), &[0x10]).unwrap();
        assert_eq!(pic.lock().unwrap().output(), Level::Low);
        manager.pio_write(PioAddress(0x21), &[0]).unwrap();
        assert_eq!(pic.lock().unwrap().output(), Level::High);
    }
}
