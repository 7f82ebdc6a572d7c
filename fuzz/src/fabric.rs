//! The whole fabric on simulated processors, under any schedule of devices, guest accesses, ends of interrupts, masks and
//! invalidations, on one thread.
//!
//! The oracle follows the machine a second time: the redirection entries, the wires, the PIC (as the `pic` target does),
//! the vectors and, by the second implementation of the translation, what each message becomes. It says which interrupts
//! a step delivers, in their order, and what is blocked; the backend must have seen these and no others. At the moment
//! at which a wait descriptor's status is written every vector is signalled: none may go by what was invalidated.

mod checks;
mod machine;
mod model;
mod schedule;
mod world;

use crate::steps;
use arbitrary::Unstructured;
use irqfabric::msg::RequesterId;
use schedule::Step;
use world::World;

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
