//! What a fabric has done so far, in numbers.

use crate::line::SourceStats;

/// Counts of one IOAPIC pin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PinStats {
    /// Messages that were accepted.
    pub delivered: u64,
    /// Messages that no local APIC took.
    pub refused: u64,
    /// Level interrupts that the guest has ended.
    pub ended: u64,
}

/// Counts of one message vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct VectorStats {
    /// How often the device signalled.
    pub signalled: u64,
    /// Messages that were accepted.
    pub delivered: u64,
}

/// Counts of one GSI's line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LineStats {
    /// The GSI.
    pub gsi: u32,
    /// The sources that are alive.
    pub sources: Vec<SourceStats>,
    /// The pin that the line ends in.
    pub pin: PinStats,
    /// How often a processor acknowledged the PIC's input that the line ends in.
    pub acknowledged: u64,
}

/// Counts of a whole fabric, at one moment each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Stats {
    /// The lines that have a source, by GSI.
    pub lines: Vec<LineStats>,
    /// Routing tables that were published.
    pub commits: u64,
    /// Writes to halves of redirection entries: as many commits as publishing at each of them would take.
    pub entry_writes: u64,
    /// Messages outside the interrupt window, performed as writes to memory.
    pub memory_writes: u64,
    /// Messages that were neither an interrupt nor a write to memory.
    pub dropped: u64,
    /// Messages that interrupt remapping blocked.
    pub blocked: u64,
    /// How often the dispatcher woke up.
    pub wakeups: u64,
    /// How often a vector got a route and an irqfd.
    pub promotions: u64,
    /// How often a vector lost its route to another.
    pub evictions: u64,
    /// How often a vector stayed on the slower path for want of a descriptor, a GSI or an irqfd, or something could not be
    /// put off for want of a thread.
    pub shortages: u64,
    /// How often the storm brake made a level wait that came back at each end of its interrupt.
    pub brakes: u64,
    /// Callbacks of the VMM's that panicked on the fabric's thread. Each is logged.
    pub panics: u64,
    /// System calls that failed. The first is logged.
    pub host_errors: u64,
}
