//! A virtio block device on virtio-mmio (virtio 1.2, 4.2 and 5.2), with a thread of its own.
//!
//! ```text
//! vCPU: registers ──► Transport ──doorbell──► worker thread: Queue ──► Disk (the file)
//!                         │                        │
//!                         └─ InterruptACK ─► Interrupt ◄─ used buffers
//!                                                └──► LineSource
//! ```

mod block;
mod interrupt;
mod transport;
mod worker;

pub use block::Disk;
pub use transport::{QUEUE_NOTIFY, SIZE, Transport};

#[cfg(test)]
mod tests;
