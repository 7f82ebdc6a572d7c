//! The guest memory that the fabric touches: messages that turn out to be plain writes, later tables.

#[cfg(feature = "vm-memory")]
use std::sync::atomic::Ordering;

/// Reads and writes guest-physical memory. Implemented for every `vm_memory::GuestMemory` (feature `vm-memory`).
///
/// The guest chooses the addresses: an implementation answers [`OutsideMemory`] for what is not memory,
/// whole or in part, and never panics. Called with locks of the
/// fabric held: it must not call back.
pub trait Memory: Send + Sync {
    /// Fills `data` from `address` on. Where `address` and the length are multiples of eight, each word of eight bytes is read
    /// at once: all of it as it was before what a processor of the guest's stores there meanwhile in one piece, or all of it
    /// as after it.
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
        if length.is_multiple_of(WORD) && read_words(self, place, data).is_some() {
            return Ok(());
        }
        vm_memory::Bytes::read_slice(self, data, place).map_err(|_| OutsideMemory { address, length })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        vm_memory::Bytes::write_slice(self, data, vm_memory::GuestAddress(address))
            .map_err(|_| OutsideMemory { address, length: data.len() })
    }
}

/// In bytes.
#[cfg(feature = "vm-memory")]
const WORD: usize = size_of::<u64>();

/// `None` where `place` is no multiple of a word, and where not all of it is memory.
#[cfg(feature = "vm-memory")]
fn read_words(memory: &impl vm_memory::GuestMemory, place: vm_memory::GuestAddress, data: &mut [u8]) -> Option<()> {
    let slices = memory.get_slices(place, data.len(), vm_memory::Permissions::Read).ok()?;
    let mut words = data.chunks_exact_mut(WORD);
    for slice in slices {
        let slice = slice.ok()?;
        for (offset, word) in (0..slice.len()).step_by(WORD).zip(&mut words) {
            let found: u64 = vm_memory::Bytes::load(&slice, offset, Ordering::Acquire).ok()?;
            word.copy_from_slice(&found.to_ne_bytes());
        }
    }
    Some(())
}

#[cfg(all(test, not(loom), feature = "vm-memory"))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    /// Into a place of odd address: copied as bytes, most of what is read would be torn.
    #[test]
    fn a_word_that_a_processor_stores_meanwhile_is_read_whole() {
        const READS: usize = 200_000;
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let (stores, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let torn = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for word in [0, u64::MAX] {
                        memory.store(word, GuestAddress(0x108), Ordering::Relaxed).unwrap();
                    }
                    stores.fetch_add(1, Ordering::Relaxed);
                }
            });
            while stores.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            let mut torn = 0;
            for length in [8, 16] {
                let mut place = [0; 24];
                let data =
                    if place.as_ptr().addr() % 2 == 0 { &mut place[1..][..length] } else { &mut place[..length] };
                for _ in 0..READS {
                    Memory::read(&memory, 0x110 - length as u64, data).unwrap();
                    let word = u64::from_ne_bytes(*data.last_chunk().unwrap());
                    torn += usize::from(word != 0 && word != u64::MAX);
                }
            }
            done.store(true, Ordering::Relaxed);
            torn
        });
        assert_eq!(torn, 0);
    }

    #[test]
    fn words_are_read_across_two_regions_wherever_the_second_begins() {
        for boundary in [0x1000, 0xffc] {
            let ranges = [(GuestAddress(0), boundary as usize), (GuestAddress(boundary), 0x1000)];
            let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
            let expected: [u8; 24] = std::array::from_fn(|index| index as u8);
            memory.write_slice(&expected, GuestAddress(0xff0)).unwrap();
            let mut data = [0; 24];
            Memory::read(&memory, 0xff0, &mut data).unwrap();
            assert_eq!(data, expected, "{boundary:#x}");
        }
    }

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
