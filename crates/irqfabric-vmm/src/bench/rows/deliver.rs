//! What a device does: signal a vector, write a hot eventfd, pulse or raise a line.

use super::super::error::Error;
use super::super::machine::{FIRST, Machine, fire, program_all};
use super::super::measure::{Rounds, time, try_time};
use super::super::raw::{Raw, msi, signal as raw_signal};
use super::Measured;
use irqfabric::fabric::Promotion;
use irqfabric::line::LineSource;
use irqfabric::msg::RequesterId;
use std::ops::Range;
use std::time::Duration;

const BATCH: usize = 128;

const LEVEL: u64 = 1 << 15;

/// An in-process vector.
pub fn signal(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::uncounted(Promotion::Never)?;
    let vectors = machine.fabric.msi_vectors(RequesterId::new(0, 3, 0), 1);
    program_all(&vectors)?;
    let mut ours = || Ok(time(|| (0..BATCH).for_each(|_| vectors[0].signal())));
    let samples = rounds.measure(BATCH, [&mut ours, &mut || raw_signals(&machine, 0..1, BATCH)])?;
    Ok(Measured::new(samples, "SIGNAL_MSI").at_most(1.10))
}

/// An eventfd that the kernel takes the events of: there is nothing of ours in the way.
pub fn eventfd_hot(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::new(Promotion::Prefill)?;
    let vectors = machine.vectors(1)?;
    program_all(&vectors)?;
    let raw = Raw::new()?;
    let bound = raw.hot(1)?;
    let (wakeups, calls) = (machine.fabric.stats().wakeups, machine.hypervisor.calls());
    let mut ours = || try_time(|| (0..BATCH).try_for_each(|_| fire(&vectors, 0)));
    let write = |_| bound[0].write(1).map_err(Error::call("write of an eventfd"));
    let mut floor = || try_time(|| (0..BATCH).try_for_each(write));
    let samples = rounds.measure(BATCH, [&mut ours, &mut floor])?;
    let after = machine.hypervisor.calls();
    let ours = machine.fabric.stats().wakeups - wakeups + (after.deliveries - calls.deliveries);
    Ok(Measured::new(samples, "write")
        // "=": as near as two medians of the same system call come.
        .at_most(1.05)
        .with_fact("wake-ups and deliveries of ours", ours as f64, Some(0.0)))
}

/// An edge pin of the IOAPIC: the line rises and falls.
pub fn edge_line(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::uncounted(Promotion::Never)?;
    machine.program_pin(4, FIRST.into());
    let source = machine.fabric.line(4)?.source("edge");
    let mut ours = || Ok(time(|| (0..BATCH).for_each(|_| source.pulse())));
    let samples = rounds.measure(BATCH, [&mut ours, &mut || raw_signals(&machine, 0..1, BATCH)])?;
    Ok(Measured::new(samples, "SIGNAL_MSI").at_most(1.15))
}

/// Level pins of the IOAPIC, raised; that they are lowered and ended is not counted here.
pub fn level_line(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::uncounted(Promotion::Never)?;
    let sources = level_pins(&machine)?;
    let commits = machine.fabric.stats().commits;
    let mut ours = || {
        let took = time(|| sources.iter().for_each(LineSource::raise));
        lower_and_end(&machine, &sources);
        Ok(took)
    };
    let pins = sources.len();
    let samples = rounds.measure(pins, [&mut ours, &mut || raw_signals(&machine, 0..pins, pins)])?;
    let commits = machine.fabric.stats().commits - commits;
    Ok(Measured::new(samples, "SIGNAL_MSI").at_most(1.15).with_fact("table commits", commits as f64, Some(0.0)))
}

/// A source on each of 24 level pins, whose routes have been parked by a first interrupt.
pub fn level_pins(machine: &Machine) -> Result<Vec<LineSource>, Error> {
    for pin in 0..24 {
        machine.program_pin(pin, LEVEL | u64::from(FIRST + pin));
    }
    let source = |gsi| Ok(machine.fabric.line(gsi)?.source("level"));
    let sources = (0..24).map(source).collect::<Result<Vec<_>, Error>>()?;
    sources.iter().for_each(LineSource::raise);
    lower_and_end(machine, &sources);
    Ok(sources)
}

fn lower_and_end(machine: &Machine, sources: &[LineSource]) {
    for (vector, source) in (FIRST..).zip(sources) {
        source.lower();
        machine.fabric.end_of_interrupt(vector);
    }
}

/// `count` KVM_SIGNAL_MSI to the vectors of `which` in turn.
fn raw_signals(machine: &Machine, which: Range<usize>, count: usize) -> Result<Duration, Error> {
    let messages: Vec<_> = which.map(msi).collect();
    try_time(|| messages.iter().cycle().take(count).try_for_each(|&message| raw_signal(&machine.vm, message)))
}
