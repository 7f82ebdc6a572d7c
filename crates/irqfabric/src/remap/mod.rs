//! The contract to interrupt remapping: what a message becomes, which entry said so, and who is told if it is blocked.
//!
//! A remapper is asked for every message that has no cached translation. Its answer carries a [`Cookie`], the name of
//! the entry that it came from (VT-d: the index of the interrupt remapping table entry), so that an invalidation of a
//! range of entries touches exactly the vectors and pins whose translation came from there. A refusal is never cached: an
//! entry that becomes present without an invalidation works at the next interrupt.
//!
//! Messages are also translated ahead of their time, to have a route ready. So to [translate](Remapper::translate) records
//! nothing: a fault is a message that was sent, [recorded](Remapper::record) once for each time it is blocked.
//!
//! | remapper | what it reads |
//! | --- | --- |
//! | [`Untranslated`] | destinations of 8 bits: what a fabric has unless it is told otherwise |
//! | [`ExtDest`] | destinations of 15 bits |
//! | [`vtd`] | Intel VT-d's table of entries; in its place by [`FabricBuilder::vtd`](crate::fabric::FabricBuilder::vtd) |
//! | [`XenPirq`] | Xen's event channels, and for everything else whatever it is put around |

mod destinations;
pub mod vtd;
mod xen;

pub use destinations::{ExtDest, Untranslated};
pub use xen::XenPirq;

use crate::msg::{Interrupt, Message, NotAnInterrupt};
use std::ops::RangeInclusive;

/// The entry of a remapping table that a translation came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u32);

/// What a message came out as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Where it goes.
    pub target: Target,
    /// The entry that said so; `None` if no entry was asked, which only [`Entries::All`] invalidates.
    pub cookie: Option<Cookie>,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To local APICs.
    Interrupt(Interrupt),
    /// Back to the remapper, which knows who waits for it: [`Remapper::raise`]. For vectors only, and no kernel's business:
    /// it never gets an irqfd. A pin that asks for one sends nothing.
    Event(Event),
}

/// Something that is not an interrupt, by a number of the remapper's own. Xen: a PIRQ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Event(pub u32);

/// Why a message is not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not an interrupt at all.
    #[error(transparent)]
    NotAnInterrupt(#[from] NotAnInterrupt),
    /// The remapper blocks it.
    #[error("blocked by interrupt remapping, fault reason {:#x}", .0.reason)]
    Blocked(Fault),
}

/// Why a remapper blocks a message, in the terms of its own specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// The fault reason. VT-d: 0x20 to 0x26.
    pub reason: u8,
    /// The entry that it is about, if the message came so far.
    pub cookie: Option<Cookie>,
    /// Whether nobody is to be told. VT-d: the entry's fault processing disable.
    pub silent: bool,
}

/// The entries whose translations an invalidation drops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entries {
    /// Those with a cookie in the range.
    Range(RangeInclusive<Cookie>),
    /// All translations, those without a cookie included.
    All,
}

impl Entries {
    /// Whether a translation with this cookie is among them.
    pub fn covers(&self, cookie: Option<Cookie>) -> bool {
        match self {
            Self::Range(range) => cookie.is_some_and(|cookie| range.contains(&cookie)),
            Self::All => true,
        }
    }
}

/// Turns a guest's messages into interrupts.
///
/// What it translates by may change at any time. The guest's invalidation comes afterwards, and is passed on to
/// [`Fabric::invalidate`](crate::fabric::Fabric::invalidate): until that has returned, what was cached may still be used.
pub trait Remapper: Send + Sync {
    /// What `message` becomes now. Asked in advance as well as for a delivery: it records nothing.
    ///
    /// Called with locks of the fabric held: it must not call back. It may read the guest's memory.
    fn translate(&self, message: &Message) -> Result<Translation, Refusal>;

    /// `message` was sent, and [`translate`](Self::translate) has just blocked it for `fault`: called once for each time.
    ///
    /// `send` delivers the fault event's own interrupt, which is never remapped: at once, by one system call, and with no
    /// lock that anybody calls back with. It may be called with the fault registers locked, and should be: then nobody
    /// who has masked the event gets one.
    ///
    /// Called with locks of the fabric held: it must not call back.
    fn record(&self, _message: &Message, _fault: Fault, _send: &dyn Fn(&Interrupt)) {}

