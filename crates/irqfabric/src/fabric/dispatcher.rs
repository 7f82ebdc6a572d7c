//! The dispatcher: one thread that waits for every cold eventfd, and for every line's, and does what it asks for.
//!
//! An eventfd is added once and stays. While an irqfd is attached the kernel takes its events before any waiter sees
//! them, so a hot vector costs the dispatcher nothing and needs no removal. The thread starts with the first eventfd, or
//! the first thing that is put off. All deadlines that the fabric has are here: that of the candidates for promotion, and what
//! [`at`](Dispatcher::at) was given; while there is none the thread sleeps without a timeout. A callback of the VMM's that panics
//! does not end it.

use super::core::{Core, Counters};
use super::promotion::Candidates;
use super::vector::Vector;
use crate::sync::{EventFd, Mutex};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

/// Events taken from the kernel at once.
const BATCH: usize = 256;

/// How many full batches may put a promotion off: what is ready is delivered first, but a flood must not starve it.
const ROUNDS: usize = 16;

/// When an epoll_wait that failed is tried again.
const RETRY: Duration = Duration::from_millis(10);

pub(crate) struct Dispatcher {
    shared: Arc<Shared>,
    thread: std::sync::Mutex<Option<JoinHandle<()>>>,
}

/// Whose eventfd the dispatcher waits for.
pub(super) trait Listen: Send + Sync {
    /// The eventfd is readable: called on the dispatcher's thread, with no lock held. The answer is a vector for which
    /// a route would pay.
    fn readable(self: Arc<Self>) -> Option<Arc<Vector>>;
}

/// An eventfd's place at the dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token(u32);

struct Shared {
    epoll: Epoll,
    wake: EventFd,
    stop: AtomicBool,
    slots: Mutex<Slots>,
    deadlines: Mutex<Deadlines>,
}

#[derive(Default)]
struct Slots {
    listeners: Vec<Option<Weak<dyn Listen>>>,
    free: Vec<u32>,
}

/// What is put off, by its time. The second half of the key tells apart what falls on the same moment.
#[derive(Default)]
struct Deadlines {
    acts: BTreeMap<(Instant, u64), Box<dyn FnOnce() + Send>>,
    next: u64,
}

/// The epoll data of `Shared::wake`: no slot has it.
const WAKE: u64 = u64::MAX;

impl Core {
    /// The dispatcher, started at the first call.
    pub(super) fn dispatcher(core: &Arc<Self>) -> io::Result<&Dispatcher> {
        static STARTING: Mutex<()> = Mutex::new(());
        if core.dispatcher.get().is_none() {
            let _one_at_a_time = STARTING.lock();
            if core.dispatcher.get().is_none() {
                let _ = core.dispatcher.set(Dispatcher::start(Arc::downgrade(core))?);
            }
        }
        core.dispatcher.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Dispatcher {
    fn start(core: Weak<Core>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            epoll: Epoll::new()?,
            wake: EventFd::new(EFD_NONBLOCK)?,
            stop: AtomicBool::new(false),
            slots: Mutex::default(),
            deadlines: Mutex::default(),
        });
        let wake = EpollEvent::new(EventSet::IN, WAKE);
        shared.epoll.ctl(ControlOperation::Add, shared.wake.as_raw_fd(), wake)?;
        let run = {
            let shared = shared.clone();
            move || run(&shared, &core)
        };
        let thread = thread::Builder::new().name("irqfabric".into()).spawn(run)?;
        Ok(Self { shared, thread: std::sync::Mutex::new(Some(thread)) })
    }

    /// Listens to `eventfd` for `listener` from now on.
    pub(super) fn add<L: Listen + 'static>(&self, eventfd: &EventFd, listener: &Arc<L>) -> io::Result<Token> {
        let listener: Weak<L> = Arc::downgrade(listener);
        let token = self.shared.slots.lock().insert(listener);
        let interest = EpollEvent::new(EventSet::IN, token.0.into());
        if let Err(error) = self.shared.epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), interest) {
            self.shared.slots.lock().remove(token);
            return Err(error);
        }
        Ok(token)
    }

    /// Looks away from `eventfd`, or at it again.
    pub(super) fn listen(&self, eventfd: &EventFd, token: Token, on: bool) {
        let events = if on { EventSet::IN } else { EventSet::empty() };
        let interest = EpollEvent::new(events, token.0.into());
        if let Err(error) = self.shared.epoll.ctl(ControlOperation::Modify, eventfd.as_raw_fd(), interest) {
            tracing::error!(%error, "epoll_ctl of a vector's eventfd");
        }
    }

    pub(super) fn remove(&self, eventfd: &EventFd, token: Token) {
        let nothing = EpollEvent::default();
        let _ = self.shared.epoll.ctl(ControlOperation::Delete, eventfd.as_raw_fd(), nothing);
        self.shared.slots.lock().remove(token);
    }

    /// Calls `act` when that time has come, on the dispatcher's thread and with no lock held.
    pub(super) fn at(&self, time: Instant, act: impl FnOnce() + Send + 'static) {
        if self.shared.deadlines.lock().insert(time, Box::new(act)) {
            // It sleeps for longer than that.
            let _ = self.shared.wake.write(1);
        }
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.shared.wake.write(1);
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // The last vector may be dropped by the dispatcher itself, which then finds the stop when it is back.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn take_due(&self, now: Instant) -> Option<Box<dyn FnOnce() + Send>> {
        self.deadlines.lock().take_due(now)
    }
}

