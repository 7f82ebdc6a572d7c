//! Who translates messages: the guest's remapper, behind a lock that its invalidations take, or nobody.
//!
//! Without a remapper a message says itself what it asks for, always. Nothing can be invalidated, so there is nothing to
//! wait for, and whoever delivers takes one lock less.

use crate::msg::DestinationFormat;
use crate::remap::Remapper;
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::ops::Deref;

pub(crate) enum Translation {
    /// No remapping.
    Fixed(DestinationFormat),
    /// Read by whoever translates, until the outcome is delivered and noted; written by whoever invalidates.
    Remapped(RwLock<Box<dyn Remapper>>),
}

/// No invalidation goes by while this is held. Taken before the lock of any chip or vector.
pub(crate) enum Translating<'a> {
    Fixed(&'a DestinationFormat),
    Remapped(RwLockReadGuard<'a, Box<dyn Remapper>>),
}

impl Translation {
    pub(crate) fn read(&self) -> Translating<'_> {
        match self {
            Self::Fixed(format) => Translating::Fixed(format),
            Self::Remapped(remapper) => Translating::Remapped(remapper.read()),
        }
    }

    /// Waits for those that translate. `None` if nothing is ever invalidated.
    pub(crate) fn write(&self) -> Option<RwLockWriteGuard<'_, Box<dyn Remapper>>> {
        match self {
            Self::Fixed(_) => None,
            Self::Remapped(remapper) => Some(remapper.write()),
        }
    }
}

impl Deref for Translating<'_> {
    type Target = dyn Remapper;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Fixed(format) => *format,
            Self::Remapped(remapper) => &***remapper,
        }
    }
}
