//! What a run came to: a table of sources, what it took, and one line of verdict; or the same as one JSON object.

use super::board::Board;
use super::control::Early;
use super::guest::{ApicRegisters, Stopped};
use super::judge::Verdict;
use super::layout;
use super::script::{Done, Place};
use super::session::Session;
use super::source::{Device, Pace, Source};
use crate::machine::{ExitKind, Stop};
use irqfabric::chip::ioapic::PinState;
use irqfabric::hv::Calls;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All signals were sent; nothing was lost, doubled or misdelivered.
    Passed,
    /// Something was, or something hung.
    Failed,
    /// The user ended it; nothing was wrong so far.
    Interrupted,
}

/// Everything that the table shows.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    verdict: String,
    backend: &'static str,
    vcpus: usize,
    seed: u64,
    count: u64,
    seconds: f64,
    sent_per_second: u64,
    sources: Vec<SourceReport>,
    calls: Calls,
    exits: Vec<(String, u64)>,
    #[serde(flatten)]
    done: Done,
    /// Edges dropped at a masked pin and sent again by their device.
    resent: u64,
    /// Level handlers that found no device to serve.
    spurious: u64,
    /// The state of things, when it did not come to rest.
    hung: Vec<String>,
}

/// One source's line.
#[derive(Clone, Debug, Serialize)]
pub struct SourceReport {
    name: String,
    kind: &'static str,
    pace: Pace,
    at: String,
    sent: u64,
    #[serde(flatten)]
    verdict: Verdict,
    /// How often the device was served; levels only.
    served: u64,
    resent: u64,
    p50_ns: u64,
    p99_ns: u64,
}

impl SourceReport {
    /// Of a source that has stopped.
    pub fn new(source: &Source, place: Place, device: Device, verdict: Verdict) -> Self {
        let (kind, at) = match place {
            Place::EdgePin(pin) => ("edge", format!("pin {pin}")),
            Place::LevelPin(pin) => ("level", format!("pin {pin}")),
            Place::Message(vector) => ("msi", format!("msi {vector}")),
        };
        let latency = source.latency();
        Self {
            name: source.name.clone(),
            kind,
            pace: source.pace,
            at,
            sent: device.sent,
            verdict,
            served: device.served,
            resent: device.resent,
            p50_ns: latency.value_at_quantile(0.50),
            p99_ns: latency.value_at_quantile(0.99),
        }
    }
}

/// What a report is made from.
pub struct Ended<'a> {
    /// What was asked for.
    pub session: &'a Session<'a>,
    /// Its name.
    pub backend: &'static str,
    /// The board, with the reason for an early end.
    pub board: &'a Board,
    /// What the script did.
    pub done: Done,
    /// From the first signal to the end of the last source.
    pub busy: Duration,
    /// Whether all handlers were through when it was stopped.
    pub at_rest: bool,
    /// The sources in their order.
    pub sources: Vec<SourceReport>,
    /// The guest.
    pub stopped: &'a Stopped,
    /// The IOAPIC's pins before the guest was stopped.
    pub pins: &'a [PinState],
}

impl Report {
    /// Draws the conclusions.
    pub fn new(ended: Ended<'_>) -> Self {
        let Ended { session, backend, board, done, busy, at_rest, sources, stopped, pins } = ended;
        let sent: u64 = sources.iter().map(|source| source.sent).sum();
        let seconds = busy.as_secs_f64();
        let (outcome, verdict) = conclude(&sources, board.control.early(), &stopped.why, at_rest, sent);
        let exits = stopped.exits.as_ref().map_or_else(Vec::new, |exits| {
            ExitKind::ALL.iter().map(|kind| (kind.to_string(), exits.of(*kind).count)).collect()
        });
        Self {
            outcome,
            verdict,
            backend,
            vcpus: session.cpus,
            seed: session.seed,
            count: session.count,
            seconds,
            sent_per_second: if seconds > 0.0 { (sent as f64 / seconds) as u64 } else { 0 },
            resent: sources.iter().map(|source| source.resent).sum(),
            hung: if outcome == Outcome::Failed { dump(pins, &stopped.apics) } else { Vec::new() },
            sources,
            calls: stopped.calls,
            exits,
            done,
            spurious: board.spurious(),
        }
    }

    /// All sources together.
    #[cfg(test)]
    pub fn totals(&self) -> Verdict {
        totals(&self.sources)
    }

    /// All of it as one JSON object.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers, strings and lists of them are JSON")
    }
}

fn totals(sources: &[SourceReport]) -> Verdict {
    sources.iter().fold(Verdict::default(), |total, source| Verdict {
        received: total.received + source.verdict.received,
        lost: total.lost + source.verdict.lost,
        doubled: total.doubled + source.verdict.doubled,
        misdelivered: total.misdelivered + source.verdict.misdelivered,
    })
}

/// The first of what is wrong, from the cause to its consequences.
fn conclude(
    sources: &[SourceReport],
    early: Option<&Early>,
    why: &Stop,
    at_rest: bool,
    sent: u64,
) -> (Outcome, String) {
    let Verdict { lost, doubled, misdelivered, .. } = totals(sources);
    let counts = format!("lost {lost}, doubled {doubled}, misdelivered {misdelivered}");
    let sent = grouped(sent);
    match (why, early) {
        (Stop::Finished, None) if sources.iter().any(|source| !source.verdict.is_clean()) => {
            (Outcome::Failed, format!("FAILED: of {sent} interrupts {counts}"))
        }
        (Stop::Finished, None) if !at_rest => {
            (Outcome::Failed, format!("FAILED: {sent} interrupts and no rest after them; {counts}"))
        }
        (Stop::Finished, None) => (Outcome::Passed, format!("passed: {sent} interrupts, {counts}")),
        (Stop::Finished, Some(Early::Interrupted)) if at_rest && lost + doubled + misdelivered == 0 => {
            (Outcome::Interrupted, format!("interrupted after {sent} interrupts; until then {counts}"))
        }
        (Stop::Finished, Some(Early::Interrupted)) => {
            (Outcome::Failed, format!("FAILED: interrupted after {sent} interrupts; until then {counts}"))
        }
        (Stop::Finished, Some(Early::Failed(what))) => (Outcome::Failed, format!("FAILED: {what}; {counts}")),
        (why, _) => (Outcome::Failed, format!("FAILED: {why}; {counts}")),
    }
}

