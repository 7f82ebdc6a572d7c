//! The local APIC's registers as the SDM draws them: where they are, what is in them, and which bits a
//! guest may write.
//!
//! xAPIC and x2APIC number the registers alike: offset `n << 4` in the page is MSR `0x800 + n`.

use super::Mode;
use crate::msg::DestinationMode;
use bitfield_struct::bitfield;

/// The MSR that holds the mode and the place of the page.
pub(super) const IA32_APIC_BASE: u32 = 0x1b;
/// The MSR of register 0 in x2APIC mode.
pub(super) const X2APIC_MSRS: u32 = 0x800;

/// Version 0x15 (an integrated APIC), six LVT entries, and no bit 24: EOI broadcasts cannot be suppressed,
/// so bit 12 of the spurious interrupt vector register is reserved.
pub(super) const VERSION: u32 = 0x0005_0015;

/// Vectors below this one are reserved for exceptions: neither sent nor received (11.5.2).
pub(super) const FIRST_LEGAL_VECTOR: u8 = 16;

/// Every destination, to a receiver in xAPIC mode.
pub(super) const XAPIC_BROADCAST: u32 = 0xff;
/// Every destination, to a receiver in x2APIC mode.
pub(super) const X2APIC_BROADCAST: u32 = 0xffff_ffff;

/// The delivery mode that only the ICR has.
pub(super) const START_UP: u8 = 0b110;

/// A register by its name in table 11-1 (xAPIC) or 11-6 (x2APIC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Id,
    Version,
    TaskPriority,
    ArbitrationPriority,
    ProcessorPriority,
    EndOfInterrupt,
    RemoteRead,
    LogicalDestination,
    DestinationFormat,
    SpuriousVector,
    /// One of eight words of the in-service register.
    InService(u32),
    /// One of eight words of the trigger mode register.
    TriggerMode(u32),
    /// One of eight words of the interrupt request register.
    InterruptRequest(u32),
    ErrorStatus,
    /// In x2APIC mode all 64 bits.
    InterruptCommand,
    InterruptCommandHigh,
    LocalVector(LocalVector),
    InitialCount,
    CurrentCount,
    DivideConfiguration,
    SelfIpi,
}

impl Register {
    /// The register with a number; `None` where the mode has none.
    pub(super) const fn at(number: u64, mode: Mode) -> Option<Self> {
        let x2apic = matches!(mode, Mode::X2apic);
        Some(match number {
            0x02 => Self::Id,
            0x03 => Self::Version,
            0x08 => Self::TaskPriority,
            0x09 if !x2apic => Self::ArbitrationPriority,
            0x0a => Self::ProcessorPriority,
            0x0b => Self::EndOfInterrupt,
            0x0c if !x2apic => Self::RemoteRead,
            0x0d => Self::LogicalDestination,
            0x0e if !x2apic => Self::DestinationFormat,
            0x0f => Self::SpuriousVector,
            0x10..=0x17 => Self::InService((number & 7) as u32),
            0x18..=0x1f => Self::TriggerMode((number & 7) as u32),
            0x20..=0x27 => Self::InterruptRequest((number & 7) as u32),
            0x28 => Self::ErrorStatus,
            0x30 => Self::InterruptCommand,
            0x31 if !x2apic => Self::InterruptCommandHigh,
            0x32 => Self::LocalVector(LocalVector::Timer),
            0x33 => Self::LocalVector(LocalVector::Thermal),
            0x34 => Self::LocalVector(LocalVector::PerformanceCounter),
            0x35 => Self::LocalVector(LocalVector::Lint0),
            0x36 => Self::LocalVector(LocalVector::Lint1),
            0x37 => Self::LocalVector(LocalVector::Error),
            0x38 => Self::InitialCount,
            0x39 => Self::CurrentCount,
            0x3e => Self::DivideConfiguration,
            0x3f if x2apic => Self::SelfIpi,
            _ => return None,
        })
    }

    /// Whether it has no value to read: zeros in xAPIC mode, #GP in x2APIC mode.
    pub(super) const fn is_write_only(self) -> bool {
        matches!(self, Self::EndOfInterrupt | Self::SelfIpi)
    }

    /// The bits that a guest may write; `None` for a register that is read-only. Of the ICR the low half.
    pub(super) const fn writable(self, mode: Mode) -> Option<u32> {
        match self {
            Self::TaskPriority | Self::SelfIpi => Some(0xff),
            // A write is the command: in xAPIC mode its value is not looked at, in x2APIC mode it is 0.
            Self::EndOfInterrupt | Self::ErrorStatus => Some(0),
            Self::LogicalDestination if matches!(mode, Mode::X2apic) => None,
            Self::LogicalDestination | Self::InterruptCommandHigh => Some(0xff00_0000),
            Self::DestinationFormat => Some(0xf000_0000),
            Self::SpuriousVector => Some(0x3ff),
            Self::InterruptCommand => Some(0x000c_cfff),
            Self::LocalVector(entry) => Some(entry.writable()),
            Self::InitialCount => Some(u32::MAX),
            Self::DivideConfiguration => Some(0b1011),
            Self::Id
            | Self::Version
            | Self::ArbitrationPriority
            | Self::ProcessorPriority
            | Self::RemoteRead
            | Self::InService(_)
            | Self::TriggerMode(_)
            | Self::InterruptRequest(_)
            | Self::CurrentCount => None,
        }
    }

