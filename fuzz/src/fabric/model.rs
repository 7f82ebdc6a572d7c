//! The machine, followed a second time: each step takes from what was seen what it must have led to.

use super::machine::{Seen, Shared};
use super::{IOAPIC, PINS, SOURCES, VECTORS, gsi_of, requester_of, resamples};
use crate::ioapic::{MASKED, REMOTE_IRR, WRITABLE, is_level, message, sends};
use crate::pic::Pair;
use crate::vtd::numbers;
use crate::vtd::oracle::{self, Outcome};
use irqfabric::msg::{Acceptance, DestinationMode, Interrupt, Masking, Message, RequesterId};
use std::collections::{BTreeSet, VecDeque};

/// A vector as it is followed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Followed {
    pub(super) message: Option<(u64, u32)>,
    pub(super) masking: Masking,
    pub(super) pending: bool,
    /// What it became when it was last sent, while nothing has said that this is over.
    known: Option<Outcome>,
}

/// The machine, followed a second time.
pub(super) struct Model {
    ram: Shared,
    pub(super) entries: [u64; PINS],
    pub(super) levels: [bool; PINS],
    pub(super) raised: [bool; SOURCES],
    pub(super) told: [usize; SOURCES],
    pub(super) pic: Pair,
    /// ExtINT messages that wait for a processor: destination and mode.
    pub(super) externals: Vec<(u32, DestinationMode)>,
    /// What each processor was given by the PIC and has not taken.
    pub(super) given: [Option<u8>; 2],
    pub(super) irr: [BTreeSet<u8>; 2],
    pub(super) vectors: [Followed; VECTORS],
    /// GSTS and IRTA that are in force.
    pub(super) registers: (u32, u64),
    // Of the present step.
    pub(super) seen: VecDeque<Seen>,
    pub(super) faults: Vec<u128>,
    pub(super) blocked: u64,
}

impl Model {
    pub(super) fn new(ram: Shared) -> Self {
        Self {
            ram,
            entries: [MASKED; PINS],
            levels: [false; PINS],
            raised: [false; SOURCES],
            told: [0; SOURCES],
            pic: Pair::default(),
            externals: Vec::new(),
            given: [None; 2],
            irr: Default::default(),
            vectors: [Followed::default(); VECTORS],
            registers: (0, 0),
            seen: VecDeque::new(),
            faults: Vec::new(),
            blocked: 0,
        }
    }

    fn translate(&self, message: &Message) -> Outcome {
        let Message { address, data, requester: RequesterId(requester) } = *message;
        oracle::translate(self.registers, (address, data, requester), |place| self.ram.sixteen(place))
    }

    // What must have been seen next.

    fn expect_delivery(&mut self, expected: Outcome) -> Acceptance {
        let Some(Seen::Delivered(interrupt, acceptance)) = self.seen.pop_front() else {
            panic!("lost: {expected:?}");
        };
        assert_eq!(unnamed(numbers(&interrupt, None)), unnamed(expected), "stale");
        self.accept(&interrupt, acceptance);
        acceptance
    }

    /// Who must have it.
    fn accept(&mut self, interrupt: &Interrupt, acceptance: Acceptance) {
        let Outcome::Interrupt { destination, logical: false, mode: mode @ (0 | 2 | 4), vector, .. } =
            numbers(interrupt, None)
        else {
            // Arbitration is the backend's.
            return;
        };
        let mut takers = 0;
        for (id, irr) in (0u32..).zip(&mut self.irr) {
            if (destination == id || destination == 0xff) && (mode != 0 || vector >= 16) {
                takers += 1;
                if mode == 0 {
                    irr.insert(vector);
                }
            }
        }
        assert_eq!(acceptance == Acceptance::Accepted, takers > 0, "{interrupt:?}");
    }

    fn fault(&mut self, message: &Message, expected: Outcome) {
        let Outcome::Fault { reason, index, silent } = expected else { panic!("{expected:?} is no fault") };
        self.blocked += 1;
        if !silent {
            let RequesterId(requester) = message.requester;
            let record = u128::from(reason) << 96 | u128::from(requester) << 64 | u128::from(index) << 48;
            self.faults.push(1 << 127 | record);
        }
    }

    // Pins and wires.

    fn message_of(&self, pin: usize) -> Message {
        message(self.entries[pin], RequesterId(IOAPIC))
    }

    fn is_due(&self, pin: usize) -> bool {
        let entry = self.entries[pin];
        is_level(entry) && sends(entry) && self.levels[pin] && entry & REMOTE_IRR == 0
    }

