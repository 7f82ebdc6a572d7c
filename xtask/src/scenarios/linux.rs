//! Stock Linux as a guest: it boots, finds its disks, reads them, and counts the interrupts we say we sent.

use super::evidence::{BootReport, Console, Evidence};
use super::{DISK_BYTES, Linux, Machine, Needs, Scenario};
use crate::testbed::run::ONE_BOOT;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The first serial port is ISA, so edge-triggered. A disk's pin is level.
const IOAPIC: Chip = Chip { name: "IO-APIC", pins: Pins::Named { serial: "4-edge", disk: "-fasteoi" } };

const PIC: Chip = Chip { name: "XT-PIC", pins: Pins::Numbered };

/// What /proc/interrupts says of an interrupt controller's lines.
#[derive(Clone, Copy)]
struct Chip {
    name: &'static str,
    pins: Pins,
}

#[derive(Clone, Copy)]
enum Pins {
    /// The pin of the serial port is called so, and that of a disk ends so.
    Named { serial: &'static str, disk: &'static str },
    /// The PIC's inputs have no names: Linux' number of the interrupt is the GSI, which the report has.
    Numbered,
}

/// COM1's, on every PC.
const SERIAL_GSI: u32 = 4;

/// Run in L2. The disks are idle when /proc/interrupts is read, and stay so: their counts are final.
const PRINT_INTERRUPTS: &str = "\
for disk in /sys/block/vd*; do
    guest-probe verify /dev/${disk##*/}
    device=$(readlink $disk/device)
    echo \"DISK ${disk##*/} ${device##*/}\"
done | section disks
section interrupts </proc/interrupts
dmesg | grep -F 'IOAPIC[' | section ioapics
";

pub fn print_interrupts() -> Linux {
    Linux { test: PRINT_INTERRUPTS.into() }
}

/// Run in L1: disks with known content, then one boot. Its console is streamed and kept.
pub fn boot_script(vcpus: u32, disks: u32, arguments: &[String]) -> String {
    let arguments: String = arguments.iter().map(|argument| format!(" {}", quoted(argument))).collect();
    boot(vcpus, disks, &arguments, "")
}

fn boot(vcpus: u32, disks: u32, arguments: &str, tag: &str) -> String {
    boot_disks(vcpus, &vec![""; disks as usize], arguments, tag)
}

/// `disks` has for each disk what follows its file's name. `tag` tells the files of several boots apart.
pub fn boot_disks(vcpus: u32, disks: &[&str], arguments: &str, tag: &str) -> String {
    let options: String = disks.iter().enumerate().map(|(disk, how)| format!(" --disk /tmp/disk{disk}{how}")).collect();
    let append = crate::testbed::KERNEL_ARGUMENTS;
    let count = disks.len();
    format!(
        "set -o pipefail\n\
         for disk in $(seq {count}); do guest-probe fill /tmp/disk$((disk - 1)) {DISK_BYTES} $((disk - 1)) \
         >/dev/null || exit 1; done\n\
         irqfabric boot --kernel /l2/vmlinux --initrd /l2/initrd --append '{append}' --vcpus {vcpus}{options}\\\n  \
         --report /out/report{tag}{arguments} 2>/out/stderr{tag} | tee /out/console{tag} || {{\n    \
         status=$?\n    cat /out/stderr{tag}\n    exit $status\n}}\ncat /out/stderr{tag}\n"
    )
}

/// For the shell: whatever the word contains.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

pub fn boots(vcpus: u32) -> Scenario {
    Scenario {
        name: format!("linux-{vcpus}cpu"),
        proves: format!(
            "stock Linux with {vcpus} CPU(s) under a split irqchip boots, reads its disks, counts the interrupts \
             that we count, and powers off"
        ),
        limit: ONE_BOOT,
        machine: l1(boot(vcpus, 2, " --irqchip split", "")),
        judge: Box::new(|evidence| judge_boot(evidence, "", 2).map(drop)),
    }
}

/// As on a PC without IOAPIC, every line interrupts the boot processor by the PIC. Its vectors come by KVM_INTERRUPT.
pub fn noapic() -> Scenario {
    let append = format!(" --irqchip split --pic --append '{} noapic'", crate::testbed::KERNEL_ARGUMENTS);
    Scenario {
        name: "linux-noapic".into(),
        proves:
            "stock Linux with `noapic` boots on our PIC, reads its disks, counts the interrupts that we count, and \
                 powers off"
                .into(),
        limit: ONE_BOOT,
        machine: l1(boot(2, 2, &append, "")),
        judge: Box::new(|evidence| judge_boot_on(PIC, evidence, "", 2).map(drop)),
    }
}

pub fn thirty_disks() -> Scenario {
    const DISKS: u32 = 30;
    Scenario {
        name: "linux-30disks".into(),
        proves: "thirty disks have a level pin each, spread over two IOAPICs".into(),
        limit: ONE_BOOT,
        machine: l1(boot(2, DISKS, " --irqchip split", "")),
        judge: Box::new(|evidence| {
            let console = judge_boot(evidence, "", DISKS)?;
            two_ioapics(&console)
        }),
    }
}

/// KVM's own IOAPIC, in the kernel, says how many interrupts this guest has.
pub fn same_as_kernel_irqchip() -> Scenario {
    // Linux may find two requests done with one interrupt; the test reads one block at a time, so seldom.
    const TOLERANCE: u64 = 16;
    let script = boot(1, 2, " --irqchip kernel", "-kernel") + &boot(1, 2, " --irqchip split", "-split");
    Scenario {
        name: "linux-kernel-irqchip".into(),
        proves: "the same guest counts the same interrupts on our IOAPIC and on KVM's".into(),
        limit: 2 * ONE_BOOT,
        machine: l1(script),
        judge: Box::new(|evidence| {
            let [kernel, split] = ["-kernel", "-split"].map(|tag| judge_boot(evidence, tag, 2));
            let (kernel, split) = (disk_counts(&kernel?)?, disk_counts(&split?)?);
            let close = kernel.len() == split.len()
                && kernel.iter().zip(&split).all(|(kernel, split)| kernel.abs_diff(*split) <= TOLERANCE);
            ensure!(close, "interrupts of the disks: {kernel:?} on KVM's IOAPIC, {split:?} on ours");
            Ok(())
        }),
    }
}

pub fn reference() -> Scenario {
    Scenario {
        name: "reference-linux".into(),
        proves: "the guest test and its judge are right: they accept QEMU's own disks and IOAPICs".into(),
        limit: ONE_BOOT,
        machine: Machine::Reference { linux: print_interrupts(), cpus: 2, disks: 4 },
        judge: Box::new(|evidence| {
            let console = Console(evidence.console.clone());
            judge_guest(IOAPIC, &console, 4)?;
            two_ioapics(&console)
        }),
    }
}

fn l1(script: String) -> Machine {
    Machine::L1 { script, needs: Needs::Product, linux: Some(print_interrupts()) }
}

/// What the guest saw is right, and is what the report says.
fn judge_boot(evidence: &Evidence, tag: &str, disks: u32) -> Result<Console> {
    judge_boot_on(IOAPIC, evidence, tag, disks)
}

fn judge_boot_on(chip: Chip, evidence: &Evidence, tag: &str, disks: u32) -> Result<Console> {
    evidence.l1_passed()?;
    let console = Console(evidence.text(&format!("console{tag}"))?);
    judge_guest(chip, &console, disks)?;
    let report: BootReport = evidence.json(&format!("report{tag}"))?;
    let rows = console.interrupts()?;
    let mut devices = devices(&console)?;
    devices.sort_unstable();
    for (disk, device) in devices {
        let seen = total(&console, &device)?;
        let line = report.line(&format!("disk{disk}"))?;
        if let Pins::Numbered = chip.pins {
            let irq = rows.iter().find(|row| row.has_action(&device)).map(|row| row.irq);
            ensure!(irq == Some(line.gsi), "disk{disk} is on GSI {}, the guest has it on {irq:?}", line.gsi);
        }
        ensure!(
            line.delivered == seen,
            "disk{disk} on GSI {}: the report says {} delivered, the guest handled {seen}",
            line.gsi,
            line.delivered
        );
    }
    // The serial port goes on: the very printing of the table interrupts.
    let serial = report.line("serial")?;
    let seen = total(&console, "ttyS0")?;
    ensure!(
        serial.delivered >= seen && seen > 0,
        "serial: the report says {} delivered, the guest had handled {seen} before",
        serial.delivered
    );
    Ok(console)
}

/// Linux reached its end; serial port and disks are on this chip; all disks were read, each the right one.
fn judge_guest(chip: Chip, console: &Console, disks: u32) -> Result<()> {
    console.reached_the_end()?;
    let rows = console.interrupts()?;
    let serial = rows.iter().find(|row| row.has_action("ttyS0")).context("/proc/interrupts has no ttyS0")?;
    let placed = match chip.pins {
        Pins::Named { serial: pin, .. } => serial.pin == pin,
        Pins::Numbered => serial.irq == SERIAL_GSI && serial.pin.is_empty(),
    };
    ensure!(serial.chip == chip.name && placed, "expected ttyS0 on {} {SERIAL_GSI}, saw {serial:?}", chip.name);
    let devices = devices(console)?;
    let mut seeds: Vec<u32> = devices.iter().map(|(seed, _)| *seed).collect();
    seeds.sort_unstable();
    ensure!(seeds.iter().copied().eq(0..disks), "expected to read disks 0 to {}, read {seeds:?}", disks - 1);
    for (seed, device) in devices {
        let row = rows.iter().find(|row| row.has_action(&device));
        let row = row.with_context(|| format!("/proc/interrupts has no {device} (disk {seed})"))?;
        let placed = match chip.pins {
            Pins::Named { disk, .. } => row.pin.ends_with(disk),
            Pins::Numbered => row.pin.is_empty(),
        };
        ensure!(
            row.chip == chip.name && placed,
            "expected {device} (disk {seed}) on a line of {}, saw {row:?}",
            chip.name
        );
    }
    Ok(())
}

/// Which disk is which device of the guest: `(seed, "virtio3")`. The content tells, whatever order Linux chose.
pub fn devices(console: &Console) -> Result<Vec<(u32, String)>> {
    #[derive(Deserialize)]
    struct Verified {
        bytes: u64,
        seed: u32,
    }
    let verified: Vec<Verified> = console.probes("disks")?;
    for disk in &verified {
        ensure!(disk.bytes == DISK_BYTES, "disk {}: read {} bytes of {DISK_BYTES}", disk.seed, disk.bytes);
    }
    let names = console.section("disks")?.lines().filter_map(|line| line.strip_prefix("DISK "));
    let names = names.filter_map(|line| Some(line.split_once(' ')?.1.to_owned()));
    Ok(verified.into_iter().map(|disk| disk.seed).zip(names).collect())
}

/// How often each disk interrupted, by the order of the command line.
fn disk_counts(console: &Console) -> Result<Vec<u64>> {
    let mut devices = devices(console)?;
    devices.sort_unstable();
    devices.iter().map(|(_, device)| total(console, device)).collect()
}

fn total(console: &Console, action: &str) -> Result<u64> {
    let rows = console.interrupts()?;
    let row = rows.iter().find(|row| row.has_action(action));
    Ok(row.with_context(|| format!("/proc/interrupts has no {action}"))?.counts.iter().sum())
}

fn two_ioapics(console: &Console) -> Result<()> {
    let seen = console.section("ioapics")?;
    ensure!(seen.contains("IOAPIC[0]") && seen.contains("IOAPIC[1]"), "expected two IOAPICs, Linux says:\n{seen}");
    Ok(())
}
