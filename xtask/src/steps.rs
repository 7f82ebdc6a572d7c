//! The steps of `cargo xtask test` that need no testbed.
//!
//! Cargo steps share the normal target folder, so that what one has built the next need not. Tests run
//! in the debug profile: it builds fastest, and it has overflow checks.

use crate::process;
use crate::report::{Live, Outcome, Unavailable, tail};
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs::{self, OpenOptions};
use std::process::Command;
use std::time::Duration;

/// A check with a name.
pub struct Step {
    pub name: &'static str,
    pub work: fn(&Live) -> Outcome,
}

/// How much of a failed command's output is shown; the log has all of it.
const TAIL: usize = 40;

/// Longer than any step takes from cold on two cores.
const LIMIT: Duration = Duration::from_secs(15 * 60);

pub fn all() -> Vec<Step> {
    vec![
        Step { name: "fmt", work: |live| cargo("fmt", live, &[&["fmt", "--all", "--check"]]) },
        Step { name: "clippy", work: clippy },
        Step { name: "unit", work: |live| cargo("unit", live, &[&UNIT]) },
        Step { name: "unit-kvm", work: |live| on_kvm("unit-kvm", live, &[&UNIT_KVM]) },
        Step { name: "model", work: model },
        Step { name: "fuzz-bounded", work: |live| cargo("fuzz-bounded", live, &[&FUZZ_FMT, &FUZZ_CLIPPY, &FUZZ]) },
        Step { name: "docs", work: docs },
        Step { name: "deny", work: deny },
        Step { name: "deny-advisories", work: deny_advisories },
        Step { name: "run-kvm", work: |live| on_kvm("run-kvm", live, &[&KVM, &KVM]) },
        Step { name: "run-sim", work: |live| cargo("run-sim", live, &[&SIM, &SIM]) },
        Step { name: "replay-kvm", work: |live| on_kvm("replay-kvm", live, &[&RECORD_KVM, &REPLAY_KVM]) },
        Step { name: "replay-sim", work: |live| cargo("replay-sim", live, &[&RECORD_SIM, &REPLAY_SIM]) },
    ]
}

/// Tests that need /dev/kvm stand in a module of that name, wherever they are.
const UNIT: [&str; 6] = ["test", "--workspace", "--all-features", "--", "--skip", "on_kvm::"];
const UNIT_KVM: [&str; 6] = ["test", "--workspace", "--all-features", "--tests", "--", "on_kvm::"];
/// The fuzz targets as tests, over their corpus and random inputs. Their workspace is another one (`cargo xtask fuzz`).
const FUZZ_FMT: [&str; 4] = ["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"];
const FUZZ_CLIPPY: [&str; 9] =
    ["clippy", "--manifest-path", "fuzz/Cargo.toml", "--target-dir", "target", "--all-targets", "--", "-D", "warnings"];
const FUZZ: [&str; 5] = ["test", "--manifest-path", "fuzz/Cargo.toml", "--target-dir", "target"];
const DENY: [&str; 2] = ["deny", "--locked"];
const DENY_FUZZ: [&str; 6] = ["deny", "--locked", "--manifest-path", "fuzz/Cargo.toml", "--config", "deny.toml"];
const KVM: [&str; 6] = ["run", "--release", "--", "run", "--count", "100000"];
const SIM: [&str; 8] = ["run", "--release", "--", "run", "--count", "100000", "--backend", "sim"];

/// What was recorded of a run comes out the same when it is run again.
const RECORD_KVM: [&str; 10] = recorded("kvm", "target/xtask/recording-kvm.jsonl");
const REPLAY_KVM: [&str; 5] = ["run", "--release", "--", "replay", "target/xtask/recording-kvm.jsonl"];
const RECORD_SIM: [&str; 10] = recorded("sim", "target/xtask/recording-sim.jsonl");
const REPLAY_SIM: [&str; 5] = ["run", "--release", "--", "replay", "target/xtask/recording-sim.jsonl"];

const fn recorded(backend: &'static str, file: &'static str) -> [&'static str; 10] {
    ["run", "--release", "--", "run", "--count", "20000", "--backend", backend, "--record", file]
}

