//! The fabric and its model beside each other: a step is done to the one, and what was seen is taken to the other.

use super::machine::{Machine, Seen, Shared};
use super::model::{Followed, Model};
use super::schedule::Step;
use super::*;
use crate::Number;
use crate::ioapic::{LEVEL, MASKED};
use irqfabric::chip::ioapic::{Ioapic, Version};
use irqfabric::chip::pic::{PORTS, Pic};
use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS, MsiVectors};
use irqfabric::hv::{External, Sim, Takes, Vcpu as _};
use irqfabric::line::{Level, LineSource};
use irqfabric::msg::Masking;
use irqfabric::remap::vtd::{Faults, Vtd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

pub(super) struct World {
    pub(super) machine: Shared,
    pub(super) fabric: Fabric,
    pub(super) sources: Vec<LineSource>,
    pub(super) told: Vec<Arc<AtomicUsize>>,
    pub(super) vectors: Vec<MsiVectors>,
    pub(super) model: Model,
    pub(super) waits: u32,
}

impl World {
    pub(super) fn new() -> Self {
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
        let model = Model::new(machine.clone());
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
    pub(super) fn step(&mut self, step: &Step) {
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
}
