//! The configuration space that the guest sees of a device: the device's own, but for what is ours.
//!
//! Ours are the BARs (all of them 32-bit memory: the bus has no other window), the interrupt pin and line, the list
//! of capabilities, and MSI and MSI-X. A capability that would change how the function is reached behind our back is left
//! out: power management, since a function in D3 answers nowhere, and Enhanced Allocation. So are the expansion ROM
//! and I/O BARs, which a PCI Express function has to do without (PCI Express 4.0, 2.1.1.2).

use super::host::{Kind, Physical, Region};
use crate::devices::pci::{Bar, Header, Identity, capability, command, overlap};
use irqfabric::msg::Masking;
use irqfabric::pci::msi::Msi;
use irqfabric::pci::msix::{Location, Msix};
use irqfabric::pci::{Changed, VectorConfig};
use std::ops::Range;

const SIZE: usize = 256;
/// Where things are (PCI Local Bus 3.0, 6.1).
mod at {
    pub const COMMAND: u8 = 0x04;
    pub const STATUS: u8 = 0x06;
    pub const CLASS: u8 = 0x08;
    pub const HEADER_TYPE: u8 = 0x0e;
    pub const BARS: Range = 0x10..0x28;
    pub const SUBSYSTEM: u8 = 0x2c;
    pub const ROM: Range = 0x30..0x34;
    pub const CAPABILITIES: u8 = 0x34;
    pub const INTERRUPT: Range = 0x3c..0x3e;
    /// Capabilities are behind the header.
    pub const FREE: u8 = 0x40;

    type Range = std::ops::Range<u8>;
}
const CAPABILITIES_LIST: u16 = 1 << 4;
const MULTIFUNCTION: u8 = 1 << 7;
const BAR_IO: u32 = 1;
const BAR_TYPE: u32 = 3 << 1;
const BAR_64_BIT: u32 = 2 << 1;
/// As many as fit, whatever a broken list says.
const MOST_CAPABILITIES: usize = (SIZE - at::FREE as usize) / 4;

/// Capabilities that the guest does not see, and how many bytes each has: power management, Enhanced Allocation.
const HIDDEN: [(u8, usize); 2] = [(0x01, 8), (0x14, 4)];

/// What the guest wants the function to signal with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signalling {
    /// It has no pin, and messages are off.
    Nothing,
    /// Its pin.
    Pin,
    /// So many MSI messages.
    Msi(u16),
    /// All its MSI-X vectors.
    Msix(u16),
}

/// Configuration space, but for what the device answers itself.
pub struct Config {
    header: Header,
    /// Which bytes the header answers.
    ours: [bool; SIZE],
    pin: bool,
    bars: Vec<u8>,
    msi: Option<(u8, Msi)>,
    msix: Option<(u8, Msix)>,
}

/// What comes of a write.
pub struct Written {
    /// What of it goes on to the device: offset and part of the data.
    pub forward: Vec<(u8, Range<usize>)>,
    /// Whether vectors have another configuration now, or the function signals with something else.
    pub changed: bool,
}

/// What a device is like to its guest, and where.
pub struct Shape<'a> {
    /// Its interrupt pin, if it has one.
    pub pin: u8,
    /// What the Interrupt Line register says of it.
    pub line: u8,
    /// Without MSI and MSI-X.
    pub only_pin: bool,
    /// An address for a BAR of this size.
    pub place: &'a mut dyn FnMut(u64) -> Option<u32>,
}

impl Config {
    /// That of a device as it is after reset.
    pub fn new(device: &dyn Physical, shape: Shape<'_>) -> Result<Self, String> {
        let own = Own::read(device);
        let mut header = Header::new(&own.identity());
        header.put(at::HEADER_TYPE.into(), &[own.byte(at::HEADER_TYPE) & !MULTIFUNCTION]);
        header.allow(at::COMMAND.into(), &(command::MEMORY_SPACE | command::BUS_MASTER).to_le_bytes());
        let pin = device.interrupts(Kind::Intx) > 0;
        if pin {
            header = header.with_interrupt(shape.pin, shape.line);
        }
        let mut bars = Vec::new();
        for number in own.memory_bars() {
            let size = device.size(number);
            if size == 0 {
                continue;
            }
            let address = size.is_power_of_two().then(|| (shape.place)(size)).flatten();
            let address =
                address.ok_or_else(|| format!("its BAR {number} of {size:#x} bytes has no room on the bus"))?;
            header = header.with_bar(number, size as u32, address);
            bars.push(number);
        }
        let mut config = Self { header, ours: [false; SIZE], pin, bars, msi: None, msix: None };
        for range in [at::HEADER_TYPE..at::HEADER_TYPE + 1, at::BARS, at::ROM, at::INTERRUPT] {
            config.claim(range.start, range.len());
        }
        config.take_capabilities(&own, shape.only_pin)?;
        device.write(Region::Configuration, at::COMMAND.into(), &[0; 2]);
        Ok(config)
    }

