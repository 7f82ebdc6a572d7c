//! A second implementation of the way from a message to an interrupt, written from the bits that the specification
//! draws and sharing nothing with the first: plain numbers in, plain numbers out. The fuzz target uses it too.

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A plain write to memory.
    Memory,
    /// No remapping, and a delivery mode that is reserved.
    Dropped,
    Interrupt {
        destination: u32,
        logical: bool,
        any: bool,
        mode: u8,
        level: bool,
        vector: u8,
        cookie: Option<u32>,
    },
    Fault {
        reason: u8,
        index: u16,
        silent: bool,
    },
}

/// GSTS_REG.
const IRES: u32 = 1 << 25;
const CFIS: u32 = 1 << 23;
/// IRTA_REG.
const EIME: u64 = 1 << 11;

/// What a unit with these registers makes of a message; `table` gives the 16 bytes at an address, if that is memory.
pub fn translate(
    (gsts, irta): (u32, u64),
    (address, data, requester): (u64, u32, u16),
    table: impl FnOnce(u64) -> Option<[u8; 16]>,
) -> Outcome {
    if address >> 20 != 0xfee {
        return Outcome::Memory;
    }
    let fault = |reason, index| Outcome::Fault { reason, index, silent: false };
    let remappable = address & 0x10 != 0;
    if gsts & IRES == 0 {
        return compatibility(address, data);
    }
    if !remappable {
        let passes = gsts & CFIS != 0 && irta & EIME == 0;
        return if passes { compatibility(address, data) } else { fault(0x25, 0) };
    }
    let handle = (address >> 5 & 0x7fff) as u32 + if address & 4 != 0 { 0x8000 } else { 0 };
    let shv = address & 8 != 0;
    let index = if shv { handle + data % 0x1_0000 } else { handle };
    if shv && data >= 0x1_0000 {
        return fault(0x20, index as u16);
    }
    if u64::from(index) >= 1 << ((irta & 0xf) + 1) {
        return fault(0x21, index as u16);
    }
    let place = u128::from(irta / 0x1000 * 0x1000) + 16 * u128::from(index);
    let Some(bytes) = u64::try_from(place).ok().and_then(table) else { return fault(0x23, index as u16) };
    let qualified = |reason| Outcome::Fault { reason, index: index as u16, silent: bytes[0] & 2 != 0 };
    if bytes[0] & 1 == 0 {
        return qualified(0x22);
    }
    let mut reserved = bytes[1] & 0xf0 | bytes[3] | bytes[10] & 0xf0;
    reserved |= bytes[11..].iter().fold(0, |all, byte| all | byte);
    if irta & EIME == 0 {
        reserved |= bytes[4] | bytes[6] | bytes[7];
    }
    let mode = bytes[0] >> 5;
    let (sq, svt) = (bytes[10] & 3, bytes[10] >> 2 & 3);
    if reserved != 0 || mode == 3 || mode == 6 || svt == 3 {
        return qualified(0x24);
    }
    let accepted = match svt {
        0 => true,
        1 => {
            let ignored = [0, 4, 6, 7][usize::from(sq)];
            requester | ignored == u16::from_le_bytes([bytes[8], bytes[9]]) | ignored
        }
        _ => bytes[9] <= (requester >> 8) as u8 && (requester >> 8) as u8 <= bytes[8],
    };
    if !accepted {
        return qualified(0x26);
    }
    Outcome::Interrupt {
        destination: if irta & EIME != 0 {
            u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]])
        } else {
            bytes[5].into()
        },
        logical: bytes[0] & 4 != 0,
        any: bytes[0] & 8 != 0,
        mode,
        level: bytes[0] & 16 != 0 && mode < 2,
        vector: bytes[2],
        cookie: Some(index),
    }
}

fn compatibility(address: u64, data: u32) -> Outcome {
    let mode = (data >> 8) as u8 & 7;
    if mode == 3 || mode == 6 {
        return Outcome::Dropped;
    }
    Outcome::Interrupt {
        destination: (address >> 12) as u32 & 0xff,
        logical: address & 4 != 0,
        any: address & 8 != 0,
        mode,
        level: data & 0x8000 != 0 && mode < 2,
        vector: data as u8,
        cookie: None,
    }
}
