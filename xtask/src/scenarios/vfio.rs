//! PCI devices of L1 passed on to L2 by VFIO: Linux uses them by INTx, by MSI and by MSI-X, and their interrupts are counted
//! where they begin, in L1's vfio-pci, on their way, and where they end.

use super::evidence::{BootReport, Console, Evidence, Row, interrupts};
use super::linux::boot_disks;
use super::{DISK_BYTES, Linux, Machine, Scenario};
use crate::testbed::run::ONE_BOOT;
use crate::testbed::{KERNEL_ARGUMENTS, Passable};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Run in L2. The disks are read to their ends, several times. Then their interrupts are counted; for some seconds nothing
/// happens, so that L1 finds the same counts.
const READ: &str = "\
for disk in /dev/nvme0n1 /dev/sda; do
    for second in $(seq 30); do [ -b $disk ] || sleep 1; done
    for round in $(seq 4); do guest-probe verify $disk >/tmp/answer || break; done
    cat /tmp/answer
done | section disks
section interrupts </proc/interrupts
sleep 4
";

const DEVICES: [Passable; 2] = [Passable::Nvme, Passable::Ahci];
/// What the guest calls the interrupts of each device: of several, the one that a read makes is the last.
const NVME: [&str; 2] = ["nvme0q0", "nvme0q1"];
const AHCI: [&str; 1] = ["ahci[0000:00:02.0]"];

/// Each block that is read is one interrupt at the least.
const LEAST: u64 = 4 * DISK_BYTES / 4096;
/// After the guest has counted, its drivers shut the devices down.
const SHUTDOWN: u64 = 16;

pub fn intx() -> Scenario {
    Scenario {
        name: "linux-vfio-intx".into(),
        proves:
            "stock Linux without MSI reads disks of two passed-through PCI devices by their pins, on our IOAPIC and on \
                 KVM's, and handles as many interrupts as the devices sent; on ours each was resampled once"
                .into(),
        limit: 2 * ONE_BOOT,
        machine: machine(boot("pci=nomsi", "", "-split") + &boot("pci=nomsi", " --irqchip kernel", "-kernel")),
        judge: Box::new(|evidence| {
            judge_pins(evidence, "-split", resampled_by_us)?;
            // What KVM delivers is in no report: the counts at both its ends must say it.
            judge_pins(evidence, "-kernel", |_, _, _| Ok(()))
        }),
    }
}

pub fn messages() -> Scenario {
    // From the first interrupt on: when a vector that is used becomes hot depends on how fast this machine is.
    let script = boot("", " --promotion never", "-cold") + &boot("", " --promotion prefill", "-hot");
    Scenario {
        name: "linux-vfio-messages".into(),
        proves:
            "stock Linux reads disks of two passed-through PCI devices by MSI-X and by MSI, delivered by irqfabric and \
                 by irqfds"
                .into(),
        limit: 2 * ONE_BOOT,
        machine: machine(script),
        judge: Box::new(|evidence| {
            judge_messages(evidence, "-cold", delivered_by_us)?;
            judge_messages(evidence, "-hot", delivered_by_the_kernel)
        }),
    }
}

/// In each the device is a step further; the last step is the kernel's to refuse.
pub fn refusals() -> Scenario {
    let address = Passable::NvmeInGroup.address();
    let boot =
        |name| format!("irqfabric boot --kernel /l2/vmlinux --vfio {address} 2>/out/{name}\n[ $? = 2 ] || exit 1\n");
    let bind = bind(&[Passable::NvmeInGroup]);
    let script = boot("driver") + &bind + &boot("group") + "rm /dev/vfio/vfio\n" + &boot("container");
    Scenario {
        name: "vfio-refusals".into(),
        proves: "a device that is not bound to vfio-pci, an IOMMU group that is not viable and a missing /dev/vfio/vfio are \
                 each refused by one sentence that names them"
            .into(),
        limit: ONE_BOOT,
        machine: Machine::L1WithIommu {
            script,
            linux: Some(Linux { test: String::new() }),
            devices: vec![Passable::NvmeInGroup],
        },
        judge: Box::new(judge_refusals),
    }
}

fn machine(boots: String) -> Machine {
    let script = bind(&DEVICES) + &boots;
    Machine::L1WithIommu { script, linux: Some(Linux { test: READ.into() }), devices: DEVICES.into() }
}

/// Takes devices from their drivers and gives them to vfio-pci.
fn bind(devices: &[Passable]) -> String {
    let bind = |device: &Passable| {
        let (address, folder) = (device.address(), format!("/sys/bus/pci/devices/{}", device.address()));
        format!(
            "echo vfio-pci >{folder}/driver_override\n\
             [ ! -e {folder}/driver ] || echo {address} >{folder}/driver/unbind\n\
             echo {address} >/sys/bus/pci/drivers_probe\n"
        )
    };
    devices.iter().map(bind).collect()
}

