//! The guest's memory, as the test uses it: single fields at addresses of our own choice.

use super::layout;
use crate::error::Error;
use std::sync::atomic::Ordering;
use vm_memory::mmap::FromRangesError;
use vm_memory::{AtomicAccess, Bytes, GuestAddress, GuestMemoryMmap};

/// A handle to the guest's memory.
///
/// Fields are read and written atomically, with the order that a device and a driver expect of memory. The addresses come
/// from [`layout`] alone: one outside memory is a bug of ours.
#[derive(Clone, Debug)]
pub struct GuestMemory(GuestMemoryMmap);

impl GuestMemory {
    /// A guest's memory, of which there are at least [`layout::MEMORY`] bytes from address 0 on.
    pub const fn new(memory: GuestMemoryMmap) -> Self {
        Self(memory)
    }

    /// Memory that belongs to no virtual machine.
    pub fn allocate() -> Result<Self, Error> {
        let range = (GuestAddress(0), layout::MEMORY as usize);
        let failed = |error: FromRangesError| Error::Allocate { size: layout::MEMORY, why: error.to_string() };
        Ok(Self(GuestMemoryMmap::from_ranges(&[range]).map_err(failed)?))
    }

    /// Reads a field.
    pub fn load<T: AtomicAccess + Default>(&self, address: u64) -> T {
        self.0.load(GuestAddress(address), Ordering::Acquire).expect("the layout lies within memory")
    }

    /// Writes a field.
    pub fn store<T: AtomicAccess>(&self, address: u64, value: T) {
        self.0.store(value, GuestAddress(address), Ordering::Release).expect("the layout lies within memory");
    }

    /// Puts bytes at an address.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.0.write_slice(bytes, GuestAddress(address)).expect("the layout lies within memory");
    }
}
