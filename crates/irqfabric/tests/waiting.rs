//! Nobody waits for a table commit that does not concern it: shown by a backend whose commit waits until everybody else
//! has done what it came for. And nobody relies on a detach that another has still to do.

use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS, MsiVector, MsiVectors, Program, Promotion};
use irqfabric::hv::{Capacity, HvError, Hypervisor, Route};
use irqfabric::line::LineSource;
use irqfabric::msg::{Acceptance, Interrupt, Masking, Message, RequesterId};
use irqfabric::remap::{Cookie, Entries, Fault, Refusal, Remapper, Target, Translation, Untranslated};
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// Only a deadlock takes so long.
const DEADLOCK: Duration = Duration::from_secs(60);

const LEVEL: u32 = 1 << 15;

/// Counts deliveries by vector; its commits can be held, and its detaches of some eventfds.
#[derive(Default)]
struct Backend {
    delivered: Mutex<BTreeMap<u8, u64>>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    held: Vec<RawFd>,
    waiting: usize,
}

impl Backend {
    fn close(&self) {
        self.gate.lock().unwrap().closed = true;
    }

    fn open(&self) {
        self.gate.lock().unwrap().closed = false;
        self.changed.notify_all();
    }

    /// Holds detaches of these eventfds, and no others from now on.
    fn hold_detaches(&self, eventfds: &[&MsiVector]) {
        let raw = |vector: &&MsiVector| vector.eventfd().unwrap().as_raw_fd();
        self.gate.lock().unwrap().held = eventfds.iter().map(raw).collect();
        self.changed.notify_all();
    }

    fn wait_for(&self, waiting: usize) {
        let gate = self.gate.lock().unwrap();
        let (_gate, waited) = self.changed.wait_timeout_while(gate, DEADLOCK, |gate| gate.waiting < waiting).unwrap();
        assert!(!waited.timed_out(), "nobody commits or detaches");
    }

    fn delivered(&self, vector: u8) -> u64 {
        self.delivered.lock().unwrap().get(&vector).copied().unwrap_or_default()
    }
}

impl Hypervisor for Backend {
    fn start(&self, _: u32) -> Result<Capacity, HvError> {
        Ok(Capacity { gsis: 256, ..Capacity::default() })
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        *self.delivered.lock().unwrap().entry(interrupt.vector).or_default() += 1;
        Ok(Acceptance::Accepted)
    }

    fn commit(&self, _: &[Route]) -> Result<(), HvError> {
        let mut gate = self.gate.lock().unwrap();
        gate.waiting += 1;
        self.changed.notify_all();
        self.changed.wait_while(gate, |gate| gate.closed).unwrap().waiting -= 1;
        Ok(())
    }

    fn attach(&self, _: u32, _: &EventFd) -> Result<(), HvError> {
        Ok(())
    }

    fn detach(&self, _: u32, eventfd: &EventFd) -> Result<(), HvError> {
        let mut gate = self.gate.lock().unwrap();
        gate.waiting += 1;
        self.changed.notify_all();
        self.changed.wait_while(gate, |gate| gate.held.contains(&eventfd.as_raw_fd())).unwrap().waiting -= 1;
        Ok(())
    }
}

/// Its one entry, the message with data [`MOVED`], is what the test makes it; all other messages say themselves what they are.
#[derive(Clone)]
struct Entry(Arc<AtomicU8>);

impl Remapper for Entry {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        if message.data != MOVED {
            return Untranslated.translate(message);
        }
        let interrupt = Interrupt { vector: self.0.load(Relaxed), ..Interrupt::default() };
        Ok(Translation { target: Target::Interrupt(interrupt), cookie: Some(Cookie(MOVED)) })
    }
}

/// Edge on pin 4, levels on pins 10 (its route parked, in service) and 11 (never fired); four in-process vectors, two with
/// eventfds that are hot, two that are cold.
struct Machine {
    backend: Arc<Backend>,
    fabric: Fabric,
    entry: Entry,
    edge: LineSource,
    level: LineSource,
    other_level: LineSource,
    vectors: MsiVectors,
}

const HOT: Range<usize> = 4..6;
const COLD: Range<usize> = 6..8;

