//! `cargo xtask coverage`: how much of the guest-facing modules the library's own tests reach, by cargo-llvm-cov.
//!
//! Lines count, in the sources themselves: test modules are left out, since they would only make the figure better.

use crate::process;
use crate::report::{Live, Outcome, Report, Unavailable, tail};
use crate::test::is_ci;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Measure which lines of the guest-facing modules the library's tests run.
///
/// Needs cargo-llvm-cov, and an llvm-cov and llvm-profdata of the LLVM that rustc was built with: the toolchain's own, those
/// that LLVM_COV and LLVM_PROFDATA name, or Debian's. Tests that need /dev/kvm are left out.
#[derive(clap::Args)]
pub struct Args {
    /// Show the output of everything that runs (the default when CI=true)
    #[arg(long, short)]
    verbose: bool,
}

/// The modules that a guest reaches, as they stand in the library's `src`.
const MODULES: [&str; 4] = ["chip", "msg", "pci", "remap"];

/// Of each module's lines.
const LEAST_PERCENT: usize = 95;

/// Longer than an instrumented build and the tests take from cold on two cores.
const LIMIT: Duration = Duration::from_secs(20 * 60);

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut report = Report::default();
    report.step("coverage", "cargo xtask coverage", args.verbose || is_ci(), |live| match tools() {
        Err(missing) => Outcome::Skipped(missing),
        Ok(tools) => match measure(&tools, live) {
            Ok(modules) => {
                live.finish();
                judge(&modules)
            }
            Err(error) => Outcome::Failed(format!("{error:#}")),
        },
    });
    Ok(if report.conclude() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The lines of a module, or of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lines {
    all: usize,
    run: usize,
}

impl Lines {
    fn count(&mut self, runs: bool) {
        self.all += 1;
        self.run += usize::from(runs);
    }

    fn suffice(self) -> bool {
        self.all > 0 && self.run * 100 >= self.all * LEAST_PERCENT
    }
}

fn judge(modules: &BTreeMap<&str, Lines>) -> Outcome {
    println!("    {:<8} {:>6} {:>6} {:>8}", "module", "lines", "run", "percent");
    for (module, lines) in modules {
        let percent = 100.0 * lines.run as f64 / lines.all.max(1) as f64;
        println!("    {module:<8} {:>6} {:>6} {percent:>8.2}", lines.all, lines.run);
    }
    let poor: Vec<_> = modules.iter().filter(|(_, lines)| !lines.suffice()).map(|(module, _)| *module).collect();
    if poor.is_empty() {
        return Outcome::Passed;
    }
    Outcome::Failed(format!(
        "expected at least {LEAST_PERCENT} % of the lines of each module; less: {}\nwhich lines: {}",
        poor.join(", "),
        workspace::shown(&data_file())
    ))
}

fn data_file() -> PathBuf {
    workspace::root().join("target/xtask/coverage.lcov")
}

// Tools.

struct Tools {
    cov: PathBuf,
    profdata: PathBuf,
}

/// Tools that read what this rustc's LLVM writes, or what this machine lacks.
fn tools() -> Result<Tools, Unavailable> {
    if !workspace::has_subcommand("llvm-cov") {
        return Err(Unavailable {
            reason: "cargo-llvm-cov is not installed".into(),
            enable: "cargo install cargo-llvm-cov".into(),
        });
    }
    let mut rustc = Command::new(workspace::tool("RUSTC", "rustc"));
    rustc.arg("-vV").current_dir(workspace::root());
    let version = output(rustc).unwrap_or_default();
    let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let major = field("LLVM version:").and_then(|version| version.split('.').next()).unwrap_or("unknown").to_owned();
    let mut sysroot = Command::new(workspace::tool("RUSTC", "rustc"));
    sysroot.args(["--print", "sysroot"]).current_dir(workspace::root());
    let own = PathBuf::from(output(sysroot).unwrap_or_default().trim())
        .join("lib/rustlib")
        .join(field("host:").unwrap_or_default())
        .join("bin");
    let named = |variable: &str, name: &str| std::env::var_os(variable).map_or_else(|| own.join(name), PathBuf::from);
    let candidates = [
        Tools { cov: named("LLVM_COV", "llvm-cov"), profdata: named("LLVM_PROFDATA", "llvm-profdata") },
        Tools { cov: format!("llvm-cov-{major}").into(), profdata: format!("llvm-profdata-{major}").into() },
        Tools { cov: "llvm-cov".into(), profdata: "llvm-profdata".into() },
    ];
    let fits = |tool: &Path| {
        let mut command = Command::new(tool);
        command.arg("--version");
        output(command).is_some_and(|text| is_of(&text, &major))
    };
    candidates.into_iter().find(|tools| fits(&tools.cov) && fits(&tools.profdata)).ok_or_else(|| Unavailable {
        reason: format!(
            "no llvm-cov and llvm-profdata of LLVM {major}, which this rustc was built with, in its toolchain, on the path \
             or where LLVM_COV and LLVM_PROFDATA say (Debian's package is llvm-{major})"
        ),
        enable: "rustup component add llvm-tools".into(),
    })
}

/// Whether a tool says that it is of this LLVM.
fn is_of(version: &str, major: &str) -> bool {
    let said = version.split("LLVM version ").nth(1).and_then(|version| version.split('.').next());
    said == Some(major)
}

fn output(mut command: Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

// Figures.

fn measure(tools: &Tools, live: &Live) -> Result<BTreeMap<&'static str, Lines>> {
    let log = workspace::logs()?.join("coverage.log");
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = workspace::cargo();
    command.args(["llvm-cov", "--package", "irqfabric", "--all-features", "--lcov", "--output-path"]);
    command.arg(data_file()).args(["--", "--skip", "on_kvm::"]);
    command.env("LLVM_COV", &tools.cov).env("LLVM_PROFDATA", &tools.profdata);
    let end = process::run(command, &log, live, Some(LIMIT))?;
    if !end.is_success() {
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        bail!("{end}\n{}\nall of it: {}", tail(&text, 40), workspace::shown(&log));
    }
    let data = fs::read_to_string(data_file()).context("cargo llvm-cov has left no data")?;
    let source = workspace::root().join("crates/irqfabric/src");
    by_module(&data, &source, |file| fs::read_to_string(file))
}

/// Counts the lines of an lcov file (`geninfo(1)`, FILES) by module.
fn by_module(
    data: &str,
    source: &Path,
    read: impl Fn(&Path) -> std::io::Result<String>,
) -> Result<BTreeMap<&'static str, Lines>> {
    let mut modules: BTreeMap<_, _> = MODULES.into_iter().map(|module| (module, Lines::default())).collect();
    // Of the file that is being told of: its module, and the first line of its tests.
    let mut present = None;
    for line in data.lines() {
        if let Some(file) = line.strip_prefix("SF:") {
            present = match module_of(Path::new(file), source) {
                None => None,
                Some(module) => {
                    let text = read(Path::new(file)).with_context(|| format!("cannot read {file}"))?;
                    Some((module, first_of_tests(&text)))
                }
            };
        } else if let (Some((module, tests)), Some(record)) = (present, line.strip_prefix("DA:")) {
            let mut fields = record.split(',').map(str::parse::<usize>);
            let (Some(Ok(number)), Some(Ok(count))) = (fields.next(), fields.next()) else {
                bail!("not a line record of lcov's: {line}");
            };
            if number < tests {
                modules.entry(module).or_default().count(count > 0);
            }
        }
    }
    Ok(modules)
}

