//! An IOAPIC in its place: behind a lock, with its messages translated and delivered, and its level pins' routes parked.
//!
//! **Parking.** A level pin is delivered directly, never by its route. The route, on the GSI equal to the pin, is
//! there for the end of interrupt only: KVM reports an EOI exit iff some route on a GSI that was reserved for
//! us is level-triggered with that vector (`kvm_scan_ioapic_routes`). So the route must be in force before the first
//! delivery that needs it, and must stay as it is until that interrupt was ended.
//!
//! ```text
//!               due, message X               committed, generation still g
//!   Unparked ───────────────────► Committing(X, g) ───────────────────► Parked(X) ──► delivered
//!      ▲                             │        │ due, message Y: Committing(Y, g+1)       │
//!      └── commit failed, pin edge ──┴────────┴──────────────────────────────────────────┘
//! ```
//!
//! A pin is edge here, too, when its message is about to be delivered edge-triggered or with another vector than its entry's:
//! interrupt remapping decides that anew each time.
//!
//! No lock is held across a commit. Whoever comes back from one and finds another generation leaves: the thread that
//! made it is on its way. Whoever finds its own looks again at what is due and what it translates to: an
//! invalidation makes no generation. While remote IRR is set nothing is due, so the route cannot change under an
//! interrupt in service, whatever is written to the entry.
//!
//! **Later.** Three things are left to the dispatcher to try again after [`DELAY`]: a level whose route the host could not
//! commit, one that wanted another route after each of [`COMMITS`], and the storm brake's. A level that nobody lowers, on a pin whose entry nobody touches, comes back at each
//! end of its interrupt, and a guest that has no handler for it does nothing else any more; after [`STORM`] of these in a row
//! the next waits, so that the guest gets to run. KVM's own IOAPIC does the same (`arch/x86/kvm/ioapic.c`,
//! IOAPIC_SUCCESSIVE_IRQ_MAX_COUNT). Whatever else gives a reason to deliver meanwhile does so at once.

use super::core::{Core, Counters};
use super::report::PinStats;
use super::translation::Translating;
use crate::chip::ioapic::{Ioapic, PinSet, Written};
use crate::line::{Level, Pin};
use crate::msg::{Acceptance, DeliveryMode, DestinationMode, Interrupt, Message, Trigger};
use crate::record::{Tape, Taped};
use crate::remap::{Entries, Refusal, Target, Translation};
use crate::sync::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many redeliveries in a row make a storm.
const STORM: u32 = 10_000;

/// How many commits one attempt makes for a pin that wants another route after each: its translation is the guest's to change
/// as often as it likes, and the line's lock is held.
const COMMITS: u32 = 3;

/// How long what is put off waits.
const DELAY: Duration = Duration::from_millis(10);

pub(crate) struct IoapicPort {
    core: Arc<Core>,
    first_gsi: u32,
    state: Mutex<State>,
}

struct State {
    chip: Taped<Ioapic>,
    entry_writes: u64,
    pins: Box<[PinPort]>,
}

#[derive(Default)]
struct PinPort {
    parking: Parking,
    generation: u64,
    /// How often in a row the interrupt was ended with the line high, and nobody accessed the entry.
    ends: u32,
    /// When the dispatcher is to try again, if nobody has by then.
    later: Option<Instant>,
    /// The dispatcher has been asked to look.
    asked: bool,
    stats: PinStats,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Parking {
    /// No route of ours is certain to be in force.
    #[default]
    Unparked,
    /// Some thread is publishing this route, and will deliver what is due.
    Committing(Interrupt),
    /// This route is in force.
    Parked(Interrupt),
}

/// What is left to do of an attempt to deliver.
enum Left {
    Nothing,
    /// This route must be in force first.
    Commit(Interrupt),
}

/// What came of a commit.
enum Parked {
    /// The route is in force.
    Yes,
    /// The pin wants another by now: whoever wants it is on the way.
    Overtaken,
    /// The table was not taken.
    Failed,
}

/// Both locks that a delivery needs, in their order.
struct Session<'a> {
    translation: Translating<'a>,
    state: MutexGuard<'a, State>,
}

