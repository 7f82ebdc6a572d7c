//! What the tests of the whole share: a backend that remembers, and a guest's hand on the IOAPIC.

#![allow(dead_code)] // Each test crate uses its part.

use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS};
use irqfabric::hv::{Counted, HvError, Hypervisor, Route};
use irqfabric::line::LineSource;
use irqfabric::msg::{Acceptance, Interrupt};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub const MASKED: u64 = 1 << 16;
pub const LEVEL: u64 = 1 << 15;
pub const REMOTE_IRR: u64 = 1 << 14;

/// The entry of a pin for vector and APIC id, edge and not masked.
pub const fn entry(vector: u8, destination: u8) -> u64 {
    (destination as u64) << 56 | vector as u64
}

/// A guest's accesses to the first IOAPIC.
pub trait Guest {
    fn select(&self, index: u8);
    fn write_register(&self, index: u8, value: u32);
    fn read_register(&self, index: u8) -> u32;
    fn program(&self, pin: u8, entry: u64);
    fn entry(&self, pin: u8) -> u64;
}

impl Guest for Fabric {
    fn select(&self, index: u8) {
        assert!(self.mmio_write(IOAPIC_ADDRESS, &u32::from(index).to_le_bytes()));
    }

    fn write_register(&self, index: u8, value: u32) {
        self.select(index);
        assert!(self.mmio_write(IOAPIC_ADDRESS + 0x10, &value.to_le_bytes()));
    }

    fn read_register(&self, index: u8) -> u32 {
        self.select(index);
        let mut data = [0; 4];
        assert!(self.mmio_read(IOAPIC_ADDRESS + 0x10, &mut data));
        u32::from_le_bytes(data)
    }

    /// As Linux does: the high half first, so that a pin is whole when it is unmasked.
    fn program(&self, pin: u8, entry: u64) {
        self.write_register(0x11 + 2 * pin, (entry >> 32) as u32);
        self.write_register(0x10 + 2 * pin, entry as u32);
    }

    fn entry(&self, pin: u8) -> u64 {
        u64::from(self.read_register(0x11 + 2 * pin)) << 32 | u64::from(self.read_register(0x10 + 2 * pin))
    }
}

/// A call to the backend.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Deliver(Interrupt),
    Commit(Vec<Route>),
}

/// A backend that remembers its calls in their order, refuses when told to, and can hold a commit at a barrier.
#[derive(Default)]
pub struct Recorder {
    state: Mutex<Recorded>,
    changed: Condvar,
}

#[derive(Default)]
struct Recorded {
    calls: Vec<Call>,
    table: Vec<Route>,
    refuses: bool,
    fails_commits: bool,
    holds_commits: bool,
    held: usize,
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The calls since the last time.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }

    /// The vectors delivered since the last time.
    pub fn take_vectors(&self) -> Vec<u8> {
        let calls = self.take().into_iter();
        calls
            .filter_map(|call| if let Call::Deliver(interrupt) = call { Some(interrupt.vector) } else { None })
            .collect()
    }

    /// The table in force.
    pub fn table(&self) -> Vec<Route> {
        self.state.lock().unwrap().table.clone()
    }

    pub fn refuse(&self, refuses: bool) {
        self.state.lock().unwrap().refuses = refuses;
    }

    pub fn fail_commits(&self, fails: bool) {
        self.state.lock().unwrap().fails_commits = fails;
    }

    /// From now on commits wait, until they are let go.
    pub fn hold_commits(&self, holds: bool) {
        self.state.lock().unwrap().holds_commits = holds;
        self.changed.notify_all();
    }

    /// Waits until `count` commits are held.
    pub fn wait_held(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let waited = self.changed.wait_timeout_while(state, Duration::from_secs(30), |state| state.held < count);
        assert!(!waited.unwrap().1.timed_out(), "no commit came to be held");
    }
}

impl Hypervisor for Recorder {
    fn start(&self, _pins: u32) -> Result<(), HvError> {
        Ok(())
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        let mut state = self.state.lock().unwrap();
        state.calls.push(Call::Deliver(*interrupt));
        Ok(if state.refuses { Acceptance::Refused } else { Acceptance::Accepted })
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        let mut state = self.state.lock().unwrap();
        state.held += 1;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.holds_commits).unwrap();
        state.held -= 1;
        if state.fails_commits {
            let source = std::io::ErrorKind::OutOfMemory.into();
            return Err(HvError::Call { call: "KVM_SET_GSI_ROUTING", source });
        }
        state.calls.push(Call::Commit(routes.to_vec()));
        state.table = routes.to_vec();
        Ok(())
    }
}

/// What a machine of 24 pins and two enabled local APICs, ids 0 and 1, may spend on table commits: asserted on every
/// backend alike.
pub fn assert_table_commits<H: Hypervisor + 'static>(counted: Arc<Counted<H>>, prepare: impl FnOnce()) {
    let fabric = Fabric::builder(counted.clone()).ioapic(Ioapic::default()).build().unwrap();
    prepare();
    let commits = || counted.calls().commits;
    let serve = |source: &LineSource, vector: u8| {
        source.raise();
        source.lower();
        fabric.end_of_interrupt(vector);
    };
    let sources: Vec<_> = (0..24).map(|gsi| fabric.line(gsi).unwrap().source("device")).collect();
    let entry_of = |pin: u8, destination| entry(0x40 + pin, destination) | if pin < 12 { 0 } else { LEVEL };

    for pin in 0..24 {
        fabric.program(pin, MASKED);
    }
    for pin in 0..24 {
        fabric.program(pin, entry_of(pin, 0) | MASKED);
        fabric.program(pin, entry_of(pin, 0));
    }
    assert_eq!(commits(), 0, "programming and unmasking 24 pins, none of which fires");

    for (pin, source) in (0..12).zip(&sources) {
        serve(source, 0x40 + pin);
        fabric.program(pin, entry_of(pin, 1));
        serve(source, 0x40 + pin);
    }
    assert_eq!(commits(), 0, "edge pins, always");

    serve(&sources[20], 0x54);
    assert_eq!(commits(), 1, "a level pin by its first delivery");
    for _ in 0..10 {
        fabric.program(20, entry_of(20, 0) | MASKED);
        fabric.program(20, entry_of(20, 0));
        serve(&sources[20], 0x54);
    }
    assert_eq!(commits(), 1, "masking, unmasking and firing it again");
    for step in 0..100 {
        fabric.program(20, entry_of(20, step & 1) | MASKED);
        fabric.program(20, entry_of(20, step & 1));
    }
    assert_eq!(commits(), 1, "100 moves to another CPU without an interrupt");
    for step in 0..100 {
        fabric.program(20, entry_of(20, step & 1));
        serve(&sources[20], 0x54);
    }
    let moved = commits() - 1;
    assert!(moved <= 100, "100 moves with an interrupt after each took {moved}");
    let calls = counted.calls();
    assert_eq!((calls.deliveries, calls.refused), (24 + 1 + 10 + 100, 0), "and every one of them was delivered");
}
