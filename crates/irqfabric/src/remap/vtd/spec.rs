//! The registers, the table's entries and the queue's descriptors as the specification lays them out.

use crate::msg::{DestinationMode, Trigger};
use bitfield_struct::bitfield;

/// A double word of the register page, by its offset (11.4). Registers of 64 bits are two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// VER_REG.
    Version,
    /// CAP_REG.
    Capability(Half),
    /// ECAP_REG.
    ExtendedCapability(Half),
    /// GCMD_REG.
    GlobalCommand,
    /// GSTS_REG.
    GlobalStatus,
    /// RTADDR_REG.
    RootTable(Half),
    /// FSTS_REG.
    FaultStatus,
    /// FECTL_REG and those behind it.
    FaultEvent(EventRegister),
    /// IQH_REG.
    QueueHead,
    /// IQT_REG.
    QueueTail,
    /// IQA_REG.
    QueueAddress(Half),
    /// ICS_REG.
    CompletionStatus,
    /// IECTL_REG and those behind it.
    CompletionEvent(EventRegister),
    /// IRTA_REG.
    RemappingTable(Half),
    /// One of the four double words of an FRCD_REG.
    FaultRecord { record: usize, word: usize },
}

/// Which half of a register of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Low,
    High,
}

/// The four registers that an event of the unit itself has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventRegister {
    Control,
    Data,
    Address,
    UpperAddress,
}

impl Register {
    /// What lies at an offset that is a multiple of four; `None` for what reads zero and ignores writes. So do
    /// CCMD_REG and IOTLB_REG: there is no DMA translation to invalidate, and a command is over before it can be seen.
    pub(super) const fn at(offset: u32) -> Option<Self> {
        Some(match offset {
            0x00 => Self::Version,
            0x08 => Self::Capability(Half::Low),
            0x0c => Self::Capability(Half::High),
            0x10 => Self::ExtendedCapability(Half::Low),
            0x14 => Self::ExtendedCapability(Half::High),
            0x18 => Self::GlobalCommand,
            0x1c => Self::GlobalStatus,
            0x20 => Self::RootTable(Half::Low),
            0x24 => Self::RootTable(Half::High),
            0x34 => Self::FaultStatus,
            0x38 => Self::FaultEvent(EventRegister::Control),
            0x3c => Self::FaultEvent(EventRegister::Data),
            0x40 => Self::FaultEvent(EventRegister::Address),
            0x44 => Self::FaultEvent(EventRegister::UpperAddress),
            0x80 => Self::QueueHead,
            0x88 => Self::QueueTail,
            0x90 => Self::QueueAddress(Half::Low),
            0x94 => Self::QueueAddress(Half::High),
            0x9c => Self::CompletionStatus,
            0xa0 => Self::CompletionEvent(EventRegister::Control),
            0xa4 => Self::CompletionEvent(EventRegister::Data),
            0xa8 => Self::CompletionEvent(EventRegister::Address),
            0xac => Self::CompletionEvent(EventRegister::UpperAddress),
            0xb8 => Self::RemappingTable(Half::Low),
            0xbc => Self::RemappingTable(Half::High),
            FAULT_RECORDS..FAULT_RECORDS_END => {
                let word = (offset.wrapping_sub(FAULT_RECORDS) / 4) as usize;
                Self::FaultRecord { record: word / 4, word: word % 4 }
            }
            _ => return None,
        })
    }
}

impl Half {
    /// This half of a register.
    pub(super) const fn of(self, register: u64) -> u32 {
        let [low, high] = halves(register);
        match self {
            Self::Low => low,
            Self::High => high,
        }
    }

    /// The register with this half written, as far as `writable` goes.
    pub(super) const fn merge(self, register: u64, writable: u64, value: u32) -> u64 {
        let (written, value) = match self {
            Self::Low => (0xffff_ffff, value as u64),
            Self::High => (0xffff_ffff << 32, (value as u64) << 32),
        };
        let mask = writable & written;
        register & !mask | value & mask
    }
}