    /// A pin has something to send, if it may.
    fn attempt(&mut self, pin: usize) {
        let message = self.message_of(pin);
        let accepted = match self.translate(&message) {
            Outcome::Interrupt { mode: 7, destination, logical, .. } => {
                let mode = if logical { DestinationMode::Logical } else { DestinationMode::Physical };
                if !self.externals.contains(&(destination, mode)) {
                    self.externals.push((destination, mode));
                }
                Acceptance::Accepted
            }
            interrupt @ Outcome::Interrupt { .. } => self.expect_delivery(interrupt),
            fault @ Outcome::Fault { .. } => {
                self.fault(&message, fault);
                Acceptance::Refused
            }
            Outcome::Memory | Outcome::Dropped => Acceptance::Refused,
        };
        if is_level(self.entries[pin]) && accepted == Acceptance::Accepted {
            self.entries[pin] |= REMOTE_IRR;
        }
    }

    fn drive(&mut self, gsi: usize, high: bool) {
        self.pic.set(gsi as u8, high);
        if gsi >= PINS {
            return;
        }
        let before = std::mem::replace(&mut self.levels[gsi], high);
        let edge = high && !before && !is_level(self.entries[gsi]) && sends(self.entries[gsi]);
        if edge || high && self.is_due(gsi) {
            self.attempt(gsi);
        }
    }

    fn sources(gsi: usize) -> impl Iterator<Item = usize> {
        (0..SOURCES).filter(move |&source| gsi_of(source) == gsi)
    }

    fn is_high(&self, gsi: usize) -> bool {
        Self::sources(gsi).any(|source| self.raised[source])
    }

    pub(super) fn set(&mut self, source: usize, high: bool) {
        let gsi = gsi_of(source);
        let before = self.is_high(gsi);
        self.raised[source] = high;
        if self.is_high(gsi) != before {
            self.drive(gsi, !before);
        }
    }

    pub(super) fn pulse(&mut self, source: usize) {
        let gsi = gsi_of(source);
        let before = self.is_high(gsi);
        self.raised[source] = false;
        if !before {
            self.pic.pulse(gsi as u8);
            if gsi < PINS {
                // The PIC has had its edge.
                let pic = self.pic.clone();
                self.drive(gsi, true);
                self.drive(gsi, false);
                self.pic = pic;
            }
        } else if !self.is_high(gsi) {
            self.drive(gsi, false);
        }
    }

    /// The end of an interrupt lowers the resampling sources, and them alone.
    fn acknowledge(&mut self, gsi: usize) {
        for source in Self::sources(gsi).filter(|&source| resamples(source)) {
            self.told[source] += usize::from(std::mem::take(&mut self.raised[source]));
        }
    }

    fn end_on(&mut self, pin: usize) {
        let before = self.is_high(pin);
        self.acknowledge(pin);
        if before {
            self.drive(pin, self.is_high(pin));
        }
    }

    pub(super) fn end(&mut self, vector: u8) {
        for pin in 0..PINS {
            if self.entries[pin] & REMOTE_IRR != 0 && self.entries[pin] as u8 == vector {
                self.entries[pin] &= !REMOTE_IRR;
                self.end_on(pin);
            }
        }
    }

    pub(super) fn write_half(&mut self, pin: usize, high: bool, value: u32) {
        let old = self.entries[pin];
        let shift = if high { 32 } else { 0 };
        let mask = WRITABLE & 0xffff_ffff << shift;
        let new = old & !mask | u64::from(value) << shift & mask;
        self.entries[pin] = if is_level(new) { new } else { new & !REMOTE_IRR };
        if self.is_due(pin) {
            self.attempt(pin);
        }
        if old & !self.entries[pin] & REMOTE_IRR != 0 {
            self.end_on(pin);
        }
    }

    pub(super) fn pic_write(&mut self, port: u16, value: u8) {
        let mut trial = self.pic.clone();
        trial.write(port, value);
        // The cascade is no line's.
        for input in (0..16).filter(|&input| input != 2) {
            if self.pic.in_service() & !trial.in_service() & 1 << input != 0 {
                let before = self.is_high(input);
                self.acknowledge(input);
                if before && !self.is_high(input) {
                    self.drive(input, false);
                }
            }
        }
        self.pic.write(port, value);
    }

    pub(super) fn pic_read(&mut self, port: u16) -> u8 {
        let slave = port & 0x80 != 0;
        let polled = self.pic.is_polled(slave) && port < 0x100;
        let answer = self.pic.read(port);
        let input = if slave { 8 | answer & 7 } else { answer & 7 };
        if polled && answer & 0x80 != 0 && input != 2 {
            self.acknowledged(input);
        }
        answer
    }

