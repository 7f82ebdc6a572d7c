//! The whole fabric on simulated processors, under any schedule of devices, guest accesses, ends of interrupts, masks and
//! invalidations, on one thread.
//!
//! The oracle follows the machine a second time: the redirection entries, the wires, the PIC (as the `pic` target does),
//! the vectors and, by the second implementation of the translation, what each message becomes. It says which interrupts
//! a step delivers, in their order, and what is blocked; the backend must have seen these and no others. At the moment
//! at which a wait descriptor's status is written every vector is signalled: none may go by what was invalidated.

use crate::ioapic::{LEVEL, MASKED, REMOTE_IRR, WRITABLE, is_level, message, sends};
use crate::pic::Pair;
use crate::vtd::numbers;
use crate::vtd::oracle::{self, Outcome};
use crate::{Number, steps};
use arbitrary::{Arbitrary, Unstructured};
use irqfabric::chip::ioapic::{Ioapic, Version};
use irqfabric::chip::pic::{PORTS, Pic};
use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS, MsiVectors};
use irqfabric::hv::{Capacity, External, HvError, Hypervisor, Route, Sim, Takes, Vcpu as _};
use irqfabric::line::{Level, LineSource};
use irqfabric::memory::{Memory, OutsideMemory};
use irqfabric::msg::{Acceptance, DestinationMode, Interrupt, Masking, Message, RequesterId};
use irqfabric::remap::vtd::{Faults, Vtd};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

#[derive(Arbitrary, Debug)]
enum Step {
    // Devices.
    Set(u8, bool),
    Pulse(u8),
    Replace(u8),
    Signal(u8),
    Replug(u8),
    // The IOAPIC.
    Half { pin: u8, high: bool, value: u32 },
    Entry { pin: u8, request: Request, level: bool, masked: bool },
    MaskPin(u8, bool),
    EndRegister(Number),
    // The PIC.
    PicInitialize { icw4: u8 },
    PicWrite { port: u8, value: u8 },
    PicRead(u8),
    PicEnd(bool),
    // Vectors.
    Program { vector: u8, request: Request, level: bool },
    Mask(u8, u8),
    // The VT-d unit.
    Store { index: Number, request: Request, level: bool, requester: u8, wrong: u8 },
    Command(u8),
    Table(u8),
    Invalidate { index: Option<u8>, mask: u8 },
    ClearFaults,
    // Processors.
    BeforeRun(bool),
    Take(bool),
    End(bool),
}

/// What is asked for: an interrupt, in the compatibility format or by an entry; or a write to memory.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Request {
    kind: u8,
    vector: Number,
    destination: u8,
    mode: u8,
}

impl Request {
    fn destination(self) -> u8 {
        [0, 0, 0, 1, 1, 1, 2, 0xff][usize::from(self.destination & 7)]
    }

    fn mode(self) -> u8 {
        [0, 0, 0, 0, 1, 2, 4, 7][usize::from(self.mode & 7)]
    }

    fn vector(self) -> u8 {
        self.vector.0
    }

    /// The entry that it asks for, now and then one beyond the table.
    fn index(self) -> u16 {
        u16::from(self.destination) % 18
    }
}

const PINS: usize = 8;
/// Where sources are, two plain and a resampling one on each: with an IOAPIC's pin and a PIC's input at the end, and with one of both only.
const GSIS: [usize; 5] = [0, 1, 2, 5, 9];
const SOURCES: usize = 3 * GSIS.len();
const VECTORS: usize = 4;
const IOAPIC: u16 = 0xff00;

const UNIT: u64 = 0xfed9_0000;
const GCMD: u64 = 0x18;
const FSTS: u64 = 0x34;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const IRTA: u64 = 0xb8;
const FRCD: u64 = 0x220;
const QIE: u32 = 1 << 26;
const IRE: u32 = 1 << 25;
const SIRTP: u32 = 1 << 24;
const CFI: u32 = 1 << 23;

/// Five pages: two tables of 16 entries, the ring, the statuses of waits, and what messages write.
const RAM: u64 = 0x10_0000;
const RAM_SIZE: usize = 0x5000;
const RING: u64 = RAM + 0x2000;
const STATUS: u64 = RAM + 0x3000;
const MESSAGES: u64 = RAM + 0x4000;

/// What is seen of the fabric from below, in its order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    Delivered(Interrupt, Acceptance),
    Stored(u64, u32),
    /// The status of a wait descriptor: from here on every vector was signalled once.
    Status(u32),
}

struct Machine {
    sim: Sim,
    seen: Mutex<Vec<Seen>>,
    kicked: Mutex<Vec<u32>>,
    bytes: Mutex<Vec<u8>>,
    /// Who is signalled when a status is written.
    watching: Mutex<Option<Arc<Vec<MsiVectors>>>>,
}

