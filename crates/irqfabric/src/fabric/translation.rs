//! Who translates messages, behind a lock that invalidations take, unless there is nothing to invalidate.
//!
//! Where a message always becomes the same there is nothing to wait for, and whoever delivers takes one lock less.

use crate::remap::Remapper;
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::ops::Deref;

pub(crate) struct Translation {
    remapper: Box<dyn Remapper>,
    /// Read by whoever translates, until the outcome is delivered and noted; written by whoever invalidates. None if nobody does.
    invalidated: Option<RwLock<()>>,
}

/// No invalidation goes by while this is held. Taken before the lock of any chip or vector.
pub(crate) struct Translating<'a> {
    remapper: &'a dyn Remapper,
    _none_goes_by: Option<RwLockReadGuard<'a, ()>>,
}

/// Nobody translates while this is held.
pub(crate) struct Invalidating<'a> {
    remapper: &'a dyn Remapper,
    _nobody_else: RwLockWriteGuard<'a, ()>,
}

impl Translation {
    pub(crate) fn new(remapper: Box<dyn Remapper>) -> Self {
        let invalidated = (!remapper.is_fixed()).then(|| RwLock::new(()));
        Self { remapper, invalidated }
    }

    /// Whether nothing is ever invalidated.
    pub(crate) const fn is_fixed(&self) -> bool {
        self.invalidated.is_none()
    }

    /// For what needs no lock.
    pub(crate) fn remapper(&self) -> &dyn Remapper {
        &*self.remapper
    }

    #[inline(always)]
    pub(crate) fn read(&self) -> Translating<'_> {
        let guard = self.invalidated.as_ref().map(RwLock::read);
        Translating { remapper: self.remapper(), _none_goes_by: guard }
    }

    /// Waits for those that translate. `None` if nothing is ever invalidated.
    pub(crate) fn write(&self) -> Option<Invalidating<'_>> {
        let guard = self.invalidated.as_ref()?.write();
        Some(Invalidating { remapper: self.remapper(), _nobody_else: guard })
    }
}

impl<'a> Deref for Translating<'a> {
    type Target = dyn Remapper + 'a;

    fn deref(&self) -> &Self::Target {
        self.remapper
    }
}

impl<'a> Deref for Invalidating<'a> {
    type Target = dyn Remapper + 'a;

    fn deref(&self) -> &Self::Target {
        self.remapper
    }
}
