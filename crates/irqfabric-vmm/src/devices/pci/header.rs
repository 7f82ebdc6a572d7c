//! A function's type 0 configuration header (PCI Local Bus 3.0, 6.1 and 6.2): bytes, and which bits of them the guest may
//! write.
//!
//! Sizing a BAR needs no code of its own: its bits below the size are read-only zeros, so all ones that are written
//! read back as the size (6.2.5.1). Capabilities are bytes as well; a function that gives one a meaning looks at accesses
//! before or after the header does.

use std::ops::Range;

/// Bits of the Command register (6.2.2).
pub mod command {
    pub const MEMORY_SPACE: u16 = 1 << 1;
    pub const BUS_MASTER: u16 = 1 << 2;
    pub const INTERRUPT_DISABLE: u16 = irqfabric::pci::intx::COMMAND_INTERRUPT_DISABLE;
}

/// Capability ids (PCI Code and ID Assignment, 2).
pub mod capability {
    pub const MSI: u8 = 0x05;
    pub const VENDOR: u8 = 0x09;
    pub const MSIX: u8 = 0x11;
}

/// How many bytes of configuration space a conventional function has.
const SIZE: usize = 256;
/// Where things are in them.
mod at {
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const BARS: usize = 0x10;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    pub const INTERRUPT_PIN: usize = 0x3d;
    pub const FREE: usize = 0x40;
}
const CAPABILITIES_LIST: u16 = 1 << 4;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Base class, sub-class, programming interface.
    pub class: u32,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
}

/// A base address register: 32-bit memory, not prefetchable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its number, 0 to 5.
    pub number: u8,
    /// The addresses that the function answers to.
    pub range: Range<u64>,
}

/// The header and the capabilities behind it.
#[derive(Clone)]
pub struct Header {
    registers: [u8; SIZE],
    writable: [u8; SIZE],
    /// The sizes of the BARs, zero for those that are not there.
    sizes: [u32; 6],
    /// Where the next capability goes, and the pointer that will name it.
    free: usize,
    link: usize,
}

impl Header {
    /// A function as it is after reset: it answers to nothing but configuration accesses.
    pub fn new(identity: &Identity) -> Self {
        let Identity { vendor, device, revision, class, subsystem_vendor, subsystem } = *identity;
        let (registers, writable) = ([0; SIZE], [0; SIZE]);
        let mut header = Self { registers, writable, sizes: [0; 6], free: at::FREE, link: at::CAPABILITIES };
        header.put(0x00, &vendor.to_le_bytes());
        header.put(0x02, &device.to_le_bytes());
        header.put(0x08, &(class << 8 | u32::from(revision)).to_le_bytes());
        header.put(0x2c, &subsystem_vendor.to_le_bytes());
        header.put(0x2e, &subsystem.to_le_bytes());
        header
    }

    /// The same with a BAR of `size` bytes, a power of two from 16 on, at `address`: where firmware would have put it.
    pub fn with_bar(mut self, number: u8, size: u32, address: u32) -> Self {
        let at = at::BARS + usize::from(number) * 4;
        self.sizes[usize::from(number)] = size;
        self.put(at, &address.to_le_bytes());
        self.allow(at, &(!(size - 1)).to_le_bytes());
        self.allow(at::COMMAND, &(command::MEMORY_SPACE | command::BUS_MASTER).to_le_bytes());
        self
    }

    /// The same with an interrupt pin, and the line that firmware notes down for it.
    pub fn with_interrupt(mut self, pin: u8, line: u8) -> Self {
        self.put(at::INTERRUPT_PIN, &[pin]);
        self.put(at::INTERRUPT_LINE, &[line]);
        self.allow(at::INTERRUPT_LINE, &[0xff]);
        self.allow(at::COMMAND, &command::INTERRUPT_DISABLE.to_le_bytes());
        self
    }

    /// Adds a capability: `body` is what follows its id and the pointer to the next one, all of it read-only. The answer is
    /// where it begins. All of a function's must fit into what is left of configuration space: ours do.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> u8 {
        let at = self.free;
        self.put(self.link, &[at as u8]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        let status = self.word(at::STATUS) | CAPABILITIES_LIST;
        self.put(at::STATUS, &status.to_le_bytes());
        self.link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at as u8
    }

    /// Lets the guest write bits of a capability.
    pub fn allow(&mut self, at: usize, bits: &[u8]) {
        for (to, from) in self.writable[at..].iter_mut().zip(bits) {
            *to |= from;
        }
    }

