//! Plays scenarios: builds what they boot, runs QEMU, collects the evidence, asks the judge.

use super::initramfs::{self, Devices, L1};
use super::machine::{self, Boot};
use super::{Testbed, binaries};
use crate::process::{self, End};
use crate::report::{Live, Outcome, Report, Unavailable, tail};
use crate::scenarios::{Evidence, Linux, Machine, Needs, Scenario};
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How much of a console is shown when a scenario fails.
const TAIL: usize = 25;

/// Runs all of them, each as a step. What this machine lacks makes them SKIPPED, each with the reason.
pub fn scenarios(list: &[Scenario], report: &mut Report, stream: bool) {
    let mut testbed = None;
    report.step("testbed-prepare", "cargo xtask testbed prepare", stream, |live| match Testbed::prepare(live) {
        Ok(ready) => {
            testbed = Some(Ok(ready));
            Outcome::Passed
        }
        Err(error) => {
            let outcome = unprepared(&error);
            testbed = Some(Err(error));
            outcome
        }
    });
    for scenario in list {
        let rerun = format!("cargo xtask testbed run {}", scenario.name);
        report.step(&scenario.name, &rerun, stream, |live| match &testbed {
            Some(Ok(testbed)) => judged(testbed, scenario, live),
            Some(Err(error)) => Outcome::Skipped(missing(error)),
            None => Outcome::Failed("the testbed was not prepared".into()),
        });
    }
}

/// A machine that cannot have a testbed is no failure; a preparation that goes wrong is.
fn unprepared(error: &anyhow::Error) -> Outcome {
    match error.downcast_ref::<Unavailable>() {
        Some(missing) => Outcome::Skipped(missing.clone()),
        None => Outcome::Failed(format!("{error:#}")),
    }
}

fn missing(error: &anyhow::Error) -> Unavailable {
    error.downcast_ref().cloned().unwrap_or_else(|| Unavailable {
        reason: "the testbed's preparation failed".into(),
        enable: "cargo xtask testbed prepare".into(),
    })
}

fn judged(testbed: &Testbed, scenario: &Scenario, live: &Live) -> Outcome {
    let console = match console_of(&scenario.name) {
        Ok(path) => path,
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    let verdict = play(testbed, scenario, live).and_then(|evidence| (scenario.judge)(&evidence));
    match verdict {
        Ok(()) => Outcome::Passed,
        Err(error) => {
            let text = fs::read(&console).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).replace('\r', "");
            let whole = workspace::shown(&console);
            Outcome::Failed(format!(
                "proves: {}\nbut: {error:#}\n--- console, its end ---\n{}\n--- all of it: {whole}",
                scenario.proves,
                tail(&text, TAIL)
            ))
        }
    }
}

