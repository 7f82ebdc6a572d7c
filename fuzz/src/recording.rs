//! The reader of recordings, over any bytes as a file.
//!
//! What is refused is refused with the line and the reason, and nothing of it was run. What is accepted says of itself
//! where its outputs are missing: completed by the answers it replays the same, and has no more to answer. A recording
//! that was cut anywhere is refused.

use irqfabric::record::{Difference, FileError, Problem, Replayed, replay};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// A target.
pub fn run(input: &[u8]) {
    let (replayed, answers) = read(input);
    match replayed {
        Err(error) => {
            assert!(answers.is_empty(), "{error}, and these were answered: {answers:?}");
            refused(input, &error);
        }
        Ok(replayed) => {
            let text = std::str::from_utf8(input).expect("what was accepted is text");
            let difference = replayed.difference.as_ref().map_or(1, |difference| difference.line);
            assert!((1..=lines(input)).contains(&difference), "{replayed}");
            let (again, more) = read(completed(text, &answers).as_bytes());
            assert_eq!(more, [""; 0], "the answers to a file that has them");
            assert_eq!(outcome(&again.expect("a file completed by its answers")), outcome(&replayed));
            cut(text);
        }
    }
}

/// What comes of a file, and its answers.
fn read(file: &[u8]) -> (Result<Replayed, FileError>, Vec<String>) {
    let mut answers = Vec::new();
    let replayed = replay(file, |answer| answers.push(answer.to_owned()));
    (replayed, answers)
}

/// What was seen of the machines, and nothing of how the file puts it.
fn outcome(replayed: &Replayed) -> impl PartialEq + Debug + use<> {
    let Replayed { machines, records, difference, lost, gaps } = replayed.clone();
    (
        machines,
        records,
        difference.map(|Difference { line, seen, broken, state, .. }| (line, seen, broken, state)),
        lost,
        gaps,
    )
}

fn lines(file: &[u8]) -> usize {
    file.split_inclusive(|&byte| byte == b'\n').count()
}

fn refused(input: &[u8], error: &FileError) {
    // The one after the last is the one that is missing.
    assert!((1..=lines(input) + 1).contains(&error.line), "{error}");
    let reason = error.problem.to_string();
    assert!(!reason.is_empty() && error.to_string() == format!("line {}: {reason}", error.line));
    // It goes to somebody's terminal.
    assert!(!reason.contains(char::is_control), "{reason:?}");
}

/// The file with the answers in place of the steps that they complete.
fn completed(text: &str, answers: &[String]) -> String {
    let answers: BTreeMap<_, _> = answers.iter().map(|answer| (step(&parsed(answer)), answer)).collect();
    let mut next: BTreeMap<_, u64> = BTreeMap::new();
    let line = |line: &str| {
        let mut value = parsed(line);
        if value.get("number").is_none() && value.get("machine").is_some() && value.get("begins").is_none() {
            value["number"] = next.get(&value["machine"].as_u64()).copied().unwrap_or_default().into();
        }
        let (machine, Some(number)) = step(&value) else { return line.to_owned() };
        next.insert(machine, number.saturating_add(1));
        match answers.get(&(machine, Some(number))) {
            Some(answer) => format!("{answer}\n"),
            None => format!("{value}\n"),
        }
    };
    text.split_inclusive('\n').map(line).collect()
}

/// Empty lines are allowed.
fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_default()
}

/// Whose step a line is, and which; without a number it is none.
fn step(line: &Value) -> (Option<u64>, Option<u64>) {
    (line["machine"].as_u64(), line["number"].as_u64())
}

/// A recording, other than a script, has a last line that says that it is whole.
fn cut(text: &str) {
    let header = text.find('\n').map_or(text.len(), |end| end + 1);
    let (Some(end), true) = (text.rfind('}'), parsed(&text[..header]).get("irqfabric-recording").is_some()) else {
        return;
    };
    // Where it is cut, so that each file has other places.
    for part in 1..4 {
        let length = header + (end - header) * part / 4;
        let (replayed, answers) = read(&text.as_bytes()[..length]);
        assert!(answers.is_empty());
        assert!(matches!(replayed, Err(FileError { problem: Problem::Cut, .. })), "cut at {length}: {replayed:?}");
    }
}
