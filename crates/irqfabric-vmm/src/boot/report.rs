//! What happened, as JSON for programs and as a table for people.
//!
//! ```json
//! { "stopped": "the guest powered off", "irqchip": "split", "path": "KVM_SIGNAL_MSI", "apic_ids": [0, 1],
//!   "seconds": 4.2, "commits": 3, "entry_writes": 120,
//!   "lines": [ { "gsi": 5, "name": "disk0", "raised": 61, "delivered": 61, "refused": 0, "ended": 61 } ],
//!   "pairs": [ { "device": "disk2", "triggered": 61, "resampled": 61 } ],
//!   "vectors": [ { "device": "disk1", "vector": 1, "signalled": 61, "delivered": 61, "hot": false } ],
//!   "promotions": 0, "wakeups": 0, "brakes": 0,
//!   "kvm": { "deliveries": 123, "refused": 0, "commits": 3 },
//!   "messages": { "memory_writes": 0, "dropped": 0, "blocked": 0, "host_errors": 0 },
//!   "exits": [ { "kind": "ioapic-eoi", "count": 61, "seconds": 0.0001, "per_vcpu": [61, 0] } ] }
//! ```
//!
//! There is an entry of `lines` for each source. `raised` counts its rises, pulses included; `delivered`, `refused` and
//! `ended` are the messages and ended level interrupts of the IOAPIC pin that its line ends in, and so the same for all
//! sources of a line. Under `--pic`, `delivered` counts what processors took from the PIC as well. KVM's own IOAPIC keeps its counts to itself: under `--irqchip kernel`, `path` is KVM_IRQ_LINE and
//! `delivered` counts the rises of the line's sources. `commits` counts KVM_SET_GSI_ROUTING. `seconds` of exits is the time
//! between KVM_RUN's return and the next entry. `blocked` messages are those that interrupt remapping did not let through.
//!
//! There is an entry of `pairs` for each device with a level line by two eventfds: how often it wrote the one, and how often
//! it was told by the other that the guest had ended an interrupt.
//!
//! There is an entry of `vectors` for each MSI or MSI-X vector of a PCI device. What KVM delivers for a `hot` one, from
//! its eventfd by its irqfd, is in neither count: it passes nobody who could count it. `promotions` counts how often a vector
//! became hot, `wakeups` how often the fabric's thread woke up to deliver for one that was not. `brakes` counts the level
//! interrupts that were made to wait because they came back at every end, ten thousand times in a row.

use super::attach::{Attached, NamedVectors};
use super::options::IrqchipKind;
use crate::devices::pair::{Pair, PairStats};
use crate::error::Error;
use crate::machine::{Crash, ExitKind, Exits, Stopped};
use irqfabric::fabric::{LineStats, VectorStats};
use irqfabric::hv::Calls;
use serde::Serialize;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The report of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    stopped: String,
    irqchip: IrqchipKind,
    path: &'static str,
    apic_ids: Vec<u32>,
    seconds: f64,
    commits: u64,
    entry_writes: u64,
    lines: Vec<Source>,
    pairs: Vec<PairReport>,
    vectors: Vec<Vector>,
    promotions: u64,
    wakeups: u64,
    brakes: u64,
    kvm: Calls,
    messages: Messages,
    exits: Vec<ExitTally>,
}

/// What one source did, and the pin that its line ends in.
#[derive(Debug, Serialize)]
struct Source {
    gsi: u32,
    name: String,
    raised: u64,
    delivered: u64,
    refused: u64,
    ended: u64,
    /// Whether another source of the line comes before it.
    #[serde(skip)]
    again: bool,
}

/// What a device with two eventfds wrote and read.
#[derive(Debug, Serialize)]
struct PairReport {
    device: String,
    #[serde(flatten)]
    stats: PairStats,
}