/// A line's end at one of our pins.
pub(crate) struct IoapicPin {
    pub(crate) port: Arc<IoapicPort>,
    pub(crate) pin: u8,
}

impl Pin for IoapicPin {
    fn set(&self, level: Level) {
        self.port.set(self.pin, level);
    }

    fn pulse(&self) {
        self.port.pulse(self.pin);
    }
}

impl IoapicPort {
    pub(crate) fn new(core: Arc<Core>, first_gsi: u32, chip: Ioapic, tape: Tape) -> Self {
        let pins = (0..chip.pins()).map(|_| PinPort::default()).collect();
        Self { core, first_gsi, state: Mutex::new(State { chip: Taped::new(chip, tape), entry_writes: 0, pins }) }
    }

    /// Parks the routes of interrupts in service: what a restored chip needs before its guest runs. The answer is
    /// what to publish, if anything.
    pub(crate) fn park_restored(&self) -> Option<crate::route::Since> {
        let mut session = self.enter();
        let Session { translation, state } = &mut session;
        let mut newest = None;
        for pin in state.chip.in_service() {
            let translated = state.chip.programmed(pin).map(|message| translation.translate(&message));
            let present = match translated {
                Some(Ok(Translation { target: Target::Interrupt(interrupt), .. })) => Some(interrupt),
                _ => None,
            };
            let wanted = present.filter(|interrupt| state.parks(pin, interrupt)).or_else(|| state.to_everybody(pin));
            if let Some(interrupt) = wanted {
                newest = newest.max(Some(self.core.table.put(self.gsi(pin), interrupt)));
                state.pins[usize::from(pin)].parking = Parking::Parked(interrupt);
                state.chip.parked(pin, Some(interrupt));
            }
        }
        newest
    }

    /// A line's level; see [`Pin::set`].
    fn set(self: &Arc<Self>, pin: u8, level: Level) {
        if level == Level::Low {
            // Nothing is delivered for it, so nothing is translated.
            let mut state = self.state.lock();
            let _ = state.chip.set(pin, level);
            state.pins[usize::from(pin)].calm();
            return;
        }
        let mut session = self.enter();
        if !session.state.chip.set(pin, level) {
            return;
        }
        if session.state.storms(pin) {
            return self.brake(session, pin);
        }
        let left = self.attempt(&mut session, pin);
        self.finish(session, pin, left);
    }

    /// What `pin` has to send waits, so that the guest gets to run.
    #[cold]
    fn brake(self: &Arc<Self>, session: Session<'_>, pin: u8) {
        if self.put_off(session, pin) {
            return Counters::count(&self.core.counters.brakes);
        }
        // There is no thread to wait for it.
        self.enter_and_attempt(pin);
    }

