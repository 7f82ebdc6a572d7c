use super::*;
use crate::msg::DestinationFormat;
use proptest::collection::vec;
use proptest::prelude::*;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const LOW_ACTIVE: u64 = 1 << 13;
const NMI: u64 = 4 << 8;
const EXTINT: u64 = 7 << 8;

fn read(chip: &mut Ioapic, index: u8) -> u32 {
    let _ = chip.write(SELECT, &u32::from(index).to_le_bytes());
    let mut data = [0; 4];
    chip.read(WINDOW, &mut data);
    u32::from_le_bytes(data)
}

fn write(chip: &mut Ioapic, index: u8, value: u32) -> Written {
    let _ = chip.write(SELECT, &u32::from(index).to_le_bytes());
    chip.write(WINDOW, &value.to_le_bytes())
}

fn program(chip: &mut Ioapic, pin: u8, entry: u64) {
    let _ = write(chip, 0x11 + 2 * pin, (entry >> 32) as u32);
    let _ = write(chip, 0x10 + 2 * pin, entry as u32);
}

fn entry(chip: &mut Ioapic, pin: u8) -> u64 {
    u64::from(read(chip, 0x11 + 2 * pin)) << 32 | u64::from(read(chip, 0x10 + 2 * pin))
}

/// What the fabric does at every input, everything being accepted. Returns the vectors delivered.
fn deliver(chip: &mut Ioapic, pin: u8) -> Option<u8> {
    let message = chip.due(pin)?;
    chip.delivered(pin, Acceptance::Accepted);
    Some(message.data as u8)
}

fn raise(chip: &mut Ioapic, pin: u8) -> Option<u8> {
    if chip.set(pin, Level::High) { deliver(chip, pin) } else { None }
}

fn lower(chip: &mut Ioapic, pin: u8) {
    assert!(!chip.set(pin, Level::Low));
}

#[test]
fn after_reset_every_entry_is_masked_and_zero() {
    let mut chip = Ioapic::default();
    for pin in 0..24 {
        assert_eq!(entry(&mut chip, pin), MASKED);
    }
    assert_eq!((read(&mut chip, 0), read(&mut chip, 2)), (0, 0));
}

#[test]
fn the_version_register_tells_the_number_of_pins_and_whether_there_is_an_eoi_register() {
    for (pins, version, expected) in [
        (24, Version::V20, 0x17_0020),
        (24, Version::V11, 0x17_0011),
        (1, Version::V20, 0x20),
        (120, Version::V20, 0x77_0020),
    ] {
        let mut chip = Ioapic::new(pins).unwrap().with_version(version);
        assert_eq!(read(&mut chip, 1), expected);
    }
}

#[test]
fn an_ioapic_has_1_to_120_pins() {
    assert_eq!(Ioapic::new(0), Err(PinCountError(0)));
    assert_eq!(Ioapic::new(121), Err(PinCountError(121)));
    assert_eq!(PinCountError(121).to_string(), "an IOAPIC has 1 to 120 pins, not 121");
}

#[test]
fn a_chip_is_what_it_was_made() {
    let chip = Ioapic::new(120).unwrap().with_id(0x1b).with_version(Version::V11).with_requester(RequesterId(7));
    let state = chip.save();
    assert_eq!((chip.pins(), chip.id()), (120, 0xb));
    assert_eq!((state.version, state.requester, state.id), (Version::V11, RequesterId(7), 0xb));
}

#[test]
fn a_chip_of_edges_only_forgets_its_levels_and_takes_none() {
    let mut chip = Ioapic::default();
    program(&mut chip, 4, 0x31 | LEVEL);
    program(&mut chip, 5, 0x41 | LEVEL);
    assert!(chip.set(4, Level::High));
    raise(&mut chip, 5);
    let mut chip = chip.with_edges_only();
    assert_eq!((entry(&mut chip, 4), entry(&mut chip, 5)), (0x31, 0x41));
    assert_eq!((deliver(&mut chip, 4), chip.in_service()), (None, PinSet::EMPTY));
    assert_eq!(raise(&mut chip, 4), Some(0x31), "the line counts as low");
    program(&mut chip, 6, 0x51 | LEVEL);
    assert_eq!(entry(&mut chip, 6), 0x51);
    assert_eq!((raise(&mut chip, 6), raise(&mut chip, 6)), (Some(0x51), None));
}

