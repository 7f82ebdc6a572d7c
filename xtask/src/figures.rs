//! Measures what the README shows, on this machine, and puts it there: a table and a plot.

use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::fs;

/// The rows of the table; the plot has those of N vectors added.
const ROWS: &[&str] = &[
    "signal",
    "eventfd-hot",
    "eventfd-cold",
    "edge-line",
    "level-line",
    "line-eventfd",
    "eoi-low",
    "register-write",
    "linux-ioapic-setup",
    "mask-unmask",
    "mask-2048",
    "promotion-256",
    "invalidate-same-4000",
    "invalidate-256",
    "invalidate-1024",
    "invalidate-4000",
];

const README: &str = "README.md";
const PLOT: &str = "docs/vectors.svg";

/// What is between them is replaced.
const BEGIN: &str = "<!-- figures: cargo xtask figures -->\n";
const END: &str = "<!-- end of figures -->\n";

/// Takes about a minute; nothing else should run meanwhile.
pub fn run() -> Result<()> {
    let readme = workspace::root().join(README);
    let plot = workspace::root().join(PLOT);
    let text = fs::read_to_string(&readme).with_context(|| format!("cannot read {README}"))?;
    if let Some(folder) = plot.parent() {
        workspace::make(folder.to_owned())?;
    }
    let mut bench = workspace::cargo();
    bench.args(["run", "--release", "--quiet", "--package", "irqfabric-vmm", "--", "bench", "--plot"]).arg(&plot);
    for row in ROWS {
        bench.args(["--only", row]);
    }
    let done = bench.stderr(std::process::Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(done.status.success(), "irqfabric bench: {}", done.status);
    let table = String::from_utf8(done.stdout).context("the table is not UTF-8")?;
    let new = with_figures(&text, &table).with_context(|| format!("{README} does not say where the figures belong"))?;
    fs::write(&readme, new).with_context(|| format!("cannot write {README}"))?;
    print!("{table}");
    println!("written to {README} and {PLOT}");
    Ok(())
}

fn with_figures(readme: &str, table: &str) -> Option<String> {
    let (before, rest) = readme.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}```text\n{}\n```\n{END}{after}", table.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_replace_what_was_there_and_nothing_else() {
        let readme = format!("a\n{BEGIN}old\n{END}b\n");
        let new = with_figures(&readme, "row  1\n\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}```text\nrow  1\n```\n{END}b\n"));
        assert_eq!(with_figures(&new, "row  1"), Some(new));
        assert_eq!(with_figures("a\n", "row  1"), None);
    }

    #[test]
    fn the_readme_says_where_its_figures_belong() {
        let readme = fs::read_to_string(workspace::root().join(README)).unwrap();
        assert!(with_figures(&readme, "").is_some() && readme.contains(PLOT));
    }
}
