//! The devices of the reference machines. Those with an interrupt hold a line source, vectors or a pair of eventfds, and know
//! nothing else of the fabric.

pub mod console;
pub mod pair;
pub mod pci;
pub mod power;
pub mod serial;
pub mod vfio;
pub mod virtio;
