//! The vectors' protocol, the parked routes', and that of lines which resample, in every interleaving that loom finds.
//!
//! The code is the real one: `Vector`, `MsiVectors`, `Listener`, `GsiTable`, `promotion`, `IoapicPort`, `Line`, `LineEventfds`. The
//! kernel's part is [`crate::sync::kernel`]; its hypervisor takes each call as one step. The dispatcher's thread is played by the
//! test (`on_eventfd`, `promote`, `Dispatcher::turn`), epoll's answer is the kernel's to know; remapping is a table of entries that
//! the guest changes.
//!
//! Two or three threads do one operation each, to one vector or two, or to one pin and its line. What must hold afterwards is said
//! where each kind is: [`vectors`], [`pins`], [`lines`], [`pic`].
//! Every model runs with the kernel's worker at once and as late as can be, and with a commit and a detach as
//! what `settle` finds cheaper.
//!
//! *Bounded:* three threads preempt each other at most [`PREEMPTIONS`] times, two about a pin or a unit's queue [`PREEMPTIONS_OF_PINS`],
//! two about a vector as often as they can; `LOOM_MAX_PREEMPTIONS` sets another bound for all. A dispatcher's turn is one event; `side_by_side` stays on its thread. *Not seen by loom:* the counters (statistics), `Arc`'s counts, and
//! `OnceLock`s, which are set before the threads start.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p irqfabric --lib --no-default-features fabric::model
//! ```

mod lines;
mod pic;
mod pins;
mod vectors;
mod vtd;

use super::core::Core;
use super::promotion;
use super::vector::Vector;
use super::{Fabric, FabricBuilder, IOAPIC_ADDRESS, MsiVectors};
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

/// And in one of two about a pin or a unit, whose registers take many steps to write.
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

struct Remapping {
    entries: Irtes,
    kernel: Arc<Kernel>,
}

impl Remapper for Remapping {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        let index = message.data as u8;
        let what =
            *self.entries.lock().get(&index).ok_or(Refusal::Blocked(Fault { reason: 0x22, ..Fault::default() }))?;
        let trigger = if message.data & 1 << 15 == 0 { Trigger::Edge } else { Trigger::Level };
        let interrupt =
            Interrupt { destination: u32::from(what >> 8), vector: what as u8, trigger, ..Interrupt::default() };
        Ok(Translation { target: remap::Target::Interrupt(interrupt), cookie: Some(Cookie(index.into())) })
    }

    fn record(&self, _: &Message, _: Fault, _: &dyn Fn(&Interrupt)) {
        self.kernel.log(Seen::Faulted);
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
        let irtes: Irtes = Arc::default();
        irtes.lock().extend((0..=0xff).map(|index| (index, original(index))));
        let entries = irtes.clone();
        let machine = Self::with(variant, irtes, |builder, kernel| builder.remapper(Remapping { entries, kernel }));
        for (index, entry) in (ENTRY..).take(machine.vectors.len()).enumerate() {
            machine.vectors.program(index, WINDOW, entry.into()).unwrap();
        }
        machine
    }

    fn with(variant: Variant, irtes: Irtes, parts: impl FnOnce(FabricBuilder, Arc<Kernel>) -> FabricBuilder) -> Self {
        let kernel = Kernel::install(variant.worker);
        let builder = Fabric::builder(Hv(kernel.clone())).ioapic(Ioapic::new(1).unwrap());
        let fabric = parts(builder, kernel.clone()).build().unwrap();
        if variant.detaches {
            // Cheaper than any commit is expected to be; what it starts with is dearer than that of so small a table.
            fabric.0.core.detach_cost.learn(Duration::from_nanos(1));
        }
        let vectors = fabric.msi_vectors(RequesterId(8), 2);
        let source = fabric.line(0).unwrap().source("device");
        // Eventfds are numbered as they are made.
        vectors.iter().for_each(|vector| _ = vector.eventfd().unwrap());
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
}

type Act = fn(&Machine);

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
