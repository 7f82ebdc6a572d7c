//! Messages: what a device or one of our chips sends, and what it asks of the local APICs.
//!
//! A [`Message`] is what travels on the bus: 64 bits of address, 32 of data, and who sent it. Untranslated
//! and untrusted: the guest chose every bit. An [`Interrupt`] is what it comes out as: destination,
//! delivery mode, trigger mode and vector, each in its own type. [`Message::decode`] goes from one to the
//! other for a machine without interrupt remapping; [`Interrupt::encode`] gives the form that KVM
//! takes, whose high address carries the destination's upper 24 bits.
//!
//! Sources: Intel SDM vol. 3A, 11.11 (message address and data); Linux `arch/x86/include/asm/msi.h`;
//! KVM_FEATURE_MSI_EXT_DEST_ID in Linux `Documentation/virt/kvm/x86/cpuid.rst`; KVM_CAP_X2APIC_API in
//! `Documentation/virt/kvm/api.rst`.

use bitfield_struct::bitfield;
use std::fmt;

/// Where the interrupt window begins: writes to these 1 MiB are messages, all others go to memory.
pub const WINDOW_START: u64 = 0xfee0_0000;
/// The first address behind the interrupt window.
pub const WINDOW_END: u64 = 0xfef0_0000;

/// Where [`DestinationFormat::ThirtyTwo`] keeps destination bits 31:8.
const HIGH_DESTINATION: u64 = 0xffff_ff00 << 32;

/// Who sent a message: PCI bus, device and function. Remapping checks it, nothing else looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RequesterId(pub u16);

impl RequesterId {
    /// The id of a PCI function. Bits of `device` above 5 and of `function` above 3 are cut off.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 0x1f) << 3 | (function as u16 & 7))
    }
}

impl fmt::Display for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.0 >> 8, self.0 >> 3 & 0x1f, self.0 & 7)
    }
}

/// A message as it was sent: not translated yet, every bit chosen by the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Message {
    /// The address written to.
    pub address: u64,
    /// The data written.
    pub data: u32,
    /// Who wrote it.
    pub requester: RequesterId,
}

/// Low half of a message's address inside the interrupt window.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MsiAddress {
    #[bits(2)]
    __: u8,
    /// How the destination is to be read.
    #[bits(1)]
    pub destination_mode: DestinationMode,
    /// Redirection hint: any one of the destinations will do.
    pub redirection_hint: bool,
    /// Remappable format: the rest of the address names an interrupt remapping table entry.
    pub remappable: bool,
    /// Destination bits 14:8, where the guest was told that they are looked at.
    #[bits(7)]
    pub extended_destination: u8,
    /// Destination bits 7:0.
    pub destination: u8,
    /// 0xfee.
    #[bits(12, default = 0xfee)]
    pub window: u16,
}

/// Data of a message inside the interrupt window.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MsiData {
    /// The vector.
    pub vector: u8,
    /// A [`DeliveryMode`], or one of the two reserved encodings.
    #[bits(3)]
    pub delivery_mode: u8,
    #[bits(3)]
    __: u8,
    /// Level assert. Virtual messages always assert.
    pub assert: bool,
    /// Trigger mode.
    #[bits(1)]
    pub trigger: Trigger,
    __: u16,
}

/// How an interrupt is triggered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Trigger {
    /// Once for each transition.
    #[default]
    Edge,
    /// For as long as the level stands; the end of interrupt is reported back.
    Level,
}

impl Trigger {
    pub(crate) const fn from_bits(bits: u8) -> Self {
        if bits == 0 { Self::Edge } else { Self::Level }
    }

    pub(crate) const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// How a destination is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum DestinationMode {
    /// An APIC id.
    #[default]
    Physical,
    /// A set of logical ids, by the receivers' logical destination registers.
    Logical,
}

impl DestinationMode {
    pub(crate) const fn from_bits(bits: u8) -> Self {
        if bits == 0 { Self::Physical } else { Self::Logical }
    }

