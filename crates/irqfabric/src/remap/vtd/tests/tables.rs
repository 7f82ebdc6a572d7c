use super::oracle::{self, Outcome};
use super::*;
use crate::msg::{DeliveryMode, DestinationMode, NotAnInterrupt, RedirectionHint, Trigger};
use crate::remap::{self, Refusal};
use proptest::prelude::*;

#[test]
fn a_message_becomes_what_its_entry_says() {
    let unit = Unit::xapic();
    unit.put(9, ENTRY | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5);
    let interrupt = Interrupt {
        destination_mode: DestinationMode::Logical,
        redirection_hint: RedirectionHint::Any,
        delivery_mode: DeliveryMode::LowestPriority,
        trigger: Trigger::Level,
        ..entry_interrupt()
    };
    assert_eq!(unit.translate(&request(9)), Ok(translation(interrupt, Some(Cookie(9)))));
}

#[test]
fn while_remapping_is_off_a_message_says_itself_what_it_asks_for() {
    let unit = Unit::new();
    let message = Message { address: 0xfee0_5010, data: 0x42, requester: DEVICE };
    let interrupt = Interrupt { destination: 5, vector: 0x42, ..Interrupt::default() };
    assert_eq!(unit.translate(&message), Ok(translation(interrupt, None)));
    let reserved = Message { data: 0x342, ..message };
    assert_eq!(unit.translate(&reserved), Err(NotAnInterrupt::ReservedDeliveryMode(3).into()));
}

#[test]
fn a_message_outside_the_window_is_no_interrupt_remapping_or_not() {
    for unit in [Unit::new(), Unit::xapic()] {
        for address in [0x1010, 0xfed0_0010, 0xfef0_0010, 0x1_fee0_0010] {
            let message = Message { address, data: 0, requester: DEVICE };
            assert_eq!(unit.translate(&message), Err(NotAnInterrupt::Memory(address).into()));
        }
    }
}

#[test]
fn what_is_in_force_can_be_told_as_registers() {
    assert_eq!(Unit::new().tables.registers(), (0, false, false));
    let mut unit = Unit::enabled(TABLE | EIME | TABLE_SIZE);
    assert_eq!(unit.tables.registers(), (TABLE | EIME | TABLE_SIZE, true, false));
    unit.write32(GCMD, CFI);
    unit.perform();
    assert_eq!(unit.tables.registers(), (TABLE | EIME | TABLE_SIZE, false, true));
}

#[test]
fn what_is_in_force_is_one_word_and_the_same_again() {
    let mut unit = Unit::new();
    for irta in [0, TABLE | EIME | TABLE_SIZE, u64::MAX] {
        unit.write64(IRTA, irta);
        for command in [SIRTP, SIRTP | IRE, SIRTP | IRE | CFI, SIRTP | CFI] {
            unit.write32(GCMD, command);
            unit.perform();
            assert_eq!(Tables::from_word(unit.tables.into_word()), unit.tables, "{irta:#x}, {command:#x}");
        }
    }
}

#[test]
fn a_32_bit_destination_needs_extended_interrupt_mode() {
    let entry = ENTRY & !(0xffff_ffff << 32) | 0x8765_4321 << 32;
    let extended = Unit::enabled(TABLE | EIME | TABLE_SIZE);
    extended.put(0, entry);
    assert_eq!(interrupt(&extended.translate(&request(0)).unwrap()).destination, 0x8765_4321);
    let xapic = Unit::xapic();
    for bit in (32..40).chain(48..64) {
        xapic.put(0, ENTRY | 1 << bit);
        assert_eq!(xapic.translate(&request(0)), Err(fault(Reason::ReservedEntry, 0)), "bit {bit}");
    }
}