    /// Sets bytes whatever the guest may write.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.registers[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The guest reads.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        let registers = self.registers.iter().skip(offset.into()).chain(std::iter::repeat(&0));
        for (to, from) in data.iter_mut().zip(registers) {
            *to = *from;
        }
    }

    /// The guest writes. Bits that are not writable keep their value.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        let registers = self.registers.iter_mut().zip(&self.writable);
        for ((to, writable), from) in registers.skip(offset.into()).zip(data) {
            *to = *to & !writable | from & writable;
        }
    }

    /// The Command register.
    pub fn command(&self) -> u16 {
        self.word(at::COMMAND)
    }

    /// Sets a bit of the Status register that follows the device, or clears it.
    pub fn set_status(&mut self, bit: u16, on: bool) {
        let others = self.word(at::STATUS) & !bit;
        self.put(at::STATUS, &(others | if on { bit } else { 0 }).to_le_bytes());
    }

    /// The BARs that the function answers to now: none unless the guest has enabled memory space.
    pub fn bars(&self) -> impl Iterator<Item = Bar> + '_ {
        let enabled = self.command() & command::MEMORY_SPACE != 0;
        let sizes = (0..).zip(self.sizes).filter(move |(_, size)| enabled && *size > 0);
        sizes.map(|(number, size)| {
            let at = at::BARS + usize::from(number) * 4;
            let start = u64::from(self.word(at)) | u64::from(self.word(at + 2)) << 16;
            Bar { number, range: start..start + u64::from(size) }
        })
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.registers[at], self.registers[at + 1]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_0000,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1042,
    };

    fn header() -> Header {
        Header::new(&IDENTITY).with_bar(0, 0x4000, 0xe000_0000).with_bar(1, 0x2000, 0xe000_4000).with_interrupt(1, 16)
    }

    fn read(header: &Header, offset: u8) -> u32 {
        let mut data = [0; 4];
        header.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn all_ones_written_to_a_bar_read_back_as_its_size() {
        let mut header = header();
        for (bar, size) in [(0x10, 0x4000u32), (0x14, 0x2000), (0x18, 0)] {
            let before = read(&header, bar);
            header.write(bar, &[0xff; 4]);
            assert_eq!(read(&header, bar), if size == 0 { 0 } else { size.wrapping_neg() });
            header.write(bar, &before.to_le_bytes());
            assert_eq!(read(&header, bar), before);
        }
    }

    #[test]
    fn a_bar_answers_while_memory_space_is_on_and_where_the_guest_has_moved_it() {
        let mut header = header();
        assert_eq!(header.bars().count(), 0);
        header.write(0x04, &command::MEMORY_SPACE.to_le_bytes());
        assert_eq!(header.bars().next(), Some(Bar { number: 0, range: 0xe000_0000..0xe000_4000 }));
        header.write(0x10, &0xf123_4567u32.to_le_bytes());
        assert_eq!(header.bars().next(), Some(Bar { number: 0, range: 0xf123_4000..0xf123_8000 }));
        header.write(0x04, &[0]);
        assert_eq!(header.bars().count(), 0);
    }

    #[test]
    fn what_a_function_is_cannot_be_written() {
        let mut header = header();
        for offset in (0..=252).step_by(4) {
            header.write(offset, &[0xff; 4]);
        }
        assert_eq!(read(&header, 0x00), 0x1042_1af4);
        assert_eq!(read(&header, 0x04), 0x0000_0406, "memory space, bus master, interrupt disable");
        assert_eq!(read(&header, 0x08), 0x0100_0001);
        assert_eq!(read(&header, 0x3c), 0x0000_01ff, "only the note about the line");
    }

    #[test]
    fn capabilities_make_a_list_that_ends() {
        let mut header = header();
        assert_eq!(header.add_capability(capability::MSIX, &[1, 2, 3]), 0x40);
        assert_eq!(header.add_capability(capability::VENDOR, &[4; 18]), 0x48);
        assert_eq!(read(&header, 0x04) >> 16, u32::from(CAPABILITIES_LIST));
        assert_eq!(read(&header, 0x34), 0x40);
        assert_eq!(read(&header, 0x40), 0x0201_4811);
        assert_eq!(read(&header, 0x48), 0x0404_0009);
    }

    #[test]
    fn an_access_across_the_end_is_cut_off_there() {
        let mut header = header();
        header.write(0xff, &[0xff; 16]);
        let mut data = [0xaa; 16];
        header.read(0xf8, &mut data);
        assert_eq!(data, [0; 16]);
    }
}
