//! VT-d: the register page, the queue and the table, over a memory of the input's bytes.
//!
//! Oracles: a second implementation of the translation, asked with the registers that the guest was told are in force;
//! the ring, read a second time wherever the head goes by; a twin, restored from a snapshot, that must do the same.

use crate::{Data, Number, steps};
use arbitrary::{Arbitrary, Unstructured};
use irqfabric::memory::{Memory, OutsideMemory};
use irqfabric::msg::{DestinationMode, Interrupt, Message, NotAnInterrupt, RedirectionHint, RequesterId, Trigger};
use irqfabric::remap::vtd::{Effect, Fault, FaultProcessing, Faults, Refused, Tables, Vtd, WINDOW_SIZE};
use irqfabric::remap::{Cookie, Entries, Target, Translation};
use oracle::Outcome;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[path = "../../crates/irqfabric/src/remap/vtd/tests/oracle.rs"]
mod oracle;

const GCMD: u64 = 0x18;
const GSTS: u64 = 0x1c;
const FSTS: u64 = 0x34;
const FECTL: u64 = 0x38;
const IQH: u64 = 0x80;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const IRTA: u64 = 0xb8;
const FRCD: u64 = 0x220;
const REGISTERS: [u64; 22] = [
    0x18, 0x1c, 0x20, 0x24, 0x34, 0x38, 0x3c, 0x40, 0x44, 0x80, 0x88, 0x90, 0x94, 0x9c, 0xa0, 0xa4, 0xa8, 0xac, 0xb8,
    0xbc, 0x22c, 0x29c,
];

const QIE: u32 = 1 << 26;
const SIRTP: u32 = 1 << 24;
/// IRE and CFI.
const SWITCHES: u32 = 1 << 25 | 1 << 23;
const PFO: u32 = 1;
const IQE: u32 = 1 << 4;

/// Eight pages from 1 MiB on: tables lie in the first four, rings in the others.
const RAM: u64 = 0x10_0000;
const RAM_SIZE: usize = 0x8000;
const RING: u64 = RAM + 0x4000;

#[derive(Arbitrary, Debug)]
enum Step {
    /// Any access.
    Write(u16, Data),
    Read(u16, u8),
    /// A register that there is.
    Register {
        which: u8,
        value: u32,
    },
    Command(u8),
    Table {
        size: u8,
        extended: bool,
        page: u8,
    },
    Ring {
        size: u8,
        page: u8,
    },
    Tail(u8),
    Store {
        place: u16,
        value: u64,
    },
    /// An entry, nearly right, and a message that asks for it.
    Entry {
        index: Number,
        low: u64,
        high: u32,
        wrong: u8,
        requester: u16,
        subhandle: Option<u8>,
    },
    /// A descriptor behind the last one.
    Submit {
        kind: u8,
        value: u64,
        address: u16,
    },
    /// What Linux does when the queue has stopped.
    Repair,
    Fire {
        handle: u16,
        shv: bool,
        data: u32,
        requester: u16,
    },
    Message {
        address: u64,
        data: u32,
        requester: u16,
    },
    /// Ask for this many effects at the most.
    Next(u8),
    Drain,
    SaveAndRestore,
}

struct Ram {
    bytes: Mutex<Vec<u8>>,
    reads: AtomicUsize,
}

impl Ram {
    fn range(address: u64, length: usize) -> Result<std::ops::Range<usize>, OutsideMemory> {
        let start = address.checked_sub(RAM).and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        range.filter(|range| range.end <= RAM_SIZE).ok_or(OutsideMemory { address, length })
    }

    fn sixteen(&self, address: u64) -> Option<[u8; 16]> {
        self.bytes.lock().unwrap()[Self::range(address, 16).ok()?].try_into().ok()
    }
}

impl Memory for Ram {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        data.copy_from_slice(&self.bytes.lock().unwrap()[Self::range(address, data.len())?]);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        self.bytes.lock().unwrap()[Self::range(address, data.len())?].copy_from_slice(data);
        Ok(())
    }
}

/// What the guest has asked for, followed a second time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Asked {
    /// IRES and CFIS.
    switches: u32,
    irta: u64,
}

/// How far the last SIRTP command is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Pointer {
    #[default]
    Never,
    Asked,
    Performing,
    Set,
}