    pub(crate) const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// What the receiving local APIC is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum DeliveryMode {
    /// Take the vector, on every destination.
    #[default]
    Fixed = 0,
    /// Take the vector, on the destination with the lowest priority.
    LowestPriority = 1,
    /// System management interrupt.
    Smi = 2,
    /// Non-maskable interrupt.
    Nmi = 4,
    /// Reset the processor to wait for start-up.
    Init = 5,
    /// Fetch the vector from the 8259.
    ExtInt = 7,
}

impl DeliveryMode {
    /// The mode of a three-bit encoding; `None` for the reserved ones, 3 and 6.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }

    /// Whether the mode puts its vector into the IRR, the only kind that can be level-triggered.
    pub const fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// Whether a message may go to any one of its destinations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RedirectionHint {
    /// To all of them.
    #[default]
    All,
    /// To one of them. KVM takes this for lowest priority, whatever the delivery mode says.
    Any,
}

/// Which bits of a message's address hold its destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DestinationFormat {
    /// Address 19:12, ids 0 to 255.
    #[default]
    Eight,
    /// Address 11:5 on top of them, ids 0 to 32,767. Only where the guest was told so
    /// (KVM_FEATURE_MSI_EXT_DEST_ID, CPUID 0x4000_0001 EAX bit 15).
    Fifteen,
    /// Address 63:40 on top of address 19:12, all ids. Only what an IOMMU sends of its own has this form (VT-d, fault
    /// event upper address register).
    ThirtyTwo,
}

/// A translated message: what it asks of the local APICs. What a backend delivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Interrupt {
    /// APIC id or logical destination, 32 bits.
    pub destination: u32,
    /// How to read it.
    pub destination_mode: DestinationMode,
    /// Whether one destination is enough.
    pub redirection_hint: RedirectionHint,
    /// What to do there.
    pub delivery_mode: DeliveryMode,
    /// Whether the end of interrupt is to be reported.
    pub trigger: Trigger,
    /// The vector, 16 to 255 for those that have one; lower ones are refused by the APIC.
    pub vector: u8,
}

/// What came of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Acceptance {
    /// At least one local APIC has it, or had it pending already.
    Accepted,
    /// No destination took it: there is none of that id, or it is switched off.
    Refused,
}

/// Whether a message may be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Masking {
    /// It may.
    #[default]
    Unmasked,
    /// It waits until it may again: pending.
    Masked,
    /// Its function is switched off: it is dropped.
    Disabled,
}

/// Why a message is not an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAnInterrupt {
    /// Its address is outside the interrupt window: a plain write to memory.
    #[error("address {0:#x} is outside the interrupt window")]
    Memory(u64),
    /// Its delivery mode is reserved: dropped.
    #[error("delivery mode {0} is reserved")]
    ReservedDeliveryMode(u8),
}

impl Message {
    /// Whether the address lies in the interrupt window. A message elsewhere is a plain memory write.
    pub const fn is_interrupt(&self) -> bool {
        self.address >= WINDOW_START && self.address < WINDOW_END
    }

    /// What the message asks for on a machine without interrupt remapping.
    ///
    /// The level-assert bit is not looked at, as in KVM; the remappable bit neither, since without a
    /// remapper it is a reserved bit.
    #[inline]
    pub fn decode(&self, format: DestinationFormat) -> Result<Interrupt, NotAnInterrupt> {
        let high = match format {
            DestinationFormat::ThirtyTwo => self.address & HIGH_DESTINATION,
            DestinationFormat::Eight | DestinationFormat::Fifteen => 0,
        };
        if !(Self { address: self.address & !high, ..*self }).is_interrupt() {
            return Err(NotAnInterrupt::Memory(self.address));
        }
        let address = MsiAddress::from_bits((self.address & 0xffff_ffff) as u32);
        let data = MsiData::from_bits(self.data);
        let delivery_mode = DeliveryMode::from_bits(data.delivery_mode())
            .ok_or(NotAnInterrupt::ReservedDeliveryMode(data.delivery_mode()))?;
        let extended = match format {
            DestinationFormat::Eight => 0,
            DestinationFormat::Fifteen => u32::from(address.extended_destination()) << 8,
            DestinationFormat::ThirtyTwo => (high >> 32) as u32,
        };
        Ok(Interrupt {
            destination: extended | u32::from(address.destination()),
            destination_mode: address.destination_mode(),
            redirection_hint: if address.redirection_hint() { RedirectionHint::Any } else { RedirectionHint::All },
            delivery_mode,
            // NMI, SMI, INIT and ExtINT have no end to report: level is treated as edge.
            trigger: if delivery_mode.has_vector() { data.trigger() } else { Trigger::Edge },
            vector: data.vector(),
        })
    }
}