/// Where each interrupt is, as far as the chips know.
fn dump(pins: &[PinState], apics: &[ApicRegisters]) -> Vec<String> {
    let used = (0..).zip(pins).filter(|(_, pin)| pin.entry as u8 >= layout::FIRST_VECTOR);
    let pins = used.map(|(number, pin): (usize, _)| {
        let remote_irr = pin.entry >> 14 & 1;
        format!("pin {number}: entry {:#018x}, remote IRR {remote_irr}, level {:?}", pin.entry, pin.level)
    });
    let list = |register| ApicRegisters::vectors(register).map(|vector| format!(" {vector:#x}")).collect::<String>();
    let apics = apics.iter().enumerate().map(|(cpu, apic)| {
        format!("vCPU {cpu}: IRR [{} ], ISR [{} ], PPR {:#x}", list(&apic.irr), list(&apic.isr), apic.ppr)
    });
    pins.chain(apics).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kvm = self.backend == "kvm";
        let target = if kvm { "KVM" } else { "software local APICs (sim)" };
        writeln!(f, "{} interrupts to {} vCPUs on {target}, seed {}", grouped(self.count), self.vcpus, self.seed)?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<7} {:<6} {:<6} {:<17} {:>6} {:>6} {:>4} {:>4} {:>4} {:>5} {:>5}",
            "source", "kind", "at", "path", "sent", "recvd", "lost", "dbl", "mis", "p50", "p99"
        )?;
        let last = if kvm { "SIGNAL_MSI" } else { "LAPIC" };
        for source in &self.sources {
            let SourceReport { name, kind, pace, at, sent, verdict, served: _, resent: _, p50_ns, p99_ns } = source;
            let Verdict { received, lost, doubled, misdelivered } = verdict;
            let kind = format!("{kind}{}", if *pace == Pace::Waits { "*" } else { "" });
            let path = if at.starts_with("pin") { format!("IOAPIC→{last}") } else { last.to_string() };
            let (p50, p99) = (short(*p50_ns), short(*p99_ns));
            writeln!(
                f,
                "{name:<7} {kind:<6} {at:<6} {path:<17} {sent:>6} {received:>6} {lost:>4} {doubled:>4} \
                 {misdelivered:>4} {p50:>5} {p99:>5}"
            )?;
        }
        writeln!(f, "* waits for the handler before it signals again; the others coalesce")?;
        writeln!(f, "dbl doubled, mis misdelivered, p50 and p99 from signal to handler's end")?;
        writeln!(f)?;
        self.write_calls(f)?;
        let Done { moves, masks } = self.done;
        writeln!(f, "{:<14} {moves} moves to another vCPU, {masks} masks", "guest")?;
        writeln!(f, "{:<14} {} dropped at a masked edge pin and sent again", "edges", grouped(self.resent))?;
        writeln!(f, "{:<14} {} spurious handler entries", "levels", grouped(self.spurious))?;
        for line in &self.hung {
            writeln!(f, "{line}")?;
        }
        writeln!(f)?;
        let rate = grouped(self.sent_per_second);
        writeln!(f, "{}; {:.2} s, {rate}/s", self.verdict, self.seconds)
    }
}

impl Report {
    fn write_calls(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // There is no eventfd here: nothing is attached.
        let Calls { deliveries, refused, commits, attaches: _, detaches: _ } = self.calls;
        let (delivery, commit) = match self.backend {
            "kvm" => ("KVM_SIGNAL_MSI", "KVM_SET_GSI_ROUTING"),
            _ => ("deliveries", "tables"),
        };
        writeln!(f, "{:<14} {delivery} {}, nobody took {refused}", "calls", grouped(deliveries))?;
        writeln!(f, "{:<14} {commit} {}", "", grouped(commits))?;
        if !self.exits.is_empty() {
            let runs: u64 = self.exits.iter().map(|(_, count)| count).sum();
            writeln!(f, "{:<14} KVM_RUN {}: exits", "", grouped(runs))?;
            let kinds = self.exits.iter().filter(|(_, count)| *count > 0);
            let kinds: Vec<_> = kinds.map(|(kind, count)| format!("{kind} {}", grouped(*count))).collect();
            for kinds in kinds.chunks(3) {
                writeln!(f, "{:<16} {}", "", kinds.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Three digits of a time: 950n, 12.3µ, 4.56m.
fn short(nanoseconds: u64) -> String {
    let (value, unit) = match nanoseconds {
        0 => return "-".into(),
        1..1_000 => return format!("{nanoseconds}ns"),
        1_000..1_000_000 => (nanoseconds as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (nanoseconds as f64 / 1e6, "ms"),
        _ => (nanoseconds as f64 / 1e9, "s"),
    };
    let decimals = if value < 10.0 { 1 } else { 0 };
    format!("{value:.decimals$}{unit}")
}

/// 100,000.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
