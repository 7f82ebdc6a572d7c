//! Cold vectors get their routes and irqfds: many by one commit.
//!
//! By the policy that does it on the caller's thread, so that no wake-up is timed with it. The floor is one commit and as
//! many attaches, each with the read that takes what the kernel left; the usual way grows the table by one route a commit.

use super::super::error::Error;
use super::super::machine::{ADDRESS, Machine, vector_of};
use super::super::measure::{Rounds, try_time};
use super::super::raw::{Raw, from_entries, route, table};
use super::Measured;
use irqfabric::fabric::{Program, Promotion};
use irqfabric::msg::Masking;
use vmm_sys_util::eventfd::EventFd;

pub fn promotion(rounds: Rounds, count: usize) -> Result<Measured, Error> {
    let machine = Machine::new(Promotion::Prefill)?;
    let vectors = machine.vectors(count)?;
    let raw = Raw::new()?;
    let bound = raw.hot(count)?;
    let whole = table(count)?;
    let set = |masking| vectors.set_masking(0..count, masking).map_err(Error::from);
    let (mut calls, mut done) = (0, 0);
    let program = |first: usize| {
        let program = |index| Program { index, address: ADDRESS, data: vector_of(first + index).into() };
        Ok::<_, Error>(vectors.program_all(&(0..count).map(program).collect::<Vec<_>>())?)
    };
    let mut ours = || {
        // A function that is switched off gives its routes up, and other messages need other ones.
        set(Masking::Disabled)?;
        program(done as usize % 2)?;
        let before = machine.system_calls();
        let took = try_time(|| set(Masking::Unmasked))?;
        // A function that is switched on again looks into each eventfd first.
        calls += machine.system_calls() - before + count as u64;
        done += 1;
        Ok(took)
    };
    let assign = |index: usize, eventfd: &EventFd| {
        raw.assign(eventfd, index)?;
        // Nothing is in it: the answer is that it would block.
        let _ = eventfd.read();
        Ok(())
    };
    let mut floor = || {
        raw.deassign_all(&bound, 1)?;
        raw.commit(&table(1)?)?;
        try_time(|| {
            raw.commit(&whole)?;
            bound.iter().enumerate().try_for_each(|(index, eventfd)| assign(index, eventfd))
        })
    };
    let mut usual = || {
        raw.deassign_all(&bound, 1)?;
        let mut table = from_entries(&[])?;
        try_time(|| {
            bound.iter().enumerate().try_for_each(|(index, eventfd)| {
                table.push(route(index)).map_err(|_| Error::Never("a route in the table"))?;
                raw.commit(&table)?;
                assign(index, eventfd)
            })
        })
    };
    let rounds = if count > 16 { rounds.few() } else { rounds };
    let [ours, floor, usual] = rounds.measure(1, [&mut ours, &mut floor, &mut usual])?;
    let measured = Measured::new([ours, floor], "commit, attaches").against(usual, "a commit for each vector");
    Ok(measured.with_calls(calls as f64 / f64::from(done), Some((1 + 3 * count) as f64)))
}
