//! The guest memory that the fabric touches: messages that turn out to be plain writes, later tables.

#[cfg(feature = "vm-memory")]
use std::sync::atomic::Ordering;

/// Reads and writes guest-physical memory. Implemented for every `vm_memory::GuestMemory` (feature `vm-memory`).
///
/// The guest chooses the addresses: an implementation answers [`OutsideMemory`] for what is not memory,
/// whole or in part, and never panics. Called with locks of the
/// fabric held: it must not call back.
pub trait Memory: Send + Sync {
    /// Fills `data` from `address` on. Eight bytes at a multiple of eight are read at once: all of them as they were before
    /// what a processor of the guest's stores there meanwhile in one piece, or all of them as after it.
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory>;

    /// Stores `data` from `address` on.
    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory>;
}

/// The range is not guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{length} bytes at {address:#x} are not guest memory")]
pub struct OutsideMemory {
    /// Where the access began.
    pub address: u64,
    /// How many bytes it had.
    pub length: usize,
}

#[cfg(feature = "vm-memory")]
impl<M: vm_memory::GuestMemory + Send + Sync> Memory for M {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
        let (place, length) = (vm_memory::GuestAddress(address), data.len());
        // A slice is copied by words only if `data` happens to be aligned as well.
        if let Ok(word) = <&mut [u8; 8]>::try_from(&mut *data)
            && let Ok(found) = vm_memory::Bytes::load::<u64>(self, place, Ordering::Acquire)
        {
            *word = found.to_ne_bytes();
            return Ok(());
        }
        vm_memory::Bytes::read_slice(self, data, place).map_err(|_| OutsideMemory { address, length })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        vm_memory::Bytes::write_slice(self, data, vm_memory::GuestAddress(address))
            .map_err(|_| OutsideMemory { address, length: data.len() })
    }
}

#[cfg(all(test, not(loom), feature = "vm-memory"))]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    #[test]
    fn what_is_no_word_is_read_as_well_and_what_is_outside_is_not() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        memory.write_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], GuestAddress(3)).unwrap();
        let mut data = [0; 8];
        for (address, expected) in [(3, [1, 2, 3, 4, 5, 6, 7, 8]), (8, [6, 7, 8, 9, 10, 11, 12, 13])] {
            Memory::read(&memory, address, &mut data).unwrap();
            assert_eq!(data, expected);
        }
        for address in [0x1000, 0xffc, u64::MAX] {
            assert_eq!(Memory::read(&memory, address, &mut data), Err(OutsideMemory { address, length: 8 }));
        }
    }
}