#[test]
fn a_pins_vector_and_trigger_mode_are_its_entrys() {
    let mut chip = Ioapic::default();
    for (bits, trigger) in [(0x41, Trigger::Edge), (0x42 | LEVEL, Trigger::Level), (0x43 | NMI | LEVEL, Trigger::Edge)]
    {
        program(&mut chip, 5, bits);
        assert_eq!((chip.vector(5), chip.trigger(5)), (Some(bits as u8), Some(trigger)));
    }
    assert_eq!(chip.trigger(24), None);
}

#[test]
fn a_set_of_pins_gives_them_from_the_lowest_on() {
    let mut pins: PinSet = [127, 3, 64, 3].into_iter().collect();
    assert_eq!(pins.take(4).collect::<Vec<_>>(), [3, 64, 127]);
    assert_eq!(format!("{pins:?}"), "{3, 64, 127}");
    pins.remove(64);
    assert!(pins.contains(127) && !pins.contains(64) && !pins.is_empty());
    assert!([3, 127].into_iter().all(|pin| pins.next() == Some(pin)));
    assert!(pins.is_empty() && pins.next().is_none());
    assert_eq!([128, 255].into_iter().collect::<PinSet>(), PinSet::EMPTY);
}

#[test]
fn the_last_entry_of_120_pins_is_reached_at_index_ff() {
    let mut chip = Ioapic::new(120).unwrap();
    program(&mut chip, 119, 0xab00_0000_0000_0055);
    assert_eq!(entry(&mut chip, 119), 0xab00_0000_0000_0055);
    assert_eq!(raise(&mut chip, 119), Some(0x55));
}

#[test]
fn the_id_has_four_bits_and_the_arbitration_register_shows_it() {
    let mut chip = Ioapic::default();
    let _ = write(&mut chip, 0, u32::MAX);
    let _ = write(&mut chip, 2, 0);
    assert_eq!((read(&mut chip, 0), read(&mut chip, 2)), (0x0f00_0000, 0x0f00_0000));
}

#[test]
fn a_write_to_the_version_register_is_no_harm() {
    let mut chip = Ioapic::default();
    let before = chip.save();
    assert_eq!(write(&mut chip, 1, 0), Written::Nothing);
    assert_eq!(chip.save(), IoapicState { select: 1, ..before });
}

#[test]
fn indexes_that_name_no_register_read_all_ones_and_ignore_writes() {
    let mut chip = Ioapic::default();
    for index in (3..0x10).chain(0x40..=0xff) {
        assert_eq!(write(&mut chip, index, 0), Written::Nothing);
        assert_eq!(read(&mut chip, index), u32::MAX, "index {index:#x}");
    }
}

#[test]
fn reserved_and_read_only_bits_do_not_take_a_written_one() {
    let mut chip = Ioapic::default();
    program(&mut chip, 3, u64::MAX);
    let read_only = 1 << 12 | REMOTE_IRR;
    let reserved = 0x0000_ffff_fffe_0000;
    assert_eq!(entry(&mut chip, 3), !(read_only | reserved));
}

#[test]
fn a_written_half_leaves_the_other_alone() {
    let mut chip = Ioapic::default();
    program(&mut chip, 3, 0x1200_0000_0000_0034 | MASKED);
    let _ = write(&mut chip, 0x16, 0x0001_0056);
    assert_eq!(entry(&mut chip, 3), 0x1200_0000_0000_0056 | MASKED);
    let _ = write(&mut chip, 0x17, 0x7800_0000);
    assert_eq!(entry(&mut chip, 3), 0x7800_0000_0000_0056 | MASKED);
}