    /// The bits that are neither writable nor reserved: writing them is no fault and has no effect.
    pub(super) const fn read_only(self) -> u32 {
        match self {
            // Delivery status.
            Self::InterruptCommand => 1 << 12,
            // Delivery status and, of the two pins, remote IRR.
            Self::LocalVector(LocalVector::Lint0 | LocalVector::Lint1) => 1 << 12 | 1 << 14,
            Self::LocalVector(_) => 1 << 12,
            _ => 0,
        }
    }
}

/// An entry of the local vector table (figure 11-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocalVector {
    Timer,
    Thermal,
    PerformanceCounter,
    Lint0,
    Lint1,
    Error,
}

impl LocalVector {
    pub(super) const ALL: [Self; 6] =
        [Self::Timer, Self::Thermal, Self::PerformanceCounter, Self::Lint0, Self::Lint1, Self::Error];

    pub(super) const fn writable(self) -> u32 {
        match self {
            // Vector, mask, periodic. TSC deadline mode is not there: nor is the MSR.
            Self::Timer => 0x0003_00ff,
            // Vector, delivery mode, mask.
            Self::Thermal | Self::PerformanceCounter => 0x0001_07ff,
            // Vector, delivery mode, polarity, trigger mode, mask.
            Self::Lint0 | Self::Lint1 => 0x0001_a7ff,
            // Vector, mask.
            Self::Error => 0x0001_00ff,
        }
    }
}

/// What the entries of the local vector table have in common.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct LocalVectorEntry {
    pub vector: u8,
    #[bits(3)]
    pub delivery_mode: u8,
    #[bits(5)]
    __: u8,
    pub mask: bool,
    #[bits(15)]
    __: u16,
}

/// IA32_APIC_BASE (figure 11-5, table 11-5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct ApicBase {
    __: u8,
    /// The bootstrap processor.
    pub bsp: bool,
    __: bool,
    /// x2APIC mode.
    pub extd: bool,
    /// Globally enabled.
    pub en: bool,
    /// Page number. How many of the bits exist is CPUID's MAXPHYADDR, which is at most 52.
    #[bits(40, default = 0xfee00)]
    pub base: u64,
    #[bits(12)]
    __: u16,
}

impl ApicBase {
    pub(super) const RESERVED: u64 = 0xfff0_0000_0000_02ff;
}

/// Spurious interrupt vector register (figure 11-23).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct SpuriousVector {
    #[bits(default = 0xff)]
    pub vector: u8,
    pub software_enable: bool,
    /// Stored, without a function.
    pub focus_checking: bool,
    #[bits(22)]
    __: u32,
}

/// Error status register (figure 11-9): the errors that this APIC can detect.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct ErrorStatus {
    #[bits(5)]
    __: u8,
    pub send_illegal_vector: bool,
    pub receive_illegal_vector: bool,
    pub illegal_register_address: bool,
    #[bits(24)]
    __: u32,
}

impl ErrorStatus {
    pub(super) const DETECTED: u32 = 0xe0;
}

/// Low half of the interrupt command register (figures 11-12 and 11-28).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct InterruptCommand {
    pub vector: u8,
    #[bits(3)]
    pub delivery_mode: u8,
    #[bits(1)]
    pub destination_mode: DestinationMode,
    pub delivery_status: bool,
    __: bool,
    pub level_assert: bool,
    pub level_triggered: bool,
    #[bits(2)]
    __: u8,
    #[bits(2)]
    pub shorthand: u8,
    #[bits(12)]
    __: u16,
}

/// A set of vectors: IRR, ISR or TMR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Vectors([u64; 4]);

impl Vectors {
    pub(super) const fn from_words(words: [u64; 4]) -> Self {
        Self(words)
    }

    pub(super) const fn words(self) -> [u64; 4] {
        self.0
    }

    pub(super) fn insert(&mut self, vector: u8) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            *word |= 1 << (vector & 63);
        }
    }

    pub(super) fn remove(&mut self, vector: u8) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 6)) {
            *word &= !(1 << (vector & 63));
        }
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0.get(usize::from(vector >> 6)).is_some_and(|word| word >> (vector & 63) & 1 != 0)
    }

    /// The highest vector. At most four words are looked at.
    pub(super) fn highest(&self) -> Option<u8> {
        let mut words = (0u8..4).zip(self.0).rev();
        words.find_map(|(number, word)| Some(number << 6 | u8::try_from(word.checked_ilog2()?).ok()?))
    }

    /// One of the eight 32-bit registers that show the set.
    pub(super) fn register(&self, number: u32) -> u32 {
        let word = self.0.get((number >> 1 & 3) as usize).copied().unwrap_or_default();
        if number & 1 == 0 { (word & 0xffff_ffff) as u32 } else { (word >> 32) as u32 }
    }
}
