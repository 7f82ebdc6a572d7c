//! Stock Linux behind a VT-d unit: its interrupts go through a remapping table that it programs, and move from CPU to CPU by
//! changing an entry and invalidating it.
//!
//! Three disks: one on a level line, which Linux ends by the IOAPIC's EOI register; two with message vectors, signalled
//! in-process and by an eventfd that is hot from its programming on. Each is moved under load, and the guest itself judges
//! each move (`guest/moves.rs`). The same disks serve for APIC ids that 8 bits of destination cannot name, behind the unit and
//! without it.

use super::evidence::{BootReport, Console, Row};
use super::linux::{boot_disks, devices};
use super::moves::{Moved, judge_wire, moved};
use super::{Evidence, Linux, Machine, Needs, Scale, Scenario};
use crate::testbed::run::ONE_BOOT;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Two vectors for the configuration and two queues: Linux lets nobody move the vectors of its block queues unless they
/// share one (`vp_find_vqs_msix`).
const DISKS: [&str; 3] = ["", ",pci,queues=2,vectors=2", ",pci,queues=2,vectors=2,eventfd"];

/// The section with what came of each one's moves, in the order of the disks.
const SECTIONS: [&str; 3] = ["moves-level", "moves-call", "moves-eventfd"];

/// What comes before each kind of wire behind the unit.
const REMAPPED: &str = "remapped-";

/// Run in L2: moves the level disk, and with it the action on an edge line, if one is named; then each of
/// the others. Which disk is which device is told by its content.
fn guest(remapped: &str, edge: &str, moves: u64, seconds: u64) -> Linux {
    let find = "\
for disk in /sys/block/vd*; do
    name=${disk##*/}
    answer=$(guest-probe verify /dev/$name)
    echo \"$answer\"
    device=$(readlink $disk/device)
    echo \"DISK $name ${device##*/}\"
    case $answer in
        *'\"seed\":0'*) disk0=/dev/$name ;;
        *'\"seed\":1'*) disk1=/dev/$name ;;
        *'\"seed\":2'*) disk2=/dev/$name ;;
    esac
done >/tmp/disks
section disks </tmp/disks
";
    let moves = SECTIONS.iter().enumerate().map(|(disk, section)| {
        let (kind, edge) = if disk == 0 { ("level", edge) } else { ("message", "") };
        format!("guest-probe move {moves} {seconds} {remapped}{kind} $disk{disk} {edge} | section {section}\n")
    });
    let moves: String = moves.collect();
    let print = "section interrupts </proc/interrupts\ndmesg | grep -E 'DMAR|x2apic' | section dmar\n";
    Linux { test: format!("{find}{moves}{print}") }
}

pub fn boots(cpus: u32, scale: Scale) -> Scenario {
    let (moves, seconds) = match scale {
        Scale::Quick => (200, 120),
        Scale::Full => (1000, 900),
    };
    let arguments = " --irqchip split --intremap vtd --promotion prefill";
    // The load on the serial port is more than a busy host's console takes from four CPUs in time, and a CPU that waits for it
    // stands still.
    let edge = if cpus > 2 { "" } else { "ttyS0" };
    Scenario {
        name: format!("linux-intremap-{cpus}cpu"),
        proves: format!(
            "behind a VT-d unit stock Linux with {cpus} CPUs moves level lines and message vectors under load, without a \
             fault, a late interrupt or a commit too many"
        ),
        limit: limit(seconds),
        machine: machine(cpus, arguments, guest(REMAPPED, edge, moves, seconds)),
        judge: Box::new(move |evidence| {
            let seen = Seen::of(evidence)?;
            seen.remaps()?;
            seen.moved(moves)?;
            seen.commits()
        }),
    }
}

const APIC_IDS: &str = "0,255,256,300";
const CPUS: usize = 4;
/// Each CPU has its turn twice.
const ROUND_TRIPS: u64 = 2 * CPUS as u64;

pub fn apic_ids() -> Scenario {
    let arguments = format!(" --irqchip split --promotion prefill --apic-ids {APIC_IDS} --intremap vtd");
    Scenario {
        name: "linux-intremap-apic-ids".into(),
        proves: format!("behind a VT-d unit interrupts of every kind reach each of the APIC ids {APIC_IDS}"),
        limit: limit(120),
        machine: machine(0, &arguments, guest(REMAPPED, "", ROUND_TRIPS, 120)),
        judge: Box::new(|evidence| {
            let seen = Seen::of(evidence)?;
            seen.remaps()?;
            seen.moved(ROUND_TRIPS)?;
            seen.every_cpu_was_reached()
        }),
    }
}

pub fn apic_ids_without() -> Scenario {
    let arguments = format!(" --irqchip split --promotion prefill --apic-ids {APIC_IDS}");
    Scenario {
        name: "linux-apic-ids".into(),
        proves: format!("by 15-bit destinations interrupts of every kind reach each of the APIC ids {APIC_IDS}"),
        limit: limit(120),
        machine: machine(0, &arguments, guest("", "", ROUND_TRIPS, 120)),
        judge: Box::new(|evidence| {
            let seen = Seen::of(evidence)?;
            ensure!(!seen.dmar()?.contains("IRQ remapping"), "expected no remapping:\n{}", seen.dmar()?);
            seen.moved(ROUND_TRIPS)?;
            seen.every_cpu_was_reached()
        }),
    }
}

fn limit(seconds: u64) -> Duration {
    ONE_BOOT + SECTIONS.len() as u32 * Duration::from_secs(seconds)
}