fn console_of(name: &str) -> Result<PathBuf> {
    let path = workspace::logs()?.join(name).with_extension("console");
    fs::write(&path, "").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Boots the machine and waits for its end. Its console is kept among the logs.
pub fn play(testbed: &Testbed, scenario: &Scenario, live: &Live) -> Result<Evidence> {
    let console = console_of(&scenario.name)?;
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let files = scratch.path().join("files.tar");
    let initrd = scratch.path().join("l1.cpio");
    let l1 = |script: &str, needs: Needs, linux: Option<&Linux>, devices: Devices| -> Result<()> {
        let (product, tests) = match needs {
            Needs::Nothing => (None, None),
            Needs::Product => (Some(binaries::product(live)?), None),
            Needs::Testdev => (Some(binaries::product(live)?), Some("testdev")),
            Needs::KvmTests => (None, Some("kvm")),
        };
        let program = tests.map(|name| binaries::test_program(name, live)).transpose()?;
        let linux = linux.map(|linux| l2_image(testbed, linux, devices, scratch.path(), live)).transpose()?;
        let l1 = L1 {
            test: script,
            product: product.as_deref(),
            tests: tests.zip(program.as_deref()),
            guest_probe: &binaries::guest_probe(live)?,
            l2: linux.as_deref(),
            devices,
        };
        initramfs::write_l1(testbed, &initrd, &l1)
    };
    let vmlinux = testbed.vmlinux();
    let boot = Boot { kernel: &vmlinux, initrd: &initrd };
    let command = match &scenario.machine {
        Machine::L1 { script, needs, linux } => {
            l1(script, *needs, linux.as_ref(), Devices::Ours)?;
            machine::l1(&boot, &files, "stdio")
        }
        Machine::L1WithIommu { script, linux, devices } => {
            l1(script, Needs::Product, linux.as_ref(), Devices::Passed)?;
            let disks = disks(devices.len() as u32, scratch.path(), live)?;
            let devices: Vec<_> = devices.iter().copied().zip(disks).collect();
            machine::l1_with_iommu(&boot, &files, &devices)
        }
        Machine::Reference { linux, cpus, disks: count } => {
            let initrd = l2_image(testbed, linux, Devices::Ours, scratch.path(), live)?;
            let disks = disks(*count, scratch.path(), live)?;
            machine::reference(&Boot { kernel: &vmlinux, initrd: &initrd }, *cpus, &disks)
        }
    };
    let end = process::run(command, &console, live, Some(scenario.limit))?;
    if let End::TimedOut(_) = end {
        bail!("QEMU {end}");
    }
    let text = fs::read(&console).with_context(|| format!("cannot read {}", console.display()))?;
    let console = String::from_utf8_lossy(&text).replace('\r', "");
    Ok(Evidence { console, files: unpack(&files)? })
}

fn l2_image(testbed: &Testbed, linux: &Linux, devices: Devices, scratch: &Path, live: &Live) -> Result<PathBuf> {
    let path = scratch.join("l2.cpio");
    initramfs::write_l2(testbed, &path, &linux.test, devices, &binaries::guest_probe(live)?)?;
    Ok(path)
}

/// The disks that L1 makes for our VMM, made here for QEMU.
fn disks(count: u32, scratch: &Path, live: &Live) -> Result<Vec<PathBuf>> {
    let probe = binaries::guest_probe(live)?;
    let make = |index: u32| {
        let path = scratch.join(format!("disk{index}"));
        let mut fill = std::process::Command::new(&probe);
        fill.arg("fill").arg(&path).args([crate::scenarios::DISK_BYTES.to_string(), index.to_string()]);
        let done = fill.output().with_context(|| format!("cannot start {}", probe.display()))?;
        if !done.status.success() {
            bail!("guest-probe fill: {}", String::from_utf8_lossy(&done.stdout).trim());
        }
        Ok(path)
    };
    (0..count).map(make).collect()
}

/// The files that the test left in /out. None is no error here: the judge says what it misses.
fn unpack(archive: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let Ok(file) = fs::File::open(archive) else {
        return Ok(files);
    };
    for entry in tar::Archive::new(file).entries().context("cannot read the files sent back")? {
        // Cut off in the middle: the guest died while sending. What came before is good.
        let Ok(mut entry) = entry else { break };
        let name = entry.path().map(|path| path.display().to_string()).unwrap_or_default();
        let mut bytes = Vec::new();
        if entry.header().entry_type().is_file() && entry.read_to_end(&mut bytes).is_ok() {
            files.insert(name.trim_start_matches("./").to_owned(), bytes);
        }
    }
    Ok(files)
}

/// Runs a script in L1 with the console on this terminal; for `shell` and `boot-linux`.
pub fn interactive(testbed: &Testbed, script: &str, linux: &Linux) -> Result<bool> {
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let live = Live::start("building", false);
    let product = binaries::product(&live)?;
    let l2 = l2_image(testbed, linux, Devices::Ours, scratch.path(), &live)?;
    let guest_probe = binaries::guest_probe(&live)?;
    live.finish();
    let initrd = scratch.path().join("l1.cpio");
    let l1 = L1 {
        test: script,
        product: Some(&product),
        tests: None,
        guest_probe: &guest_probe,
        l2: Some(&l2),
        devices: Devices::Ours,
    };
    initramfs::write_l1(testbed, &initrd, &l1)?;
    let boot = Boot { kernel: &testbed.vmlinux(), initrd: &initrd };
    let mut qemu = machine::l1(&boot, &scratch.path().join("files.tar"), "mon:stdio");
    let status = qemu.status().context("cannot start QEMU")?;
    Ok(status.success())
}

/// The longest that one L2 boot may take, with its L1: two emulations deep.
pub const ONE_BOOT: Duration = Duration::from_secs(120);