#[derive(Clone)]
struct Shared(Arc<Machine>);

impl Shared {
    fn saw(&self, seen: Seen) {
        self.0.seen.lock().unwrap().push(seen);
    }

    fn range(address: u64, length: usize) -> Result<std::ops::Range<usize>, OutsideMemory> {
        let start = address.checked_sub(RAM).and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        range.filter(|range| range.end <= RAM_SIZE).ok_or(OutsideMemory { address, length })
    }

    fn sixteen(&self, address: u64) -> Option<[u8; 16]> {
        self.0.bytes.lock().unwrap()[Self::range(address, 16).ok()?].try_into().ok()
    }

    /// The guest's own hand.
    fn poke(&self, address: u64, data: &[u8]) {
        self.0.bytes.lock().unwrap()[Self::range(address, data.len()).unwrap()].copy_from_slice(data);
    }
}

impl Hypervisor for Shared {
    fn start(&self, pins: u32) -> Result<Capacity, HvError> {
        self.0.sim.start(pins)
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        let acceptance = self.0.sim.deliver(interrupt)?;
        self.saw(Seen::Delivered(*interrupt, acceptance));
        Ok(acceptance)
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        self.0.sim.commit(routes)
    }
}

impl Memory for Shared {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
        data.copy_from_slice(&self.0.bytes.lock().unwrap()[Self::range(address, data.len())?]);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        self.0.bytes.lock().unwrap()[Self::range(address, data.len())?].copy_from_slice(data);
        let value = u32::from_le_bytes(data.try_into().expect("messages and statuses have 32 bits"));
        if !(STATUS..MESSAGES).contains(&address) {
            self.saw(Seen::Stored(address, value));
            return Ok(());
        }
        self.saw(Seen::Status(value));
        let watching = self.0.watching.lock().unwrap().take();
        if let Some(vectors) = watching {
            vectors.iter().for_each(|device| device.iter().for_each(|vector| vector.signal()));
        }
        Ok(())
    }
}

/// A vector as it is followed.
#[derive(Clone, Copy, Debug, Default)]
struct Followed {
    message: Option<(u64, u32)>,
    masking: Masking,
    pending: bool,
    /// What it became when it was last sent, while nothing has said that this is over.
    known: Option<Outcome>,
}

/// The machine, followed a second time.
struct Model {
    ram: Shared,
    entries: [u64; PINS],
    levels: [bool; PINS],
    raised: [bool; SOURCES],
    told: [usize; SOURCES],
    pic: Pair,
    /// ExtINT messages that wait for a processor: destination and mode.
    externals: Vec<(u32, DestinationMode)>,
    /// What each processor was given by the PIC and has not taken.
    given: [Option<u8>; 2],
    irr: [BTreeSet<u8>; 2],
    vectors: [Followed; VECTORS],
    /// GSTS and IRTA that are in force.
    registers: (u32, u64),
    // Of the present step.
    seen: VecDeque<Seen>,
    faults: Vec<u128>,
    blocked: u64,
}

impl Model {
    fn translate(&self, message: &Message) -> Outcome {
        let Message { address, data, requester: RequesterId(requester) } = *message;
        oracle::translate(self.registers, (address, data, requester), |place| self.ram.sixteen(place))
    }

    // What must have been seen next.

    fn expect_delivery(&mut self, expected: Outcome) -> Acceptance {
        let Some(Seen::Delivered(interrupt, acceptance)) = self.seen.pop_front() else {
            panic!("lost: {expected:?}");
        };
        assert_eq!(unnamed(numbers(&interrupt, None)), unnamed(expected), "stale");
        self.accept(&interrupt, acceptance);
        acceptance
    }

    /// Who must have it.
    fn accept(&mut self, interrupt: &Interrupt, acceptance: Acceptance) {
        let Outcome::Interrupt { destination, logical: false, mode: mode @ (0 | 2 | 4), vector, .. } =
            numbers(interrupt, None)
        else {
            // Arbitration is the backend's.
            return;
        };
        let mut takers = 0;
        for (id, irr) in (0u32..).zip(&mut self.irr) {
            if (destination == id || destination == 0xff) && (mode != 0 || vector >= 16) {
                takers += 1;
                if mode == 0 {
                    irr.insert(vector);
                }
            }
        }
        assert_eq!(acceptance == Acceptance::Accepted, takers > 0, "{interrupt:?}");
    }

    fn fault(&mut self, message: &Message, expected: Outcome) {
        let Outcome::Fault { reason, index, silent } = expected else { panic!("{expected:?} is no fault") };
        self.blocked += 1;
        if !silent {
            let RequesterId(requester) = message.requester;
            let record = u128::from(reason) << 96 | u128::from(requester) << 64 | u128::from(index) << 48;
            self.faults.push(1 << 127 | record);
        }
    }