    /// A rise and a fall under one lock. A level pin is delivered before it falls.
    fn pulse(self: &Arc<Self>, pin: u8) {
        let mut session = self.enter();
        if session.state.chip.trigger(pin) == Some(Trigger::Level) {
            drop(session);
            self.set(pin, Level::High);
            return self.set(pin, Level::Low);
        }
        // The chip remembers an edge until it is sent.
        let rose = session.state.chip.set(pin, Level::High);
        let _ = session.state.chip.set(pin, Level::Low);
        if rose {
            let left = self.attempt(&mut session, pin);
            self.finish(session, pin, left);
        }
    }

    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.state.lock();
        state.chip.read(offset, data);
        if let Some(pin) = state.chip.entry_at(offset) {
            state.pins[usize::from(pin)].ends = 0;
        }
    }

    /// What the write has ended, or asks to end, is the caller's to bring to the lines concerned.
    pub(crate) fn write(self: &Arc<Self>, offset: u64, data: &[u8]) -> Written {
        let mut state = self.state.lock();
        let written = state.chip.write(offset, data);
        if let Written::Entry { pin, ended } = written {
            state.entry_writes += 1;
            let port = &mut state.pins[usize::from(pin)];
            port.stats.ended += u64::from(ended);
            port.calm();
            if state.unpark_edge(pin) {
                self.core.table.release(self.gsi(pin));
            }
            // Mostly it has nothing to send, and needs no translation.
            let due = state.chip.due(pin).is_some();
            drop(state);
            if due {
                self.enter_and_attempt(pin);
            }
        }
        written
    }

    /// The pins whose interrupt an end of `vector` concerns.
    pub(crate) fn ending(&self, vector: u8) -> PinSet {
        self.state.lock().chip.ending(vector)
    }

    /// Ends the interrupt of one of them, if it still is one: whether it was. Called with its line's lock held, which has the
    /// level `left` and goes on to drive the pin to it.
    pub(crate) fn end(&self, pin: u8, vector: u8, left: Level) -> bool {
        let mut state = self.state.lock();
        let ended = state.chip.end(pin, vector);
        if ended {
            let port = &mut state.pins[usize::from(pin)];
            port.stats.ended += 1;
            port.ends += 1;
            if left == Level::Low {
                port.calm();
                let _ = state.chip.set(pin, left);
            }
        }
        ended
    }

    /// The pins that have something to send and a translation for it that is one of `entries`: what was blocked before an
    /// invalidation and is not any more. A pin without one is left alone, so that no fault is recorded for a message
    /// that was not sent.
    pub(crate) fn recovered(&self, entries: &Entries) -> PinSet {
        if self.core.translation.is_fixed() {
            return PinSet::EMPTY;
        }
        let Session { translation, state } = self.enter();
        let sends = |message| translation.translate(&message).is_ok_and(|now| entries.covers(now.cookie));
        (0..state.chip.pins() as u8).filter(|&pin| state.chip.due(pin).is_some_and(sends)).collect()
    }

    pub(crate) fn save(&self) -> crate::chip::ioapic::IoapicState {
        self.state.lock().chip.save()
    }

    pub(crate) fn entry_writes(&self) -> u64 {
        self.state.lock().entry_writes
    }

    pub(crate) fn stats(&self, pin: u8) -> PinStats {
        self.state.lock().pins.get(usize::from(pin)).map(|pin| pin.stats).unwrap_or_default()
    }

    fn gsi(&self, pin: u8) -> u32 {
        self.first_gsi + u32::from(pin)
    }

    #[inline(always)]
    fn enter(&self) -> Session<'_> {
        Session { translation: self.core.translation.read(), state: self.state.lock() }
    }

    /// Delivers what `pin` has to send, if anything: one system call, and before it one table commit if a level
    /// pin's message has changed since its last delivery, or up to [`COMMITS`] if it keeps changing.
    fn enter_and_attempt(self: &Arc<Self>, pin: u8) {
        let mut session = self.enter();
        let left = self.attempt(&mut session, pin);
        self.finish(session, pin, left);
    }

    /// The part of it that needs no commit: one system call at the most. What is left must be [finished](Self::finish).
    ///
    /// Inlined: behind a system call the processor predicts no return, and each one costs as much as a lock.
    #[inline(always)]
    fn attempt(&self, session: &mut Session<'_>, pin: u8) -> Left {
        let Some(message) = session.state.chip.due(pin) else { return Left::Nothing };
        let translated = session.translation.translate(&message);
        let interrupt = match translated {
            Ok(Translation { target: Target::Interrupt(interrupt), .. }) => interrupt,
            // Who waits for it is called with no lock held, and a pin's line is.
            Ok(Translation { target: Target::Event(_), .. }) => {
                Counters::count(&self.core.counters.dropped);
                session.state.delivered(pin, &message, &translated, Acceptance::Refused);
                return Left::Nothing;
            }
            Err(why) => {
                self.core.refused(&*session.translation, &message, why);
                session.state.delivered(pin, &message, &translated, Acceptance::Refused);
                return Left::Nothing;
            }
        };
        let parks = session.state.parks(pin, &interrupt);
        let port = &mut session.state.pins[usize::from(pin)];
        if parks {
            match port.parking {
                Parking::Parked(parked) if parked == interrupt => {}
                Parking::Committing(coming) if coming == interrupt => return Left::Nothing,
                Parking::Unparked | Parking::Committing(_) | Parking::Parked(_) => return Left::Commit(interrupt),
            }
        } else if port.unpark() {
            // Nothing is in service, or nothing would be due.
            self.core.table.release(self.gsi(pin));
            session.state.chip.parked(pin, None);
        }
        let acceptance = match interrupt.delivery_mode {
            DeliveryMode::ExtInt => self.core.external(&interrupt),
            _ => self.core.deliver(&interrupt),
        };
        session.state.delivered(pin, &message, &translated, acceptance);
        Left::Nothing
    }

    /// Does what an [attempt](Self::attempt) has left.
    #[inline(always)]
    fn finish(self: &Arc<Self>, session: Session<'_>, pin: u8, left: Left) {
        match left {
            Left::Nothing => {}
            Left::Commit(interrupt) => self.commit_and_attempt(session, pin, interrupt),
        }
    }

    /// Parks the route of `interrupt` and attempts again.
    #[cold]
    fn commit_and_attempt<'a>(self: &'a Arc<Self>, mut session: Session<'a>, pin: u8, mut interrupt: Interrupt) {
        for _ in 0..COMMITS {
            let generation = session.state.pins[usize::from(pin)].commits(interrupt);
            let since = self.core.table.put(self.gsi(pin), interrupt);
            drop(session);
            let published = self.core.publish(since);
            session = self.enter();
            match session.state.pins[usize::from(pin)].parked(generation, published) {
                Parked::Yes => session.state.chip.parked(pin, Some(interrupt)),
                Parked::Overtaken => return,
                Parked::Failed => {
                    session.state.chip.parked(pin, None);
                    break;
                }
            }
            // In between the line may have fallen, the pin been masked, the message rewritten to another that
            // asks for the same interrupt, which was left to us, or its translation invalidated: look again.
            // Each further round was caused by a guest that changed something meanwhile, which it could do for ever.
            match self.attempt(&mut session, pin) {
                Left::Nothing => return,
                Left::Commit(another) => interrupt = another,
            }
        }
        self.put_off(session, pin);
    }

    /// Leaves it to the dispatcher to try `pin` again in a while. Whether it will.
    #[cold]
    fn put_off(self: &Arc<Self>, mut session: Session<'_>, pin: u8) -> bool {
        let time = Instant::now() + DELAY;
        let port = &mut session.state.pins[usize::from(pin)];
        port.later = Some(time);
        if std::mem::replace(&mut port.asked, true) {
            // It looks at the time when it comes to it.
            return true;
        }
        drop(session);
        self.ask(pin, time)
    }

    fn ask(self: &Arc<Self>, pin: u8, time: Instant) -> bool {
        let asked = Core::dispatcher(&self.core);
        match asked {
            Ok(dispatcher) => {
                let port = Arc::downgrade(self);
                dispatcher.at(time, move || {
                    if let Some(port) = port.upgrade() {
                        port.try_again(pin, Instant::now());
                        // It may have been an ExtINT.
                        port.core.pic.iter().for_each(|pic| pic.ring());
                    }
                });
            }
            Err(_) => {
                Counters::count(&self.core.counters.shortages);
                let port = &mut self.state.lock().pins[usize::from(pin)];
                (port.asked, port.later) = (false, None);
            }
        }
        asked.is_ok()
    }

    /// The dispatcher looks at a pin that was put off. It is not in the way of any other delivery.
    fn try_again(self: &Arc<Self>, pin: u8, now: Instant) {
        let mut session = self.enter();
        let port = &mut session.state.pins[usize::from(pin)];
        match port.later {
            Some(time) if time > now => {
                drop(session);
                self.ask(pin, time);
            }
            later => {
                (port.asked, port.later) = (false, None);
                if later.is_some() {
                    let left = self.attempt(&mut session, pin);
                    self.finish(session, pin, left);
                }
            }
        }
    }
}

