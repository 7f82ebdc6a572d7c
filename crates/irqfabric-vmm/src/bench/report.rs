//! What was measured, as tables of 80 columns or as one JSON object.

use super::error::Error;
use super::host::{Host, describe};
use super::plot::Point;
use super::rows::{Contended, Fact, Measured, Threads, Usual};
use serde_json::{Value, json};
use std::io::{self, Write};

pub struct Report {
    host: Host,
    rounds: u32,
    rows: Vec<(&'static str, Figures)>,
}

/// One row's figures.
pub enum Figures {
    Timed(Measured),
    Threads(Contended),
    Facts(Vec<Fact>),
}

impl Report {
    pub fn new(rounds: u32) -> Self {
        Self { host: describe(), rounds, rows: Vec::new() }
    }

    pub fn push(&mut self, name: &'static str, figures: Figures) {
        self.rows.push((name, figures));
    }

    pub fn print(&self, as_json: bool) -> Result<(), Error> {
        let text = if as_json { format!("{:#}\n", self.json()) } else { self.tables() };
        match io::stdout().write_all(text.as_bytes()) {
            // A pager that was closed is no failure.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::call("write")(error)),
            _ => Ok(()),
        }
    }

    /// What was measured where, for a title.
    pub fn host(&self) -> String {
        let Host { cpu, cpus, kernel, .. } = &self.host;
        format!("{cpu}, {cpus} CPUs; Linux {kernel}")
    }

    /// The rows `name-N`, by N, as far as they have a usual way.
    pub fn points(&self, name: &str) -> Vec<Point> {
        let point = |(row, measured): (&str, &Measured)| {
            let count = row.strip_prefix(name)?.strip_prefix('-')?.parse().ok()?;
            let usual = measured.usual.as_ref()?.samples.median();
            Some(Point { count, ours: measured.ours.median(), usual })
        };
        self.timed().filter_map(point).collect()
    }

    fn timed(&self) -> impl Iterator<Item = (&'static str, &Measured)> {
        self.rows.iter().filter_map(|(name, figures)| match figures {
            Figures::Timed(measured) => Some((*name, measured)),
            Figures::Threads(_) | Figures::Facts(_) => None,
        })
    }

    fn tables(&self) -> String {
        let mut lines = vec![
            format!("{}; load {}", self.host(), self.host.load),
            format!("medians of {} rounds, fewer where a round is long; ! exceeds its bound", self.rounds),
        ];
        for table in [self.against_the_floor(), self.against_the_usual_way(), self.under_contention(), self.counted()] {
            if table.len() > 1 {
                lines.push(String::new());
                lines.extend(table);
            }
        }
        lines.push(String::new());
        lines.join("\n")
    }

    fn against_the_floor(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<20}{:>8}{:>8}{:>6} {:>6}   {:<10}{:>6}  {}",
            "row", "ours", "floor", "ratio", "bound", "mid half", "calls", "floor is"
        )];
        for (name, row) in self.timed() {
            let (low, high) = row.ours.spread(&row.floor);
            lines.push(format!(
                "{name:<20}{:>8}{:>8}{:>6} {:>6}{}  {:<10}{:>6}{} {}",
                duration(row.ours.median()),
                duration(row.floor.median()),
                ratio(row.ratio()),
                row.bound.map_or("–".into(), |bound| format!("≤{}", ratio(bound))),
                mark(row.within()),
                format!("{}…{}", ratio(low), ratio(high)),
                row.calls.as_ref().map_or("–".into(), |calls| count(calls.value)),
                mark(row.calls.as_ref().is_none_or(Fact::within)),
                row.floor_is,
            ));
            lines.extend(row.facts.iter().map(fact));
        }
        lines
    }

    fn against_the_usual_way(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<20}{:>8}{:>8}{:>8} {:>6}   {}",
            "row", "ours", "usual", "ratio", "bound", "the usual way is"
        )];
        for (name, row) in self.timed() {
            let Some(usual) = &row.usual else { continue };
            lines.push(format!(
                "{name:<20}{:>8}{:>8}{:>8} {:>6}{}  {}",
                duration(row.ours.median()),
                duration(usual.samples.median()),
                ratio(row.usual_ratio(usual)),
                usual.bound.map_or("–".into(), |bound| format!("≤{}", ratio(bound))),
                mark(row.within_usual(usual)),
                usual.is,
            ));
        }
        lines
    }

    fn under_contention(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<19}{:>8}{:>9}{:>9}{:>6}{:>8}{:>9}{:>11}",
            "row", "threads", "ours", "floor", "ratio", "p99", "max", "floor p99"
        )];
        for (name, contended) in self.contended() {
            for Threads { count, ours, floor } in &contended.runs {
                let (rate, bare) = (ours.rates.median(), floor.rates.median());
                lines.push(format!(
                    "{name:<19}{count:>8}{:>9}{:>9}{:>6}{:>8}{:>9}{:>11}",
                    per_second(rate),
                    per_second(bare),
                    ratio(rate / bare),
                    duration(ours.latency.value_at_quantile(0.99) as f64),
                    duration(ours.latency.max() as f64),
                    duration(floor.latency.value_at_quantile(0.99) as f64),
                ));
            }
            lines.push(format!("    each thread: {}; the floor: SIGNAL_MSI", contended.operation));
        }
        lines
    }

    fn contended(&self) -> impl Iterator<Item = (&'static str, &Contended)> {
        self.rows.iter().filter_map(|(name, figures)| match figures {
            Figures::Threads(contended) => Some((*name, contended)),
            Figures::Timed(_) | Figures::Facts(_) => None,
        })
    }

    fn counted(&self) -> Vec<String> {
        let mut lines = vec!["counted".to_owned()];
        for (name, figures) in &self.rows {
            if let Figures::Facts(facts) = figures {
                lines.push((*name).to_owned());
                lines.extend(facts.iter().map(fact));
            }
        }
        lines
    }

    fn json(&self) -> Value {
        let figures = |figures: &Figures| match figures {
            Figures::Timed(measured) => timed_json(measured),
            Figures::Threads(contended) => contended_json(contended),
            Figures::Facts(facts) => json!({ "facts": facts.iter().map(fact_json).collect::<Vec<_>>() }),
        };
        let row = |(name, of_row): &(&str, Figures)| {
            let mut row = figures(of_row);
            row["name"] = (*name).into();
            row
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        json!({ "machine": self.host, "rounds": self.rounds, "rows": rows })
    }
}

