//! A unit with its three parts and a little memory, played as its owner and its guest play it.

mod faults;
mod oracle;
mod queue;
mod registers;
mod tables;

use super::*;
use crate::memory::OutsideMemory;
use crate::msg::{Interrupt, RequesterId};
use crate::remap::{Cookie, Target, Translation};
use std::sync::Mutex;

// Registers.
const GCMD: u64 = 0x18;
const GSTS: u64 = 0x1c;
const FSTS: u64 = 0x34;
const FECTL: u64 = 0x38;
const FEDATA: u64 = 0x3c;
const FEADDR: u64 = 0x40;
const IQH: u64 = 0x80;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const ICS: u64 = 0x9c;
const IECTL: u64 = 0xa0;
const IEDATA: u64 = 0xa4;
const IEADDR: u64 = 0xa8;
const IRTA: u64 = 0xb8;
const FRCD: u64 = 0x220;

// GCMD and GSTS.
const RTP: u32 = 1 << 30;
const QIE: u32 = 1 << 26;
const IRE: u32 = 1 << 25;
const SIRTP: u32 = 1 << 24;
const CFI: u32 = 1 << 23;

// FSTS.
const PFO: u32 = 1 << 0;
const PPF: u32 = 1 << 1;
const IQE: u32 = 1 << 4;

/// FECTL and IECTL.
const MASKED: u32 = 1 << 31;
const PENDING: u32 = 1 << 30;

/// IRTA.
const EIME: u64 = 1 << 11;

const RAM: u64 = 0x10_0000;
const RAM_SIZE: usize = 0x4_0000;
/// Where the tests' tables lie: 256 entries, unless they say otherwise.
const TABLE: u64 = RAM;
const TABLE_SIZE: u64 = 7;
/// Where their rings lie: 256 descriptors.
const RING: u64 = RAM + 0x2_0000;

const DEVICE: RequesterId = RequesterId::new(0, 3, 0);

/// An entry that is present: vector 0x31, fixed, edge, to APIC id 2 (xAPIC), for anyone.
const ENTRY: u128 = 2 << 40 | 0x31 << 16 | 1;
const FPD: u128 = 1 << 1;

struct Ram(Mutex<Vec<u8>>);

impl Ram {
    fn range(address: u64, length: usize) -> Result<std::ops::Range<usize>, OutsideMemory> {
        let outside = OutsideMemory { address, length };
        let start = usize::try_from(address.checked_sub(RAM).ok_or(outside)?).map_err(|_| outside)?;
        let end = start.checked_add(length).filter(|&end| end <= RAM_SIZE).ok_or(outside)?;
        Ok(start..end)
    }
}

impl Memory for Ram {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
        data.copy_from_slice(&self.0.lock().unwrap()[Self::range(address, data.len())?]);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        self.0.lock().unwrap()[Self::range(address, data.len())?].copy_from_slice(data);
        Ok(())
    }
}

struct Unit {
    vtd: Vtd,
    faults: Faults,
    /// The owner's copy.
    tables: Tables,
    ram: Ram,
}

impl Unit {
    fn new() -> Self {
        let (vtd, faults, tables) = Default::default();
        Self { vtd, faults, tables, ram: Ram(Mutex::new(vec![0; RAM_SIZE])) }
    }

    /// Remapping is on, compatibility format blocked, the queue on and empty, the events unmasked.
    fn enabled(irta: u64) -> Self {
        let mut unit = Self::new();
        unit.write64(IRTA, irta);
        unit.write64(IQA, RING);
        unit.write32(GCMD, SIRTP | IRE | QIE);
        assert_eq!(unit.perform(), [Effect::Retranslate(unit.tables)]);
        for (control, data, address, vector) in [(FECTL, FEDATA, FEADDR, 0xf1), (IECTL, IEDATA, IEADDR, 0xc1)] {
            unit.write32(data, vector);
            unit.write32(address, 0xfee0_1000);
            unit.write32(control, 0);
        }
        unit
    }

    fn xapic() -> Self {
        Self::enabled(TABLE | TABLE_SIZE)
    }

