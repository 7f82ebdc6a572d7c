//! Interrupts move between CPUs while they fire: none arrives where it no longer belongs, none is lost.
//!
//! The guest itself judges each move (`guest/moves.rs`), for a disk's level line, read flat out with every
//! word checked, and for the serial port's edge line.

use super::evidence::Console;
use super::{Evidence, Linux, Machine, Needs, Scale, Scenario};
use crate::testbed::run::ONE_BOOT;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::time::Duration;

/// Moves of each line, and the time in which to make them.
struct Plan {
    moves: u64,
    /// Fewer are a failure.
    at_least: u64,
    seconds: u64,
}

impl Plan {
    fn of(scale: Scale) -> Self {
        match scale {
            Scale::Quick => Self { moves: 400, at_least: 200, seconds: 90 },
            Scale::Full => Self { moves: 1000, at_least: 1000, seconds: 600 },
        }
    }

    fn linux(&self) -> Linux {
        Linux { test: format!("guest-probe move {} {} /dev/vda ttyS0 | section moves\n", self.moves, self.seconds) }
    }

    fn limit(&self) -> Duration {
        ONE_BOOT + Duration::from_secs(self.seconds)
    }
}

pub fn under_load(scale: Scale) -> Scenario {
    let plan = Plan::of(scale);
    Scenario {
        name: "linux-move-irqs".into(),
        proves: "after a move under load a level interrupt never arrives on the old CPU, an edge once at most".into(),
        limit: plan.limit(),
        machine: Machine::L1 {
            script: super::linux::boot_script(2, 1, &["--irqchip".into(), "split".into()]),
            needs: Needs::Product,
            linux: Some(plan.linux()),
        },
        judge: Box::new(move |evidence| {
            evidence.l1_passed()?;
            judge(&Console(evidence.text("console")?), plan.at_least)
        }),
    }
}

pub fn reference(scale: Scale) -> Scenario {
    let plan = Plan::of(scale);
    Scenario {
        name: "reference-move-irqs".into(),
        proves: "the test of moving interrupts is right: it accepts QEMU's own IOAPIC".into(),
        limit: plan.limit(),
        machine: Machine::Reference { linux: plan.linux(), cpus: 2, disks: 1 },
        judge: Box::new(move |evidence: &Evidence| judge(&Console(evidence.console.clone()), plan.at_least)),
    }
}

fn judge(console: &Console, at_least: u64) -> Result<()> {
    #[derive(Deserialize)]
    struct Moved {
        level: Wire,
        edge: Wire,
        blocks_read: u64,
    }
    #[derive(Deserialize)]
    struct Wire {
        moves: u64,
        interrupts: u64,
    }
    console.reached_the_end()?;
    let moved: Vec<Moved> = console.probes("moves")?;
    let Moved { level, edge, blocks_read } = moved.first().context("guest-probe move gave no answer")?;
    for (kind, wire) in [("level", level), ("edge", edge)] {
        ensure!(wire.moves >= at_least, "{kind}: expected {at_least} moves in time, saw {}", wire.moves);
    }
    // A block read is an interrupt, though two may share one.
    ensure!(
        level.interrupts * 2 > *blocks_read,
        "the disk gave {blocks_read} blocks with only {} interrupts",
        level.interrupts
    );
    Ok(())
}