/// Everything at once, then the library with each of its features alone: a feature that only builds next to
/// another is a broken feature.
fn clippy(live: &Live) -> Outcome {
    let features = match features_of("irqfabric") {
        Ok(features) => features,
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    let deny = ["--", "-D", "warnings"];
    let mut runs = vec![["clippy", "--workspace", "--all-targets", "--all-features"].to_vec()];
    let alone = ["clippy", "--package", "irqfabric", "--no-default-features"];
    runs.push(alone.to_vec());
    runs.extend(features.iter().map(|feature| [&alone[..], &["--features", feature]].concat()));
    for run in &mut runs {
        run.extend(deny);
    }
    let runs: Vec<&[&str]> = runs.iter().map(Vec::as_slice).collect();
    cargo("clippy", live, &runs)
}

/// The library's own code under loom, every interleaving of its threads within the bounds that the models state. Its
/// own target folder: other `RUSTFLAGS` in the shared one would rebuild everything each time.
fn model(live: &Live) -> Outcome {
    let mut command = workspace::cargo();
    command.args(["test", "--release", "--package", "irqfabric", "--lib", "--no-default-features"]);
    command.args(["--target-dir", "target/loom", "fabric::model"]).env("RUSTFLAGS", "--cfg loom");
    commands("model", live, vec![command])
}

fn docs(live: &Live) -> Outcome {
    let args = ["doc", "--no-deps", "--workspace", "--all-features"];
    let mut command = workspace::cargo();
    command.args(args).env("RUSTDOCFLAGS", "-D warnings");
    commands("docs", live, vec![command])
}

/// Licences, sources and duplicates of what both workspaces depend on; `deny.toml` has the rules.
fn deny(live: &Live) -> Outcome {
    let check = ["check", "--hide-inclusion-graph", "licenses", "bans", "sources"];
    no_cargo_deny()
        .unwrap_or_else(|| cargo("deny", live, &[&[&DENY[..], &check].concat(), &[&DENY_FUZZ[..], &check].concat()]))
}

/// Known vulnerabilities, by a database that is somewhere else: where it cannot be reached nothing was checked.
fn deny_advisories(live: &Live) -> Outcome {
    if let Some(missing) = no_cargo_deny() {
        return missing;
    }
    let fetch = ["fetch", "db"];
    if let Err(error) = try_commands("deny-advisories", live, vec![cargo_command(&[&DENY[..], &fetch].concat())]) {
        let why = format!("{error:#}");
        let why = why.lines().find_map(|line| line.strip_prefix("fatal: ")).unwrap_or("cargo deny fetch db failed");
        return Outcome::Skipped(Unavailable {
            reason: format!("advisories were not checked, their database cannot be had: {why}"),
            enable: "cargo deny fetch db, with a network that reaches the database".into(),
        });
    }
    let check = ["check", "advisories"];
    cargo("deny-advisories", live, &[&[&DENY[..], &check].concat(), &[&DENY_FUZZ[..], &check].concat()])
}

/// To compile it takes longer than all steps that need no testbed: that is left to whoever wants it.
fn no_cargo_deny() -> Option<Outcome> {
    (!workspace::has_subcommand("deny")).then(|| {
        Outcome::Skipped(Unavailable {
            reason: "cargo-deny is not installed".into(),
            enable: "cargo install --locked cargo-deny".into(),
        })
    })
}

fn on_kvm(step: &str, live: &Live, runs: &[&[&str]]) -> Outcome {
    // A folder entry alone proves nothing: the open fails without permission, or where the module is absent.
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Outcome::Skipped(Unavailable {
            reason: format!("/dev/kvm cannot be opened here: {error}"),
            enable: "sudo modprobe -a kvm_amd kvm_intel; sudo usermod -aG kvm \"$USER\"".into(),
        });
    }
    cargo(step, live, runs)
}

fn cargo(step: &str, live: &Live, runs: &[&[&str]]) -> Outcome {
    commands(step, live, runs.iter().map(|args| cargo_command(args)).collect())
}

fn cargo_command(args: &[&str]) -> Command {
    let mut command = workspace::cargo();
    command.args(args);
    command
}

/// Runs the commands in order; the first that fails ends the step.
fn commands(step: &str, live: &Live, list: Vec<Command>) -> Outcome {
    match try_commands(step, live, list) {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

fn try_commands(step: &str, live: &Live, list: Vec<Command>) -> Result<()> {
    let log = workspace::logs()?.join(step).with_extension("log");
    // A log is of one run.
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    for command in list {
        let shown = shown(&command);
        live.note(&format!("$ {shown}"));
        let before = fs::metadata(&log).map_or(0, |data| data.len()) as usize;
        let end = process::run(command, &log, live, Some(LIMIT))?;
        if !end.is_success() {
            let output = fs::read(&log).unwrap_or_default();
            let output = String::from_utf8_lossy(output.get(before..).unwrap_or_default()).into_owned();
            bail!("{shown}: {end}\n{}\nall of it: {}", tail(&output, TAIL), workspace::shown(&log));
        }
    }
    Ok(())
}

fn shown(command: &Command) -> String {
    let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once("cargo".to_owned()).chain(args).collect::<Vec<_>>().join(" ")
}

fn features_of(package: &str) -> Result<Vec<String>> {
    let output = workspace::cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata: no JSON")?;
    let features = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|candidate| candidate["name"] == package)
        .and_then(|package| package["features"].as_object())
        .with_context(|| format!("the workspace has no package {package}"))?;
    Ok(features.keys().filter(|feature| *feature != "default").cloned().collect())
}
