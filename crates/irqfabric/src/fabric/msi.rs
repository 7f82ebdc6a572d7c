//! Message vectors: a device's face to signal them, the guest's side to program them.

use super::core::Core;
use super::report::VectorStats;
use crate::msg::{Acceptance, Interrupt, Message, RequesterId};
use crate::sync::Mutex;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// One message vector as its device knows it: something to signal.
///
/// Clones are the same vector; a device may signal it from any thread.
#[derive(Clone)]
pub struct MsiVector(Arc<Vector>);

/// The vectors of one device, as its configuration space or MSI-X table knows them: each can be programmed.
/// As a slice, they are what the device signals.
pub struct MsiVectors {
    vectors: Box<[MsiVector]>,
    requester: RequesterId,
}

/// A vector that a device does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("vector {index} of {count}: the last is {}", count.saturating_sub(1))]
pub struct VectorIndexError {
    /// What was asked for.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

struct Vector {
    core: Arc<Core>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    message: Option<Message>,
    /// What `message` came out as when it was last translated. A failure is never kept.
    translated: Option<Interrupt>,
    stats: VectorStats,
}

impl MsiVector {
    /// Sends the vector's message: one system call and nothing else. A vector that was never programmed sends nothing.
    ///
    /// The vector's own lock is held across the system call: once [`MsiVectors::program`] has returned, no
    /// delivery uses the message that it replaced.
    pub fn signal(&self) {
        let Vector { core, state } = &*self.0;
        let mut vector = state.lock();
        vector.stats.signalled += 1;
        if let Some(interrupt) = vector.translated {
            vector.deliver(core, &interrupt);
            return;
        }
        // The order of locks: translation before any vector's.
        drop(vector);
        let translation = core.translation.read();
        let mut vector = state.lock();
        let Some(message) = vector.message else { return };
        match translation.translate(&message) {
            Ok(interrupt) => {
                vector.translated = Some(interrupt);
                vector.deliver(core, &interrupt);
            }
            Err(why) => core.not_an_interrupt(&message, why),
        }
    }

    /// What came of it so far.
    pub fn stats(&self) -> VectorStats {
        self.0.state.lock().stats
    }
}

impl State {
    fn deliver(&mut self, core: &Core, interrupt: &Interrupt) {
        if core.deliver(interrupt) == Acceptance::Accepted {
            self.stats.delivered += 1;
        }
    }
}

impl MsiVectors {
    pub(crate) fn new(core: &Arc<Core>, requester: RequesterId, count: usize) -> Self {
        let vector = || MsiVector(Arc::new(Vector { core: core.clone(), state: Mutex::default() }));
        Self { vectors: (0..count).map(|_| vector()).collect(), requester }
    }

    /// The guest has written a vector's address and data. No system call. On return no delivery uses what they replace.
    pub fn program(&self, index: usize, address: u64, data: u32) -> Result<(), VectorIndexError> {
        let outside = VectorIndexError { index, count: self.vectors.len() };
        let vector = self.vectors.get(index).ok_or(outside)?;
        let mut state = vector.0.state.lock();
        let message = Some(Message { address, data, requester: self.requester });
        if state.message != message {
            state.message = message;
            state.translated = None;
        }
        Ok(())
    }
}

impl Deref for MsiVectors {
    type Target = [MsiVector];

    fn deref(&self) -> &[MsiVector] {
        &self.vectors
    }
}

impl fmt::Debug for MsiVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.lock();
        f.debug_struct("MsiVector").field("message", &state.message).field("stats", &state.stats).finish()
    }
}

impl fmt::Debug for MsiVectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsiVectors").field("requester", &self.requester).field("vectors", &self.vectors).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_vector_takes_no_more_than_128_bytes() {
        let counts = 2 * size_of::<usize>();
        assert!(size_of::<MsiVector>() + size_of::<Vector>() + counts <= 128);
    }
}
