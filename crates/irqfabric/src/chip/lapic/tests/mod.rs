//! What all the tests share: the registers by their offsets, local APICs in each mode, interrupts.

mod any_guest;
mod interrupts;
mod registers;

use super::*;

const ID: u64 = 0x20;
const VERSION_OFFSET: u64 = 0x30;
const TPR: u64 = 0x80;
const APR: u64 = 0x90;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const SVR: u64 = 0xf0;
const ISR: u64 = 0x100;
const TMR: u64 = 0x180;
const IRR: u64 = 0x200;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_ERROR: u64 = 0x370;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

const EN: u64 = 1 << 11;
const EXTD: u64 = 1 << 10;
const PAGE: u64 = 0xfee0_0000;

const MASKED: u32 = 1 << 16;
const EXTINT: u32 = 7 << 8;
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ILLEGAL_REGISTER_ADDRESS: u32 = 1 << 7;

const PHYSICAL: DestinationMode = DestinationMode::Physical;
const LOGICAL: DestinationMode = DestinationMode::Logical;

impl Lapic {
    fn get(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&mut self, offset: u64, value: u32) -> Option<Effect> {
        self.write(offset, &value.to_le_bytes())
    }

    fn end(&mut self) -> Option<Effect> {
        self.set(EOI, 0)
    }

    fn take_errors(&mut self) -> u32 {
        self.set(ESR, 0);
        self.get(ESR)
    }

    /// Whether a register of 256 bits has a vector's.
    fn shows(&mut self, register: u64, vector: u8) -> bool {
        self.get(register + u64::from(vector >> 5) * 0x10) >> (vector & 31) & 1 != 0
    }
}

/// In xAPIC mode, enabled.
fn xapic(id: u32) -> Lapic {
    let mut lapic = Lapic::new(id);
    lapic.set(SVR, 0x1ff);
    lapic
}

/// In x2APIC mode, enabled.
fn x2apic(id: u32) -> Lapic {
    let mut lapic = xapic(id);
    lapic.write_msr(IA32_APIC_BASE, PAGE | EN | EXTD).unwrap();
    lapic
}

/// In xAPIC mode, enabled, with logical ids.
fn logical(dfr: u32, ldr: u32) -> Lapic {
    let mut lapic = xapic(0);
    lapic.set(DFR, dfr);
    lapic.set(LDR, ldr << 24);
    lapic
}

fn edge(vector: u8) -> Interrupt {
    Interrupt { vector, ..Interrupt::default() }
}

fn level(vector: u8) -> Interrupt {
    Interrupt { vector, trigger: Trigger::Level, ..Interrupt::default() }
}

fn of(delivery_mode: DeliveryMode) -> Interrupt {
    Interrupt { delivery_mode, vector: 0x31, ..Interrupt::default() }
}

fn accept(lapic: &mut Lapic, interrupts: &[Interrupt]) {
    for interrupt in interrupts {
        assert_eq!(lapic.accept(interrupt), Acceptance::Accepted);
    }
}
