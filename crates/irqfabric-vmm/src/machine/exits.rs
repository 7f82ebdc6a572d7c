//! What a vCPU came out of the guest for: counts, the time that we took over it, and the last few for a post-mortem.

use serde::Serialize;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// How many exits are kept for a post-mortem.
const KEPT: usize = 16;

/// A kind of exit, as far as reports tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitKind {
    /// KVM_EXIT_IO, in.
    PioRead,
    /// KVM_EXIT_IO, out.
    PioWrite,
    /// KVM_EXIT_MMIO, read.
    MmioRead,
    /// KVM_EXIT_MMIO, write.
    MmioWrite,
    /// KVM_EXIT_IOAPIC_EOI.
    IoapicEoi,
    /// KVM_EXIT_IRQ_WINDOW_OPEN: it takes an interrupt of the PIC's now.
    IrqWindow,
    /// A signal: our own kick.
    Interrupted,
    /// Everything else.
    Other,
}

impl ExitKind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::PioRead,
        Self::PioWrite,
        Self::MmioRead,
        Self::MmioWrite,
        Self::IoapicEoi,
        Self::IrqWindow,
        Self::Interrupted,
        Self::Other,
    ];
}

/// One exit, kept for a post-mortem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its kind.
    pub kind: ExitKind,
    /// Port, address or vector.
    pub at: u64,
    /// Bytes read or written.
    pub size: usize,
    /// The first eight of them.
    pub value: u64,
}

/// Count and time of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many there were.
    pub count: u64,
    /// From KVM_RUN's return to the vCPU's being ready to run again.
    pub time: Duration,
}

/// What one vCPU came out for.
#[derive(Clone, Debug, Default)]
pub struct Exits {
    tallies: [Tally; ExitKind::ALL.len()],
    last: VecDeque<Exit>,
}

impl Exits {
    /// Counts one that took `time` to handle.
    pub fn note(&mut self, exit: Exit, time: Duration) {
        let tally = &mut self.tallies[exit.kind as usize];
        tally.count += 1;
        tally.time += time;
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(exit);
    }

    /// Count and time of a kind.
    pub fn of(&self, kind: ExitKind) -> Tally {
        self.tallies[kind as usize]
    }

    /// The last of them, oldest first.
    pub fn last(&self) -> impl Iterator<Item = &Exit> {
        self.last.iter()
    }

    /// All counts of several vCPUs together.
    pub fn total<'a>(exits: impl IntoIterator<Item = &'a Self>) -> Self {
        exits.into_iter().fold(Self::default(), |mut total, exits| {
            for (total, tally) in total.tallies.iter_mut().zip(&exits.tallies) {
                total.count += tally.count;
                total.time += tally.time;
            }
            total
        })
    }
}

impl Exit {
    /// An exit that moved `data`.
    pub fn access(kind: ExitKind, at: u64, data: &[u8]) -> Self {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        Self { kind, at, size: data.len(), value: u64::from_le_bytes(bytes) }
    }

    /// One without data.
    pub fn bare(kind: ExitKind, at: u64) -> Self {
        Self::access(kind, at, &[])
    }
}

impl fmt::Display for ExitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PioRead => "port read",
            Self::PioWrite => "port write",
            Self::MmioRead => "MMIO read",
            Self::MmioWrite => "MMIO write",
            Self::IoapicEoi => "IOAPIC EOI",
            Self::IrqWindow => "IRQ window",
            Self::Interrupted => "signal",
            Self::Other => "other",
        })
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, at, size, value } = self;
        match size {
            0 => write!(f, "{kind} {at:#x}"),
            _ => write!(f, "{kind} {at:#x}: {value:#0width$x}", width = 2 + 2 * size.min(&8)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_by_kind_and_over_vcpus() {
        let mut exits = Exits::default();
        exits.note(Exit::bare(ExitKind::IoapicEoi, 0x31), Duration::from_nanos(5));
        exits.note(Exit::bare(ExitKind::IoapicEoi, 0x31), Duration::from_nanos(7));
        let total = Exits::total([&exits, &exits]);
        assert_eq!(total.of(ExitKind::IoapicEoi), Tally { count: 4, time: Duration::from_nanos(24) });
        assert_eq!(total.of(ExitKind::PioRead), Tally::default());
    }

    #[test]
    fn only_the_last_exits_are_kept() {
        let mut exits = Exits::default();
        for port in 0..100 {
            exits.note(Exit::access(ExitKind::PioWrite, port, &[1]), Duration::ZERO);
        }
        assert_eq!(exits.last().count(), KEPT);
        assert_eq!(exits.last().last().unwrap().to_string(), "port write 0x63: 0x01");
    }

    #[test]
    fn the_kinds_are_in_the_order_of_their_numbers() {
        for (index, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }
}