struct World {
    vtd: Vtd,
    faults: Faults,
    twin: Option<(Vtd, Faults)>,
    /// The owner's copy.
    tables: Tables,
    ram: Ram,
    asked: Asked,
    in_force: Asked,
    pointer: Pointer,
    /// The effect that is being performed, if memory is still as it was when it was handed out.
    performing: Option<Effect>,
}

/// A target.
pub fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let ready = input.ratio(7u8, 8).unwrap_or(true);
    let mut world = World {
        vtd: Vtd::default(),
        faults: Faults::default(),
        twin: None,
        tables: Tables::default(),
        ram: Ram { bytes: Mutex::new(vec![0; RAM_SIZE]), reads: AtomicUsize::new(0) },
        asked: Asked::default(),
        in_force: Asked::default(),
        pointer: Pointer::default(),
        performing: None,
    };
    if ready {
        // As Linux leaves it: 256 entries, a ring of 256 descriptors, everything on.
        world.step(&Step::Table { size: 7, extended: false, page: 0 });
        world.step(&Step::Ring { size: 0, page: 0 });
        world.step(&Step::Command(0b111));
        world.drain();
    }
    for step in steps(input) {
        world.step(&step);
        world.check();
    }
    world.drain();
    world.check();
}

impl World {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write(offset, data) => self.write(offset.into(), data.as_slice()),
            Step::Read(offset, size) => {
                let mut data = vec![0xaa; (size % 17).into()];
                self.vtd.read(&self.faults, offset.into(), &mut data);
                assert!(u64::from(offset) < WINDOW_SIZE || data.iter().all(|&byte| byte == 0));
            }
            Step::Register { which, value } => {
                self.write32(REGISTERS[usize::from(which) % REGISTERS.len()], value);
            }
            Step::Command(bits) => {
                let command = [QIE, SWITCHES & !(1 << 23), SIRTP, 1 << 23, 1 << 30, 1 << 31];
                let bits = command.into_iter().enumerate().filter(|(bit, _)| bits >> bit & 1 != 0);
                self.write32(GCMD, bits.map(|(_, bit)| bit).sum());
            }
            Step::Table { size, extended, page } => {
                let extended = if extended { 1 << 11 } else { 0 };
                let table = (RAM + u64::from(page % 4) * 0x1000) | extended | u64::from(size % 16);
                self.write(IRTA, &table.to_le_bytes());
            }
            Step::Ring { size, page } => {
                let ring = (RING + u64::from(page % 4) * 0x1000) | u64::from(size % 8);
                self.write(IQA, &ring.to_le_bytes());
            }
            Step::Tail(place) => self.write32(IQT, u32::from(place) * 16),
            Step::Store { place, value } => self.store(RAM + u64::from(place), &value.to_le_bytes()),
            Step::Entry { index: Number(index), low, high, wrong, requester, subhandle } => {
                let low = low & 0x0000_ff00_00ff_0f3f | 1;
                // Source ids of few buses, devices and functions, so that some are the requester's.
                let entry = u128::from(high & 0xf_0307) << 64 | u128::from(low);
                let entry = if wrong < 128 { entry ^ 1 << wrong } else { entry };
                self.store(RAM + u64::from(index) * 16, &entry.to_le_bytes());
                let (handle, data) = match subhandle {
                    Some(subhandle) => (index.saturating_sub(subhandle), index.min(subhandle)),
                    None => (index, 0),
                };
                let shv = if subhandle.is_some() { 8 } else { 0 };
                self.fire(0xfee0_0010 | u64::from(handle) << 5 | shv, data.into(), requester & 0x0307);
            }
            Step::Submit { kind, value, address } => {
                let (tail, value) = (self.read32(IQT), u128::from(value));
                let status = u128::from(RAM + u64::from(address & 0x3ffc)) << 64;
                let descriptor = match kind % 16 {
                    0 => value << 64 | u128::from(address),
                    kind @ 1..=3 => kind.into(),
                    4 => 4,
                    5..=10 => 4 | 1 << 4 | value & 0x3f << 32 | value & 3 << 27,
                    11..=14 => 5 | 1 << 5 | value & 1 << 4 | value & 0xffff << 32 | status,
                    _ => 5 | value & 0b101 << 4,
                };
                self.store((self.read64(IQA) & !0xfff).wrapping_add(tail.into()), &descriptor.to_le_bytes());
                let size = 0x1000u32 << (self.read64(IQA) & 7);
                self.write32(IQT, tail.wrapping_add(16) & (size - 1));
            }
            Step::Repair => {
                let head = self.read64(IQA) & !0xfff | u64::from(self.read32(IQH));
                self.store(head, &5u128.to_le_bytes());
                self.write32(FSTS, IQE | PFO);
            }
            Step::Fire { handle, shv, data, requester } => {
                let (low, high) = (u64::from(handle & 0x7fff), u64::from(handle >> 15));
                let address = 0xfee0_0010 | low << 5 | high << 2 | if shv { 8 } else { 0 };
                self.fire(address, data, requester);
            }
            Step::Message { address, data, requester } => {
                self.fire(address, data, requester);
                self.fire(0xfee0_0000 | address & 0xf_ffff, data, requester);
            }
            Step::Next(count) => {
                for _ in 0..count % 8 {
                    if self.next().is_none() {
                        break;
                    }
                }
            }
            Step::Drain => self.drain(),
            Step::SaveAndRestore => {
                let vtd = Vtd::restore(&self.vtd.save()).expect("a unit's own state");
                let faults = Faults::restore(&self.faults.save()).expect("its own faults");
                assert_eq!((&vtd, &faults), (&self.vtd, &self.faults));
                self.twin = Some((vtd, faults));
            }
        }
    }

    // The guest.

    fn write32(&mut self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let aligned = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64);
        let before = self.page();
        self.vtd.write(&mut self.faults, offset, data);
        if let Some((vtd, faults)) = &mut self.twin {
            vtd.write(faults, offset, data);
        }
        if !aligned {
            assert_eq!(self.page(), before);
            return;
        }
        if (offset..offset + data.len() as u64).contains(&GCMD) {
            let command = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
            self.asked.switches = command & SWITCHES;
            if command & SIRTP != 0 {
                self.asked.irta = self.read64(IRTA);
                self.pointer = Pointer::Asked;
            }
            assert_eq!(self.read32(GSTS) & QIE, command & QIE);
            if command & QIE == 0 {
                // The ring starts anew: what was being performed moves no head.
                self.performing = None;
            }
        }
        if offset <= IQA + 4 && offset + data.len() as u64 > IQA {
            self.performing = None;
        }
    }

    fn store(&mut self, address: u64, data: &[u8]) {
        if self.ram.write(address, data).is_ok() {
            self.performing = None;
        }
    }

    fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.vtd.read(&self.faults, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.vtd.read(&self.faults, offset, &mut data);
        u64::from_le_bytes(data)
    }

    /// What there is of the page.
    fn page(&self) -> Vec<u8> {
        let mut page = vec![0xaa; 0x2a0];
        self.vtd.read(&self.faults, 0, &mut page);
        page
    }

    fn recorded(&self) -> Vec<u128> {
        let record = |place: u64| {
            u128::from(self.read64(FRCD + 16 * place + 8)) << 64 | u128::from(self.read64(FRCD + 16 * place))
        };
        (0..8).map(record).filter(|record| record >> 127 != 0).collect()
    }

    // The owner.

    fn drain(&mut self) {
        // At the most one turn for each descriptor that the ring can have in this memory, two for a wait.
        let bound = 2 * RAM_SIZE / 16 + 8;
        let turns = (0..=bound).take_while(|_| self.next().is_some()).count();
        assert!(turns <= bound, "{turns} turns");
        assert_eq!(self.read32(GSTS) & SWITCHES, self.asked.switches);
        assert_eq!(self.in_force, self.asked);
        assert!(matches!(self.pointer, Pointer::Never | Pointer::Set));
        let idle = self.read32(GSTS) & QIE == 0 || self.read32(FSTS) & IQE != 0;
        assert!(idle || self.read32(IQH) == self.read32(IQT), "something is left in the queue");
    }

    fn next(&mut self) -> Option<Effect> {
        if self.pointer == Pointer::Performing {
            self.pointer = Pointer::Set;
        }
        let head = self.read32(IQH);
        let reads = self.ram.reads.swap(0, Ordering::Relaxed);
        let effect = self.vtd.next(&mut self.faults, &self.ram);
        assert!(self.ram.reads.load(Ordering::Relaxed) <= 256, "{reads}");
        if let Some((vtd, faults)) = &mut self.twin {
            assert_eq!(vtd.next(faults, &self.ram), effect);
        }
        // What the head has gone by was performed by the effect before, or asked for nothing.
        let performed = self.performing.take();
        if performed.is_some() {
            self.check_passed(head, performed);
        }
        match &effect {
            Some(Effect::Retranslate(tables)) => {
                self.tables = *tables;
                self.in_force = self.asked;
                if self.pointer == Pointer::Asked {
                    self.pointer = Pointer::Performing;
                }
            }
            Some(Effect::Write { address, data }) => {
                let at_head = self.descriptor(self.read32(IQH)).expect("the ring is memory");
                assert_eq!(at_head & 0x2f, 0x25);
                assert_eq!((at_head >> 64, (at_head >> 32) as u32), (u128::from(*address), *data));
            }
            Some(Effect::Invalidate(entries)) => {
                let at_head = self.first_invalidation().expect("there is one from the head on");
                assert!(covers(entries, at_head), "{entries:?} for {at_head:#x}");
            }
            Some(Effect::Send(_) | Effect::Nothing) | None => {}
        }
        self.performing = effect.clone();
        if let Some(Effect::Write { address, data }) = effect {
            // It may lie in the ring itself, and then what the head goes by is not what was read.
            self.store(address, &data.to_le_bytes());
        }
        effect
    }

    fn descriptor(&self, head: u32) -> Option<u128> {
        let address = (self.read64(IQA) & !0xfff).checked_add(head.into())?;
        self.ram.sixteen(address).map(u128::from_le_bytes)
    }

    fn places(&self, from: u32) -> impl Iterator<Item = u32> {
        let size = 0x1000u32 << (self.read64(IQA) & 7);
        (0..size / 16).map(move |place| from.wrapping_add(place * 16) & (size - 1))
    }

    fn first_invalidation(&self) -> Option<u128> {
        let mut descriptors = self.places(self.read32(IQH)).map_while(|place| self.descriptor(place));
        descriptors.find(|descriptor| descriptor & 0xf == 4)
    }

    /// The interrupt entry cache invalidations that the head has gone by are those that were performed.
    fn check_passed(&self, from: u32, performed: Option<Effect>) {
        let to = self.read32(IQH);
        let passed = self.places(from).take_while(|&place| place != to);
        let mut asked = vec![];
        for descriptor in passed.map(|place| self.descriptor(place).expect("what was read once")) {
            if descriptor & 0xf == 4 {
                let Some(Effect::Invalidate(entries)) = &performed else { panic!("passed without an invalidation") };
                assert!(covers(entries, descriptor), "{entries:?} for {descriptor:#x}");
                asked.push(descriptor);
            }
        }
        // And nothing else, as far as that is quickly told.
        if let Some(Effect::Invalidate(Entries::Range(range))) = performed
            && range.end().0 - range.start().0 < 256
        {
            for index in range.start().0..=range.end().0 {
                let wanted = asked.iter().any(|&descriptor| {
                    let mask = (descriptor >> 27) as u32 & 0x1f;
                    ((descriptor >> 32) as u32 & 0xffff ^ index) >> mask.min(16) == 0
                });
                assert!(wanted, "nobody asked for {index:#x}");
            }
        }
    }

    fn fire(&mut self, address: u64, data: u32, requester: u16) {
        let message = Message { address, data, requester: RequesterId(requester) };
        let reads = self.ram.reads.swap(0, Ordering::Relaxed);
        let result = self.tables.translate(&message, &self.ram);
        assert!(self.ram.reads.load(Ordering::Relaxed) <= 1, "an entry is read once ({reads})");
        let registers = (self.in_force.switches, self.in_force.irta);
        let expected = oracle::translate(registers, (address, data, requester), |place| self.ram.sixteen(place));
        assert_eq!(outcome(result), expected);

        let Err(Refused::Fault(fault)) = result else { return };
        let (before, status) = (self.recorded(), self.read32(FSTS));
        let was_pending = self.read32(FECTL) >> 30 & 1 != 0;
        let sent = self.faults.record(&fault);
        if let Some((_, faults)) = &mut self.twin {
            assert_eq!(faults.record(&fault), sent);
        }
        let after = self.recorded();
        let Outcome::Fault { reason, index, silent } = expected else { panic!("no fault") };
        let record = 1 << 127 | u128::from(reason) << 96 | u128::from(requester) << 64 | u128::from(index) << 48;
        if silent || status & PFO != 0 {
            assert_eq!((after, self.read32(FSTS), sent), (before, status, None));
        } else {
            assert!(after.contains(&record) || self.read32(FSTS) & PFO != 0, "neither recorded nor told");
            assert_eq!(after.len() > before.len(), after.contains(&record) && !before.contains(&record));
            assert!(after.len() <= before.len() + 1);
            assert!(before.iter().all(|record| after.contains(record)), "a pending fault is overwritten");
            let news = self.read32(FSTS) & 0b1_0011 != 0 && status & 0b1_0011 == 0;
            // An event that was unmasked a moment ago goes with the fault.
            assert!(sent.is_none() || news || was_pending, "an event without a new condition");
        }
    }

    // What must hold at any time.

    fn check(&self) {
        if let Some(twin) = &self.twin {
            assert_eq!((&twin.0, &twin.1), (&self.vtd, &self.faults));
        }
        assert_eq!(self.read32(0), 0x10);
        assert_eq!(self.read32(GCMD), 0);
        assert_eq!(self.read64(0x08) >> 8 & 0x1f, 0, "an address width");
        assert_eq!(self.read32(GSTS) & !(SWITCHES | SIRTP | QIE | 1 << 30), 0);
        assert_eq!(self.read32(GSTS) & SIRTP != 0, self.pointer == Pointer::Set);
        assert_eq!(self.read32(IQH) & !0x7_fff0, 0);
        assert!(self.read32(GSTS) & QIE != 0 || self.read32(IQH) == 0, "a queue that is off has a head");
        assert_eq!(self.read32(IQT) & !0x7_fff0, 0);
        assert_eq!(self.read64(IQA) & 0xff8, 0);
        assert_eq!(self.read64(IRTA) & 0x7f0, 0);
        let (status, pending) = (self.read32(FSTS), !self.recorded().is_empty());
        assert_eq!(status & 2 != 0, pending);
        assert_eq!(status & !0x713, 0);
        // An event is pending only for a reason.
        assert!(self.read32(FECTL) >> 30 & 1 == 0 || status & 0b1_0011 != 0);
        assert!(self.read32(0xa0) >> 30 & 1 == 0 || self.read32(0x9c) & 1 != 0);
    }
}

