//! A guest invalidates the remapping entries of K of 4,000 hot vectors: they come out the same, or changed.
//!
//! The floor is the cheaper of the two raw ways to stop the kernel from delivering by an old route: one commit of the
//! whole table, or K irqfds detached, from four threads where the library would use them.
//!
//! Ours and the raw commit are done twice each time and the second is timed: thousands of detaches, which take their turn
//! as well, leave both caches and the kernel's workers in another state than they found them.

use super::super::error::Error;
use super::super::machine::{ADDRESS, FIRST, Machine};
use super::super::measure::{Rounds, Samples, time, try_time};
use super::super::raw::{Raw, from_entries, route_to, table};
use super::Measured;
use irqfabric::fabric::{MsiVectors, Program, Promotion};
use irqfabric::msg::{Interrupt, Masking, Message};
use irqfabric::remap::{Cookie, Entries, Refusal, Remapper, Translation};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

const HOT: usize = 4000;

/// From as many vectors on the library detaches from several threads.
const MANY: usize = 16;
const THREADS: usize = 4;

/// A remapping table: message data is the index of an entry, an entry is a vector.
#[derive(Clone)]
struct RemappingTable(Arc<[AtomicU8]>);

impl Remapper for RemappingTable {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        let entry = self.0.get(message.data as usize).ok_or(Refusal::Blocked(0x21))?;
        let interrupt = Interrupt { vector: entry.load(Relaxed), ..Interrupt::default() };
        Ok(Translation { interrupt, cookie: Some(Cookie(message.data)) })
    }
}

impl RemappingTable {
    fn new() -> Self {
        Self((0..HOT).map(|_| AtomicU8::new(FIRST)).collect())
    }

    /// Its first `count` entries mean something else from now on.
    fn change(&self, count: usize) {
        for entry in &self.0[..count] {
            entry.store(if entry.load(Relaxed) == FIRST { FIRST + 1 } else { FIRST }, Relaxed);
        }
    }
}

/// 4,000 hot vectors behind a remapper.
struct Remapped {
    machine: Machine,
    vectors: MsiVectors,
    entries: RemappingTable,
}

impl Remapped {
    fn new() -> Result<Self, Error> {
        let entries = RemappingTable::new();
        let machine = Machine::build(|builder| builder.remapper(entries.clone()).promotion(Promotion::Prefill))?;
        let vectors = machine.vectors(HOT)?;
        let programs: Vec<_> = (0..HOT).map(|index| Program { index, address: ADDRESS, data: index as u32 }).collect();
        vectors.program_all(&programs)?;
        Ok(Self { machine, vectors, entries })
    }

    fn invalidate(&self, count: usize) {
        self.machine.fabric.invalidate(&Entries::Range(Cookie(0)..=Cookie(count as u32 - 1)));
    }

    /// Those that were detached get their routes back: by the policy of this machine, when they are unmasked.
    fn heat(&self, count: usize) -> Result<(), Error> {
        self.vectors.set_masking(0..count, Masking::Masked)?;
        Ok(self.vectors.set_masking(0..count, Masking::Unmasked)?)
    }
}

/// Every entry means what it meant.
pub fn same(rounds: Rounds, count: usize) -> Result<Measured, Error> {
    let remapped = Remapped::new()?;
    let calls = remapped.machine.system_calls();
    let mut done = 0;
    let mut ours = || {
        done += 2;
        remapped.invalidate(count);
        Ok(time(|| remapped.invalidate(count)))
    };
    let (ours, floors) = against_both(rounds, count, &mut ours)?;
    let (cheaper, floor_is) = floors.cheaper();
    let calls = (remapped.machine.system_calls() - calls) as f64 / f64::from(done);
    Ok(Measured::new([ours, cheaper.clone()], floor_is).with_calls(calls, Some(0.0)))
}

/// Every entry of them means another vector.
pub fn changed(rounds: Rounds, count: usize) -> Result<Measured, Error> {
    let remapped = Remapped::new()?;
    let (mut detached, mut calls) = (Vec::new(), 0);
    let mut once = || {
        remapped.entries.change(count);
        let (before, calls_before) = (remapped.machine.hypervisor.calls(), remapped.machine.system_calls());
        let took = time(|| remapped.invalidate(count));
        let detaches = remapped.machine.hypervisor.calls().detaches - before.detaches;
        calls += remapped.machine.system_calls() - calls_before;
        detached.push(detaches > 0);
        if detaches > 0 {
            remapped.heat(count)?;
        }
        Ok(took)
    };
    let mut ours = || once().and_then(|_| once());
    let (ours, floors) = against_both(rounds, count, &mut ours)?;
    let calls = calls as f64 / detached.len() as f64;
    // Of each two the second was timed, and the first round not at all.
    let detached: Vec<_> = detached.into_iter().skip(1).step_by(2).skip(1).collect();
    let times = detached.iter().filter(|&&detached| detached).count();
    let made = Samples::chosen(&detached, &floors.detach, &floors.commit);
    let choice = if times * 2 > detached.len() { "detach" } else { "commit" };
    let of_choice = ours.median_ratio(&made);
    let (cheaper, floor_is) = floors.cheaper();
    let measured = Measured::new([ours, cheaper.clone()], floor_is).at_most(3.0).with_calls(calls, None);
    let measured = match one_by_one(rounds, count)? {
        Some(usual) => measured.against(usual, "a commit for each entry"),
        None => measured,
    };
    let made = format!("chose {choice}; times the raw cost of its choice");
    Ok(measured.with_fact(made, of_choice, Some(1.15)))
}

/// The usual way, which takes seconds for thousands: then it is left out.
fn one_by_one(rounds: Rounds, count: usize) -> Result<Option<Samples>, Error> {
    if count > 256 {
        return Ok(None);
    }
    let raw = Raw::new()?;
    let table = table(HOT)?;
    let mut commits = || try_time(|| (0..count).try_for_each(|_| raw.commit(&table)));
    let [usual] = rounds.few().measure(1, [&mut commits])?;
    Ok(Some(usual))
}

struct Floors {
    commit: Samples,
    detach: Samples,
}

impl Floors {
    fn cheaper(&self) -> (&Samples, &'static str) {
        if self.commit.median() < self.detach.median() {
            (&self.commit, "commit")
        } else {
            (&self.detach, "deassign each")
        }
    }
}

fn against_both(
    rounds: Rounds,
    count: usize,
    ours: super::super::measure::Contender<'_>,
) -> Result<(Samples, Floors), Error> {
    let raw = Raw::new()?;
    let bound = raw.hot(HOT)?;
    // As ours: the vectors of the first `count` alternate.
    let other: Vec<_> = (1..=count).chain(count..HOT).zip(0..).map(|(to, gsi)| route_to(gsi, to)).collect();
    let tables = [table(HOT)?, from_entries(&other)?];
    let mut turns = (0..2).cycle();
    let threads = if count < MANY { 1 } else { THREADS };
    let mut once = || {
        let table = &tables[turns.next().unwrap_or(0)];
        try_time(|| raw.commit(table))
    };
    let mut commit = || once().and_then(|_| once());
    let mut detach = || {
        let took = try_time(|| raw.deassign_all(&bound[..count], threads))?;
        for (index, eventfd) in bound[..count].iter().enumerate() {
            raw.assign(eventfd, index)?;
        }
        Ok(took)
    };
    let rounds = if count <= 256 { rounds } else { rounds.few() };
    let [ours, commit, detach] = rounds.measure(1, [ours, &mut commit, &mut detach])?;
    Ok((ours, Floors { commit, detach }))
}
