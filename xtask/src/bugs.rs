//! `cargo xtask bugs`: the deliberate mistakes of `xtask/bugs/`, each put into a copy of the tree, and found by the tests and
//! models that are there for it.
//!
//! A bug is a patch. What stands before its first file says what is wrong then, and who finds that:
//!
//! ```text
//! test: --lib guest_facing::chip::ioapic::tests::writing_any_other_half_keeps_remote_irr
//! model: fabric::model::pins::raise_and_move
//! ```
//!
//! A test is named with what `cargo test --package irqfabric` needs to know of its target.

use crate::process;
use crate::report::{Live, Outcome, Report, tail};
use crate::test::is_ci;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Put deliberate bugs into a copy of the tree, and see that the tests find them.
///
/// A bug counts as found when every test and model that its patch in xtask/bugs/ names has run and failed. Needs git, which
/// applies the patches.
#[derive(clap::Args)]
pub struct Args {
    /// Which ones, all if none is named (`--list` names them)
    bugs: Vec<String>,
    /// Show the output of everything that runs (the default when CI=true)
    #[arg(long, short)]
    verbose: bool,
    /// Name the bugs and end
    #[arg(long)]
    list: bool,
}

/// Longer than the models take to build from cold on two cores.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// What is not part of the tree.
const LEFT_OUT: [&str; 3] = [".git", ".testbed", "target"];

#[derive(Debug)]
struct Bug {
    name: String,
    patch: PathBuf,
    /// In the words of its patch.
    what: String,
    finders: Vec<Finder>,
}