/// The last of the hot ones.
const MOVED: u32 = 0x55;

/// To vectors 0x50 and up.
fn programs(indexes: Range<usize>) -> Vec<Program> {
    indexes.map(|index| Program { index, address: 0xfee0_0000, data: 0x50 + index as u32 }).collect()
}

impl Machine {
    fn new() -> Self {
        let (backend, entry) = (Arc::new(Backend::default()), Entry(Arc::new(AtomicU8::new(MOVED as u8))));
        let builder = Fabric::builder(backend.clone()).ioapic(Ioapic::default()).remapper(entry.clone());
        let fabric = builder.promotion(Promotion::Prefill).build().unwrap();
        let source = |gsi| fabric.line(gsi).unwrap().source("device");
        let (edge, level, other_level) = (source(4), source(10), source(11));
        let vectors = fabric.msi_vectors(RequesterId(8), 8);
        let machine = Self { backend, fabric, entry, edge, level, other_level, vectors };
        machine.program_pin(4, 0x31);
        machine.program_pin(10, LEVEL | 0x41);
        machine.program_pin(11, LEVEL | 0x42);
        machine.level.raise();
        HOT.for_each(|index| assert!(machine.vectors[index].eventfd().is_ok()));
        machine.vectors.program_all(&programs(0..6)).unwrap();
        HOT.for_each(|index| assert!(machine.vectors[index].is_hot()));
        machine
    }

