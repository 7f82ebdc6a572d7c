//! The guest memory that the fabric touches: messages that turn out to be plain writes, later tables.

/// Reads and writes guest-physical memory. Implemented for every `vm_memory::GuestMemory` (feature `vm-memory`).
///
/// The guest chooses the addresses: an implementation answers [`OutsideMemory`] for what is not memory,
/// whole or in part, and never panics. Called with locks of the
/// fabric held: it must not call back.
pub trait Memory: Send + Sync {
    /// Fills `data` from `address` on.
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
        let length = data.len();
        vm_memory::Bytes::read_slice(self, data, vm_memory::GuestAddress(address))
            .map_err(|_| OutsideMemory { address, length })
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        vm_memory::Bytes::write_slice(self, data, vm_memory::GuestAddress(address))
            .map_err(|_| OutsideMemory { address, length: data.len() })
    }
}
