//! What a run came to: a table of sources, what it took, and one line of verdict; or the same as one JSON object.

use super::board::Board;
use super::control::Early;
use super::guest::{ApicRegisters, Stopped};
use super::judge::Verdict;
use super::layout;
use super::script::{Done, Place};
use super::session::{Session, Work};
use super::source::{Device, Pace, Path, Source};
use crate::devices::pair::PairStats;
use crate::machine::{ExitKind, Stop};
use irqfabric::chip::ioapic::PinState;
use irqfabric::fabric::Stats;
use irqfabric::hv::Calls;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All signals were sent; nothing was lost, doubled, misdelivered or delivered while masked.
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
    vectors: usize,
    /// What was asked for, if not a time.
    count: Option<u64>,
    seconds: f64,
    sent_per_second: u64,
    sources: Vec<SourceReport>,
    calls: Calls,
    fabric: Stats,
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
    path: Path,
    sent: u64,
    #[serde(flatten)]
    verdict: Verdict,
    /// How often the device was served; levels only.
    served: u64,
    resent: u64,
    /// What went through the line's two eventfds; resampling levels only.
    #[serde(flatten)]
    pair: Option<PairStats>,
    /// How often the dispatcher found the eventfd signalled; all other events the kernel took.
    dispatched: u64,
    p50_ns: u64,
    p99_ns: u64,
}

