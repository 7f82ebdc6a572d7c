//! What a machine is put through, one step after the other.

use crate::Number;
use arbitrary::Arbitrary;

#[derive(Arbitrary, Debug)]
pub(super) enum Step {
    // Devices.
    Set(u8, bool),
    Pulse(u8),
    Replace(u8),
    Signal(u8),
    Replug(u8),
    // The IOAPIC.
    Half { pin: u8, high: bool, value: u32 },
    Entry { pin: u8, request: Request, level: bool, masked: bool },
    MaskPin(u8, bool),
    EndRegister(Number),
    // The PIC.
    PicInitialize { icw4: u8 },
    PicWrite { port: u8, value: u8 },
    PicRead(u8),
    PicEnd(bool),
    // Vectors.
    Program { vector: u8, request: Request, level: bool },
    Mask(u8, u8),
    // The VT-d unit.
    Store { index: Number, request: Request, level: bool, requester: u8, wrong: u8 },
    Command(u8),
    Table(u8),
    Invalidate { index: Option<u8>, mask: u8 },
    ClearFaults,
    // Processors.
    BeforeRun(bool),
    Take(bool),
    End(bool),
}

/// What is asked for: an interrupt, in the compatibility format or by an entry; or a write to memory.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) kind: u8,
    pub(super) vector: Number,
    pub(super) destination: u8,
    pub(super) mode: u8,
}

impl Request {
    pub(super) fn destination(self) -> u8 {
        [0, 0, 0, 1, 1, 1, 2, 0xff][usize::from(self.destination & 7)]
    }

    pub(super) fn mode(self) -> u8 {
        [0, 0, 0, 0, 1, 2, 4, 7][usize::from(self.mode & 7)]
    }

    pub(super) fn vector(self) -> u8 {
        self.vector.0
    }

    /// The entry that it asks for, now and then one beyond the table.
    pub(super) fn index(self) -> u16 {
        u16::from(self.destination) % 18
    }
}