/// What one message vector did, as far as it went through the fabric.
#[derive(Debug, Serialize)]
struct Vector {
    device: String,
    vector: usize,
    signalled: u64,
    delivered: u64,
    hot: bool,
}

/// Messages that did not become interrupts, and what the host could not do.
#[derive(Debug, Serialize)]
struct Messages {
    memory_writes: u64,
    dropped: u64,
    blocked: u64,
    host_errors: u64,
}

#[derive(Debug, Serialize)]
struct ExitTally {
    kind: ExitKind,
    count: u64,
    seconds: f64,
    per_vcpu: Vec<u64>,
}

impl Report {
    /// Of a machine that has stopped, with what its devices have.
    pub fn new(irqchip: IrqchipKind, apic_ids: &[u32], stopped: &Stopped, attached: &Attached) -> Self {
        let total = Exits::total(&stopped.exits);
        let exits = ExitKind::ALL.into_iter().filter(|kind| total.of(*kind).count > 0).map(|kind| ExitTally {
            kind,
            count: total.of(kind).count,
            seconds: total.of(kind).time.as_secs_f64(),
            per_vcpu: stopped.exits.iter().map(|exits| exits.of(kind).count).collect(),
        });
        let stats = &stopped.stats;
        Self {
            stopped: stopped.stop.to_string(),
            irqchip,
            path: match irqchip {
                IrqchipKind::Split => "KVM_SIGNAL_MSI",
                IrqchipKind::Kernel => "KVM_IRQ_LINE",
            },
            apic_ids: apic_ids.to_vec(),
            seconds: stopped.ran.as_secs_f64(),
            commits: stats.commits,
            entry_writes: stats.entry_writes,
            lines: stats.lines.iter().flat_map(|line| sources(line, irqchip)).collect(),
            pairs: attached.pairs.iter().map(PairReport::of).collect(),
            vectors: attached.vectors.iter().flat_map(vectors_of).collect(),
            promotions: stats.promotions,
            wakeups: stats.wakeups,
            brakes: stats.brakes,
            kvm: stopped.calls,
            messages: Messages {
                memory_writes: stats.memory_writes,
                dropped: stats.dropped,
                blocked: stats.blocked,
                host_errors: stats.host_errors,
            },
            exits: exits.collect(),
        }
    }

    /// Writes the JSON.
    pub fn write(&self, to: &mut Target) -> Result<(), Error> {
        let failed = |why: std::io::Error| Error::file("report", &to.path, why);
        serde_json::to_writer_pretty(&mut to.file, self).map_err(|why| failed(why.into()))?;
        to.file.write_all(b"\n").and_then(|()| to.file.flush()).map_err(failed)
    }
}