#[test]
fn the_index_is_the_handle_and_the_subhandle_if_there_is_one() {
    // The largest table: its last entry lies behind the tests' memory, which is what tells the index from the outside.
    let unit = Unit::enabled(TABLE | 0xf);
    for (message, index) in [
        (request(0), 0),
        (request(0x2fff), 0x2fff),
        (with_subhandle(0x1000, 0), 0x1000),
        (with_subhandle(0x1000, 0x1fff), 0x2fff),
        (with_subhandle(0, 0x2fff), 0x2fff),
        // Without a subhandle the data is ignored, all of it.
        (Message { data: u32::MAX, ..request(7) }, 7),
    ] {
        unit.put(index, ENTRY);
        let cookie = Some(Cookie(index as u32));
        assert_eq!(unit.translate(&message), Ok(translation(entry_interrupt(), cookie)));
        unit.put(index, 0);
    }
    for message in [request(0xffff), with_subhandle(0x8000, 0x7fff), with_subhandle(0xffff, 0)] {
        assert_eq!(unit.translate(&message), Err(fault(Reason::Unreadable, 0xffff)), "handle bit 15 is address bit 2");
    }
}

#[test]
fn fault_20_reserved_bits_of_a_request_with_a_subhandle() {
    let unit = Unit::xapic();
    unit.put(1, ENTRY);
    for bit in 16..32 {
        let message = with_subhandle(1, 1 << bit);
        assert_eq!(unit.translate(&message), Err(fault(Reason::ReservedRequest, 1)));
    }
}

#[test]
fn fault_21_an_index_at_or_beyond_the_size_of_the_table() {
    for size in 0..=0xf {
        let unit = Unit::enabled(TABLE | size);
        let entries = 2 << size;
        let message = with_subhandle(1, entries - 1);
        // Of the largest table there is no index beyond it in 16 bits: the sum has 17.
        assert_eq!(unit.translate(&message), Err(fault(Reason::Index, entries as u16)), "{entries} entries");
        let last = unit.translate(&request(entries - 1));
        let reason = if entries <= 0x4000 { Reason::NotPresent } else { Reason::Unreadable };
        assert_eq!(last, Err(fault(reason, (entries - 1) as u16)));
    }
    let largest = with_subhandle(0xffff, 0xffff);
    assert_eq!(Unit::enabled(TABLE | 0xf).translate(&largest), Err(fault(Reason::Index, 0xfffe)));
}

#[test]
fn fault_22_an_entry_that_is_not_present_whatever_else_is_in_it() {
    let unit = Unit::xapic();
    for entry in [0, ENTRY & !1, !1 & !FPD] {
        unit.put(3, entry);
        assert_eq!(unit.translate(&request(3)), Err(fault(Reason::NotPresent, 3)));
        unit.put(3, entry | FPD);
        assert_eq!(unit.translate(&request(3)), Err(silent(Reason::NotPresent, 3)));
    }
}

#[test]
fn fault_23_a_table_that_is_not_in_memory() {
    for base in [0, RAM - 0x1000, RAM + RAM_SIZE as u64, !0xfff] {
        let unit = Unit::enabled(base | TABLE_SIZE);
        assert_eq!(unit.translate(&request(0)), Err(fault(Reason::Unreadable, 0)));
        assert_eq!(unit.translate(&request(0xff)), Err(fault(Reason::Unreadable, 0xff)));
    }
    // Behind the end of the address space.
    let unit = Unit::enabled(!0xfff | 0xf);
    assert_eq!(unit.translate(&request(0xffff)), Err(fault(Reason::Unreadable, 0xffff)));
}

#[test]
fn fault_24_reserved_bits_and_encodings_of_an_entry() {
    let unit = Unit::enabled(TABLE | EIME | TABLE_SIZE);
    let posted = 1 << 15;
    let delivery_modes = [3 << 5, 6 << 5];
    let bits = (12..15).chain(24..32).chain(84..128).map(|bit| 1 << bit);
    for reserved in bits.chain([posted, 3 << 82]).chain(delivery_modes) {
        unit.put(4, ENTRY | reserved);
        assert_eq!(unit.translate(&request(4)), Err(fault(Reason::ReservedEntry, 4)), "{reserved:#x}");
        unit.put(4, ENTRY | reserved | FPD);
        assert_eq!(unit.translate(&request(4)), Err(silent(Reason::ReservedEntry, 4)), "{reserved:#x}");
    }
    for free in 8..12 {
        unit.put(4, ENTRY | 1 << free);
        assert!(unit.translate(&request(4)).is_ok(), "bit {free} is for software");
    }
}

