//! The reference VMM's command line: `irqfabric run` shows the fabric at work, `irqfabric boot` boots a guest on it,
//! `irqfabric bench` measures it, `irqfabric replay` runs what was recorded of it again.
//!
//! Exit status: 0 as intended, 1 when the guest failed, 2 when it could not be started; then one sentence on stderr says
//! why.

mod bench;
mod boot;
mod devices;
mod error;
mod files;
mod machine;
mod record;
mod run;
mod testdev;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Interrupts for virtual machines: a reference VMM.
///
/// Without a subcommand it does what `run` does.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows the fabric at work with a small guest of its own
    Run(run::Args),
    /// Boots a kernel, or a bare-metal test image
    Boot(Box<boot::Args>),
    /// Measures the fabric's paths against the system calls that do the job
    Bench(bench::Args),
    /// Runs the state machines of a recording again, and compares
    Replay(record::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = log() {
        eprintln!("irqfabric: RUST_LOG: {error}");
        return ExitCode::from(2);
    }
    let outcome = match &cli.command {
        None => run::main(&cli.run),
        Some(Command::Run(args)) => run::main(args),
        Some(Command::Boot(args)) => boot::main(args),
        Some(Command::Bench(args)) => return bench::main(args),
        Some(Command::Replay(args)) => record::main(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("irqfabric: {error}");
        ExitCode::from(2)
    })
}

/// What the fabric could not do on this host, and what RUST_LOG asks for: `irqfabric::exits=trace` has every exit of a
/// vCPU. The `log` records of other crates stay out: guests can cause some.
fn log() -> Result<(), ParseError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) => text.parse()?,
        Err(_) => Targets::new().with_default(LevelFilter::WARN),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    Ok(())
}
