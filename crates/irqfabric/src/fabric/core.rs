//! Where messages are translated and delivered: one place for pins and vectors alike.

use super::dispatcher::Dispatcher;
use super::pic::PicPort;
use super::promotion::{HotVectors, Promotion};
use super::translation::Translation;
use super::vector::Vector;
use crate::hv::{HvError, Hypervisor};
use crate::memory::Memory;
use crate::msg::{Acceptance, Interrupt, Message, NotAnInterrupt};
use crate::record::Tapes;
use crate::remap::{Cookie, Entries, Refusal, Remapper};
use crate::route::{Cost, GsiTable, Since};
use crate::sync::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};

pub(crate) struct Core {
    pub(crate) hypervisor: Box<dyn Hypervisor>,
    pub(crate) memory: Option<Arc<dyn Memory>>,
    pub(crate) translation: Translation,
    /// Whose cached translation came from where. A leaf.
    pub(crate) cookies: CookieIndex,
    pub(crate) table: Arc<GsiTable>,
    /// Where external interrupts come from, if there is such a chip.
    pub(crate) pic: Option<Arc<PicPort>>,
    pub(crate) promotion: Promotion,
    /// Whether there can be hot vectors at all: there are GSIs for them, and the hypervisor has not said that it cannot.
    pub(crate) promotes: AtomicBool,
    /// The vectors that have a route. A leaf.
    pub(crate) hot: Mutex<HotVectors>,
    /// What detaching an irqfd takes.
    pub(crate) detach_cost: Cost,
    /// How many are being detached.
    pub(crate) detaching: AtomicU64,
    /// Started with the first eventfd, or the first thing that is put off.
    pub(crate) dispatcher: OnceLock<Dispatcher>,
    pub(crate) counters: Counters,
    /// Where the machines that are still to come leave their steps.
    pub(crate) tapes: Tapes,
}

/// By entry of the remapping table: the vectors whose translation is cached, here or by the kernel.
pub(crate) struct CookieIndex(Option<Index>);

#[derive(Default)]
struct Index {
    vectors: Mutex<BTreeMap<Key, Weak<Vector>>>,
    /// Somebody [waits](CookieIndex::wait_for_dropped), and a vector has left.
    left: Condvar,
}

/// The second half tells vectors of one entry apart.
type Key = (Option<Cookie>, usize);

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) memory_writes: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) blocked: AtomicU64,
    pub(crate) host_errors: AtomicU64,
    pub(crate) wakeups: AtomicU64,
    pub(crate) promotions: AtomicU64,
    pub(crate) evictions: AtomicU64,
    pub(crate) shortages: AtomicU64,
    pub(crate) brakes: AtomicU64,
    pub(crate) panics: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}

/// What an invalidation covers.
#[derive(Default)]
pub(crate) struct Covered {
    pub(crate) vectors: Vec<Arc<Vector>>,
    /// Some are being dropped, which is to be [waited for](CookieIndex::wait_for_dropped).
    pub(crate) dropping: Dropping,
}

/// Vectors that were being dropped when an invalidation came across them.
#[derive(Default)]
pub(crate) struct Dropping(Vec<Key>);

impl CookieIndex {
    /// Without interrupt remapping nothing is ever invalidated, and nothing is kept.
    pub(crate) const fn unused() -> Self {
        Self(None)
    }

    pub(crate) fn new() -> Self {
        Self(Some(Index::default()))
    }

    /// `vector` has cached a translation that came from `cookie`.
    pub(crate) fn cached(&self, cookie: Option<Cookie>, vector: &Arc<Vector>) {
        if let Some(index) = &self.0 {
            index.vectors.lock().insert((cookie, vector.address()), Arc::downgrade(vector));
        }
    }

    /// Nothing is delivered any more by what `vector` knew from `cookie`.
    pub(crate) fn forgotten(&self, cookie: Option<Cookie>, vector: &Vector) {
        if let Some(index) = &self.0 {
            let mut vectors = index.vectors.lock();
            vectors.remove(&(cookie, vector.address()));
            index.left.notify_all();
        }
    }

    /// The vectors whose cached translation came from `covered`. The work grows with their number only.
    pub(crate) fn covered(&self, covered: &Entries) -> Covered {
        let mut found = Covered::default();
        if let (Some(index), Some(keys)) = (&self.0, keys(covered)) {
            for (&key, vector) in index.vectors.lock().range(keys) {
                match vector.upgrade() {
                    Some(vector) => found.vectors.push(vector),
                    None => found.dropping.0.push(key),
                }
            }
        }
        found
    }

