//! A PCI device of L1 passed on to L2 by VFIO: Linux uses it by INTx, by MSI and by MSI-X, and the interrupts are counted
//! where they begin, in L1's vfio-pci, and where they end.

use super::evidence::{BootReport, Console, Evidence, Row};
use super::linux::boot_disks;
use super::{DISK_BYTES, Linux, Machine, Scenario};
use crate::testbed::run::ONE_BOOT;
use crate::testbed::{KERNEL_ARGUMENTS, Passable};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Run in L2. The disks are read to their ends, then their interrupts are counted; L1 has time to count as well before
/// the drivers shut their devices down.
const READ: &str = "\
for disk in /dev/nvme0n1 /dev/sda; do
    for second in $(seq 30); do [ -b $disk ] || sleep 1; done
    guest-probe verify $disk
done | section disks
section interrupts </proc/interrupts
sleep 4
";

pub fn refusals() -> Scenario {
    Scenario {
        name: "vfio-refusals".into(),
        proves: "x".into(),
        limit: ONE_BOOT,
        machine: Machine::L1WithIommu { script: "true".into(), linux: None, devices: vec![Passable::NvmeInGroup] },
        judge: Box::new(|evidence| evidence.l1_passed()),
    }
}

pub fn intx() -> Scenario {
    Scenario {
        name: "linux-vfio-intx".into(),
        proves: "x".into(),
        limit: ONE_BOOT,
        machine: machine("pci=nomsi", ""),
        judge: Box::new(|evidence| evidence.l1_passed()),
    }
}

pub fn messages() -> Scenario {
    Scenario {
        name: "linux-vfio-messages".into(),
        proves: "x".into(),
        limit: ONE_BOOT,
        machine: machine("", ""),
        judge: Box::new(|evidence| evidence.l1_passed()),
    }
}

const DEVICES: [Passable; 2] = [Passable::Nvme, Passable::Ahci];

fn machine(append: &str, arguments: &str) -> Machine {
    let options: String = DEVICES.iter().map(|device| format!(" --vfio {}", device.address())).collect();
    let arguments = format!("{options} --append '{KERNEL_ARGUMENTS} {append}'{arguments}");
    let script = bind(&DEVICES) + WATCH + &boot_disks(1, &[], &arguments, "");
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

/// Each second what L1 has counted of the devices' interrupts, in a file of which the last lines count.
const WATCH: &str = "while sleep 1; do grep vfio- /proc/interrupts >>/out/host; done &\n";
