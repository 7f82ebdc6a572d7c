//! Rounds that alternate, and what is made of them.

use super::error::Error;
use std::time::{Duration, Instant};

/// How many rounds to measure for.
#[derive(Clone, Copy)]
pub struct Rounds(pub u32);

/// One for each round: nanoseconds an operation, unless somebody says otherwise.
#[derive(Clone, Default)]
pub struct Samples(Vec<f64>);

/// One way of doing the job: a batch of operations each time it is called. It answers what the batch took, without what
/// it had to prepare.
pub type Contender<'a> = &'a mut dyn FnMut() -> Result<Duration, Error>;

impl Rounds {
    /// For rows whose single round takes long enough.
    pub fn few(self) -> Self {
        Self(self.0.div_ceil(15).max(3))
    }

    /// Calls the contenders in turn, `batch` operations a call, in all orders: what one leaves behind, in caches or for the
    /// kernel's workers, falls on all others. One more round before the first is not counted.
    pub fn measure<const N: usize>(self, batch: usize, contenders: [Contender<'_>; N]) -> Result<[Samples; N], Error> {
        let mut samples = [const { Samples(Vec::new()) }; N];
        for round in 0..=self.0 as usize {
            for turn in 0..N {
                let turn = if round % 2 == 0 { turn } else { N - 1 - turn };
                let which = (round / 2 + turn) % N;
                let took = contenders[which]()?;
                if round > 0 {
                    samples[which].0.push(took.as_nanos() as f64 / batch as f64);
                }
            }
        }
        Ok(samples)
    }
}

impl Samples {
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub fn median(&self) -> f64 {
        quantile(&self.0, 0.5)
    }

    /// The middle half of what ours took by what the floor took in the same round.
    pub fn spread(&self, floor: &Self) -> (f64, f64) {
        let ratios = self.ratios(floor);
        (quantile(&ratios, 0.25), quantile(&ratios, 0.75))
    }

    /// What ours took by what the floor took, round by round, in the middle.
    pub fn median_ratio(&self, floor: &Self) -> f64 {
        quantile(&self.ratios(floor), 0.5)
    }

    /// Round by round the one or the other.
    pub fn chosen(which: &[bool], one: &Self, other: &Self) -> Self {
        let both = one.0.iter().zip(&other.0);
        Self(which.iter().zip(both).map(|(&first, (&one, &other))| if first { one } else { other }).collect())
    }

    fn ratios(&self, floor: &Self) -> Vec<f64> {
        self.0.iter().zip(&floor.0).map(|(ours, floor)| ours / floor).collect()
    }
}

/// What `act` takes.
pub fn time<T>(act: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    let done = act();
    let took = start.elapsed();
    drop(done);
    took
}

/// What `act` takes if it succeeds.
pub fn try_time(act: impl FnOnce() -> Result<(), Error>) -> Result<Duration, Error> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed())
}

/// Looks until it is so.
pub fn wait_until(what: &'static str, so: impl Fn() -> bool) -> Result<(), Error> {
    let start = Instant::now();
    while !so() {
        if start.elapsed() > Duration::from_secs(60) {
            return Err(Error::Never(what));
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn quantile(samples: &[f64], at: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = at * (sorted.len().saturating_sub(1)) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(below), Some(above)) => below + (above - below) * place.fract(),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_between_its_neighbours() {
        assert_eq!(quantile(&[4.0, 1.0, 3.0, 2.0], 0.5), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.25), 2.0);
    }

    #[test]
    fn every_contender_has_its_rounds_and_the_first_is_not_counted() {
        let mut calls = 0;
        let mut ours = || {
            calls += 1;
            Ok(Duration::from_nanos(if calls == 1 { 1000 } else { 20 }))
        };
        let mut floor = || Ok(Duration::from_nanos(10));
        let [ours, floor] = Rounds(4).measure(10, [&mut ours, &mut floor]).unwrap();
        assert_eq!((ours.median(), floor.median(), ours.spread(&floor)), (2.0, 1.0, (2.0, 2.0)));
        assert_eq!(calls, 5);
    }
}
