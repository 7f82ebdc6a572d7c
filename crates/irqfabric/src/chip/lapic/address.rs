//! Which destinations mean a local APIC: Intel SDM vol. 3A, 11.6.2 and 11.12.10.

use super::Mode;
use super::spec::{X2APIC_BROADCAST, XAPIC_BROADCAST};
use crate::msg::DestinationMode;

/// The registers that decide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) mode: Mode,
    pub(crate) id: u32,
    /// Of xAPIC mode; in x2APIC mode it follows from the id.
    pub(crate) logical_destination: u32,
    pub(crate) destination_format: u32,
}

impl Address {
    /// See [`Lapic::matches`](super::Lapic::matches).
    pub(crate) fn matches(&self, destination: u32, mode: DestinationMode) -> bool {
        match (self.mode, mode) {
            (Mode::Disabled, _) => false,
            (Mode::X2apic, _) if destination == X2APIC_BROADCAST => true,
            (Mode::Xapic, _) if destination == XAPIC_BROADCAST => true,
            // In xAPIC mode too: an id above 0xff does not answer to its low eight bits, which are those
            // of another processor (`kvm_recalculate_phys_map` gives them to that one).
            (Mode::X2apic | Mode::Xapic, DestinationMode::Physical) => destination == self.id,
            (Mode::X2apic, DestinationMode::Logical) => {
                let own = self.logical_x2apic_id();
                own >> 16 == destination >> 16 && own & destination & 0xffff != 0
            }
            (Mode::Xapic, DestinationMode::Logical) => {
                let own = self.logical_destination >> 24;
                match self.destination_format >> 28 {
                    _ if destination > 0xff => false,
                    // 11.6.2.2: flat model.
                    0b1111 => own & destination != 0,
                    // Cluster model.
                    0b0000 => own >> 4 == destination >> 4 && own & destination & 0xf != 0,
                    _ => false,
                }
            }
        }
    }

    /// 11.12.10.2: cluster and one bit of sixteen, from the id.
    pub(super) fn logical_x2apic_id(&self) -> u32 {
        self.id >> 4 << 16 | 1 << (self.id & 0xf)
    }
}
