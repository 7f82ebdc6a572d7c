//! Where messages are translated and delivered: one place for pins and vectors alike.

use super::dispatcher::Dispatcher;
use super::promotion::{HotVectors, Promotion};
use super::translation::Translation;
use super::vector::Vector;
use crate::hv::{HvError, Hypervisor};
use crate::memory::Memory;
use crate::msg::{Acceptance, Interrupt, Message, NotAnInterrupt};
use crate::remap::{Cookie, Entries, Refusal};
use crate::route::{Cost, GsiTable, Since};
use crate::sync::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};

pub(crate) struct Core {
    pub(crate) hypervisor: Box<dyn Hypervisor>,
    pub(crate) memory: Option<Box<dyn Memory>>,
    pub(crate) translation: Translation,
    /// Whose cached translation came from where. A leaf.
    pub(crate) cookies: CookieIndex,
    pub(crate) table: Arc<GsiTable>,
    pub(crate) promotion: Promotion,
    /// The vectors that have a route. A leaf.
    pub(crate) hot: Mutex<HotVectors>,
    /// What detaching an irqfd takes.
    pub(crate) detach_cost: Cost,
    /// How many are being detached.
    pub(crate) detaching: AtomicU64,
    /// Started with the first eventfd.
    pub(crate) dispatcher: OnceLock<Dispatcher>,
    pub(crate) counters: Counters,
}

/// By entry of the remapping table: the vectors whose translation is cached.
pub(crate) struct CookieIndex(Option<Mutex<ByCookie>>);

/// The second half of the key tells vectors of one entry apart.
type ByCookie = BTreeMap<(Option<Cookie>, usize), Weak<Vector>>;

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
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}

impl CookieIndex {
    /// Without interrupt remapping nothing is ever invalidated, and nothing is kept.
    pub(crate) const fn unused() -> Self {
        Self(None)
    }

    pub(crate) const fn new() -> Self {
        Self(Some(Mutex::new(BTreeMap::new())))
    }

    /// `vector` has cached a translation that came from `cookie`.
    pub(crate) fn cached(&self, cookie: Option<Cookie>, vector: &Arc<Vector>) {
        if let Some(index) = &self.0 {
            index.lock().insert((cookie, vector.address()), Arc::downgrade(vector));
        }
    }

    /// `vector` has dropped the translation that came from `cookie`.
    pub(crate) fn forgotten(&self, cookie: Option<Cookie>, vector: &Vector) {
        if let Some(index) = &self.0 {
            index.lock().remove(&(cookie, vector.address()));
        }
    }

    /// The vectors whose cached translation came from `entries`. The work grows with their number only.
    pub(crate) fn covered(&self, entries: &Entries) -> Vec<Arc<Vector>> {
        let Some(index) = &self.0 else { return Vec::new() };
        let index = index.lock();
        match entries {
            Entries::All => index.values().filter_map(Weak::upgrade).collect(),
            Entries::Range(range) if range.is_empty() => Vec::new(),
            Entries::Range(range) => {
                let keys = (Some(*range.start()), 0)..=(Some(*range.end()), usize::MAX);
                index.range(keys).filter_map(|(_, vector)| vector.upgrade()).collect()
            }
        }
    }
}

impl Core {
    /// One system call. What the host could not do is logged, counted and taken as refused.
    pub(crate) fn deliver(&self, interrupt: &Interrupt) -> Acceptance {
        self.hypervisor.deliver(interrupt).unwrap_or_else(|error| {
            self.host_error(&error);
            Acceptance::Refused
        })
    }

    /// Returns whether the edit `since` is in force.
    pub(crate) fn publish(&self, since: Since) -> bool {
        let published = self.table.publish(since, &*self.hypervisor);
        if let Err(error) = &published {
            self.host_error(error);
        }
        published.is_ok()
    }

    /// A message that is not delivered: a write to memory is performed as one, the rest is dropped and counted.
    pub(crate) fn refused(&self, message: &Message, why: Refusal) {
        let counter = match (why, &self.memory) {
            (Refusal::Blocked(_), _) => &self.counters.blocked,
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