fn module_of(file: &Path, source: &Path) -> Option<&'static str> {
    let inside = file.strip_prefix(source).ok()?.with_extension("");
    let mut parts = inside.iter();
    let module = parts.next()?;
    let is_test = parts.any(|part| part == "tests");
    MODULES.into_iter().find(|name| module == *name && !is_test)
}

/// The line at which a file's own test module begins.
fn first_of_tests(text: &str) -> usize {
    let lines: Vec<_> = text.lines().collect();
    let begins = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests {");
    lines.windows(2).position(begins).map_or(usize::MAX, |place| place + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_count_for_their_module_and_those_of_tests_for_none() {
        let data = "SF:/s/chip/pic.rs\nDA:1,7\nDA:2,0\nDA:9,1\nend_of_record\n\
                    SF:/s/chip/pic/tests.rs\nDA:1,1\nend_of_record\n\
                    SF:/s/remap/vtd/tests/queue.rs\nDA:1,1\nend_of_record\n\
                    SF:/s/msg.rs\nDA:3,1\nend_of_record\n\
                    SF:/s/fabric/mod.rs\nDA:1,0\nend_of_record\n";
        let text = "a\nb\nc\nd\n#[cfg(test)]\nmod tests {\n\n\n  x\n}\n";
        let found = by_module(data, Path::new("/s"), |_| Ok(text.into())).unwrap();
        let expected = [("chip", 2, 1), ("msg", 1, 1), ("pci", 0, 0), ("remap", 0, 0)];
        assert_eq!(found, expected.map(|(module, all, run)| (module, Lines { all, run })).into());
    }

    #[test]
    fn data_that_is_not_lcov_is_refused() {
        let found = by_module("SF:/s/msg.rs\nDA:x,1\n", Path::new("/s"), |_| Ok(String::new()));
        assert!(found.unwrap_err().to_string().contains("DA:x,1"));
    }

    #[test]
    fn a_module_with_few_lines_run_or_none_at_all_does_not_pass() {
        assert!(Lines { all: 100, run: 95 }.suffice());
        assert!(!Lines { all: 1000, run: 949 }.suffice());
        assert!(!Lines::default().suffice(), "nothing measured is nothing proved");
    }

    #[test]
    fn tools_of_another_llvm_do_not_do() {
        assert!(is_of("LLVM (http://llvm.org/):\n  LLVM version 22.1.2-rust-1.95.0-stable\n", "22"));
        assert!(!is_of("Debian LLVM version 14.0.6\n", "22"));
        assert!(!is_of("", "22"));
    }
}
