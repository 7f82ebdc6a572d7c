//! One message vector: what it sends, whether it may, and who listens to its eventfd.
//!
//! The vector's lock is held across the system call that delivers, attaches or detaches: when a call that
//! changes the vector has returned, nothing uses what it replaced. Who listens is decided by [`Listener`] and performed
//! in one place, [`Vector::step`].

use super::core::{Core, Counters};
use super::dispatcher::{Listen, Token};
use super::report::VectorStats;
use super::translation::Translating;
use crate::hv::HvError;
use crate::msg::{Acceptance, Interrupt, Masking, Message};
use crate::record::{Outcome, Sent, Step, Tape, VectorStep};
use crate::remap::{Cookie, Refusal, Remapper, Target};
use crate::route::{Action, Event, Gsi, GsiTable, Listener, Since};
use crate::sync::{EventFd, Mutex, MutexGuard, Stopwatch};
use smallvec::SmallVec;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
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
    translated: Option<Target>,
    /// Of `translated`; whether there is one is kept apart from it, again for the size.
    cookie: Cookie,
    has_cookie: bool,
    // Who listens.
    listener: Listener,
    /// Kept by Hot and Masked only.
    route: Option<Box<HeldRoute>>,
    /// Events of the eventfd since it became cold, up to 255.
    fired: u8,
    /// It waits to be promoted.
    pub(super) candidate: bool,
    /// It fired while it might not send, and the dispatcher looks away since.
    muted: bool,
    stats: VectorStats,
    tape: Tape,
}

/// A vector's route.
struct HeldRoute {
    gsi: Gsi,
    /// What it was last wanted to say, and the edit of the table that says so.
    wanted: (Interrupt, Since),
    /// The entries of which the route in force may still be, though the vector's translation is not. The index keeps
    /// the vector under these cookies too, so that an invalidation finds it. Once the route is settled they are over, and go
    /// with the next change. Mostly it is one, and thousands of vectors have one at once.
    leftover: SmallVec<[Option<Cookie>; 2]>,
}

/// What the dispatcher should do about a vector that has fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    /// A route would pay.
    Route,
}

impl Vector {
    pub(super) fn new(core: Arc<Core>, tape: Tape) -> Self {
        Self { core, eventfd: OnceLock::new(), state: Mutex::new(State { tape, ..State::default() }) }
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
        drop(self.send(state, None));
    }

    /// The dispatcher saw the eventfd readable.
    pub(super) fn on_eventfd(self: &Arc<Self>) -> Wish {
        let (mut state, remapper) = self.lock_to_send();
        if !self.drain(&state) {
            return Wish::Nothing;
        }
        state.stats.signalled += 1;
        state.fired = state.fired.saturating_add(1);
        let sends = state.masking == Masking::Unmasked && state.programmed;
        if !sends && !state.muted {
            // What keeps coming until the guest unmasks or programs it changes nothing: the count stays in the eventfd.
            state.muted = true;
            self.listen(false);
        }
        let mut state = self.send(state, remapper);
        let worth = if self.core.table.is_full() { WORTH_AN_EVICTION } else { WORTH_A_ROUTE };
        let wishes = self.core.promotes.load(Relaxed)
            && state.listener == Listener::Cold
            && state.masking == Masking::Unmasked
            && state.interrupt().is_some()
            && state.fired >= worth
            && !state.candidate;
        state.candidate |= wishes;
        if wishes { Wish::Route } else { Wish::Nothing }
    }

    /// For taking an event out of the eventfd and sending it: the translation's lock as well, if the message must be
    /// translated. It would have to be let go for it, and the event be neither in the eventfd nor sent.
    fn lock_to_send(&self) -> (MutexGuard<'_, State>, Option<Translating<'_>>) {
        let state = self.state.lock();
        if state.interrupt().is_some() {
            return (state, None);
        }
        drop(state);
        let remapper = self.core.translation.read();
        (self.state.lock(), Some(remapper))
    }

