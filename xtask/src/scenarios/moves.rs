//! Interrupts move between CPUs while they fire: none arrives where it no longer belongs, none is lost.
//!
//! The guest itself judges each move (`guest/moves.rs`), for a disk's level line or message vector, read flat out
//! with every word checked, and for the serial port's edge line.

use super::evidence::{BootReport, Console};
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
        Linux {
            test: format!("guest-probe move {} {} level /dev/vda ttyS0 | section moves\n", self.moves, self.seconds),
        }
    }

    /// First the disk that is signalled in-process, then the one whose eventfd the kernel listens to.
    fn linux_msix(&self) -> Linux {
        let test = |(disk, section)| {
            format!("guest-probe move {} {} message {disk} | section {section}\n", self.moves, self.seconds)
        };
        Linux { test: MSIX_DISKS.map(test).concat() }
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

/// The disks of [`msix_under_load`] in the guest, and the sections with what came of each.
const MSIX_DISKS: [(&str, &str); 2] = [("/dev/vda", "moves"), ("/dev/vdb", "moves-eventfd")];

/// Linux lets nobody move the vectors of its block queues, unless they share one (`vp_find_vqs_msix`): two vectors
/// for the configuration and two queues make it do so.
pub fn msix_under_load(scale: Scale) -> Scenario {
    let plan = Plan::of(scale);
    let disks = [",pci,queues=2,vectors=2", ",pci,queues=2,vectors=2,eventfd"];
    Scenario {
        name: "linux-move-msix".into(),
        proves: "after a move under load an MSI-X interrupt arrives on the old CPU once at most, in-process or hot"
            .into(),
        limit: ONE_BOOT + Duration::from_secs(2 * plan.seconds),
        machine: Machine::L1 {
            script: super::linux::boot_disks(2, &disks, " --irqchip split --promotion prefill", ""),
            needs: Needs::Product,
            linux: Some(plan.linux_msix()),
        },
        judge: Box::new(move |evidence| {
            evidence.l1_passed()?;
            let console = Console(evidence.text("console")?);
            console.reached_the_end()?;
            let report: BootReport = evidence.json("report")?;
            for (_, section) in MSIX_DISKS {
                let Moved { disk, blocks_read, .. } = moved(&console, section)?;
                judge_wire(section, &disk, plan.at_least)?;
                // A block read is an interrupt, though two may share one.
                ensure!(
                    disk.interrupts * 2 > blocks_read,
                    "{section}: {blocks_read} blocks, {} interrupts",
                    disk.interrupts
                );
            }
            judge_commits(&report, moved(&console, MSIX_DISKS[1].1)?.disk.moves)
        }),
    }
}

/// In-process vectors need no table. One with an eventfd, which is to be hot from its programming on, needs a new entry
/// for each move and no more.
fn judge_commits(report: &BootReport, moves: u64) -> Result<()> {
    // Before the first move: the vectors of configuration and queues become hot, by a commit each at the most.
    const AT_FIRST: u64 = 4;
    let BootReport { commits, promotions, .. } = *report;
    ensure!(promotions >= moves, "expected the vector to be hot again after each of {moves} moves, saw {promotions}");
    ensure!(
        commits <= moves + AT_FIRST,
        "{commits} table commits for {moves} moves of a hot vector: more than one each"
    );
    let cold: u64 = report.vectors("disk1").map(|vector| vector.delivered).sum();
    ensure!(cold <= moves, "{cold} interrupts of a vector that was to be hot were delivered in userspace");
    Ok(())
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
    console.reached_the_end()?;
    let Moved { disk, edge, blocks_read } = moved(console, "moves")?;
    judge_wire("level", &disk, at_least)?;
    ensure!(disk.stragglers == 0, "{} interrupts of a level line came late", disk.stragglers);
    judge_wire("edge", &edge.context("guest-probe move says nothing of the edge")?, at_least)?;
    // A block read is an interrupt, though two may share one.
    ensure!(
        disk.interrupts * 2 > blocks_read,
        "the disk gave {blocks_read} blocks with only {} interrupts",
        disk.interrupts
    );
    Ok(())
}

/// The guest has judged each move; on average one interrupt came late at the most, for what was on its way.
pub fn judge_wire(kind: &str, wire: &Wire, at_least: u64) -> Result<()> {
    let Wire { moves, stragglers, interrupts: _ } = *wire;
    ensure!(moves >= at_least, "{kind}: expected {at_least} moves in time, saw {moves}");
    ensure!(stragglers <= moves, "{kind}: {stragglers} interrupts came late in {moves} moves");
    Ok(())
}

pub fn moved(console: &Console, section: &str) -> Result<Moved> {
    console.probes(section)?.into_iter().next().with_context(|| format!("guest-probe gave no answer in {section}"))
}

/// The answer of `guest-probe move`.
#[derive(Deserialize)]
pub struct Moved {
    pub disk: Wire,
    pub edge: Option<Wire>,
    pub blocks_read: u64,
}

#[derive(Deserialize)]
pub struct Wire {
    pub moves: u64,
    /// How many interrupts came to a CPU after they had been moved away from it.
    pub stragglers: u64,
    pub interrupts: u64,
}
