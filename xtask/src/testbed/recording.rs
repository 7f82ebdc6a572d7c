//! Keeps the recordings of stock Linux boots that the tests of the VMM replay: whole machines' beginnings, as many steps of
//! each as fit.

use super::Testbed;
use super::run;
use crate::report::Live;
use crate::scenarios::recorded::BOOTS;
use crate::workspace;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

const FOLDER: &str = "crates/irqfabric-vmm/tests/recordings";

/// Boots each and writes its file. Returns where they are.
pub fn boots(testbed: &Testbed, live: &Live) -> Result<Vec<PathBuf>> {
    let folder = workspace::make(workspace::root().join(FOLDER))?;
    let keep = |boot: &'static crate::scenarios::recorded::Boot| {
        let scenario = boot.scenario();
        let evidence = run::play(testbed, &scenario, live)?;
        (scenario.judge)(&evidence)?;
        let path = folder.join(boot.name).with_extension("jsonl");
        fs::write(&path, trimmed(&evidence.text("recording")?, boot.kept)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    BOOTS.iter().map(keep).collect()
}

/// Machines whose steps are much alike have so many times fewer: lines, vectors, and a PIC that nobody listens to.
const ALIKE: u64 = 32;

/// The longest beginnings that fit, of the same number of steps for each IOAPIC and VT-d unit that has so many.
fn trimmed(recording: &str, size: usize) -> Result<String> {
    let (mut kept, mut least, mut most) = (String::new(), 1, recording.lines().count());
    while least <= most {
        let steps = least.midpoint(most);
        let text = beginnings(recording, steps as u64)?;
        if text.len() <= size {
            (kept, least) = (text, steps + 1);
        } else {
            most = steps - 1;
        }
    }
    ensure!(!kept.is_empty(), "not even the first step of each machine fits into {size} bytes");
    Ok(kept)
}

/// The first so many steps of each IOAPIC and VT-d unit, and some of the rest, as a recording of its own. Machines that take no step are left out.
fn beginnings(recording: &str, steps: u64) -> Result<String> {
    let (mut header, mut machines) = (String::new(), BTreeMap::<u64, (String, Vec<(u64, &str)>)>::new());
    let of = |line: &Value| match ["line", "vector", "pic"].iter().any(|kind| line[kind].is_object()) {
        true => steps.div_ceil(ALIKE),
        false => steps,
    };
    for line in recording.lines() {
        let value: Value = serde_json::from_str(line)?;
        match (value["machine"].as_u64(), value["number"].as_u64()) {
            (Some(machine), None) => machines.entry(machine).or_default().0 = format!("{line}\n"),
            (Some(machine), Some(number)) if number < of(&value) => {
                machines.entry(machine).or_default().1.push((number, line))
            }
            (Some(_), Some(_)) => {}
            (None, _) if value["records"].is_u64() => {}
            (None, _) => header = format!("{line}\n"),
        }
    }
    let mut text = header;
    let mut records = 0;
    for (begins, mut steps) in machines.into_values().filter(|(_, steps)| !steps.is_empty()) {
        steps.sort_unstable_by_key(|(number, _)| *number);
        records += steps.len();
        text += &begins;
        steps.iter().for_each(|(_, line)| text.extend([line, "\n"]));
    }
    text += &format!("{}\n", json!({ "records": records, "lost": 0 }));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_the_beginning_of_each_machine_and_a_whole_recording() {
        let recording = "{\"irqfabric-recording\":1}\n\
                         {\"machine\":0,\"begins\":{\"line\":{\"gsi\":0}}}\n\
                         {\"machine\":1,\"begins\":{\"ioapic\":{\"gsi\":0}}}\n\
                         {\"machine\":1,\"number\":2}\n{\"machine\":1,\"number\":0}\n{\"machine\":1,\"number\":1}\n\
                         {\"records\":3,\"lost\":0}\n";
        let kept = "{\"irqfabric-recording\":1}\n\
                    {\"machine\":1,\"begins\":{\"ioapic\":{\"gsi\":0}}}\n\
                    {\"machine\":1,\"number\":0}\n{\"machine\":1,\"number\":1}\n\
                    {\"lost\":0,\"records\":2}\n";
        assert_eq!(beginnings(recording, 2).unwrap(), kept);
    }
}
