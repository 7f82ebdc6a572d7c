//! The vectors' protocol, and the parked routes', in every interleaving that loom finds.
//!
//! The code is the real one: `Vector`, `MsiVectors`, `Listener`, `GsiTable`, `promotion`, `IoapicPort`. The kernel's part is
//! [`crate::sync::kernel`]; its hypervisor takes each call as one step. The dispatcher's thread is played by the test
//! (`on_eventfd`, `promote`), epoll's answer is the kernel's to know; remapping is a table of entries that the guest changes.
//!
//! Two or three threads do one operation each to one vector, or one each to two vectors. Afterwards, alone, the dispatcher
//! turns until nothing is ready, the vectors are unmasked, cooled down and dropped; [`Machine::finish`] says what must hold.
//! Every model runs with the kernel's worker at once and as late as can be, and with a commit and a detach as
//! what `settle` finds cheaper.
//!
//! *Bounded:* three threads preempt each other at most [`PREEMPTIONS`] times, two about a pin [`PREEMPTIONS_OF_PINS`], two about a
//! vector as often as they can; `LOOM_MAX_PREEMPTIONS` sets another bound for all. A dispatcher's turn is one event; `side_by_side` stays on its thread. *Not seen by loom:* the counters (statistics), `Arc`'s counts, and
//! `OnceLock`s, which are set before the threads start.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p irqfabric --lib --no-default-features fabric::model
//! ```

use super::core::Core;
use super::promotion;
use super::vector::Vector;
use super::{Fabric, IOAPIC_ADDRESS, MsiVectors};
use crate::chip::ioapic::Ioapic;
use crate::hv::{Capacity, HvError, Hypervisor, Route, Target};
use crate::line::LineSource;
use crate::msg::{Acceptance, Interrupt, Masking, Message, RequesterId, Trigger};
use crate::remap::{self, Cookie, Entries, Fault, Refusal, Remapper, Translation};
use crate::route::Event;
use crate::sync::EventFd;
use crate::sync::kernel::{Kernel, Seen, What, Worker};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How often threads preempt each other in a model of three; LOOM_MAX_PREEMPTIONS overrides it.
const PREEMPTIONS: usize = 2;

/// And in one of two about a pin, whose registers take many steps to write.
const PREEMPTIONS_OF_PINS: usize = 4;

// The machine.

struct Hv(Arc<Kernel>);

fn call(source: std::io::Error) -> HvError {
    HvError::Call { call: "model", source }
}

fn what(interrupt: &Interrupt) -> What {
    (interrupt.destination as What) << 8 | What::from(interrupt.vector)
}

impl Hypervisor for Hv {
    fn start(&self, pins: u32) -> Result<Capacity, HvError> {
        Ok(Capacity { gsis: pins + GSIS, ..Capacity::default() })
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        let mut kernel = self.0.state();
        if interrupt.trigger == Trigger::Level {
            // The machine's only pin is GSI 0.
            assert_eq!(kernel.routes.get(&0), Some(&what(interrupt)), "a level is delivered with its route parked");
        }
        kernel.log.push(Seen::Delivered(what(interrupt)));
        Ok(Acceptance::Accepted)
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        let mut kernel = self.0.state();
        if kernel.refuses_tables {
            return Err(HvError::TooManyRoutes { routes: routes.len(), most: 0 });
        }
        let interrupt = |route: &Route| match route.target {
            Target::Interrupt(interrupt) => (route.gsi, what(&interrupt)),
            Target::Opaque(_) => unreachable!("no model has one"),
        };
        kernel.routes = routes.iter().map(interrupt).collect();
        Ok(())
    }

    fn attach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        self.0.attach(gsi, eventfd).map_err(call)
    }

    fn detach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        self.0.detach(gsi, eventfd).map_err(call)
    }
}

/// How many GSIs there are for vectors: two vectors compete for one.
const GSIS: u32 = 1;

/// The guest's remapping table: what messages with this data, less its upper half, become.
type Irtes = Arc<crate::sync::Mutex<BTreeMap<u8, What>>>;

