//! Where things are in a guest's address space before it runs.

use crate::machine::{HIGH_MEMORY_START, LOW_MEMORY_END};
use std::ops::Range;

/// Descriptors that the start segments stand for.
pub const GDT: u64 = 0x500;
/// PVH start information, its module list and its memory map.
pub const PVH_START_INFO: u64 = 0x6000;
pub const PVH_MODULES: u64 = 0x6100;
pub const PVH_MEMORY_MAP: u64 = 0x6200;
/// The zero page of Linux' 64-bit entry.
pub const ZERO_PAGE: u64 = 0x7000;
/// Identity mapping of the first 4 GiB: one page of level 4, one of level 3, four of level 2.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Its room, the final zero included.
pub const COMMAND_LINE_SIZE: usize = 0x1_0000;
/// What a PC calls the end of conventional memory, a little below 640 KiB.
pub const LOW_END: u64 = 0x9_fc00;
/// ACPI tables, RSDP first: where guests look for it that are not told.
pub const ACPI: u64 = 0xe_0000;
/// One past the last byte that the tables may take.
pub const ACPI_END: u64 = RESET_VECTOR;
/// Where a processor in real mode starts after a reset.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Memory from here on is the kernel's.
pub const HIGH_START: u64 = 0x10_0000;
/// The first virtio-mmio device, and from one to the next.
pub const VIRTIO: u64 = 0xd000_0000;
pub const VIRTIO_STEP: usize = 0x1000;
/// Where chips that are no PCI functions have their requester ids.
pub const CHIPSET_BUS: u8 = 0xff;
/// The page of the interrupt remapping unit, where a PC's chipset has it.
pub const VTD: u64 = 0xfed9_0000;
/// The window of the PCI bus's BARs.
pub const PCI: Range<u64> = 0xe000_0000..0xf000_0000;

/// A stretch of the memory map, as e820 and PVH number its kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub start: u64,
    pub size: u64,
    pub kind: u32,
}

/// Usable memory.
pub const RAM: u32 = 1;
/// Memory that holds ACPI tables.
pub const ACPI_TABLES: u32 = 3;

/// What a guest with so much memory is told of it.
pub fn memory_map(memory: u64) -> Vec<Stretch> {
    let low = memory.min(LOW_MEMORY_END);
    let stretch = |start, end, kind| Stretch { start, size: end - start, kind };
    let mut map = vec![
        stretch(0, LOW_END, RAM),
        stretch(ACPI, HIGH_START, ACPI_TABLES),
        stretch(HIGH_START, low.max(HIGH_START), RAM),
    ];
    if memory > low {
        map.push(stretch(HIGH_MEMORY_START, HIGH_MEMORY_START + memory - low, RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memory_but_the_first_mebibytes_holes_is_in_the_map() {
        for memory in [1 << 28, 3 << 30, 5 << 30] {
            let map = memory_map(memory);
            let ram: u64 = map.iter().filter(|stretch| stretch.kind == RAM).map(|stretch| stretch.size).sum();
            assert_eq!(ram, memory - (HIGH_START - LOW_END));
            assert!(map.windows(2).all(|pair| pair[0].start + pair[0].size <= pair[1].start));
        }
    }
}