#[derive(Debug, PartialEq)]
struct Finder {
    /// The options that name its target.
    target: Vec<String>,
    /// With its modules.
    name: String,
    model: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let bugs = bugs()?;
    if args.list {
        bugs.iter().for_each(|bug| println!("{}: {}", bug.name, bug.what));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args.bugs.iter().find(|name| bugs.iter().all(|bug| bug.name != **name)) {
        let names: Vec<_> = bugs.iter().map(|bug| bug.name.as_str()).collect();
        bail!("there is no bug {unknown:?}; the bugs are: {}", names.join(", "));
    }
    let mut report = Report::default();
    for bug in bugs.iter().filter(|bug| args.bugs.is_empty() || args.bugs.contains(&bug.name)) {
        let rerun = format!("cargo xtask bugs {}", bug.name);
        report.step(&bug.name, &rerun, args.verbose || is_ci(), |live| {
            find(bug, live).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")))
        });
    }
    Ok(if report.conclude() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn bugs() -> Result<Vec<Bug>> {
    let folder = workspace::root().join("xtask/bugs");
    let files = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut patches: Vec<_> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    patches.sort();
    patches.into_iter().map(Bug::read).collect()
}

impl Bug {
    fn read(patch: PathBuf) -> Result<Self> {
        let shown = workspace::shown(&patch);
        let text = fs::read_to_string(&patch).with_context(|| format!("cannot read {shown}"))?;
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (head, _) = text.split_once("\n--- ").with_context(|| format!("{shown} changes nothing"))?;
        let (what, finders) = head.split_once("\n\n").with_context(|| format!("{shown} names no test"))?;
        let finders = finders.lines().filter(|line| !line.is_empty());
        let finders: Vec<_> =
            finders.map(|line| Finder::parse(line).with_context(|| shown.clone())).collect::<Result<_>>()?;
        if finders.iter().all(|finder| finder.model) {
            bail!("{shown} names no test");
        }
        Ok(Self { name, patch, what: what.replace('\n', " "), finders })
    }

    /// Puts it into the tree at `root`, or sees whether that could be done.
    fn apply(&self, root: &Path, check: bool) -> Result<()> {
        let mut git = Command::new("git");
        git.current_dir(root).arg("apply").args(check.then_some("--check")).arg(&self.patch);
        // A copy below the repository is to git a part of it, whose files have other paths.
        git.env("GIT_DIR", "/dev/null");
        let output = git.output().context("cannot start git")?;
        if !output.status.success() {
            bail!(
                "{} does not apply: {}",
                workspace::shown(&self.patch),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}

impl Finder {
    fn parse(line: &str) -> Result<Self> {
        let (kind, words) = line.split_once(": ").unwrap_or_default();
        let mut target: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let name = target.pop().unwrap_or_default();
        match (kind, target.is_empty()) {
            ("test", false) => Ok(Self { target, name, model: false }),
            ("model", true) => {
                Ok(Self { target: vec!["--lib".into(), "--no-default-features".into()], name, model: true })
            }
            _ => bail!("this names neither a test nor a model: {line}"),
        }
    }

    /// Tests that need /dev/kvm stand in a module of that name.
    fn is_unavailable(&self) -> bool {
        self.name.starts_with("on_kvm::") && OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err()
    }

    fn command(&self, tree: &Path) -> Command {
        let mut command = workspace::cargo();
        // Not the usual folders: nothing that is built of it may be taken for the library.
        let built = workspace::root().join("target/bugs").join(if self.model { "loom" } else { "built" });
        command.current_dir(tree).args(["test", "--package", "irqfabric", "--target-dir"]).arg(built);
        match self.model {
            true => command.arg("--release").env("RUSTFLAGS", "--cfg loom"),
            false => command.arg("--all-features"),
        };
        command.args(&self.target).args(["--", "--exact", &self.name]);
        command
    }
}

/// Says what came of each finder. It is found if all that could be tried have failed by it.
fn find(bug: &Bug, live: &Live) -> Result<Outcome> {
    let tree = workspace::root().join("target/bugs/tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    }
    copy(&workspace::root(), &tree)?;
    bug.apply(&tree, false)?;
    let log = workspace::logs()?.join(format!("bug-{}.log", bug.name));
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let (mut said, mut missed) = (vec![bug.what.clone()], false);
    for finder @ Finder { name, model, .. } in &bug.finders {
        let who = format!("{} {name}", if *model { "model" } else { "test" });
        live.note(&who);
        said.push(match finder.is_unavailable() {
            true => format!("not tried: {who}: /dev/kvm cannot be opened here"),
            false => match run_finder(finder, &tree, &log, live)? {
                None => format!("FOUND by {who}"),
                Some(output) => {
                    missed = true;
                    format!("NOT FOUND by {who}\n{output}")
                }
            },
        });
    }
    if missed {
        said.push(format!("all of it: {}", workspace::shown(&log)));
        return Ok(Outcome::Failed(said.join("\n")));
    }
    live.finish();
    said.iter().for_each(|line| println!("    {line}"));
    Ok(Outcome::Passed)
}

/// `None` if it failed, else the end of what it said. That the command failed is not enough: the test may not have been
/// built, or not be there.
fn run_finder(finder: &Finder, tree: &Path, log: &Path, live: &Live) -> Result<Option<String>> {
    let before = fs::metadata(log).map_or(0, |data| data.len()) as usize;
    let end = process::run(finder.command(tree), log, live, Some(LIMIT))?;
    let output = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    let output = String::from_utf8_lossy(output.get(before..).unwrap_or_default()).into_owned();
    let failed = format!("test {} ... FAILED", finder.name);
    let found = output.lines().any(|line| line == failed);
    Ok((!found).then(|| format!("{end}\n{}", tail(&output, 20))))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make the folder {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), &to).with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_still_applies_and_names_tests_that_are_there() {
        let mut sources = String::new();
        read_all(&workspace::root().join("crates/irqfabric"), &mut sources);
        for bug in bugs().unwrap() {
            bug.apply(&workspace::root(), true).unwrap();
            for finder in &bug.finders {
                let name = finder.name.rsplit("::").next().unwrap();
                // The models stand in a table.
                let stands = [format!("fn {name}() {{"), format!("    {name}: ")];
                assert!(stands.iter().any(|it| sources.contains(it)), "{}: there is no {}", bug.name, finder.name);
            }
        }
    }

    fn read_all(folder: &Path, sources: &mut String) {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                read_all(&path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn who_finds_a_bug_is_a_test_of_some_target_or_a_model() {
        let test = Finder::parse("test: --test kvm on_kvm::vectors::some").unwrap();
        assert_eq!(test.target, ["--test", "kvm"]);
        assert_eq!((test.name.as_str(), test.model), ("on_kvm::vectors::some", false));
        assert!(Finder::parse("model: fabric::model::pins::some").unwrap().model);
        for wrong in ["", "some", "test: some", "model: --lib some", "tests: --lib some"] {
            assert!(Finder::parse(wrong).is_err(), "{wrong}");
        }
    }
}
