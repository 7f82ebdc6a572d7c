//! Several threads signal at once, while a vCPU's thread writes registers of the IOAPIC without a pause.
//!
//! The floor is as many threads with the bare KVM_SIGNAL_MSI, while the same writer is busy at another fabric. Each
//! operation is timed for itself, on both sides; the rate is that of all threads together, from a common start to the
//! last one's end.

use super::super::error::Error;
use super::super::machine::{FIRST, Machine, program_all};
use super::super::measure::{Rounds, Samples};
use super::super::raw::{msi, signal};
use hdrhistogram::Histogram;
use irqfabric::fabric::Promotion;
use irqfabric::msg::RequesterId;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::thread;
use std::time::{Duration, Instant};

/// As many threads, in turn.
const THREADS: [usize; 4] = [1, 2, 4, 8];

/// Operations that all threads share out among them in a round.
const OPERATIONS: usize = 8192;

/// What takes longer than a minute is taken for one.
const LONGEST: u64 = 60_000_000_000;

/// One way to contend.
pub struct Contended {
    pub operation: &'static str,
    pub runs: Vec<Threads>,
}

/// With so many threads.
pub struct Threads {
    pub count: usize,
    pub ours: Side,
    pub floor: Side,
}

/// What one side came to.
pub struct Side {
    /// Operations a second, of all threads: one sample for each round.
    pub rates: Samples,
    /// Nanoseconds an operation.
    pub latency: Histogram<u64>,
    /// Register writes a second meanwhile.
    pub writes: Samples,
}

/// Each thread has a vector of its own.
pub fn different_vectors(rounds: Rounds) -> Result<Contended, Error> {
    let machine = Machine::uncounted(Promotion::Never)?;
    let vectors = machine.fabric.msi_vectors(RequesterId::new(0, 3, 0), 8);
    program_all(&vectors)?;
    contended(rounds, "signal of its own", &machine, |thread| vectors[thread].signal(), |thread| thread)
}

/// All threads signal the same vector.
pub fn one_vector(rounds: Rounds) -> Result<Contended, Error> {
    let machine = Machine::uncounted(Promotion::Never)?;
    let vectors = machine.fabric.msi_vectors(RequesterId::new(0, 3, 0), 1);
    program_all(&vectors)?;
    contended(rounds, "signal of one for all", &machine, |_| vectors[0].signal(), |_| 0)
}

/// Each thread raises and lowers a source of its own of one line, which ends in an edge pin: it delivers when it rises.
pub fn one_line(rounds: Rounds) -> Result<Contended, Error> {
    let machine = Machine::uncounted(Promotion::Never)?;
    machine.program_pin(4, FIRST.into());
    let line = machine.fabric.line(4)?;
    let sources = [(); 8].map(|()| line.source("device"));
    let operation = |thread: usize| {
        sources[thread].raise();
        sources[thread].lower();
    };
    contended(rounds, "raise and lower of a source", &machine, operation, |_| 0)
}

fn contended(
    rounds: Rounds,
    operation: &'static str,
    machine: &Machine,
    ours: impl Fn(usize) + Sync,
    message: impl Fn(usize) -> usize + Sync,
) -> Result<Contended, Error> {
    let elsewhere = Machine::uncounted(Promotion::Never)?;
    let raw = |thread: usize| drop(signal(&machine.vm, msi(message(thread))));
    let run = |count| {
        let (mut of_ours, mut of_floor) = (Side::new(), Side::new());
        let (mut ours_once, mut floor_once) =
            (|| of_ours.round(count, &ours, machine), || of_floor.round(count, &raw, &elsewhere));
        rounds.few().measure(OPERATIONS, [&mut ours_once, &mut floor_once])?;
        Ok(Threads { count, ours: of_ours, floor: of_floor })
    };
    let runs = THREADS.into_iter().map(run).collect::<Result<_, Error>>()?;
    Ok(Contended { operation, runs })
}

impl Side {
    fn new() -> Self {
        let latency = Histogram::new_with_max(LONGEST, 3).expect("bounds that hdrhistogram takes");
        Self { rates: Samples::default(), latency, writes: Samples::default() }
    }

    /// One round: `count` threads share the operations, and one writes registers of `written` until they are done.
    fn round(
        &mut self,
        count: usize,
        operation: &(impl Fn(usize) + Sync),
        written: &Machine,
    ) -> Result<Duration, Error> {
        let (go, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let wait = || {
            while !go.load(Acquire) {
                thread::yield_now();
            }
        };
        let work = |thread: usize| {
            let mut took = Vec::with_capacity(OPERATIONS / count);
            wait();
            for _ in 0..OPERATIONS / count {
                let began = Instant::now();
                operation(thread);
                took.push(began.elapsed());
            }
            (took, Instant::now())
        };
        let write = || {
            wait();
            let mut writes = 0;
            while !done.load(Relaxed) {
                written.program_pin(10, u64::from(FIRST) + writes % 2);
                writes += 1;
            }
            writes
        };
        let (began, worked, writes) = thread::scope(|scope| {
            let start = || {
                let work = &work;
                let worker = |thread| thread::Builder::new().spawn_scoped(scope, move || work(thread));
                let workers = (0..count).map(worker).collect::<Result<Vec<_>, _>>()?;
                Ok((workers, thread::Builder::new().spawn_scoped(scope, write)?))
            };
            let started = start();
            let began = Instant::now();
            // Also when not all could be started: the others wait for it.
            go.store(true, Release);
            done.store(started.is_err(), Relaxed);
            let (workers, writer) = started.map_err(Error::call::<io::Error>("clone"))?;
            let worked: Vec<_> = workers.into_iter().filter_map(|worker| worker.join().ok()).collect();
            done.store(true, Relaxed);
            Ok::<_, Error>((began, worked, writer.join().unwrap_or_default()))
        })?;
        let end = worked.iter().map(|(_, end)| *end).max().unwrap_or(began);
        for took in worked.iter().flat_map(|(took, _)| took) {
            self.latency.saturating_record(took.as_nanos() as u64);
        }
        let took = end - began;
        self.rates.push((OPERATIONS / count * worked.len()) as f64 / took.as_secs_f64());
        self.writes.push(writes as f64 / took.as_secs_f64());
        Ok(took)
    }
}