impl Interrupt {
    /// The address and data that mean this interrupt to KVM once it was told to use 32-bit ids
    /// (KVM_X2APIC_API_USE_32BIT_IDS): destination bits 31:8 in address bits 63:40.
    #[inline]
    pub fn encode(&self) -> (u64, u32) {
        let address = MsiAddress::new()
            .with_destination_mode(self.destination_mode)
            .with_redirection_hint(self.redirection_hint == RedirectionHint::Any)
            .with_destination((self.destination & 0xff) as u8);
        let high = u64::from(self.destination & !0xff) << 32;
        (high | u64::from(address.into_bits()), self.data())
    }

    /// The message that means this interrupt to a guest's own chipset, or `None` if the destination does
    /// not fit the format. [`Message::decode`] gives the interrupt back.
    pub fn message(&self, format: DestinationFormat, requester: RequesterId) -> Option<Message> {
        let most = match format {
            DestinationFormat::Eight => 0xff,
            DestinationFormat::Fifteen => 0x7fff,
            DestinationFormat::ThirtyTwo => {
                let (address, data) = self.encode();
                return Some(Message { address, data, requester });
            }
        };
        let address = MsiAddress::new()
            .with_destination_mode(self.destination_mode)
            .with_redirection_hint(self.redirection_hint == RedirectionHint::Any)
            .with_extended_destination((self.destination >> 8 & 0x7f) as u8)
            .with_destination((self.destination & 0xff) as u8);
        (self.destination <= most).then(|| Message {
            address: u64::from(address.into_bits()),
            data: self.data(),
            requester,
        })
    }

