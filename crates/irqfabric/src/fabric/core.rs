//! Where messages are translated and delivered: one place for pins and vectors alike.

use crate::hv::{HvError, Hypervisor};
use crate::memory::Memory;
use crate::msg::{Acceptance, DestinationFormat, Interrupt, Message, NotAnInterrupt};
use crate::route::{GsiTable, Since};
use crate::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub(crate) struct Core {
    pub(crate) hypervisor: Box<dyn Hypervisor>,
    pub(crate) memory: Option<Box<dyn Memory>>,
    /// Read by whoever translates, until the outcome is delivered and noted; written by whoever invalidates.
    /// Taken before the lock of any chip or vector.
    pub(crate) translation: RwLock<Translator>,
    pub(crate) table: GsiTable,
    pub(crate) counters: Counters,
}

/// How a guest's messages are read.
#[derive(Debug, Default)]
pub(crate) struct Translator {
    pub(crate) destinations: DestinationFormat,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) memory_writes: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) host_errors: AtomicU64,
}

impl Translator {
    pub(crate) fn translate(&self, message: &Message) -> Result<Interrupt, NotAnInterrupt> {
        message.decode(self.destinations)
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

    /// A message that is no interrupt: a write to memory is performed as one, the rest is dropped.
    pub(crate) fn not_an_interrupt(&self, message: &Message, why: NotAnInterrupt) {
        let written = match (why, &self.memory) {
            (NotAnInterrupt::Memory(address), Some(memory)) => {
                memory.write(address, &message.data.to_le_bytes()).is_ok()
            }
            _ => false,
        };
        let counter = if written { &self.counters.memory_writes } else { &self.counters.dropped };
        counter.fetch_add(1, Relaxed);
    }

    fn host_error(&self, error: &HvError) {
        // The guest may be able to repeat what failed: only the first is worth a line at error level.
        if self.counters.host_errors.fetch_add(1, Relaxed) == 0 {
            tracing::error!(%error, "the host could not deliver or route an interrupt; further ones are counted");
        } else {
            tracing::debug!(%error, "the host could not deliver or route an interrupt");
        }
    }
}
