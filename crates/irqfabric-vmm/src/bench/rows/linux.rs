//! What Linux does to the IOAPIC, against one commit for each write to a redirection entry.

use super::super::error::Error;
use super::super::machine::{FIRST, Machine};
use super::super::measure::{Rounds, time, try_time};
use super::super::raw::{Raw, msi, signal, table};
use super::Measured;
use super::deliver::LEVEL;
use super::guest::locks;
use irqfabric::fabric::{IOAPIC_ADDRESS, Promotion};
use kvm_bindings::KvmIrqRouting;
use std::hint::black_box;
use std::time::Duration;

/// What a boot of stock Linux did, in its order; the file says which and how it was recorded.
const RECORDED: &str = include_str!("../linux-ioapic.txt");

const MASKED: u64 = 1 << 16;

/// One access to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Select(u8),
    Read,
    Write(u32),
    EndOfInterrupt(u8),
}

/// Every access of a boot from power-on to power-off. No device interrupts: what is measured is the registers.
pub fn ioapic_setup(rounds: Rounds) -> Result<Measured, Error> {
    let accesses = parse(RECORDED).ok_or(Error::Recording)?;
    let machine = Machine::new(Promotion::Never)?;
    let raw = Raw::new()?;
    let table = table(24)?;
    let writes = entry_writes(&accesses);
    let calls = machine.hypervisor.calls();
    let mut played = 0;
    let mut ours = || {
        played += 1;
        Ok(time(|| accesses.iter().for_each(|&access| play(&machine, access))))
    };
    let mut floor = || Ok(locks(accesses.len()));
    // The locks stand for the registers, which the usual way has as well.
    let mut usual = || Ok(locks(accesses.len()) + commits(&raw, &table, writes)?);
    let [ours, floor, usual] = rounds.few().measure(1, [&mut ours, &mut floor, &mut usual])?;
    let after = machine.hypervisor.calls();
    let (commits, deliveries) = (after.commits - calls.commits, after.deliveries - calls.deliveries);
    Ok(Measured::new([ours, floor], "mutex each")
        .against(usual, "a commit for each write to an entry")
        .with_calls((commits + deliveries) as f64 / f64::from(played), Some(0.0))
        .with_fact("register accesses", accesses.len() as f64, None)
        .with_fact("writes to redirection entries", writes as f64, None))
}

/// A level interrupt moves to another vector, as Linux does it: masked, both halves written, unmasked; and fires there.
pub fn level_move(rounds: Rounds) -> Result<Measured, Error> {
    let machine = Machine::new(Promotion::Never)?;
    let raw = Raw::new()?;
    let (own, whole) = (table(1)?, table(24)?);
    let source = machine.fabric.line(20)?.source("level");
    let mut vectors = (FIRST..=FIRST + 1).cycle();
    let mut moved = || {
        let vector = vectors.next().unwrap_or(FIRST);
        let entry = LEVEL | u64::from(vector);
        machine.write_select(0x10 + 2 * 20);
        machine.write_window((entry | MASKED) as u32);
        machine.program_pin(20, entry | MASKED);
        machine.write_select(0x10 + 2 * 20);
        machine.write_window(entry as u32);
        source.raise();
        source.lower();
        machine.fabric.end_of_interrupt(vector);
    };
    let calls = machine.system_calls();
    let mut done = 0;
    let mut ours = || {
        done += 1;
        Ok(time(&mut moved))
    };
    let mut floor = || try_time(|| raw.commit(&own).and_then(|()| signal(&raw.vm, msi(0))));
    let mut usual = || {
        let commits = commits(&raw, &whole, 4)?;
        Ok(commits + try_time(|| signal(&raw.vm, msi(0)))?)
    };
    let [ours, floor, usual] = rounds.measure(1, [&mut ours, &mut floor, &mut usual])?;
    let calls = (machine.system_calls() - calls) as f64 / f64::from(done);
    // The commit, and the interrupt.
    let measured = Measured::new([ours, floor], "commit+MSI").with_calls(calls, Some(2.0));
    Ok(measured.against(usual, "a commit for each write to the entry"))
}

fn commits(raw: &Raw, table: &KvmIrqRouting, count: usize) -> Result<Duration, Error> {
    try_time(|| (0..count).try_for_each(|_| raw.commit(table)))
}

fn play(machine: &Machine, access: Access) {
    match access {
        Access::Select(index) => machine.write_select(index),
        Access::Read => {
            black_box(machine.read_window());
        }
        Access::Write(value) => machine.write_window(value),
        Access::EndOfInterrupt(vector) => {
            machine.fabric.mmio_write(IOAPIC_ADDRESS + 0x40, &u32::from(vector).to_le_bytes());
        }
    }
}

/// Writes to halves of redirection entries, among others.
fn entry_writes(accesses: &[Access]) -> usize {
    let mut selected = 0;
    let mut count = 0;
    for access in accesses {
        match access {
            Access::Select(index) => selected = *index,
            Access::Write(_) if selected >= 0x10 => count += 1,
            _ => {}
        }
    }
    count
}

fn parse(recorded: &str) -> Option<Vec<Access>> {
    let access = |line: &str| {
        Some(match line.split_once(' ').unwrap_or((line, "")) {
            ("select", index) => Access::Select(u8::from_str_radix(index, 16).ok()?),
            ("read", "") => Access::Read,
            ("write", value) => Access::Write(u32::from_str_radix(value, 16).ok()?),
            ("eoi", vector) => Access::EndOfInterrupt(u8::from_str_radix(vector, 16).ok()?),
            _ => return None,
        })
    };
    recorded.lines().filter(|line| !line.starts_with('#')).map(access).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_boot_clears_and_programs_entries() {
        let accesses = parse(RECORDED).unwrap();
        assert!(entry_writes(&accesses) >= 2 * 24, "{} writes", entry_writes(&accesses));
        assert!(accesses.contains(&Access::Read));
    }

    #[test]
    fn a_recording_that_is_not_understood_is_refused() {
        let line = "# why\nselect 10\nwrite 00018041\nread\neoi 41\n";
        let accesses = [Access::Select(0x10), Access::Write(0x18041), Access::Read, Access::EndOfInterrupt(0x41)];
        assert_eq!(parse(line), Some(accesses.into()));
        assert_eq!(parse("write 1ffffffff"), None);
        assert_eq!(parse("poke 1"), None);
    }
}