/// The halves of a register, the low one first.
const fn halves(register: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = register.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// Architecture version 1.0.
pub(super) const VERSION: u32 = 0x10;

/// How many fault recording registers there are.
pub(super) const FAULT_REGISTERS: u8 = 8;

const FAULT_RECORDS: u32 = 0x220;
const FAULT_RECORDS_END: u32 = FAULT_RECORDS + 16 * FAULT_REGISTERS as u32;
const IOTLB: u32 = 0xf00;

/// CAP_REG, as far as anything of it is not zero. No address width (SAGAW) is supported: Linux takes that for "no DMA
/// translation" and uses the unit for interrupts only (`alloc_iommu` in `drivers/iommu/intel/dmar.c`, since 5.10). No
/// caching mode: what is not present is not cached.
#[bitfield(u64)]
struct Capability {
    __: u16,
    /// MGAW: the guest's address width less one.
    #[bits(6)]
    maximum_guest_address_width: u8,
    #[bits(2)]
    __: u8,
    /// FRO, in units of 16 bytes.
    #[bits(10)]
    fault_register_offset: u32,
    #[bits(6)]
    __: u8,
    /// NFR: their number less one.
    fault_registers: u8,
    #[bits(14)]
    __: u16,
    /// ESIRTPS: SIRTP invalidates by itself.
    enhanced_set_interrupt_remap_table_pointer: bool,
    __: bool,
}

pub(super) const CAPABILITY: u64 = Capability::new()
    .with_maximum_guest_address_width(47)
    .with_fault_register_offset(FAULT_RECORDS / 16)
    .with_fault_registers(FAULT_REGISTERS - 1)
    .with_enhanced_set_interrupt_remap_table_pointer(true)
    .into_bits();

/// ECAP_REG, as far as anything of it is not zero.
#[bitfield(u64)]
struct ExtendedCapability {
    /// C: accesses to tables are coherent.
    coherent: bool,
    /// QI.
    queued_invalidation: bool,
    __: bool,
    /// IR.
    interrupt_remapping: bool,
    /// EIM: destinations have 32 bits.
    extended_interrupt_mode: bool,
    #[bits(3)]
    __: u8,
    /// IRO, in units of 16 bytes.
    #[bits(10)]
    iotlb_register_offset: u32,
    #[bits(2)]
    __: u8,
    /// MHMV: the largest mask that an interrupt entry cache invalidation may name.
    #[bits(4)]
    maximum_handle_mask: u8,
    #[bits(40)]
    __: u64,
}

pub(super) const EXTENDED_CAPABILITY: u64 = ExtendedCapability::new()
    .with_coherent(true)
    .with_queued_invalidation(true)
    .with_interrupt_remapping(true)
    .with_extended_interrupt_mode(true)
    .with_iotlb_register_offset(IOTLB / 16)
    .with_maximum_handle_mask(15)
    .into_bits();

/// Bits of GCMD_REG and GSTS_REG, which lie alike.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct Global {
    #[bits(23)]
    __: u32,
    /// CFI, CFIS: messages of compatibility format pass.
    pub compatibility_format: bool,
    /// SIRTP, IRTPS.
    pub remapping_table_pointer: bool,
    /// IRE, IRES.
    pub remapping: bool,
    /// QIE, QIES.
    pub queued_invalidation: bool,
    #[bits(3)]
    __: u8,
    /// SRTP, RTPS.
    pub root_table_pointer: bool,
    /// TE, TES.
    __: bool,
}

/// RTADDR_REG: the address only, since there is no scalable mode.
pub(super) const ROOT_TABLE_WRITABLE: u64 = !0xfff;

/// IRTA_REG.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct RemappingTable {
    /// S: the table has 2^(S+1) entries.
    #[bits(4)]
    pub size: u32,
    #[bits(7)]
    __: u8,
    /// EIME: destinations have 32 bits.
    pub extended_interrupt_mode: bool,
    #[bits(52)]
    pub page: u64,
}

impl RemappingTable {
    pub(super) const WRITABLE: u64 =
        Self::new().with_size(0xf).with_extended_interrupt_mode(true).with_page((1 << 52) - 1).into_bits();
}

/// IQA_REG. Descriptors have 128 bits: DW is reserved without scalable mode.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct QueueAddress {
    /// QS: the ring has 2^QS pages of 256 descriptors.
    #[bits(3)]
    pub size: u32,
    #[bits(9)]
    __: u16,
    #[bits(52)]
    pub page: u64,
}

impl QueueAddress {
    pub(super) const WRITABLE: u64 = Self::new().with_size(7).with_page((1 << 52) - 1).into_bits();

    pub(super) const fn address(self) -> u64 {
        self.into_bits() & !0xfff
    }

    /// In bytes, a power of two.
    pub(super) const fn bytes(self) -> u32 {
        0x1000 << self.size()
    }
}

/// Bits of IQH_REG and IQT_REG: the offset of a descriptor into the ring.
pub(super) const QUEUE_OFFSET: u32 = 0x7_fff0;

/// FSTS_REG.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct FaultStatus {
    /// PFO: a fault was dropped for want of a recording register.
    pub overflow: bool,
    /// PPF: some recording register holds a fault.
    pub pending: bool,
    #[bits(2)]
    __: u8,
    /// IQE: the descriptor at the head of the queue is wrong.
    pub queue_error: bool,
    #[bits(3)]
    __: u8,
    /// FRI: the recording register that made PPF set.
    pub first: u8,
    __: u16,
}