/// `cpus` is 0 where the arguments name them.
fn machine(cpus: u32, arguments: &str, linux: Linux) -> Machine {
    let mut script = boot_disks(cpus, &DISKS, arguments, "");
    if cpus == 0 {
        script = script.replace(" --vcpus 0", "");
    }
    Machine::L1 { script, needs: Needs::Product, linux: Some(linux) }
}

/// What came back from a guest that ran to its end and read its disks.
struct Seen {
    console: Console,
    rows: Vec<Row>,
    report: BootReport,
    /// The device of each disk.
    devices: Vec<String>,
}

impl Seen {
    fn of(evidence: &Evidence) -> Result<Self> {
        evidence.l1_passed()?;
        let console = Console(evidence.text("console")?);
        console.reached_the_end()?;
        let mut devices = devices(&console)?;
        devices.sort_unstable();
        ensure!(devices.len() == DISKS.len(), "expected {} disks, saw {devices:?}", DISKS.len());
        let devices = devices.into_iter().map(|(_, device)| device).collect();
        let (rows, report) = (console.interrupts()?, evidence.json("report")?);
        Ok(Self { console, rows, report, devices })
    }

    fn dmar(&self) -> Result<&str> {
        self.console.section("dmar")
    }

    /// Linux has enabled it and is content; nothing was blocked.
    fn remaps(&self) -> Result<()> {
        let dmar = self.dmar()?;
        ensure!(dmar.contains("Enabled IRQ remapping in x2apic mode"), "expected x2apic mode, Linux says:\n{dmar}");
        for complaint in ["[INTR-REMAP]", "handling fault", "Failed", "BIOS bug", "timeout"] {
            ensure!(!dmar.contains(complaint), "Linux complains of {complaint:?}:\n{dmar}");
        }
        let blocked = self.report.messages.blocked;
        ensure!(blocked == 0, "{blocked} messages were blocked, expected none");
        for (device, chip) in self.chips("IR-") {
            let row = self.row(&device)?;
            let kind = row.chip.starts_with(&chip) && row.counts.iter().sum::<u64>() > 0;
            ensure!(kind, "expected {device} on {chip} and interrupting, saw {row:?}");
        }
        let serial = self.row("ttyS0")?;
        ensure!(serial.chip == "IR-IO-APIC" && serial.pin == "4-edge", "expected IR-IO-APIC 4-edge, saw {serial:?}");
        let level = self.row(&self.devices[0])?;
        ensure!(level.pin.ends_with("-fasteoi"), "expected a level pin, saw {level:?}");
        Ok(())
    }

    /// The action of each disk's line or vector, and the chip that it is on.
    fn chips(&self, prefix: &str) -> Vec<(String, String)> {
        let message = |device: &String| (format!("{device}-virtqueues"), format!("{prefix}PCI-MSIX"));
        let level = (self.devices[0].clone(), format!("{prefix}IO-APIC"));
        [level].into_iter().chain(self.devices[1..].iter().map(message)).collect()
    }

    fn row(&self, action: &str) -> Result<&Row> {
        let row = self.rows.iter().find(|row| row.has_action(action));
        row.with_context(|| format!("/proc/interrupts has no {action}"))
    }

    /// Each disk was moved as often, and every block read was right.
    fn moved(&self, at_least: u64) -> Result<()> {
        for section in SECTIONS {
            let Moved { disk, blocks_read, edge } = moved(&self.console, section)?;
            judge_wire(section, &disk, at_least)?;
            if let Some(edge) = &edge {
                judge_wire("edge", edge, at_least)?;
            }
            // A block read is an interrupt, though two may share one.
            ensure!(
                disk.interrupts * 2 > blocks_read,
                "{section}: {blocks_read} blocks, {} interrupts",
                disk.interrupts
            );
        }
        Ok(())
    }

    /// No commit for a pin or an in-process vector, one at the most for a move of the hot one.
    fn commits(&self) -> Result<()> {
        // The hot vector's, and its configuration's, become so by a commit each.
        const AT_FIRST: u64 = 4;
        let Moved { disk, .. } = moved(&self.console, SECTIONS[2])?;
        let BootReport { commits, promotions, .. } = self.report;
        ensure!(commits <= disk.moves + AT_FIRST, "{commits} table commits for {} moves of a hot vector", disk.moves);
        // Where detaching is cheaper than a commit a move makes it cold for as long as a hundred commits take, and further
        // moves meanwhile cost nothing. Each that finds it hot takes a commit: its own, or that of its next promotion.
        let found_hot = commits.saturating_sub(AT_FIRST);
        ensure!(
            found_hot >= disk.moves / 8 && promotions > 0,
            "{found_hot} of {} moves of a vector that was to be hot found it so",
            disk.moves
        );
        let cold: u64 = self.report.vectors("disk2").map(|vector| vector.delivered).sum();
        ensure!(
            cold <= disk.interrupts - disk.interrupts / 8,
            "{cold} of {} interrupts of a vector that was to be hot were delivered in userspace",
            disk.interrupts
        );
        Ok(())
    }

    fn every_cpu_was_reached(&self) -> Result<()> {
        for (action, _) in self.chips("") {
            let row = self.row(&action)?;
            let reached = row.counts.iter().filter(|count| **count > 0).count();
            ensure!(reached == CPUS, "expected {action} on each of {CPUS} CPUs, saw {:?}", row.counts);
        }
        Ok(())
    }
}