    /// Returns when these have been dropped, which takes a detach: until that is over the kernel may deliver by what the vector
    /// was, and nobody but the thread that drops it can reach it. Those that began later are not waited for: what they
    /// knew was settled by then.
    pub(crate) fn wait_for_dropped(&self, dropping: Dropping) {
        let (Some(index), Dropping(mut left)) = (&self.0, dropping) else { return };
        if left.is_empty() {
            return;
        }
        let mut vectors = index.vectors.lock();
        loop {
            // Another vector at the same address has the key of one that has gone.
            left.retain(|key| vectors.get(key).is_some_and(|vector| vector.strong_count() == 0));
            if left.is_empty() {
                return;
            }
            vectors = index.left.wait(vectors);
        }
    }
}

/// Where in the index the vectors of these entries are.
fn keys(covered: &Entries) -> Option<(Bound<Key>, Bound<Key>)> {
    match covered {
        Entries::All => Some((Bound::Unbounded, Bound::Unbounded)),
        Entries::Range(range) if range.is_empty() => None,
        Entries::Range(range) => {
            Some((Bound::Included((Some(*range.start()), 0)), Bound::Included((Some(*range.end()), usize::MAX))))
        }
    }
}

impl Core {
    /// One system call. What the host could not do is logged, counted and taken as refused.
    ///
    /// Inlined: behind a system call the processor predicts no return, and each one costs as much as a lock.
    #[inline(always)]
    pub(crate) fn deliver(&self, interrupt: &Interrupt) -> Acceptance {
        self.hypervisor.deliver(interrupt).unwrap_or_else(|error| {
            self.host_error(&error);
            Acceptance::Refused
        })
    }

    /// A pin's message asks for the PIC's vector: it waits for its processor. Without a PIC there is nobody to ask. No system
    /// call; whoever holds no lock any more [rings](PicPort::ring).
    #[cold]
    pub(crate) fn external(&self, interrupt: &Interrupt) -> Acceptance {
        let Some(pic) = &self.pic else {
            Counters::count(&self.counters.dropped);
            return Acceptance::Refused;
        };
        if pic.message(interrupt).is_some() {
            Counters::count(&self.counters.dropped);
        }
        Acceptance::Accepted
    }

    /// Returns whether the edit `since` is in force.
    pub(crate) fn publish(&self, since: Since) -> bool {
        let published = self.table.publish(since, &*self.hypervisor);
        if let Err(error) = &published {
            self.host_error(error);
        }
        published.is_ok()
    }

    /// A message that was sent and is not delivered: a write to memory is performed as one, a fault recorded, the rest is dropped;
    /// all are counted.
    pub(crate) fn refused(&self, remapper: &dyn Remapper, message: &Message, why: Refusal) {
        let counter = match (why, &self.memory) {
            (Refusal::Blocked(fault), _) => {
                remapper.record(message, fault, &|event| {
                    let _ = self.deliver(event);
                });
                &self.counters.blocked
            }
            (Refusal::NotAnInterrupt(NotAnInterrupt::Memory(address)), Some(memory))
                if memory.write(address, &message.data.to_le_bytes()).is_ok() =>
            {
                &self.counters.memory_writes
            }
            (Refusal::NotAnInterrupt(_), _) => &self.counters.dropped,
        };
        Counters::count(counter);
    }

    pub(crate) fn host_error(&self, error: &HvError) {
        // The guest may be able to repeat what failed: only the first is worth a line at error level.
        if self.counters.host_errors.fetch_add(1, Relaxed) == 0 {
            tracing::error!(%error, "the host could not deliver or route an interrupt; further ones are counted");
        } else {
            tracing::debug!(%error, "the host could not deliver or route an interrupt");
        }
    }
}

#[cfg(all(test, not(loom), feature = "sim"))]
mod tests {
    use super::*;
    use crate::fabric::Fabric;
    use crate::hv::Sim;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn an_invalidation_waits_for_no_drop_that_began_after_it_had_looked() {
        let core = Fabric::builder(Sim::new(1)).build().unwrap().0.core.clone();
        let [first, second] = [0, 1].map(|_| Arc::new(Vector::new(core.clone(), Default::default())));
        let index = Arc::new(CookieIndex::new());
        index.cached(Some(Cookie(1)), &first);
        index.cached(Some(Cookie(2)), &second);
        let indexed = || index.0.as_ref().unwrap().vectors.lock();
        let key = (Some(Cookie(1)), first.address());
        drop(first);
        let Covered { vectors, dropping } = index.covered(&Entries::All);
        assert_eq!((vectors.len(), &dropping.0[..]), (1, &[key][..]));
        drop((vectors, second));
        let (returned, returns) = mpsc::channel();
        let waiter = index.clone();
        thread::spawn(move || {
            waiter.wait_for_dropped(dropping);
            returned.send(()).unwrap();
        });
        assert!(returns.recv_timeout(Duration::from_millis(20)).is_err(), "the first is being dropped yet");
        indexed().remove(&key);
        index.0.as_ref().unwrap().left.notify_all();
        returns.recv_timeout(Duration::from_secs(10)).expect("it waits for the second as well");
    }
}