#[test]
fn every_access_size_at_every_offset_is_defined() {
    for size in 0..=16 {
        for offset in 0..0x120 {
            let mut chip = Ioapic::default();
            let _ = chip.write(SELECT, &[1]);
            let _ = chip.write(offset, &vec![0xff; size]);
            let mut data = vec![0xaa; size];
            chip.read(offset, &mut data);
            let known = [SELECT, WINDOW].contains(&offset);
            assert!(known || data.iter().all(|&byte| byte == 0), "{size} bytes at {offset:#x}");
        }
    }
}

#[test]
fn narrow_accesses_see_the_low_bytes_and_wide_ones_are_filled_with_zeros() {
    let mut chip = Ioapic::default();
    let _ = chip.write(SELECT, &[1]);
    for (size, expected) in [(1, 0x20), (2, 0x20), (4, 0x17_0020), (8, 0x17_0020)] {
        let mut data = vec![0; size];
        chip.read(WINDOW, &mut data);
        data.resize(8, 0);
        assert_eq!(u64::from_le_bytes(data.try_into().unwrap()), expected);
    }
    let _ = chip.write(SELECT, &0x1234_5678_0000_0012u64.to_le_bytes());
    let _ = chip.write(WINDOW, &[0x42]);
    assert_eq!(entry(&mut chip, 1), 0x42, "a one-byte write is extended with zeros");
}

#[test]
fn an_edge_is_delivered_once_for_each_rise() {
    let mut chip = Ioapic::default();
    program(&mut chip, 4, 0x31);
    assert_eq!(raise(&mut chip, 4), Some(0x31));
    assert_eq!(raise(&mut chip, 4), None, "it is high already");
    lower(&mut chip, 4);
    assert_eq!(raise(&mut chip, 4), Some(0x31));
}

#[test]
fn an_edge_on_a_masked_pin_is_dropped() {
    let mut chip = Ioapic::default();
    program(&mut chip, 4, 0x31 | MASKED);
    assert_eq!(raise(&mut chip, 4), None);
    program(&mut chip, 4, 0x31);
    assert_eq!(deliver(&mut chip, 4), None);
}

#[test]
fn an_edge_that_nobody_accepted_is_spent() {
    let mut chip = Ioapic::default();
    program(&mut chip, 4, 0x31);
    assert!(chip.set(4, Level::High));
    assert!(chip.due(4).is_some());
    chip.delivered(4, Acceptance::Refused);
    assert_eq!(chip.due(4), None);
}

#[test]
fn a_level_is_delivered_once_until_it_is_ended() {
    let mut chip = Ioapic::default();
    program(&mut chip, 5, 0x41 | LEVEL);
    assert_eq!(raise(&mut chip, 5), Some(0x41));
    assert_eq!(entry(&mut chip, 5), 0x41 | LEVEL | REMOTE_IRR);
    assert_eq!(raise(&mut chip, 5), None);
}

#[test]
fn a_level_still_high_after_eoi_is_delivered_again() {
    let mut chip = Ioapic::default();
    program(&mut chip, 5, 0x41 | LEVEL);
    raise(&mut chip, 5);
    assert_eq!(chip.end_of_interrupt(0x41), PinSet::only(5));
    assert_eq!(raise(&mut chip, 5), Some(0x41));
    lower(&mut chip, 5);
    assert_eq!(chip.end_of_interrupt(0x41), PinSet::only(5));
    assert_eq!(deliver(&mut chip, 5), None);
}

#[test]
fn a_level_that_nobody_accepted_stays_due_and_sets_no_remote_irr() {
    let mut chip = Ioapic::default();
    program(&mut chip, 5, 0x41 | LEVEL);
    assert!(chip.set(5, Level::High));
    chip.delivered(5, Acceptance::Refused);
    assert_eq!(entry(&mut chip, 5), 0x41 | LEVEL);
    assert_eq!(deliver(&mut chip, 5), Some(0x41));
}