#[test]
fn fault_25_compatibility_format_unless_it_is_enabled_and_destinations_have_8_bits() {
    let message = Message { address: 0xfee0_5000, data: 0x42, requester: DEVICE };
    let interrupt = Interrupt { destination: 5, vector: 0x42, ..Interrupt::default() };
    for (command, eime, passes) in [(0, 0, false), (CFI, 0, true), (0, EIME, false), (CFI, EIME, false)] {
        let mut unit = Unit::enabled(TABLE | eime | TABLE_SIZE);
        unit.write32(GCMD, IRE | command);
        unit.perform();
        let expected =
            if passes { Ok(translation(interrupt, None)) } else { Err(fault(Reason::CompatibilityFormat, 0)) };
        assert_eq!(unit.translate(&message), expected);
    }
}

#[test]
fn fault_26_a_requester_that_the_entry_is_not_for() {
    let unit = Unit::xapic();
    let sid = 0x1234u16;
    for (sq, ignored) in [(0u128, 0u16), (1, 0b100), (2, 0b110), (3, 0b111)] {
        unit.put(5, ENTRY | 1 << 82 | sq << 80 | u128::from(sid) << 64);
        for requester in 0..=u16::MAX {
            let message = Message { requester: RequesterId(requester), ..request(5) };
            let accepted = (requester ^ sid) & !ignored == 0;
            assert_eq!(unit.translate(&message).is_ok(), accepted, "SQ {sq}, {requester:#x}");
        }
    }
    unit.put(5, ENTRY | 1 << 82 | FPD);
    assert_eq!(unit.translate(&request(5)), Err(silent(Reason::Source, 5)));
    unit.put(5, ENTRY | 1 << 82);
    assert_eq!(unit.translate(&request(5)), Err(fault(Reason::Source, 5)));
}

#[test]
fn a_range_of_buses_runs_from_the_upper_byte_of_the_source_id_to_the_lower() {
    let unit = Unit::xapic();
    for (first, last) in [(2u8, 4u8), (0, 255), (7, 7), (4, 2)] {
        unit.put(6, ENTRY | 2 << 82 | u128::from(first) << 72 | u128::from(last) << 64);
        for bus in 0..=255 {
            let message = Message { requester: RequesterId::new(bus, 31, 7), ..request(6) };
            assert_eq!(unit.translate(&message).is_ok(), first <= bus && bus <= last, "{bus} in {first}..={last}");
        }
    }
}

#[test]
fn an_entry_that_becomes_present_without_an_invalidation_works_at_the_next_interrupt() {
    let mut unit = Unit::xapic();
    assert_eq!(unit.fire(&request(8)), Some(fault_event()));
    unit.put(8, ENTRY);
    assert_eq!(unit.translate(&request(8)), Ok(translation(entry_interrupt(), Some(Cookie(8)))));
    unit.put(8, 0);
    assert_eq!(unit.translate(&request(8)), Err(fault(Reason::NotPresent, 8)));
}

#[test]
fn a_refusal_carries_the_whole_fault_there_and_back() {
    let unit = Unit::xapic();
    for (entry, processing) in [(0, FaultProcessing::Enabled), (1 << 1, FaultProcessing::Disabled)] {
        unit.put(9, entry);
        let Err(Refused::Fault(fault)) = unit.translate(&request(9)) else { panic!("it is not present") };
        let Refusal::Blocked(carried) = Refusal::from(Refused::from(fault)) else { panic!("it is blocked") };
        assert_eq!((carried.reason, carried.cookie, fault.processing), (0x22, Some(Cookie(9)), processing));
        assert_eq!(Fault::of(&request(9), carried), Some(fault));
    }
    let unknown = remap::Fault { reason: 0x27, cookie: Some(Cookie(9)), silent: false };
    assert_eq!(Fault::of(&request(9), unknown), None);
    assert_eq!(Refusal::from(Refused::from(NotAnInterrupt::Memory(1))), NotAnInterrupt::Memory(1).into());
    let text = "interrupt 3 of 00:03.0 blocked: the entry is not present";
    assert_eq!(fault(Reason::NotPresent, 3).to_string(), text);
}

