//! The file: JSON Lines; `docs/RECORDING.md` describes it.
//!
//! Read whole and checked before anything is replayed. A recording ends with the number of its records, so that one that
//! was cut is known; a script, written by hand, needs neither that nor numbers.

use super::recorder::Record;
use super::step::{Begins, Step};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, BufRead, Write};

/// The version that is written, and the one that is read.
const VERSION: u64 = 1;

/// Longer lines are nobody's: a snapshot of the largest chip has some 10 KiB.
const LONGEST: usize = 1 << 20;

/// What is wrong with a file, and where.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct FileError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// It does not begin as one.
    #[error("this is no recording: it does not begin with {{\"irqfabric-recording\":1}}")]
    NotARecording,
    /// It was written by another version.
    #[error("this is a recording of version {}; this program reads version {VERSION}", printable(.0))]
    Version(Value),
    /// The last line is missing.
    #[error("the recording is cut: its last line, with the number of its records, is missing")]
    Cut,
    /// The last line says something else.
    #[error("the recording has {found} records, and its last line says {said}")]
    Count {
        /// What is there.
        found: u64,
        /// What it says.
        said: u64,
    },
    /// There is something behind the last line.
    #[error("something follows the last line")]
    Trailing,
    /// It is no line of a recording.
    #[error("{}", printable(.0))]
    Malformed(String),
    /// A step of a machine that has not begun.
    #[error("machine {0} has not begun")]
    Unknown(u32),
    /// A machine that begins twice.
    #[error("machine {0} begins a second time")]
    Again(u32),
    /// A step of another kind of machine.
    #[error("this is no step of machine {0}, which is another kind of machine")]
    Kind(u32),
    /// A state that no machine can have.
    #[error("a state that cannot be: {0}")]
    State(String),
    /// Two steps of one number.
    #[error("machine {machine} has two steps number {number}")]
    Twice {
        /// Whose.
        machine: u32,
        /// Which.
        number: u64,
    },
    /// A step is not there, and the recorder has lost none.
    #[error("the step before this one, number {number} of machine {machine}, is missing")]
    Missing {
        /// Whose.
        machine: u32,
        /// Which.
        number: u64,
    },
}

/// A line.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Line {
    Header {
        #[serde(rename = "irqfabric-recording")]
        version: u64,
    },
    Begins {
        machine: u32,
        begins: Begins,
    },
    Step {
        machine: u32,
        number: Option<u64>,
        #[serde(flatten)]
        step: Step,
    },
    End {
        records: u64,
        lost: u64,
    },
}

/// What is in a file, by machine.
#[derive(Debug)]
pub(super) struct Contents {
    pub machines: BTreeMap<u32, Steps>,
    /// How many steps the recorder had no room for.
    pub lost: u64,
}

#[derive(Debug)]
pub(super) struct Steps {
    /// Where it begins.
    pub line: usize,
    pub begins: Begins,
    /// In order, each with its line. Up to the first that is missing.
    pub steps: Vec<(usize, Record)>,
    /// The number of the first step that the recorder lost, if there is one.
    pub lost: Option<u64>,
}

impl Line {
    pub(super) const fn header() -> Self {
        Self::Header { version: VERSION }
    }
}

pub(super) fn write(file: &mut impl Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *file, line)?;
    file.write_all(b"\n")
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Recording,
    Script,
}

/// Reads it all, or says what is wrong.
pub(super) fn read(file: impl BufRead) -> Result<Contents, FileError> {
    let mut lines = Lines { file, line: 0 };
    let mut contents = Contents { machines: BTreeMap::new(), lost: 0 };
    let form = {
        let first = lines.next()?.unwrap_or_default();
        form(&first).map_err(|problem| FileError { line: 1, problem })?
    };
    let (mut records, mut end) = (0, None);
    while let Some(text) = lines.next()? {
        let at = |problem| FileError { line: lines.line, problem };
        if end.is_some() {
            return Err(at(Problem::Trailing));
        }
        let cut = form == Form::Recording && !text.ends_with('\n');
        match parse(&text).map_err(|problem| at(if cut { Problem::Cut } else { problem }))? {
            None => {}
            Some(Line::Begins { machine, begins }) => {
                let steps = Steps { line: lines.line, begins, steps: Vec::new(), lost: None };
                if contents.machines.insert(machine, steps).is_some() {
                    return Err(at(Problem::Again(machine)));
                }
            }
            Some(Line::Step { machine, number, step }) => {
                records += 1;
                let steps = contents.machines.get_mut(&machine).ok_or_else(|| at(Problem::Unknown(machine)))?;
                if !steps.begins.has(&step) {
                    return Err(at(Problem::Kind(machine)));
                }
                let next = steps.steps.last().map_or(0, |(_, before)| before.number.saturating_add(1));
                steps.steps.push((lines.line, Record { machine, number: number.unwrap_or(next), step }));
            }
            Some(Line::End { records: said, lost }) => {
                if records != said {
                    return Err(at(Problem::Count { found: records, said }));
                }
                end = Some(lost);
            }
            Some(Line::Header { .. }) => return Err(at(Problem::Malformed("a second first line".into()))),
        }
    }
    if form == Form::Recording && end.is_none() {
        return Err(FileError { line: lines.line + 1, problem: Problem::Cut });
    }
    contents.lost = end.unwrap_or_default();
    for (&machine, steps) in &mut contents.machines {
        steps.order(machine, contents.lost)?;
    }
    Ok(contents)
}

