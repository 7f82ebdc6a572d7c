//! What 4,000 vectors take: bytes in use of the C library's allocator, its own included.
//!
//! The bound of an idle vector is on what the library asks for: its own test counts that. What the kernel takes for an
//! eventfd or an irqfd is not in it.

use super::super::error::Error;
use super::super::machine::{Machine, program_all};
use super::Fact;
use irqfabric::fabric::Promotion;
use irqfabric::msg::RequesterId;

const VECTORS: usize = 4000;

pub fn memory_4000() -> Result<Vec<Fact>, Error> {
    let before = in_use();
    let machine = Machine::new(Promotion::Prefill)?;
    let empty = in_use();
    let idle = machine.fabric.msi_vectors(RequesterId::new(0, 3, 0), VECTORS);
    let with_idle = in_use();
    drop(idle);
    let without = in_use();
    let vectors = machine.vectors(VECTORS)?;
    let with_eventfds = in_use();
    program_all(&vectors)?;
    let hot = in_use();
    let each = |bytes: u64| bytes as f64 / VECTORS as f64;
    Ok(vec![
        Fact::new("bytes of a virtual machine with 24 pins and a vCPU", empty.saturating_sub(before) as f64),
        Fact::new("bytes of an idle in-process vector", each(with_idle.saturating_sub(empty))),
        Fact::new("bytes of one with an eventfd", each(with_eventfds.saturating_sub(without))),
        Fact::new("bytes of a hot one", each(hot.saturating_sub(without))),
    ])
}

/// Of this thread's arena, and mapped.
fn in_use() -> u64 {
    // SAFETY: mallinfo2 takes nothing and returns numbers.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}
