//! Replay: the machines of a recording run again over their inputs, each by itself; the first output that differs is told.

use super::file::{self, FileError, Line, Steps};
use super::machine::Machine;
use super::recorder::Record;
use super::step::Begins;
use serde_json::{Value, json};
use std::fmt;
use std::io::BufRead;

/// How many steps before the one that differs are shown.
const SHOWN: usize = 5;

/// What came of a replay.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Replayed {
    /// Machines that were run.
    pub machines: usize,
    /// Steps that they took.
    pub records: usize,
    /// The first output, by line, that is not what was recorded.
    pub difference: Option<Difference>,
    /// Steps that the recorder had no room for, and are not in the file.
    pub lost: u64,
    /// The machines that have steps behind those: they were not replayed.
    pub gaps: Vec<Gap>,
}

/// A step whose output is not what was recorded.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Difference {
    /// Where it is in the file.
    pub line: usize,
    /// Whose it is.
    pub machine: String,
    /// What was recorded, as a line of the file.
    pub recorded: String,
    /// What the machine says, likewise.
    pub seen: String,
    /// The rule that is broken, if it is not the output alone.
    pub broken: Option<String>,
    /// The machine's state before the step.
    pub state: Value,
    /// Its last steps before, oldest first.
    pub before: Vec<String>,
}

/// A machine of which steps are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Gap {
    /// Which.
    pub machine: String,
    /// The number of the first step that is missing.
    pub number: u64,
}

/// Runs the machines of a file again. `answer` is called with each step that the file has only the inputs of, completed
/// by the outputs, as a line of the file.
///
/// The file is read and checked before anything is run.
pub fn replay(file: impl BufRead, mut answer: impl FnMut(&str)) -> Result<Replayed, FileError> {
    let contents = file::read(file)?;
    let mut replayed = Replayed { lost: contents.lost, ..Replayed::default() };
    let machines: Vec<_> = contents
        .machines
        .into_iter()
        .map(|(number, steps)| match Machine::new(&steps.begins) {
            Ok(machine) => Ok((number, steps, machine)),
            Err(problem) => Err(FileError { line: steps.line, problem }),
        })
        .collect::<Result<_, _>>()?;
    for (number, steps, mut machine) in machines {
        replayed.machines += 1;
        let name = name(number, &steps.begins);
        if let Some(difference) = run(&mut machine, &name, &steps, &mut replayed.records, &mut answer)
            && replayed.difference.as_ref().is_none_or(|first| difference.line < first.line)
        {
            replayed.difference = Some(difference);
        }
        if let Some(number) = steps.lost {
            replayed.gaps.push(Gap { machine: name, number });
        }
    }
    Ok(replayed)
}

fn run(
    machine: &mut Machine,
    name: &str,
    steps: &Steps,
    records: &mut usize,
    answer: &mut impl FnMut(&str),
) -> Option<Difference> {
    for (index, &(line, record)) in steps.steps.iter().enumerate() {
        let played = machine.play(&record.step);
        *records += 1;
        if played.broken.is_none() && played.step == record.step {
            continue;
        }
        let seen = shown(&Record { step: played.step, ..record });
        if played.broken.is_none() && agrees(&json!(record.step), &json!(played.step)) {
            answer(&seen);
            continue;
        }
        let earlier = steps.steps.get(..index).unwrap_or_default();
        // Wanted for a step that differs only, which is known when it is over.
        let state = state_before(steps, earlier);
        let last = earlier.iter().skip(earlier.len().saturating_sub(SHOWN));
        return Some(Difference {
            line,
            machine: name.to_owned(),
            recorded: shown(&record),
            seen,
            broken: played.broken.map(str::to_owned),
            state,
            before: last.map(|(_, record)| shown(record)).collect(),
        });
    }
    None
}

/// By running it once more up to there.
fn state_before(steps: &Steps, earlier: &[(usize, Record)]) -> Value {
    let Ok(mut machine) = Machine::new(&steps.begins) else { return Value::Null };
    for (_, record) in earlier {
        machine.play(&record.step);
    }
    machine.state()
}

/// Whether everything that was recorded is seen as well.
fn agrees(recorded: &Value, seen: &Value) -> bool {
    match (recorded, seen) {
        (Value::Null, _) => true,
        (Value::Object(recorded), Value::Object(seen)) => {
            recorded.iter().all(|(key, value)| seen.get(key).is_some_and(|seen| agrees(value, seen)))
        }
        _ => recorded == seen,
    }
}

fn shown(&Record { machine, number, step }: &Record) -> String {
    serde_json::to_string(&Line::Step { machine, number: Some(number), step }).unwrap_or_default()
}

fn name(number: u32, begins: &Begins) -> String {
    let what = match begins {
        Begins::Ioapic { gsi, .. } => format!("IOAPIC of GSI {gsi} and further"),
        Begins::Pic { .. } => "PIC".into(),
        Begins::Vtd { .. } => "VT-d unit".into(),
        Begins::Vector { requester, index } => format!("vector {index} of {requester}"),
        Begins::Line { gsi } => format!("line of GSI {gsi}"),
    };
    format!("machine {number} ({what})")
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machines, records, difference, lost, gaps } = self;
        match difference {
            None => writeln!(f, "{records} records of {machines} machines replayed, all outputs as recorded")?,
            Some(difference) => difference.fmt(f)?,
        }
        if *lost > 0 {
            writeln!(f, "{lost} more records are not in it: the recorder had no room for them")?;
        }
        gaps.iter()
            .try_for_each(|Gap { machine, number }| writeln!(f, "  {machine}: not replayed from step {number} on"))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, machine, recorded, seen, broken, state, before } = self;
        writeln!(f, "line {line}: {machine} differs")?;
        writeln!(f, "  recorded {recorded}")?;
        writeln!(f, "  seen     {seen}")?;
        if let Some(broken) = broken {
            writeln!(f, "  {broken}")?;
        }
        writeln!(f, "  state before it: {state}")?;
        writeln!(f, "  its last steps before it:")?;
        before.iter().try_for_each(|step| writeln!(f, "    {step}"))
    }
}
