//! The local APIC: any accesses by page and MSR, interrupts, and what the processor takes. The oracle recomputes
//! priorities from the IRR and ISR, and follows each vector through them.

use crate::{Data, Number, steps};
use arbitrary::{Arbitrary, Unstructured};
use irqfabric::chip::lapic::{Effect, Lapic, LapicState, Mode};
use irqfabric::msg::{Acceptance, DeliveryMode, Interrupt, Trigger};

#[derive(Arbitrary, Debug)]
enum Step {
    Register(u8, u32),
    Write(u16, Data),
    Read(u16, u8),
    WriteMsr(u8, u64),
    WriteBase(u64),
    ReadMsr(u8),
    Accept { vector: Number, level: bool, mode: u8 },
    StartUp(u8),
    Acknowledge,
    End,
    TakeNmi,
    TakeSmi,
    TakeInit,
    TakeStartUp,
    SaveAndRestore,
}

/// 256 bits, vector 0 first.
type Vectors = [u64; 4];

fn contains(vectors: &Vectors, vector: u8) -> bool {
    vectors[usize::from(vector) / 64] >> (vector % 64) & 1 != 0
}

fn with(mut vectors: Vectors, vector: u8, member: bool) -> Vectors {
    let bit = 1 << (vector % 64);
    let word = &mut vectors[usize::from(vector) / 64];
    *word = if member { *word | bit } else { *word & !bit };
    vectors
}

fn highest(vectors: &Vectors) -> Option<u8> {
    (0..=255).rev().find(|&vector| contains(vectors, vector))
}

fn is_enabled(state: &LapicState) -> bool {
    state.apic_base >> 11 & 1 != 0 && state.svr >> 8 & 1 != 0
}

/// What must hold of a local APIC at any time.
pub(crate) fn check(lapic: &mut Lapic) {
    let state = lapic.save();
    assert_eq!((state.irr[0] | state.isr[0]) & 0xffff, 0, "a reserved vector is pending or in service");
    let in_service = highest(&state.isr).unwrap_or(0) >> 4;
    let deliverable = highest(&state.irr).filter(|vector| vector >> 4 > in_service && vector >> 4 > state.tpr >> 4);
    assert_eq!(lapic.pending(), deliverable);
    assert_eq!(lapic.arbitration_priority().is_some(), is_enabled(&state));
    assert_eq!(state.id, lapic.id());
    if lapic.mode() == Mode::Xapic {
        for (offset, expected) in [(0x20, state.id << 24), (0x30, 0x0005_0015), (0x80, state.tpr.into())] {
            let mut data = [0; 4];
            lapic.read(offset, &mut data);
            assert_eq!(u32::from_le_bytes(data), expected, "register {offset:#x}");
        }
    }
    let mut other = Lapic::new(state.id);
    assert_eq!(other.restore(&state), Ok(()));
    assert_eq!(&other, lapic, "a snapshot is the chip");
}

/// A target.
pub fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let mut lapic = Lapic::new(input.choose(&[0, 1, 255, 256, u32::MAX]).copied().unwrap_or(0));
    if input.arbitrary().unwrap_or(true) {
        lapic.write(0xf0, &0x1ffu32.to_le_bytes());
    }
    for step in steps(input) {
        apply(&mut lapic, &step);
        check(&mut lapic);
    }
}

fn apply(lapic: &mut Lapic, step: &Step) {
    let before = lapic.save();
    match *step {
        Step::Register(number, value) => _ = lapic.write(u64::from(number % 0x40) << 4, &value.to_le_bytes()),
        Step::Write(offset, data) => _ = lapic.write(offset.into(), data.as_slice()),
        Step::Read(offset, size) => {
            let mut data = vec![0; (size % 17).into()];
            lapic.read(offset.into(), &mut data);
        }
        Step::WriteMsr(number, value) => {
            if lapic.write_msr(0x800 + u32::from(number), value).is_err() {
                assert_eq!(lapic.save(), before, "a fault has no effect");
            }
        }
        Step::WriteBase(value) => _ = lapic.write_msr(0x1b, value),
        Step::ReadMsr(number) => {
            _ = lapic.read_msr(0x800 + u32::from(number));
            assert_eq!(lapic.save(), before);
        }
        Step::Accept { vector: Number(vector), level, mode } => {
            // Most often fixed.
            let mode = if mode < 192 { 0 } else { mode };
            let trigger = if level { Trigger::Level } else { Trigger::Edge };
            let Some(delivery_mode) = DeliveryMode::from_bits(mode) else { return };
            let accepted = lapic.accept(&Interrupt { vector, trigger, delivery_mode, ..Interrupt::default() });
            let after = lapic.save();
            match delivery_mode {
                DeliveryMode::Fixed | DeliveryMode::LowestPriority if is_enabled(&before) && vector >= 16 => {
                    assert_eq!(accepted, Acceptance::Accepted);
                    assert_eq!(after.irr, with(before.irr, vector, true));
                    assert_eq!(after.tmr, with(before.tmr, vector, level));
                }
                DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                    assert_eq!(accepted, Acceptance::Refused);
                    // But for the error interrupt that an illegal vector may cause.
                    assert!(vector < 16 || after == before);
                }
                DeliveryMode::Nmi => {
                    assert_eq!(accepted == Acceptance::Accepted, after.nmi && before.apic_base >> 11 & 1 != 0)
                }
                DeliveryMode::Smi | DeliveryMode::Init | DeliveryMode::ExtInt => {}
            }
            assert_eq!(after.isr, before.isr);
        }
        Step::StartUp(vector) => {
            if lapic.accept_start_up(vector) == Acceptance::Accepted {
                assert_eq!((before.start_up, lapic.save().start_up), (None, Some(vector)), "the first one counts");
            }
        }
        Step::Acknowledge => {
            let pending = lapic.pending();
            assert_eq!(lapic.acknowledge(), pending);
            let after = lapic.save();
            match pending {
                Some(vector) => {
                    assert_eq!(after.irr, with(before.irr, vector, false));
                    assert_eq!(after.isr, with(before.isr, vector, true));
                }
                None => assert_eq!(after, before),
            }
        }
        Step::End => {
            let effect = match lapic.mode() {
                Mode::Xapic => lapic.write(0xb0, &[0; 4]),
                Mode::X2apic => lapic.write_msr(0x80b, 0).expect("EOI of zero is legal"),
                Mode::Disabled => return,
            };
            let ended = highest(&before.isr);
            let broadcast = ended.filter(|&vector| contains(&before.tmr, vector)).map(Effect::EndOfInterrupt);
            assert_eq!(effect, broadcast);
            let isr = ended.map_or(before.isr, |vector| with(before.isr, vector, false));
            assert_eq!((lapic.save().isr, lapic.save().irr), (isr, before.irr));
        }
        Step::TakeNmi => assert_eq!((lapic.take_nmi(), lapic.save().nmi), (before.nmi, false)),
        Step::TakeSmi => assert_eq!((lapic.take_smi(), lapic.save().smi), (before.smi, false)),
        Step::TakeInit => {
            let taken = lapic.take_init();
            assert_eq!(taken, before.init);
            let gone = lapic.save();
            assert!(!taken || (highest(&gone.irr), highest(&gone.isr), gone.nmi) == (None, None, false));
        }
        Step::TakeStartUp => {
            let taken = lapic.take_start_up();
            assert_eq!(taken, before.start_up.filter(|_| !before.init));
        }
        Step::SaveAndRestore => {
            let mut other = Lapic::new(before.id);
            other.restore(&before).expect("a local APIC's own state");
            *lapic = other;
        }
    }
}