impl State {
    /// Whether the next delivery of `pin` is one too many in a row.
    fn storms(&mut self, pin: u8) -> bool {
        let storms = self.pins[usize::from(pin)].ends > STORM && self.chip.due(pin).is_some();
        if storms {
            self.pins[usize::from(pin)].ends = 0;
        }
        storms
    }

    /// Whether an EOI exit for `interrupt` can mean this pin and must therefore be asked for: it is
    /// level-triggered and has the vector that the entry's vector field is compared with.
    fn parks(&self, pin: u8, interrupt: &Interrupt) -> bool {
        let level = self.chip.trigger(pin) == Some(Trigger::Level) && interrupt.trigger == Trigger::Level;
        level && self.chip.vector(pin) == Some(interrupt.vector)
    }

    /// What has the end of a pin's interrupt reported, whoever took it. Of one that was delivered by a remapping entry that
    /// is another by now, the vector is all that is known: KVM reports an end by that, to a vCPU in whose ISR or IRR it
    /// is. `None` if there can be no such end: vectors below 16 are never delivered.
    fn to_everybody(&self, pin: u8) -> Option<Interrupt> {
        let vector = self.chip.vector(pin).filter(|vector| *vector >= 16)?;
        let route = Interrupt {
            vector,
            trigger: Trigger::Level,
            destination: u32::MAX,
            destination_mode: DestinationMode::Logical,
            ..Interrupt::default()
        };
        self.parks(pin, &route).then_some(route)
    }