    /// By the PIC. With automatic end of interrupt that was its end as well.
    pub(super) fn acknowledged(&mut self, input: u8) {
        if self.pic.in_service() & 1 << input != 0 {
            return;
        }
        let gsi = usize::from(input);
        let high = self.is_high(gsi);
        self.acknowledge(gsi);
        let left = self.is_high(gsi);
        self.pic.ended(input, left);
        if high {
            self.drive(gsi, left);
        }
    }

    // Vectors.

    pub(super) fn signal(&mut self, vector: usize) {
        let Followed { message, masking, known, .. } = self.vectors[vector];
        if masking == Masking::Masked {
            self.vectors[vector].pending = true;
        }
        let (Some((address, data)), Masking::Unmasked) = (message, masking) else { return };
        let message = Message { address, data, requester: requester_of(vector) };
        let now = self.translate(&message);
        let next = self.seen.front().and_then(|seen| match seen {
            Seen::Delivered(interrupt, _) => Some(unnamed(numbers(interrupt, None))),
            _ => None,
        });
        // What is cached may be used until the guest says otherwise.
        if let Some(known) = known.filter(|known| next == Some(unnamed(*known))) {
            self.expect_delivery(known);
            return;
        }
        match now {
            Outcome::Interrupt { .. } => {
                self.expect_delivery(now);
                self.vectors[vector].known = Some(now);
            }
            Outcome::Fault { .. } => self.fault(&message, now),
            Outcome::Memory => {
                if Shared::range(address, 4).is_ok() {
                    assert_eq!(self.seen.pop_front(), Some(Seen::Stored(address, data)));
                }
            }
            Outcome::Dropped => {}
        }
    }

    pub(super) fn set_masking(&mut self, vector: usize, masking: Masking) {
        let followed = &mut self.vectors[vector];
        if std::mem::replace(&mut followed.masking, masking) == masking {
            return;
        }
        match masking {
            Masking::Masked => {}
            Masking::Disabled => followed.pending = false,
            Masking::Unmasked => {
                if std::mem::take(&mut followed.pending) {
                    self.signal(vector);
                }
            }
        }
    }

    pub(super) fn program(&mut self, vector: usize, message: (u64, u32)) {
        let followed = &mut self.vectors[vector];
        if followed.message != Some(message) {
            (followed.message, followed.known) = (Some(message), None);
        }
    }

    // Invalidations.

    pub(super) fn invalidate(&mut self, covers: impl Fn(Option<u32>) -> bool) {
        for vector in &mut self.vectors {
            if let Some(Outcome::Interrupt { cookie, .. }) = vector.known
                && covers(cookie)
            {
                vector.known = None;
            }
        }
    }

    /// Pins whose level was blocked or refused may be tried again by any access to the unit. Which interrupts were, until
    /// something else was seen.
    pub(super) fn recovered(&mut self) -> Vec<Outcome> {
        let mut tried = Vec::new();
        while let Some(&Seen::Delivered(interrupt, _)) = self.seen.front() {
            let interrupt = numbers(&interrupt, None);
            let means = |pin: &usize| self.is_due(*pin) && unnamed(self.translate(&self.message_of(*pin))) == interrupt;
            let pin = (0..PINS).find(means).unwrap_or_else(|| panic!("nobody asked for {interrupt:?}"));
            self.attempt(pin);
            tried.push(interrupt);
        }
        tried
    }

    /// The same of a queue that goes on where it had stopped, and may have found waits there.
    pub(super) fn resumed(&mut self) -> Vec<Outcome> {
        let mut tried = self.recovered();
        while let Some(Seen::Status(_)) = self.seen.front() {
            self.seen.pop_front();
            tried.append(&mut self.recovered());
        }
        tried
    }

    /// What is due after an invalidation by an entry that it `covers` has been tried and refused.
    pub(super) fn check_recovered(&self, tried: &[Outcome], covers: impl Fn(Option<u32>) -> bool) {
        for pin in (0..PINS).filter(|&pin| self.is_due(pin)) {
            let now = self.translate(&self.message_of(pin));
            if let Outcome::Interrupt { cookie, .. } = now {
                assert!(!covers(cookie) || tried.contains(&unnamed(now)), "the level of pin {pin} is lost");
            }
        }
    }
}

/// Without the entry that it came from, which the backend does not see.
fn unnamed(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Interrupt { destination, logical, any, mode, level, vector, cookie: _ } => {
            Outcome::Interrupt { destination, logical, any, mode, level, vector, cookie: None }
        }
        other => other,
    }
}
