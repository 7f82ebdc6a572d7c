//! What was measured, as a table of 80 columns or as one JSON object.

use super::error::Error;
use super::host::{Host, describe};
use super::rows::{Fact, Measured};
use serde_json::{Value, json};
use std::io::{self, Write};

pub struct Report {
    host: Host,
    rounds: u32,
    pub rows: Vec<(&'static str, Measured)>,
}

impl Report {
    pub fn new(rounds: u32) -> Self {
        Self { host: describe(), rounds, rows: Vec::new() }
    }

    pub fn print(&self, as_json: bool) -> Result<(), Error> {
        let text = if as_json { format!("{:#}\n", self.json()) } else { self.table() };
        match io::stdout().write_all(text.as_bytes()) {
            // A pager that was closed is no failure.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::call("write")(error)),
            _ => Ok(()),
        }
    }

    fn table(&self) -> String {
        let Host { cpu, cpus, kernel, load } = &self.host;
        let mut lines = vec![
            format!("{cpu}, {cpus} CPUs; Linux {kernel}; load {load}"),
            format!("medians of {} rounds, fewer where a round is long; ! exceeds its bound", self.rounds),
            String::new(),
            format!(
                "{:<20}{:>9}{:>9}{:>7}{:>7}  {:<11} {}",
                "row", "ours", "floor", "ratio", "bound", "middle half", "floor is"
            ),
        ];
        for (name, row) in &self.rows {
            let (low, high) = row.ours.spread(&row.floor);
            lines.push(format!(
                "{name:<20}{:>9}{:>9}{:>7}{:>7}{} {:<11} {}",
                duration(row.ours.median()),
                duration(row.floor.median()),
                ratio(row.ratio()),
                row.bound.map_or("–".into(), |bound| format!("≤ {}", ratio(bound))),
                if row.within() { ' ' } else { '!' },
                format!("{}…{}", ratio(low), ratio(high)),
                row.floor_is,
            ));
            for fact in &row.facts {
                let mark = if fact.within() { "" } else { " !" };
                let most = fact.most.map(|most| format!(", bound {}", number(most))).unwrap_or_default();
                lines.push(format!("    {}: {}{most}{mark}", fact.what, number(fact.value)));
            }
        }
        lines.push(String::new());
        lines.join("\n")
    }

    fn json(&self) -> Value {
        let row = |(name, row): &(&str, Measured)| {
            let (low, high) = row.ours.spread(&row.floor);
            let fact = |fact: &Fact| json!({ "what": fact.what, "value": fact.value, "bound": fact.most, "within": fact.within() });
            let facts: Vec<_> = row.facts.iter().map(fact).collect();
            json!({
                "name": name,
                "ours_ns": row.ours.median(),
                "floor_ns": row.floor.median(),
                "floor": row.floor_is,
                "ratio": row.ratio(),
                "bound": row.bound,
                "middle_half": [low, high],
                "within": row.within(),
                "facts": facts,
            })
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        json!({ "machine": self.host, "rounds": self.rounds, "rows": rows })
    }
}

fn duration(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 999.5 => format!("{} ns", figures(ns)),
        ns if ns < 999.5e3 => format!("{} µs", figures(ns / 1e3)),
        ns if ns < 999.5e6 => format!("{} ms", figures(ns / 1e6)),
        ns => format!("{} s", figures(ns / 1e9)),
    }
}

/// Three of them.
fn figures(value: f64) -> String {
    match value {
        small if small < 9.995 => format!("{small:.2}"),
        middle if middle < 99.95 => format!("{middle:.1}"),
        large => format!("{large:.0}"),
    }
}

/// What is far below one reads better as a fraction.
fn ratio(ratio: f64) -> String {
    match ratio {
        nothing if nothing < 0.001 => "0.00".into(),
        small if small < 0.1 => format!("1/{:.0}", 1.0 / small),
        ratio => figures(ratio),
    }
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_at_a_glance() {
        assert_eq!([5.04, 890_400.0, 1.76e9].map(duration), ["5.04 ns", "890 µs", "1.76 s"]);
        assert_eq!([1.0, 0.025, 12.0, 0.0001].map(ratio), ["1.00", "1/40", "12.0", "0.00"]);
    }
}
