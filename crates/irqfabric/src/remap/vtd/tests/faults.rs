use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn a_blocked_interrupt_records_one_fault_each_time_it_fires_and_none_before() {
    let mut unit = Unit::xapic();
    let message = request(7);
    for _ in 0..20 {
        // Asked in advance, as often as one likes, nothing is recorded.
        assert_eq!(unit.translate(&message), Err(fault(Reason::NotPresent, 7)));
        assert_eq!((unit.read32(FSTS) & PPF, unit.recorded()), (0, vec![]));
        assert_eq!(unit.fire(&message), Some(fault_event()));
        assert_eq!(unit.recorded(), [(0x22, 7, DEVICE.0)]);
        assert_eq!(unit.serve_faults(), [(0x22, 7)]);
    }
}

#[test]
fn every_reason_is_recorded_with_its_index_and_source() {
    let mut unit = Unit::xapic();
    unit.put(4, ENTRY | 1 << 12);
    unit.put(5, ENTRY | 1 << 82);
    let compatibility = Message { address: 0xfee0_0000, data: 0, requester: DEVICE };
    for message in [with_subhandle(1, 0x1_0000), request(0x100), request(3), request(4), compatibility, request(5)] {
        _ = unit.fire(&message);
    }
    let expected = [(0x20, 1), (0x21, 0x100), (0x22, 3), (0x24, 4), (0x25, 0), (0x26, 5)];
    assert_eq!(unit.recorded(), expected.map(|(reason, index)| (reason, index, DEVICE.0)));
    let mut nowhere = Unit::enabled(TABLE_SIZE);
    _ = nowhere.fire(&request(9));
    assert_eq!(nowhere.recorded(), [(0x23, 9, DEVICE.0)]);
    // Bits 47:12 of the fault information, the types and all else are zero.
    assert_eq!(nowhere.read64(FRCD), 9 << 48);
    assert_eq!(nowhere.read64(FRCD + 8), 1 << 63 | 0x23 << 32 | u64::from(DEVICE.0));
}

#[test]
fn faults_that_their_entry_silences_leave_no_trace() {
    let mut unit = Unit::xapic();
    for entry in [FPD, ENTRY | 1 << 12 | FPD, ENTRY | 1 << 82 | FPD] {
        unit.put(3, entry);
        assert!(matches!(unit.translate(&request(3)), Err(Refused::Fault(_))));
        assert_eq!(unit.fire(&request(3)), None);
        assert_eq!((unit.read32(FSTS), unit.recorded()), (0, vec![]));
    }
}

#[test]
fn repeated_faults_of_one_vector_do_not_starve_the_others() {
    let mut unit = Unit::xapic();
    for other in 1..8 {
        for _ in 0..1000 {
            _ = unit.fire(&request(0));
        }
        _ = unit.fire(&request(other));
    }
    let indices: Vec<_> = unit.recorded().into_iter().map(|(_, index, _)| index).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(unit.read32(FSTS) & PFO, 0);
}

#[test]
fn when_all_registers_hold_a_fault_the_next_overflows_until_the_guest_has_cleared_it() {
    let mut unit = Unit::xapic();
    for index in 0..8 {
        _ = unit.fire(&request(index));
    }
    assert_eq!(unit.read32(FSTS), PPF);
    assert_eq!(unit.fire(&request(8)), None);
    assert_eq!(unit.read32(FSTS), PFO | PPF);
    // A register becomes free, but overflow blocks: the guest is told that faults are missing.
    unit.write32(FRCD + 12, MASKED);
    assert_eq!(unit.fire(&request(9)), None);
    assert_eq!(unit.recorded().len(), 7);
    unit.write32(FSTS, PFO);
    assert_eq!(unit.fire(&request(10)), None);
    assert_eq!(unit.recorded().len(), 8);
    assert_eq!(unit.recorded()[0].1, 10);
}

#[test]
fn the_event_is_sent_for_the_first_pending_fault_only() {
    let mut unit = Unit::xapic();
    assert_eq!(unit.fire(&request(1)), Some(fault_event()));
    assert_eq!(unit.fire(&request(2)), None);
    // One of two is served: still pending, no new event.
    unit.write32(FRCD + 12, MASKED);
    assert_eq!(unit.read32(FSTS) & PPF, PPF);
    assert_eq!(unit.fire(&request(3)), None);
    assert_eq!(unit.read32(FSTS) >> 8, 0, "the index is that of the fault that set PPF");
    for place in 1..3 {
        unit.write32(FRCD + 16 * place + 12, MASKED);
    }
    assert_eq!(unit.read32(FSTS) & PPF, 0);
    assert_eq!(unit.fire(&request(4)), Some(fault_event()));
    assert_eq!(unit.read32(FSTS), PPF | 3 << 8);
}

