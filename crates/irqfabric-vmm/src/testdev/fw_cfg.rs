//! QEMU's firmware configuration, as much as test images read: signature, memory size, number of CPUs.
//!
//! QEMU `docs/specs/fw_cfg.rst`: a 16-bit selector at 0x510, a data byte at 0x511 that moves on with each read and is zero
//! behind an item's end.

use crate::error::Error;
use crate::machine::Machine;
use std::sync::{Arc, Mutex};
use vm_device::MutDevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

const SELECTOR: u16 = 0x510;
const PORTS: u16 = 2;

const SIGNATURE: u16 = 0;
const ID: u16 = 1;
const RAM_SIZE: u16 = 3;
const CPU_COUNT: u16 = 5;

struct FwCfg {
    memory: u64,
    cpus: u16,
    selected: Vec<u8>,
    read: usize,
}

/// Puts it on the bus.
pub fn attach(machine: &mut Machine, memory: u64, cpus: usize) -> Result<(), Error> {
    let cpus = u16::try_from(cpus).unwrap_or(u16::MAX);
    let device = FwCfg { memory, cpus, selected: Vec::new(), read: 0 };
    machine.register_pio(SELECTOR, PORTS, Arc::new(Mutex::new(device)))
}

impl MutDevicePio for FwCfg {
    fn pio_read(&mut self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        if offset == 1 {
            data.fill_with(|| {
                let byte = self.selected.get(self.read).copied().unwrap_or(0);
                self.read = self.read.saturating_add(1);
                byte
            });
        }
    }

    fn pio_write(&mut self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (0, &[low, high]) = (offset, data) {
            self.selected = match u16::from_le_bytes([low, high]) {
                SIGNATURE => b"QEMU".to_vec(),
                // The traditional interface only, no DMA.
                ID => 1u32.to_le_bytes().to_vec(),
                RAM_SIZE => self.memory.to_le_bytes().to_vec(),
                CPU_COUNT => self.cpus.to_le_bytes().to_vec(),
                _ => Vec::new(),
            };
            self.read = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(device: &mut FwCfg, key: u16, length: usize) -> Vec<u8> {
        device.pio_write(PioAddress(SELECTOR), 0, &key.to_le_bytes());
        let mut bytes = vec![0xff; length];
        bytes.chunks_mut(1).for_each(|byte| device.pio_read(PioAddress(SELECTOR), 1, byte));
        bytes
    }

    #[test]
    fn items_read_byte_by_byte_and_are_zero_behind_their_end() {
        let mut device = FwCfg { memory: 0x2000_0000, cpus: 4, selected: Vec::new(), read: 0 };
        assert_eq!(item(&mut device, SIGNATURE, 4), b"QEMU");
        assert_eq!(item(&mut device, RAM_SIZE, 8), 0x2000_0000u64.to_le_bytes());
        assert_eq!(item(&mut device, CPU_COUNT, 4), [4, 0, 0, 0]);
        assert_eq!(item(&mut device, 0x19, 2), [0, 0]);
    }
}
