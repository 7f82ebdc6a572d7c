//! `irqfabric run`: to come.

use std::process::ExitCode;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it.
pub fn main(_: &Args) -> Result<ExitCode, crate::error::Error> {
    Ok(ExitCode::SUCCESS)
}