    // Pins and wires.

    fn message_of(&self, pin: usize) -> Message {
        message(self.entries[pin], RequesterId(IOAPIC))
    }

    fn is_due(&self, pin: usize) -> bool {
        let entry = self.entries[pin];
        is_level(entry) && sends(entry) && self.levels[pin] && entry & REMOTE_IRR == 0
    }

    /// A pin has something to send, if it may.
    fn attempt(&mut self, pin: usize) {
        let message = self.message_of(pin);
        let accepted = match self.translate(&message) {
            Outcome::Interrupt { mode: 7, destination, logical, .. } => {
                let mode = if logical { DestinationMode::Logical } else { DestinationMode::Physical };
                if !self.externals.contains(&(destination, mode)) {
                    self.externals.push((destination, mode));
                }
                Acceptance::Accepted
            }
            interrupt @ Outcome::Interrupt { .. } => self.expect_delivery(interrupt),
            fault @ Outcome::Fault { .. } => {
                self.fault(&message, fault);
                Acceptance::Refused
            }
            Outcome::Memory | Outcome::Dropped => Acceptance::Refused,
        };
        if is_level(self.entries[pin]) && accepted == Acceptance::Accepted {
            self.entries[pin] |= REMOTE_IRR;
        }
    }

    fn drive(&mut self, gsi: usize, high: bool) {
        self.pic.set(gsi as u8, high);
        if gsi >= PINS {
            return;
        }
        let before = std::mem::replace(&mut self.levels[gsi], high);
        let edge = high && !before && !is_level(self.entries[gsi]) && sends(self.entries[gsi]);
        if edge || high && self.is_due(gsi) {
            self.attempt(gsi);
        }
    }

    fn sources(gsi: usize) -> impl Iterator<Item = usize> {
        (0..SOURCES).filter(move |&source| gsi_of(source) == gsi)
    }

    fn is_high(&self, gsi: usize) -> bool {
        Self::sources(gsi).any(|source| self.raised[source])
    }

    fn set(&mut self, source: usize, high: bool) {
        let gsi = gsi_of(source);
        let before = self.is_high(gsi);
        self.raised[source] = high;
        if self.is_high(gsi) != before {
            self.drive(gsi, !before);
        }
    }

    fn pulse(&mut self, source: usize) {
        let gsi = gsi_of(source);
        let before = self.is_high(gsi);
        self.raised[source] = false;
        if !before {
            self.pic.pulse(gsi as u8);
            if gsi < PINS {
                // The PIC has had its edge.
                let pic = self.pic.clone();
                self.drive(gsi, true);
                self.drive(gsi, false);
                self.pic = pic;
            }
        } else if !self.is_high(gsi) {
            self.drive(gsi, false);
        }
    }

    /// The end of an interrupt lowers the resampling sources, and them alone.
    fn acknowledge(&mut self, gsi: usize) {
        for source in Self::sources(gsi).filter(|&source| resamples(source)) {
            self.told[source] += usize::from(std::mem::take(&mut self.raised[source]));
        }
    }

    fn end_on(&mut self, pin: usize) {
        let before = self.is_high(pin);
        self.acknowledge(pin);
        if before {
            self.drive(pin, self.is_high(pin));
        }
    }

    fn end(&mut self, vector: u8) {
        for pin in 0..PINS {
            if self.entries[pin] & REMOTE_IRR != 0 && self.entries[pin] as u8 == vector {
                self.entries[pin] &= !REMOTE_IRR;
                self.end_on(pin);
            }
        }
    }

    fn write_half(&mut self, pin: usize, high: bool, value: u32) {
        let old = self.entries[pin];
        let shift = if high { 32 } else { 0 };
        let mask = WRITABLE & 0xffff_ffff << shift;
        let new = old & !mask | u64::from(value) << shift & mask;
        self.entries[pin] = if is_level(new) { new } else { new & !REMOTE_IRR };
        if self.is_due(pin) {
            self.attempt(pin);
        }
        if old & !self.entries[pin] & REMOTE_IRR != 0 {
            self.end_on(pin);
        }
    }

    fn pic_write(&mut self, port: u16, value: u8) {
        let mut trial = self.pic.clone();
        trial.write(port, value);
        // The cascade is no line's.
        for input in (0..16).filter(|&input| input != 2) {
            if self.pic.in_service() & !trial.in_service() & 1 << input != 0 {
                let before = self.is_high(input);
                self.acknowledge(input);
                if before && !self.is_high(input) {
                    self.drive(input, false);
                }
            }
        }
        self.pic.write(port, value);
    }

