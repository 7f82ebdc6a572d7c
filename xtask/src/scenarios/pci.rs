//! Stock Linux with disks on a PCI bus: each queue has an MSI-X vector, each vector a CPU.

use super::evidence::{BootReport, Console, Evidence, Row};
use super::linux::{boot_disks, devices};
use super::{Linux, Machine, Needs, Scenario};
use crate::testbed::run::ONE_BOOT;
use anyhow::{Context, Result, ensure};

/// Run in L2: every disk is read on every CPU, so by every queue. Often: a vector becomes hot when it has waited a
/// hundred times as long as the last commit took, which under emulation is as long as reading a disk once.
const READ_ON_EVERY_CPU: &str = "\
for disk in /sys/block/vd*; do
    for round in $(seq 4); do
        for cpu in $(seq $(nproc)); do
            taskset -c $((cpu - 1)) guest-probe verify /dev/${disk##*/} >/tmp/answer || cat /tmp/answer
        done
    done
    cat /tmp/answer
    device=$(readlink $disk/device)
    echo \"DISK ${disk##*/} ${device##*/}\"
done | section disks
section interrupts </proc/interrupts
";

const CPUS: usize = 2;

pub fn linux() -> Scenario {
    Scenario {
        name: "linux-pci".into(),
        proves: "stock Linux reads PCI disks, each CPU by a queue and an MSI-X vector of its own, in-process and hot"
            .into(),
        limit: ONE_BOOT,
        machine: machine(&[",pci", ",pci,eventfd"], ""),
        judge: Box::new(judge),
    }
}

/// The driver does without MSI-X when the kernel is told so: the function's pin, by `_PRT`.
pub fn without_msix() -> Scenario {
    Scenario {
        name: "linux-pci-intx".into(),
        proves: "a PCI disk whose driver uses no MSI-X interrupts by its pin".into(),
        limit: ONE_BOOT,
        machine: machine(&[",pci"], "pci=nomsi"),
        judge: Box::new(judge_pin),
    }
}

fn machine(disks: &[&str], append: &str) -> Machine {
    let arguments = match append {
        "" => " --irqchip split".to_owned(),
        // The last one counts.
        append => format!(" --irqchip split --append '{} {append}'", crate::testbed::KERNEL_ARGUMENTS),
    };
    let script = boot_disks(CPUS as u32, disks, &arguments, "");
    Machine::L1 { script, needs: Needs::Product, linux: Some(Linux { test: READ_ON_EVERY_CPU.into() }) }
}

fn judge(evidence: &Evidence) -> Result<()> {
    let Read { interrupts: rows, report, devices } = read_all(evidence, 2)?;
    for (seed, device) in devices {
        let request = format!("{device}-req.");
        let rows: Vec<&Row> = rows.iter().filter(|row| row.action.starts_with(&request)).collect();
        ensure!(rows.len() == CPUS, "disk{seed}: expected {CPUS} request vectors, saw {rows:?}");
        for row in &rows {
            let cpus = row.counts.iter().filter(|count| **count > 0).count();
            ensure!(row.chip.starts_with("PCI-MSIX"), "disk{seed}: expected PCI-MSIX, saw {}", row.chip);
            ensure!(cpus == 1, "disk{seed}: expected {} to be one CPU's, saw {:?}", row.action, row.counts);
        }
        for cpu in 0..CPUS {
            let here = rows.iter().filter(|row| row.counts.get(cpu).is_some_and(|count| *count > 0)).count();
            ensure!(here == 1, "disk{seed}: expected one vector for CPU {cpu}, saw {here}: {rows:?}");
        }
        let seen: u64 = rows.iter().flat_map(|row| &row.counts).sum();
        let name = format!("disk{seed}");
        match seed {
            0 => in_process(&report, &name, seen)?,
            _ => hot(&report, &name, seen)?,
        }
    }
    Ok(())
}

/// Every message of a vector that is signalled in-process is counted by us as it is by the guest.
fn in_process(report: &BootReport, name: &str, seen: u64) -> Result<()> {
    let delivered: u64 = report.vectors(name).map(|vector| vector.delivered).sum();
    let signalled: u64 = report.vectors(name).map(|vector| vector.signalled).sum();
    // Two messages that meet in a LAPIC's IRR are one interrupt.
    ensure!(
        (seen..=signalled).contains(&delivered) && seen > 0 && seen * 2 > delivered,
        "{name}: {signalled} signalled, {delivered} delivered, the guest handled {seen}"
    );
    Ok(())
}

/// The request vectors became hot, and from then on the fabric had no part in their interrupts.
fn hot(report: &BootReport, name: &str, seen: u64) -> Result<()> {
    let cold: u64 = report.vectors(name).map(|vector| vector.delivered).sum();
    let hot = report.vectors(name).filter(|vector| vector.hot && vector.vector > 0).count();
    ensure!(hot == CPUS, "{name}: expected {CPUS} vectors to be hot in the end, saw {hot}");
    ensure!(
        cold < seen / 2,
        "{name}: expected the kernel to deliver most of {seen} interrupts, saw {cold} delivered in userspace"
    );
    ensure!(report.promotions >= CPUS as u64, "expected {CPUS} promotions, saw {}", report.promotions);
    // It wakes up for each event of a cold vector, for a promotion's deadline, and to be told of its end.
    let most = cold + 2 * report.promotions + 2;
    ensure!(report.wakeups <= most, "the dispatcher woke up {} times, expected {most} at the most", report.wakeups);
    Ok(())
}

fn judge_pin(evidence: &Evidence) -> Result<()> {
    let Read { interrupts: rows, report, devices } = read_all(evidence, 1)?;
    for (seed, device) in devices {
        let row = rows.iter().find(|row| row.has_action(&device));
        let row = row.with_context(|| format!("/proc/interrupts has no {device} (disk {seed})"))?;
        ensure!(row.chip == "IO-APIC" && row.pin.ends_with("-fasteoi"), "expected a level pin, saw {row:?}");
        let (line, seen) = (report.line(&format!("disk{seed}"))?, row.counts.iter().sum::<u64>());
        ensure!(
            line.delivered == seen && seen > 0,
            "disk{seed}: the report says {} delivered, the guest handled {seen}",
            line.delivered
        );
        let signalled: u64 = report.vectors.iter().map(|vector| vector.signalled).sum();
        ensure!(signalled == 0, "expected no message, saw {signalled}");
    }
    Ok(())
}

/// What came back from a guest that has read its disks.
struct Read {
    interrupts: Vec<Row>,
    report: BootReport,
    /// Which disk is which device of the guest.
    devices: Vec<(u32, String)>,
}

/// Linux came to its end, and all its disks were read, each the right one.
fn read_all(evidence: &Evidence, disks: u32) -> Result<Read> {
    evidence.l1_passed()?;
    let console = Console(evidence.text("console")?);
    console.reached_the_end()?;
    let report = evidence.json("report")?;
    let mut devices = devices(&console)?;
    devices.sort_unstable();
    let seeds: Vec<u32> = devices.iter().map(|(seed, _)| *seed).collect();
    ensure!(seeds.iter().copied().eq(0..disks), "expected to read disks 0 to {}, read {seeds:?}", disks - 1);
    Ok(Read { interrupts: console.interrupts()?, report, devices })
}