/// FECTL_REG and IECTL_REG.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct EventControl {
    #[bits(30)]
    __: u32,
    /// IP.
    pub pending: bool,
    /// IM.
    pub masked: bool,
}

/// An event's message address register, of which the lowest two bits are reserved.
pub(super) const EVENT_ADDRESS_WRITABLE: u64 = !3;

/// ICS_REG.IWC: a wait descriptor that asks for an interrupt has completed.
pub(super) const WAIT_COMPLETE: u32 = 1;

/// FRCD_REG.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub(super) struct FaultRecord {
    #[bits(48)]
    __: u64,
    /// FI, of which an interrupt's fault uses the upper 16 bits: its index.
    pub index: u16,
    /// SID.
    pub source: u16,
    __: u16,
    /// FR.
    pub reason: u8,
    #[bits(23)]
    __: u32,
    /// F.
    pub fault: bool,
}

/// An interrupt remapping table entry of remapped format (9.9).
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub(super) struct Entry {
    /// P.
    pub present: bool,
    /// FPD: qualified faults of this entry are not recorded, present or not.
    pub fault_processing_disable: bool,
    /// DM.
    #[bits(1)]
    pub destination_mode: DestinationMode,
    /// RH.
    pub redirection_hint: bool,
    /// TM.
    #[bits(1)]
    pub trigger: Trigger,
    /// DLM.
    #[bits(3)]
    pub delivery_mode: u8,
    /// For software.
    #[bits(4)]
    __: u8,
    #[bits(3)]
    __: u8,
    /// IM, in the specification: posted format.
    pub posted: bool,
    /// V.
    pub vector: u8,
    __: u8,
    /// DST.
    pub destination: u32,
    /// SID.
    pub source: u16,
    /// SQ.
    #[bits(2)]
    pub source_qualifier: u8,
    /// SVT.
    #[bits(2)]
    pub source_validation: u8,
    #[bits(44)]
    __: u64,
}

impl Entry {
    /// In bytes.
    pub(super) const SIZE: u64 = 16;

    /// The bits that must be zero in a present entry. Posted format is among them: CAP_REG.PI is clear.
    pub(super) const RESERVED: u128 = 0b111 << 12 | 1 << 15 | 0xff << 24 | !((1 << 84) - 1);

    /// Those that must be zero while destinations have 8 bits, at 47:40.
    pub(super) const RESERVED_XAPIC: u128 = 0xffff_00ff << 32;
}

/// An invalidation queue descriptor of 128 bits (6.5.2), as far as anybody here looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Descriptor {
    /// Context cache, IOTLB or device TLB: nothing of those is kept here.
    Translation,
    /// Interrupt entry cache, all of it.
    AllEntries,
    /// Interrupt entry cache, the indices that differ from this one only in the lowest `mask` bits.
    Entries { index: u16, mask: u32 },
    /// Wait: the descriptors before this one are done.
    Wait { status: Option<(u64, u32)>, interrupt: bool },
}

#[bitfield(u128)]
struct EntriesDescriptor {
    #[bits(4)]
    kind: u8,
    by_index: bool,
    #[bits(22)]
    __: u32,
    #[bits(5)]
    mask: u32,
    index: u16,
    #[bits(80)]
    __: u128,
}

#[bitfield(u128)]
struct WaitDescriptor {
    #[bits(4)]
    kind: u8,
    interrupt: bool,
    status_write: bool,
    /// FN: descriptors behind it wait for it. All do, always.
    fence: bool,
    #[bits(25)]
    __: u32,
    data: u32,
    #[bits(2)]
    __: u8,
    #[bits(62)]
    address: u64,
}

impl Descriptor {
    /// In bytes.
    pub(super) const SIZE: u32 = 16;

    /// `None` for a type that is not known, or with reserved bits set: an invalidation queue error.
    pub(super) fn decode(bits: u128) -> Option<Self> {
        const TYPE_EXTENSION: u128 = 0b111 << 9;
        const ENTRIES_RESERVED: u128 = !0xffff_f800_001f;
        const WAIT_RESERVED: u128 = 0xffff_ff80 | 0b11 << 64;
        match bits & (TYPE_EXTENSION | 0xf) {
            1..=3 => Some(Self::Translation),
            4 if bits & ENTRIES_RESERVED == 0 => {
                let entries = EntriesDescriptor::from_bits(bits);
                Some(if entries.by_index() {
                    Self::Entries { index: entries.index(), mask: entries.mask() }
                } else {
                    Self::AllEntries
                })
            }
            5 if bits & WAIT_RESERVED == 0 => {
                let wait = WaitDescriptor::from_bits(bits);
                let status = wait.status_write().then(|| (wait.address() << 2, wait.data()));
                Some(Self::Wait { status, interrupt: wait.interrupt() })
            }
            _ => None,
        }
    }
}
