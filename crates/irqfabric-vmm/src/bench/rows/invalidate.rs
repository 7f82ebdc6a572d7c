//! A guest invalidates the remapping entries of K of 4,000 hot vectors: they come out the same, or changed. Ours is all that a
//! VT-d unit does for it, from the write to the queue's tail until the guest sees that its wait is done.
//!
//! The floor is the cheaper of the two raw ways to stop the kernel from delivering by an old route: one commit of the
//! whole table, or K irqfds detached, from four threads where the library would use them.
//!
//! Ours and the raw commit are done twice each time and the second is timed: thousands of detaches, which take their turn
//! as well, leave both caches and the kernel's workers in another state than they found them.

use super::super::error::Error;
use super::super::machine::{FIRST, Machine};
use super::super::measure::{Rounds, Samples, time, try_time};
use super::super::raw::{Raw, from_entries, route_to, table};
use super::super::vtd::Guest;
use super::Measured;
use irqfabric::fabric::{MsiVectors, Program, Promotion};
use irqfabric::msg::Masking;
use std::cell::Cell;
use std::time::Duration;

const HOT: usize = 4000;

/// From as many vectors on the library detaches from several threads.
const MANY: usize = 16;
const THREADS: usize = 4;

/// More detaches than these are measured in every so many rounds only, and good for those up to the next: they take up to a
/// third of a second, and leave the kernel's workers something to do.
const OFTEN: usize = 16;
const SELDOM: u32 = 15;

/// More commits than these, the usual way, would take seconds.
const USUAL: usize = 256;

/// 4,000 hot vectors behind a VT-d unit.
struct Remapped {
    machine: Machine,
    vectors: MsiVectors,
    guest: Guest,
    turn: Cell<bool>,
}

impl Remapped {
    fn new() -> Result<Self, Error> {
        let guest = Guest::new();
        (0..HOT).for_each(|index| guest.set(index, FIRST));
        let machine = Machine::build(|builder| guest.unit(builder).promotion(Promotion::Prefill))?;
        guest.enable(&machine.fabric);
        let vectors = machine.vectors(HOT)?;
        let program = |index| Program { index, address: Guest::address(index), data: 0 };
        vectors.program_all(&(0..HOT).map(program).collect::<Vec<_>>())?;
        Ok(Self { machine, vectors, guest, turn: Cell::new(false) })
    }

    /// The first `count` entries stand for another vector from now on.
    fn change(&self, count: usize) {
        self.turn.set(!self.turn.get());
        let vector = FIRST + u8::from(self.turn.get());
        (0..count).for_each(|index| self.guest.set(index, vector));
    }

    /// From the descriptor to the status that says that it is done.
    fn invalidate(&self, count: usize) {
        self.guest.invalidate(&self.machine.fabric, count.next_power_of_two().ilog2());
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
    let (mut detached, mut calls, mut beyond) = (Vec::new(), 0, 0);
    let mut once = || {
        remapped.change(count);
        let (before, calls_before) = (remapped.machine.hypervisor.calls(), remapped.machine.system_calls());
        let took = time(|| remapped.invalidate(count));
        let after = remapped.machine.hypervisor.calls();
        let (detaches, commits) = (after.detaches - before.detaches, after.commits - before.commits);
        beyond = beyond.max(calls_beyond_the_choice(detaches, commits, count as u64));
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
    let measured = measured.with_fact(made, of_choice, Some(1.15));
    Ok(measured.with_fact("calls beyond one commit or a detach each, at most", beyond as f64, Some(0.0)))
}

/// How many calls too many, or too few, an invalidation made that has two ways: one commit, or a detach for each vector.
const fn calls_beyond_the_choice(detaches: u64, commits: u64, count: u64) -> u64 {
    match detaches {
        0 => commits.abs_diff(1),
        _ => detaches.abs_diff(count) + commits,
    }
}

/// The usual way, which takes seconds for thousands: then it is left out.
fn one_by_one(rounds: Rounds, count: usize) -> Result<Option<Samples>, Error> {
    if count > USUAL {
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
    // Two machines: an irqfd that was just assigned anew is in the caches for the next commit, and those of ours stay.
    let (commits, detaches) = (Raw::new()?, Raw::new()?);
    let _stays = commits.hot(HOT)?;
    let bound = detaches.hot(HOT)?;
    // As ours: the vectors of the first `count` alternate.
    let other: Vec<_> = (1..=count).chain(count..HOT).zip(0..).map(|(to, gsi)| route_to(gsi, to)).collect();
    let tables = [table(HOT)?, from_entries(&other)?];
    let mut turns = (0..2).cycle();
    let threads = if count < MANY { 1 } else { THREADS };
    let mut once = || {
        let table = &tables[turns.next().unwrap_or(0)];
        try_time(|| commits.commit(table))
    };
    let mut commit = || once().and_then(|_| once());
    let seldom = if count <= OFTEN { 1 } else { SELDOM };
    let (mut round, mut took) = (0, Duration::ZERO);
    let mut detach = || {
        if round % seldom == 0 {
            took = try_time(|| detaches.deassign_all(&bound[..count], threads))?;
            for (index, eventfd) in bound[..count].iter().enumerate() {
                detaches.assign(eventfd, index)?;
            }
        }
        round += 1;
        Ok(took)
    };
    let [ours, commit, detach] = rounds.measure(1, [ours, &mut commit, &mut detach])?;
    Ok((ours, Floors { commit, detach }))
}