/// The file that a report goes to, made before the guest runs: a name that cannot be written is no news for its end.
pub struct Target {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Target {
    /// Makes the file.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(|why| Error::file("report", path, why))?;
        Ok(Self { path: path.into(), file: BufWriter::new(file) })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stopped, path, seconds, commits, entry_writes, .. } = self;
        writeln!(f, "\nirqfabric: {stopped} after {seconds:.1} s; {commits} table commits")?;
        if *entry_writes > 0 {
            writeln!(f, "{:>7}one at each write to a redirection entry would be {entry_writes}", "")?;
        }
        writeln!(
            f,
            "{:>5}  {:<28}{:>11}{:>11}{:>9}{:>11}",
            "GSI", "source", "raised", "delivered", "refused", "ended"
        )?;
        let (silent, lines): (Vec<_>, Vec<_>) = self.lines.iter().partition(|line| line.raised == 0);
        for Source { gsi, name, raised, delivered, refused, ended, again } in lines {
            write!(f, "{gsi:>5}  {name:<28}{raised:>11}")?;
            match (again, self.irqchip) {
                (true, _) => writeln!(f, "  (same line)")?,
                (false, IrqchipKind::Kernel) => writeln!(f, "  by {path}")?,
                (false, IrqchipKind::Split) => writeln!(f, "{delivered:>11}{refused:>9}{ended:>11}")?,
            }
        }
        if !silent.is_empty() {
            writeln!(f, "{:>7}{} more that never interrupted", "", silent.len())?;
        }
        for PairReport { device, stats: PairStats { triggered, resampled } } in &self.pairs {
            writeln!(f, "{:>7}{device} by eventfds: {triggered} triggers, {resampled} resamples", "")?;
        }
        if self.brakes > 0 {
            writeln!(f, "{:>7}{} times a level was made to wait that came back at every end", "", self.brakes)?;
        }
        if !self.vectors.is_empty() {
            let Self { promotions, wakeups, .. } = self;
            writeln!(f, "{:>5}  {:<28}{:>11}{:>11}", "", "vector", "signalled", "delivered")?;
            let (silent, vectors): (Vec<_>, Vec<_>) =
                self.vectors.iter().partition(|vector| vector.signalled == 0 && !vector.hot);
            for Vector { device, vector, signalled, delivered, hot } in vectors {
                let uncounted = if *hot { "  hot: KVM's uncounted" } else { "" };
                let name = format!("{device} vector {vector}");
                writeln!(f, "{:>5}  {name:<28}{signalled:>11}{delivered:>11}{uncounted}", "")?;
            }
            if !silent.is_empty() {
                writeln!(f, "{:>7}{} more that never signalled", "", silent.len())?;
            }
            writeln!(f, "{:>7}{promotions} promotions to irqfds, {wakeups} wakeups of the dispatcher", "")?;
        }
        writeln!(f, "{:>7}{:<28}{:>11}{:>15}", "", "exit", "count", "time")?;
        for ExitTally { kind, count, seconds, .. } in &self.exits {
            writeln!(f, "{:>7}{kind:<28}{count:>11}{:>12.1} ms", "", seconds * 1e3)?;
        }
        Ok(())
    }
}

impl PairReport {
    fn of((device, pair): &(String, Arc<Pair>)) -> Self {
        Self { device: device.clone(), stats: pair.stats() }
    }
}

fn vectors_of(NamedVectors { device, vectors }: &NamedVectors) -> impl Iterator<Item = Vector> + '_ {
    vectors.iter().enumerate().map(|(index, vector)| {
        let VectorStats { signalled, delivered } = vector.stats();
        Vector { device: device.clone(), vector: index, signalled, delivered, hot: vector.is_hot() }
    })
}

fn sources(line: &LineStats, irqchip: IrqchipKind) -> impl Iterator<Item = Source> + '_ {
    let LineStats { gsi, sources, pin, acknowledged } = line;
    let delivered = match irqchip {
        IrqchipKind::Split => pin.delivered + acknowledged,
        IrqchipKind::Kernel => sources.iter().map(|source| source.raised).sum(),
    };
    sources.iter().enumerate().map(move |(index, source)| Source {
        gsi: *gsi,
        name: source.name.clone(),
        raised: source.raised,
        delivered,
        refused: pin.refused,
        ended: pin.ended,
        again: index > 0,
    })
}

/// A vCPU that could not go on, for people.
pub struct PostMortem<'a>(pub &'a Crash);