    /// A pin that became edge owns no route. Returns whether it had one.
    fn unpark_edge(&mut self, pin: u8) -> bool {
        self.chip.trigger(pin) == Some(Trigger::Edge) && self.pins[usize::from(pin)].unpark()
    }

    fn delivered(
        &mut self,
        pin: u8,
        message: &Message,
        translated: &Result<Translation, Refusal>,
        acceptance: Acceptance,
    ) {
        self.chip.delivered(pin, message, translated, acceptance);
        let port = &mut self.pins[usize::from(pin)];
        port.later = None;
        match acceptance {
            Acceptance::Accepted => port.stats.delivered += 1,
            Acceptance::Refused => port.stats.refused += 1,
        }
    }
}

impl PinPort {
    /// A commit of this route is on its way: its generation.
    const fn commits(&mut self, interrupt: Interrupt) -> u64 {
        self.parking = Parking::Committing(interrupt);
        self.generation += 1;
        self.generation
    }

    /// The pin needs no route. Returns whether it had one, or was about to.
    fn unpark(&mut self) -> bool {
        let parked = !matches!(self.parking, Parking::Unparked);
        if parked {
            self.parking = Parking::Unparked;
            self.generation += 1;
        }
        parked
    }

    /// A commit of `generation` is over.
    fn parked(&mut self, generation: u64, published: bool) -> Parked {
        if generation != self.generation {
            return Parked::Overtaken;
        }
        let Parking::Committing(interrupt) = self.parking else { return Parked::Overtaken };
        if published {
            self.parking = Parking::Parked(interrupt);
            Parked::Yes
        } else {
            self.parking = Parking::Unparked;
            Parked::Failed
        }
    }

    /// The line has fallen, or the guest has written the entry: no storm, and nothing is put off.
    const fn calm(&mut self) {
        self.ends = 0;
        self.later = None;
    }
}
