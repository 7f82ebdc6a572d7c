//! Why and how a run ends: a switch that anybody may throw, once.

use super::Crash;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Why a machine stopped.
#[derive(Clone, Debug)]
pub enum Stop {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked to be started again.
    Reset,
    /// The guest wrote this to its debug-exit port.
    DebugExit(u32),
    /// A vCPU can go on no more.
    Crash(Box<Crash>),
    /// The VMM is done with its guest.
    Finished,
    /// This signal came.
    Signal(i32),
    /// A vCPU's thread ended before its time: a panic, which has been printed.
    ThreadLost,
    /// Its [`Running`](super::Running) was dropped.
    Dropped,
}

/// A switch with many hands on it. The first to throw it says why; everybody after that is late.
#[derive(Clone, Debug, Default)]
pub struct StopSwitch(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// What vCPU loops look at after each exit.
    thrown: AtomicBool,
    why: Mutex<Option<Stop>>,
    changed: Condvar,
}

impl StopSwitch {
    /// Ends the run. Returns at once: the vCPUs are fetched by whoever [waits](Self::wait).
    pub fn throw(&self, why: Stop) {
        let mut slot = self.lock();
        if slot.is_none() {
            *slot = Some(why);
            self.0.thrown.store(true, Ordering::Release);
            self.0.changed.notify_all();
        }
    }

    /// Whether it has been thrown. Costs one load.
    pub fn is_thrown(&self) -> bool {
        self.0.thrown.load(Ordering::Acquire)
    }

    /// Waits until it is thrown.
    pub fn wait(&self) -> Stop {
        let mut slot = self.lock();
        loop {
            match &*slot {
                Some(why) => return why.clone(),
                None => slot = self.0.changed.wait(slot).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Stop>> {
        self.0.why.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "the guest powered off"),
            Self::Reset => write!(f, "the guest rebooted"),
            Self::DebugExit(value) => write!(f, "the guest left by its debug-exit port with {value:#x}"),
            Self::Crash(crash) => write!(f, "vCPU {}: {}", crash.apic_id, crash.what),
            Self::Finished => write!(f, "finished"),
            Self::Signal(number) => write!(f, "stopped by signal {number}"),
            Self::ThreadLost => write!(f, "a vCPU's thread ended before its time"),
            Self::Dropped => write!(f, "stopped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_to_throw_the_switch_says_why() {
        let switch = StopSwitch::default();
        assert!(!switch.is_thrown());
        switch.throw(Stop::PowerOff);
        switch.clone().throw(Stop::Finished);
        assert!(switch.is_thrown());
        assert!(matches!(switch.wait(), Stop::PowerOff));
    }

    #[test]
    fn whoever_waits_hears_of_a_throw_in_another_thread() {
        let switch = StopSwitch::default();
        let hand = switch.clone();
        let thread = std::thread::spawn(move || hand.throw(Stop::Reset));
        assert!(matches!(switch.wait(), Stop::Reset));
        thread.join().unwrap();
    }
}
