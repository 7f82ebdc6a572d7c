//! The registers as the data sheet lays them out.

use super::*;
use bitfield_struct::bitfield;

pub(super) const INDEX_ID: u8 = 0;
pub(super) const INDEX_VERSION: u8 = 1;
pub(super) const INDEX_ARBITRATION: u8 = 2;
const INDEX_ENTRIES: u8 = 0x10;

pub(super) enum Register {
    Select,
    Window,
    EndOfInterrupt,
}

impl Register {
    pub(super) fn at(offset: u64, version: Version) -> Option<Self> {
        match offset {
            0x00 => Some(Self::Select),
            0x10 => Some(Self::Window),
            0x40 if version == Version::V20 => Some(Self::EndOfInterrupt),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Half {
    Low,
    High,
}

/// The pin and half that an index names.
pub(super) fn entry_of(index: u8) -> Option<(u8, Half)> {
    let index = index.checked_sub(INDEX_ENTRIES)?;
    let half = if index & 1 == 0 { Half::Low } else { Half::High };
    Some((index / 2, half))
}

#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct RedirectionEntry {
    pub vector: u8,
    #[bits(3)]
    pub delivery_mode: u8,
    #[bits(1)]
    pub destination_mode: DestinationMode,
    /// Read-only, and always idle: a delivery is over before the access that caused it returns.
    pub delivery_status: bool,
    /// Kept for the guest, see `line`.
    pub active_low: bool,
    /// Read-only.
    pub remote_irr: bool,
    #[bits(1)]
    pub trigger: Trigger,
    pub masked: bool,
    #[bits(31)]
    __: u32,
    /// The entry names an interrupt remapping table entry (VT-d 5.1.5.1).
    pub remappable: bool,
    #[bits(7)]
    pub extended_destination: u8,
    pub destination: u8,
}

impl RedirectionEntry {
    pub(super) const RESET: Self = Self::new().with_masked(true);

    /// The bits that a guest may write.
    pub(super) const WRITABLE: Self = Self::new()
        .with_vector(0xff)
        .with_delivery_mode(7)
        .with_destination_mode(DestinationMode::Logical)
        .with_active_low(true)
        .with_trigger(Trigger::Level)
        .with_masked(true)
        .with_remappable(true)
        .with_extended_destination(0x7f)
        .with_destination(0xff);

    /// The trigger mode that counts: NMI, SMI, INIT and ExtINT are edges whatever the bit says.
    pub(super) fn trigger_mode(self) -> Trigger {
        match DeliveryMode::from_bits(self.delivery_mode()) {
            Some(mode) if !mode.has_vector() => Trigger::Edge,
            _ => self.trigger(),
        }
    }

    /// Not while it is masked, nor with a reserved delivery mode (the field means nothing in a remappable entry).
    pub(super) fn sends(self) -> bool {
        !self.masked() && (self.remappable() || DeliveryMode::from_bits(self.delivery_mode()).is_some())
    }

    /// Whether an end of `vector` is the end of its interrupt.
    pub(super) fn ends_with(self, vector: u8) -> bool {
        self.remote_irr() && self.vector() == vector
    }

    pub(super) fn half(self, half: Half) -> u32 {
        match half {
            Half::Low => (self.into_bits() & 0xffff_ffff) as u32,
            Half::High => (self.into_bits() >> 32) as u32,
        }
    }

    /// Merges the `writable` bits of a written half into the entry; the others stay, except that an edge pin has no
    /// remote IRR (Linux ends a level interrupt on version 0x11 by making the pin edge for a moment).
    pub(super) fn write_half(&mut self, half: Half, value: u32, writable: Self) {
        let (written, shift) = match half {
            Half::Low => (0xffff_ffff, 0),
            Half::High => (0xffff_ffff << 32, 32),
        };
        let mask = writable.into_bits() & written;
        *self = Self::from_bits(self.into_bits() & !mask | u64::from(value) << shift & mask);
        if self.trigger_mode() == Trigger::Edge {
            self.set_remote_irr(false);
        }
    }

    pub(super) fn restored(bits: u64) -> Self {
        let entry = Self::from_bits(bits & Self::WRITABLE.into_bits());
        let in_service = Self::from_bits(bits).remote_irr() && entry.trigger_mode() == Trigger::Level;
        entry.with_remote_irr(in_service)
    }

    /// The plain swizzle of an entry into a message: 63:48 → address 19:4, 11 → address 2, 10:8 → data 10:8.
    /// It serves the remappable format as well (VT-d 5.1.5.1).
    pub(super) fn message(self, requester: RequesterId) -> Message {
        let trigger = self.trigger_mode();
        let address = MsiAddress::new()
            .with_destination(self.destination())
            .with_extended_destination(self.extended_destination())
            .with_remappable(self.remappable())
            .with_destination_mode(self.destination_mode());
        let data = MsiData::new()
            .with_vector(self.vector())
            .with_delivery_mode(self.delivery_mode())
            // Level assert goes with level trigger, as the data sheet's bus message has it.
            .with_assert(trigger == Trigger::Level)
            .with_trigger(trigger);
        Message { address: address.into_bits().into(), data: data.into_bits(), requester }
    }
}
