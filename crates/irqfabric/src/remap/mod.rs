//! The contract to interrupt remapping: what a message becomes, and which entry said so.
//!
//! A remapper is asked for every message that has no cached translation. Its answer carries a [`Cookie`], the name of
//! the entry that it came from (VT-d: the index of the interrupt remapping table entry), so that an invalidation of a
//! range of entries touches exactly the vectors whose translation came from there. A refusal is never cached: an
//! entry that becomes present without an invalidation works at the next interrupt.

pub mod vtd;

use crate::msg::{DestinationFormat, Interrupt, Message, NotAnInterrupt};
use std::ops::RangeInclusive;

/// The entry of a remapping table that a translation came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u32);

/// What a message came out as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// What to deliver.
    pub interrupt: Interrupt,
    /// The entry that said so; `None` if no entry was asked, which only [`Entries::All`] invalidates.
    pub cookie: Option<Cookie>,
}

/// Why a message is not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not an interrupt at all.
    #[error(transparent)]
    NotAnInterrupt(#[from] NotAnInterrupt),
    /// The remapper blocks it, for a reason of its own specification.
    #[error("blocked by interrupt remapping, fault reason {0:#x}")]
    Blocked(u8),
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
/// Called with locks of the fabric held: it must not call back. It may read the guest's memory.
pub trait Remapper: Send + Sync {
    /// What `message` becomes now. Asking records nothing.
    fn translate(&self, message: &Message) -> Result<Translation, Refusal>;
}

/// No remapping: a message says itself what it asks for.
impl Remapper for DestinationFormat {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        Ok(Translation { interrupt: message.decode(*self)?, cookie: None })
    }
}
