//! `cargo xtask mutants`: whether the unit tests of the guest-facing modules notice it when the code is changed, by
//! cargo-mutants.
//!
//! Each module is judged by its own unit tests alone: what only a test of something else would notice counts as survived.
//! A mutant that does not build is none. Runs are alike: the property tests draw the same cases each time.

use crate::process::{self, End};
use crate::report::{Live, Outcome, Report, Unavailable, tail};
use crate::test::is_ci;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Change the guest-facing modules in all the small ways there are, and see whether their unit tests notice.
///
/// Needs cargo-mutants. A few seconds for each mutant on two cores, and there are some 1,350. Which mutants became what
/// is in target/xtask/mutants/.
#[derive(clap::Args)]
pub struct Args {
    /// Which ones, all if none is named (`--list` names them)
    modules: Vec<String>,
    /// Run only this part of each module's mutants, as 0/4; a part is not judged
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
    /// Show the output of everything that runs (the default when CI=true)
    #[arg(long, short)]
    verbose: bool,
    /// Name the modules and end
    #[arg(long)]
    list: bool,
}

/// What is judged by itself: a state machine, or a kind of them.
struct Module {
    name: &'static str,
    /// Its sources, in the library's `src`. cargo-mutants leaves out the tests among them by itself.
    sources: &'static str,
    /// What the names of its unit tests begin with.
    tests: &'static str,
}

const MODULES: [Module; 6] = [
    Module { name: "ioapic", sources: "chip/ioapic{.rs,/**}", tests: "guest_facing::chip::ioapic::" },
    Module { name: "lapic", sources: "chip/lapic/**", tests: "guest_facing::chip::lapic::" },
    Module { name: "pic", sources: "chip/pic/**", tests: "guest_facing::chip::pic::" },
    Module { name: "msg", sources: "msg.rs", tests: "guest_facing::msg::" },
    Module { name: "pci", sources: "pci/**", tests: "guest_facing::pci::" },
    Module { name: "remap", sources: "remap/**", tests: "guest_facing::remap::" },
];

/// Of each module's mutants.
const LEAST_PERCENT: usize = 90;

/// Of one module's mutants, all of them.
const LIMIT: Duration = Duration::from_secs(3 * 60 * 60);

/// Of one mutant's build or tests, which take a second or two.
const HUNG: &str = "30";

/// The endings of cargo-mutants that mean that it has tried all mutants: caught, some survived, some hung.
const DONE: [i32; 3] = [0, 2, 3];