struct Remapping(Irtes);

impl Remapper for Remapping {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        let index = message.data as u8;
        let what = *self.0.lock().get(&index).ok_or(Refusal::Blocked(Fault { reason: 0x22, ..Fault::default() }))?;
        let trigger = if message.data & 1 << 15 == 0 { Trigger::Edge } else { Trigger::Level };
        let interrupt =
            Interrupt { destination: u32::from(what >> 8), vector: what as u8, trigger, ..Interrupt::default() };
        Ok(Translation { target: remap::Target::Interrupt(interrupt), cookie: Some(Cookie(index.into())) })
    }
}

/// What entry `index` says before anybody changes it.
const fn original(index: u8) -> What {
    index as What
}

/// And after [`Machine::change`]: to another CPU.
const fn changed(index: u8) -> What {
    1 << 8 | index as What
}

/// Vector `index` is programmed to entry [`ENTRY`]` + index`, and to [`OTHER`]` + index` by [`program`].
const ENTRY: u8 = 0x40;
const OTHER: u8 = 0x50;
const WINDOW: u64 = 0xfee0_0000;

struct Machine {
    kernel: Arc<Kernel>,
    fabric: Fabric,
    irtes: Irtes,
    vectors: MsiVectors,
    source: LineSource,
    ioapic_lock: crate::sync::Mutex<()>,
}

/// What a model runs with.
#[derive(Clone, Copy, Debug)]
struct Variant {
    worker: Worker,
    /// Whether `settle` detaches what it must change, rather than committing.
    detaches: bool,
}

impl Machine {
    fn new(variant: Variant) -> Self {
        let kernel = Kernel::install(variant.worker);
        let irtes: Irtes = Arc::default();
        irtes.lock().extend((0..=0xff).map(|index| (index, original(index))));
        let fabric = Fabric::builder(Hv(kernel.clone())).ioapic(Ioapic::new(1).unwrap());
        let fabric = fabric.remapper(Remapping(irtes.clone())).build().unwrap();
        if variant.detaches {
            // Cheaper than any commit is expected to be; what it starts with is dearer than that of so small a table.
            fabric.0.core.detach_cost.learn(Duration::from_nanos(1));
        }
        let vectors = fabric.msi_vectors(RequesterId(8), 2);
        let source = fabric.line(0).unwrap().source("device");
        for (index, entry) in (ENTRY..).take(vectors.len()).enumerate() {
            // Eventfds are numbered as they are made.
            vectors[index].eventfd().unwrap();
            vectors.program(index, WINDOW, entry.into()).unwrap();
        }
        Self { kernel, fabric, irtes, vectors, source, ioapic_lock: crate::sync::Mutex::default() }
    }

    fn core(&self) -> &Arc<Core> {
        &self.fabric.0.core
    }

    fn vector(&self, index: usize) -> &Arc<Vector> {
        &self.vectors[index].0
    }

    fn write(&self, index: usize) {
        self.vectors[index].eventfd().unwrap().write(1).unwrap();
    }

    fn promote(&self, index: usize) {
        promotion::promote(self.core(), &[self.vector(index).clone()]);
    }

    fn turn(&self, index: usize) {
        self.vector(index).on_eventfd();
    }

    fn set_masking(&self, masking: Masking) {
        match masking {
            Masking::Masked => {
                self.vectors.set_masking([0], masking).unwrap();
                self.kernel.log(Seen::Masked(0));
            }
            Masking::Unmasked | Masking::Disabled => {
                self.kernel.log(Seen::Unmasking(0));
                self.vectors.set_masking([0], masking).unwrap();
            }
        }
    }

    fn change(&self, index: u8, to: Option<What>) {
        match to {
            Some(what) => self.irtes.lock().insert(index, what),
            None => self.irtes.lock().remove(&index),
        };
    }

    fn invalidate(&self, index: u8) {
        let cookie = Cookie(index.into());
        self.fabric.invalidate(&Entries::Range(cookie..=cookie));
    }

    /// The vector has fired once: its translation is cached.
    fn warm(&self, index: usize) {
        self.write(index);
        self.turn(index);
    }

