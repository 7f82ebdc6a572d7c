//! Message vectors: a device's face to signal them, the guest's side to program them.

use super::core::Core;
use super::promotion::{Left, prefill, settle, side_by_side};
use super::report::VectorStats;
use super::vector::Vector;
use crate::line::EdgeInterrupt;
use crate::msg::{Masking, Message, RequesterId};
use crate::pci::VectorConfig;
use crate::record::Begins;
use crate::sync::EventFd;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

/// One message vector as its device knows it: something to signal.
///
/// Clones are the same vector; a device may signal it from any thread.
#[derive(Clone)]
pub struct MsiVector(pub(super) Arc<Vector>);

/// The vectors of one device, as its configuration space or MSI-X table knows them: each can be programmed and masked.
/// As a slice, they are what the device signals.
///
/// A new vector is unmasked and has no message, so it sends nothing.
pub struct MsiVectors {
    vectors: Box<[MsiVector]>,
    core: Arc<Core>,
    requester: RequesterId,
}

/// A message for one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Which vector of the device.
    pub index: usize,
    /// The address that the guest wrote.
    pub address: u64,
    /// The data that the guest wrote.
    pub data: u32,
}

/// What a snapshot keeps of a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VectorState {
    /// Address and data, if it was programmed.
    pub message: Option<(u64, u32)>,
    /// Whether it may send.
    pub masking: Masking,
    /// Whether a signal waits until it may.
    pub pending: bool,
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

impl MsiVector {
    /// Sends the vector's message: one system call and nothing else. Masked, it is kept pending; a vector that was never
    /// programmed, or whose function is off, sends nothing.
    ///
    /// The vector's own lock is held across the system call: once [`MsiVectors::program`] has returned, no
    /// delivery uses the message that it replaced.
    pub fn signal(&self) {
        self.0.signal();
    }

    /// An eventfd each event of which is a signal: what vhost, vhost-user and VFIO want. One descriptor a vector, made at
    /// the first call, as is the fabric's one thread that listens to cold eventfds. It does not block while nobody who holds a
    /// descriptor has it so: see [`Fabric::line_eventfds`](super::Fabric::line_eventfds) for untrusted processes.
    ///
    /// Under [`Promotion::Prefill`](super::Promotion::Prefill) the first call attaches it, if the guest has programmed the vector already.
    ///
    /// Fails for want of descriptors or threads; the vector can be [signalled](Self::signal) all the same.
    pub fn eventfd(&self) -> io::Result<&EventFd> {
        let first = !self.0.has_eventfd();
        let eventfd = self.0.eventfd()?;
        if first {
            prefill(self.0.core(), &[&self.0]);
        }
        Ok(eventfd)
    }

    /// What came of it so far. What the kernel delivers for a hot eventfd is not in it: nobody but the kernel knows.
    pub fn stats(&self) -> VectorStats {
        self.0.stats()
    }

    /// Whether the kernel delivers for its eventfd at present, by an irqfd, and nothing of ours is on the way.
    pub fn is_hot(&self) -> bool {
        self.0.is_hot()
    }
}

impl EdgeInterrupt for MsiVector {
    fn trigger(&self) {
        self.signal();
    }
}

impl MsiVectors {
    pub(crate) fn new(core: &Arc<Core>, requester: RequesterId, count: usize) -> Self {
        let vector = |index| {
            let tape = core.tapes.tape(|| Begins::Vector { requester, index: index as u32 });
            MsiVector(Arc::new(Vector::new(core.clone(), tape)))
        };
        Self { vectors: (0..count).map(vector).collect(), core: core.clone(), requester }
    }

    /// The guest has written a vector's address and data. On return no delivery uses what they replace.
    ///
    /// No system call, unless the vector is hot and the message means another interrupt: then one commit or detach.
    pub fn program(&self, index: usize, address: u64, data: u32) -> Result<(), VectorIndexError> {
        self.program_all(&[Program { index, address, data }])
    }

    /// [`program`](Self::program) for several vectors: by one commit, whatever they need. If one of them does not exist
    /// nothing is done.
    pub fn program_all(&self, programs: &[Program]) -> Result<(), VectorIndexError> {
        self.program_messages(programs.iter().map(|&Program { index, address, data }| {
            (index, Some(Message { address, data, requester: self.requester }))
        }))
    }

    fn program_messages(
        &self,
        messages: impl Iterator<Item = (usize, Option<Message>)>,
    ) -> Result<(), VectorIndexError> {
        let messages: Vec<_> =
            messages.map(|(index, message)| Ok((self.get(index)?, message))).collect::<Result<_, _>>()?;
        let remapper = self.core.translation.read();
        let left: Left<'_> =
            messages.iter().map(|&(vector, message)| (vector, vector.program(message, &*remapper))).collect();
        drop(remapper);
        settle(&self.core, left);
        prefill(&self.core, &messages.iter().map(|&(vector, _)| vector).collect::<Vec<_>>());
        Ok(())
    }