pub fn run(args: &Args) -> Result<ExitCode> {
    if args.list {
        MODULES.iter().for_each(|module| println!("{}", module.name));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args.modules.iter().find(|name| MODULES.iter().all(|module| module.name != *name)) {
        bail!("there is no module {unknown:?}; the modules are: {}", MODULES.map(|module| module.name).join(", "));
    }
    let wanted = |module: &&Module| args.modules.is_empty() || args.modules.iter().any(|name| name == module.name);
    let installed = workspace::has_subcommand("mutants");
    let mut report = Report::default();
    let mut table = Vec::new();
    for module in MODULES.iter().filter(wanted) {
        let step = format!("mutants-{}", module.name);
        let rerun = format!("cargo xtask mutants {}", module.name);
        report.step(&step, &rerun, args.verbose || is_ci(), |live| {
            if !installed {
                return Outcome::Skipped(Unavailable {
                    reason: "cargo-mutants is not installed".into(),
                    enable: "cargo install cargo-mutants".into(),
                });
            }
            match mutate(module, args.shard.as_deref(), live) {
                Ok(mutants) => {
                    live.finish();
                    mutants.survived.iter().for_each(|mutant| println!("    survived: {mutant}"));
                    let outcome = if args.shard.is_none() { judge(&mutants) } else { Outcome::Passed };
                    table.push((module.name, mutants));
                    outcome
                }
                Err(error) => Outcome::Failed(format!("{error:#}")),
            }
        });
    }
    if !table.is_empty() {
        println!("\n{:<8} {:>7} {:>7} {:>5} {:>9} {:>8}", "module", "mutants", "caught", "hung", "survived", "percent");
        table.iter().for_each(|(name, mutants)| println!("{name:<8} {mutants}"));
    }
    Ok(if report.conclude() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What became of the mutants of a module, by name.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mutants {
    caught: usize,
    hung: usize,
    survived: Vec<String>,
}

impl Mutants {
    fn all(&self) -> usize {
        self.caught + self.hung + self.survived.len()
    }
}

impl fmt::Display for Mutants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.caught as f64 / self.all().max(1) as f64;
        let (all, survived) = (self.all(), self.survived.len());
        write!(f, "{all:>7} {:>7} {:>5} {survived:>9} {percent:>8.1}", self.caught, self.hung)
    }
}

/// A mutant that hung was noticed, but perhaps by a machine that was busy: it does not count as caught.
fn judge(mutants: &Mutants) -> Outcome {
    if mutants.all() > 0 && mutants.caught * 100 >= mutants.all() * LEAST_PERCENT {
        return Outcome::Passed;
    }
    Outcome::Failed(format!(
        "expected at least {LEAST_PERCENT} % of the mutants to be caught, saw {} of {}",
        mutants.caught,
        mutants.all()
    ))
}

fn mutate(module: &Module, shard: Option<&str>, live: &Live) -> Result<Mutants> {
    let log = workspace::logs()?.join(format!("mutants-{}.log", module.name));
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let folder = workspace::make(workspace::root().join("target/xtask/mutants").join(module.name))?;
    let end = process::run(command(module, shard, &folder), &log, live, Some(LIMIT))?;
    if !matches!(end, End::Exited(status) if status.code().is_some_and(|code| DONE.contains(&code))) {
        let output = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        bail!("{end}\n{}\nall of it: {}", tail(&output, 40), workspace::shown(&log));
    }
    outcomes(&folder.join("mutants.out"))
}

fn command(module: &Module, shard: Option<&str>, folder: &Path) -> Command {
    let mut command = workspace::cargo();
    command.args([
        "mutants",
        "--package",
        "irqfabric",
        "--no-default-features",
        "--timeout",
        HUNG,
        "--colors",
        "never",
    ]);
    command.args(["--file", &format!("crates/irqfabric/src/{}", module.sources)]);
    command.arg("--output").arg(folder);
    if let Some(shard) = shard {
        command.args(["--shard", shard]);
    }
    // Only the library's unit tests are built, and of these only the module's are run.
    command.args(["--cargo-arg", "--lib", "--", module.tests]);
    // Each mutant is a build: what makes that faster, and a folder in which the dependencies stay built.
    command.env("CARGO_TARGET_DIR", workspace::root().join("target/mutants"));
    command.envs([
        ("CARGO_INCREMENTAL", "1"),
        ("CARGO_PROFILE_DEV_DEBUG", "none"),
        ("CARGO_PROFILE_TEST_DEBUG", "none"),
    ]);
    // A failing case need not be made small, nor kept.
    command.envs([("PROPTEST_CASES", "32"), ("PROPTEST_RNG_SEED", "1"), ("PROPTEST_MAX_SHRINK_ITERS", "0")]);
    command.envs([("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1"), ("RUST_BACKTRACE", "0")]);
    command
}

/// Reads the lists that cargo-mutants leaves, a mutant on each line.
fn outcomes(folder: &Path) -> Result<Mutants> {
    let list = |name: &str| -> Result<Vec<String>> {
        let file = folder.join(name);
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    Ok(Mutants { caught: list("caught.txt")?.len(), hung: list("timeout.txt")?.len(), survived: list("missed.txt")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutants_that_do_not_build_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let lists = [("caught.txt", "a\nb\n"), ("timeout.txt", ""), ("missed.txt", "c\n"), ("unviable.txt", "d\ne\n")];
        for (name, text) in lists {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let found = outcomes(folder.path()).unwrap();
        assert_eq!(found, Mutants { caught: 2, hung: 0, survived: vec!["c".into()] });
        assert_eq!(found.to_string(), "      3       2     0         1     66.7");
    }

    #[test]
    fn a_run_that_left_no_lists_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(outcomes(folder.path()).unwrap_err().to_string().contains("caught.txt"));
    }

    #[test]
    fn a_module_with_few_mutants_caught_or_none_at_all_does_not_pass() {
        let passes = |caught, hung, survived: usize| {
            let mutants = Mutants { caught, hung, survived: vec![String::new(); survived] };
            matches!(judge(&mutants), Outcome::Passed)
        };
        assert!(passes(90, 0, 10));
        assert!(!passes(899, 0, 101));
        assert!(!passes(89, 11, 0), "a mutant that hung is not one that was caught");
        assert!(!passes(0, 0, 0), "nothing tried is nothing proved");
    }
}
