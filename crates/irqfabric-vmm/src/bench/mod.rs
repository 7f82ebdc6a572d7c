//! `irqfabric bench`: what each path of the fabric costs, against the floor measured in the same run.
//!
//! The floor is the raw system call, or calls, that do the job; where there is none it is `mutex`, one uncontended lock
//! and unlock. Rounds of ours and of the floor alternate, so that whatever else the host does falls on both alike, and
//! medians are shown. No guest runs: the vCPUs exist, their local APICs are switched on, and interrupts stay requested.
//!
//! Where there is one, the usual way takes its turn as well: an irqfd for whatever interrupts, and one commit of the whole
//! routing table for each change.

mod error;
mod host;
mod machine;
mod measure;
mod plot;
mod raw;
mod report;
mod rows;
mod vtd;

use error::Error;
use indicatif::{ProgressBar, ProgressStyle};
use measure::Rounds;
use report::{Figures, Report};
use rows::{Measure, ROWS, Row};
use std::path::PathBuf;
use std::process::ExitCode;

/// Its options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Measure this row only, or these rows: a name without its number means all of that name. May be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How many rounds each row is measured for; rows of thousands of vectors take a fifteenth, at least three
    #[arg(long, value_name = "N", default_value_t = 101, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Also draws what N vectors cost, programmed and fired twice, ours and the usual way, into this SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// The rows that are drawn.
const PLOTTED: &str = "program";

/// Measures and prints. Status 0 when everything was measured, within its bounds or not, and 2 when it could not be: then
/// one sentence on stderr says why.
pub fn main(args: &Args) -> ExitCode {
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("irqfabric: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<(), Error> {
    machine::check()?;
    let chosen = choose(args)?;
    host::raise_descriptor_limit();
    let style = ProgressStyle::with_template("{pos}/{len} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    // indicatif draws on stderr, and only if that is a terminal.
    let progress = ProgressBar::new(chosen.len() as u64).with_style(style);
    let rounds = Rounds(args.rounds);
    let mut report = Report::new(args.rounds);
    for row in chosen {
        progress.set_message(row.name);
        let figures = match row.measure {
            Measure::Timed(measure) => Figures::Timed(measure(rounds)?),
            Measure::Threads(measure) => Figures::Threads(measure(rounds)?),
            Measure::Facts(count) => Figures::Facts(count()?),
        };
        report.push(row.name, figures);
        progress.inc(1);
    }
    progress.finish_and_clear();
    if let Some(path) = &args.plot {
        let title = "N vectors with eventfds, programmed and fired twice";
        plot::draw(path, &report.points(PLOTTED), [title, &report.host()])?;
    }
    report.print(args.json)
}

fn choose(Args { only, plot, .. }: &Args) -> Result<Vec<&'static Row>, Error> {
    if let Some(unknown) = only.iter().find(|name| !ROWS.iter().any(|row| row.is_called(name))) {
        return Err(Error::NoSuchRow { asked: unknown.clone(), rows: ROWS.iter().map(|row| row.name).collect() });
    }
    let asked = |row: &Row| only.is_empty() || only.iter().any(|name| row.is_called(name));
    Ok(ROWS.iter().filter(|row| asked(row) || (plot.is_some() && row.is_called(PLOTTED))).collect())
}