    /// The guest masks, unmasks or switches vectors. On return what must not be delivered is not, and what was pending
    /// is; an event that is still in an eventfd follows.
    ///
    /// Costs a hot vector one detach, a vector that was hot when it was masked one attach and one read. Many are detached
    /// from a few threads side by side. If one of them does not exist nothing is done.
    pub fn set_masking(
        &self,
        indexes: impl IntoIterator<Item = usize>,
        masking: Masking,
    ) -> Result<(), VectorIndexError> {
        let vectors: Vec<_> = indexes.into_iter().map(|index| self.get(index)).collect::<Result<_, _>>()?;
        if masking == Masking::Unmasked {
            vectors.iter().for_each(|vector| vector.set_masking(masking));
            prefill(&self.core, &vectors);
        } else {
            // Only a detach takes longer than starting a thread for it.
            let (hot, others): (Vec<_>, Vec<_>) = vectors.into_iter().partition(|vector| vector.is_hot());
            others.iter().for_each(|vector| vector.set_masking(masking));
            side_by_side(&hot, |vector| vector.set_masking(masking));
        }
        Ok(())
    }

    /// Makes vectors what a function's registers say: what `pci`'s machines ask for after an access.
    ///
    /// First what must stop stops, then the messages are published once, then what may send does. If one of the vectors
    /// does not exist nothing is done.
    ///
    /// ```
    /// # use irqfabric::{fabric::Fabric, hv::Sim, msg::RequesterId, pci::msix::Msix};
    /// # let fabric = Fabric::builder(Sim::new(1)).build()?;
    /// let mut msix = Msix::new(3, 0)?;
    /// let vectors = fabric.msi_vectors(RequesterId::new(0, 2, 0), 3);
    /// vectors.configure((0..3).map(|index| (index, msix.vector(index as u16))))?;
    /// // The guest writes to the function's BAR:
    /// let changed = msix.write_bar(0, 0x0c, &0u32.to_le_bytes());
    /// vectors.configure(changed.map(|index| (index.into(), msix.vector(index))))?;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn configure(&self, configs: impl IntoIterator<Item = (usize, VectorConfig)>) -> Result<(), VectorIndexError> {
        let configs: Vec<_> = configs.into_iter().collect();
        for &(index, _) in &configs {
            self.get(index)?;
        }
        let of = |masking| configs.iter().filter(move |(_, config)| config.masking == masking).map(|&(index, _)| index);
        self.set_masking(of(Masking::Disabled), Masking::Disabled)?;
        self.set_masking(of(Masking::Masked), Masking::Masked)?;
        let messages = configs.iter().map(|&(index, config)| (index, config.message(self.requester)));
        self.program_messages(messages)?;
        self.set_masking(of(Masking::Unmasked), Masking::Unmasked)
    }

    /// Whether a signal waits for the guest to unmask: the vector's PBA bit. Also sees what another process has signalled
    /// through the eventfd. A vector that does not exist has none.
    pub fn pending(&self, index: usize) -> bool {
        self.vectors.get(index).is_some_and(|vector| vector.0.pending())
    }

    /// Everything that a guest can tell about the vectors. Stop the devices first, and save the local APICs afterwards:
    /// what a device has signalled through an eventfd and nobody has delivered yet is delivered here.
    pub fn save(&self) -> Vec<VectorState> {
        let save = |MsiVector(vector): &MsiVector| {
            vector.flush();
            let pending = vector.pending();
            let (message, masking, _) = vector.state().configuration();
            VectorState { message: message.map(|message| (message.address, message.data)), masking, pending }
        };
        self.vectors.iter().map(save).collect()
    }

    /// Makes the vectors what they were when they were saved. What was pending stays so until the guest unmasks. As many
    /// as were saved, from vector 0 on; if there are more than vectors nothing is done.
    pub fn restore(&self, states: &[VectorState]) -> Result<(), VectorIndexError> {
        if let Some(index) = states.len().checked_sub(1) {
            self.get(index)?;
        }
        // Whatever they were: no message, nothing pending.
        self.set_masking(0..states.len(), Masking::Disabled)?;
        let message = |(address, data)| Message { address, data, requester: self.requester };
        self.program_messages(states.iter().map(|state| state.message.map(message)).enumerate())?;
        let of = |masking| (0..).zip(states).filter(move |(_, state)| state.masking == masking).map(|(index, _)| index);
        let pending = || (0..).zip(states).filter(|(_, state)| state.pending).map(|(index, _)| index);
        self.set_masking(pending(), Masking::Masked)?;
        for index in pending() {
            self.get(index)?.restore_pending();
        }
        for masking in [Masking::Disabled, Masking::Masked, Masking::Unmasked] {
            self.set_masking(of(masking), masking)?;
        }
        Ok(())
    }

    fn get(&self, index: usize) -> Result<&Arc<Vector>, VectorIndexError> {
        let outside = VectorIndexError { index, count: self.vectors.len() };
        self.vectors.get(index).map(|vector| &vector.0).ok_or(outside)
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
        let (message, masking, pending) = self.0.state().configuration();
        let mut debug = f.debug_struct("MsiVector");
        debug.field("message", &message).field("masking", &masking).field("pending", &pending).finish()
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
        let bytes = size_of::<MsiVector>() + counts + size_of::<Vector>();
        assert!(bytes <= 128, "{bytes} bytes");
    }
}
