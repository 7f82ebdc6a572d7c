//! One message vector: what it sends, whether it may, and who listens to its eventfd.
//!
//! The vector's lock is held across the system call that delivers, attaches or detaches: when a call that
//! changes the vector has returned, nothing uses what it replaced. Who listens is decided by [`Listener`] and performed
//! in one place, [`Vector::step`].

use super::core::{Core, Counters};
use super::dispatcher::Token;
use super::report::VectorStats;
use crate::msg::{Acceptance, Interrupt, Masking, Message};
use crate::remap::{Cookie, Refusal, Remapper};
use crate::route::{Action, Event, Gsi, Listener, Since};
use crate::sync::{EventFd, Mutex, MutexGuard};
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

/// How often a cold eventfd fires before it is worth a route.
const WORTH_A_ROUTE: u8 = 2;

/// And how often if another vector must lose its route for it: detaching costs 79 to 152 µs on Linux 6.18, and a hot
/// event saves 2 to 3 µs.
const WORTH_AN_EVICTION: u8 = 64;

pub(crate) struct Vector {
    core: Arc<Core>,
    eventfd: OnceLock<(EventFd, Token)>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    // What the guest has programmed.
    /// Of `message`, which is kept apart from it for the size of thousands of vectors.
    programmed: bool,
    message: Message,
    pub(super) masking: Masking,
    /// Signalled while masked.
    pending: bool,
    // What is known about it.
    /// What `message` came out as when it was last translated. A failure is never kept.
    translated: Option<Interrupt>,
    cookie: Option<Cookie>,
    // Who listens.
    listener: Listener,
    /// The route: kept by Hot and Masked only.
    gsi: Option<Box<Gsi>>,
    /// Events of the eventfd since it became cold, up to 255.
    fired: u8,
    /// It waits to be promoted.
    pub(super) candidate: bool,
    /// It fired while it might not send, and the dispatcher looks away since.
    muted: bool,
    stats: VectorStats,
}

/// What the dispatcher should do about a vector that has fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    /// A route would pay.
    Route,
}

