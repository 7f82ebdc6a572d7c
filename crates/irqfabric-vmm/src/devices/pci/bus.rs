//! Bus 0: which function a configuration access or an access to memory is for.
//!
//! Configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2): the address goes to port 0xcf8, the data through ports
//! 0xcfc to 0xcff. Each slot has one function; slot 0 has the host bridge. What is not there reads all ones.

use super::header::{Bar, Header, Identity};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

/// The first of the ports.
pub const PORTS: u16 = 0xcf8;
/// The last of them.
pub const LAST_PORT: u16 = 0xcff;
/// How many slots there are, that of the host bridge included.
pub const SLOTS: u8 = 32;

const ENABLE: u32 = 1 << 31;

/// The one function of a slot.
pub trait Function: Send + Sync {
    /// The guest reads configuration space: one to four bytes, all in one aligned dword.
    fn read_config(&self, offset: u8, data: &mut [u8]);

    /// The guest writes it, as above. Never called for two writes at a time.
    fn write_config(&self, offset: u8, data: &[u8]);

    /// The BARs that the function answers to now.
    fn bars(&self) -> Vec<Bar>;

    /// The guest reads a BAR; any size, any offset.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// The guest writes a BAR.
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]);
}

/// The bus with its functions.
pub struct Bus {
    /// By slot.
    functions: Vec<Arc<dyn Function>>,
    /// The BARs of all functions, by slot. Written under the lock of the ports' address.
    bars: RwLock<Vec<(u8, Bar)>>,
}

/// The bus as ports. The address register's lock is held across the data access.
pub struct Ports {
    bus: Arc<Bus>,
    address: Mutex<u32>,
}

/// The bus as memory, wherever it is registered.
pub struct Window(pub Arc<Bus>);

impl Bus {
    /// A bus with these functions in slots 1 and up, [`SLOTS`] - 1 at the most.
    pub fn new(functions: impl IntoIterator<Item = Arc<dyn Function>>) -> Self {
        let bridge: Arc<dyn Function> = Arc::new(HostBridge::new());
        let functions = [bridge].into_iter().chain(functions).take(SLOTS.into()).collect();
        Self { functions, bars: RwLock::default() }
    }

    fn function(&self, slot: u8) -> Option<&Arc<dyn Function>> {
        self.functions.get(usize::from(slot))
    }

    fn write_config(&self, slot: u8, offset: u8, data: &[u8]) {
        let Some(function) = self.function(slot) else { return };
        function.write_config(offset, data);
        let now = function.bars();
        let mut bars = self.bars.write().unwrap_or_else(PoisonError::into_inner);
        bars.retain(|(other, _)| *other != slot);
        bars.extend(now.into_iter().map(|bar| (slot, bar)));
    }

    /// Whose address it is: which BAR of which function, and how far into it. Where the guest has put two in one place, one
    /// of them.
    fn at(&self, address: u64) -> Option<(&Arc<dyn Function>, u8, u64)> {
        let bars = self.bars.read().unwrap_or_else(PoisonError::into_inner);
        let (slot, bar) = bars.iter().find(|(_, bar)| bar.range.contains(&address))?;
        Some((self.function(*slot)?, bar.number, address - bar.range.start))
    }
}

impl Ports {
    /// The ports of a bus.
    pub fn new(bus: Arc<Bus>) -> Self {
        Self { bus, address: Mutex::new(0) }
    }

    fn address(&self) -> MutexGuard<'_, u32> {
        self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot that the address register names, and the offset of the byte that data port 0xcfc + `lane` stands for.
fn target(address: u32, lane: u16) -> Option<(u8, u8)> {
    let [register, device, bus, _] = address.to_le_bytes();
    let (slot, function) = (device >> 3, device & 7);
    (address & ENABLE != 0 && bus == 0 && function == 0).then_some((slot, register & 0xfc | lane as u8))
}

impl DevicePio for Ports {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        let address = self.address();
        match (base.0 + offset, data.len()) {
            // As long as the access is not the whole register, it is none of ours (3.2.2.3.2).
            (PORTS, 4) => data.copy_from_slice(&address.to_le_bytes()),
            (0xcfc..=LAST_PORT, length) => {
                let lane = offset & 3;
                let inside = length.min(usize::from(4 - lane));
                if let Some((slot, offset)) = target(*address, lane)
                    && let Some(function) = self.bus.function(slot)
                {
                    function.read_config(offset, &mut data[..inside]);
                }
            }
            _ => {}
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut address = self.address();
        match (base.0 + offset, data) {
            (PORTS, &[a, b, c, d]) => *address = u32::from_le_bytes([a, b, c, d]) & !3,
            (0xcfc..=LAST_PORT, data) => {
                let lane = offset & 3;
                let inside = data.len().min(usize::from(4 - lane));
                if let Some((slot, offset)) = target(*address, lane) {
                    self.bus.write_config(slot, offset, &data[..inside]);
                }
            }
            _ => {}
        }
    }
}

impl DeviceMmio for Window {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((function, bar, offset)) = self.0.at(base.0 + offset) {
            function.read_bar(bar, offset, data);
        }
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Some((function, bar, offset)) = self.0.at(base.0 + offset) {
            function.write_bar(bar, offset, data);
        }
    }
}

