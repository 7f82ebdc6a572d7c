//! The pure state machines, without a hypervisor: `cargo bench -p irqfabric`.
//!
//! They do no I/O, so these are figures of the code alone; `irqfabric bench` has those of the whole on real KVM.

use criterion::{Criterion, criterion_group, criterion_main};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::line::Level;
use irqfabric::memory::{Memory, OutsideMemory};
use irqfabric::msg::{Acceptance, DestinationFormat, Message, RequesterId};
use irqfabric::pci::msix::Msix;
use irqfabric::remap::vtd::{Effect, Faults, Tables, Vtd};
use std::hint::black_box;

/// What a redirection entry says: edge, not masked, this vector.
const VECTOR: u32 = 0x31;

fn ioapic(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("ioapic");
    let mut chip = Ioapic::default();
    let _ = chip.write(0x00, &0x18u32.to_le_bytes());
    let _ = chip.write(0x10, &VECTOR.to_le_bytes());
    group.bench_function("read of an entry", |bencher| {
        let mut data = [0; 4];
        bencher.iter(|| black_box(&chip).read(0x10, black_box(&mut data)));
    });
    group.bench_function("write of an entry", |bencher| {
        let mut vector = VECTOR;
        bencher.iter(|| {
            vector ^= 1;
            black_box(&mut chip).write(0x10, &vector.to_le_bytes())
        });
    });
    let _ = chip.write(0x10, &VECTOR.to_le_bytes());
    group.bench_function("edge of a pin, delivered", |bencher| {
        bencher.iter(|| {
            let chip = black_box(&mut chip);
            let message = chip.set(4, Level::High).then(|| chip.due(4)).flatten();
            chip.delivered(4, Acceptance::Accepted);
            let _ = chip.set(4, Level::Low);
            message
        });
    });
    group.bench_function("level that a pin has", |bencher| {
        bencher.iter(|| black_box(&mut chip).set(4, Level::Low));
    });
    group.finish();
}

fn msix(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("msix");
    let Ok(mut msix) = Msix::new(2048, 0) else { return };
    // Message control: enable.
    let _ = msix.write(2, &0x8000u16.to_le_bytes());
    group.bench_function("read of the table", |bencher| {
        let mut data = [0; 4];
        bencher.iter(|| black_box(&msix).read_table(black_box(16 * 1000 + 8), black_box(&mut data)));
    });
    group.bench_function("write of a message's data", |bencher| {
        let mut vector = VECTOR;
        bencher.iter(|| {
            vector ^= 1;
            black_box(&mut msix).write_table(black_box(16 * 1000 + 8), &vector.to_le_bytes())
        });
    });
    group.bench_function("mask and unmask of a vector", |bencher| {
        bencher.iter(|| {
            let masked = black_box(&mut msix).write_table(black_box(16 * 1000 + 12), &1u32.to_le_bytes());
            (masked, black_box(&mut msix).write_table(black_box(16 * 1000 + 12), &0u32.to_le_bytes()))
        });
    });
    group.finish();
}

/// A remapping table, and nothing else, at guest address 0.
struct Table(Vec<u8>);

/// As many entries as a table can have: a mebibyte.
const ENTRIES: u32 = 1 << 16;

impl Table {
    /// Each entry present, fixed, edge, with some vector.
    fn new() -> Self {
        let entry = |index: u32| (u64::from(0x30 + index % 0xc0) << 16 | 1).to_le_bytes();
        Self((0..ENTRIES).flat_map(|index| entry(index).into_iter().chain([0; 8])).collect())
    }

    /// What is in force once a guest has put it to use.
    fn tables(&self) -> Tables {
        let (mut vtd, mut faults) = (Vtd::default(), Faults::default());
        vtd.write(&mut faults, 0xb8, &0xfu64.to_le_bytes());
        vtd.write(&mut faults, 0x18, &(1u32 << 25 | 1 << 24).to_le_bytes());
        while let Some(effect) = vtd.next(&mut faults, self) {
            if let Effect::Retranslate(tables) = effect {
                assert_eq!(tables.translate(&remappable(1), self).map(|_| ()), Ok(()));
            }
        }
        vtd.tables()
    }
}

impl Memory for Table {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
        let outside = OutsideMemory { address, length: data.len() };
        let bytes = self.0.get(address as usize..).and_then(|bytes| bytes.get(..data.len()));
        data.copy_from_slice(bytes.ok_or(outside)?);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        Err(OutsideMemory { address, length: data.len() })
    }
}

/// A message in remappable format: bit 4 of the address, and the handle around it.
fn remappable(index: u32) -> Message {
    let address = 0xfee0_0010 | u64::from(index & 0x7fff) << 5 | u64::from(index >> 15) << 2;
    Message { address, data: 0, requester: RequesterId::new(0, 3, 0) }
}

fn translation(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("translation");
    let table = Table::new();
    let tables = table.tables();
    group.bench_function("none", |bencher| {
        let message = Message { address: 0xfee0_1000, data: VECTOR, requester: RequesterId::default() };
        bencher.iter(|| black_box(&message).decode(DestinationFormat::Eight));
    });
    group.bench_function("of a warm entry", |bencher| {
        let message = remappable(1000);
        bencher.iter(|| black_box(&tables).translate(black_box(&message), &table));
    });
    group.bench_function("of a cold entry", |bencher| {
        let mut index = 0;
        bencher.iter(|| {
            // Coprime to the number of entries, and pages apart: all have their turn, none is in the cache or foreseen.
            index = (index + 40_503) % ENTRIES;
            black_box(&tables).translate(&remappable(index), &table)
        });
    });
    group.finish();
}

criterion_group!(benches, ioapic, msix, translation);
criterion_main!(benches);
