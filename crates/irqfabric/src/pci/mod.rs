//! What a guest programs of a PCI function's interrupts: INTx, MSI and MSI-X.
//!
//! Accesses to configuration space and BARs go in. Out comes [`Changed`], the vectors whose configuration is another
//! now; the owner asks the machine for each one's [`VectorConfig`] and programs its vector with it. Whether a vector
//! is pending is not known here: it is asked for when the guest reads it.
//!
//! An access has any size and any offset. It reads and writes bytes, little-endian, as one access: bytes that no
//! register has read zero and ignore writes, bits that are read-only keep their value, everything else is merged byte
//! by byte. So an access of a size that the specification leaves undefined does what its bytes say, and loses none.
//!
//! Nothing here looks at the Command register's Bus Master Enable: a function without it may send no message either
//! (PCI Local Bus 3.0, 6.2.2), which is for the owner of that register to see to.
//!
//! Sources: PCI Local Bus Specification 3.0, 6.8 (MSI and MSI-X), 2.2.6 and 6.2 (INTx); the names are those of Linux
//! `include/uapi/linux/pci_regs.h` in words.

mod bytes;
pub mod intx;
pub mod msi;
pub mod msix;

use crate::msg::{Masking, Message, RequesterId};
use std::ops::Range;

/// What the guest has programmed for one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorConfig {
    /// Where the message goes, a multiple of four. Zero, its value after reset, is taken for never programmed.
    pub address: u64,
    /// What is written there.
    pub data: u32,
    /// Whether it may be sent now.
    pub masking: Masking,
}

impl VectorConfig {
    /// That of a vector which the function does not have.
    pub const NONE: Self = Self { address: 0, data: 0, masking: Masking::Disabled };

    /// The vector's message, masked or not; `None` if it was never programmed.
    pub fn message(&self, requester: RequesterId) -> Option<Message> {
        let Self { address, data, masking: _ } = *self;
        (address != 0).then_some(Message { address, data, requester })
    }
}

/// The vectors whose [`VectorConfig`] may be another now, as an iterator: a run of numbers, none beyond the function's
/// last.
///
/// Every vector that has changed is in it. Others are too: those between two that have, and all of them after a change
/// to the whole function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "the changed vectors still have their old configuration"]
pub struct Changed(Range<u16>);

impl Changed {
    /// No vector.
    pub const NOTHING: Self = Self(0..0);

    /// Whether no vector is left in it.
    pub fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    const fn all(vectors: u16) -> Self {
        Self(0..vectors)
    }

    fn add(&mut self, vector: u16) {
        let only = vector..vector.saturating_add(1);
        let Range { start, end } = self.0;
        self.0 = if self.is_nothing() { only } else { start.min(only.start)..end.max(only.end) };
    }
}

impl Iterator for Changed {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl ExactSizeIterator for Changed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_zero_is_no_message() {
        let programmed = VectorConfig { address: 0xfee0_0000, data: 0x31, masking: Masking::Masked };
        let requester = RequesterId::new(0, 3, 0);
        assert_eq!(VectorConfig { address: 0, ..programmed }.message(requester), None);
        assert_eq!(programmed.message(requester), Some(Message { address: 0xfee0_0000, data: 0x31, requester }));
        assert_eq!(VectorConfig::NONE.message(requester), None);
    }

    #[test]
    fn changed_runs_from_the_first_added_to_the_last() {
        let mut changed = Changed::NOTHING;
        assert!(changed.is_nothing());
        for vector in [5, 3, 4, 7] {
            changed.add(vector);
        }
        assert_eq!(changed.len(), 5);
        assert!(changed.eq(3..=7));
    }
}
