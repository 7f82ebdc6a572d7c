//! N vectors with eventfds are programmed, and each is fired twice. The floor knows all of them beforehand and commits once;
//! the usual way grows the routing table one vector at a time and commits it whole each time.
//!
//! Ours begins with vectors that have no eventfd and ends when every event was delivered and every full batch of 256 has its
//! routes. The rest of a batch would get them at the deadline, which is held, and is delivered by the dispatcher.

use super::super::error::Error;
use super::super::host::need_descriptors;
use super::super::machine::{ADDRESS, Machine, fire, vector_of};
use super::super::measure::{Rounds, wait_until};
use super::super::raw::{Raw, eventfds, from_entries, route, table};
use super::Measured;
use irqfabric::fabric::Promotion;
use irqfabric::msg::RequesterId;
use std::time::{Duration, Instant};

/// As by default.
const PROMOTED_TOGETHER: usize = 256;

pub fn program(rounds: Rounds, count: usize) -> Result<Measured, Error> {
    need_descriptors(count)?;
    let rounds = if count > 16 { rounds.few() } else { rounds };
    let (mut commits, mut calls) = (0, 0);
    let mut ours = || {
        let done = on_demand(count)?;
        commits = commits.max(done.commits);
        calls = calls.max(done.calls);
        Ok(done.took)
    };
    let (mut floor, mut usual) = (|| raw(count, Commits::One), || raw(count, Commits::Each));
    let [ours, floor, usual] = rounds.measure(1, [&mut ours, &mut floor, &mut usual])?;
    let measured = Measured::new([ours, floor], "one commit").against(usual, "a commit for each vector");
    let measured = measured.with_calls(calls as f64, None);
    Ok(match count {
        4000.. => measured.at_most_usual(1.0 / 40.0).with_fact("table commits", commits as f64, Some(16.0)),
        _ => measured.with_fact("table commits", commits as f64, None),
    })
}

struct Done {
    took: Duration,
    commits: u64,
    calls: u64,
}

fn on_demand(count: usize) -> Result<Done, Error> {
    let machine = Machine::new(Promotion::OnDemand { batch: PROMOTED_TOGETHER, delay: Duration::MAX })?;
    // The dispatcher is one for the life of a machine.
    let _started = machine.vectors(1)?;
    let vectors = machine.fabric.msi_vectors(RequesterId::new(0, 3, 0), count);
    let start = Instant::now();
    for (index, vector) in vectors.iter().enumerate() {
        vector.eventfd().map_err(Error::call("eventfd"))?;
        vectors.program(index, ADDRESS, vector_of(index).into())?;
    }
    for round in 1..=2 {
        (0..count).try_for_each(|index| fire(&vectors, index))?;
        // Each before its next event, or the two might be read as one.
        let expected = (round * count) as u64;
        wait_until("the delivery of every event", || machine.hypervisor.calls().deliveries >= expected)?;
    }
    let promoted = (count / PROMOTED_TOGETHER * PROMOTED_TOGETHER) as u64;
    wait_until("the promotion of every full batch", || machine.hypervisor.calls().attaches >= promoted)?;
    let took = start.elapsed();
    let (commits, wakeups) = (machine.hypervisor.calls().commits, machine.fabric.stats().wakeups);
    // An eventfd is made and listened to; twice it is written and read.
    let calls = machine.system_calls() + wakeups + count as u64 * (2 + 2 * 2);
    Ok(Done { took, commits, calls })
}

#[derive(Clone, Copy, PartialEq)]
enum Commits {
    One,
    Each,
}

fn raw(count: usize, commits: Commits) -> Result<Duration, Error> {
    let raw = Raw::new()?;
    let mut growing = from_entries(&[])?;
    let start = Instant::now();
    let eventfds = eventfds(count)?;
    if commits == Commits::One {
        raw.commit(&table(count)?)?;
    }
    for (index, eventfd) in eventfds.iter().enumerate() {
        if commits == Commits::Each {
            growing.push(route(index)).map_err(|_| Error::Never("a route in the table"))?;
            raw.commit(&growing)?;
        }
        raw.assign(eventfd, index)?;
    }
    for _ in 0..2 {
        eventfds.iter().try_for_each(|eventfd| eventfd.write(1)).map_err(Error::call("write of an eventfd"))?;
    }
    Ok(start.elapsed())
}
