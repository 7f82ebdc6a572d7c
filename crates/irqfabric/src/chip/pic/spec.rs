//! The command words as the data sheet lays them out.

use bitfield_struct::bitfield;

/// Initialization command word 1: a write to the command port with bit 4 set.
#[bitfield(u8)]
pub(super) struct Icw1 {
    /// ICW4 is needed. Without it all that it could say is off.
    pub ic4: bool,
    /// Single: no ICW3.
    pub sngl: bool,
    /// Call address interval of MCS-80 mode.
    __: bool,
    /// Level triggered mode: the ELCR's business here.
    __: bool,
    pub is_icw1: bool,
    /// Vector address bits of MCS-80 mode.
    #[bits(3)]
    __: u8,
}

/// Initialization command word 4.
#[bitfield(u8)]
pub(super) struct Icw4 {
    /// 8086 mode.
    __: bool,
    pub auto_eoi: bool,
    /// Buffered mode.
    #[bits(2)]
    __: u8,
    pub special_fully_nested: bool,
    #[bits(3)]
    __: u8,
}

/// Operation command word 2: a write to the command port with bits 4 and 3 clear.
#[bitfield(u8)]
pub(super) struct Ocw2 {
    #[bits(3)]
    pub level: u8,
    #[bits(2)]
    __: u8,
    pub eoi: bool,
    /// Specific: `level` counts.
    pub sl: bool,
    pub rotate: bool,
}

/// Operation command word 3: a write to the command port with bit 4 clear and bit 3 set.
#[bitfield(u8)]
pub(super) struct Ocw3 {
    /// Read the in-service register, not the interrupt request register.
    pub ris: bool,
    /// `ris` counts.
    pub rr: bool,
    pub poll: bool,
    pub is_ocw3: bool,
    __: bool,
    pub smm: bool,
    /// `smm` counts.
    pub esmm: bool,
    __: bool,
}

/// What a polled read answers.
#[bitfield(u8)]
pub(super) struct PollWord {
    #[bits(3)]
    pub level: u8,
    #[bits(4)]
    __: u8,
    pub interrupt: bool,
}