impl Vector {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core, eventfd: OnceLock::new(), state: Mutex::default() }
    }

    /// What names it among all vectors that are alive.
    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn stats(&self) -> VectorStats {
        self.state.lock().stats
    }

    pub(super) fn is_hot(&self) -> bool {
        self.state.lock().listener == Listener::Hot
    }

    // Sending.

    /// The device signals.
    pub(super) fn signal(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.stats.signalled += 1;
        drop(self.send(state));
    }

    /// The dispatcher saw the eventfd readable.
    pub(super) fn on_eventfd(self: &Arc<Self>) -> Wish {
        let mut state = self.state.lock();
        if !self.drain(&state) {
            return Wish::Nothing;
        }
        state.stats.signalled += 1;
        state.fired = state.fired.saturating_add(1);
        if state.masking != Masking::Unmasked && !state.muted {
            // What keeps coming until the guest unmasks changes nothing: the count stays in the eventfd.
            state.muted = true;
            self.listen(false);
        }
        let mut state = self.send(state);
        let worth = if self.core.table.is_full() { WORTH_AN_EVICTION } else { WORTH_A_ROUTE };
        let wishes = state.listener == Listener::Cold
            && state.masking == Masking::Unmasked
            && state.translated.is_some()
            && state.fired >= worth
            && !state.candidate;
        state.candidate |= wishes;
        if wishes { Wish::Route } else { Wish::Nothing }
    }

    /// Sends the message, keeps it pending or drops it. One system call at the most.
    fn send<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.sends(&self.core).is_none() {
            return state;
        }
        if let Some(interrupt) = state.translated {
            state.deliver(&self.core, &interrupt);
            return state;
        }
        // The order of locks: translation before any vector's. In between, anything may have changed.
        drop(state);
        let remapper = self.core.translation.read();
        let mut state = self.state.lock();
        let Some(message) = state.sends(&self.core) else { return state };
        match self.translate(&mut state, &message, &**remapper) {
            Ok(interrupt) => state.deliver(&self.core, &interrupt),
            Err(why) => self.core.refused(&message, why),
        }
        state
    }

    /// The present message's translation, from the cache or into it.
    fn translate(
        self: &Arc<Self>,
        state: &mut State,
        message: &Message,
        remapper: &dyn Remapper,
    ) -> Result<Interrupt, Refusal> {
        if let Some(interrupt) = state.translated {
            return Ok(interrupt);
        }
        let translation = remapper.translate(message)?;
        state.translated = Some(translation.interrupt);
        state.cookie = translation.cookie;
        self.core.cookies.cached(translation.cookie, self);
        Ok(translation.interrupt)
    }

    fn forget(&self, state: &mut State) -> Option<Interrupt> {
        let before = state.translated.take();
        if before.is_some() {
            self.core.cookies.forgotten(state.cookie.take(), self);
        }
        before
    }

    // Configuring.

    /// The guest programs another message. What the answer asks for must be done before anybody relies on it.
    pub(super) fn program(self: &Arc<Self>, message: Option<Message>, remapper: &dyn Remapper) -> Reroute {
        let mut state = self.state.lock();
        if state.message() == message {
            return Reroute::No;
        }
        let before = self.forget(&mut state);
        state.programmed = message.is_some();
        state.message = message.unwrap_or_default();
        self.retranslate(&mut state, before, remapper)
    }

    /// The entry that the translation came from is not what it was. As for [`program`](Self::program).
    pub(super) fn invalidate(self: &Arc<Self>, remapper: &dyn Remapper) -> Reroute {
        let mut state = self.state.lock();
        let before = self.forget(&mut state);
        self.retranslate(&mut state, before, remapper)
    }

    /// A vector with a route must know its new translation at once; any other finds out when it fires.
    fn retranslate(self: &Arc<Self>, state: &mut State, before: Option<Interrupt>, remapper: &dyn Remapper) -> Reroute {
        if state.gsi.is_none() {
            return Reroute::No;
        }
        let Some(message) = state.message() else { return Reroute::Detach };
        match self.translate(state, &message, remapper) {
            Ok(interrupt) if Some(interrupt) == before => Reroute::No,
            Ok(_) if state.listener == Listener::Hot => Reroute::Yes,
            Ok(_) => {
                self.step(state, Event::Change);
                Reroute::No
            }
            // Detaching takes its time: not under the caller's translation lock.
            Err(_) => Reroute::Detach,
        }
    }

    /// The guest masks, unmasks or switches the function. On return nothing is delivered that it forbids, and what waited
    /// for it is delivered. One or two system calls if the vector has a route, one if something waited, else none.
    pub(super) fn set_masking(self: &Arc<Self>, masking: Masking) {
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.masking, masking);
        if before == masking {
            return;
        }
        if before == Masking::Disabled && self.drain(&state) {
            // It fired while the function was off.
            Counters::count(&self.core.counters.dropped);
        }
        match masking {
            Masking::Masked => self.step(&mut state, Event::Mask),
            Masking::Disabled => {
                state.pending = false;
                self.step(&mut state, Event::Disable);
            }
            Masking::Unmasked => {
                self.step(&mut state, Event::Unmask);
                if std::mem::take(&mut state.muted) {
                    self.listen(true);
                }
                if std::mem::take(&mut state.pending) {
                    drop(self.send(state));
                }
            }
        }
    }

    /// Whether a signal waits for the guest to unmask: the PBA bit. Looks into the eventfd first.
    pub(super) fn pending(&self) -> bool {
        let mut state = self.state.lock();
        if state.masking == Masking::Masked && self.drain(&state) {
            state.pending = true;
        }
        state.pending
    }

    /// A snapshot says that a signal waits.
    pub(super) fn restore_pending(&self) {
        self.state.lock().pending = true;
    }

    // Listening.

    /// The eventfd, made at the first call.
    pub(super) fn eventfd(self: &Arc<Self>) -> io::Result<&EventFd> {
        let lent = self.lend();
        if lent.is_err() {
            Counters::count(&self.core.counters.shortages);
        }
        lent
    }

    fn lend(self: &Arc<Self>) -> io::Result<&EventFd> {
        if self.eventfd.get().is_none() {
            let dispatcher = Core::dispatcher(&self.core)?;
            let mut state = self.state.lock();
            // Whoever had the lock before may have made it.
            if state.listener == Listener::Nobody {
                let eventfd = EventFd::new(EFD_NONBLOCK)?;
                let token = dispatcher.add(&eventfd, self)?;
                let lent = self.eventfd.set((eventfd, token));
                debug_assert!(lent.is_ok(), "under the vector's lock there is one maker");
                self.step(&mut state, Event::Lend);
            }
        }
        self.eventfd.get().map(|(eventfd, _)| eventfd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Translates ahead of the first event, if a route may follow. Whether it may.
    pub(super) fn learn(self: &Arc<Self>, remapper: &dyn Remapper) -> bool {
        let mut state = self.state.lock();
        let wants = state.listener == Listener::Cold && state.masking == Masking::Unmasked;
        match state.message() {
            Some(message) if wants => self.translate(&mut state, &message, remapper).is_ok(),
            _ => false,
        }
    }

    /// What a route for this vector would have to say, if it is one that could use a route now, and whether it has fired
    /// often enough to take another's.
    pub(super) fn candidate(&self) -> Option<(Interrupt, bool)> {
        let mut state = self.state.lock();
        state.candidate = false;
        let wants = state.listener == Listener::Cold && state.masking == Masking::Unmasked;
        let interrupt = state.translated.filter(|_| wants)?;
        Some((interrupt, state.fired >= WORTH_AN_EVICTION))
    }

    /// The route of `interrupt` on `gsi` is in force. Attaches unless the vector means something else by now; whether it
    /// did is the answer.
    pub(super) fn promote(self: &Arc<Self>, interrupt: Interrupt, gsi: Gsi) -> bool {
        let mut state = self.state.lock();
        let wants = state.listener == Listener::Cold && state.masking == Masking::Unmasked;
        if !wants || state.translated != Some(interrupt) {
            return false;
        }
        self.core.hot.lock().insert(&gsi, self);
        state.gsi = Some(Box::new(gsi));
        self.step(&mut state, Event::Promote);
        state.listener == Listener::Hot
    }

    /// Puts the present translation into the table, if the kernel delivers by it.
    pub(super) fn reroute(&self) -> Option<Since> {
        let mut state = self.state.lock();
        match (state.listener, state.translated, &state.gsi) {
            (Listener::Hot, Some(interrupt), Some(gsi)) => Some(gsi.put(interrupt)),
            (Listener::Hot, None, _) => {
                self.step(&mut state, Event::Forget);
                None
            }
            // Masked in the meantime: its route says something old.
            (Listener::Masked, ..) => {
                self.step(&mut state, Event::Change);
                None
            }
            _ => None,
        }
    }

    /// Takes the route away. From now on the dispatcher delivers.
    pub(super) fn detach(&self, event: Event) {
        self.step(&mut self.state.lock(), event);
    }

    /// Moves the listener and does what that takes.
    fn step(&self, state: &mut State, event: Event) {
        let (next, action) = state.listener.on(event);
        state.listener = next;
        match action {
            Action::Nothing | Action::Listen | Action::Reroute => {}
            Action::Attach => {
                if !self.attach(state) {
                    // The slower path is as good as before.
                    Counters::count(&self.core.counters.shortages);
                    state.listener = Listener::Cold;
                    self.release(state);
                }
            }
            Action::DetachKeepingRoute => self.detach_irqfd(state),
            Action::Detach => {
                self.detach_irqfd(state);
                self.release(state);
            }
            Action::Release => self.release(state),
        }
    }

    fn attach(&self, state: &State) -> bool {
        let (Some((eventfd, _)), Some(gsi)) = (self.eventfd.get(), &state.gsi) else { return false };
        match self.core.hypervisor.attach(gsi.number(), eventfd) {
            Ok(()) => {
                // The kernel has injected what it found and left the count: a later detach would see a ghost.
                let _ = eventfd.read();
                true
            }
            Err(error) => {
                self.core.host_error(&error);
                false
            }
        }
    }

    fn detach_irqfd(&self, state: &State) {
        if let (Some((eventfd, _)), Some(gsi)) = (self.eventfd.get(), &state.gsi) {
            let start = Instant::now();
            if let Err(error) = self.core.hypervisor.detach(gsi.number(), eventfd) {
                self.core.host_error(&error);
            }
            self.core.detach_cost.store(start.elapsed());
        }
    }

    fn release(&self, state: &mut State) {
        state.fired = 0;
        if let Some(gsi) = state.gsi.take() {
            self.core.hot.lock().remove(&gsi);
        }
    }

    /// Takes what is in the eventfd, if it is the dispatcher's to read. Whether there was something.
    fn drain(&self, state: &State) -> bool {
        let ours = matches!(state.listener, Listener::Cold | Listener::Masked);
        ours && self.eventfd.get().is_some_and(|(eventfd, _)| eventfd.read().is_ok())
    }

    fn listen(&self, on: bool) {
        if let (Some((eventfd, token)), Some(dispatcher)) = (self.eventfd.get(), self.core.dispatcher.get()) {
            dispatcher.listen(eventfd, *token, on);
        }
    }
}

/// What a change leaves to be done once the locks are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reroute {
    No,
    /// The kernel's route says something old.
    Yes,
    /// There is nothing to route to.
    Detach,
}

impl State {
    fn message(&self) -> Option<Message> {
        self.programmed.then_some(self.message)
    }

    /// The message, if it may go out. If not, the signal is kept pending, or dropped and counted.
    fn sends(&mut self, core: &Core) -> Option<Message> {
        match (self.masking, self.message()) {
            (Masking::Unmasked, Some(message)) => return Some(message),
            (Masking::Masked, _) => self.pending = true,
            (Masking::Unmasked, None) | (Masking::Disabled, _) => Counters::count(&core.counters.dropped),
        }
        None
    }

    fn deliver(&mut self, core: &Core, interrupt: &Interrupt) {
        if core.deliver(interrupt) == Acceptance::Accepted {
            self.stats.delivered += 1;
        }
    }

    pub(super) fn configuration(&self) -> (Option<Message>, Masking, bool) {
        (self.message(), self.masking, self.pending)
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if let (Some((eventfd, token)), Some(dispatcher)) = (self.eventfd.get(), self.core.dispatcher.get()) {
            // The descriptor may live on in another process, and so would the dispatcher's interest in it.
            dispatcher.remove(eventfd, *token);
        }
        self.forget(&mut state);
        self.step(&mut state, Event::Drop);
    }
}
