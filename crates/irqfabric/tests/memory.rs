//! What the library asks the allocator for: counted by the allocator.

use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::Fabric;
use irqfabric::hv::{Capacity, HvError, Hypervisor, Route};
use irqfabric::msg::{Acceptance, Interrupt, RequesterId};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, with a count of the bytes that each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

fn add(bytes: isize) {
    // A thread that ends frees what it held behind its thread-local storage: nobody counts that.
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: every call is passed on as it is, and so is the answer; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as isize);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        add(-(layout.size() as isize));
        // SAFETY: the caller's promise is the same, and `memory` is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is held once `make` has made it.
fn held<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    let made = make();
    (made, usize::try_from(HELD.get() - before).unwrap())
}

struct Nowhere;

impl Hypervisor for Nowhere {
    fn start(&self, _: u32) -> Result<Capacity, HvError> {
        Ok(Capacity::default())
    }

    fn deliver(&self, _: &Interrupt) -> Result<Acceptance, HvError> {
        Ok(Acceptance::Accepted)
    }

    fn commit(&self, _: &[Route]) -> Result<(), HvError> {
        Ok(())
    }
}

fn fabric(pins: usize) -> Fabric {
    Fabric::builder(Nowhere).ioapic(Ioapic::new(pins).unwrap()).build().unwrap()
}

#[test]
fn an_idle_vector_takes_no_more_than_128_bytes() {
    const COUNT: usize = 4000;
    let fabric = fabric(24);
    let (vectors, bytes) = held(|| fabric.msi_vectors(RequesterId::new(0, 3, 0), COUNT));
    assert!(bytes <= 128 * COUNT, "{} bytes each", bytes / COUNT);
    let ((), programmed) = held(|| {
        (0..COUNT).for_each(|index| vectors.program(index, 0xfee0_0000, 0x31).unwrap());
        vectors.iter().for_each(|vector| vector.signal());
    });
    assert_eq!(programmed, 0, "bytes more once they are programmed and have fired");
}

#[test]
fn a_pin_and_its_idle_line_take_no_more_than_256_bytes() {
    let (few, bytes_of_few) = held(|| fabric(24));
    let (many, bytes_of_many) = held(|| fabric(120));
    let each = (bytes_of_many - bytes_of_few) / 96;
    assert!(each <= 256, "{each} bytes each");
    drop((few, many));
}

#[test]
fn a_fabric_with_an_ioapic_takes_no_more_than_8_kib() {
    let (_fabric, bytes) = held(|| fabric(24));
    assert!(bytes <= 8 << 10, "{bytes} bytes");
}

#[test]
fn what_was_dropped_is_given_back() {
    let ((), bytes) = held(|| {
        let fabric = fabric(24);
        let vectors = fabric.msi_vectors(RequesterId::new(0, 3, 0), 100);
        let source = fabric.line(4).unwrap().source("device");
        source.pulse();
        drop((source, vectors));
    });
    assert_eq!(bytes, 0);
}