    fn hot(&self, index: usize) {
        self.warm(index);
        self.promote(index);
        let irqfds = self.kernel.state().irqfds();
        assert_eq!(irqfds, 1);
    }

    /// Turns of the dispatcher until nothing is ready.
    fn drain(&self) {
        for _ in 0..4 {
            let ready = self.kernel.state().ready();
            ready.into_iter().for_each(|index| self.turn(index));
        }
        // Not with the lock held: what unwinds needs it.
        let ready = self.kernel.state().ready();
        assert_eq!(ready, [], "the dispatcher would spin");
    }

    /// The threads are done. What must hold at the end of every execution.
    fn finish(&self) {
        self.drain();
        self.kernel.settle();
        self.judge();
        if self.vector(0).state().masking == Masking::Masked {
            self.set_masking(Masking::Unmasked);
            self.drain();
            self.kernel.settle();
            self.judge();
        }
        self.nothing_is_lost();
        // A count that was delivered and left in an eventfd shows as a ghost once it is cold.
        for index in 0..self.vectors.len() {
            self.vector(index).detach(Event::Evict);
        }
        self.drain();
        self.judge();
    }

    fn blocked(&self) -> usize {
        self.core().counters.blocked.load(Relaxed) as usize
    }

    /// At every moment: no event was swallowed, none doubled, nothing old used, nothing delivered while masked.
    fn judge(&self) {
        let log = self.kernel.state().log.clone();
        let mut old = Vec::new();
        let (mut signalled, mut delivered) = ([0; 2], [0; 2]);
        let mut masked = [false; 2];
        for seen in &log {
            match *seen {
                Seen::Signalled(index) => signalled[index] += 1,
                Seen::Delivered(what) => {
                    let index = usize::from(what & 0xf);
                    delivered[index] += 1;
                    assert!(!old.contains(&what), "stale: {log:x?}");
                    assert!(!masked[index], "delivered while masked: {log:x?}");
                    assert!(delivered[index] <= signalled[index], "doubled: {log:x?}");
                }
                Seen::Swallowed => panic!("swallowed by an irqfd without a route: {log:x?}"),
                Seen::Old(what) => old.push(what),
                Seen::Masked(index) => masked[index] = true,
                Seen::Unmasking(index) => masked[index] = false,
            }
        }
        let total: usize = delivered.iter().sum::<usize>() + self.blocked();
        assert!(total <= signalled.iter().sum(), "doubled, as a fault: {log:x?}");
    }

    /// Every vector was delivered, or blocked, after its last signal.
    fn nothing_is_lost(&self) {
        let log = self.kernel.state().log.clone();
        let blocked = self.blocked();
        for index in 0..self.vectors.len() {
            let of_vector = |seen: &&Seen| match **seen {
                Seen::Signalled(of) => of == index,
                Seen::Delivered(what) => usize::from(what & 0xf) == index,
                _ => false,
            };
            let last = log.iter().rfind(of_vector);
            let lost = matches!(last, Some(Seen::Signalled(_))) && blocked == 0;
            assert!(!lost, "lost: {log:x?}");
        }
    }
}

/// The vectors are gone: so are their irqfds and GSIs.
fn nothing_leaks(kernel: &Kernel, core: &Core) {
    let irqfds = kernel.state().irqfds();
    assert_eq!(irqfds, 0, "an irqfd leaks");
    let gsis: Vec<_> = std::iter::from_fn(|| core.table.allocate()).collect();
    assert_eq!(gsis.len(), GSIS as usize, "a GSI leaks");
}

// What threads do.

type Act = fn(&Machine);

fn write(machine: &Machine) {
    machine.write(0);
}

/// The device is in this process.
fn signal(machine: &Machine) {
    machine.kernel.log(Seen::Signalled(0));
    machine.vectors[0].signal();
}

fn turn(machine: &Machine) {
    machine.turn(0);
}

fn promote(machine: &Machine) {
    machine.promote(0);
}

/// Takes the only GSI from the first vector, if that has it.
fn promote_other(machine: &Machine) {
    machine.promote(1);
}

