//! The project's chores: `cargo xtask test`, `fuzz`, `coverage`, `mutants`, `bugs`, `testbed …` and `figures`.
//!
//! `test` runs everything that decides whether the tree is good, from formatting to stock Linux guests. `fuzz` runs the
//! fuzz targets for as long as one likes; `coverage` counts the guest-facing lines that the tests run, `mutants` the small
//! changes to them that the tests notice, and `bugs` sees whether the tests find deliberate mistakes. `testbed` prepares and
//! runs the machines for the tests with Linux: a stock Debian kernel under QEMU's TCG has a real `/dev/kvm`, so they need no
//! hardware virtualization; they work on any x86-64 Debian machine. `figures` measures what the README shows.

mod bugs;
mod coverage;
mod figures;
mod fuzz;
mod mutants;
mod process;
mod report;
mod scenarios;
mod steps;
mod test;
mod testbed;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The project's chores.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Run every check of the project; the exit status is 0 when none failed
    Test(test::Args),
    /// Run fuzz targets under libFuzzer; the exit status is 0 when none failed
    Fuzz(fuzz::Args),
    /// Measure which lines of the guest-facing modules the tests run; the exit status is 0 unless they are too few
    Coverage(coverage::Args),
    /// Put deliberate bugs into a copy of the tree; the exit status is 0 when all that ran were found
    Bugs(bugs::Args),
    /// Change the guest-facing modules' code and see whether their unit tests notice; the exit status is 0 if they do
    Mutants(mutants::Args),
    /// Stock KVM and stock Linux guests on any machine, without hardware virtualization
    #[command(subcommand)]
    Testbed(testbed::command::Command),
    /// Measure what the README shows, a table and a plot, and put it there: on a machine that does nothing else
    Figures,
}

fn main() -> ExitCode {
    let result = process::install_interrupt_handler().and_then(|()| match Cli::parse().chore {
        Chore::Test(args) => test::run(&args),
        Chore::Fuzz(args) => fuzz::run(&args),
        Chore::Coverage(args) => coverage::run(&args),
        Chore::Bugs(args) => bugs::run(&args),
        Chore::Mutants(args) => mutants::run(&args),
        Chore::Testbed(command) => testbed::command::run(command),
        Chore::Figures => figures::run().map(|()| ExitCode::SUCCESS),
    });
    match result {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