    fn pic_read(&mut self, port: u16) -> u8 {
        let slave = port & 0x80 != 0;
        let polled = self.pic.is_polled(slave) && port < 0x100;
        let answer = self.pic.read(port);
        let input = if slave { 8 | answer & 7 } else { answer & 7 };
        if polled && answer & 0x80 != 0 && input != 2 {
            self.acknowledged(input);
        }
        answer
    }

    /// By the PIC. With automatic end of interrupt that was its end as well.
    fn acknowledged(&mut self, input: u8) {
        if self.pic.in_service() & 1 << input != 0 {
            return;
        }
        let gsi = usize::from(input);
        let high = self.is_high(gsi);
        self.acknowledge(gsi);
        let left = self.is_high(gsi);
        self.pic.ended(input, left);
        if high {
            self.drive(gsi, left);
        }
    }

    // Vectors.

    fn signal(&mut self, vector: usize) {
        let Followed { message, masking, known, .. } = self.vectors[vector];
        if masking == Masking::Masked {
            self.vectors[vector].pending = true;
        }
        let (Some((address, data)), Masking::Unmasked) = (message, masking) else { return };
        let message = Message { address, data, requester: requester_of(vector) };
        let now = self.translate(&message);
        let next = self.seen.front().and_then(|seen| match seen {
            Seen::Delivered(interrupt, _) => Some(unnamed(numbers(interrupt, None))),
            _ => None,
        });
        // What is cached may be used until the guest says otherwise.
        if let Some(known) = known.filter(|known| next == Some(unnamed(*known))) {
            self.expect_delivery(known);
            return;
        }
        match now {
            Outcome::Interrupt { .. } => {
                self.expect_delivery(now);
                self.vectors[vector].known = Some(now);
            }
            Outcome::Fault { .. } => self.fault(&message, now),
            Outcome::Memory => {
                if Shared::range(address, 4).is_ok() {
                    assert_eq!(self.seen.pop_front(), Some(Seen::Stored(address, data)));
                }
            }
            Outcome::Dropped => {}
        }
    }

    fn set_masking(&mut self, vector: usize, masking: Masking) {
        let followed = &mut self.vectors[vector];
        if std::mem::replace(&mut followed.masking, masking) == masking {
            return;
        }
        match masking {
            Masking::Masked => {}
            Masking::Disabled => followed.pending = false,
            Masking::Unmasked => {
                if std::mem::take(&mut followed.pending) {
                    self.signal(vector);
                }
            }
        }
    }

    fn program(&mut self, vector: usize, message: (u64, u32)) {
        let followed = &mut self.vectors[vector];
        if followed.message != Some(message) {
            (followed.message, followed.known) = (Some(message), None);
        }
    }

    // Invalidations.

    fn invalidate(&mut self, covers: impl Fn(Option<u32>) -> bool) {
        for vector in &mut self.vectors {
            if let Some(Outcome::Interrupt { cookie, .. }) = vector.known
                && covers(cookie)
            {
                vector.known = None;
            }
        }
    }

    /// Pins whose level was blocked or refused may be tried again by any access to the unit. Which interrupts were, until
    /// something else was seen.
    fn recovered(&mut self) -> Vec<Outcome> {
        let mut tried = Vec::new();
        while let Some(&Seen::Delivered(interrupt, _)) = self.seen.front() {
            let interrupt = numbers(&interrupt, None);
            let means = |pin: &usize| self.is_due(*pin) && unnamed(self.translate(&self.message_of(*pin))) == interrupt;
            let pin = (0..PINS).find(means).unwrap_or_else(|| panic!("nobody asked for {interrupt:?}"));
            self.attempt(pin);
            tried.push(interrupt);
        }
        tried
    }

    /// The same of a queue that goes on where it had stopped, and may have found waits there.
    fn resumed(&mut self) -> Vec<Outcome> {
        let mut tried = self.recovered();
        while let Some(Seen::Status(_)) = self.seen.front() {
            self.seen.pop_front();
            tried.append(&mut self.recovered());
        }
        tried
    }

    /// What is due after an invalidation by an entry that it `covers` has been tried and refused.
    fn check_recovered(&self, tried: &[Outcome], covers: impl Fn(Option<u32>) -> bool) {
        for pin in (0..PINS).filter(|&pin| self.is_due(pin)) {
            let now = self.translate(&self.message_of(pin));
            if let Outcome::Interrupt { cookie, .. } = now {
                assert!(!covers(cookie) || tried.contains(&unnamed(now)), "the level of pin {pin} is lost");
            }
        }
    }
}

/// Without the entry that it came from, which the backend does not see.
fn unnamed(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Interrupt { destination, logical, any, mode, level, vector, cookie: _ } => {
            Outcome::Interrupt { destination, logical, any, mode, level, vector, cookie: None }
        }
        other => other,
    }
}