fn evict(machine: &Machine) {
    machine.vector(0).detach(Event::Evict);
}

fn mask(machine: &Machine) {
    machine.set_masking(Masking::Masked);
}

fn unmask(machine: &Machine) {
    machine.set_masking(Masking::Unmasked);
}

fn mask_unmask(machine: &Machine) {
    mask(machine);
    unmask(machine);
}

fn pending(machine: &Machine) {
    machine.vectors.pending(0);
}

fn program_to(machine: &Machine, entry: u8) {
    machine.vectors.program(0, WINDOW, entry.into()).unwrap();
}

fn program(machine: &Machine) {
    program_to(machine, OTHER);
    machine.kernel.log(Seen::Old(original(ENTRY)));
    machine.kernel.log(Seen::Old(changed(ENTRY)));
}

/// As [`program`], to yet another entry; for beside it.
fn program_third(machine: &Machine) {
    program_to(machine, 0x60);
    machine.kernel.log(Seen::Old(original(ENTRY)));
}

/// To another entry that says the same as [`OTHER`].
fn program_alias(machine: &Machine) {
    machine.change(0x60, Some(original(OTHER)));
    program_third(machine);
}

fn invalidate_same(machine: &Machine) {
    machine.invalidate(ENTRY);
}

fn invalidate_changed(machine: &Machine) {
    machine.change(ENTRY, Some(changed(ENTRY)));
    machine.invalidate(ENTRY);
    machine.kernel.log(Seen::Old(original(ENTRY)));
}

fn invalidate_blocked(machine: &Machine) {
    machine.change(ENTRY, None);
    machine.invalidate(ENTRY);
    machine.kernel.log(Seen::Old(original(ENTRY)));
}

// How a vector begins.

fn cold(_: &Machine) {}

fn warm(machine: &Machine) {
    machine.warm(0);
}

fn hot(machine: &Machine) {
    machine.hot(0);
}

fn hot_then_masked(machine: &Machine) {
    machine.hot(0);
    mask(machine);
}

fn cold_masked(machine: &Machine) {
    machine.warm(0);
    mask(machine);
}

/// It fired while it was masked: pending, and the dispatcher looks away.
fn muted(machine: &Machine) {
    cold_masked(machine);
    machine.warm(0);
    machine.write(0);
}

fn hot_and_other_warm(machine: &Machine) {
    machine.hot(0);
    machine.warm(1);
}

fn hot_and_no_table_accepted(machine: &Machine) {
    machine.hot(0);
    machine.kernel.state().refuses_tables = true;
}

fn hot_then_masked_and_no_irqfd_accepted(machine: &Machine) {
    hot_then_masked(machine);
    machine.kernel.state().refuses_irqfds = true;
}

// Exploring.

/// All interleavings of `execution`, in each variant; says how many they were.
fn explore(preemptions: Option<usize>, execution: impl Fn(Variant) + Copy + Send + Sync + 'static) {
    let start = Instant::now();
    let executions = Arc::new(AtomicU64::new(0));
    for worker in [Worker::AtOnce, Worker::Late] {
        for detaches in [false, true] {
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = builder.preemption_bound.or(preemptions);
            builder.max_branches = 10_000;
            let executions = executions.clone();
            builder.check(move || {
                executions.fetch_add(1, Relaxed);
                execution(Variant { worker, detaches });
            });
        }
    }
    let preemptions = loom::model::Builder::new().preemption_bound.or(preemptions);
    let bound = preemptions.map_or_else(|| "no bound".into(), |most| format!("{most} preemptions"));
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    // Past libtest's capture: the figures are part of what a run shows.
    let (executions, elapsed) = (executions.load(Relaxed), start.elapsed());
    let _ = writeln!(std::io::stderr(), "{name}: {executions} executions, {bound}, {elapsed:.1?}");
}

