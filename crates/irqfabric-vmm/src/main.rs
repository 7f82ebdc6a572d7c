//! The command line of the reference VMM.

mod bench;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Interrupts for virtual machines: a reference VMM.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures the fabric's paths against the system calls that do the job
    Bench(bench::Args),
}

fn main() -> ExitCode {
    match &Cli::parse().command {
        Command::Bench(args) => bench::main(args),
    }
}
