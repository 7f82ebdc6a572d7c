//! What a guest does to the IOAPIC without anything being delivered: no system call, so the floor is a lock.

use super::super::error::Error;
use super::super::machine::{FIRST, Machine};
use super::super::measure::{Rounds, time, try_time};
use super::super::raw::{Raw, table};
use super::Measured;
use super::deliver::level_pins;
use irqfabric::fabric::Promotion;
use irqfabric::line::LineSource;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Duration;

const BATCH: usize = 1024;

/// The end of an interrupt whose line is low by then.
pub fn eoi_low(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::new(Promotion::Never)?;
    let sources = level_pins(&machine)?;
    let calls = machine.hypervisor.calls();
    let mut ended = 0;
    let mut ours = || {
        sources.iter().for_each(LineSource::raise);
        sources.iter().for_each(LineSource::lower);
        ended += sources.len() as u64;
        Ok(time(|| (FIRST..).take(sources.len()).for_each(|vector| machine.fabric.end_of_interrupt(vector))))
    };
    let samples = rounds.measure(sources.len(), [&mut ours, &mut || Ok(locks(sources.len()))])?;
    let after = machine.hypervisor.calls();
    let extra = after.deliveries - calls.deliveries - ended + (after.commits - calls.commits);
    Ok(Measured::new(samples, "mutex").at_most(20.0).with_calls(extra as f64 / ended as f64, Some(0.0)))
}

/// A line that has the level already.
pub fn line_same(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::new(Promotion::Never)?;
    let source = machine.fabric.line(4)?.source("device");
    source.raise();
    without_calls(&machine, rounds, 4.0, |_| source.raise())
}

/// A redirection entry, already selected.
pub fn register_read(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::new(Promotion::Never)?;
    machine.write_select(0x18);
    let measured = without_calls(&machine, rounds, f64::INFINITY, |_| {
        black_box(machine.read_window());
    })?;
    Ok(Measured { bound: None, ..measured })
}

/// A redirection entry gets another vector; its pin is not masked and its line is low.
pub fn register_write(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::new(Promotion::Never)?;
    machine.write_select(0x18);
    let measured =
        without_calls(&machine, rounds, 12.0, |step| machine.write_window(u32::from(FIRST) + step as u32 % 2))?;
    // Apart from the two that alternate: a commit takes a hundred times as long.
    let (raw, table) = (Raw::new()?, table(24)?);
    let [usual] = rounds.measure(1, [&mut || try_time(|| raw.commit(&table))])?;
    Ok(measured.against(usual, "a commit"))
}

/// A redirection entry is written as it is.
pub fn register_same(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::new(Promotion::Never)?;
    machine.write_select(0x18);
    machine.write_window(FIRST.into());
    without_calls(&machine, rounds, 4.0, |_| machine.write_window(FIRST.into()))
}

fn without_calls(machine: &Machine, rounds: Rounds, bound: f64, act: impl Fn(usize)) -> Result<Measured, Error> {
    let calls = machine.system_calls();
    let mut done = 0;
    let mut ours = || {
        done += BATCH;
        Ok(time(|| (0..BATCH).for_each(&act)))
    };
    let samples = rounds.measure(BATCH, [&mut ours, &mut || Ok(locks(BATCH))])?;
    let calls = machine.system_calls() - calls;
    Ok(Measured::new(samples, "mutex").at_most(bound).with_calls(calls as f64 / done as f64, Some(0.0)))
}

/// A lock that nobody else wants, taken and given back.
pub fn locks(count: usize) -> Duration {
    let mutex = Mutex::new(0u64);
    let took = time(|| {
        for _ in 0..count {
            if let Ok(mut value) = black_box(&mutex).lock() {
                *value += 1;
            }
        }
    });
    black_box(mutex);
    took
}
