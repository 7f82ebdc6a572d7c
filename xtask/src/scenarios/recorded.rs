//! Stock Linux with a recorder on its fabric: the recording of the whole boot replays identically, and costs next to nothing.
//!
//! Two boots, for all kinds of machines between them: one whose level line is ended by EOI exits, with a PIC beside it, and
//! one behind a VT-d unit. `cargo xtask testbed record-boot` keeps both, trimmed, for the library's own tests.

use super::evidence::Evidence;
use super::linux::boot_disks;
use super::{Linux, Machine, Needs, Scenario};
use crate::testbed::run::ONE_BOOT;
use anyhow::{Context, Result, ensure};

/// What a record may cost on a host, in seconds; `irqfabric bench` has the row.
const RECORD: f64 = 100e-9;

/// Of a boot's vCPU time, so much may go into its records.
const SHARE: f64 = 0.05;

const READ: &str = "for disk in /sys/block/vd*; do guest-probe verify /dev/${disk##*/}; done | section disks\n";

/// A boot that is worth keeping.
pub struct Boot {
    pub name: &'static str,
    arguments: &'static str,
    /// How many bytes of it are kept: both together less than 200 KiB. Linux reads all pins of an IOAPIC several times before its first
    /// interrupt.
    pub kept: usize,
    /// What its recording must be about.
    machines: &'static [&'static str],
}

pub const BOOTS: [Boot; 2] = [
    Boot {
        name: "linux-recorded",
        arguments: " --pic",
        kept: 136 << 10,
        machines: &["ioapic", "pic", "vector", "line"],
    },
    Boot {
        name: "linux-recorded-intremap",
        arguments: " --intremap vtd",
        kept: 60 << 10,
        machines: &["ioapic", "vtd", "vector", "line"],
    },
];

impl Boot {
    pub fn scenario(&'static self) -> Scenario {
        let arguments = format!(" --irqchip split{} --record /out/recording", self.arguments);
        let boot = boot_disks(2, &["", ",pci", ",pci,eventfd"], &arguments, "");
        // User and system time: KVM counts the guest's as the former.
        let timed = boot.replace("irqfabric boot", "time -o /out/time -f '%U %S' irqfabric boot");
        let replay = "irqfabric replay /out/recording >/out/replayed 2>&1";
        Scenario {
            name: self.name.into(),
            proves: format!(
                "the recording of a whole boot of stock Linux ({}) replays identically, at 5 % of its time or less",
                self.arguments.trim()
            ),
            limit: ONE_BOOT,
            machine: Machine::L1 {
                script: format!("{timed}{replay}\n"),
                needs: Needs::Product,
                linux: Some(Linux { test: READ.into() }),
            },
            judge: Box::new(|evidence| self.judge(evidence)),
        }
    }

    fn judge(&self, evidence: &Evidence) -> Result<()> {
        let replayed = evidence.text("replayed").unwrap_or_default();
        evidence.l1_passed().context(replayed.clone())?;
        ensure!(replayed.contains("all outputs as recorded"), "the replay says: {replayed}");
        let recording = evidence.text("recording")?;
        for machine in self.machines {
            let step = format!(",\"{machine}\":{{");
            ensure!(recording.contains(&step), "expected steps of a machine of the kind {machine}, saw none");
        }
        let (records, seconds) = (recording.lines().count(), seconds(&evidence.text("time")?)?);
        let share = records as f64 * RECORD / seconds;
        ensure!(share <= SHARE, "{records} records in {seconds} s of CPU time are {:.1} % of it", share * 100.0);
        Ok(())
    }
}

fn seconds(time: &str) -> Result<f64> {
    let times = time.split_whitespace().map(|number| number.parse::<f64>());
    let times: Vec<_> = times.collect::<Result<_, _>>().with_context(|| format!("no times: {time}"))?;
    Ok(times.iter().sum())
}
