//! The device as a driver sees it on virtio-mmio, a well-behaved one and others.

use super::*;
use irqfabric::line::{Level, Line, Pin};
use irqfabric::msg::Trigger;
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use virtio_bindings::virtio_mmio as register;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SECTORS: usize = 8;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x5000;
const STATUS: u64 = 0x6000;
const QUEUE_SIZE: u16 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

const NEEDS_RESET: u32 = 0x40;
const ALL_OK: u32 = 0xf;

static SERIAL: AtomicU32 = AtomicU32::new(0);

#[derive(Default)]
struct Lamp(AtomicBool);

impl Pin for Lamp {
    fn set(&self, level: Level) {
        self.0.store(level == Level::High, Ordering::Release);
    }
}

/// A disk of eight sectors, each filled with its number, and a driver for it.
struct Bench {
    path: PathBuf,
    memory: GuestMemoryMmap,
    device: Mmio,
    lamp: Arc<Lamp>,
    line: Line,
    submitted: u16,
}

/// One descriptor: address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

impl Bench {
    fn new(read_only: bool) -> Self {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("irqfabric-virtio-{}-{serial}", std::process::id()));
        let content: Vec<u8> = (0..SECTORS * 512).map(|at| (at / 512) as u8).collect();
        std::fs::write(&path, content).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let lamp = Arc::new(Lamp::default());
        let line = Line::new(vec![lamp.clone()]);
        let disk = Disk::open(&path, read_only, "the id").unwrap();
        let interrupt = Arc::new(LineInterrupt::new(line.source("disk"), Trigger::Level));
        let device = Mmio::new(Device::new(disk, memory.clone(), interrupt.clone()).unwrap(), interrupt);
        let mut bench = Self { path, memory, device, lamp, line, submitted: 0 };
        bench.start();
        bench
    }

    fn get(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.device.mmio_read(MmioAddress(0), register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, register: u32, value: u32) {
        self.device.mmio_write(MmioAddress(0), register.into(), &value.to_le_bytes());
    }

    /// From reset to DRIVER_OK.
    fn start(&mut self) {
        self.memory.write_slice(&[0; 0x1000], GuestAddress(AVAILABLE)).unwrap();
        self.memory.write_slice(&[0; 0x1000], GuestAddress(USED)).unwrap();
        self.submitted = 0;
        self.set(register::VIRTIO_MMIO_STATUS, 0);
        self.set(register::VIRTIO_MMIO_STATUS, 3);
        self.set(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.set(register::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        self.set(register::VIRTIO_MMIO_STATUS, 0xb);
        self.set(register::VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into());
        self.set(register::VIRTIO_MMIO_QUEUE_DESC_LOW, DESCRIPTORS as u32);
        self.set(register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAILABLE as u32);
        self.set(register::VIRTIO_MMIO_QUEUE_USED_LOW, USED as u32);
        self.set(register::VIRTIO_MMIO_QUEUE_READY, 1);
        self.set(register::VIRTIO_MMIO_STATUS, ALL_OK);
    }

    fn submit(&mut self, descriptors: &[Descriptor]) {
        for (&(address, length, flags, next), index) in descriptors.iter().zip(0..) {
            let at = DESCRIPTORS + index * 16;
            let words =
                u128::from(address) | u128::from(length) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
            self.memory.write_obj(words.to_le_bytes(), GuestAddress(at)).unwrap();
        }
        let slot = AVAILABLE + 4 + 2 * u64::from(self.submitted % QUEUE_SIZE);
        self.memory.write_obj(0u16, GuestAddress(slot)).unwrap();
        self.submitted += 1;
        self.announce(self.submitted);
    }

    fn announce(&self, index: u16) {
        self.memory.write_obj(index, GuestAddress(AVAILABLE + 2)).unwrap();
        self.set(register::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    }

    fn wait(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !reached(self) {
            assert!(began.elapsed() < Duration::from_secs(10), "{what} never came");
            std::thread::yield_now();
        }
    }

    fn used(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// A whole request, as Linux lays it out. The answer is the status byte.
    fn request(&mut self, kind: u32, sector: u64, length: u32) -> u8 {
        let header = u128::from(kind) | u128::from(sector) << 64;
        self.memory.write_obj(header.to_le_bytes(), GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        let direction = if kind == 1 { 0 } else { WRITE };
        self.submit(&[(HEADER, 16, NEXT, 1), (DATA, length, NEXT | direction, 2), (STATUS, 1, WRITE, 0)]);
        self.wait("an answer", |bench| bench.used() == bench.submitted);
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn requests_reach_the_file_and_come_back() {
    let mut bench = Bench::new(false);
    assert_eq!(bench.request(0, 3, 512), 0);
    assert_eq!(bench.memory.read_obj::<[u8; 4]>(GuestAddress(DATA)).unwrap(), [3; 4]);
    bench.memory.write_slice(&[0x5a; 512], GuestAddress(DATA)).unwrap();
    assert_eq!((bench.request(1, 7, 512), bench.request(4, 0, 512)), (0, 0));
    let mut file = std::fs::File::open(&bench.path).unwrap();
    file.seek(std::io::SeekFrom::Start(7 * 512)).unwrap();
    let mut sector = Vec::new();
    file.read_to_end(&mut sector).unwrap();
    assert_eq!(sector, [0x5a; 512]);
    assert_eq!(bench.request(8, 0, 20), 0);
    assert_eq!(&bench.memory.read_obj::<[u8; 6]>(GuestAddress(DATA)).unwrap(), b"the id");
}

#[test]
fn the_line_is_high_until_the_driver_acknowledges() {
    let mut bench = Bench::new(false);
    bench.request(0, 0, 512);
    bench.wait("the interrupt", |bench| bench.lamp.0.load(Ordering::Acquire));
    assert_eq!(bench.get(register::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    bench.set(register::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(bench.line.level(), Level::Low);
}

#[test]
fn what_is_not_on_the_disk_is_an_error_and_no_access() {
    const FAILED: u8 = 1;
    const UNSUPPORTED: u8 = 2;
    let mut bench = Bench::new(true);
    assert_eq!(bench.request(0, 8, 512), FAILED);
    assert_eq!(bench.request(0, u64::MAX, 512), FAILED);
    assert_eq!(bench.request(0, 0, 100), FAILED);
    assert_eq!(bench.request(1, 0, 512), FAILED, "it is read-only");
    assert_eq!(bench.request(77, 0, 512), UNSUPPORTED);
    bench.set(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
    assert_eq!(bench.get(register::VIRTIO_MMIO_DEVICE_FEATURES) >> 5 & 1, 1);
}

#[test]
fn chains_that_make_no_sense_are_given_back() {
    let mut bench = Bench::new(false);
    let chains: [&[Descriptor]; 7] = [
        &[(u64::MAX, u32::MAX, WRITE, 0)],
        &[(0x1000_0000, 16, NEXT, 1), (DATA, 512, WRITE, 0)],
        &[(HEADER, 16, NEXT, 0)],
        &[(HEADER, 16, NEXT, 999)],
        &[(HEADER, 0, 0, 0)],
        &[(STATUS, 1, WRITE, 0)],
        &[(DATA, 512, WRITE | NEXT, 1), (HEADER, 16, 0, 0)],
    ];
    for chain in chains {
        bench.submit(chain);
        bench.wait("the chain", |bench| bench.used() == bench.submitted);
    }
    assert_eq!(bench.request(0, 0, 512), 0, "and the device lives on");
}

#[test]
fn a_broken_queue_stops_the_device_until_it_is_reset() {
    let mut bench = Bench::new(false);
    bench.announce(5000);
    bench.wait("NEEDS_RESET", |bench| bench.get(register::VIRTIO_MMIO_STATUS) & NEEDS_RESET != 0);
    bench.start();
    assert_eq!(bench.get(register::VIRTIO_MMIO_STATUS), ALL_OK);
    assert_eq!(bench.request(0, 0, 512), 0);
}

#[test]
fn a_driver_that_accepts_what_was_not_offered_gets_no_features_ok() {
    let bench = Bench::new(false);
    for (selector, features) in [(0, 1 << 13), (1, 0)] {
        bench.set(register::VIRTIO_MMIO_STATUS, 0);
        bench.set(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, selector);
        bench.set(register::VIRTIO_MMIO_DRIVER_FEATURES, features);
        bench.set(register::VIRTIO_MMIO_STATUS, 0xb);
        assert_eq!(bench.get(register::VIRTIO_MMIO_STATUS), 3);
    }
}

#[test]
fn no_sequence_of_accesses_breaks_it() {
    let mut bench = Bench::new(false);
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..50_000 {
        let (offset, size) = (next() % SIZE, 1usize << (next() % 4));
        let mut data = next().to_le_bytes();
        // Small values and addresses inside memory come as often as wild ones.
        if next() % 2 == 0 {
            data[2..].fill(0);
        }
        let offset = if next() % 2 == 0 { offset & !3 } else { offset };
        match next() % 4 {
            0 => bench.device.mmio_read(MmioAddress(0), offset, &mut data[..size]),
            _ => bench.device.mmio_write(MmioAddress(0), offset, &data[..size]),
        }
    }
    bench.start();
    assert_eq!(bench.request(0, 1, 512), 0);
}

#[test]
fn what_cannot_be_a_disk_is_refused_in_a_sentence() {
    let refusal = |path: &std::path::Path| Disk::open(path, true, "").unwrap_err().to_string();
    assert!(refusal(&std::env::temp_dir()).contains("neither a file nor a block device"));
    let path = std::env::temp_dir().join(format!("irqfabric-short-{}", std::process::id()));
    std::fs::File::create(&path).unwrap().write_all(&[0; 511]).unwrap();
    assert!(refusal(&path).contains("not even one sector"));
    std::fs::remove_file(&path).unwrap();
    assert!(refusal(&path).contains("No such file"));
}
