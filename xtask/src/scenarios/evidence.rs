//! What a scenario leaves for its judge, and how to read it.

use crate::report::tail;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;

#[path = "../../guest/interrupts.rs"]
pub mod interrupts;

pub use interrupts::Row;

pub struct Evidence {
    /// The machine's console, without carriage returns.
    pub console: String,
    /// What the test left in /out, by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Evidence {
    /// The test in L1 must have ended with status 0.
    pub fn l1_passed(&self) -> Result<()> {
        match self.verdict() {
            Some(0) => Ok(()),
            Some(status) => {
                let errors = self.text("stderr").unwrap_or_default();
                bail!("the test in L1 ended with status {status}, expected 0\n{}", tail(&errors, 15))
            }
            None => {
                bail!("L1 gave no verdict: it crashed or stopped before the line `RESULT rc=…`")
            }
        }
    }

    /// The last one, should a guest have printed something alike.
    fn verdict(&self) -> Option<i32> {
        self.console.lines().rev().find_map(|line| line.strip_prefix("RESULT rc=")?.trim().parse().ok())
    }

    pub fn text(&self, name: &str) -> Result<String> {
        let bytes = self.files.get(name).with_context(|| format!("L1 sent no file {name} back"))?;
        Ok(String::from_utf8_lossy(bytes).replace(['\r', '\0'], ""))
    }

    pub fn json<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<T> {
        let text = self.text(name)?;
        serde_json::from_str(&text).with_context(|| format!("{name} is not as expected: {}", tail(&text, 5)))
    }
}

/// The console of a Linux guest that ran our `l2-init`.
pub struct Console(pub String);

impl Console {
    /// Linux came up, ran its test to the end and powered off.
    pub fn reached_the_end(&self) -> Result<()> {
        for (line, meaning) in [("L2 userspace", "Linux to reach userspace"), ("L2 done", "the test to end")] {
            ensure!(
                self.0.lines().any(|seen| seen.starts_with(line)),
                "expected {meaning}; the guest's console ends:\n{}",
                tail(&self.0, 20)
            );
        }
        Ok(())
    }

    pub fn section(&self, name: &str) -> Result<&str> {
        let (begin, end) = (format!("-----BEGIN {name}-----\n"), format!("-----END {name}-----"));
        let inside = self.0.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
        Ok(inside.with_context(|| format!("the guest printed no section {name:?}"))?.0)
    }

    pub fn interrupts(&self) -> Result<Vec<Row>> {
        let rows = interrupts::parse(self.section("interrupts")?);
        ensure!(!rows.is_empty(), "/proc/interrupts lists no interrupt");
        Ok(rows)
    }

    /// The answers of `guest-probe` in this section; an error if one of them is.
    pub fn probes<T: for<'a> Deserialize<'a>>(&self, section: &str) -> Result<Vec<T>> {
        self.section(section)?.lines().filter_map(|line| line.strip_prefix("PROBE ")).map(|json| probe(json)).collect()
    }
}

/// One answer of `guest-probe`.
pub fn probe<T: for<'a> Deserialize<'a>>(json: &str) -> Result<T> {
    #[derive(Deserialize)]
    struct Failure {
        error: String,
    }
    if let Ok(Failure { error }) = serde_json::from_str(json) {
        bail!("guest-probe: {error}");
    }
    serde_json::from_str(json).with_context(|| format!("guest-probe answered {json}"))
}

/// The file of `irqfabric boot --report`: how often each line and each message vector was delivered.
#[derive(Deserialize)]
pub struct BootReport {
    pub lines: Vec<Line>,
    pub pairs: Vec<Pair>,
    pub vectors: Vec<Vector>,
    pub promotions: u64,
    pub wakeups: u64,
    pub commits: u64,
    pub messages: Messages,
}

/// Messages that did not become interrupts.
#[derive(Deserialize)]
pub struct Messages {
    pub blocked: u64,
}

/// A message vector. What the kernel delivered for it while it was hot is in neither count.
#[derive(Deserialize)]
pub struct Vector {
    /// `disk0`, `disk1`, … in the order of the command line.
    pub device: String,
    pub vector: u32,
    pub signalled: u64,
    pub delivered: u64,
    pub hot: bool,
}

/// What a device with a level line by two eventfds wrote and read.
#[derive(Deserialize)]
pub struct Pair {
    pub device: String,
    pub triggered: u64,
    pub resampled: u64,
}

#[derive(Deserialize)]
pub struct Line {
    /// `serial`; `disk0`, `disk1`, … in the order of the command line.
    pub name: String,
    pub gsi: u32,
    pub raised: u64,
    pub delivered: u64,
    pub ended: u64,
}

impl BootReport {
    /// The vectors of a device.
    pub fn vectors(&self, device: &str) -> impl Iterator<Item = &Vector> {
        self.vectors.iter().filter(move |vector| vector.device == device)
    }

    pub fn pair(&self, device: &str) -> Result<&Pair> {
        let pair = self.pairs.iter().find(|pair| pair.device == device);
        pair.with_context(|| format!("the report of irqfabric boot has no pair of eventfds of {device}"))
    }

    pub fn line(&self, name: &str) -> Result<&Line> {
        self.lines
            .iter()
            .find(|line| line.name == name)
            .with_context(|| format!("the report of irqfabric boot has no line {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_what_stands_between_its_lines() {
        let console = Console("noise\n-----BEGIN a-----\n1\n2\n-----END a-----\nmore".into());
        assert_eq!(console.section("a").ok(), Some("1\n2\n"));
        assert!(console.section("b").is_err());
    }

    #[test]
    fn a_probe_that_failed_is_an_error_with_its_words() {
        let error = probe::<serde_json::Value>(r#"{"error":"no disk"}"#).unwrap_err();
        assert_eq!(error.to_string(), "guest-probe: no disk");
    }
}