fn gsi_of(source: usize) -> usize {
    GSIS[source % GSIS.len()]
}

fn resamples(source: usize) -> bool {
    source >= 2 * GSIS.len()
}

/// Two devices with two vectors each.
fn requester_of(vector: usize) -> RequesterId {
    RequesterId(8 + vector as u16 / 2)
}

struct World {
    machine: Shared,
    fabric: Fabric,
    sources: Vec<LineSource>,
    told: Vec<Arc<AtomicUsize>>,
    vectors: Vec<MsiVectors>,
    model: Model,
    waits: u32,
}

/// A target.
pub fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let remapping = input.ratio(3u8, 4).unwrap_or(true);
    let mut world = World::new();
    world.step(&Step::PicInitialize { icw4: 1 });
    world.check();
    if remapping {
        world.step(&Step::Table(0));
        world.check();
        world.step(&Step::Command(0b011));
        world.check();
    }
    for step in steps(input) {
        world.step(&step);
        world.check();
    }
}

impl World {
    fn new() -> Self {
        let sim = Sim::new(2);
        for cpu in sim.vcpus() {
            cpu.enable();
            // LINT0 as ExtINT, and not masked.
            cpu.with_lapic(|lapic| lapic.write(0x350, &0x700u32.to_le_bytes()));
        }
        let machine = Shared(Arc::new(Machine {
            sim,
            seen: Mutex::default(),
            kicked: Mutex::default(),
            bytes: Mutex::new(vec![0; RAM_SIZE]),
            watching: Mutex::default(),
        }));
        let kicked = machine.clone();
        let ioapic = Ioapic::new(PINS).expect("1 to 120");
        let fabric = Fabric::builder(machine.clone())
            .ioapic(ioapic.with_version(Version::V20).with_requester(RequesterId(IOAPIC)))
            .pic(Pic::default())
            .kick(move |id| kicked.0.kicked.lock().unwrap().push(id))
            .memory(machine.clone())
            .vtd(UNIT, Vtd::default(), Faults::default())
            .build()
            .expect("a machine");
        let told: Vec<Arc<AtomicUsize>> = (0..SOURCES).map(|_| Arc::default()).collect();
        let sources = (0..SOURCES).map(|source| Self::source(&fabric, &told, source)).collect();
        let vectors = (0..2).map(|device| fabric.msi_vectors(requester_of(2 * device), 2)).collect();
        let model = Model {
            ram: machine.clone(),
            entries: [MASKED; PINS],
            levels: [false; PINS],
            raised: [false; SOURCES],
            told: [0; SOURCES],
            pic: Pair::default(),
            externals: Vec::new(),
            given: [None; 2],
            irr: Default::default(),
            vectors: [Followed::default(); VECTORS],
            registers: (0, 0),
            seen: VecDeque::new(),
            faults: Vec::new(),
            blocked: 0,
        };
        Self { machine, fabric, sources, told, vectors, model, waits: 0 }
    }

    fn source(fabric: &Fabric, told: &[Arc<AtomicUsize>], source: usize) -> LineSource {
        let line = fabric.line(gsi_of(source) as u32).expect("a line");
        if !resamples(source) {
            return line.source("plain");
        }
        let told = told[source].clone();
        line.resampling_source("resampling", move || _ = told.fetch_add(1, Relaxed)).expect("a chip of ours")
    }

