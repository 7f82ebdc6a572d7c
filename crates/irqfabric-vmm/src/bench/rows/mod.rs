//! The rows, by name and in the order in which they are shown.

mod cold;
mod deliver;
mod guest;
mod invalidate;
mod mask;
mod program;

use super::error::Error;
use super::measure::{Rounds, Samples};

pub struct Row {
    pub name: &'static str,
    pub measure: fn(Rounds) -> Result<Measured, Error>,
}

/// One row's figures.
pub struct Measured {
    pub ours: Samples,
    pub floor: Samples,
    pub floor_is: &'static str,
    /// How many times the floor ours may take at the most (DESIGN §5); none if nothing was promised.
    pub bound: Option<f64>,
    pub facts: Vec<Fact>,
}

/// Something else that was counted or compared, shown below the row.
pub struct Fact {
    pub what: String,
    pub value: f64,
    pub most: Option<f64>,
}

const fn row(name: &'static str, measure: fn(Rounds) -> Result<Measured, Error>) -> Row {
    Row { name, measure }
}

pub const ROWS: &[Row] = &[
    row("signal", deliver::signal),
    row("eventfd-hot", deliver::eventfd_hot),
    row("eventfd-cold", cold::eventfd_cold),
    row("edge-line", deliver::edge_line),
    row("level-line", deliver::level_line),
    row("eoi-low", guest::eoi_low),
    row("line-same", guest::line_same),
    row("register-read", guest::register_read),
    row("register-write", guest::register_write),
    row("register-same", guest::register_same),
    row("linux-ioapic-setup", guest::linux_ioapic_setup),
    row("mask", mask::mask),
    row("unmask", mask::unmask),
    row("mask-2048", mask::mask_2048),
    row("program-1", |rounds| program::program(rounds, 1)),
    row("program-16", |rounds| program::program(rounds, 16)),
    row("program-256", |rounds| program::program(rounds, 256)),
    row("program-1024", |rounds| program::program(rounds, 1024)),
    row("program-4000", |rounds| program::program(rounds, 4000)),
    row("invalidate-same-1", |rounds| invalidate::same(rounds, 1)),
    row("invalidate-same-16", |rounds| invalidate::same(rounds, 16)),
    row("invalidate-same-256", |rounds| invalidate::same(rounds, 256)),
    row("invalidate-same-4000", |rounds| invalidate::same(rounds, 4000)),
    row("invalidate-1", |rounds| invalidate::changed(rounds, 1)),
    row("invalidate-16", |rounds| invalidate::changed(rounds, 16)),
    row("invalidate-256", |rounds| invalidate::changed(rounds, 256)),
    row("invalidate-4000", |rounds| invalidate::changed(rounds, 4000)),
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
        Self { ours, floor, floor_is, bound: None, facts: Vec::new() }
    }

    /// Ours may take `bound` times the floor.
    pub fn at_most(self, bound: f64) -> Self {
        Self { bound: Some(bound), ..self }
    }

    pub fn with_fact(mut self, what: impl Into<String>, value: f64, most: Option<f64>) -> Self {
        self.facts.push(Fact { what: what.into(), value, most });
        self
    }

    pub fn ratio(&self) -> f64 {
        self.ours.median() / self.floor.median()
    }

    /// Whether the ratio is; each fact says so for itself.
    pub fn within(&self) -> bool {
        self.bound.is_none_or(|bound| self.ratio() <= bound)
    }
}

impl Fact {
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
            [5, 1, 2, 4, 4, 0]
        );
    }
}