#[test]
fn an_end_of_interrupt_reaches_every_pin_of_that_vector_and_no_other() {
    let mut chip = Ioapic::default();
    for (pin, vector) in [(5, 0x41), (6, 0x41), (7, 0x42)] {
        program(&mut chip, pin, vector | LEVEL);
        raise(&mut chip, pin);
    }
    assert_eq!(chip.end_of_interrupt(0x41), [5, 6].into_iter().collect());
    assert_eq!(chip.in_service(), PinSet::only(7));
}

#[test]
fn the_eoi_register_asks_for_an_end_on_version_20_only() {
    for (version, written) in [(Version::V20, Written::EndOfInterrupt(0x41)), (Version::V11, Written::Nothing)] {
        let mut chip = Ioapic::default().with_version(version);
        assert_eq!(chip.write(EOI, &0x41u32.to_le_bytes()), written);
    }
}

#[test]
fn a_pin_is_ended_only_while_the_end_concerns_it() {
    let mut chip = Ioapic::default();
    program(&mut chip, 5, 0x41 | LEVEL);
    raise(&mut chip, 5);
    assert_eq!((chip.ending(0x42), chip.ending(0x41)), (PinSet::EMPTY, PinSet::only(5)));
    assert!(!chip.end(5, 0x42) && !chip.end(24, 0x41));
    assert!(chip.end(5, 0x41));
    assert!(!chip.end(5, 0x41), "it has been ended");
}

#[test]
fn an_access_names_the_pin_whose_entry_it_reaches() {
    let mut chip = Ioapic::default();
    for (index, pin) in [(1u32, None), (0x10, Some(0)), (0x3f, Some(23)), (0x40, None), (0xff, None)] {
        let _ = chip.write(SELECT, &index.to_le_bytes());
        assert_eq!((chip.entry_at(WINDOW), chip.entry_at(SELECT), chip.entry_at(EOI)), (pin, None, None));
    }
}

#[test]
fn the_eoi_register_reads_zero() {
    let chip = Ioapic::default();
    let mut data = [0xff; 4];
    chip.read(EOI, &mut data);
    assert_eq!(data, [0; 4]);
}

#[test]
fn masking_keeps_remote_irr_and_the_end_of_an_interrupt_in_service() {
    let mut chip = Ioapic::default();
    program(&mut chip, 5, 0x41 | LEVEL);
    raise(&mut chip, 5);
    program(&mut chip, 5, 0x41 | LEVEL | MASKED);
    assert_eq!(entry(&mut chip, 5), 0x41 | LEVEL | MASKED | REMOTE_IRR);
    assert_eq!(chip.end_of_interrupt(0x41), PinSet::only(5));
    assert_eq!(deliver(&mut chip, 5), None, "masked");
    program(&mut chip, 5, 0x41 | LEVEL);
    assert_eq!(deliver(&mut chip, 5), Some(0x41), "unmasking a level that is high delivers");
}

#[test]
fn writing_edge_clears_remote_irr_as_linux_ends_interrupts_on_version_11() {
    let mut chip = Ioapic::default();
    program(&mut chip, 5, 0x41 | LEVEL);
    raise(&mut chip, 5);
    assert_eq!(write(&mut chip, 0x1a, 0x41 | MASKED as u32), Written::Entry { pin: 5, ended: true });
    assert_eq!(write(&mut chip, 0x1a, 0x41 | LEVEL as u32), Written::Entry { pin: 5, ended: false });
    assert_eq!(deliver(&mut chip, 5), Some(0x41));
}