    fn program_pin(&self, pin: u32, low: u32) {
        for (index, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, low)] {
            self.fabric.mmio_write(IOAPIC_ADDRESS, &index.to_le_bytes());
            self.fabric.mmio_write(IOAPIC_ADDRESS + 0x10, &value.to_le_bytes());
        }
    }

    /// While `commits` waits in its commit, each of `others` does what it came for, on a thread of its own; then the
    /// commit goes on.
    fn hold(&self, commits: impl FnOnce() + Send, others: &[(&'static str, &(dyn Fn() + Sync))]) {
        self.backend.close();
        let late = thread::scope(|scope| {
            scope.spawn(commits);
            self.backend.wait_for(1);
            let (done, all_done) = channel();
            for &(name, act) in others {
                let done = done.clone();
                scope.spawn(move || {
                    act();
                    // Nobody listens any more if it was late.
                    let _ = done.send(name);
                });
            }
            drop(done);
            let mut late: Vec<_> = others.iter().map(|&(name, _)| name).collect();
            while !late.is_empty() {
                match all_done.recv_timeout(DEADLOCK) {
                    Ok(name) => late.retain(|&other| other != name),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
            // Before anything is asserted: the scope waits for all of them.
            self.backend.open();
            late
        });
        assert_eq!(late, [""; 0], "these waited for the commit");
    }

    /// What no commit concerns: each comes back, and has done what it should.
    fn everything_else(&self, commits: impl FnOnce() + Send) {
        let signal = |index: usize| {
            let before = self.backend.delivered(0x50 + index as u8);
            (0..100).for_each(|_| self.vectors[index].signal());
            assert_eq!(self.backend.delivered(0x50 + index as u8) - before, 100);
        };
        let edge = || {
            let before = self.backend.delivered(0x31);
            (0..100).for_each(|_| self.edge.pulse());
            assert_eq!(self.backend.delivered(0x31) - before, 100);
        };
        let level = || {
            // Parked: raised, served and raised again.
            let before = self.backend.delivered(0x41);
            self.level.lower();
            self.fabric.end_of_interrupt(0x41);
            self.level.raise();
            assert_eq!(self.backend.delivered(0x41) - before, 1);
        };
        let registers = || {
            let mut data = [0; 4];
            for vector in 0x60..0x80 {
                self.program_pin(5, vector);
                assert!(self.fabric.mmio_read(IOAPIC_ADDRESS + 0x10, &mut data));
                assert_eq!(u32::from_le_bytes(data), vector);
            }
        };
        let mask = || {
            self.vectors.set_masking([HOT.start], Masking::Masked).unwrap();
            self.vectors.set_masking([HOT.start], Masking::Unmasked).unwrap();
            assert!(self.vectors[HOT.start].is_hot());
        };
        let program = || self.vectors.program_all(&programs(3..4)).unwrap();
        let looks = || assert_eq!((self.vectors.pending(5), self.vectors[5].stats().signalled), (false, 0));
        self.hold(
            commits,
            &[
                ("a vector's signal", &|| signal(0)),
                ("another vector's signal", &|| signal(1)),
                ("a third's", &|| signal(2)),
                ("an edge line", &edge),
                ("a level line whose route is parked, and its end of interrupt", &level),
                ("registers of another pin", &registers),
                ("a hot vector's mask and unmask", &mask),
                ("an in-process vector's programming", &program),
                ("a hot vector's PBA bit and statistics", &looks),
            ],
        );
    }
}

#[test]
fn while_a_level_pins_route_is_committed_everybody_else_goes_on() {
    let machine = Machine::new();
    machine.everything_else(|| machine.other_level.raise());
    assert_eq!(machine.backend.delivered(0x42), 1);
}

#[test]
fn while_vectors_are_promoted_everybody_else_goes_on() {
    let machine = Machine::new();
    COLD.for_each(|index| assert!(machine.vectors[index].eventfd().is_ok()));
    machine.everything_else(|| machine.vectors.program_all(&programs(COLD)).unwrap());
    COLD.for_each(|index| assert!(machine.vectors[index].is_hot()));
}

#[test]
fn while_vectors_are_promoted_they_can_be_signalled() {
    let machine = Machine::new();
    COLD.for_each(|index| assert!(machine.vectors[index].eventfd().is_ok()));
    let signal = || machine.vectors[6].signal();
    machine.hold(|| machine.vectors.program_all(&programs(COLD)).unwrap(), &[("its own signal", &signal)]);
    assert_eq!(machine.backend.delivered(0x56), 1);
}

#[test]
fn while_an_invalidation_commits_everybody_else_goes_on() {
    let machine = Machine::new();
    machine.entry.0.store(0x90, Relaxed);
    machine.everything_else(|| machine.fabric.invalidate(&Entries::Range(Cookie(MOVED)..=Cookie(MOVED))));
    assert!(machine.vectors[5].is_hot(), "its route was changed, not taken");
    machine.vectors[5].signal();
    assert_eq!(machine.backend.delivered(0x90), 1);
}

/// An entry for each message's data, until there is none any more.
#[derive(Clone, Default)]
struct Blocking(Arc<AtomicBool>);

impl Remapper for Blocking {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        if self.0.load(Relaxed) {
            return Err(Refusal::Blocked(Fault::default()));
        }
        Ok(Translation { cookie: Some(Cookie(message.data)), ..Untranslated.translate(message)? })
    }
}

#[test]
fn an_invalidation_relies_on_no_detach_that_two_others_have_still_to_do() {
    let (backend, blocking) = (Arc::new(Backend::default()), Blocking::default());
    let builder = Fabric::builder(backend.clone()).remapper(blocking.clone());
    let fabric = builder.promotion(Promotion::Prefill).build().unwrap();
    let vectors = fabric.msi_vectors(RequesterId(8), 3);
    assert!(vectors.iter().all(|vector| vector.eventfd().is_ok()));
    vectors.program_all(&programs(0..3)).unwrap();
    assert!(vectors.iter().all(MsiVector::is_hot));
    let from = |first: u32| Entries::Range(Cookie(0x50 + first)..=Cookie(0x52));
    blocking.0.store(true, Relaxed);
    backend.hold_detaches(&[&vectors[0], &vectors[1]]);
    let hot = thread::scope(|scope| {
        // The first has to detach all and waits at vector 0, the second the last two and waits at vector 1.
        for first in [0, 1] {
            let (fabric, entries) = (&fabric, from(first));
            scope.spawn(move || fabric.invalidate(&entries));
            backend.wait_for(first as usize + 1);
        }
        fabric.invalidate(&from(2));
        let hot = vectors[2].is_hot();
        backend.hold_detaches(&[]);
        hot
    });
    assert!(!hot, "the kernel delivers by an entry whose invalidation has returned");
}