/// The same as numbers.
fn outcome(result: Result<Translation, Refused>) -> Outcome {
    match result {
        Ok(translation) => {
            let interrupt = interrupt(&translation);
            Outcome::Interrupt {
                destination: interrupt.destination,
                logical: interrupt.destination_mode == DestinationMode::Logical,
                any: interrupt.redirection_hint == RedirectionHint::Any,
                mode: interrupt.delivery_mode as u8,
                level: interrupt.trigger == Trigger::Level,
                vector: interrupt.vector,
                cookie: translation.cookie.map(|Cookie(index)| index),
            }
        }
        Err(Refused::NotAnInterrupt(NotAnInterrupt::Memory(_))) => Outcome::Memory,
        Err(Refused::NotAnInterrupt(NotAnInterrupt::ReservedDeliveryMode(_))) => Outcome::Dropped,
        Err(Refused::Fault(Fault { reason, index, requester: _, processing })) => {
            Outcome::Fault { reason: reason as u8, index, silent: processing == FaultProcessing::Disabled }
        }
    }
}

/// Entries near those that are right, and any.
fn entries() -> impl Strategy<Value = u128> {
    let sensible = (any::<u64>(), any::<u32>(), 0..16u32, 0..8u32).prop_map(|(low, id, validation, flips)| {
        let entry = u128::from(low & !0xff0f_f000 | 1) | u128::from(id & 0x1f1f | validation << 16) << 64;
        // Now and then one bit that should not be.
        if flips == 0 { entry ^ 1 << (low % 128) } else { entry }
    });
    let xapic = any::<u64>().prop_map(|low| u128::from(low & 0x0000_ff00_00ff_0fff | 1));
    prop_oneof![4 => sensible, 3 => xapic, 1 => any::<u128>()]
}

fn messages() -> impl Strategy<Value = (u64, u32, u16)> {
    let remappable = (0..0x200u64, any::<bool>(), 0..0x180u32)
        .prop_map(|(handle, shv, subhandle)| (0xfee0_0010 | handle << 5 | if shv { 8 } else { 0 }, subhandle));
    let in_window =
        (any::<u32>(), any::<u32>()).prop_map(|(low, data)| (0xfee0_0000 | u64::from(low & 0xf_ffff), data));
    let any_message = prop_oneof![6 => remappable, 3 => in_window, 1 => any::<(u64, u32)>()];
    (any_message, any::<u16>()).prop_map(|((address, data), requester)| (address, data, requester & 0x1f1f))
}

/// The same entry wherever there is memory.
struct Everywhere(u128);

impl Memory for Everywhere {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
        Ram::range(address, data.len())?;
        // Only words are not torn, and only what is not torn can be relied upon.
        assert_eq!((address % 8, data.len() % 8), (0, 0));
        data.copy_from_slice(&self.0.to_le_bytes()[address as usize % 16..][..data.len()]);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        Err(OutsideMemory { address, length: data.len() })
    }
}

#[test]
fn an_entry_is_read_by_words_which_are_never_torn() {
    let unit = Unit::enabled(TABLE | EIME);
    let message = Message { address: 0xfee0_0010, data: 0, requester: RequesterId(8) };
    let entry = 1 | 0x41 << 16 | 0x12345 << 32 | 8 << 64 | 1 << 82;
    let Ok(Translation { target: Target::Interrupt(interrupt), .. }) =
        unit.tables.translate(&message, &Everywhere(entry))
    else {
        panic!("it is present, and its requester's")
    };
    assert_eq!((interrupt.vector, interrupt.destination), (0x41, 0x12345));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16_384))]

    #[test]
    fn translation_agrees_with_a_second_implementation(
        entry in entries(),
        irta in prop_oneof![(0..16u64, any::<bool>()).prop_map(|(size, eime)| TABLE | size | if eime { EIME } else { 0 }), any::<u64>()],
        command in (any::<[bool; 2]>(), 0..8u32).prop_map(|([ire, cfi], often)| if ire || often > 0 { IRE } else { 0 } | if cfi { CFI } else { 0 }),
        (address, data, requester) in messages(),
    ) {
        let mut unit = Unit::enabled(irta);
        unit.write32(GCMD, command);
        unit.perform();
        let message = Message { address, data, requester: RequesterId(requester) };
        let expected = oracle::translate((unit.read32(GSTS), irta), (address, data, requester), |place| {
            Ram::range(place, 16).is_ok().then_some(entry.to_le_bytes())
        });
        let found = outcome(unit.tables.translate(&message, &Everywhere(entry)));
        prop_assert_eq!(found, expected);
    }
}