#[test]
fn writing_any_other_half_keeps_remote_irr() {
    let mut chip = Ioapic::default();
    program(&mut chip, 5, 0x41 | LEVEL);
    raise(&mut chip, 5);
    let _ = write(&mut chip, 0x1b, 0x0300_0000);
    let _ = write(&mut chip, 0x1a, 0x55 | LEVEL as u32);
    assert_eq!(entry(&mut chip, 5), 0x0300_0000_0000_0055 | LEVEL | REMOTE_IRR);
}

#[test]
fn a_pin_that_becomes_level_while_its_line_is_high_is_due_and_its_old_edge_is_not() {
    let mut chip = Ioapic::default();
    program(&mut chip, 5, 0x41 | MASKED);
    assert!(chip.set(5, Level::High));
    program(&mut chip, 5, 0x41 | LEVEL);
    assert_eq!(deliver(&mut chip, 5), Some(0x41));
    program(&mut chip, 5, 0x41);
    assert_eq!(deliver(&mut chip, 5), None);
}

#[test]
fn an_edge_that_waits_survives_a_write_but_not_that_its_pin_becomes_level() {
    let mut chip = Ioapic::default();
    program(&mut chip, 5, 0x41);
    assert!(chip.set(5, Level::High));
    program(&mut chip, 5, 0x0300_0000_0000_0042);
    assert_eq!(chip.due(5).map(|message| message.data), Some(0x42));
    let mut restored = Ioapic::restore(&chip.save()).unwrap();
    assert_eq!(deliver(&mut restored, 5), Some(0x42), "nor is it lost with the machine");
    lower(&mut chip, 5);
    program(&mut chip, 5, 0x42 | LEVEL);
    program(&mut chip, 5, 0x42);
    assert_eq!(chip.due(5), None);
}

#[test]
fn the_polarity_bit_is_kept_and_changes_nothing() {
    let mut chip = Ioapic::default();
    program(&mut chip, 5, 0x41 | LEVEL | LOW_ACTIVE);
    assert_eq!(deliver(&mut chip, 5), None, "not asserted");
    assert_eq!(raise(&mut chip, 5), Some(0x41));
    assert_eq!(entry(&mut chip, 5) & LOW_ACTIVE, LOW_ACTIVE);
}

#[test]
fn level_nmi_smi_init_and_extint_are_edges() {
    for mode in [2 << 8, NMI, 5 << 8, EXTINT] {
        let mut chip = Ioapic::default();
        program(&mut chip, 5, mode | LEVEL);
        assert!(chip.set(5, Level::High));
        let message = chip.due(5).unwrap();
        assert_eq!(message.data & LEVEL as u32, 0);
        chip.delivered(5, Acceptance::Accepted);
        assert_eq!((chip.due(5), entry(&mut chip, 5) & REMOTE_IRR), (None, 0));
    }
}

#[test]
fn extint_in_a_masked_entry_is_just_an_entry() {
    let mut chip = Ioapic::default();
    program(&mut chip, 0, EXTINT | MASKED);
    assert_eq!(raise(&mut chip, 0), None);
    assert_eq!(entry(&mut chip, 0), EXTINT | MASKED);
}

#[test]
fn reserved_delivery_modes_send_nothing_until_they_are_rewritten() {
    for mode in [3 << 8, 6 << 8] {
        let mut chip = Ioapic::default();
        program(&mut chip, 5, 0x41 | mode | LEVEL);
        assert_eq!(raise(&mut chip, 5), None);
        program(&mut chip, 5, 0x41 | LEVEL);
        assert_eq!(deliver(&mut chip, 5), Some(0x41));
    }
}

