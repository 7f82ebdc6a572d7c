//! A virtio block device (virtio 1.2, 5.2), with a thread for each queue, on virtio-mmio (4.2) or virtio-pci (4.1).
//!
//! ```text
//! vCPU: registers ──► Mmio or Function ──► Device ──doorbell──► worker thread: Queue ──► Disk (the file)
//!                          │                                        │
//!                          └─ acknowledge, vectors ─► Interrupt ◄───┘ used buffers
//!                                                         └──► LineSource, MsiVector
//! ```
//!
//! Two things vary, and each knows nothing of the other: the *transport*, how the driver reaches the [device](Device),
//! and the [`Interrupt`](interrupt::Interrupt), how the device reaches the driver.

mod block;
mod device;
mod interrupt;
mod mmio;
mod pci;
mod worker;

pub use block::Disk;
pub use device::Device;
pub use interrupt::LineInterrupt;
pub use mmio::{Mmio, QUEUE_NOTIFY, SIZE};
pub use pci::{Doorbells, Function, MOST_QUEUES, Place, REGISTERS_SIZE, SignalBy, Signals, VECTORS_BAR, msix};

#[cfg(test)]
mod tests;