    /// Makes the list anew, without what the guest is not to see.
    fn take_capabilities(&mut self, own: &Own, only_pin: bool) -> Result<(), String> {
        let mut link = at::CAPABILITIES;
        self.claim(link, 1);
        for (at, id) in own.capabilities() {
            let seen = match id {
                capability::MSI => {
                    let msi = own.msi(at)?;
                    self.claim(at, msi.size());
                    self.msi = (!only_pin).then_some((at, msi));
                    !only_pin
                }
                capability::MSIX => {
                    let msix = own.msix(at)?;
                    self.claim(at, msix.size());
                    self.msix = (!only_pin).then_some((at, msix));
                    !only_pin
                }
                _ => {
                    let hidden = HIDDEN.iter().find(|(hidden, _)| *hidden == id);
                    // Of any other only the pointer to the next is ours.
                    let (at, size) = hidden.map_or((at + 1, 1), |(_, size)| (at, *size));
                    self.claim(at, size);
                    hidden.is_none()
                }
            };
            if seen {
                self.header.put(link.into(), &[at]);
                link = at + 1;
            }
        }
        self.show_messages();
        Ok(())
    }

    /// The header answers these bytes.
    fn claim(&mut self, at: u8, size: usize) {
        self.ours.iter_mut().skip(at.into()).take(size).for_each(|ours| *ours = true);
    }

    /// The numbers of the BARs.
    pub fn bar_numbers(&self) -> &[u8] {
        &self.bars
    }

    /// MSI-X, if the guest sees that the function has it.
    pub fn msix(&self) -> Option<&Msix> {
        self.msix.as_ref().map(|(_, msix)| msix)
    }

    /// How many vectors the fabric has to have for the function.
    pub fn vectors(&self) -> u16 {
        let msi = self.msi.as_ref().map_or(0, |(_, msi)| msi.vectors());
        self.msix().map_or(0, Msix::vectors).max(msi)
    }

    // The guest.

    /// The guest reads: the device's bytes, and ours over them.
    pub fn read(&self, device: &dyn Physical, offset: u8, data: &mut [u8], pending: impl Fn(u16) -> bool) {
        let ours = self.ours.iter().skip(offset.into());
        if ours.clone().take(data.len()).any(|ours| !ours) {
            device.read(Region::Configuration, offset.into(), data);
        }
        let mut header = [0; 4];
        self.header.read(offset, &mut header);
        for ((to, from), _) in data.iter_mut().zip(header).zip(ours).filter(|(_, ours)| **ours) {
            *to = from;
        }
        // The pending bits are the vectors'.
        if let Some((at, msi)) = &self.msi
            && let Some((from, part)) = overlap(*at, msi.size(), offset, data.len())
            && from > 1
        {
            msi.read(from, &mut data[part], pending);
        }
    }

    /// The guest writes.
    pub fn write(&mut self, offset: u8, data: &[u8]) -> Written {
        let (signalling, command) = (self.signalling(), self.header.command());
        self.header.write(offset, data);
        let mut changed = false;
        if let Some((at, msi)) = &mut self.msi
            && let Some((to, part)) = overlap(*at, msi.size(), offset, data.len())
        {
            changed |= !msi.write(to, &data[part]).is_nothing();
        }
        if let Some((at, msix)) = &mut self.msix
            && let Some((to, part)) = overlap(*at, msix.size(), offset, data.len())
        {
            changed |= !msix.write(to, &data[part]).is_nothing();
        }
        self.show_messages();
        changed |= (command ^ self.header.command()) & command::BUS_MASTER != 0 || self.signalling() != signalling;
        // As few writes as there can be: Command is one register.
        let mut forward: Vec<(u8, Range<usize>)> = Vec::with_capacity(2);
        let theirs = (0..data.len()).zip(self.ours.iter().skip(offset.into())).filter(|(_, ours)| !**ours);
        for (index, _) in theirs {
            match forward.last_mut() {
                Some((_, run)) if run.end == index => run.end = index + 1,
                _ => forward.push((offset + index as u8, index..index + 1)),
            }
        }
        Written { forward, changed }
    }

    /// Copies the registers of MSI and MSI-X to where they are read, and with them keeps the list together.
    fn show_messages(&mut self) {
        if let Some((at, msi)) = &self.msi {
            let mut bytes = [0; 24];
            msi.read(0, &mut bytes, |_| false);
            self.header.put(usize::from(*at), &bytes[..1]);
            self.header.put(usize::from(*at) + 2, &bytes[2..msi.size()]);
        }
        if let Some((at, msix)) = &self.msix {
            let mut bytes = [0; 12];
            msix.read(0, &mut bytes);
            self.header.put(usize::from(*at), &bytes[..1]);
            self.header.put(usize::from(*at) + 2, &bytes[2..]);
        }
    }

    /// The guest writes to the MSI-X table.
    pub fn write_table(&mut self, bar: u8, offset: u64, data: &[u8]) -> Changed {
        self.msix.as_mut().map_or(Changed::NOTHING, |(_, msix)| msix.write_bar(bar, offset, data))
    }

    // What it comes to.

