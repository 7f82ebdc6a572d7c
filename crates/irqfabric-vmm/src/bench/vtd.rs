//! A guest with a VT-d unit: its table, its ring of descriptors, and the status that it waits for.

use irqfabric::fabric::{Fabric, FabricBuilder};
use irqfabric::remap::vtd::{Faults, Vtd};
use std::cell::Cell;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the unit is.
const UNIT: u64 = 0xfed9_0000;
const GCMD: u64 = UNIT + 0x18;
const IQT: u64 = UNIT + 0x88;
const IQA: u64 = UNIT + 0x90;
const IRTA: u64 = UNIT + 0xb8;

const STATUS: u64 = 0x1000;
const TABLE: u64 = 0x1_0000;
/// 4,096 entries.
const TABLE_SIZE: u64 = 11;
/// 256 descriptors.
const RING: u64 = 0x2_0000;
const RING_BYTES: u64 = 0x1000;
const MEMORY: usize = 0x3_0000;

/// The guest's side of the unit.
pub struct Guest {
    memory: GuestMemoryMmap,
    tail: Cell<u64>,
}

impl Guest {
    pub fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]);
        Self { memory: memory.expect("a host has room for three pages of tables"), tail: Cell::new(0) }
    }

    /// A machine with the unit.
    pub fn unit(&self, builder: FabricBuilder) -> FabricBuilder {
        builder.memory(self.memory.clone()).vtd(UNIT, Vtd::default(), Faults::default())
    }

    /// As Linux does: the queue, the table with 32-bit destinations, remapping.
    pub fn enable(&self, fabric: &Fabric) {
        const QIE: u32 = 1 << 26;
        fabric.mmio_write(IQA, &RING.to_le_bytes());
        fabric.mmio_write(GCMD, &QIE.to_le_bytes());
        fabric.mmio_write(IRTA, &(TABLE | 1 << 11 | TABLE_SIZE).to_le_bytes());
        fabric.mmio_write(GCMD, &(QIE | 1 << 24).to_le_bytes());
        fabric.mmio_write(GCMD, &(QIE | 1 << 25).to_le_bytes());
    }

    /// Entry `index` stands for a vector of APIC id 0 from now on, once what was known of it is invalidated.
    pub fn set(&self, index: usize, vector: u8) {
        self.write(TABLE + 16 * index as u64, 1 | u128::from(vector) << 16);
    }

    /// The address that a message for an entry goes to; its data is 0.
    pub const fn address(index: usize) -> u64 {
        super::machine::ADDRESS | (index as u64) << 5 | 1 << 4
    }

    /// Invalidates the first entries, 2 to the power of `mask`, and sees that it is done.
    pub fn invalidate(&self, fabric: &Fabric, mask: u32) {
        self.write(STATUS, 0);
        self.put(4 | 1 << 4 | u128::from(mask) << 27);
        self.put(5 | 1 << 5 | 1 << 32 | u128::from(STATUS) << 64);
        fabric.mmio_write(IQT, &(self.tail.get() as u32).to_le_bytes());
        while self.memory.read_obj::<u32>(GuestAddress(STATUS)).is_ok_and(|status| status == 0) {
            std::hint::spin_loop();
        }
    }

    fn put(&self, descriptor: u128) {
        self.write(RING + self.tail.get(), descriptor);
        self.tail.set((self.tail.get() + 16) % RING_BYTES);
    }

    fn write(&self, address: u64, value: u128) {
        self.memory.write_obj(value, GuestAddress(address)).expect("all of it is memory");
    }
}