    /// Sends the message, keeps it pending or drops it. One system call at the most.
    ///
    /// Inlined: behind a system call the processor predicts no return, and each one costs as much as a lock.
    #[inline(always)]
    fn send<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'a, State>,
        remapper: Option<Translating<'a>>,
    ) -> MutexGuard<'a, State> {
        if state.sends(&self.core).is_none() {
            return state;
        }
        if let Some(Target::Interrupt(interrupt)) = state.translated {
            state.deliver(&self.core, &interrupt);
            return state;
        }
        self.translate_and_send(state, remapper)
    }

    #[cold]
    fn translate_and_send<'a>(
        self: &'a Arc<Self>,
        state: MutexGuard<'a, State>,
        remapper: Option<Translating<'a>>,
    ) -> MutexGuard<'a, State> {
        let (mut state, remapper) = match remapper {
            Some(remapper) => (state, remapper),
            None => {
                // The order of locks: translation before any vector's. In between, anything may have changed.
                drop(state);
                let remapper = self.core.translation.read();
                (self.state.lock(), remapper)
            }
        };
        let Some(message) = state.sends(&self.core) else { return state };
        let event = match self.translate(&mut state, &message, &*remapper) {
            Ok(Target::Interrupt(interrupt)) => {
                state.deliver(&self.core, &interrupt);
                return state;
            }
            Err(why) => {
                self.core.refused(&*remapper, &message, why);
                state.sent(why, Acceptance::Refused);
                return state;
            }
            Ok(Target::Event(event)) => event,
        };
        state.sent(Target::Event(event), Acceptance::Accepted);
        state.stats.delivered += 1;
        drop(state);
        drop(remapper);
        self.core.translation.remapper().raise(event);
        self.state.lock()
    }

    /// The present message's translation, from the cache or into it.
    ///
    /// Inlined: what is handed back in memory is written by bytes, and slow to be read as a whole.
    #[inline(always)]
    fn translate(
        self: &Arc<Self>,
        state: &mut State,
        message: &Message,
        remapper: &dyn Remapper,
    ) -> Result<Target, Refusal> {
        if let Some(target) = state.translated {
            return Ok(target);
        }
        let translation = remapper.translate(message)?;
        state.translated = Some(translation.target);
        state.set_cookie(translation.cookie);
        // Mostly it comes from the same entry as before, and the index is one for all vectors.
        let indexed = state.route.as_ref().is_some_and(|route| route.leftover.contains(&translation.cookie));
        if !indexed {
            self.core.cookies.cached(translation.cookie, self);
        }
        Ok(translation.target)
    }

    fn forget(&self, state: &mut State) -> Option<Target> {
        let before = state.translated.take();
        if before.is_some() {
            let cookie = state.cookie();
            state.set_cookie(None);
            match &mut state.route {
                // The kernel delivers by it all the same, until it is told.
                Some(route) if !route.leftover.contains(&cookie) => route.leftover.push(cookie),
                Some(_) => {}
                None => self.core.cookies.forgotten(cookie, self),
            }
        }
        before
    }

    /// Whether the kernel delivers by nothing but the present translation; then the route's leftovers are over.
    fn settle(&self, state: &mut State) -> bool {
        let settled = state.is_settled(&self.core.table);
        let present = state.present();
        if settled && let Some(route) = &mut state.route {
            self.leave(present, &route.leftover);
            route.leftover.clear();
        }
        settled
    }

    /// Nothing is delivered by these entries any more, the present one apart.
    fn leave(&self, present: Option<Option<Cookie>>, leftover: &[Option<Cookie>]) {
        for &cookie in leftover.iter().filter(|&&cookie| present != Some(cookie)) {
            self.core.cookies.forgotten(cookie, self);
        }
    }

    // Configuring.

    /// The guest programs another message. What the answer asks for must be done before anybody relies on it.
    pub(super) fn program(self: &Arc<Self>, message: Option<Message>, remapper: &dyn Remapper) -> Reroute {
        let mut state = self.state.lock();
        if state.message() == message && state.is_settled(&self.core.table) {
            return Reroute::No;
        }
        state.programmed = message.is_some();
        state.message = message.unwrap_or_default();
        state.push(move || VectorStep::Program { message });
        if state.masking == Masking::Unmasked && state.programmed && std::mem::take(&mut state.muted) {
            if self.drain(&state) {
                // It fired before it was programmed.
                Counters::count(&self.core.counters.dropped);
            }
            self.listen(true);
        }
        self.retranslate(&mut state, remapper)
    }

    /// The entry that the translation came from is not what it was. As for [`program`](Self::program).
    pub(super) fn invalidate(self: &Arc<Self>, remapper: &dyn Remapper) -> Reroute {
        self.retranslate(&mut self.state.lock(), remapper)
    }

    /// A vector with a route must know its new translation at once; any other finds out when it fires.
    fn retranslate(self: &Arc<Self>, state: &mut State, remapper: &dyn Remapper) -> Reroute {
        // If not, the route says neither what it should nor what the translation was.
        let settled = self.settle(state);
        let before = self.forget(state);
        if state.route.is_none() {
            return Reroute::No;
        }
        let Some(message) = state.message() else { return Reroute::Detach };
        match self.translate(state, &message, remapper) {
            Ok(target) if settled && Some(target) == before => Reroute::No,
            Ok(Target::Interrupt(interrupt)) if state.listener == Listener::Hot => match &mut state.route {
                Some(route) => {
                    let since = route.gsi.put(interrupt);
                    route.wanted = (interrupt, since);
                    Reroute::Yes(since)
                }
                None => Reroute::No,
            },
            Ok(Target::Interrupt(_)) => {
                self.step(state, Event::Change);
                Reroute::No
            }
            // Detaching takes its time: not under the caller's translation lock.
            Ok(Target::Event(_)) | Err(_) => Reroute::Detach,
        }
    }

    /// The guest masks, unmasks or switches the function. On return nothing is delivered that it forbids, and what was
    /// pending is delivered; an event that is still in the eventfd follows. One or two system calls if the vector has a route, one if something waited, else none.
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
        let sends_pending = Some(masking == Masking::Unmasked && state.pending);
        state.push(move || VectorStep::Mask { masking, sends_pending });
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
                    drop(self.send(state, None));
                }
            }
        }
    }

    /// Whether a signal waits for the guest to unmask: the PBA bit. Looks into the eventfd first.
    pub(super) fn pending(&self) -> bool {
        let mut state = self.state.lock();
        if state.masking == Masking::Masked && self.drain(&state) {
            state.pending = true;
            state.push(move || VectorStep::Signal { outcome: None, acceptance: None, signal: Some(Sent::Pending) });
        }
        state.pending
    }

    /// Delivers what is in the eventfd already, if it may go out: the dispatcher would have to be waited for.
    pub(super) fn flush(self: &Arc<Self>) {
        let (mut state, remapper) = self.lock_to_send();
        if state.masking == Masking::Unmasked && self.drain(&state) {
            state.stats.signalled += 1;
            drop(self.send(state, remapper));
        }
    }

    /// A snapshot says that a signal waits.
    pub(super) fn restore_pending(&self) {
        let mut state = self.state.lock();
        state.pending = true;
        state.push(move || VectorStep::Pending);
    }

    // Listening.

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Whether anybody has asked for it yet.
    pub(super) fn has_eventfd(&self) -> bool {
        self.eventfd.get().is_some()
    }

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
            Some(message) if wants => {
                matches!(self.translate(&mut state, &message, remapper), Ok(Target::Interrupt(_)))
            }
            _ => false,
        }
    }

    /// What a route for this vector would have to say, if it is one that could use a route now, and whether it has fired
    /// often enough to take another's.
    pub(super) fn candidate(&self) -> Option<(Interrupt, bool)> {
        let mut state = self.state.lock();
        state.candidate = false;
        let wants = state.listener == Listener::Cold && state.masking == Masking::Unmasked;
        let interrupt = state.interrupt().filter(|_| wants)?;
        Some((interrupt, state.fired >= WORTH_AN_EVICTION))
    }

    /// The route of `interrupt` on `gsi` is in force. Attaches unless the vector means something else by now; whether it
    /// did is the answer.
    pub(super) fn promote(self: &Arc<Self>, interrupt: Interrupt, gsi: Gsi) -> bool {
        let mut state = self.state.lock();
        let wants = state.listener == Listener::Cold && state.masking == Masking::Unmasked;
        if !wants || state.interrupt() != Some(interrupt) {
            return false;
        }
        self.core.hot.lock().insert(&gsi, self);
        // In force: since ever, for all that anybody will ask.
        state.route =
            Some(Box::new(HeldRoute { gsi, wanted: (interrupt, Since::default()), leftover: SmallVec::new() }));
        self.step(&mut state, Event::Promote);
        state.listener == Listener::Hot
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
            Action::DetachKeepingRoute => {
                let _ = self.detach_irqfd(state);
            }
            Action::Detach => {
                if !self.detach_irqfd(state) {
                    // The kernel may still deliver by it: a GSI that nobody gets again can misroute nothing.
                    if let Some(route) = &mut state.route {
                        route.gsi.keep();
                    }
                }
                self.release(state);
            }
            Action::Release => self.release(state),
        }
    }

    #[inline]
    fn attach(&self, state: &State) -> bool {
        let (Some((eventfd, _)), Some(route)) = (self.eventfd.get(), &state.route) else { return false };
        match self.core.hypervisor.attach(route.gsi.number(), eventfd) {
            Ok(()) => {
                // The kernel has injected what it found and left the count, which would come again once it is detached. Linux
                // 6.18 reads it away itself as it detaches; nothing promises that.
                let _ = eventfd.read();
                true
            }
            Err(error) => {
                if matches!(error, HvError::Missing { .. }) {
                    // It will say so each time: no more commits for nothing.
                    self.core.promotes.store(false, Relaxed);
                }
                self.core.host_error(&error);
                false
            }
        }
    }

    fn detach_irqfd(&self, state: &State) -> bool {
        let mut detached = true;
        if let (Some((eventfd, _)), Some(route)) = (self.eventfd.get(), &state.route) {
            let others = self.core.detaching.fetch_add(1, Relaxed);
            let start = Stopwatch::start();
            if let Err(error) = self.core.hypervisor.detach(route.gsi.number(), eventfd) {
                self.core.host_error(&error);
                detached = false;
            }
            let took = start.elapsed();
            // Side by side each takes longer, and all of them together less.
            if self.core.detaching.fetch_sub(1, Relaxed) == 1 && others == 0 {
                self.core.detach_cost.learn(took);
            }
        }
        detached
    }

    fn release(&self, state: &mut State) {
        state.fired = 0;
        if let Some(route) = state.route.take() {
            self.core.hot.lock().remove(&route.gsi);
            self.leave(state.present(), &route.leftover);
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

impl Listen for Vector {
    fn readable(self: Arc<Self>) -> Option<Arc<Self>> {
        (self.on_eventfd() == Wish::Route).then_some(self)
    }
}

/// What a change leaves to be done once the locks are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reroute {
    No,
    /// The kernel's route says something old, until this edit is in force.
    Yes(Since),
    /// There is nothing to route to.
    Detach,
}

impl State {
    fn message(&self) -> Option<Message> {
        self.programmed.then_some(self.message)
    }

    /// What a route would have to say.
    fn interrupt(&self) -> Option<Interrupt> {
        match self.translated {
            Some(Target::Interrupt(interrupt)) => Some(interrupt),
            Some(Target::Event(_)) | None => None,
        }
    }

    /// The message, if it may go out. If not, the signal is kept pending, or dropped and counted.
    fn sends(&mut self, core: &Core) -> Option<Message> {
        match (self.masking, self.message()) {
            (Masking::Unmasked, Some(message)) => return Some(message),
            (Masking::Masked, _) => self.pending = true,
            (Masking::Unmasked, None) | (Masking::Disabled, _) => Counters::count(&core.counters.dropped),
        }
        let signal = Some(if self.masking == Masking::Masked { Sent::Pending } else { Sent::Dropped });
        self.push(move || VectorStep::Signal { outcome: None, acceptance: None, signal });
        None
    }

    #[inline(always)]
    fn deliver(&mut self, core: &Core, interrupt: &Interrupt) {
        let acceptance = core.deliver(interrupt);
        if acceptance == Acceptance::Accepted {
            self.stats.delivered += 1;
        }
        self.sent(interrupt, acceptance);
    }

    /// The message went out.
    #[inline]
    fn sent(&mut self, outcome: impl Into<Outcome>, acceptance: Acceptance) {
        let message = &self.message;
        self.tape.push(move || {
            let (outcome, signal) = (Some(outcome.into()), Some(Sent::Message(*message)));
            Step::Vector(VectorStep::Signal { outcome, acceptance: Some(acceptance), signal })
        });
    }

    #[inline]
    fn push(&mut self, step: impl FnOnce() -> VectorStep) {
        self.tape.push(move || Step::Vector(step()));
    }

    fn cookie(&self) -> Option<Cookie> {
        self.has_cookie.then_some(self.cookie)
    }

    fn set_cookie(&mut self, cookie: Option<Cookie>) {
        (self.has_cookie, self.cookie) = (cookie.is_some(), cookie.unwrap_or_default());
    }

    /// The entry that the cached translation came from, if there is one.
    fn present(&self) -> Option<Option<Cookie>> {
        self.translated.map(|_| self.cookie())
    }

    /// Whether the route, if there is one, says what the translation says. If not, somebody's change is on its way, and
    /// whoever else changes the vector has not done so before the kernel knows.
    fn is_settled(&self, table: &GsiTable) -> bool {
        self.route.as_ref().is_none_or(|route| {
            let (wanted, since) = route.wanted;
            self.interrupt() == Some(wanted) && table.is_in_force(since)
        })
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
        // An invalidation that comes across a vector on its way out waits until it has left the index: with its route.
        self.forget(&mut state);
        self.step(&mut state, Event::Drop);
    }
}