    fn read32(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.vtd.read(&self.faults, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read64(&self, offset: u64) -> u64 {
        let mut data = [0xff; 8];
        self.vtd.read(&self.faults, offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn write32(&mut self, offset: u64, value: u32) {
        self.vtd.write(&mut self.faults, offset, &value.to_le_bytes());
    }

    fn write64(&mut self, offset: u64, value: u64) {
        self.vtd.write(&mut self.faults, offset, &value.to_le_bytes());
    }

    fn next(&mut self) -> Option<Effect> {
        let effect = self.vtd.next(&mut self.faults, &self.ram)?;
        match effect {
            Effect::Retranslate(tables) => self.tables = tables,
            Effect::Write { address, data } => _ = self.ram.write(address, &data.to_le_bytes()),
            Effect::Invalidate(_) | Effect::Send(_) | Effect::Nothing => {}
        }
        Some(effect)
    }

    /// Performs all there is to do, and says what it was.
    fn perform(&mut self) -> Vec<Effect> {
        let steps: Vec<_> = std::iter::from_fn(|| self.next()).take(1000).collect();
        assert!(steps.len() < 1000, "there is no end to it");
        steps.into_iter().filter(|effect| *effect != Effect::Nothing).collect()
    }

    fn put(&self, index: u64, entry: u128) {
        let base = self.tables.table.into_bits() & !0xfff;
        self.ram.write(base + 16 * index, &entry.to_le_bytes()).unwrap();
    }

    fn translate(&self, message: &Message) -> Result<Translation, Refused> {
        self.tables.translate(message, &self.ram)
    }

    /// A message fires: what its owner does with it. Returns the fault event's message.
    fn fire(&mut self, message: &Message) -> Option<Message> {
        match self.translate(message) {
            Err(Refused::Fault(fault)) => self.faults.record(&fault),
            Ok(_) | Err(Refused::NotAnInterrupt(_)) => None,
        }
    }

    /// The reason, index and source of each fault that is pending.
    fn recorded(&self) -> Vec<(u8, u16, u16)> {
        let record = |place: u64| {
            let (low, high) = (self.read64(FRCD + 16 * place), self.read64(FRCD + 16 * place + 8));
            (high >> 63 != 0).then_some(((high >> 32) as u8, (low >> 48) as u16, high as u16))
        };
        (0..8).filter_map(record).collect()
    }

    /// What Linux does with the faults that are pending (`dmar_fault`).
    fn serve_faults(&mut self) -> Vec<(u8, u16)> {
        let status = self.read32(FSTS);
        let mut served = Vec::new();
        if status & PPF == 0 {
            return served;
        }
        let mut place = u64::from(status >> 8 & 0xff);
        while self.read32(FRCD + 16 * place + 12) & MASKED != 0 {
            assert!(served.len() < 8, "what is served is still pending");
            served.push((self.read32(FRCD + 16 * place + 12) as u8, (self.read64(FRCD + 16 * place) >> 48) as u16));
            self.write32(FRCD + 16 * place + 12, MASKED);
            place = (place + 1) % 8;
        }
        self.write32(FSTS, PFO | PPF);
        served
    }
}

/// A message of remappable format without a subhandle.
fn request(index: u32) -> Message {
    let (low, high) = (u64::from(index & 0x7fff), u64::from(index >> 15 & 1));
    Message { address: 0xfee0_0010 | low << 5 | high << 2, data: 0, requester: DEVICE }
}

/// One with a subhandle.
fn with_subhandle(handle: u32, subhandle: u32) -> Message {
    let message = request(handle);
    Message { address: message.address | 1 << 3, data: subhandle, ..message }
}

fn fault(reason: Reason, index: u16) -> Refused {
    Fault { reason, index, requester: DEVICE, processing: FaultProcessing::Enabled }.into()
}

fn silent(reason: Reason, index: u16) -> Refused {
    Fault { reason, index, requester: DEVICE, processing: FaultProcessing::Disabled }.into()
}

fn translation(interrupt: Interrupt, cookie: Option<Cookie>) -> Translation {
    Translation { target: Target::Interrupt(interrupt), cookie }
}

fn interrupt(translation: &Translation) -> Interrupt {
    match translation.target {
        Target::Interrupt(interrupt) => interrupt,
        Target::Event(event) => panic!("{event:?} of a table that has no events"),
    }
}

fn cookies(first: u32, last: u32) -> Entries {
    Entries::Range(Cookie(first)..=Cookie(last))
}

/// What the fault event sends.
fn fault_event() -> Message {
    Message { address: 0xfee0_1000, data: 0xf1, requester: RequesterId::default() }
}

/// The interrupt that [`ENTRY`] gives.
fn entry_interrupt() -> Interrupt {
    Interrupt { destination: 2, vector: 0x31, ..Interrupt::default() }
}
