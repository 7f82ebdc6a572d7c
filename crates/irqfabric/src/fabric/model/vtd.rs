//! A VT-d unit whose queue is run by whoever comes: one processor moves a vector and waits, beside a device that signals and
//! another processor that writes registers, which may find the queue to be run or somebody running it.
//!
//! When the threads are done every effect has been performed, whoever did it; and what was replaced was not used once the
//! guest was told so.

use super::*;
use crate::memory::{Memory, OutsideMemory};
use crate::remap::vtd::{Faults, Vtd};

const UNIT: u64 = 0xfed9_0000;
const TABLE: u64 = 0;
const OTHER_TABLE: u64 = 0x1000;
const RING: u64 = 0x2000;
const STATUS: u64 = 0x3000;

const QIE: u32 = 1 << 26;
const IRE: u32 = 1 << 25;
const SIRTP: u32 = 1 << 24;

#[derive(Clone)]
struct Ram(Arc<crate::sync::Mutex<Vec<u8>>>);

impl Memory for Ram {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
        let start = address as usize;
        data.copy_from_slice(&self.0.lock()[start..start + data.len()]);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        let start = address as usize;
        self.0.lock()[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}

struct Unit {
    machine: Machine,
    ram: Ram,
}

impl Unit {
    /// Vector 0 is hot, by entry 0 of a table of two.
    fn new(variant: Variant) -> Self {
        let ram = Ram(Arc::new(crate::sync::Mutex::new(vec![0; 0x3010])));
        let memory = ram.clone();
        let machine = Machine::with(variant, Irtes::default(), |builder, _| {
            builder.memory(memory).vtd(UNIT, Vtd::default(), Faults::default())
        });
        let unit = Self { machine, ram };
        unit.set(TABLE, original(ENTRY));
        unit.set(OTHER_TABLE, changed(ENTRY));
        unit.put(0, 4 | 1 << 4);
        unit.put(1, 5 | 1 << 5 | 1 << 32 | u128::from(STATUS) << 64);
        unit.write64(0x90, RING);
        unit.write(0x18, QIE);
        unit.write64(0xb8, TABLE | 1 << 11);
        unit.write(0x18, QIE | SIRTP);
        unit.write(0x18, QIE | IRE);
        unit.machine.vectors.program(0, WINDOW | 1 << 4, 0).unwrap();
        unit.machine.hot(0);
        unit
    }

    fn set(&self, table: u64, what: What) {
        let entry = 1 | u128::from(what & 0xff) << 16 | u128::from(what >> 8) << 32;
        self.ram.write(table, &entry.to_le_bytes()).unwrap();
    }

    fn put(&self, place: u64, descriptor: u128) {
        self.ram.write(RING + 16 * place, &descriptor.to_le_bytes()).unwrap();
    }

    fn write(&self, offset: u64, value: u32) {
        assert!(self.machine.fabric.mmio_write(UNIT + offset, &value.to_le_bytes()));
    }

    fn write64(&self, offset: u64, value: u64) {
        assert!(self.machine.fabric.mmio_write(UNIT + offset, &value.to_le_bytes()));
    }

    fn status(&self) -> u32 {
        let mut data = [0; 4];
        assert!(self.machine.fabric.mmio_read(UNIT + 0x1c, &mut data));
        u32::from_le_bytes(data)
    }

    fn is_done(&self) -> bool {
        self.ram.0.lock()[STATUS as usize] == 1
    }

    /// The guest has seen that it is done.
    fn replaced(&self) {
        self.machine.kernel.log(Seen::Old(original(ENTRY)));
    }

    fn finish(&self) {
        self.machine.finish();
        // Delivered once more, now that everything is over: by the new entry.
        self.replaced();
        self.machine.kernel.log(Seen::Signalled(0));
        self.machine.vectors[0].signal();
        self.machine.finish();
    }
}

type UnitAct = fn(&Unit);

fn move_by_queue(unit: &Unit) {
    unit.set(TABLE, changed(ENTRY));
    unit.write(0x88, 0x20);
    if unit.is_done() {
        unit.replaced();
    }
}

/// The device goes on when the guest has seen that it is done, or has not.
fn move_then_fire(unit: &Unit) {
    move_by_queue(unit);
    fire(unit);
}

fn move_by_table(unit: &Unit) {
    unit.write64(0xb8, OTHER_TABLE | 1 << 11);
    unit.write(0x18, QIE | IRE | SIRTP);
    if unit.status() & SIRTP != 0 {
        unit.replaced();
    }
}

/// Another processor, which may become the one that runs the queue.
fn write_register(unit: &Unit) {
    unit.write(0x38, 1 << 31);
}

fn fire(unit: &Unit) {
    unit.machine.write(0);
}

fn signal(unit: &Unit) {
    unit.machine.kernel.log(Seen::Signalled(0));
    unit.machine.vectors[0].signal();
}

fn cool_down(unit: &Unit) {
    unit.machine.vector(0).detach(Event::Evict);
}

fn unit(begin: Option<UnitAct>, threads: &'static [UnitAct]) {
    let preemptions = if threads.len() > 2 { PREEMPTIONS } else { PREEMPTIONS_OF_PINS };
    explore(Some(preemptions), move |variant| {
        let unit = Arc::new(Unit::new(variant));
        if let Some(begin) = begin {
            begin(&unit);
        }
        let spawn = |&act: &UnitAct| {
            let unit = unit.clone();
            loom::thread::spawn(move || act(&unit))
        };
        let threads: Vec<_> = threads.iter().map(spawn).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        unit.finish();
        assert!(unit.is_done() || unit.status() & SIRTP != 0, "nobody has performed it");
    });
}

#[test]
fn move_and_fire() {
    unit(None, &[move_by_queue, fire]);
}

#[test]
fn move_and_signal() {
    unit(Some(cool_down), &[move_by_queue, signal]);
}

#[test]
fn move_then_fire_and_write_register() {
    unit(None, &[move_then_fire, write_register]);
}

#[test]
fn move_write_register_and_fire() {
    unit(None, &[move_by_queue, write_register, fire]);
}

#[test]
fn move_by_another_table_and_fire() {
    unit(None, &[move_by_table, fire]);
}

#[test]
fn move_by_another_table_write_register_and_signal() {
    unit(None, &[move_by_table, write_register, signal]);
}
