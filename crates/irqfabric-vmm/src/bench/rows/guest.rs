//! What a guest does to the IOAPIC without anything being delivered: no system call, so the floor is a lock.

use super::super::error::Error;
use super::super::machine::{FIRST, Machine};
use super::super::measure::{Rounds, time};
use super::Measured;
use super::deliver::level_pins;
use irqfabric::fabric::Promotion;
use irqfabric::line::LineSource;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Duration;

const BATCH: usize = 1024;

const MASKED: u32 = 1 << 16;

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
    Ok(Measured::new(samples, "mutex").at_most(20.0).with_fact("system calls", extra as f64, Some(0.0)))
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
    without_calls(&machine, rounds, 12.0, |step| machine.write_window(u32::from(FIRST) + step as u32 % 2))
}

/// A redirection entry is written as it is.
pub fn register_same(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::new(Promotion::Never)?;
    machine.write_select(0x18);
    machine.write_window(FIRST.into());
    without_calls(&machine, rounds, 4.0, |_| machine.write_window(FIRST.into()))
}

/// What Linux does to 24 pins as it boots (`arch/x86/kernel/apic/io_apic.c`): clear_IO_APIC_pin reads an entry, masks it
/// and reads it again; a pin's entry is then written masked, the high half first, and unmasked.
pub fn linux_ioapic_setup(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::new(Promotion::Never)?;
    let read = |pin: u8| {
        for half in [0x10, 0x11] {
            machine.write_select(half + 2 * pin);
            black_box(machine.read_window());
        }
    };
    let set_up = || {
        for pin in 0..24 {
            read(pin);
            machine.write_select(0x10 + 2 * pin);
            machine.write_window(MASKED);
            machine.write_select(0x11 + 2 * pin);
            machine.write_window(0);
            read(pin);
        }
        for pin in 0..24 {
            let level = if pin < 16 { 0 } else { 0xa000 };
            let entry = level | u32::from(FIRST + pin);
            machine.program_pin(pin, (entry | MASKED).into());
            machine.write_select(0x10 + 2 * pin);
            machine.write_window(entry);
        }
    };
    const ACCESSES: usize = 24 * (4 + 4 + 4 + 4 + 2);
    let calls = machine.hypervisor.calls();
    let samples = rounds.measure(1, [&mut || Ok(time(set_up)), &mut || Ok(locks(ACCESSES))])?;
    let after = machine.hypervisor.calls();
    Ok(Measured::new(samples, "mutex ×432")
        .with_fact("table commits", (after.commits - calls.commits) as f64, Some(0.0))
        .with_fact("deliveries", (after.deliveries - calls.deliveries) as f64, Some(0.0)))
}

fn without_calls(machine: &Machine, rounds: Rounds, bound: f64, act: impl Fn(usize)) -> Result<Measured, Error> {
    let calls = machine.hypervisor.calls();
    let mut ours = || Ok(time(|| (0..BATCH).for_each(&act)));
    let samples = rounds.measure(BATCH, [&mut ours, &mut || Ok(locks(BATCH))])?;
    let after = machine.hypervisor.calls();
    let calls = after.deliveries - calls.deliveries + (after.commits - calls.commits);
    Ok(Measured::new(samples, "mutex").at_most(bound).with_fact("system calls", calls as f64, Some(0.0)))
}

/// A lock that nobody else wants, taken and given back.
fn locks(count: usize) -> Duration {
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
