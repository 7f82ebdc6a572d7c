//! Records what stock Linux does to the IOAPIC's registers, from power-on to power-off: what `irqfabric bench` replays.

use super::run::{self, ONE_BOOT};
use super::{KERNEL_ARGUMENTS, Testbed};
use crate::report::Live;
use crate::scenarios::{Machine, Needs, Scenario, linux};
use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

const FILE: &str = "crates/irqfabric-vmm/src/bench/linux-ioapic.txt";
const CPUS: u32 = 2;
const DISKS: u32 = 2;

/// Boots it and writes the file. Returns where that is, and how many accesses it has.
pub fn ioapic(testbed: &Testbed, live: &Live) -> Result<(PathBuf, usize)> {
    let boot = Scenario {
        name: "record-ioapic".into(),
        proves: String::new(),
        limit: ONE_BOOT,
        machine: Machine::L1 {
            script: "export RUST_LOG=irqfabric::exits=trace\n".to_owned() + &linux::boot_script(CPUS, DISKS, &[]),
            needs: Needs::Product,
            linux: Some(linux::print_interrupts()),
        },
        judge: Box::new(|evidence| evidence.l1_passed()),
    };
    let evidence = run::play(testbed, &boot, live)?;
    (boot.judge)(&evidence)?;
    let accesses = accesses(&evidence.text("stderr")?)?;
    ensure!(!accesses.is_empty(), "the guest never touched the IOAPIC");
    let mut text = format!(
        "# Every access of stock Linux to the IOAPIC's registers from power-on to power-off: {CPUS} CPUs, {DISKS} disks on level pins.\n\
         # {}\n# {KERNEL_ARGUMENTS}\n# Recorded by `cargo xtask testbed record-ioapic`.\n",
        testbed.about.kernel_package
    );
    for access in &accesses {
        writeln!(text, "{access}")?;
    }
    let path = workspace::root().join(FILE);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok((path, accesses.len()))
}

/// In the order of the log: `select 10`, `read`, `write 00018041`, `eoi 41`.
fn accesses(log: &str) -> Result<Vec<String>> {
    let exits = log.lines().filter_map(|line| line.split_once(" MMIO ").map(|(_, exit)| exit));
    let ours = exits.filter(|exit| exit.contains(" 0xfec000"));
    ours.map(|exit| access(exit).with_context(|| format!("not an access that Linux makes: {exit}"))).collect()
}

/// Of `write 0xfec00010: 0x00018041`.
fn access(exit: &str) -> Result<String> {
    let (kind, at) = exit.split_once(' ').context("no address")?;
    let (at, value) = at.split_once(": 0x").context("no value")?;
    let value = u32::from_str_radix(value, 16)?;
    Ok(match (kind, at) {
        ("write", "0xfec00000") => format!("select {value:02x}"),
        ("read", "0xfec00010") => "read".into(),
        ("write", "0xfec00010") => format!("write {value:08x}"),
        ("write", "0xfec00040") => format!("eoi {value:02x}"),
        _ => bail!("no such register"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_to_the_first_ioapic_are_told_from_other_exits() {
        let log = "TRACE irqfabric::exits: MMIO write 0xfec00000: 0x00000010\n\
                   TRACE irqfabric::exits: MMIO write 0xfec00010: 0x00018041\n\
                   TRACE irqfabric::exits: MMIO read 0xfec00010: 0x00018041\n\
                   TRACE irqfabric::exits: MMIO read 0xd0000010: 0x00000001\n\
                   TRACE irqfabric::exits: port write 0x3f8: 0x41\n\
                   2 vCPUs, 20 exits\n";
        assert_eq!(accesses(log).unwrap(), ["select 10", "write 00018041", "read"]);
        assert!(accesses("TRACE MMIO write 0xfec00030: 0x00000000").is_err());
    }
}