#[test]
fn a_masked_event_is_pending_and_sent_when_it_is_unmasked() {
    let mut unit = Unit::xapic();
    unit.write32(FECTL, MASKED);
    assert_eq!(unit.fire(&request(1)), None);
    assert_eq!(unit.read32(FECTL), MASKED | PENDING);
    unit.write32(FECTL, MASKED | PENDING);
    assert_eq!(unit.read32(FECTL), MASKED | PENDING, "pending is read-only");
    assert_eq!(unit.perform(), []);
    unit.write32(FECTL, 0);
    assert_eq!(unit.perform(), [Effect::Send(fault_event())]);
    assert_eq!(unit.read32(FECTL), 0);
    assert_eq!(unit.perform(), []);
}

#[test]
fn a_pending_event_is_dropped_when_the_guest_has_served_all_faults() {
    let mut unit = Unit::xapic();
    unit.write32(FECTL, MASKED);
    _ = unit.fire(&request(1));
    assert_eq!(unit.serve_faults(), [(0x22, 1)]);
    assert_eq!(unit.read32(FECTL), MASKED);
    unit.write32(FECTL, 0);
    assert_eq!(unit.perform(), []);
}

#[test]
fn the_events_message_reaches_destinations_of_32_bits() {
    use crate::msg::DestinationFormat;
    let mut unit = Unit::xapic();
    unit.write32(FEADDR + 4, 0x0001_2300);
    let message = unit.fire(&request(1)).unwrap();
    let interrupt = message.decode(DestinationFormat::ThirtyTwo).unwrap();
    assert_eq!((interrupt.destination, interrupt.vector), (0x0001_2301, 0xf1));
}

#[test]
fn after_remapping_was_off_faults_start_at_the_first_register_again() {
    let mut unit = Unit::xapic();
    for index in 0..3 {
        _ = unit.fire(&request(index));
    }
    unit.serve_faults();
    for command in [0, IRE] {
        unit.write32(GCMD, command);
        unit.perform();
    }
    _ = unit.fire(&request(5));
    assert_eq!(unit.read32(FSTS), PPF);
    assert_eq!(unit.recorded(), [(0x22, 5, DEVICE.0)]);
}

#[test]
fn while_remapping_stays_on_each_fault_takes_the_next_register() {
    let mut unit = Unit::xapic();
    _ = unit.fire(&request(1));
    unit.serve_faults();
    unit.write32(GCMD, IRE | QIE | SIRTP);
    unit.perform();
    _ = unit.fire(&request(2));
    assert_eq!(unit.read32(FSTS), PPF | 1 << 8);
}

#[derive(Clone, Debug)]
enum Step {
    Fire(u32),
    Clear(u64),
    ClearOverflow,
    Mask(bool),
}

proptest! {
    #[test]
    fn any_order_of_faults_and_clears_keeps_the_books(
        steps in vec(
            prop_oneof![
                8 => (0..12u32).prop_map(Step::Fire),
                4 => (0..8u64).prop_map(Step::Clear),
                1 => Just(Step::ClearOverflow),
                1 => any::<bool>().prop_map(Step::Mask),
            ],
            1..80,
        ),
    ) {
        let mut unit = Unit::xapic();
        for step in steps {
            let before = unit.recorded();
            let (overflow, quiet) = (unit.read32(FSTS) & PFO != 0, unit.read32(FSTS) & (PFO | PPF) == 0);
            let masked = unit.read32(FECTL) & MASKED != 0;
            match step {
                Step::Fire(index) => {
                    let sent = unit.fire(&request(index));
                    let after = unit.recorded();
                    let known = before.iter().any(|&(_, found, _)| u32::from(found) == index);
                    let added = after.len() - before.len();
                    prop_assert!(added <= 1);
                    // Not recorded only if it is there already, or the guest is told.
                    prop_assert!(added == 1 || known || unit.read32(FSTS) & PFO != 0);
                    prop_assert!(!(overflow || known) || added == 0);
                    prop_assert_eq!(sent.is_some(), quiet && added == 1 && !masked);
                }
                Step::Clear(place) => unit.write32(FRCD + 16 * place + 12, MASKED),
                Step::ClearOverflow => unit.write32(FSTS, PFO),
                Step::Mask(mask) => {
                    let pending = unit.read32(FECTL) & PENDING != 0;
                    unit.write32(FECTL, if mask { MASKED } else { 0 });
                    let sent = unit.perform();
                    prop_assert_eq!(sent == [Effect::Send(fault_event())], pending && !mask);
                }
            }
            let status = unit.read32(FSTS);
            prop_assert_eq!(status & PPF != 0, !unit.recorded().is_empty());
            // An event is pending only for a reason, and only while it is masked.
            let pending = unit.read32(FECTL) & PENDING != 0;
            prop_assert!(!pending || status & (PFO | PPF) != 0);
            prop_assert!(!pending || unit.read32(FECTL) & MASKED != 0);
        }
    }
}