    /// Does a step, and then takes what was seen to the model.
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Set(source, high) => {
                let source = usize::from(source) % SOURCES;
                self.sources[source].set(if high { Level::High } else { Level::Low });
                self.look();
                self.model.set(source, high);
            }
            Step::Pulse(source) => {
                let source = usize::from(source) % SOURCES;
                self.sources[source].pulse();
                self.look();
                self.model.pulse(source);
            }
            Step::Replace(source) => {
                let source = usize::from(source) % SOURCES;
                // The old one goes when the new one is there.
                self.sources[source] = Self::source(&self.fabric, &self.told, source);
                self.look();
                self.model.set(source, false);
            }
            Step::Signal(vector) => {
                let vector = usize::from(vector) % VECTORS;
                self.vectors[vector / 2][vector % 2].signal();
                self.look();
                self.model.signal(vector);
            }
            Step::Replug(device) => {
                let device = usize::from(device) % 2;
                self.vectors[device] = self.fabric.msi_vectors(requester_of(2 * device), 2);
                self.look();
                self.model.vectors[2 * device..][..2].fill(Followed::default());
            }
            Step::Half { pin, high, value } => {
                // A destination is one of a few.
                let value = if high { value & 0x03ff_0000 } else { value & !0xc0 };
                self.write_half(usize::from(pin) % PINS, high, value);
            }
            Step::Entry { pin, request, level, masked } => {
                let flags = if level { LEVEL } else { 0 } | if masked { MASKED } else { 0 };
                let entry = flags
                    | u64::from(request.vector())
                    | match request.kind % 4 {
                        0..2 => u64::from(request.index()) << 49 | 1 << 48,
                        _ => u64::from(request.destination()) << 56 | u64::from(request.mode()) << 8,
                    };
                let pin = usize::from(pin) % PINS;
                self.write_half(pin, true, (entry >> 32) as u32);
                self.write_half(pin, false, entry as u32);
            }
            Step::MaskPin(pin, masked) => {
                let pin = usize::from(pin) % PINS;
                let entry = self.model.entries[pin] & !MASKED | if masked { MASKED } else { 0 };
                self.write_half(pin, false, entry as u32);
            }
            Step::EndRegister(Number(vector)) => {
                self.fabric.mmio_write(IOAPIC_ADDRESS + 0x40, &[vector]);
                self.look();
                self.model.end(vector);
            }
            Step::PicInitialize { icw4 } => {
                for (port, base) in [(0x20, 0x30), (0xa0, 0x38)] {
                    self.pic_write(port, 0x11);
                    [base, 0x04, icw4].into_iter().for_each(|word| self.pic_write(port + 1, word));
                }
            }
            Step::PicWrite { port, value } => self.pic_write(PORTS[usize::from(port) % PORTS.len()], value),
            Step::PicEnd(slave) => self.pic_write(if slave { 0xa0 } else { 0x20 }, 0x20),
            Step::PicRead(port) => {
                let port = PORTS[usize::from(port) % PORTS.len()];
                let mut data = [0];
                self.fabric.pio_read(port, &mut data);
                self.look();
                assert_eq!(data[0], self.model.pic_read(port));
            }
            Step::Program { vector, request, level } => {
                let vector = usize::from(vector) % VECTORS;
                let (address, data) = match request.kind % 8 {
                    0..4 => (0xfee0_0010 | u64::from(request.index()) << 5, 0),
                    4 => (0xfee0_0018 | u64::from(request.index() / 2) << 5, u32::from(request.index() / 2)),
                    5 => (MESSAGES + u64::from(request.destination) * 4, u32::from(request.vector())),
                    6 if request.mode & 1 != 0 => (u64::from(request.destination) << 20, 0),
                    _ => {
                        let level = if level { 0xc000 } else { 0 };
                        let data = u32::from(request.mode()) << 8 | u32::from(request.vector()) | level;
                        (0xfee0_0000 | u64::from(request.destination()) << 12, data)
                    }
                };
                self.vectors[vector / 2].program(vector % 2, address, data).expect("there are two");
                self.look();
                self.model.program(vector, (address, data));
            }
            Step::Mask(vector, masking) => {
                let vector = usize::from(vector) % VECTORS;
                let masking = match masking % 8 {
                    0..3 => Masking::Masked,
                    3 => Masking::Disabled,
                    _ => Masking::Unmasked,
                };
                self.vectors[vector / 2].set_masking([vector % 2], masking).expect("there are two");
                self.look();
                self.model.set_masking(vector, masking);
            }
            Step::Store { index: Number(index), request, level, requester, wrong } => {
                let mode = u128::from(request.mode() & 5 & if request.mode() == 7 { 0 } else { 7 });
                let mut entry = 1 | mode << 5 | u128::from(level) << 4 | u128::from(request.vector()) << 16;
                entry |= u128::from(request.destination()) << 40;
                entry |= match requester % 8 {
                    0 => 1 << 82 | u128::from(requester_of(0).0) << 64,
                    1 => 1 << 82 | u128::from(IOAPIC) << 64,
                    _ => 0,
                };
                entry ^= match wrong % 16 {
                    0 | 1 => 1,
                    2 => 0b11,
                    3 => 1 << 24,
                    _ => 0,
                };
                let place = RAM + u64::from(request.kind & 1) * 0x1000 + 16 * u64::from(index % 16);
                self.machine.poke(place, &entry.to_le_bytes());
            }
            Step::Command(bits) => {
                let command = [QIE, IRE, CFI, SIRTP].into_iter().enumerate();
                let command = command.filter(|(bit, _)| bits >> bit & 1 != 0).map(|(_, flag)| flag);
                self.command(command.sum());
            }
            Step::Table(which) => {
                self.write64(IQA, RING);
                // 16 entries, or eight.
                let size = if which & 2 == 0 { 3 } else { 2 };
                self.write64(IRTA, (RAM + u64::from(which & 1) * 0x1000) | size);
                let (status, _) = self.model.registers;
                self.command(status & (QIE | IRE | CFI) | SIRTP);
            }
            Step::Invalidate { index, mask } => self.invalidate(index.map(|index| index % 16), mask % 5),
            Step::ClearFaults => {
                for record in 0..8 {
                    self.write32(FRCD + 16 * record + 12, 1 << 31);
                }
                self.write32(FSTS, 0x7f);
                self.model.faults.clear();
                // Without its error the queue goes on.
                _ = self.fabric.vtd();
                self.look();
                _ = self.model.resumed();
            }
            Step::BeforeRun(other) => self.before_run(usize::from(other)),
            Step::Take(other) => {
                let cpu = usize::from(other);
                let taken = self.machine.0.sim.vcpus()[cpu].acknowledge();
                let given = self.model.given[cpu].take();
                if let Some(vector) = given {
                    assert_eq!(taken, Some(vector), "the PIC's comes first");
                } else if let Some(vector) = taken {
                    assert_eq!(self.model.irr[cpu].last(), Some(&vector));
                    self.model.irr[cpu].remove(&vector);
                }
            }
            Step::End(other) => {
                if let Some(vector) = self.machine.0.sim.vcpus()[usize::from(other)].end_of_interrupt() {
                    self.fabric.end_of_interrupt(vector);
                    self.look();
                    self.model.end(vector);
                }
            }
        }
    }

    /// What the step was seen to do is the model's to explain.
    fn look(&mut self) {
        self.model.seen.extend(self.machine.0.seen.lock().unwrap().drain(..));
    }

    // The guest.

    fn write_half(&mut self, pin: usize, high: bool, value: u32) {
        let index = 0x10 + 2 * pin as u32 + u32::from(high);
        self.fabric.mmio_write(IOAPIC_ADDRESS, &index.to_le_bytes());
        self.fabric.mmio_write(IOAPIC_ADDRESS + 0x10, &value.to_le_bytes());
        self.look();
        self.model.write_half(pin, high, value);
    }

    fn pic_write(&mut self, port: u16, value: u8) {
        self.fabric.pio_write(port, &[value]);
        self.look();
        self.model.pic_write(port, value);
    }

    fn write32(&self, offset: u64, value: u32) {
        assert!(self.fabric.mmio_write(UNIT + offset, &value.to_le_bytes()));
    }

    fn write64(&self, offset: u64, value: u64) {
        assert!(self.fabric.mmio_write(UNIT + offset, &value.to_le_bytes()));
    }

    /// Whatever is in force now, all that was known before is gone if it is another.
    fn command(&mut self, command: u32) {
        self.write32(GCMD, command);
        // Waits for what is left to the dispatcher.
        let (_, state, _) = self.fabric.vtd().expect("a unit");
        self.look();
        let before = std::mem::replace(
            &mut self.model.registers,
            (state.global_status & (QIE | IRE | CFI), state.remapping_table_in_force),
        );
        assert_eq!(self.model.registers.0, command & (QIE | IRE | CFI));
        let changed = before.0 & !QIE != self.model.registers.0 & !QIE || command & SIRTP != 0;
        if changed {
            self.model.invalidate(|_| true);
        }
        let tried = self.model.resumed();
        self.model.check_recovered(&tried, |_| changed);
    }

    /// Entries and a wait: if the status is written the invalidation has been performed, and at that very moment.
    fn invalidate(&mut self, index: Option<u8>, mask: u8) {
        self.waits += 1;
        let wait = self.waits;
        let iec = index.map_or(4, |index| {
            4 | 1 << 4 | u128::from(mask) << 27 | u128::from(u16::from(index) >> mask << mask) << 32
        });
        let (_, state, _) = self.fabric.vtd().expect("a unit");
        let mut tail = state.queue.tail;
        for descriptor in [iec, 5 | 1 << 5 | u128::from(wait) << 32 | u128::from(STATUS) << 64] {
            self.machine.poke(RING + u64::from(tail & 0xff0), &descriptor.to_le_bytes());
            tail = (tail + 16) & 0xff0;
        }
        let vectors = Arc::new(std::mem::take(&mut self.vectors));
        *self.machine.0.watching.lock().unwrap() = Some(vectors.clone());
        self.write32(IQT, tail);
        _ = self.fabric.vtd();
        let watched = self.machine.0.watching.lock().unwrap().take().is_none();
        self.vectors = Arc::into_inner(vectors).expect("nobody watches any more");
        self.look();
        let covers = |cookie: Option<u32>| match index {
            None => true,
            Some(index) => cookie.is_some_and(|cookie| (cookie ^ u32::from(index)) >> mask == 0),
        };
        let idle = state.queue.head == state.queue.tail;
        let runs = self.model.registers.0 & QIE != 0 && idle;
        let (mut first, mut done) = (true, false);
        loop {
            let tried = self.model.recovered();
            match self.model.seen.pop_front() {
                Some(Seen::Status(status)) => {
                    if status == wait {
                        done = true;
                        self.model.check_recovered(&tried, |cookie| runs && covers(cookie));
                        self.model.invalidate(covers);
                    }
                    if std::mem::take(&mut first) {
                        (0..VECTORS).for_each(|vector| self.model.signal(vector));
                    }
                }
                Some(other) => panic!("{other:?} is no invalidation's"),
                None => break,
            }
        }
        assert_eq!(first, !watched);
        let (_, after, faults) = self.fabric.vtd().expect("a unit");
        let stopped = after.global_status & QIE == 0 || faults.status & 1 << 4 != 0;
        assert!(done || stopped || state.queue.head != state.queue.tail, "a wait that is never over");
    }

    // A vCPU's thread.

    fn before_run(&mut self, cpu: usize) {
        let sim = &self.machine.0.sim;
        // What would be taken, asked of the processor before it is.
        let mut vcpu = &sim.vcpus()[cpu];
        let mut takes = |external: &External| vcpu.takes(external).expect("never fails") == Takes::Now;
        let externals = self.model.externals.iter();
        let place = externals
            .clone()
            .position(|&(destination, destination_mode)| takes(&External::Message { destination, destination_mode }));
        let intr = place.is_none() && self.model.pic.intr() && takes(&External::Lint0);
        assert!(self.model.given[cpu].is_none() || place.is_none() && !intr, "one at a time");
        let mut vcpu = &sim.vcpus()[cpu];
        self.fabric.before_run(&mut vcpu).expect("never fails");
        self.look();
        if let Some(place) = place {
            self.model.externals.remove(place);
        }
        if place.is_some() || intr {
            let before = self.model.pic.acknowledge();
            self.model.given[cpu] = Some(before.vector);
            if let Some(input) = before.input {
                self.model.acknowledged(input);
            }
        }
    }

    // What must hold after every step.

    fn check(&mut self) {
        assert_eq!(self.model.seen, [], "nobody asked for it");
        assert!(self.machine.0.seen.lock().unwrap().is_empty(), "something comes late");
        let (_, _, chip) = self.fabric.ioapics().next().expect("one");
        for (pin, found) in chip.pins.iter().enumerate() {
            assert_eq!(found.entry, self.model.entries[pin], "entry {pin}");
            assert_eq!(found.level == Level::High, self.model.levels[pin], "pin {pin}");
            assert!(!found.edge, "an edge waits though it could be delivered at once");
        }
        for (source, told) in self.told.iter().enumerate() {
            assert_eq!(told.load(Relaxed), self.model.told[source], "source {source} is told once");
            assert_eq!(self.sources[source].level() == Level::High, self.model.raised[source], "source {source}");
        }
        for (vector, followed) in self.model.vectors.iter().enumerate() {
            assert_eq!(self.vectors[vector / 2].pending(vector % 2), followed.pending, "pending bit {vector}");
        }
        let snapshot = self.fabric.pic().expect("a PIC");
        let pic = Pic::restore(&snapshot.chip);
        assert_eq!(pic.output() == Level::High, self.model.pic.intr());
        assert_eq!(pic.in_service(), self.model.pic.in_service());
        assert_eq!(snapshot.pending.len(), self.model.externals.len());
        self.check_faults();
        self.check_requested();
    }

    /// Each blocked message is recorded once, and nothing else is.
    fn check_faults(&mut self) {
        assert_eq!(self.fabric.stats().blocked, self.model.blocked);
        let (_, _, state) = self.fabric.vtd().expect("a unit");
        let records = state.records.iter().map(|&[low, high]| u128::from(high) << 64 | u128::from(low));
        let records: Vec<u128> = records.filter(|record| record >> 127 != 0).collect();
        let overflow = state.status & 1 != 0;
        self.model.faults.dedup();
        for record in &self.model.faults {
            assert!(overflow || records.contains(record), "fault {record:#x} is not recorded");
        }
        for record in &records {
            assert!(self.model.faults.contains(record), "fault {record:#x} of no message");
        }
        // What was cleared is forgotten.
        self.model.faults.retain(|record| records.contains(record));
    }

    /// The local APICs have requested what was delivered to them.
    fn check_requested(&mut self) {
        for (cpu, requested) in self.machine.0.sim.vcpus().iter().zip(&mut self.model.irr) {
            let irr = cpu.with_lapic(|lapic| lapic.save().irr);
            let found: BTreeSet<u8> =
                (0..=255).filter(|&vector: &u8| irr[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0).collect();
            assert!(found.is_superset(requested), "a vector that was accepted is not requested");
            // Those that arbitration has brought.
            *requested = found;
        }
    }
}
