//! A guest's hand on a VT-d unit: its table, its queue and its registers.

use irqfabric::fabric::Fabric;
use irqfabric::memory::{Memory, OutsideMemory};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// Where the unit is, its table of 65,536 entries, its ring, and the statuses that waits write.
pub const UNIT: u64 = 0xfed9_0000;
const TABLE: u64 = 0x10_0000;
const RING: u64 = 0x20_0000;
const STATUS: u64 = 0x1000;
const SIZE: usize = 0x30_0000;

pub const GCMD: u64 = 0x18;
pub const GSTS: u64 = 0x1c;
pub const FSTS: u64 = 0x34;
pub const FECTL: u64 = 0x38;
pub const IQH: u64 = 0x80;
pub const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
pub const IRTA: u64 = 0xb8;
/// The first fault recording register.
pub const FRCD: u64 = 0x220;

pub const QIE: u32 = 1 << 26;
pub const IRE: u32 = 1 << 25;
pub const SIRTP: u32 = 1 << 24;
pub const CFI: u32 = 1 << 23;

/// Memory that knows which thread has read how many descriptors of the ring.
#[derive(Clone)]
pub struct Ram(Arc<Shared>);

struct Shared {
    bytes: Mutex<Vec<u8>>,
    descriptors_read: Mutex<HashMap<ThreadId, usize>>,
}

impl Ram {
    pub fn new() -> Self {
        let shared = Shared { bytes: Mutex::new(vec![0; SIZE]), descriptors_read: Mutex::default() };
        Self(Arc::new(shared))
    }

    pub fn descriptors_read_here(&self) -> usize {
        self.0.descriptors_read.lock().unwrap().get(&thread::current().id()).copied().unwrap_or_default()
    }

    fn range(address: u64, length: usize) -> Result<std::ops::Range<usize>, OutsideMemory> {
        let outside = OutsideMemory { address, length };
        let start = usize::try_from(address).map_err(|_| outside)?;
        let end = start.checked_add(length).filter(|end| *end <= SIZE).ok_or(outside)?;
        Ok(start..end)
    }
}

impl Memory for Ram {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
        if address >= RING {
            *self.0.descriptors_read.lock().unwrap().entry(thread::current().id()).or_default() += 1;
        }
        data.copy_from_slice(&self.0.bytes.lock().unwrap()[Self::range(address, data.len())?]);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        self.0.bytes.lock().unwrap()[Self::range(address, data.len())?].copy_from_slice(data);
        Ok(())
    }
}

/// A guest that knows of the unit. Clones are its other processors.
#[derive(Clone)]
pub struct Driver {
    pub fabric: Fabric,
    pub ram: Ram,
    queue: Arc<Mutex<Tail>>,
    /// The lock that processors take to ask for something: the tail must not go back.
    asks: Arc<Mutex<()>>,
}

#[derive(Default)]
struct Tail {
    /// The next descriptor's place, and how many waits there were.
    place: u64,
    waits: u64,
}

/// As many as the ring has at its largest.
pub const DESCRIPTORS: u64 = 1 << 15;

/// An entry for anybody's message: vector and destination of a fixed, edge-triggered interrupt, in x2APIC mode.
pub fn irte(vector: u8, destination: u32) -> u128 {
    1 | u128::from(vector) << 16 | u128::from(destination) << 32
}

/// In an entry: level-triggered; faults are not recorded; for one requester only.
pub const TRIGGER_LEVEL: u128 = 1 << 4;
pub const FAULTS_SILENT: u128 = 1 << 1;
pub fn only_for(requester: u16) -> u128 {
    u128::from(requester) << 64 | 1 << 82
}

/// The message that asks for an entry: address and data.
pub fn remappable(index: u16) -> (u64, u32) {
    let index = u64::from(index);
    (0xfee0_0000 | (index & 0x7fff) << 5 | 1 << 4 | index >> 15 << 2, 0)
}

/// The redirection entry that asks for an entry; the vector field is for the end of interrupt only.
pub fn remappable_pin(index: u16, vector: u8) -> u64 {
    let index = u64::from(index);
    (index & 0x7fff) << 49 | 1 << 48 | index >> 15 << 11 | u64::from(vector)
}

impl Driver {
    pub fn new(fabric: Fabric, ram: Ram) -> Self {
        Self { fabric, ram, queue: Arc::default(), asks: Arc::default() }
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        assert!(self.fabric.mmio_read(UNIT + offset, &mut data));
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, value: u32) {
        assert!(self.fabric.mmio_write(UNIT + offset, &value.to_le_bytes()));
    }

