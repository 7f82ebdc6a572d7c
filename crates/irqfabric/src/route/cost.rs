//! What a system call takes, learnt from the calls that are made anyway.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// An estimate in nanoseconds.
///
/// It falls to a shorter measurement at once and rises to a longer one slowly: what a busy host makes of one call is
/// forgotten, and of two ways to do something the one that is underrated gets chosen, measured and put right. One
/// that is overrated would never be tried again.
#[derive(Debug)]
pub(crate) struct Cost(AtomicU64);

impl Cost {
    /// To begin with.
    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self(AtomicU64::new(nanos))
    }

    /// It took this long. Two threads that learn at once may forget what one of them has learnt.
    /// From no time at all nothing is learnt: that is a clock too coarse, or one that stands still in a model.
    pub(crate) fn learn(&self, took: Duration) {
        if took.is_zero() {
            return;
        }
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let known = self.0.load(Relaxed).max(8);
        let next = if took < known { took } else { known + (took.min(known.saturating_mul(2)) - known) / 8 };
        self.0.store(next, Relaxed);
    }

    pub(crate) fn load(&self) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_measurement_on_a_busy_host_changes_little_and_many_change_all() {
        let cost = Cost::from_nanos(80_000);
        cost.learn(Duration::from_millis(10));
        assert_eq!(cost.load(), Duration::from_micros(90));
        cost.learn(Duration::from_micros(15));
        assert_eq!(cost.load(), Duration::from_micros(15));
        (0..40).for_each(|_| cost.learn(Duration::from_micros(150)));
        assert!(cost.load() > Duration::from_micros(140), "{cost:?}");
    }
}
