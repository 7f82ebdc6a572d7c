//! `cargo xtask test`: every check of the project, one after the other, none of them stopping the rest.

use crate::report::Report;
use crate::scenarios::{self, Scale};
use crate::steps::{self, Step};
use crate::testbed;
use anyhow::{Result, bail};
use std::process::ExitCode;

/// Run every check of the project.
///
/// Steps: formatting, clippy for all feature combinations, unit and documentation tests, the models, the fuzz targets
/// on bounded input, the documentation itself, the licences and sources of dependencies, `irqfabric run` on this
/// machine's KVM and in simulation, and the testbed's scenarios (stock KVM and stock Linux guests under QEMU). What a
/// machine cannot run is SKIPPED, with the reason and the command that would enable it. Logs are in target/xtask/.
#[derive(clap::Args)]
pub struct Args {
    /// Leave out the scenarios that need the testbed
    #[arg(long)]
    skip_testbed: bool,
    /// Run only these steps (`--list` names them); `testbed` means all scenarios
    #[arg(long, value_name = "STEP", num_args = 1..)]
    only: Vec<String>,
    /// Show the output of everything that runs (the default when CI=true)
    #[arg(long, short)]
    verbose: bool,
    /// Name the steps and end
    #[arg(long)]
    list: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let steps = steps::all();
    let scenarios = scenarios::ours(Scale::Quick);
    let names: Vec<&str> =
        steps.iter().map(|step| step.name).chain(scenarios.iter().map(|scenario| scenario.name.as_str())).collect();
    if args.list {
        names.iter().for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args.only.iter().find(|only| *only != "testbed" && !names.contains(&only.as_str())) {
        bail!("there is no step {unknown:?}; the steps are: {}, testbed", names.join(", "));
    }
    let wanted =
        |name: &str, group: &str| args.only.is_empty() || args.only.iter().any(|only| only == name || only == group);
    let stream = args.verbose || is_ci();
    let mut report = Report::default();
    for Step { name, work } in steps.iter().filter(|step| wanted(step.name, "")) {
        report.step(name, &format!("cargo xtask test --only {name}"), stream, work);
    }
    let scenarios: Vec<_> =
        scenarios.into_iter().filter(|scenario| !args.skip_testbed && wanted(&scenario.name, "testbed")).collect();
    if !scenarios.is_empty() {
        testbed::run::scenarios(&scenarios, &mut report, stream);
    }
    Ok(if report.conclude() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Continuous integration: nobody watches a spinner there, and the output is the log.
pub fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}