    fn data(&self) -> u32 {
        MsiData::new()
            .with_vector(self.vector)
            .with_delivery_mode(self.delivery_mode as u8)
            .with_assert(self.trigger == Trigger::Level)
            .with_trigger(self.trigger)
            .into_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use DeliveryMode::{ExtInt, Fixed, Init, LowestPriority, Nmi, Smi};

    fn every_kind() -> impl Iterator<Item = Interrupt> {
        [Fixed, LowestPriority, Smi, Nmi, Init, ExtInt].into_iter().flat_map(|delivery_mode| {
            [DestinationMode::Physical, DestinationMode::Logical].into_iter().flat_map(move |destination_mode| {
                [RedirectionHint::All, RedirectionHint::Any].into_iter().flat_map(move |redirection_hint| {
                    [Trigger::Edge, Trigger::Level].into_iter().filter_map(move |trigger| {
                        (trigger == Trigger::Edge || matches!(delivery_mode, Fixed | LowestPriority)).then_some(
                            Interrupt {
                                destination_mode,
                                redirection_hint,
                                delivery_mode,
                                trigger,
                                ..Interrupt::default()
                            },
                        )
                    })
                })
            })
        })
    }

    /// What KVM does with the form that `encode` gives.
    fn as_kvm_reads(address: u64, data: u32) -> Interrupt {
        assert_eq!(address >> 32 & 0xff, 0, "KVM refuses a non-zero low byte of address_hi");
        let low = Message { address: address & 0xffff_ffff, data, ..Message::default() };
        let mut read = low.decode(DestinationFormat::Eight).unwrap();
        read.destination |= (address >> 32) as u32;
        read
    }

    #[test]
    fn every_destination_of_eight_and_fifteen_bits_survives_the_round_trip() {
        for kind in every_kind() {
            for (format, most) in [(DestinationFormat::Eight, 0xff), (DestinationFormat::Fifteen, 0x7fff)] {
                for destination in 0..=most {
                    let sent = Interrupt { destination, vector: destination as u8, ..kind };
                    let message = sent.message(format, RequesterId(7)).unwrap();
                    assert_eq!(message.decode(format), Ok(sent));
                }
                assert_eq!(Interrupt { destination: most + 1, ..kind }.message(format, RequesterId(7)), None);
            }
        }
    }

    #[test]
    fn every_vector_survives_the_round_trip() {
        for kind in every_kind() {
            for vector in 0..=255 {
                let sent = Interrupt { vector, ..kind };
                let message = sent.message(DestinationFormat::Eight, RequesterId::default()).unwrap();
                assert_eq!(message.decode(DestinationFormat::Eight), Ok(sent));
                let (address, data) = sent.encode();
                assert_eq!(as_kvm_reads(address, data), sent);
            }
        }
    }

    #[test]
    fn a_level_is_asserted_and_an_edge_is_not() {
        let edge = Interrupt { vector: 0x31, ..Interrupt::default() };
        let level = Interrupt { trigger: Trigger::Level, ..edge };
        assert_eq!([edge, level].map(|interrupt| interrupt.encode().1), [0x0031, 0xc031]);
    }

    #[test]
    fn a_destination_of_32_bits_moves_to_the_high_address() {
        let low = 0..=0xffff;
        let bits = (0..32).map(|bit| 1 << bit);
        for destination in low.chain(bits).chain([u32::MAX, 0xffff_ff00, 0x8000_0001]) {
            let sent = Interrupt { destination, vector: 0x31, ..Interrupt::default() };
            let (address, data) = sent.encode();
            assert_eq!(as_kvm_reads(address, data), sent);
        }
    }

    #[test]
    fn the_form_of_an_iommus_own_events_reaches_every_destination() {
        for kind in every_kind() {
            for destination in (0..=0xffff).chain((16..32).map(|bit| 1 << bit)).chain([u32::MAX]) {
                let sent = Interrupt { destination, vector: destination as u8, ..kind };
                let message = sent.message(DestinationFormat::ThirtyTwo, RequesterId(7)).unwrap();
                assert_eq!(message.decode(DestinationFormat::ThirtyTwo), Ok(sent));
                // To everybody else the high address is outside the window.
                assert_eq!(message.decode(DestinationFormat::Eight).is_ok(), destination <= 0xff);
            }
        }
        let below = Message { address: 1 << 32 | WINDOW_START, ..Message::default() };
        let memory = Err(NotAnInterrupt::Memory(below.address));
        assert_eq!(below.decode(DestinationFormat::ThirtyTwo), memory, "address 39:32 is no part of it");
    }

    #[test]
    fn the_extended_destination_is_ignored_where_the_guest_was_not_told_of_it() {
        let far = Interrupt { destination: 0x1203, vector: 0x31, ..Interrupt::default() };
        let message = far.message(DestinationFormat::Fifteen, RequesterId::default()).unwrap();
        assert_eq!(message.decode(DestinationFormat::Eight).unwrap().destination, 3);
    }

    #[test]
    fn a_message_outside_the_window_is_a_memory_write() {
        for address in [0, 0x1000, WINDOW_START - 4, WINDOW_END, 0x1_0000_0000 + WINDOW_START, u64::MAX] {
            let message = Message { address, data: 0x31, ..Message::default() };
            assert_eq!(message.decode(DestinationFormat::Fifteen), Err(NotAnInterrupt::Memory(address)));
        }
    }

    #[test]
    fn reserved_delivery_modes_are_no_interrupts() {
        for mode in [3, 6] {
            let message = Message { address: WINDOW_START, data: u32::from(mode) << 8 | 0x31, ..Message::default() };
            let decoded = message.decode(DestinationFormat::Eight);
            assert_eq!(decoded, Err(NotAnInterrupt::ReservedDeliveryMode(mode)));
        }
    }

    #[test]
    fn a_level_nmi_smi_init_or_extint_is_an_edge() {
        for mode in [2, 4, 5, 7] {
            let message = Message { address: WINDOW_START, data: 1 << 15 | mode << 8, ..Message::default() };
            assert_eq!(message.decode(DestinationFormat::Eight).unwrap().trigger, Trigger::Edge);
        }
    }

    #[test]
    fn a_requester_id_reads_like_lspci() {
        assert_eq!(RequesterId::new(0, 31, 7).to_string(), "00:1f.7");
        assert_eq!(RequesterId(0xff00).to_string(), "ff:00.0");
    }
}
