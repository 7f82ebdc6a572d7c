//! Where a machine's steps go: nowhere, unless somebody records.

#[cfg(feature = "record")]
use super::recorder::Shared;
use super::step::{Begins, Step};
#[cfg(feature = "record")]
use std::sync::Arc;

/// Gives each machine of a fabric its tape.
#[derive(Clone, Default)]
pub(crate) struct Tapes {
    #[cfg(feature = "record")]
    pub(super) shared: Option<Arc<Shared>>,
}

/// One machine's tape, behind the machine's lock. A word; without the feature nothing.
#[derive(Default)]
pub(crate) struct Tape {
    #[cfg(feature = "record")]
    track: Option<Box<Track>>,
}

#[cfg(feature = "record")]
struct Track {
    shared: Arc<Shared>,
    machine: u32,
    /// The number of the next step.
    next: u64,
}

#[cfg(feature = "record")]
impl Tapes {
    pub(crate) fn tape(&self, begins: impl FnOnce() -> Begins) -> Tape {
        let track = self.shared.as_ref().map(|shared| {
            let machine = shared.begin(begins());
            Box::new(Track { shared: shared.clone(), machine, next: 0 })
        });
        Tape { track }
    }
}

#[cfg(not(feature = "record"))]
impl Tapes {
    pub(crate) fn tape(&self, _: impl FnOnce() -> Begins) -> Tape {
        Tape {}
    }
}

#[cfg(feature = "record")]
impl Tape {
    #[inline]
    pub(crate) const fn is_on(&self) -> bool {
        self.track.is_some()
    }

    /// Called with the machine's lock held. The step is only put together if somebody records.
    #[inline(always)]
    pub(crate) fn push(&mut self, step: impl FnOnce() -> Step) {
        if let Some(track) = &mut self.track {
            track.push(step());
        }
    }
}

#[cfg(not(feature = "record"))]
impl Tape {
    #[inline]
    pub(crate) const fn is_on(&self) -> bool {
        false
    }

    #[inline]
    pub(crate) fn push(&mut self, _: impl FnOnce() -> Step) {}
}

#[cfg(feature = "record")]
impl Track {
    /// Out of the way of those that do not record.
    #[cold]
    #[inline(never)]
    fn push(&mut self, step: Step) {
        // A step that is lost leaves its number behind.
        let number = self.next;
        self.next += 1;
        self.shared.push(self.machine, number, step);
    }
}