/// Boots with all devices. Meanwhile, each second, what L1 has counted of their interrupts goes to a file: the rows end with
/// the boot. A pin's count goes on from what it was before.
fn boot(append: &str, arguments: &str, tag: &str) -> String {
    let options: String = DEVICES.iter().map(|device| format!(" --vfio {}", device.address())).collect();
    let arguments = format!("{options}{arguments} --append '{KERNEL_ARGUMENTS} {append}'");
    format!(
        "grep . /sys/kernel/irq/*/per_cpu_count >/out/before{tag}\n\
         head -n 1 /proc/interrupts >/out/host{tag}\n\
         while sleep 1; do grep vfio- /proc/interrupts >>/out/host{tag}; done &\n\
         watch=$!\n{}kill $watch\n",
        boot_disks(1, &[], &arguments, tag)
    )
}

/// What came back of one boot.
struct Booted {
    guest: Vec<Row>,
    /// L1's counts before the boot, by Linux' number of the interrupt.
    before: BTreeMap<u32, u64>,
    /// L1's rows, of every second.
    host: Vec<Row>,
    report: BootReport,
}

impl Booted {
    /// Linux came to its end and read both disks, each the right one.
    fn read(evidence: &Evidence, tag: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Verified {
            bytes: u64,
            seed: usize,
        }
        evidence.l1_passed()?;
        let console = Console(evidence.text(&format!("console{tag}"))?);
        console.reached_the_end()?;
        let verified: Vec<Verified> = console.probes("disks")?;
        let whole = verified.iter().all(|disk| disk.bytes == DISK_BYTES);
        let seeds: Vec<usize> = verified.iter().map(|disk| disk.seed).collect();
        ensure!(whole && seeds == [0, 1], "expected to read disks 0 and 1 whole, read {seeds:?}");
        let before = evidence.text(&format!("before{tag}"))?.lines().filter_map(count_before).collect();
        let host = interrupts::parse(&evidence.text(&format!("host{tag}"))?);
        Ok(Self { guest: console.interrupts()?, before, host, report: evidence.json(&format!("report{tag}"))? })
    }

    fn row(&self, action: &str) -> Result<&Row> {
        let row = self.guest.iter().find(|row| row.has_action(action));
        row.with_context(|| format!("/proc/interrupts of the guest has no {action}: {:?}", self.guest))
    }

    /// While the guest was idle L1 had counted as many of this interrupt as the guest, or a few more that met in a LAPIC's
    /// IRR. What L1 counts on the way there, or when the drivers shut down, is another number in each second.
    fn counted_by_host(&self, action: &str, seen: u64, coalesced: u64) -> Result<()> {
        let total = |row: &Row| row.counts.iter().sum::<u64>();
        let pin = action.starts_with("vfio-intx");
        let before = |row: &Row| self.before.get(&row.irq).copied().filter(|_| pin).unwrap_or_default();
        let rows = self.host.iter().filter(|row| row.has_action(action));
        let counts: Vec<u64> = rows.map(|row| total(row) - before(row)).collect();
        let idle = idle(&counts);
        ensure!(
            idle.is_some_and(|count| (seen..=seen + coalesced).contains(&count)),
            "{action}: the guest handled {seen}, L1 counted {counts:?} second by second, {idle:?} when nothing happened"
        );
        Ok(())
    }
}

/// The last count that stood for two seconds and was not the count of a device that had done nothing yet.
fn idle(counts: &[u64]) -> Option<u64> {
    counts.windows(2).rfind(|pair| pair[0] == pair[1] && pair[0] > 0).map(|pair| pair[0])
}

/// `/sys/kernel/irq/26/per_cpu_count:1030`: L1 has one CPU.
fn count_before(line: &str) -> Option<(u32, u64)> {
    let (irq, count) = line.strip_prefix("/sys/kernel/irq/")?.split_once("/per_cpu_count:")?;
    Some((irq.parse().ok()?, count.parse().ok()?))
}

/// `delivered` judges a pin by our report and what the guest handled. KVM's own IOAPIC counts nothing.
fn judge_pins(evidence: &Evidence, tag: &str, delivered: fn(&BootReport, &str, u64) -> Result<()>) -> Result<()> {
    let booted = Booted::read(evidence, tag)?;
    for (device, action) in DEVICES.into_iter().zip([NVME[1], AHCI[0]]) {
        let (row, address) = (booted.row(action)?, device.address());
        ensure!(row.chip == "IO-APIC" && row.pin.ends_with("-fasteoi"), "expected a level pin, saw {row:?}");
        let seen: u64 = row.counts.iter().sum();
        ensure!(seen >= LEAST, "{address}: {seen} interrupts for {LEAST} reads");
        booted.counted_by_host(&format!("vfio-intx({address})"), seen, 0)?;
        delivered(&booted.report, address, seen)?;
        let signalled: u64 = booted.report.vectors(address).map(|vector| vector.signalled).sum();
        ensure!(signalled == 0, "{address}: expected no message, saw {signalled}");
    }
    Ok(())
}