fn timed_json(row: &Measured) -> Value {
    let (low, high) = row.ours.spread(&row.floor);
    let usual = |usual: &Usual| {
        let (low, high) = row.ours.spread(&usual.samples);
        json!({
            "ns": usual.samples.median(),
            "is": usual.is,
            "ratio": row.usual_ratio(usual),
            "bound": usual.bound,
            "middle_half": [low, high],
            "within": row.within_usual(usual),
        })
    };
    json!({
        "ours_ns": row.ours.median(),
        "floor_ns": row.floor.median(),
        "floor": row.floor_is,
        "ratio": row.ratio(),
        "bound": row.bound,
        "middle_half": [low, high],
        "within": row.within(),
        "usual": row.usual.as_ref().map(usual),
        "system_calls": row.calls.as_ref().map(fact_json),
        "facts": row.facts.iter().map(fact_json).collect::<Vec<_>>(),
    })
}

fn contended_json(contended: &Contended) -> Value {
    let side = |side: &super::rows::Side| {
        let at = |quantile| side.latency.value_at_quantile(quantile);
        json!({
            "per_second": side.rates.median(),
            "p50_ns": at(0.5),
            "p99_ns": at(0.99),
            "max_ns": side.latency.max(),
            "register_writes_per_second": side.writes.median(),
        })
    };
    let run = |run: &Threads| json!({ "threads": run.count, "ours": side(&run.ours), "floor": side(&run.floor) });
    json!({ "operation": contended.operation, "runs": contended.runs.iter().map(run).collect::<Vec<_>>() })
}

fn fact_json(fact: &Fact) -> Value {
    json!({ "what": fact.what, "value": fact.value, "bound": fact.most, "within": fact.within() })
}

fn fact(fact: &Fact) -> String {
    let most = fact.most.map(|most| format!(", bound {}", number(most))).unwrap_or_default();
    format!("    {}: {}{most}{}", fact.what, number(fact.value), if fact.within() { "" } else { " !" })
}

const fn mark(within: bool) -> char {
    if within { ' ' } else { '!' }
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
        nothing if nothing < 0.0001 => "0.00".into(),
        small if small < 0.1 => format!("1/{:.0}", 1.0 / small),
        ratio => figures(ratio),
    }
}

fn per_second(rate: f64) -> String {
    match rate {
        few if few < 999.5e3 => format!("{} k/s", figures(few / 1e3)),
        many => format!("{} M/s", figures(many / 1e6)),
    }
}

/// Of system calls an operation: whole if it is.
fn count(calls: f64) -> String {
    match calls {
        many if many >= 9999.5 => format!("{:.0}k", many / 1e3),
        whole if whole.fract() == 0.0 => format!("{whole:.0}"),
        calls => figures(calls),
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
        assert_eq!([1.0, 0.025, 12.0, 0.0004, 0.00001].map(ratio), ["1.00", "1/40", "12.0", "1/2500", "0.00"]);
        assert_eq!([0.0, 1.0, 3.02, 44_031.0].map(count), ["0", "1", "3.02", "44k"]);
        assert_eq!([900e3, 3.2e6].map(per_second), ["900 k/s", "3.20 M/s"]);
    }
}
