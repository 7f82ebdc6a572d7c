//! One level line, three devices: two disks that drive it, and one that has it by two eventfds, as VFIO and vhost have.
//!
//! Each device's own count, the pin's, and the guest's must agree: nothing is lost, and nothing fires for nobody.

use super::evidence::{BootReport, Console, Evidence};
use super::linux::boot_disks;
use super::{Linux, Machine, Needs, Scale, Scenario};
use crate::testbed::run::ONE_BOOT;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::time::Duration;

const GSI: u32 = 9;
const DISKS: [&str; 3] = [",level,gsi=9", ",level,gsi=9", ",level,gsi=9,eventfd"];
/// The one with the eventfds.
const BY_EVENTFDS: &str = "disk2";

/// Interrupts, and the seconds in which they must have come.
fn load(scale: Scale) -> (u64, u64) {
    match scale {
        Scale::Quick => (5_000, 240),
        Scale::Full => (100_000, 2_400),
    }
}

pub fn level(scale: Scale) -> Scenario {
    let (interrupts, seconds) = load(scale);
    let test = format!(
        "guest-probe flood {interrupts} {seconds} /dev/vda /dev/vdb /dev/vdc | section flood\n\
         section interrupts </proc/interrupts\n"
    );
    Scenario {
        name: "linux-shared-level".into(),
        proves:
            "two disks and a device that resamples by eventfds share one level line under load, and no interrupt is \
                 lost"
                .into(),
        limit: ONE_BOOT + Duration::from_secs(seconds),
        machine: Machine::L1 {
            script: boot_disks(2, &DISKS, " --irqchip split", ""),
            needs: Needs::Product,
            linux: Some(Linux { test }),
        },
        judge: Box::new(move |evidence| judge(evidence, interrupts)),
    }
}

/// The answer of `guest-probe flood`.
#[derive(Deserialize)]
struct Flood {
    irq: u32,
    interrupts: u64,
    disks: Vec<Read>,
}

#[derive(Deserialize)]
struct Read {
    seed: usize,
    blocks: u64,
}

fn judge(evidence: &Evidence, least: u64) -> Result<()> {
    evidence.l1_passed()?;
    let console = Console(evidence.text("console")?);
    console.reached_the_end()?;
    let floods: Vec<Flood> = console.probes("flood")?;
    let flood = floods.first().context("guest-probe gave no answer")?;
    let blocks: u64 = flood.disks.iter().map(|disk| disk.blocks).sum();
    let mut seeds: Vec<usize> = flood.disks.iter().map(|disk| disk.seed).collect();
    seeds.sort_unstable();
    ensure!(seeds == [0, 1, 2], "expected to read disks 0 to 2, read {seeds:?}");
    // Every interrupt has a request that it tells of: two may be told by one, none by two.
    ensure!(
        (least..=blocks).contains(&flood.interrupts),
        "{} interrupts for {blocks} blocks, expected {least} or more and one for each block at the most",
        flood.interrupts
    );
    let rows = console.interrupts()?;
    let row = rows.iter().find(|row| row.irq == flood.irq).context("/proc/interrupts lost the interrupt")?;
    ensure!(row.chip == "IO-APIC" && row.pin == format!("{GSI}-fasteoi"), "expected a level pin, saw {row:?}");
    let seen: u64 = row.counts.iter().sum();
    let report: BootReport = evidence.json("report")?;
    for disk in ["disk0", "disk1", BY_EVENTFDS] {
        let line = report.line(disk)?;
        ensure!(
            line.gsi == GSI && line.delivered == seen && line.ended == seen && line.raised > 0,
            "{disk} on GSI {}: raised {}, the pin delivered {} and ended {}, the guest handled {seen}",
            line.gsi,
            line.raised,
            line.delivered,
            line.ended
        );
    }
    let (raised, pair) = (report.line(BY_EVENTFDS)?.raised, report.pair(BY_EVENTFDS)?);
    ensure!(
        pair.triggered == raised && pair.resampled == raised,
        "{BY_EVENTFDS}: triggered {}, raised {raised}, resampled {}: each was to be the same",
        pair.triggered,
        pair.resampled
    );
    Ok(())
}