impl Begins {
    fn has(&self, step: &Step) -> bool {
        matches!(
            (self, step),
            (Self::Ioapic { .. }, Step::Ioapic(_))
                | (Self::Pic { .. }, Step::Pic(_))
                | (Self::Vtd { .. }, Step::Vtd(_))
                | (Self::Vector { .. }, Step::Vector(_))
                | (Self::Line { .. }, Step::Line(_))
        )
    }
}

impl Steps {
    /// Threads wrote their buffers one after the other: the numbers say what the order was.
    fn order(&mut self, machine: u32, lost: u64) -> Result<(), FileError> {
        self.steps.sort_by_key(|(_, record)| record.number);
        for (index, next) in (0..).zip(0..self.steps.len() as u64) {
            let Some(&(line, record)) = self.steps.get::<usize>(index) else { break };
            if record.number == next {
                continue;
            }
            if record.number < next {
                return Err(FileError { line, problem: Problem::Twice { machine, number: record.number } });
            }
            if lost == 0 {
                return Err(FileError { line, problem: Problem::Missing { machine, number: next } });
            }
            self.lost = Some(next);
            self.steps.truncate(index);
            break;
        }
        Ok(())
    }
}

fn form(first: &str) -> Result<Form, Problem> {
    let Ok(Value::Object(header)) = serde_json::from_str(first) else { return Err(Problem::NotARecording) };
    let kinds = [("irqfabric-recording", Form::Recording), ("irqfabric-script", Form::Script)];
    let found = kinds.into_iter().find_map(|(key, form)| Some((header.get(key)?, form)));
    match found {
        Some((version, form)) if *version == VERSION => Ok(form),
        Some((version, _)) => Err(Problem::Version(version.clone())),
        None => Err(Problem::NotARecording),
    }
}

/// `None` for an empty line.
fn parse(text: &str) -> Result<Option<Line>, Problem> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let mut object: Map<String, Value> = serde_json::from_str(text).map_err(|error| malformed(&error))?;
    if object.contains_key("records") {
        let End { records, lost } = from(Value::Object(object))?;
        return Ok(Some(Line::End { records, lost }));
    }
    let machine = from(object.remove("machine").ok_or_else(|| Problem::Malformed("it names no machine".into()))?)?;
    if let Some(begins) = object.remove("begins") {
        return match object.keys().next() {
            Some(key) => Err(Problem::Malformed(format!("unknown field `{key}`"))),
            None => Ok(Some(Line::Begins { machine, begins: from(begins)? })),
        };
    }
    let number = object.remove("number").map(from).transpose()?;
    Ok(Some(Line::Step { machine, number, step: from(Value::Object(object))? }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    records: u64,
    #[serde(default)]
    lost: u64,
}

fn from<T: for<'a> Deserialize<'a>>(value: Value) -> Result<T, Problem> {
    serde_json::from_value(value).map_err(|error| malformed(&error))
}

fn malformed(error: &serde_json::Error) -> Problem {
    // Each line is a text of its own.
    Problem::Malformed(error.to_string().replace(" at line 1 column ", ", column "))
}

/// What is said of a stranger's file goes to a terminal, and is one line.
fn printable(text: impl Display) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.to_string().chars().map(shown).collect()
}

struct Lines<R> {
    file: R,
    /// The number of the line that was read last.
    line: usize,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<String>, FileError> {
        let line = self.line + 1;
        let at = |problem| FileError { line, problem };
        let mut bytes = Vec::new();
        let limit = LONGEST as u64 + 1;
        let read = io::Read::take(&mut self.file, limit).read_until(b'\n', &mut bytes);
        if read.map_err(|error| at(error.into()))? == 0 {
            return Ok(None);
        }
        self.line = line;
        if bytes.len() > LONGEST {
            return Err(at(if line == 1 {
                Problem::NotARecording
            } else {
                Problem::Malformed("it has no end".into())
            }));
        }
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| {
            at(if line == 1 { Problem::NotARecording } else { Problem::Malformed("it is no text".into()) })
        })?;
        Ok(Some(text))
    }
}