impl fmt::Display for PostMortem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Crash { apic_id, what, regs, sregs, last } = self.0;
        writeln!(f, "vCPU {apic_id}: {what}")?;
        if self.0.was_reset() {
            writeln!(f, "KVM has reset it already: its registers at the fault are lost")?;
        }
        let general = regs.iter().flat_map(|r| {
            let first =
                [("rip", r.rip), ("rsp", r.rsp), ("rbp", r.rbp), ("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx)];
            let second = [("rdx", r.rdx), ("rsi", r.rsi), ("rdi", r.rdi), ("r8", r.r8), ("r9", r.r9), ("r10", r.r10)];
            let third =
                [("r11", r.r11), ("r12", r.r12), ("r13", r.r13), ("r14", r.r14), ("r15", r.r15), ("rfl", r.rflags)];
            [first, second, third].concat()
        });
        let control = sregs.iter().flat_map(|s| {
            let first = [("cr0", s.cr0), ("cr2", s.cr2), ("cr3", s.cr3), ("cr4", s.cr4), ("efer", s.efer)];
            let second =
                [("cs", s.cs.selector.into()), ("base", s.cs.base), ("l", s.cs.l.into()), ("db", s.cs.db.into())];
            first.into_iter().chain(second)
        });
        let registers: Vec<_> = general.chain(control).collect();
        for row in registers.chunks(3) {
            for (name, value) in row {
                write!(f, "{name:>5} {value:016x}")?;
            }
            writeln!(f)?;
        }
        writeln!(f, "its last exits, oldest first:")?;
        last.iter().try_for_each(|exit| writeln!(f, "  {exit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Stop;
    use crate::machine::exits::Exit;
    use irqfabric::chip::ioapic::Ioapic;
    use irqfabric::fabric::{Fabric, PinStats, Stats};
    use irqfabric::hv::Sim;
    use irqfabric::line::SourceStats;
    use irqfabric::msg::RequesterId;
    use std::time::Duration;

    fn report(irqchip: IrqchipKind) -> Report {
        let source = |name: &str| SourceStats { name: name.into(), raised: u64::from(u32::MAX) };
        let pin = PinStats { delivered: u64::from(u32::MAX), refused: 1, ended: u64::from(u32::MAX) };
        let lines = vec![LineStats { gsi: 383, sources: vec![source("disk0"), source("disk1")], pin, acknowledged: 0 }];
        let mut exits = Exits::default();
        exits.note(Exit::bare(ExitKind::IoapicEoi, 0x31), Duration::from_micros(1500));
        let stats = Stats { lines, commits: 7, brakes: u64::from(u32::MAX), ..Stats::default() };
        let (calls, ran) = (Calls::default(), Duration::from_secs(4));
        let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).build().unwrap();
        let pair = ("disk1022".into(), Pair::new(&fabric, 9, "disk1022").unwrap());
        let vectors = fabric.msi_vectors(RequesterId::new(0, 1, 0), 2);
        vectors[1].signal();
        let vectors = vectors.to_vec().into();
        Report::new(
            irqchip,
            &[0],
            &Stopped { stop: Stop::PowerOff, ran, exits: vec![exits], stats, lapics: vec![None], calls },
            &Attached { vectors: vec![NamedVectors { device: "disk1023".into(), vectors }], pairs: vec![pair] },
        )
    }

    #[test]
    fn the_table_fits_into_80_columns() {
        for irqchip in [IrqchipKind::Split, IrqchipKind::Kernel] {
            let table = report(irqchip).to_string();
            assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        }
    }

    #[test]
    fn the_json_has_the_documented_shape() {
        let json = serde_json::to_value(report(IrqchipKind::Split)).unwrap();
        assert_eq!(json["commits"], 7);
        assert_eq!((&json["path"], &json["brakes"]), (&"KVM_SIGNAL_MSI".into(), &u32::MAX.into()));
        assert_eq!(json["lines"][1]["name"], "disk1");
        assert_eq!(json["lines"][1]["refused"], 1);
        assert_eq!((&json["pairs"][0]["device"], &json["pairs"][0]["resampled"]), (&"disk1022".into(), &0.into()));
        let vector = &json["vectors"][1];
        assert_eq!(
            (&vector["device"], &vector["signalled"], &vector["delivered"]),
            (&"disk1023".into(), &1.into(), &0.into())
        );
        assert_eq!(vector["hot"], false);
        assert_eq!(json["exits"][0]["kind"], "ioapic-eoi");
        assert_eq!(json["exits"][0]["per_vcpu"][0], 1);
    }
}
