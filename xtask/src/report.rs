//! What the person at the terminal sees: a live line while something runs, and a table at the end.

use indicatif::{ProgressBar, ProgressStyle};
use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

/// How a step ended.
#[derive(Debug)]
pub enum Outcome {
    Passed,
    /// What was expected, what was seen, and the end of the output.
    Failed(String),
    Skipped(Unavailable),
}

/// Something that this machine lacks, and how to get it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}; to enable: {enable}")]
pub struct Unavailable {
    pub reason: String,
    /// A command, ready to paste.
    pub enable: String,
}

/// Shows a child's output: as it is, or as one line that says what goes on.
#[derive(Clone)]
pub enum Live {
    Stream,
    Quiet(ProgressBar),
}

impl Live {
    pub fn start(name: &str, stream: bool) -> Self {
        if stream {
            println!("\n==> {name}");
            return Self::Stream;
        }
        // indicatif draws nothing when standard error is no terminal.
        let bar = ProgressBar::new_spinner().with_prefix(name.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self::Quiet(bar)
    }

    pub fn output(&self, bytes: &[u8]) {
        match self {
            Self::Stream => {
                let mut out = std::io::stdout();
                // Nobody reads any more: the log still has it.
                _ = out.write_all(bytes).and_then(|()| out.flush());
            }
            Self::Quiet(bar) => {
                let text = String::from_utf8_lossy(bytes);
                if let Some(line) = text.lines().map(str::trim).rfind(|line| !line.is_empty()) {
                    bar.set_message(line.chars().filter(|c| !c.is_control()).collect::<String>());
                }
            }
        }
    }

    /// Says what we do ourselves.
    pub fn note(&self, text: &str) {
        self.output(format!("{text}\n").as_bytes());
    }

    pub fn finish(&self) {
        if let Self::Quiet(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// The steps that have run.
#[derive(Default)]
pub struct Report(Vec<(String, Outcome, Duration)>);

impl Report {
    /// Runs one step, prints how it ended, and keeps it for the table. `rerun` is the command for just this one.
    pub fn step(&mut self, name: &str, rerun: &str, stream: bool, work: impl FnOnce(&Live) -> Outcome) {
        let started = Instant::now();
        let live = Live::start(name, stream);
        let outcome = work(&live);
        live.finish();
        let took = started.elapsed();
        println!("{}", Line { name, outcome: &outcome, took });
        match &outcome {
            Outcome::Passed => {}
            Outcome::Failed(why) => {
                for line in why.lines() {
                    println!("    {line}");
                }
                println!("    to run just this: {rerun}");
            }
            Outcome::Skipped(missing) => {
                println!("    {}\n    to enable: {}", missing.reason, missing.enable);
            }
        }
        self.0.push((name.to_owned(), outcome, took));
    }

    /// Prints the table and the last line; true when nothing failed.
    pub fn conclude(&self) -> bool {
        println!("\n{:<36} {:<8} {:>9}", "step", "result", "seconds");
        for (name, outcome, took) in &self.0 {
            println!("{}", Line { name, outcome, took: *took });
        }
        let count = |wanted: fn(&Outcome) -> bool| self.0.iter().filter(|(_, outcome, _)| wanted(outcome)).count();
        let passed = count(|outcome| matches!(outcome, Outcome::Passed));
        let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
        let skipped = count(|outcome| matches!(outcome, Outcome::Skipped(_)));
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
        failed == 0
    }
}

struct Line<'a> {
    name: &'a str,
    outcome: &'a Outcome,
    took: Duration,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = match self.outcome {
            Outcome::Passed => "ok",
            Outcome::Failed(_) => "FAILED",
            Outcome::Skipped(_) => "SKIPPED",
        };
        write!(f, "{:<36} {result:<8} {:>9.1}", self.name, self.took.as_secs_f64())
    }
}

/// The last lines of a long text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
