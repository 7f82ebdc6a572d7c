//! The locks that the fabric is built from: std's, without poisoning.
//!
//! A panic in a VMM's callback must not turn every later interrupt into a panic as well; our own
//! sections leave the state whole at every call that could unwind.
//!
//! With `--cfg loom` they are loom's, eventfds are those of a [model of the kernel](kernel), and time stands still. `Arc`,
//! `Weak`, `OnceLock` and most atomics stay std's: they are statistics, which order nothing, and the `OnceLock`s are set
//! before a model's threads start. What orders something is an [`AtomicBool`] or [`AtomicU64`] of this module.

#[cfg(loom)]
pub(crate) mod kernel;

#[cfg(loom)]
use loom::sync as imp;
#[cfg(not(loom))]
use std::sync as imp;

use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

pub(crate) use imp::atomic::{AtomicBool, AtomicU64};
pub(crate) use imp::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};
#[cfg(loom)]
pub(crate) use kernel::EventFd;
#[cfg(not(loom))]
pub(crate) use vmm_sys_util::eventfd::EventFd;

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(imp::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(imp::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A condition of what a [`Mutex`] holds. To notify costs no system call where nobody waits; std's makes one each time.
#[derive(Debug, Default)]
pub(crate) struct Condvar {
    condvar: imp::Condvar,
    /// Changed with the mutex held.
    waiting: AtomicUsize,
}

impl Condvar {
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.waiting.fetch_add(1, Relaxed);
        let guard = self.condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Relaxed);
        guard
    }

    /// Wakes whoever waits; the mutex is held, or was since they may go on.
    pub(crate) fn notify_all(&self) {
        if self.waiting.load(Relaxed) > 0 {
            self.condvar.notify_all();
        }
    }
}

/// How long something takes.
pub(crate) struct Stopwatch(#[cfg(not(loom))] std::time::Instant);

#[cfg(not(loom))]
impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(std::time::Instant::now())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Everything takes a microsecond: an execution must depend on nothing but its interleaving.
#[cfg(loom)]
impl Stopwatch {
    pub(crate) const fn start() -> Self {
        Self()
    }

    pub(crate) const fn elapsed(&self) -> Duration {
        Duration::from_micros(1)
    }
}