/// Whether an invalidation does at least what a descriptor asks for.
fn covers(entries: &Entries, descriptor: u128) -> bool {
    if descriptor & 1 << 4 == 0 {
        return *entries == Entries::All;
    }
    let (index, mask) = ((descriptor >> 32) as u32 & 0xffff, (descriptor >> 27) as u32 & 0x1f);
    let masked = ((1u64 << mask) - 1) as u32 & 0xffff;
    // Entries are a range: what it has both ends of it has all of.
    [index & !masked, index | masked].into_iter().all(|end| entries.covers(Some(Cookie(end))))
}

fn interrupt(translation: &Translation) -> Interrupt {
    match translation.target {
        Target::Interrupt(interrupt) => interrupt,
        Target::Event(event) => panic!("{event:?} of a table that has no events"),
    }
}

/// The same as numbers.
fn outcome(result: Result<Translation, Refused>) -> Outcome {
    match result {
        Ok(translation) => {
            let interrupt = interrupt(&translation);
            Outcome::Interrupt {
                destination: interrupt.destination,
                logical: interrupt.destination_mode == DestinationMode::Logical,
                any: interrupt.redirection_hint == RedirectionHint::Any,
                mode: interrupt.delivery_mode as u8,
                level: interrupt.trigger == Trigger::Level,
                vector: interrupt.vector,
                cookie: translation.cookie.map(|Cookie(index)| index),
            }
        }
        Err(Refused::NotAnInterrupt(NotAnInterrupt::Memory(_))) => Outcome::Memory,
        Err(Refused::NotAnInterrupt(NotAnInterrupt::ReservedDeliveryMode(_))) => Outcome::Dropped,
        Err(Refused::Fault(Fault { reason, index, requester: _, processing })) => {
            Outcome::Fault { reason: reason as u8, index, silent: processing == FaultProcessing::Disabled }
        }
    }
}