impl Slots {
    fn insert(&mut self, listener: Weak<dyn Listen>) -> Token {
        match self.free.pop() {
            Some(slot) => {
                self.listeners[slot as usize] = Some(listener);
                Token(slot)
            }
            None => {
                self.listeners.push(Some(listener));
                Token(self.listeners.len() as u32 - 1)
            }
        }
    }

    fn remove(&mut self, token: Token) {
        self.listeners[token.0 as usize] = None;
        self.free.push(token.0);
    }

    fn get(&self, token: u64) -> Option<Arc<dyn Listen>> {
        self.listeners.get(token as usize)?.as_ref()?.upgrade()
    }
}

impl Deadlines {
    /// Returns whether it is the first of all.
    fn insert(&mut self, time: Instant, act: Box<dyn FnOnce() + Send>) -> bool {
        let key = (time, self.next);
        self.next += 1;
        self.acts.insert(key, act);
        self.acts.first_key_value().is_some_and(|(&first, _)| first == key)
    }

    fn first(&self) -> Option<Instant> {
        self.acts.first_key_value().map(|(&(time, _), _)| time)
    }

    /// The first of all, if its time has come before `now`.
    fn take_due(&mut self, now: Instant) -> Option<Box<dyn FnOnce() + Send>> {
        let first = self.acts.first_entry()?;
        (first.key().0 < now).then(|| first.remove())
    }
}

fn run(shared: &Shared, core: &Weak<Core>) {
    let mut candidates = Candidates::default();
    let mut events = vec![EpollEvent::default(); BATCH];
    let (mut rounds, mut fails) = (0, false);
    loop {
        let deadline = candidates.deadline().into_iter().chain(shared.deadlines.lock().first()).min();
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let ready = match shared.epoll.wait(milliseconds(timeout), &mut events) {
            Ok(ready) => ready,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // What is put off must be done all the same: others wait for it.
                if !std::mem::replace(&mut fails, true) {
                    tracing::error!(%error, "epoll_wait: eventfds are not listened to");
                }
                thread::sleep(RETRY);
                0
            }
        };
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        let Some(core) = core.upgrade() else { return };
        Counters::count(&core.counters.wakeups);
        for event in &events[..ready] {
            if event.data() == WAKE {
                let _ = shared.wake.read();
            }
            let listener = shared.slots.lock().get(event.data());
            let candidate = listener.and_then(|listener| survive(&core, || listener.readable()).flatten());
            if let Some(candidate) = candidate {
                candidates.push(&core, &candidate);
            }
        }
        rounds += 1;
        if ready == BATCH && rounds < ROUNDS {
            continue;
        }
        rounds = 0;
        // What an act puts off to this very moment comes after the eventfds that are ready by then: a guest can keep one
        // going for ever.
        let now = Instant::now();
        while let Some(act) = shared.take_due(now) {
            survive(&core, act);
        }
        candidates.promote_if_due(&core);
    }
}

/// Calls what may end in a callback of the VMM's. A panic there is that device's: all others still need this thread.
fn survive<R>(core: &Core, act: impl FnOnce() -> R) -> Option<R> {
    let result = panic::catch_unwind(AssertUnwindSafe(act));
    if result.is_err() {
        // The panic itself was reported by the panic hook.
        Counters::count(&core.counters.panics);
        tracing::error!("a callback panicked on the fabric's thread, which goes on");
    }
    result.ok()
}

/// What epoll_wait takes: rounded up, so that the deadline has passed; -1 for none.
fn milliseconds(timeout: Option<Duration>) -> i32 {
    match timeout {
        None => -1,
        Some(timeout) => i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
    }
}