    pub fn write64(&self, offset: u64, value: u64) {
        assert!(self.fabric.mmio_write(UNIT + offset, &value.to_le_bytes()));
    }

    /// As Linux does: the queue, the table with 32-bit destinations, remapping.
    pub fn enable(&self) {
        self.prepare(true);
        self.command(QIE | IRE, QIE | IRE | SIRTP);
    }

    /// Gives a command and waits for its status.
    pub fn command(&self, command: u32, status: u32) {
        const RTPS: u32 = 1 << 30;
        self.write(GCMD, command);
        let start = Instant::now();
        while self.read(GSTS) & !RTPS != status {
            assert!(start.elapsed() < Duration::from_secs(30), "{command:#x} leads to {:#x}", self.read(GSTS));
            thread::yield_now();
        }
    }

    /// All but IRE.
    pub fn prepare(&self, extended: bool) {
        self.write64(IQA, RING | 7);
        self.write(GCMD, QIE);
        self.write64(IRTA, TABLE | u64::from(extended) << 11 | 0xf);
        self.command(QIE | SIRTP, QIE | SIRTP);
    }

    pub fn set(&self, index: u16, entry: u128) {
        self.ram.write(TABLE + 16 * u64::from(index), &entry.to_le_bytes()).unwrap();
    }

    /// Switches the queue off and on again: it starts at the ring's beginning.
    pub fn restart_queue(&self) {
        self.write(GCMD, IRE);
        *self.queue.lock().unwrap() = Tail::default();
        self.write(IQT, 0);
        self.write(FSTS, 0x7f);
        self.write(GCMD, IRE | QIE);
    }

    /// Puts descriptors into the ring; the unit does not know yet.
    pub fn put(&self, descriptors: impl IntoIterator<Item = u128>) {
        let tail = &mut *self.queue.lock().unwrap();
        for descriptor in descriptors {
            self.ram.write(RING + 16 * (tail.place % DESCRIPTORS), &descriptor.to_le_bytes()).unwrap();
            tail.place += 1;
        }
    }

    /// Tells the unit of them.
    pub fn submit(&self) {
        let place = self.queue.lock().unwrap().place;
        self.write(IQT, (16 * (place % DESCRIPTORS)) as u32);
    }

    /// Puts a wait; the answer is for [`is_done`](Self::is_done).
    pub fn put_wait(&self) -> u64 {
        let wait = {
            let tail = &mut *self.queue.lock().unwrap();
            tail.waits += 1;
            tail.waits
        };
        let address = STATUS + 4 * (wait % 1024);
        self.ram.write(address, &[0; 4]).unwrap();
        self.put([5 | 1 << 5 | 1 << 32 | u128::from(address) << 64]);
        wait
    }

    pub fn is_done(&self, wait: u64) -> bool {
        let mut status = [0; 4];
        self.ram.read(STATUS + 4 * (wait % 1024), &mut status).unwrap();
        u32::from_le_bytes(status) == 1
    }

    pub fn wait_for(&self, wait: u64) {
        let start = Instant::now();
        while !self.is_done(wait) {
            assert!(start.elapsed() < Duration::from_secs(30), "the wait was never done");
            thread::yield_now();
        }
    }

    /// Invalidates and waits until the unit says that it is done.
    pub fn invalidate(&self, descriptor: u128) {
        let wait = {
            let _asks = self.asks.lock().unwrap();
            self.put([descriptor]);
            let wait = self.put_wait();
            self.submit();
            wait
        };
        self.wait_for(wait);
    }

    /// The faults that are recorded, reason and index, oldest first as long as there are no more than registers; they are
    /// cleared.
    pub fn take_faults(&self) -> Vec<(u8, u16)> {
        let registers = (0..8).map(|register| FRCD + 16 * register);
        let mut faults = Vec::new();
        for register in registers {
            let high = self.read(register + 12);
            if high >> 31 != 0 {
                faults.push((high as u8, (self.read(register + 4) >> 16) as u16));
                self.write(register + 12, 1 << 31);
            }
        }
        self.write(FSTS, 0x7f);
        faults
    }
}

/// The descriptor for 2^mask entries from `index` on, which is a multiple of that.
pub fn by_index(index: u16, mask: u32) -> u128 {
    4 | 1 << 4 | u128::from(mask) << 27 | u128::from(index) << 32
}

/// The descriptor for all entries.
pub const GLOBAL: u128 = 4;
