//! `--record FILE` of `run` and `boot`, and `irqfabric replay FILE`.

use crate::error::Error;
use crate::files;
use irqfabric::record::{Recorder, replay};
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A recording that is being written.
pub struct Recording {
    recorder: Recorder,
    path: PathBuf,
}

/// Options of `irqfabric replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What `--record` has written, or a script in the same format (docs/RECORDING.md)
    file: PathBuf,
    /// Prints one JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl Recording {
    /// Creates the file, if one is asked for.
    pub fn start(path: Option<&Path>) -> Result<Option<Self>, Error> {
        path.map(|path| {
            let file = File::create(path).map_err(|why| Error::file("recording", path, why))?;
            let recorder = Recorder::start(file).map_err(|why| Error::file("recording", path, why))?;
            Ok(Self { recorder, path: path.into() })
        })
        .transpose()
    }

    pub const fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Ends it once the machine has stopped, and says on stderr what is in it.
    pub fn finish(self) -> Result<(), Error> {
        let Self { recorder, path } = self;
        let recorded = recorder.finish().map_err(|why| Error::file("recording", &path, why))?;
        let lost = match recorded.lost {
            0 => String::new(),
            lost => format!("; {lost} had no room: a replay stops where the first of a machine is missing"),
        };
        eprintln!(
            "irqfabric: {}: {} records of {} machines{lost}",
            path.display(),
            recorded.records,
            recorded.machines
        );
        Ok(())
    }
}

/// Runs the machines of a recording again. Exit status 0: all outputs are as recorded; 1: one differs; 2: this is no
/// recording, or not all of it.
pub fn main(args: &Args) -> Result<ExitCode, Error> {
    let failed = |why: String| Error::file("recording", &args.file, why);
    let (file, _) = files::open("recording", &args.file)?;
    let mut answers = Vec::new();
    let mut out = std::io::stdout().lock();
    let replayed = replay(BufReader::new(file), |answer| match args.json {
        true => answers.push(answer.to_owned()),
        // Nobody reads it any more: what is counted is the exit status.
        false => drop(writeln!(out, "{answer}")),
    })
    .map_err(|error| failed(error.to_string()))?;
    if args.json {
        let mut report = serde_json::json!(replayed);
        report["answers"] = answers.into();
        let _ = writeln!(out, "{report}");
    } else {
        let _ = write!(out, "{replayed}");
    }
    Ok(match (&replayed.difference, replayed.lost == 0) {
        (Some(_), _) => ExitCode::from(1),
        (None, true) => ExitCode::SUCCESS,
        (None, false) => ExitCode::from(2),
    })
}
