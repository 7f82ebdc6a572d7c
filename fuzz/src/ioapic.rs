//! The IOAPIC: any accesses, levels, ends of interrupts and outcomes. The oracle recomputes from the redirection entries
//! what is due and what an access may change.

use crate::{Data, Number, steps};
use arbitrary::{Arbitrary, Unstructured};
use irqfabric::chip::ioapic::{Ioapic, IoapicState, MAX_PINS, Version, Written};
use irqfabric::line::Level;
use irqfabric::msg::{Acceptance, Message, RequesterId};

const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMAPPABLE: u64 = 1 << 48;
/// Vector, delivery mode, destination mode, polarity, trigger, mask, format, extended destination, destination.
const WRITABLE: u64 = 0xffff_0000_0001_afff;

#[derive(Arbitrary, Debug)]
enum Step {
    Select(u8),
    Window(u32),
    Write(u16, Data),
    Read(u16, u8),
    Half { pin: Number, high: bool, value: u32, vector: Number },
    Set(Number, bool),
    Deliver(Number, bool),
    End(Number),
    SaveAndRestore,
}

/// Delivery modes that put a vector into the IRR, which alone can be level-triggered.
fn is_level(entry: u64) -> bool {
    entry & LEVEL != 0 && !matches!(entry >> 8 & 7, 2 | 4 | 5 | 7)
}

fn sends(entry: u64) -> bool {
    entry & MASKED == 0 && (entry & REMAPPABLE != 0 || !matches!(entry >> 8 & 7, 3 | 6))
}

fn message(entry: u64, requester: RequesterId) -> Message {
    let level = if is_level(entry) { 0xc000 } else { 0 };
    Message {
        address: 0xfee0_0000 | (entry >> 48) << 4 | (entry >> 11 & 1) << 2,
        data: (entry & 0x7ff) as u32 | level,
        requester,
    }
}

/// What must hold of the chip at any time.
pub(crate) fn check(chip: &Ioapic, state: &IoapicState) {
    assert!(state.id < 16);
    assert_eq!(chip.pins(), state.pins.len());
    for (pin, found) in (0..).zip(&state.pins) {
        let entry = found.entry;
        assert_eq!(entry & !(WRITABLE | REMOTE_IRR), 0, "reserved bits of pin {pin}");
        assert!(entry & REMOTE_IRR == 0 || is_level(entry), "remote IRR on an edge pin {pin}");
        assert!(!found.edge || !is_level(entry), "an edge waits on level pin {pin}");
        let due = if is_level(entry) { found.level == Level::High && entry & REMOTE_IRR == 0 } else { found.edge };
        let expected = (due && sends(entry)).then(|| message(entry, state.requester));
        assert_eq!(chip.due(pin), expected, "pin {pin}");
        assert_eq!(chip.in_service().contains(pin), entry & REMOTE_IRR != 0);
    }
    assert_eq!(chip.due(state.pins.len() as u8), None);
    assert_eq!(Ioapic::restore(state).as_ref(), Ok(chip), "a snapshot is the chip");
}

/// A target.
pub fn run(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let pins = input.int_in_range(1..=MAX_PINS).unwrap_or(24);
    let version = if input.arbitrary().unwrap_or(true) { Version::V20 } else { Version::V11 };
    let mut chip = Ioapic::new(pins).expect("1 to 120").with_version(version).with_requester(RequesterId(0xff00));
    for step in steps(input) {
        let before = chip.save();
        apply(&mut chip, &before, &step);
        let after = chip.save();
        check(&chip, &after);
        assert_eq!((after.version, after.requester), (before.version, before.requester));
        for (before, after) in before.pins.iter().zip(&after.pins) {
            let gained = after.entry & !before.entry & REMOTE_IRR != 0;
            assert!(!gained || matches!(step, Step::Deliver(_, true)), "remote IRR is set by a delivery only");
            assert!(before.level == after.level || matches!(step, Step::Set(..)), "a level is a line's");
        }
    }
}

fn apply(chip: &mut Ioapic, before: &IoapicState, step: &Step) {
    match *step {
        Step::Select(index) => _ = chip.write(0, &[index, 0, 0, 0]),
        Step::Half { pin: Number(pin), high, value, vector: Number(vector) } => {
            let value = if high { value } else { value & !0xff | u32::from(vector) };
            let index = 0x10u8.wrapping_add(pin.wrapping_mul(2)).wrapping_add(high.into());
            _ = chip.write(0, &[index, 0, 0, 0]);
            apply(chip, &chip.save(), &Step::Window(value));
        }
        Step::Window(value) => {
            let written = chip.write(0x10, &value.to_le_bytes());
            let Written::Entry { pin, ended } = written else { return };
            let (old, new) = (before.pins[usize::from(pin)].entry, chip.save().pins[usize::from(pin)].entry);
            let shift = if before.select & 1 == 0 { 0 } else { 32 };
            let mask = WRITABLE & 0xffff_ffff << shift;
            let merged = old & !mask | u64::from(value) << shift & mask;
            assert_eq!(new & !REMOTE_IRR, merged & !REMOTE_IRR);
            assert_eq!(new & REMOTE_IRR, if is_level(merged) { old & REMOTE_IRR } else { 0 });
            assert_eq!(ended, old & !new & REMOTE_IRR != 0);
        }
        Step::Write(offset, data) => {
            if let Written::EndOfInterrupt(vector) = chip.write(offset.into(), data.as_slice()) {
                assert_eq!((offset, before.version), (0x40, Version::V20));
                assert_eq!(chip.save(), *before, "the end is the owner's to tell");
                apply(chip, before, &Step::End(Number(vector)));
            }
        }
        Step::Read(offset, size) => {
            let mut data = vec![0xaa; usize::from(size % 17)];
            chip.read(offset.into(), &mut data);
            assert!(data.iter().skip(4).all(|&byte| byte == 0));
            assert_eq!(chip.save(), *before, "reading changes nothing");
        }
        Step::Set(Number(pin), high) => {
            let level = if high { Level::High } else { Level::Low };
            let due = chip.due(pin);
            let may = chip.set(pin, level);
            let entry = before.pins.get(usize::from(pin)).map(|pin| pin.entry);
            assert!(may || chip.due(pin).is_none() || chip.due(pin) == due, "a rise nobody is told of");
            assert!(!(may && entry.is_none()), "there is no pin {pin}");
            let masked_edge = entry.is_some_and(|entry| !is_level(entry) && !sends(entry));
            assert!(!masked_edge || chip.save().pins[usize::from(pin)].edge == before.pins[usize::from(pin)].edge);
        }
        Step::Deliver(Number(pin), accepted) => {
            // The owner reports what became of a message that was due, and of no other.
            if chip.due(pin).is_none() {
                return;
            }
            chip.delivered(pin, if accepted { Acceptance::Accepted } else { Acceptance::Refused });
            let still_due = is_level(before.pins[usize::from(pin)].entry) && !accepted;
            assert_eq!(chip.due(pin).is_some(), still_due);
        }
        Step::End(Number(vector)) => {
            let expected =
                (0..).zip(&before.pins).filter(|(_, pin)| pin.entry & REMOTE_IRR != 0 && pin.entry as u8 == vector);
            let expected: Vec<u8> = expected.map(|(pin, _)| pin).collect();
            assert_eq!(chip.end_of_interrupt(vector).collect::<Vec<_>>(), expected);
            assert!(expected.iter().all(|&pin| !chip.in_service().contains(pin)));
        }
        Step::SaveAndRestore => *chip = Ioapic::restore(before).expect("a chip's own state"),
    }
}
