//! `cargo xtask fuzz`: the targets of `fuzz/` under libFuzzer, one after the other, each for a while.
//!
//! `cargo xtask test` runs the same targets too, bounded, without libFuzzer (the step `fuzz-bounded`).

use crate::process;
use crate::report::{Live, Outcome, Report, Unavailable, tail};
use crate::test::is_ci;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Run fuzz targets under libFuzzer.
///
/// Needs cargo-fuzz and a C++ compiler; the stable toolchain will do, since there is no unsafe code for a sanitizer to
/// watch. What the fuzzer finds worth keeping goes to target/fuzz/corpus/, an input that fails to fuzz/artifacts/.
#[derive(clap::Args)]
pub struct Args {
    /// Which ones, all if none is named (`--list` names them)
    targets: Vec<String>,
    /// How long each runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Show the output of everything that runs (the default when CI=true)
    #[arg(long, short)]
    verbose: bool,
    /// Name the targets and end
    #[arg(long)]
    list: bool,
}

/// Longer than the targets take to build from cold on two cores.
const BUILD: Duration = Duration::from_secs(15 * 60);

pub fn run(args: &Args) -> Result<ExitCode> {
    let targets = targets()?;
    if args.list {
        targets.iter().for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args.targets.iter().find(|name| !targets.contains(name)) {
        bail!("there is no target {unknown:?}; the targets are: {}", targets.join(", "));
    }
    let missing = missing();
    let mut report = Report::default();
    for target in targets.iter().filter(|name| args.targets.is_empty() || args.targets.contains(name)) {
        let step = format!("fuzz-{target}");
        let rerun = format!("cargo xtask fuzz {target} --seconds {}", args.seconds);
        report.step(&step, &rerun, args.verbose || is_ci(), |live| match &missing {
            Some(missing) => Outcome::Skipped(missing.clone()),
            None => match fuzz(target, args.seconds, live) {
                Ok(executions) => {
                    live.finish();
                    println!("    {executions} inputs");
                    Outcome::Passed
                }
                Err(error) => Outcome::Failed(format!("{error:#}")),
            },
        });
    }
    Ok(if report.conclude() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn targets() -> Result<Vec<String>> {
    let folder = workspace::root().join("fuzz/fuzz_targets");
    let files = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<String> =
        files.filter_map(|file| Some(file.ok()?.path().file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// What this machine lacks.
fn missing() -> Option<Unavailable> {
    if !workspace::has_subcommand("fuzz") {
        return Some(Unavailable {
            reason: "cargo-fuzz is not installed".into(),
            enable: "cargo install cargo-fuzz".into(),
        });
    }
    let mut compiler = Command::new(workspace::tool("CXX", "c++"));
    compiler.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    (!compiler.status().is_ok_and(|end| end.success())).then(|| Unavailable {
        reason: "libFuzzer needs a C++ compiler, and there is none".into(),
        enable: "sudo apt-get install g++".into(),
    })
}

/// Runs one target. Returns how many inputs it was given.
fn fuzz(target: &str, seconds: u64, live: &Live) -> Result<String> {
    let found = workspace::make(workspace::root().join("target/fuzz/corpus").join(target))?;
    let log = workspace::logs()?.join(format!("fuzz-{target}.log"));
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let limit = BUILD + Duration::from_secs(seconds);
    let end = process::run(command(target, seconds, &found), &log, live, Some(limit))?;
    let output = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
    if !end.is_success() {
        bail!("{end}\n{}\nall of it: {}", tail(&output, 40), workspace::shown(&log));
    }
    let executions = output.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    Ok(executions.context("libFuzzer did not say how many inputs it has run")?.trim().to_owned())
}

fn command(target: &str, seconds: u64, found: &Path) -> Command {
    let mut command = workspace::cargo();
    command.args(["fuzz", "run", "--features", "libfuzzer", "--sanitizer", "none", "--target-dir", "target/fuzz"]);
    // New inputs go to the first folder.
    command.arg(target).args([found.to_owned(), PathBuf::from("fuzz/corpus").join(target)]);
    command.args(["--", "-print_final_stats=1", "-max_len=4096", &format!("-max_total_time={seconds}")]);
    command
}