impl SourceReport {
    /// Of a source that has stopped.
    pub fn new(source: &Source, place: Place, device: Device, verdict: Verdict) -> Self {
        let path = source.path();
        let (kind, at) = match (place, path) {
            (Place::EdgePin(pin), _) => ("edge", format!("pin {pin}")),
            (Place::LevelPin(pin), Path::Resampled) => ("resample", format!("pin {pin}")),
            (Place::LevelPin(pin), _) => ("level", format!("pin {pin}")),
            (Place::Message(vector), Path::Pin | Path::Resampled | Path::Message) => ("msi", format!("msi {vector}")),
            (Place::Message(vector), Path::Dispatcher | Path::Irqfd) => ("eventfd", format!("msi {vector}")),
        };
        let latency = source.latency();
        Self {
            name: source.name.clone(),
            kind,
            pace: source.pace,
            at,
            path,
            sent: device.sent,
            verdict,
            served: device.served,
            resent: device.resent,
            pair: source.pair(),
            dispatched: source.dispatched(),
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
            vectors: session.eventfds,
            count: if let Work::Count(count) = session.work { Some(count) } else { None },
            seconds,
            sent_per_second: if seconds > 0.0 { (sent as f64 / seconds) as u64 } else { 0 },
            resent: sources.iter().map(|source| source.resent).sum(),
            hung: if outcome == Outcome::Failed { dump(pins, &stopped.apics) } else { Vec::new() },
            sources,
            calls: stopped.calls,
            fabric: board.fabric.stats(),
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

    /// What processors took from the PIC.
    pub fn by_pic(&self) -> u64 {
        self.fabric.lines.iter().map(|line| line.acknowledged).sum()
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
        masked: total.masked + source.verdict.masked,
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
    let totals = totals(sources);
    let Verdict { received: _, lost, doubled, misdelivered, masked } = totals;
    let counts = format!("lost {lost}, doubled {doubled}, misdelivered {misdelivered}, masked {masked}");
    let sent = grouped(sent);
    match (why, early) {
        (Stop::Finished, None) if sources.iter().any(|source| !source.verdict.is_clean()) => {
            (Outcome::Failed, format!("FAILED: of {sent} interrupts {counts}"))
        }
        (Stop::Finished, None) if !at_rest => {
            (Outcome::Failed, format!("FAILED: {sent} interrupts and no rest after them; {counts}"))
        }
        (Stop::Finished, None) => (Outcome::Passed, format!("passed: {sent} interrupts, {counts}")),
        (Stop::Finished, Some(Early::Interrupted)) if at_rest && totals.is_clean() => {
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
        match self.count {
            Some(count) => write!(f, "{} interrupts", grouped(count))?,
            None => write!(f, "{:.0} s of interrupts", self.seconds)?,
        }
        writeln!(f, " to {} vCPUs on {target}, seed {}", self.vcpus, self.seed)?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<10} {:<21} {:>6} {:>6} {:>4} {:>4} {:>4} {:>4} {:>5} {:>5}",
            "source", "path", "sent", "recvd", "lost", "dbl", "mis", "msk", "p50", "p99"
        )?;
        let last = if kvm { "SIGNAL_MSI" } else { "LAPIC" };
        for source in &self.sources {
            let SourceReport { name, pace, at, path, sent, verdict, p50_ns, p99_ns, .. } = source;
            let Verdict { received, lost, doubled, misdelivered, masked } = verdict;
            let name = format!("{name}{}", if *pace == Pace::Waits { "*" } else { "" });
            let path = match path {
                Path::Pin => format!("{at}→{last}"),
                Path::Resampled => format!("fd→{at}→{last}"),
                Path::Message => last.to_string(),
                Path::Dispatcher => format!("dispatcher→{last}"),
                Path::Irqfd => "irqfd".into(),
            };
            let (p50, p99) = (short(*p50_ns), short(*p99_ns));
            writeln!(
                f,
                "{name:<10} {path:<21} {sent:>6} {received:>6} {lost:>4} {doubled:>4} {misdelivered:>4} {masked:>4} \
                 {p50:>5} {p99:>5}"
            )?;
        }
        writeln!(f, "* waits for the handler before it signals again; the others coalesce")?;
        writeln!(f, "dbl doubled, mis misdelivered, msk delivered while masked,")?;
        writeln!(f, "p50 and p99 from signal or unmask to handler's end; eventfds: their last path")?;
        writeln!(f)?;
        self.write_calls(f)?;
        self.write_eventfds(f)?;
        if self.by_pic() > 0 {
            writeln!(f, "{:<14} {} interrupts, then the guest switched to the IOAPIC", "PIC", grouped(self.by_pic()))?;
        }
        let Done { moves, masks, kept } = self.done;
        writeln!(f, "{:<14} {moves} moves to another vCPU, {masks} masks", "guest")?;
        writeln!(f, "{:<14} {kept} unmasks, moves' included, found something waiting", "")?;
        writeln!(f, "{:<14} {} dropped at a masked edge pin and sent again", "edges", grouped(self.resent))?;
        writeln!(f, "{:<14} {} spurious handler entries", "levels", grouped(self.spurious))?;
        let pairs = || self.sources.iter().filter_map(|source| source.pair);
        let triggered = grouped(pairs().map(|pair| pair.triggered).sum());
        let resampled = grouped(pairs().map(|pair| pair.resampled).sum());
        writeln!(f, "{:<14} {triggered} triggers by eventfds, {resampled} resamples", "")?;
        for line in &self.hung {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{:<14} {:.2} s, {} interrupts/s", "time", self.seconds, grouped(self.sent_per_second))?;
        writeln!(f)?;
        writeln!(f, "{}", self.verdict)
    }
}

impl Report {
    fn write_calls(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Calls { deliveries, refused, commits, attaches, detaches } = self.calls;
        let (delivery, commit) = match self.backend {
            "kvm" => ("KVM_SIGNAL_MSI", "KVM_SET_GSI_ROUTING"),
            _ => ("deliveries", "tables"),
        };
        let (attaches, detaches) = (grouped(attaches), grouped(detaches));
        writeln!(f, "{:<14} {delivery} {}, nobody took {refused}", "calls", grouped(deliveries))?;
        writeln!(f, "{:<14} {commit} {}, irqfds attached {attaches}, detached {detaches}", "", grouped(commits))?;
        if !self.exits.is_empty() {
            let runs: u64 = self.exits.iter().map(|(_, count)| count).sum();
            writeln!(f, "{:<14} KVM_RUN {}: exits", "", grouped(runs))?;
            let kinds = self.exits.iter().filter(|(_, count)| *count > 0);
            let kinds: Vec<_> = kinds.map(|(kind, count)| format!("{kind} {}", grouped(*count))).collect();
            for kinds in kinds.chunks(3) {
                writeln!(f, "{:<16} {}", "", kinds.join(", "))?;
            }
        }
        if self.fabric.brakes > 0 {
            writeln!(f, "{:<14} a level that came back at every end waited {} times", "", grouped(self.fabric.brakes))?;
        }
        Ok(())
    }

    /// What an eventfd costs beyond the device's own write.
    fn write_eventfds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources = self.sources.iter().filter(|source| source.kind == "eventfd");
        let (signals, read) =
            sources.fold((0, 0), |(signals, read), source| (signals + source.sent, read + source.dispatched));
        let Stats { wakeups, promotions, .. } = self.fabric;
        let (signals, read) = (grouped(signals), grouped(read));
        writeln!(f, "{:<14} {signals} signals, promoted to an irqfd {} times", "eventfds", grouped(promotions))?;
        writeln!(f, "{:<14} dispatcher read {read} events in {} wakeups", "", grouped(wakeups))
    }
}

/// Three digits of a time: 950n, 12.3µ, 4.56m.
fn short(nanoseconds: u64) -> String {
    let (value, unit) = match nanoseconds {
        0 => return "-".into(),
        1..1_000 => return format!("{nanoseconds}ns"),
        // Up to where it would be rounded to four digits.
        1_000..999_500 => (nanoseconds as f64 / 1e3, "µs"),
        999_500..999_500_000 => (nanoseconds as f64 / 1e6, "ms"),
        _ => (nanoseconds as f64 / 1e9, "s"),
    };
    let decimals = if value < 9.95 { 1 } else { 0 };
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
