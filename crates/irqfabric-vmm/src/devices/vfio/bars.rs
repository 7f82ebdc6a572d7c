//! The BARs of a device as the guest's memory: what may be reached directly becomes KVM memory slots, wherever the guest
//! has put the BAR; the rest comes out to the [`Function`](super::Function).
//!
//! Directly is everything that VFIO lets us map, but the pages of the MSI-X table and the PBA: those are the fabric's.

use super::host::{Mapped, Physical};
use crate::devices::pci::Bar;
use irqfabric::pci::msix::Msix;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The granularity of mappings and slots.
const PAGE: u64 = 0x1000;

/// Hands out the numbers of KVM's memory slots. Clones hand out of the same stock.
#[derive(Clone, Debug)]
pub struct Slots(Arc<AtomicU32>);

impl Slots {
    /// From this number on.
    pub fn from(first: u32) -> Self {
        Self(Arc::new(first.into()))
    }

    fn take(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// Whose memory the slots are.
pub trait AddressSpace: Send + Sync {
    /// The guest reaches this at `address` from now on.
    fn show(&self, slot: u32, address: u64, memory: &Mapped) -> Result<(), String>;

    /// No vCPU reaches it any more.
    fn hide(&self, slot: u32);
}

impl AddressSpace for VmFd {
    fn show(&self, slot: u32, address: u64, memory: &Mapped) -> Result<(), String> {
        set_slot(self, slot, address, memory.length(), memory.address()).map_err(|errno| errno.to_string())
    }

    fn hide(&self, slot: u32) {
        if let Err(error) = set_slot(self, slot, 0, 0, 0) {
            tracing::error!(%error, slot, "removing a memory slot");
        }
    }
}

fn set_slot(vm: &VmFd, slot: u32, address: u64, size: u64, memory: u64) -> Result<(), kvm_ioctls::Error> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: address,
        memory_size: size,
        userspace_addr: memory,
    };
    // SAFETY: `Part` owns the mapping and takes the slot back before it lets it go; a size of zero names no memory.
    unsafe { vm.set_user_memory_region(slot) }
}

/// The directly reachable parts of a function's BARs.
pub struct Mappings {
    vm: Arc<dyn AddressSpace>,
    parts: Vec<Part>,
}

/// One of them, with a slot of its own.
struct Part {
    bar: u8,
    offset: u64,
    memory: Mapped,
    slot: u32,
    /// Where the guest sees it now.
    at: Option<u64>,
}

impl Mappings {
    /// Of a device whose BARs have these numbers. What cannot be mapped is reached the longer way.
    pub fn new(
        vm: Arc<dyn AddressSpace>,
        slots: &Slots,
        device: &dyn Physical,
        bars: &[u8],
        msix: Option<&Msix>,
    ) -> Self {
        let mut parts = Vec::new();
        for &bar in bars {
            for range in direct(device.mappable(bar), &trapped(bar, msix)) {
                match device.map(bar, range.clone()) {
                    Ok(memory) => {
                        parts.push(Part { bar, offset: range.start, memory, slot: slots.take(), at: None });
                    }
                    Err(error) => {
                        tracing::warn!(%error, bar, ?range, "mapping a BAR: its accesses take the longer way")
                    }
                }
            }
        }
        Self { vm, parts }
    }

    /// The function answers to these BARs now, all of them inside `window`. First what has moved is hidden.
    pub fn hide_but(&mut self, bars: &[Bar], window: &Range<u64>) {
        for part in &mut self.parts {
            if part.at.is_some() && part.at != place(part, bars, window) {
                part.at = None;
                self.vm.hide(part.slot);
            }
        }
    }

    /// Then what is elsewhere now is shown. Not where KVM refuses it: on top of something else.
    pub fn show(&mut self, bars: &[Bar], window: &Range<u64>) {
        for part in &mut self.parts {
            let Some(address) = place(part, bars, window).filter(|_| part.at.is_none()) else { continue };
            match self.vm.show(part.slot, address, &part.memory) {
                Ok(()) => part.at = Some(address),
                // The guest can have that as often as it likes.
                Err(error) => tracing::debug!(%error, address, "a BAR where the guest has put it: not mapped"),
            }
        }
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        self.hide_but(&[], &(0..0));
    }
}

/// Where the guest has put a part, if that is where the bus has its BARs.
fn place(part: &Part, bars: &[Bar], window: &Range<u64>) -> Option<u64> {
    let bar = bars.iter().find(|bar| bar.number == part.bar)?;
    let inside = window.start <= bar.range.start && bar.range.end <= window.end;
    inside.then_some(bar.range.start + part.offset)
}

/// The parts of a BAR that have the MSI-X table or the PBA, whole pages.
fn trapped(bar: u8, msix: Option<&Msix>) -> Vec<Range<u64>> {
    let Some(msix) = msix else { return Vec::new() };
    msix.ranges(bar).map(|range| range.start & !(PAGE - 1)..range.end.next_multiple_of(PAGE)).collect()
}

/// What is left of `mappable` without `trapped`, whole pages.
fn direct(mappable: Vec<Range<u64>>, trapped: &[Range<u64>]) -> Vec<Range<u64>> {
    let whole = |range: Range<u64>| range.start.next_multiple_of(PAGE)..range.end & !(PAGE - 1);
    let mut left: Vec<_> = mappable.into_iter().map(whole).collect();
    for hole in trapped {
        left = left.into_iter().flat_map(|range| without(range, hole)).collect();
    }
    left.retain(|range| range.start < range.end);
    left
}

fn without(range: Range<u64>, hole: &Range<u64>) -> [Range<u64>; 2] {
    [range.start..range.end.min(hole.start), range.start.max(hole.end)..range.end]
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges are what is meant")]
mod tests {
    use super::*;
    use irqfabric::pci::msix::Location;

    #[test]
    fn the_pages_of_table_and_pba_are_left_out_of_what_is_mapped() {
        let (table_at, pba_at) = (Location { bar: 0, offset: 0x2000 }, Location { bar: 0, offset: 0x3800 });
        let msix = Msix::with_layout(65, table_at, pba_at).unwrap();
        assert_eq!(trapped(0, Some(&msix)), [0x2000..0x3000, 0x3000..0x4000]);
        assert_eq!(direct(vec![0..0x4000], &trapped(0, Some(&msix))), [0..0x2000]);
        assert_eq!(direct(vec![0..0x8000], &trapped(0, Some(&msix))), [0..0x2000, 0x4000..0x8000]);
        assert_eq!(direct(vec![0..0x4000], &trapped(1, Some(&msix))), [0..0x4000]);
    }

    #[test]
    fn sparse_areas_are_mapped_as_they_are_and_whole_pages_only() {
        assert_eq!(direct(vec![0..0x1000, 0x3000..0x4000], &[]), [0..0x1000, 0x3000..0x4000]);
        assert_eq!(direct(vec![0x100..0x2f00, 0..0x100], &[]), [0x1000..0x2000]);
        assert_eq!(direct(vec![0..0x2000], &[0..0x4000]), Vec::<Range<u64>>::new());
    }
}