#[test]
fn an_entry_becomes_the_message_that_it_describes() {
    let mut chip = Ioapic::default().with_requester(RequesterId(0x00ff));
    for mode in [0, 1] {
        for destination in [0u32, 1, 0xff, 0x100, 0x1203, 0x7fff] {
            for logical in [0, 1] {
                let high = u64::from(destination & 0xff) << 56 | u64::from(destination >> 8) << 49;
                program(&mut chip, 9, high | logical << 11 | mode << 8 | 0x61 | LEVEL);
                let message = chip.programmed(9).unwrap();
                let interrupt = message.decode(DestinationFormat::Fifteen).unwrap();
                assert_eq!(message.requester, RequesterId(0x00ff));
                assert_eq!(interrupt.destination, destination);
                assert_eq!(u64::from(interrupt.destination_mode.into_bits()), logical);
                assert_eq!(u64::from(interrupt.delivery_mode as u8), mode);
                assert_eq!((interrupt.vector, interrupt.trigger), (0x61, Trigger::Level));
            }
        }
    }
}

#[test]
fn a_level_is_asserted_and_an_edge_is_not() {
    let mut chip = Ioapic::default();
    for (bits, data) in [(0x61, 0x0061), (0x61 | LEVEL, 0xc061), (NMI | LEVEL, 0x0400)] {
        program(&mut chip, 9, bits);
        assert_eq!(chip.programmed(9).map(|message| message.data), Some(data));
    }
}

#[test]
fn a_remappable_entry_passes_its_handle_through() {
    let mut chip = Ioapic::default();
    // VT-d 5.1.5.1: handle[14:0] in 63:49, format in 48, handle[15] in 11; delivery mode 0.
    program(&mut chip, 9, 0x5555 << 49 | 1 << 48 | 1 << 11 | 9);
    let message = chip.programmed(9).unwrap();
    assert_eq!(message.address, 0xfee0_0000 | 0x5555 << 5 | 1 << 4 | 1 << 2);
    assert_eq!(message.data, 9);
}

#[test]
fn a_pin_beyond_the_end_is_ignored() {
    let mut chip = Ioapic::new(2).unwrap();
    let before = chip.save();
    for pin in [2, 127, 128, 255] {
        assert!(!chip.set(pin, Level::High));
        chip.delivered(pin, Acceptance::Accepted);
        assert_eq!((chip.due(pin), chip.programmed(pin), chip.vector(pin)), (None, None, None));
    }
    assert_eq!(chip.save(), before);
}

#[test]
fn a_saved_state_that_no_chip_can_have_is_refused_or_cleaned() {
    let good = Ioapic::default().save();
    let restore = |state: &IoapicState| Ioapic::restore(state);
    assert_eq!(restore(&IoapicState { pins: vec![], ..good.clone() }), Err(PinCountError(0).into()));
    assert_eq!(restore(&IoapicState { id: 16, ..good.clone() }), Err(RestoreError::Id(16)));
    let pins = vec![PinState { entry: !(LEVEL | 0x700), level: Level::High, edge: true }];
    let mut chip = restore(&IoapicState { pins, ..good.clone() }).unwrap();
    assert_eq!(entry(&mut chip, 0) & (REMOTE_IRR | 1 << 12 | 0x0000_ffff_fffe_0000), 0);
    let pins = vec![PinState { entry: 0x41 | LEVEL, level: Level::Low, edge: true }];
    assert!(!restore(&IoapicState { pins, ..good }).unwrap().save().pins[0].edge);
}

#[test]
fn restoring_makes_no_edge_and_keeps_what_is_in_service() {
    let mut chip = Ioapic::default();
    program(&mut chip, 4, 0x31);
    program(&mut chip, 5, 0x41 | LEVEL);
    raise(&mut chip, 4);
    raise(&mut chip, 5);
    let mut restored = Ioapic::restore(&chip.save()).unwrap();
    assert_eq!((restored.due(4), restored.due(5)), (None, None));
    assert_eq!(raise(&mut restored, 4), None, "the line was high before");
    assert_eq!(restored.end_of_interrupt(0x41), PinSet::only(5));
}