    /// A message that [`translate`](Self::translate) has made this event was sent.
    ///
    /// Called with no lock held, on the thread of whoever signalled: an event that was on its way may come after its vector was
    /// masked or changed. It may take long at that thread's expense, and it may call back.
    fn raise(&self, _event: Event) {}

    /// Whether a message always becomes the same: then there is nothing to invalidate, and whoever translates takes no lock.
    /// Asked once.
    fn is_fixed(&self) -> bool {
        false
    }
}

impl<R: Remapper + ?Sized> Remapper for std::sync::Arc<R> {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        (**self).translate(message)
    }

    fn record(&self, message: &Message, fault: Fault, send: &dyn Fn(&Interrupt)) {
        (**self).record(message, fault, send);
    }

    fn raise(&self, event: Event) {
        (**self).raise(event);
    }

    fn is_fixed(&self) -> bool {
        (**self).is_fixed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Says what it was asked, and blocks everything.
    #[derive(Default)]
    struct Witness(Mutex<Vec<String>>);

    const FAULT: Fault = Fault { reason: 0x22, cookie: Some(Cookie(3)), silent: false };

    impl Remapper for Witness {
        fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
            self.0.lock().unwrap().push(format!("translate {:#x}", message.address));
            Err(Refusal::Blocked(FAULT))
        }

        fn record(&self, message: &Message, fault: Fault, send: &dyn Fn(&Interrupt)) {
            self.0.lock().unwrap().push(format!("record {:#x} {:#x}", message.address, fault.reason));
            send(&Interrupt::default());
        }

        fn raise(&self, Event(number): Event) {
            self.0.lock().unwrap().push(format!("raise {number}"));
        }
    }

    /// Asks for everything that changes nothing by itself; how often it was asked to send.
    fn ask(remapper: &dyn Remapper) -> usize {
        let message = Message { address: 0xfee0_1000, data: 0x31, ..Message::default() };
        let sent = Mutex::new(0);
        assert_eq!(remapper.translate(&message), Err(Refusal::Blocked(FAULT)));
        remapper.record(&message, FAULT, &|_| *sent.lock().unwrap() += 1);
        remapper.raise(Event(7));
        sent.into_inner().unwrap()
    }

    #[test]
    fn a_shared_remapper_is_asked_for_everything() {
        let witness = Arc::new(Witness::default());
        assert_eq!(ask(&Arc::clone(&witness)), 1);
        assert_eq!(*witness.0.lock().unwrap(), ["translate 0xfee01000", "record 0xfee01000 0x22", "raise 7"]);
    }

    #[test]
    fn a_remapper_is_not_fixed_unless_it_says_so() {
        assert!(!Witness::default().is_fixed());
        assert!(!Arc::new(Witness::default()).is_fixed());
        assert!(Untranslated.is_fixed() && ExtDest.is_fixed());
        assert!(Arc::new(Untranslated).is_fixed());
        assert!(XenPirq::new(Untranslated, drop::<u32>).is_fixed());
        assert!(!XenPirq::new(Witness::default(), drop::<u32>).is_fixed());
    }

    #[test]
    fn a_fault_is_recorded_by_the_remapper_that_xens_is_put_around() {
        let witness = Arc::new(Witness::default());
        let xen = XenPirq::new(Arc::clone(&witness), |pirq| assert_eq!(pirq, 7));
        assert_eq!(ask(&xen), 1);
        assert_eq!(*witness.0.lock().unwrap(), ["translate 0xfee01000", "record 0xfee01000 0x22"]);
    }

    #[test]
    fn a_range_covers_the_cookies_in_it_and_all_covers_what_has_none() {
        let range = Entries::Range(Cookie(3)..=Cookie(5));
        for (cookie, covered) in [(None, false), (Some(2), false), (Some(3), true), (Some(5), true), (Some(6), false)] {
            assert_eq!(range.covers(cookie.map(Cookie)), covered, "{cookie:?}");
            assert!(Entries::All.covers(cookie.map(Cookie)));
        }
    }
}
