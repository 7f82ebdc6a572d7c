//! How a run ends: every thread looks here, and the first reason to end it early stands.

use crate::machine::StopSwitch;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Why a run ended before its work was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Early {
    /// Somebody asked for it.
    Interrupted,
    /// Something did not answer in time, or could not go on: a sentence that names it.
    Failed(String),
}

/// Shared by all threads of a run.
#[derive(Debug)]
pub struct Control {
    early: OnceLock<Early>,
    stopping: AtomicBool,
    /// Thrown when the guest cannot go on.
    guest: StopSwitch,
    /// Milliseconds.
    patience: AtomicU64,
}

impl Control {
    /// A run of the guest with this switch. Nothing has happened yet.
    pub fn new(guest: StopSwitch, patience: Duration) -> Self {
        let control =
            Self { early: OnceLock::new(), stopping: AtomicBool::new(false), guest, patience: AtomicU64::default() };
        control.set_patience(patience);
        control
    }

    /// How long a handler or a guest's answer may take.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.patience.load(Relaxed))
    }

    /// Changes it, for waits that begin from now on.
    pub fn set_patience(&self, patience: Duration) {
        self.patience.store(patience.as_millis() as u64, Relaxed);
    }

    /// Ends the run. Only the first reason counts.
    pub fn end(&self, why: Early) {
        self.early.get_or_init(|| why);
        self.stopping.store(true, Relaxed);
    }

    /// The sources have sent for long enough.
    pub fn enough(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// Whether the sources are to stop.
    pub fn stopping(&self) -> bool {
        self.stopping.load(Relaxed) || self.guest.is_thrown()
    }

    /// Whether waiting for anything still makes sense: not after a failure. An interrupted run is brought to rest in order.
    pub fn failed(&self) -> bool {
        matches!(self.early.get(), Some(Early::Failed(_))) || self.guest.is_thrown()
    }

    /// Why the run ended early, if it did.
    pub fn early(&self) -> Option<&Early> {
        self.early.get()
    }
}