fn resampled_by_us(report: &BootReport, address: &str, seen: u64) -> Result<()> {
    let line = report.line(address)?;
    ensure!(
        (seen..=seen + SHUTDOWN).contains(&line.delivered),
        "{address} on GSI {}: the report says {} delivered, the guest had handled {seen}",
        line.gsi,
        line.delivered
    );
    ensure!(
        line.raised == line.delivered && line.ended == line.delivered,
        "{address}: raised {}, delivered {}, ended {}: each was to be the same",
        line.raised,
        line.delivered,
        line.ended
    );
    Ok(())
}

/// `delivered` judges a vector by our report and what the guest handled.
fn judge_messages(
    evidence: &Evidence,
    tag: &str,
    delivered: fn(&BootReport, &Passable, u32, u64) -> Result<()>,
) -> Result<()> {
    let booted = Booted::read(evidence, tag)?;
    for (device, kind, chip, actions) in
        [(Passable::Nvme, "msix", "PCI-MSIX", &NVME[..]), (Passable::Ahci, "msi", "PCI-MSI", &AHCI[..])]
    {
        let address = device.address();
        for (vector, action) in (0u32..).zip(actions) {
            let row = booted.row(action)?;
            let seen: u64 = row.counts.iter().sum();
            ensure!(row.chip.starts_with(&format!("{chip}-")), "expected {chip}, saw {row:?}");
            booted.counted_by_host(&format!("vfio-{kind}[{vector}]({address})"), seen, LEAST / 8)?;
            delivered(&booted.report, &device, vector, seen)?;
            let reads = usize::try_from(vector)? + 1 == actions.len();
            ensure!(!reads || seen >= LEAST, "{address} vector {vector}: {seen} interrupts for {LEAST} reads");
        }
        let line = booted.report.line(address);
        ensure!(line.is_err() || line.is_ok_and(|line| line.raised == 0), "{address}: its pin was used");
    }
    Ok(())
}

fn delivered_by_us(report: &BootReport, device: &Passable, vector: u32, seen: u64) -> Result<()> {
    let found = report.vectors(device.address()).find(|found| found.vector == vector);
    let found = found.with_context(|| format!("no vector {vector} of {}", device.address()))?;
    // One that comes while another waits in IRR is no interrupt of its own.
    ensure!(
        !found.hot && (seen..=seen + seen / 8 + SHUTDOWN).contains(&found.delivered),
        "{} vector {vector}: {} delivered, the guest had handled {seen}",
        device.address(),
        found.delivered
    );
    Ok(())
}

fn delivered_by_the_kernel(report: &BootReport, device: &Passable, vector: u32, seen: u64) -> Result<()> {
    let found = report.vectors(device.address()).find(|found| found.vector == vector);
    let found = found.with_context(|| format!("no vector {vector} of {}", device.address()))?;
    // It is cold by now: its driver has freed it. But between the two, all that the guest handled came by the irqfd.
    ensure!(
        found.delivered <= SHUTDOWN,
        "{} vector {vector}: expected the kernel to deliver all of {seen} interrupts, saw {} delivered by us",
        device.address(),
        found.delivered
    );
    ensure!(report.promotions >= 3, "expected three vectors to become hot, saw {} promotions", report.promotions);
    Ok(())
}

fn judge_refusals(evidence: &Evidence) -> Result<()> {
    evidence.l1_passed()?;
    let address = Passable::NvmeInGroup.address();
    for (name, expected) in [
        ("driver", &["is bound to nvme, not to vfio-pci (IOMMU group "][..]),
        ("group", &["IOMMU group ", "is not viable: 0000:00:06.1 is bound to virtio-pci"]),
        ("container", &["/dev/vfio/vfio is not there"]),
    ] {
        let refusal = evidence.text(name)?;
        let named = refusal.starts_with(&format!("irqfabric: VFIO device {address}: "));
        let one = refusal.lines().count() == 1;
        let right = expected.iter().all(|part| refusal.contains(part));
        ensure!(named && one && right, "expected a sentence with {expected:?}, saw:\n{refusal}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_l1_counted_when_nothing_happened_is_the_last_count_that_stood() {
        assert_eq!(idle(&[0, 0, 40, 512, 1029, 1029, 1029, 1033]), Some(1029));
        assert_eq!(idle(&[0, 0, 40, 512, 1029]), None, "none stood");
        assert_eq!(idle(&[]), None);
    }
}