fn vectors(begin: Act, threads: &'static [Act]) {
    let preemptions = (threads.len() > 2).then_some(PREEMPTIONS);
    explore(preemptions, move |variant| {
        let machine = Arc::new(Machine::new(variant));
        begin(&machine);
        let spawn = |&act: &Act| {
            let machine = machine.clone();
            loom::thread::spawn(move || act(&machine))
        };
        let threads: Vec<_> = threads.iter().map(spawn).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        machine.finish();
        let Machine { kernel, fabric, vectors, .. } = Arc::into_inner(machine).unwrap();
        drop(vectors);
        nothing_leaks(&kernel, &fabric.0.core);
    });
}

macro_rules! models {
    ($($name:ident: $begin:ident, $($act:ident)|+;)*) => {
        $(
            #[test]
            fn $name() {
                vectors($begin, &[$($act),+]);
            }
        )*
    };
}

models! {
    write_and_turn: cold, write | turn;
    write_and_promote: warm, write | promote;
    write_and_mask_unmask_hot: hot, write | mask_unmask;
    write_and_mask_unmask_cold: warm, write | mask_unmask;
    write_and_mask_hot: hot, write | mask;
    write_and_unmask_muted: muted, write | unmask;
    write_and_unmask_without_irqfds: hot_then_masked_and_no_irqfd_accepted, write | unmask;
    write_and_evict: hot, write | evict;
    write_and_another_vector_takes_the_gsi: hot_and_other_warm, write | promote_other;
    write_and_program_hot: hot, write | program;
    write_and_program_without_tables: hot_and_no_table_accepted, write | program;
    write_and_invalidate_same: hot, write | invalidate_same;
    write_and_invalidate_changed: hot, write | invalidate_changed;
    write_and_invalidate_blocked: hot, write | invalidate_blocked;
    signal_and_invalidate_changed: cold, signal | invalidate_changed;
    signal_and_invalidate_changed_warm: warm, signal | invalidate_changed;
    signal_and_invalidate_blocked: cold, signal | invalidate_blocked;
    signal_and_program: cold, signal | program;
    signal_and_mask: cold, signal | mask;
    promote_and_promote: warm, promote | promote;
    promote_and_program: warm, promote | program;
    promote_and_unmask: cold_masked, promote | unmask;
    promote_and_invalidate_changed: warm, promote | invalidate_changed;
    promote_and_invalidate_blocked: warm, promote | invalidate_blocked;
    invalidate_and_mask_unmask_hot: hot, invalidate_changed | mask_unmask;
    invalidate_blocked_and_mask_unmask_hot: hot, invalidate_blocked | mask_unmask;
    invalidate_and_unmask: hot_then_masked, invalidate_changed | unmask;
    program_and_mask_unmask_hot: hot, program | mask_unmask;
    pending_and_write_masked: hot_then_masked, pending | write;

    write_promote_and_mask: warm, write | promote | mask;
    write_promote_and_program: warm, write | promote | program;
    write_promote_and_evict: warm, write | promote | evict;
    write_promote_and_invalidate: warm, write | promote | invalidate_changed;
    write_turn_and_mask: warm, write | turn | mask;
    write_turn_and_promote: warm, write | turn | promote;
    write_turn_and_unmask: muted, write | turn | unmask;
    write_turn_and_mask_unmask: warm, write | turn | mask_unmask;
    write_mask_unmask_and_invalidate: hot, write | mask_unmask | invalidate_changed;
    write_mask_unmask_and_evict: hot, write | mask_unmask | evict;
    write_pending_and_unmask: hot_then_masked, write | pending | unmask;
    write_program_and_promote_other: hot_and_other_warm, write | program | promote_other;
    write_program_and_program: hot, write | program | program_third;
    write_program_and_program_to_the_same: hot, write | program | program_alias;
    write_program_and_invalidate_changed: hot, write | program | invalidate_changed;
    write_program_and_invalidate_blocked: hot, write | program | invalidate_blocked;
    write_invalidate_and_invalidate_changed: hot, write | invalidate_changed | invalidate_changed;
    write_invalidate_and_invalidate_blocked: hot, write | invalidate_blocked | invalidate_blocked;
    signal_program_and_mask: cold, signal | program | mask;
    signal_program_and_invalidate: warm, signal | program | invalidate_changed;
    signal_and_write_and_mask_unmask: hot, signal | write | mask_unmask;
    promote_unmask_and_turn: muted, promote | unmask | turn;
}