/// Slot 0: it is there to be found.
struct HostBridge(Header);

impl HostBridge {
    /// QEMU's generic host bridge: no driver and no quirk of Linux' is bound to it.
    fn new() -> Self {
        let (vendor, device, class) = (0x1b36, 0x0008, 0x06_0000);
        Self(Header::new(&Identity { vendor, device, revision: 0, class, subsystem_vendor: vendor, subsystem: 0x1100 }))
    }
}

impl Function for HostBridge {
    fn read_config(&self, offset: u8, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write_config(&self, _: u8, _: &[u8]) {}

    fn bars(&self) -> Vec<Bar> {
        Vec::new()
    }

    fn read_bar(&self, _: u8, _: u64, _: &mut [u8]) {}

    fn write_bar(&self, _: u8, _: u64, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::super::header::command;
    use super::*;

    /// A function of one BAR whose bytes tell their offset.
    struct Plain(Mutex<Header>);

    impl Plain {
        fn at(address: u32) -> Arc<dyn Function> {
            let (vendor, device, class) = (0x1234, 0x5678, 0xff_0000);
            let identity = Identity { vendor, device, revision: 0, class, subsystem_vendor: 0, subsystem: 0 };
            Arc::new(Self(Mutex::new(Header::new(&identity).with_bar(0, 0x100, address))))
        }
    }

    impl Function for Plain {
        fn read_config(&self, offset: u8, data: &mut [u8]) {
            self.0.lock().unwrap().read(offset, data);
        }

        fn write_config(&self, offset: u8, data: &[u8]) {
            self.0.lock().unwrap().write(offset, data);
        }

        fn bars(&self) -> Vec<Bar> {
            self.0.lock().unwrap().bars().collect()
        }

        fn read_bar(&self, _: u8, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write_bar(&self, _: u8, _: u64, _: &[u8]) {}
    }

    fn ports() -> Ports {
        Ports::new(Arc::new(Bus::new([Plain::at(0xe000_0000), Plain::at(0xe000_0100)])))
    }

    fn input<const N: usize>(ports: &Ports, port: u16) -> [u8; N] {
        let mut data = [0; N];
        ports.pio_read(PioAddress(PORTS), port - PORTS, &mut data);
        data
    }

    fn output(ports: &Ports, port: u16, data: &[u8]) {
        ports.pio_write(PioAddress(PORTS), port - PORTS, data);
    }

    fn select(ports: &Ports, slot: u32, register: u32) {
        output(ports, 0xcf8, &(ENABLE | slot << 11 | register).to_le_bytes());
    }

    #[test]
    fn the_address_register_takes_and_gives_whole_dwords_only() {
        let ports = ports();
        select(&ports, 1, 0);
        output(&ports, 0xcfb, &[1]);
        output(&ports, 0xcf8, &[0; 2]);
        assert_eq!(u32::from_le_bytes(input(&ports, 0xcf8)), 0x8000_0800);
        assert_eq!(input(&ports, 0xcf9), [0xff]);
    }

    #[test]
    fn what_is_not_there_reads_all_ones() {
        let ports = ports();
        for address in [0, 0x0800, 0x8000_1800, 0x8000_0900, 0x8001_0800] {
            output(&ports, 0xcf8, &u32::to_le_bytes(address));
            assert_eq!(input(&ports, 0xcfc), [0xff; 4], "{address:#x}");
        }
        select(&ports, 0, 0);
        assert_eq!(input(&ports, 0xcfc), 0x0008_1b36u32.to_le_bytes());
    }

    #[test]
    fn parts_of_a_dword_are_read_by_their_own_ports_and_end_with_it() {
        let ports = ports();
        select(&ports, 1, 0);
        assert_eq!(input(&ports, 0xcfe), 0x5678u16.to_le_bytes());
        assert_eq!(input(&ports, 0xcfd), [0x12, 0x78, 0x56, 0xff]);
        assert_eq!(input(&ports, 0xcff), [0x56, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn memory_is_that_of_the_bar_that_is_there_now() {
        let ports = ports();
        let window = Window(ports.bus.clone());
        let read = |address: u64| {
            let mut data = [0];
            window.mmio_read(MmioAddress(0xe000_0000), address - 0xe000_0000, &mut data);
            data[0]
        };
        assert_eq!(read(0xe000_0142), 0xff);
        select(&ports, 2, 4);
        output(&ports, 0xcfc, &command::MEMORY_SPACE.to_le_bytes());
        assert_eq!((read(0xe000_0142), read(0xe000_0042)), (0x42, 0xff));
        select(&ports, 2, 0x10);
        output(&ports, 0xcfc, &0xe001_0000u32.to_le_bytes());
        assert_eq!((read(0xe000_0142), read(0xe001_0042)), (0xff, 0x42));
    }
}
