//! The rows, by name and in the order in which they are shown.

mod cold;
mod contend;
mod deliver;
mod guest;
mod idle;
mod invalidate;
mod linux;
mod mask;
mod memory;
mod program;
mod promote;
mod record;

pub use contend::{Contended, Side, Threads};

use super::error::Error;
use super::measure::{Rounds, Samples};

pub struct Row {
    pub name: &'static str,
    pub measure: Measure,
}

pub enum Measure {
    /// An operation against its floor.
    Timed(fn(Rounds) -> Result<Measured, Error>),
    /// Several threads at once, as many in turn as [`Contended`] says.
    Threads(fn(Rounds) -> Result<Contended, Error>),
    /// What is counted and not timed.
    Facts(fn() -> Result<Vec<Fact>, Error>),
}

/// One operation's figures.
pub struct Measured {
    pub ours: Samples,
    pub floor: Samples,
    pub floor_is: &'static str,
    /// How many times the floor ours may take at the most (DESIGN §5); none if nothing was promised.
    pub bound: Option<f64>,
    pub usual: Option<Usual>,
    /// System calls an operation of ours, the device's write to an eventfd included. Counted are the calls to the
    /// hypervisor, each for itself and what it implies: an attach a read, a wake-up of the dispatcher an epoll_wait and a
    /// read, an eventfd its making and an epoll_ctl. `strace -c -f` of two runs, one with more rounds than the other, agrees.
    pub calls: Option<Fact>,
    pub facts: Vec<Fact>,
}

/// The same job as it is usually done: with an irqfd for whatever interrupts, and one commit of the whole table for each
/// change. A policy of this bench's, on the raw calls, not of the library.
pub struct Usual {
    pub samples: Samples,
    pub is: &'static str,
    /// How many times what it takes ours may take at the most.
    pub bound: Option<f64>,
}

/// Something else that was counted or compared, shown below the row.
pub struct Fact {
    pub what: String,
    pub value: f64,
    pub most: Option<f64>,
}

const fn timed(name: &'static str, measure: fn(Rounds) -> Result<Measured, Error>) -> Row {
    Row { name, measure: Measure::Timed(measure) }
}

const fn threads(name: &'static str, measure: fn(Rounds) -> Result<Contended, Error>) -> Row {
    Row { name, measure: Measure::Threads(measure) }
}

const fn facts(name: &'static str, count: fn() -> Result<Vec<Fact>, Error>) -> Row {
    Row { name, measure: Measure::Facts(count) }
}

pub const ROWS: &[Row] = &[
    timed("signal", deliver::signal),
    timed("eventfd-hot", deliver::eventfd_hot),
    timed("eventfd-cold", cold::eventfd_cold),
    timed("line-eventfd", cold::line_eventfd),
    timed("edge-line", deliver::edge_line),
    timed("level-line", deliver::level_line),
    timed("level-and-eoi", deliver::level_and_eoi),
    timed("eoi-low", guest::eoi_low),
    timed("line-same", guest::line_same),
    timed("register-read", guest::register_read),
    timed("register-write", guest::register_write),
    timed("register-same", guest::register_same),
    timed("level-move", linux::level_move),
    timed("linux-ioapic-setup", linux::ioapic_setup),
    timed("record", record::record),
    timed("mask", mask::mask),
    timed("unmask", mask::unmask),
    timed("mask-unmask", mask::mask_unmask),
    timed("mask-2048", mask::mask_2048),
    timed("promotion-1", |rounds| promote::promotion(rounds, 1)),
    timed("promotion-256", |rounds| promote::promotion(rounds, 256)),
    timed("program-1", |rounds| program::program(rounds, 1)),
    timed("program-16", |rounds| program::program(rounds, 16)),
    timed("program-256", |rounds| program::program(rounds, 256)),
    timed("program-1024", |rounds| program::program(rounds, 1024)),
    timed("program-4000", |rounds| program::program(rounds, 4000)),
    timed("invalidate-same-1", |rounds| invalidate::same(rounds, 1)),
    timed("invalidate-same-16", |rounds| invalidate::same(rounds, 16)),
    timed("invalidate-same-256", |rounds| invalidate::same(rounds, 256)),
    timed("invalidate-same-4000", |rounds| invalidate::same(rounds, 4000)),
    timed("invalidate-1", |rounds| invalidate::changed(rounds, 1)),
    timed("invalidate-16", |rounds| invalidate::changed(rounds, 16)),
    timed("invalidate-256", |rounds| invalidate::changed(rounds, 256)),
    timed("invalidate-1024", |rounds| invalidate::changed(rounds, 1024)),
    timed("invalidate-4000", |rounds| invalidate::changed(rounds, 4000)),
    threads("contention-vectors", contend::different_vectors),
    threads("contention-vector", contend::one_vector),
    threads("contention-line", contend::one_line),
    facts("memory-4000", memory::memory_4000),
    facts("idle", idle::idle),
];

impl Row {
    /// By its whole name, or by what is before its number.
    pub fn is_called(&self, name: &str) -> bool {
        let number = self.name.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        self.name == name || number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

impl Measured {
    pub fn new([ours, floor]: [Samples; 2], floor_is: &'static str) -> Self {
        Self { ours, floor, floor_is, bound: None, usual: None, calls: None, facts: Vec::new() }
    }

    /// Ours may take `bound` times the floor.
    pub fn at_most(self, bound: f64) -> Self {
        Self { bound: Some(bound), ..self }
    }

    pub fn against(self, samples: Samples, is: &'static str) -> Self {
        Self { usual: Some(Usual { samples, is, bound: None }), ..self }
    }

    /// Ours may take `bound` times what the usual way takes.
    pub fn at_most_usual(mut self, bound: f64) -> Self {
        self.usual = self.usual.map(|usual| Usual { bound: Some(bound), ..usual });
        self
    }

    pub fn with_calls(self, calls: f64, most: Option<f64>) -> Self {
        Self { calls: Some(Fact { what: "system calls".into(), value: calls, most }), ..self }
    }

    pub fn with_fact(mut self, what: impl Into<String>, value: f64, most: Option<f64>) -> Self {
        self.facts.push(Fact { what: what.into(), value, most });
        self
    }

    pub fn ratio(&self) -> f64 {
        self.ours.median() / self.floor.median()
    }

    /// Whether the ratio to the floor is; each fact says so for itself.
    pub fn within(&self) -> bool {
        self.bound.is_none_or(|bound| self.ratio() <= bound)
    }

    pub fn usual_ratio(&self, usual: &Usual) -> f64 {
        self.ours.median() / usual.samples.median()
    }

    /// Whether the ratio to the usual way is within its bound.
    pub fn within_usual(&self, usual: &Usual) -> bool {
        usual.bound.is_none_or(|bound| self.usual_ratio(usual) <= bound)
    }
}

impl Fact {
    pub fn new(what: impl Into<String>, value: f64) -> Self {
        Self { what: what.into(), value, most: None }
    }

    pub fn at_most(self, most: f64) -> Self {
        Self { most: Some(most), ..self }
    }

    pub fn within(&self) -> bool {
        self.most.is_none_or(|most| self.value <= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_its_number_means_all_of_that_name() {
        let called = |name| ROWS.iter().filter(|row| row.is_called(name)).count();
        assert_eq!(
            ["program", "program-16", "mask", "invalidate", "invalidate-same", "mas"].map(called),
            [5, 1, 2, 5, 4, 0]
        );
    }
}
