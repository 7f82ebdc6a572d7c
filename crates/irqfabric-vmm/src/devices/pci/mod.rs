//! A PCI bus: configuration space by way of two ports, BARs in one window of memory.
//!
//! ```text
//! vCPU: ports 0xcf8, 0xcfc ──► Ports ──► Bus ──► Function: its Header, its capabilities
//!       memory ─────────────► Window ──► Bus ──► Function: its BARs
//! ```
//!
//! The bus knows where the BARs are and nothing else of a function; a function knows its registers and nothing of
//! addresses. What its interrupts are made of is the library's `pci`.

mod bus;
mod header;

pub use bus::{Bus, Function, LAST_PORT, PORTS, Ports, SLOTS, Window};
pub use header::{Bar, Header, Identity, capability, command};

use std::ops::Range;

/// What an access to configuration space has in common with `size` bytes from `start` on: the offset into them, and which
/// part of the access's data.
pub fn overlap(start: u8, size: usize, offset: u8, length: usize) -> Option<(u64, Range<usize>)> {
    let (start, offset) = (usize::from(start), usize::from(offset));
    let (from, to) = (start.max(offset), (start + size).min(offset + length));
    (from < to).then(|| ((from - start) as u64, from - offset..to - offset))
}
