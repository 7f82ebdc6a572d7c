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
use vmm_sys_util::eventfd::EventFd;

const BATCH: usize = 128;

pub const LEVEL: u64 = 1 << 15;

/// An in-process vector; as usual, one whose device writes an eventfd of its own for the kernel to take.
pub fn signal(rounds: Rounds) -> Result<Measured, Error> {
    let set_up = |machine: &Machine| {
        let vectors = machine.fabric.msi_vectors(RequesterId::new(0, 3, 0), 1);
        program_all(&vectors).map(|()| vectors)
    };
    let machine = Machine::uncounted(Promotion::Never)?;
    let vectors = set_up(&machine)?;
    let counted = Machine::new(Promotion::Never)?;
    let calls = {
        let vectors = set_up(&counted)?;
        counted.calls_of(BATCH, || vectors[0].signal())
    };
    let raw = Raw::new()?;
    let bound = raw.hot(1)?;
    let mut ours = || Ok(time(|| (0..BATCH).for_each(|_| vectors[0].signal())));
    let (mut floor, mut usual) = (|| raw_signals(&machine, 0..1, BATCH), || writes(&bound[0]));
    let [ours, floor, usual] = rounds.measure(BATCH, [&mut ours, &mut floor, &mut usual])?;
    let measured = Measured::new([ours, floor], "SIGNAL_MSI").at_most(1.10).with_calls(calls, Some(1.0));
    Ok(measured.against(usual, "its own eventfd, with an irqfd"))
}

/// An eventfd that the kernel takes the events of: there is nothing of ours in the way.
pub fn eventfd_hot(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::new(Promotion::Prefill)?;
    let vectors = machine.vectors(1)?;
    program_all(&vectors)?;
    let raw = Raw::new()?;
    let bound = raw.hot(1)?;
    let (wakeups, calls) = (machine.fabric.stats().wakeups, machine.system_calls());
    let mut writes_of_ours = 0;
    let mut ours = || {
        writes_of_ours += BATCH as u64;
        try_time(|| (0..BATCH).try_for_each(|_| fire(&vectors, 0)))
    };
    let samples = rounds.measure(BATCH, [&mut ours, &mut || writes(&bound[0])])?;
    let others = machine.fabric.stats().wakeups - wakeups + (machine.system_calls() - calls);
    let calls = (writes_of_ours + others) as f64 / writes_of_ours as f64;
    // "=": as near as two medians of the same system call come.
    Ok(Measured::new(samples, "write").at_most(1.05).with_calls(calls, Some(1.0)))
}

/// An edge pin of the IOAPIC: the line rises and falls. As usual, an eventfd with an irqfd bound to the pin's GSI.
pub fn edge_line(rounds: Rounds) -> Result<Measured, Error> {
    let set_up = |machine: &Machine| {
        machine.program_pin(4, FIRST.into());
        Ok::<_, Error>(machine.fabric.line(4)?.source("edge"))
    };
    let machine = Machine::uncounted(Promotion::Never)?;
    let source = set_up(&machine)?;
    let counted = Machine::new(Promotion::Never)?;
    let calls = {
        let source = set_up(&counted)?;
        counted.calls_of(BATCH, || source.pulse())
    };
    let raw = Raw::new()?;
    let bound = raw.hot(1)?;
    let mut ours = || Ok(time(|| (0..BATCH).for_each(|_| source.pulse())));
    let (mut floor, mut usual) = (|| raw_signals(&machine, 0..1, BATCH), || writes(&bound[0]));
    let [ours, floor, usual] = rounds.measure(BATCH, [&mut ours, &mut floor, &mut usual])?;
    let measured = Measured::new([ours, floor], "SIGNAL_MSI").at_most(1.15).with_calls(calls, Some(1.0));
    Ok(measured.against(usual, "an eventfd, with an irqfd"))
}

/// Level pins of the IOAPIC, raised; that they are lowered and ended is not counted here.
pub fn level_line(rounds: Rounds) -> Result<Measured, Error> {
    level(rounds, |_, sources| time(|| sources.iter().for_each(LineSource::raise)))
}

/// Level pins of the IOAPIC, raised, lowered and ended: all that a served interrupt takes on our side.
pub fn level_and_eoi(rounds: Rounds) -> Result<Measured, Error> {
    let measured = level(rounds, |machine, sources| {
        time(|| {
            sources.iter().for_each(LineSource::raise);
            lower_and_end(machine, sources);
        })
    })?;
    Ok(Measured { bound: None, ..measured })
}

/// `act` raises each; what it has not lowered and ended is done afterwards.
fn level(rounds: Rounds, act: impl Fn(&Machine, &[LineSource]) -> Duration) -> Result<Measured, Error> {
    let machine = Machine::uncounted(Promotion::Never)?;
    let sources = level_pins(&machine)?;
    let counted = Machine::new(Promotion::Never)?;
    let calls = {
        let sources = level_pins(&counted)?;
        let turn = || {
            act(&counted, &sources);
            lower_and_end(&counted, &sources);
        };
        counted.calls_of(1, turn) / sources.len() as f64
    };
    let mut ours = || {
        let took = act(&machine, &sources);
        lower_and_end(&machine, &sources);
        Ok(took)
    };
    let pins = sources.len();
    let samples = rounds.measure(pins, [&mut ours, &mut || raw_signals(&machine, 0..pins, pins)])?;
    Ok(Measured::new(samples, "SIGNAL_MSI").at_most(1.15).with_calls(calls, Some(1.0)))
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

/// An eventfd whose events the kernel takes.
fn writes(eventfd: &EventFd) -> Result<Duration, Error> {
    try_time(|| (0..BATCH).try_for_each(|_| eventfd.write(1).map_err(Error::call("write of an eventfd"))))
}
