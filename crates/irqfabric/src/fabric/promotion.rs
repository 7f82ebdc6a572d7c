//! When vectors get a route, lose it, or have it changed: many by one commit, none with a lock held.

use super::core::{Core, Counters, Covered};
use super::vector::{Reroute, Vector};
use crate::remap::Entries;
use crate::route::{Event, Gsi, Since};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// When a vector whose eventfd is in use gets a route and an irqfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// After it has fired twice: many vectors together, when `batch` of them wait or the first has waited for `delay` or
    /// a hundred times as long as the last commit took, whichever is longer.
    OnDemand {
        /// How many are enough.
        batch: usize,
        /// How long one waits at least.
        delay: Duration,
    },
    /// When the guest has programmed and unmasked it, on the thread that did; if the device asks for the eventfd only
    /// then, when it does. One that has lost its route all the same gets another on demand.
    Prefill,
    /// Never: the dispatcher delivers every event.
    Never,
}

impl Default for Promotion {
    /// On demand: 256 vectors, 10 ms.
    fn default() -> Self {
        Self::OnDemand { batch: BATCH, delay: DELAY }
    }
}

const BATCH: usize = 256;
const DELAY: Duration = Duration::from_millis(10);

/// Between two commits of the dispatcher's there is nine times as long as the first took: they never take more than
/// a tenth of the time.
const PAUSE: u32 = 9;

/// For each microsecond of a commit the first candidate waits a hundred.
const PATIENCE: u32 = 100;

/// What a delay comes to that is longer than the clock goes.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);

/// From how many vectors on several threads detach side by side: waiting, each of them, for the kernel.
const MANY: usize = 16;
const THREADS: usize = 4;

/// The vectors that wait for a route: the dispatcher's alone.
#[derive(Default)]
pub(super) struct Candidates {
    vectors: Vec<Weak<Vector>>,
    deadline: Option<Instant>,
    /// No commit before.
    paused: Option<Instant>,
}

impl Candidates {
    pub(super) fn push(&mut self, core: &Core, vector: &Arc<Vector>) {
        let (batch, delay) = match core.promotion {
            Promotion::OnDemand { batch, delay } => (batch, delay),
            // It has lost its route to another, or to an invalidation that found detaching cheaper.
            Promotion::Prefill => (BATCH, DELAY),
            Promotion::Never => return,
        };
        self.vectors.push(Arc::downgrade(vector));
        let now = Instant::now();
        let patience = delay.max(core.table.last_commit() * PATIENCE);
        let deadline = self.deadline.get_or_insert_with(|| now.checked_add(patience).unwrap_or(now + FOR_EVER));
        if self.vectors.len() >= batch {
            *deadline = now.min(*deadline);
        }
        if let Some(paused) = self.paused {
            *deadline = paused.max(*deadline);
        }
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(super) fn promote_if_due(&mut self, core: &Arc<Core>) {
        if self.deadline.is_none_or(|deadline| deadline > Instant::now()) {
            return;
        }
        self.deadline = None;
        let vectors: Vec<_> = self.vectors.drain(..).filter_map(|vector| vector.upgrade()).collect();
        promote(core, &vectors);
        let now = Instant::now();
        self.paused = now.checked_add(core.table.last_commit() * PAUSE);
    }
}

/// The vectors that have a route, by GSI.
#[derive(Default)]
pub(crate) struct HotVectors {
    by_gsi: BTreeMap<u32, Weak<Vector>>,
    /// The GSI that was evicted last: the next one is behind it, so that all have their turn.
    hand: u32,
}

impl HotVectors {
    pub(super) fn insert(&mut self, gsi: &Gsi, vector: &Arc<Vector>) {
        self.by_gsi.insert(gsi.number(), Arc::downgrade(vector));
    }

    pub(super) fn remove(&mut self, gsi: &Gsi) {
        self.by_gsi.remove(&gsi.number());
    }