    /// The BARs that the function answers to.
    pub fn bars(&self) -> Vec<Bar> {
        self.header.bars().collect()
    }

    /// What the function is to signal with.
    pub fn signalling(&self) -> Signalling {
        match (&self.msix, &self.msi) {
            (Some((_, msix)), _) if msix.is_enabled() => Signalling::Msix(msix.vectors()),
            (_, Some((_, msi))) if msi.is_enabled() => Signalling::Msi(msi.allotted()),
            _ if self.pin => Signalling::Pin,
            _ => Signalling::Nothing,
        }
    }

    /// What the guest has programmed for a vector. A function that may not master the bus sends no message either
    /// (PCI Local Bus 3.0, 6.2.2).
    pub fn vector(&self, vector: u16) -> VectorConfig {
        let config = match (&self.msix, &self.msi) {
            (Some((_, msix)), _) if msix.is_enabled() => msix.vector(vector),
            (_, Some((_, msi))) if msi.is_enabled() => msi.vector(vector),
            _ => VectorConfig::NONE,
        };
        let master = self.header.command() & command::BUS_MASTER != 0;
        VectorConfig { masking: if master { config.masking } else { Masking::Disabled }, ..config }
    }
}

/// The device's own configuration space, as it was found.
struct Own([u8; SIZE]);

impl Own {
    fn read(device: &dyn Physical) -> Self {
        let mut bytes = [0; SIZE];
        for (offset, dword) in (0..).step_by(4).zip(bytes.chunks_mut(4)) {
            device.read(Region::Configuration, offset, dword);
        }
        Self(bytes)
    }

    fn byte(&self, at: u8) -> u8 {
        self.0[usize::from(at)]
    }

    /// Little-endian; zeros behind the end.
    fn word(&self, at: impl Into<usize>) -> u16 {
        self.dword(at) as u16
    }

    fn dword(&self, at: impl Into<usize>) -> u32 {
        let mut bytes = self.0.iter().skip(at.into()).copied().chain(std::iter::repeat(0));
        u32::from_le_bytes(std::array::from_fn(|_| bytes.next().unwrap_or_default()))
    }

    fn identity(&self) -> Identity {
        Identity {
            vendor: self.word(0u8),
            device: self.word(2u8),
            revision: self.byte(at::CLASS),
            class: self.dword(at::CLASS) >> 8,
            subsystem_vendor: self.word(at::SUBSYSTEM),
            subsystem: self.word(at::SUBSYSTEM + 2),
        }
    }

    /// The numbers of those BARs that are memory.
    fn memory_bars(&self) -> Vec<u8> {
        let mut numbers = Vec::new();
        let mut number = 0;
        while number < 6 {
            let register = self.dword(at::BARS.start + number * 4);
            let memory = register & BAR_IO == 0;
            if memory {
                numbers.push(number);
            }
            number += if memory && register & BAR_TYPE == BAR_64_BIT { 2 } else { 1 };
        }
        numbers
    }

    /// Where each capability is, and its id.
    fn capabilities(&self) -> impl Iterator<Item = (u8, u8)> + '_ {
        let listed = self.word(at::STATUS) & CAPABILITIES_LIST != 0;
        // The lowest two bits are reserved (6.7).
        let next = |at: u8| Some(self.byte(at) & !3).filter(|at| *at >= at::FREE);
        let first = listed.then(|| next(at::CAPABILITIES)).flatten();
        std::iter::successors(first, move |at| next(at + 1)).take(MOST_CAPABILITIES).map(|at| (at, self.byte(at)))
    }

    /// MSI with what the device has of it (6.8.1.3).
    fn msi(&self, at: u8) -> Result<Msi, String> {
        let control = self.word(usize::from(at) + 2);
        let msi = Msi::new(1u8.checked_shl(u32::from(control >> 1 & 7)).unwrap_or_default());
        let msi = msi.map_err(|error| format!("its MSI capability: {error}"))?;
        let msi = if control & 1 << 7 == 0 { msi.with_32_bit_address() } else { msi };
        let msi = if control & 1 << 8 == 0 { msi.without_masking() } else { msi };
        fits(at, msi.size()).then_some(msi).ok_or_else(|| "its MSI capability goes beyond configuration space".into())
    }

    /// MSI-X likewise (6.8.2.3 to 6.8.2.5).
    fn msix(&self, at: u8) -> Result<Msix, String> {
        let vectors = (self.word(usize::from(at) + 2) & 0x7ff) + 1;
        let location = |register: usize| {
            let value = self.dword(usize::from(at) + register);
            Location { bar: (value & 7) as u8, offset: value & !7 }
        };
        let msix = Msix::with_layout(vectors, location(4), location(8));
        let msix = msix.map_err(|error| format!("its MSI-X capability: {error}"))?;
        fits(at, msix.size())
            .then_some(msix)
            .ok_or_else(|| "its MSI-X capability goes beyond configuration space".into())
    }
}

fn fits(at: u8, size: usize) -> bool {
    usize::from(at) + size <= SIZE
}