#[cfg(feature = "serde")]
#[test]
fn a_saved_state_travels_as_json() {
    let mut chip = Ioapic::default();
    program(&mut chip, 5, 0x41 | LEVEL);
    raise(&mut chip, 5);
    let json = serde_json::to_string(&chip.save()).unwrap();
    let restored = Ioapic::restore(&serde_json::from_str(&json).unwrap());
    assert_eq!(restored, Ok(chip));
}

#[derive(Clone, Debug)]
enum Input {
    Write(u64, Vec<u8>),
    Entry(u8, u64),
    Read(u64, usize),
    Set(u8, Level),
    Deliver(u8, bool),
    End(u8),
}

fn input() -> impl Strategy<Value = Input> {
    let offset = prop_oneof![4 => Just(SELECT), 4 => Just(WINDOW), 2 => Just(EOI), 1 => 0..0x200u64];
    let size = prop_oneof![4 => Just(4usize), 1 => 0..9usize];
    let level = prop_oneof![Just(Level::Low), Just(Level::High)];
    // Few vectors and pins, so that they meet.
    let few = 0u64..4;
    let word = (few, any::<u64>()).prop_map(|(vector, bits)| bits & !0xff & !(1 << 16) | 0x40 | vector);
    prop_oneof![
        (offset.clone(), size.clone().prop_flat_map(|size| vec(any::<u8>(), size)))
            .prop_map(|(o, d)| Input::Write(o, d)),
        (0..5u8, word).prop_map(|(pin, bits)| Input::Entry(pin, bits)),
        (offset, size).prop_map(|(o, s)| Input::Read(o, s)),
        (0..5u8, level).prop_map(|(pin, level)| Input::Set(pin, level)),
        (0..5u8, any::<bool>()).prop_map(|(pin, accepted)| Input::Deliver(pin, accepted)),
        (0x40..0x44u8).prop_map(Input::End),
    ]
}

/// Everything that an input lets the outside see.
fn apply(chip: &mut Ioapic, input: &Input) -> String {
    match input {
        Input::Write(offset, data) => format!("{:?}", chip.write(*offset, data)),
        Input::Entry(pin, bits) => {
            program(chip, *pin, *bits);
            format!("{:?}", chip.due(*pin))
        }
        Input::Read(offset, size) => {
            let mut data = vec![0; *size];
            chip.read(*offset, &mut data);
            format!("{data:?}")
        }
        Input::Set(pin, level) => format!("{:?}", chip.set(*pin, *level).then(|| chip.due(*pin))),
        Input::Deliver(pin, accepted) => {
            let message = chip.due(*pin);
            if message.is_some() {
                chip.delivered(*pin, if *accepted { Acceptance::Accepted } else { Acceptance::Refused });
            }
            format!("{message:?}")
        }
        Input::End(vector) => format!("{:?}", chip.end_of_interrupt(*vector)),
    }
}

proptest! {
    #[test]
    fn any_inputs_keep_the_rules_and_a_restored_chip_goes_on_alike(inputs in vec(input(), 1..200), at in 0..200usize) {
        let mut chip = Ioapic::new(4).unwrap();
        let mut restored = None;
        for (step, input) in inputs.iter().enumerate() {
            if step == at {
                restored = Some(Ioapic::restore(&chip.save()).unwrap());
            }
            let seen = apply(&mut chip, input);
            if let Some(restored) = &mut restored {
                prop_assert_eq!(&seen, &apply(restored, input));
            }
            let state = chip.save();
            for (pin, state) in (0..).zip(&state.pins) {
                let level_triggered = chip.trigger(pin) == Some(Trigger::Level);
                let in_service = state.entry & REMOTE_IRR != 0;
                prop_assert!(level_triggered || !in_service, "remote IRR on an edge pin");
                if chip.due(pin).is_some() {
                    prop_assert_eq!(state.entry & MASKED, 0, "due while masked");
                    prop_assert!(!in_service, "due while in service");
                    let cause = if level_triggered { state.level == Level::High } else { state.edge };
                    prop_assert!(cause, "due without a cause");
                }
            }
        }
    }
}