    fn next(&mut self) -> Option<Arc<Vector>> {
        let behind = (Bound::Excluded(self.hand), Bound::Unbounded);
        let (&gsi, vector) = self.by_gsi.range(behind).next().or_else(|| self.by_gsi.iter().next())?;
        self.hand = gsi;
        vector.upgrade()
    }
}

/// Gives `vectors` a route each and attaches them, as far as they still want it: one commit, then the attaches. No lock is held
/// across the commit; a vector whose message changes meanwhile stays cold.
pub(super) fn promote(core: &Arc<Core>, vectors: &[Arc<Vector>]) {
    if !core.promotes.load(Ordering::Relaxed) {
        return;
    }
    let mut edit = Vec::with_capacity(vectors.len());
    let mut newest = None;
    for vector in vectors {
        let Some((interrupt, worth_an_eviction)) = vector.candidate() else { continue };
        let gsi = core.table.allocate().or_else(|| worth_an_eviction.then(|| evict(core)).flatten());
        let Some(gsi) = gsi else {
            Counters::count(&core.counters.shortages);
            continue;
        };
        newest = newest.max(Some(gsi.put(interrupt)));
        edit.push((vector, interrupt, gsi));
    }
    let Some(newest) = newest else { return };
    if !core.publish(newest) {
        return;
    }
    for (vector, interrupt, gsi) in edit {
        if vector.promote(interrupt, gsi) {
            Counters::count(&core.counters.promotions);
        }
    }
}

/// Makes vectors hot ahead of their first event, if that is the policy: those of them that are programmed and unmasked and
/// have an eventfd.
pub(super) fn prefill(core: &Arc<Core>, vectors: &[&Arc<Vector>]) {
    if core.promotion == Promotion::Prefill {
        let remapper = core.translation.read();
        let vectors: Vec<_> =
            vectors.iter().filter(|vector| vector.learn(&*remapper)).map(|&vector| vector.clone()).collect();
        drop(remapper);
        promote(core, &vectors);
    }
}

/// Takes another vector's GSI.
fn evict(core: &Arc<Core>) -> Option<Gsi> {
    let victim = core.hot.lock().next()?;
    victim.detach(Event::Evict);
    Counters::count(&core.counters.evictions);
    core.table.allocate()
}

/// What programming or invalidating vectors leaves to be done, once the locks are free.
#[derive(Default)]
pub(super) struct Left<'a> {
    /// Without a translation.
    gone: Vec<&'a Arc<Vector>>,
    /// With another translation, which is in force with the edit `newest`.
    stale: Vec<&'a Arc<Vector>>,
    newest: Option<Since>,
}

impl<'a> FromIterator<(&'a Arc<Vector>, Reroute)> for Left<'a> {
    fn from_iter<T: IntoIterator<Item = (&'a Arc<Vector>, Reroute)>>(changes: T) -> Self {
        let mut left = Self::default();
        for (vector, reroute) in changes {
            match reroute {
                Reroute::No => {}
                Reroute::Detach => left.gone.push(vector),
                Reroute::Yes(since) => {
                    left.newest = left.newest.max(Some(since));
                    left.stale.push(vector);
                }
            }
        }
        left
    }
}

/// Does what is left: on return the kernel delivers by no route that says something
/// old.
///
/// What has no translation any more is detached first. What has another one is either brought up to date by one commit
/// or detached, whichever is cheaper going by what commits and detaches have taken so far: detached vectors are
/// promoted again when they fire.
pub(super) fn settle(core: &Arc<Core>, left: Left<'_>) {
    let Left { gone, stale, newest } = left;
    side_by_side(&gone, |vector| vector.detach(Event::Forget));
    let Some(newest) = newest else { return };
    let count = u32::try_from(stale.len()).unwrap_or(u32::MAX);
    if core.detach_cost.load().saturating_mul(count) < core.table.expected_commit() {
        side_by_side(&stale, |vector| vector.detach(Event::Evict));
    } else if !core.publish(newest) {
        side_by_side(&stale, |vector| vector.detach(Event::Forget));
    }
}

/// Drops the cached translations that came from `entries`. On return no delivery uses them.
///
/// A translation that comes out the same costs no system call. Our own work grows with the vectors concerned only.
pub(super) fn invalidate(core: &Arc<Core>, entries: &Entries) {
    let Some(remapper) = core.translation.write() else { return };
    let Covered { vectors, dropping } = core.cookies.covered(entries);
    let left: Left<'_> = vectors.iter().map(|vector| (vector, vector.invalidate(&*remapper))).collect();
    // Nobody translates by the old entries any more; the vectors are dropped, if we are their last, without the lock.
    drop(remapper);
    settle(core, left);
    drop(vectors);
    core.cookies.wait_for_dropped(dropping);
}

/// Does something to each of many vectors, from a few threads if they are many: all it takes is their own locks.
///
/// A guest's register write may lead here: where the host gives no thread, the caller does that part itself.
pub(super) fn side_by_side<T: Sync>(items: &[T], act: impl Fn(&T) + Sync) {
    if items.len() < MANY {
        return items.iter().for_each(act);
    }
    let (own, others) = items.split_at(items.len().div_ceil(THREADS));
    let act = &act;
    thread::scope(|scope| {
        for chunk in others.chunks(own.len()) {
            let spawned = thread::Builder::new().spawn_scoped(scope, move || chunk.iter().for_each(act));
            if spawned.is_err() {
                chunk.iter().for_each(act);
            }
        }
        own.iter().for_each(act);
    });
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::env;
    use std::process::Command;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    /// In a process of its own, in which no thread finds room for its stack.
    #[test]
    fn where_the_host_gives_no_thread_the_caller_does_it_all() {
        if env::var_os("RUST_MIN_STACK").is_none() {
            let name = "fabric::promotion::tests::where_the_host_gives_no_thread_the_caller_does_it_all";
            let mut child = Command::new(env::current_exe().unwrap());
            let child =
                child.args([name, "--exact", "--test-threads=1"]).env("RUST_MIN_STACK", (1_u64 << 62).to_string());
            return assert!(child.status().unwrap().success());
        }
        assert!(thread::Builder::new().spawn(|| ()).is_err());
        let done = AtomicUsize::new(0);
        side_by_side(&[(); 4 * MANY + 1], |()| {
            done.fetch_add(1, Relaxed);
        });
        assert_eq!(done.load(Relaxed), 4 * MANY + 1);
    }
}