/// The device keeps its descriptor: its events reach nobody.
#[test]
fn drop_and_write() {
    dropping(|machine| {
        let eventfd = machine.vectors[0].eventfd().unwrap().try_clone().unwrap();
        vec![Box::new(move || eventfd.write(1).unwrap())]
    });
}

#[test]
fn drop_promote_and_write() {
    dropping(|machine| {
        let eventfd = machine.vectors[0].eventfd().unwrap().try_clone().unwrap();
        let (vector, core) = (machine.vector(0).clone(), machine.core().clone());
        // As the dispatcher does: it holds the vector while it is at it.
        vec![Box::new(move || eventfd.write(1).unwrap()), Box::new(move || promotion::promote(&core, &[vector]))]
    });
}

#[test]
fn drop_invalidate_and_write() {
    dropping(|machine| {
        let eventfd = machine.vectors[0].eventfd().unwrap().try_clone().unwrap();
        let (fabric, irtes, kernel) = (machine.fabric.clone(), machine.irtes.clone(), machine.kernel.clone());
        let invalidate = move || {
            irtes.lock().remove(&ENTRY);
            fabric.invalidate(&Entries::All);
            kernel.log(Seen::Old(original(ENTRY)));
        };
        vec![Box::new(move || eventfd.write(1).unwrap()), Box::new(invalidate)]
    });
}

type Beside = Vec<Box<dyn FnOnce() + Send>>;

/// The vectors are dropped while they are hot, beside other threads. Nothing is delivered twice, or after all are gone.
fn dropping(beside: fn(&Machine) -> Beside) {
    explore(Some(PREEMPTIONS), move |variant| {
        let machine = Machine::new(variant);
        machine.hot(0);
        let eventfd = machine.vectors[0].eventfd().unwrap().try_clone().unwrap();
        let threads: Vec<_> = beside(&machine).into_iter().map(loom::thread::spawn).collect();
        let Machine { kernel, fabric, vectors, irtes, source, ioapic_lock } = machine;
        drop(vectors);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let delivered = || kernel.state().log.iter().filter(|seen| matches!(seen, Seen::Delivered(_))).count();
        let before = delivered();
        eventfd.write(1).unwrap();
        assert_eq!(delivered(), before);
        let vectors = fabric.msi_vectors(RequesterId(8), 2);
        let rest = Machine { kernel, fabric, vectors, irtes, source, ioapic_lock };
        rest.judge();
        nothing_leaks(&rest.kernel, &rest.fabric.0.core);
    });
}

// The parked route of an IOAPIC's level pin.

const LEVEL: u32 = 1 << 15;

/// The guest writes one half of pin 0's entry, its other CPUs looking on: the registers are indirect.
fn entry(machine: &Machine, index: u32, value: u32) {
    let _ioapic_lock = machine.ioapic_lock.lock();
    machine.fabric.mmio_write(IOAPIC_ADDRESS, &index.to_le_bytes());
    machine.fabric.mmio_write(IOAPIC_ADDRESS + 0x10, &value.to_le_bytes());
}

fn raise(machine: &Machine) {
    machine.source.raise();
}

fn lower_raise(machine: &Machine) {
    machine.source.lower();
    machine.source.raise();
}

fn move_pin(machine: &Machine) {
    entry(machine, 0x10, LEVEL | u32::from(OTHER));
    machine.kernel.log(Seen::Old(original(ENTRY)));
}

/// The message is another, what it asks for is not: these bits mean nothing here.
fn rewrite_pin_alike(machine: &Machine) {
    entry(machine, 0x11, 0x7f << 17);
}

fn mask_pin(machine: &Machine) {
    entry(machine, 0x10, LEVEL | 1 << 16 | u32::from(ENTRY));
    machine.kernel.log(Seen::Masked(0));
}

fn mask_unmask_pin(machine: &Machine) {
    mask_pin(machine);
    machine.kernel.log(Seen::Unmasking(0));
    entry(machine, 0x10, LEVEL | u32::from(ENTRY));
}

fn edge_and_back(machine: &Machine) {
    entry(machine, 0x10, u32::from(ENTRY));
    entry(machine, 0x10, LEVEL | u32::from(ENTRY));
}

fn invalidate_pin(machine: &Machine) {
    machine.change(ENTRY, Some(changed(ENTRY)));
    machine.fabric.invalidate(&Entries::All);
    machine.kernel.log(Seen::Old(original(ENTRY)));
}

fn end_of_interrupt(machine: &Machine) {
    machine.fabric.end_of_interrupt(ENTRY);
}

/// The route is parked already.
fn parked(machine: &Machine) {
    machine.source.raise();
    machine.source.lower();
    end_of_interrupt(machine);
}

fn delivered(machine: &Machine) {
    machine.source.raise();
}

fn pin(begin: Act, threads: &'static [Act]) {
    let preemptions = if threads.len() > 2 { PREEMPTIONS } else { PREEMPTIONS_OF_PINS };
    explore(Some(preemptions), move |variant| {
        let machine = Arc::new(Machine::new(variant));
        entry(&machine, 0x10, LEVEL | u32::from(ENTRY));
        begin(&machine);
        let spawn = |&act: &Act| {
            let machine = machine.clone();
            loom::thread::spawn(move || act(&machine))
        };
        let threads: Vec<_> = threads.iter().map(spawn).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        machine.judge_pin();
    });
}

impl Machine {
    /// A level that stands, on a pin that may send, is in service; a level has no count, so nothing is doubled, but
    /// in between no delivery was of anything old, or masked. That its route was parked is seen at each delivery.
    fn judge_pin(&self) {
        let log = self.kernel.state().log.clone();
        let (_, _, chip) = self.fabric.ioapics().next().unwrap();
        let bits = chip.pins[0].entry;
        let (in_service, masked) = (bits & 1 << 14 != 0, bits & 1 << 16 != 0);
        assert!(in_service || masked, "lost: {log:x?}");
        let (mut old, mut masked) = (Vec::new(), false);
        for seen in &log {
            match *seen {
                Seen::Delivered(what) => {
                    assert!(!old.contains(&what), "stale: {log:x?}");
                    assert!(!masked, "delivered while masked: {log:x?}");
                }
                Seen::Old(what) => old.push(what),
                Seen::Masked(_) => masked = true,
                Seen::Unmasking(_) => masked = false,
                Seen::Signalled(_) | Seen::Swallowed => unreachable!("no eventfd fires"),
            }
        }
    }
}

macro_rules! pin_models {
    ($($name:ident: $begin:ident, $($act:ident)|+;)*) => {
        $(
            #[test]
            fn $name() {
                pin($begin, &[$($act),+]);
            }
        )*
    };
}

pin_models! {
    raise_and_move: cold, raise | move_pin;
    raise_and_move_parked: parked, raise | move_pin;
    raise_and_rewrite_alike: cold, raise | rewrite_pin_alike;
    raise_and_mask: cold, raise | mask_pin;
    raise_and_mask_unmask: cold, raise | mask_unmask_pin;
    raise_and_mask_unmask_parked: parked, raise | mask_unmask_pin;
    raise_and_edge_and_back: cold, raise | edge_and_back;
    raise_and_invalidate: cold, raise | invalidate_pin;
    raise_and_invalidate_parked: parked, raise | invalidate_pin;
    end_of_interrupt_and_lower_raise: delivered, end_of_interrupt | lower_raise;
    end_of_interrupt_and_edge_and_back: delivered, end_of_interrupt | edge_and_back;
    raise_rewrite_alike_and_mask_unmask: cold, raise | rewrite_pin_alike | mask_unmask_pin;
    raise_move_and_invalidate: cold, raise | move_pin | invalidate_pin;
    end_of_interrupt_raise_and_mask_unmask: delivered, end_of_interrupt | lower_raise | mask_unmask_pin;
}
