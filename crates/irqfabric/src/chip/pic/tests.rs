use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

const ELCR: u16 = 0x4d0;
const NON_SPECIFIC_EOI: u8 = 0x20;
const SPECIFIC_EOI: u8 = 0x60;
const ROTATE_ON_NON_SPECIFIC_EOI: u8 = 0xa0;
const ROTATE_ON_SPECIFIC_EOI: u8 = 0xe0;
const SET_PRIORITY: u8 = 0xc0;
const ROTATE_IN_AUTO_EOI: u8 = 0x80;
const NO_ROTATE_IN_AUTO_EOI: u8 = 0x00;
const NO_OPERATION: u8 = 0x40;
const READ_REQUESTS: u8 = 0x0a;
const READ_IN_SERVICE: u8 = 0x0b;
const POLL: u8 = 0x0c;
const SPECIAL_MASK: u8 = 0x68;
const NO_SPECIAL_MASK: u8 = 0x48;
const AUTO_EOI: u8 = 0x02;
const SPECIAL_FULLY_NESTED: u8 = 0x10;

/// A guest's hand on one of the two, by its command port.
#[derive(Clone, Copy)]
struct Port(u16);
const MASTER: Port = Port(0x20);
const SLAVE: Port = Port(0xa0);

impl Port {
    fn command(self, pic: &mut Pic, word: u8) {
        pic.write(self.0, &[word]);
    }

    fn data(self, pic: &mut Pic, word: u8) {
        pic.write(self.0 + 1, &[word]);
    }

    fn mask(self, pic: &mut Pic) -> u8 {
        read(pic, self.0 + 1)
    }

    fn requests(self, pic: &mut Pic) -> u8 {
        self.command(pic, READ_REQUESTS);
        read(pic, self.0)
    }

    fn in_service(self, pic: &mut Pic) -> u8 {
        self.command(pic, READ_IN_SERVICE);
        read(pic, self.0)
    }

    fn poll(self, pic: &mut Pic) -> u8 {
        self.command(pic, POLL);
        read(pic, self.0)
    }

    fn initialize(self, pic: &mut Pic, icw4: u8) {
        let (vectors, icw3) = if self.0 == MASTER.0 { (0x30, 0x04) } else { (0x38, 0x02) };
        self.command(pic, 0x11);
        for word in [vectors, icw3, icw4] {
            self.data(pic, word);
        }
    }
}

fn read(pic: &mut Pic, port: u16) -> u8 {
    let mut data = [0];
    pic.read(port, &mut data);
    data[0]
}

/// Both initialized with these ICW4s, vectors 0x30 and 0x38.
fn initialized(master: u8, slave: u8) -> Pic {
    let mut pic = Pic::default();
    MASTER.initialize(&mut pic, 0x01 | master);
    SLAVE.initialize(&mut pic, 0x01 | slave);
    pic
}

fn pic() -> Pic {
    initialized(0, 0)
}

fn raise(pic: &mut Pic, input: u8) {
    pic.set(input, Level::High);
}

fn lower(pic: &mut Pic, input: u8) {
    pic.set(input, Level::Low);
}

/// What a processor with interrupts on does.
fn take(pic: &mut Pic) -> Option<u8> {
    (pic.output() == Level::High).then(|| pic.acknowledge())
}

#[test]
fn every_input_has_the_vector_that_icw2_gives() {
    for input in (0..16).filter(|input| *input != CASCADE) {
        let mut pic = pic();
        raise(&mut pic, input);
        assert_eq!(take(&mut pic), Some(0x30 + input));
        assert_eq!(take(&mut pic), None);
    }
}

#[test]
fn icw2_gives_the_upper_five_bits_only() {
    let mut pic = Pic::default();
    MASTER.command(&mut pic, 0x11);
    for word in [0x57, 0x04, 0x01] {
        MASTER.data(&mut pic, word);
    }
    raise(&mut pic, 1);
    assert_eq!(take(&mut pic), Some(0x51));
}

#[test]
fn an_edge_is_delivered_once_for_each_rise() {
    let mut pic = pic();
    raise(&mut pic, 4);
    raise(&mut pic, 4);
    assert_eq!(take(&mut pic), Some(0x34));
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    assert_eq!(take(&mut pic), None, "it is high still");
    lower(&mut pic, 4);
    raise(&mut pic, 4);
    assert_eq!(take(&mut pic), Some(0x34));
}

#[test]
fn an_edge_while_masked_is_delivered_by_unmasking() {
    let mut pic = pic();
    MASTER.data(&mut pic, 0x10);
    raise(&mut pic, 4);
    assert_eq!((take(&mut pic), MASTER.requests(&mut pic)), (None, 0x10));
    MASTER.data(&mut pic, 0);
    assert_eq!(take(&mut pic), Some(0x34));
}

#[test]
fn an_edge_whose_line_falls_before_inta_is_the_default_ir7() {
    let mut pic = pic();
    raise(&mut pic, 4);
    lower(&mut pic, 4);
    assert_eq!((take(&mut pic), take(&mut pic)), (Some(0x37), None));
    assert_eq!((MASTER.in_service(&mut pic), MASTER.requests(&mut pic)), (0, 0));
}

#[test]
fn a_level_that_falls_before_inta_is_the_default_ir7() {
    let mut pic = pic();
    pic.write(ELCR, &[0x20]);
    raise(&mut pic, 5);
    lower(&mut pic, 5);
    assert_eq!((take(&mut pic), MASTER.in_service(&mut pic)), (Some(0x37), 0));
}

#[test]
fn the_slaves_default_ir7_leaves_the_cascade_in_service_in_the_master() {
    let mut pic = pic();
    raise(&mut pic, 11);
    lower(&mut pic, 11);
    assert_eq!(take(&mut pic), Some(0x3f));
    assert_eq!((MASTER.in_service(&mut pic), SLAVE.in_service(&mut pic)), (0x04, 0));
}

#[test]
fn an_acknowledgement_out_of_the_blue_is_the_default_ir7() {
    let mut pic = pic();
    assert_eq!((pic.acknowledge(), MASTER.in_service(&mut pic)), (0x37, 0));
}

#[test]
fn another_request_takes_the_place_of_one_that_is_withdrawn() {
    let mut pic = pic();
    raise(&mut pic, 4);
    raise(&mut pic, 6);
    lower(&mut pic, 4);
    assert_eq!((take(&mut pic), take(&mut pic)), (Some(0x36), None));
}

#[test]
fn a_request_withdrawn_by_its_mask_leaves_nothing_behind() {
    for (input, port) in [(4, MASTER), (12, SLAVE)] {
        let mut pic = pic();
        raise(&mut pic, input);
        port.data(&mut pic, 0x10);
        assert_eq!(take(&mut pic), None, "input {input}");
    }
}

#[test]
fn a_pulse_is_latched_until_it_is_acknowledged() {
    for input in [4, 12] {
        let mut pic = pic();
        pic.pulse(input);
        pic.pulse(input);
        assert_eq!((take(&mut pic), take(&mut pic)), (Some(0x30 + input), None));
    }
}

#[test]
fn a_pulse_on_a_line_that_is_high_is_no_edge() {
    let mut pic = pic();
    raise(&mut pic, 4);
    take(&mut pic);
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    pic.pulse(4);
    assert_eq!(take(&mut pic), None);
}

#[test]
fn driving_a_line_to_the_level_that_it_has_does_nothing() {
    let mut pic = pic();
    pic.pulse(4);
    lower(&mut pic, 4);
    raise(&mut pic, 5);
    let before = pic.clone();
    raise(&mut pic, 5);
    assert_eq!(pic, before);
    assert_eq!(take(&mut pic), Some(0x34));
}

#[test]
fn a_pulse_on_a_level_input_leaves_nothing() {
    let mut pic = pic();
    pic.write(ELCR, &[0x20]);
    pic.pulse(5);
    assert_eq!((take(&mut pic), MASTER.requests(&mut pic)), (None, 0));
}

#[test]
fn a_level_still_high_after_eoi_is_delivered_again() {
    let mut pic = pic();
    pic.write(ELCR + 1, &[0x08]);
    raise(&mut pic, 11);
    for _ in 0..3 {
        assert_eq!((take(&mut pic), take(&mut pic)), (Some(0x3b), None));
        assert_eq!(SLAVE.requests(&mut pic), 0x08, "a level is not latched");
        SLAVE.command(&mut pic, NON_SPECIFIC_EOI);
        MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    }
    take(&mut pic);
    lower(&mut pic, 11);
    SLAVE.command(&mut pic, NON_SPECIFIC_EOI);
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    assert_eq!(take(&mut pic), None);
}

#[test]
fn the_elcr_leaves_the_inputs_of_a_pcs_own_devices_edge() {
    let mut pic = pic();
    pic.write(ELCR, &[0xff, 0xff]);
    assert_eq!((read(&mut pic, ELCR), read(&mut pic, ELCR + 1)), (0xf8, 0xde));
}

#[test]
fn an_input_that_becomes_level_is_its_line_and_one_that_becomes_edge_needs_a_rise() {
    let mut pic = pic();
    raise(&mut pic, 5);
    take(&mut pic);
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    pic.write(ELCR, &[0x20]);
    assert_eq!(MASTER.requests(&mut pic), 0x20);
    pic.write(ELCR, &[0]);
    assert_eq!((MASTER.requests(&mut pic), take(&mut pic)), (0, None));
    lower(&mut pic, 5);
    raise(&mut pic, 5);
    assert_eq!(take(&mut pic), Some(0x35));
}

#[test]
fn ir0_goes_first_and_the_slave_between_ir1_and_ir3() {
    let mut pic = pic();
    for input in [7, 15, 3, 8, 1] {
        raise(&mut pic, input);
    }
    let mut taken = Vec::new();
    while let Some(vector) = take(&mut pic) {
        taken.push(vector);
        assert!(taken.len() <= 5, "{taken:#x?}");
        if vector >= 0x38 {
            SLAVE.command(&mut pic, NON_SPECIFIC_EOI);
        }
        MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    }
    assert_eq!(taken, [0x31, 0x38, 0x3f, 0x33, 0x37]);
}

#[test]
fn what_is_in_service_locks_out_itself_and_everything_below() {
    let mut pic = pic();
    raise(&mut pic, 4);
    take(&mut pic);
    lower(&mut pic, 4);
    raise(&mut pic, 4);
    raise(&mut pic, 5);
    assert_eq!(take(&mut pic), None);
    raise(&mut pic, 3);
    assert_eq!(take(&mut pic), Some(0x33), "what is above interrupts");
    assert_eq!(MASTER.in_service(&mut pic), 0x18);
}

#[test]
fn a_non_specific_eoi_ends_the_highest_in_service() {
    let mut pic = pic();
    for input in [5, 3] {
        raise(&mut pic, input);
        take(&mut pic);
    }
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    assert_eq!(MASTER.in_service(&mut pic), 0x20);
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    assert_eq!(MASTER.in_service(&mut pic), 0);
}

#[test]
fn a_specific_eoi_ends_the_one_it_names() {
    let mut pic = pic();
    for input in [5, 3] {
        raise(&mut pic, input);
        take(&mut pic);
    }
    MASTER.command(&mut pic, SPECIFIC_EOI | 5);
    assert_eq!(MASTER.in_service(&mut pic), 0x08);
    MASTER.command(&mut pic, SPECIFIC_EOI | 5);
    assert_eq!(MASTER.in_service(&mut pic), 0x08);
}

#[test]
fn no_operation_is_none() {
    let mut pic = pic();
    raise(&mut pic, 3);
    take(&mut pic);
    let before = pic.clone();
    MASTER.command(&mut pic, NO_OPERATION | 3);
    assert_eq!(pic, before);
}

/// The vectors of 3 and 5, both requested, in the order they are taken in.
fn order_of_3_and_5(pic: &mut Pic) -> [u8; 2] {
    for input in [3, 5] {
        lower(pic, input);
        raise(pic, input);
    }
    [(), ()].map(|()| {
        let vector = take(pic).unwrap();
        MASTER.command(pic, SPECIFIC_EOI | vector & 7);
        vector
    })
}

#[test]
fn set_priority_makes_its_level_the_lowest() {
    let mut pic = pic();
    MASTER.command(&mut pic, SET_PRIORITY | 4);
    assert_eq!(order_of_3_and_5(&mut pic), [0x35, 0x33]);
    MASTER.command(&mut pic, SET_PRIORITY | 7);
    assert_eq!(order_of_3_and_5(&mut pic), [0x33, 0x35]);
}

#[test]
fn a_rotating_eoi_makes_what_it_ends_the_lowest() {
    for eoi in [ROTATE_ON_NON_SPECIFIC_EOI, ROTATE_ON_SPECIFIC_EOI | 4] {
        let mut pic = pic();
        raise(&mut pic, 4);
        take(&mut pic);
        MASTER.command(&mut pic, eoi);
        assert_eq!(MASTER.in_service(&mut pic), 0);
        assert_eq!(order_of_3_and_5(&mut pic), [0x35, 0x33]);
    }
}

#[test]
fn a_rotating_non_specific_eoi_without_an_interrupt_rotates_nothing() {
    let mut pic = pic();
    MASTER.command(&mut pic, ROTATE_ON_NON_SPECIFIC_EOI);
    assert_eq!(order_of_3_and_5(&mut pic), [0x33, 0x35]);
}

#[test]
fn priority_goes_round_for_what_is_in_service_too() {
    let mut pic = pic();
    MASTER.command(&mut pic, SET_PRIORITY | 4);
    raise(&mut pic, 3);
    assert_eq!(take(&mut pic), Some(0x33));
    raise(&mut pic, 4);
    assert_eq!(take(&mut pic), None, "4 is below 3");
    raise(&mut pic, 7);
    assert_eq!(take(&mut pic), Some(0x37), "7 is above 3");
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    assert_eq!(MASTER.in_service(&mut pic), 0x08);
}

#[test]
fn in_auto_eoi_nothing_stays_in_service_and_a_high_level_comes_again() {
    let mut pic = initialized(AUTO_EOI, AUTO_EOI);
    pic.write(ELCR + 1, &[0x08]);
    raise(&mut pic, 11);
    for _ in 0..2 {
        assert_eq!(take(&mut pic), Some(0x3b));
        assert_eq!((MASTER.in_service(&mut pic), SLAVE.in_service(&mut pic)), (0, 0));
    }
    lower(&mut pic, 11);
    raise(&mut pic, 3);
    assert_eq!((take(&mut pic), take(&mut pic)), (Some(0x3f), Some(0x33)));
}

#[test]
fn a_line_that_falls_with_its_automatic_end_leaves_no_request_behind() {
    for input in [3, 7, 8, 12] {
        let mut pic = initialized(AUTO_EOI, AUTO_EOI);
        raise(&mut pic, input);
        assert_eq!(take(&mut pic), Some(0x30 + input));
        lower(&mut pic, input);
        raise(&mut pic, input);
        pic.ended(input, Level::Low);
        assert_eq!((take(&mut pic), pic.save().master.high & 4), (None, 0), "input {input}");
    }
}

#[test]
fn a_level_that_stands_after_its_automatic_end_comes_again() {
    for input in [5, 11] {
        let mut pic = initialized(AUTO_EOI, AUTO_EOI);
        pic.write(ELCR, &[0x20, 0x08]);
        raise(&mut pic, input);
        assert_eq!(take(&mut pic), Some(0x30 + input));
        pic.ended(input, Level::High);
        assert_eq!(take(&mut pic), Some(0x30 + input));
    }
}

#[test]
fn auto_eoi_rotates_while_it_is_told_to() {
    let mut pic = initialized(AUTO_EOI, 0);
    MASTER.command(&mut pic, ROTATE_IN_AUTO_EOI);
    raise(&mut pic, 4);
    take(&mut pic);
    MASTER.command(&mut pic, NO_ROTATE_IN_AUTO_EOI);
    raise(&mut pic, 3);
    raise(&mut pic, 5);
    assert_eq!((take(&mut pic), take(&mut pic)), (Some(0x35), Some(0x33)));
    raise(&mut pic, 6);
    lower(&mut pic, 5);
    raise(&mut pic, 5);
    assert_eq!(take(&mut pic), Some(0x35), "the order did not change");
}

#[test]
fn two_requests_of_an_auto_eoi_slave_are_two_edges_for_the_master() {
    let mut pic = initialized(0, AUTO_EOI);
    raise(&mut pic, 8);
    raise(&mut pic, 9);
    assert_eq!((take(&mut pic), take(&mut pic)), (Some(0x38), None));
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    assert_eq!(take(&mut pic), Some(0x39));
}

#[test]
fn a_higher_request_of_the_slave_waits_for_the_masters_eoi() {
    let mut pic = pic();
    raise(&mut pic, 12);
    take(&mut pic);
    raise(&mut pic, 9);
    assert_eq!(take(&mut pic), None);
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    assert_eq!(take(&mut pic), Some(0x39));
}

#[test]
fn in_special_fully_nested_mode_it_does_not_wait_and_lower_inputs_of_the_master_do() {
    let mut pic = initialized(SPECIAL_FULLY_NESTED, 0);
    raise(&mut pic, 12);
    take(&mut pic);
    raise(&mut pic, 3);
    raise(&mut pic, 13);
    assert_eq!(take(&mut pic), None);
    raise(&mut pic, 9);
    assert_eq!(take(&mut pic), Some(0x39));
    assert_eq!(SLAVE.in_service(&mut pic), 0x12);
}

#[test]
fn special_fully_nested_mode_concerns_the_cascade_only() {
    let mut pic = initialized(SPECIAL_FULLY_NESTED, SPECIAL_FULLY_NESTED);
    for (input, vector) in [(4, 0x34), (10, 0x3a)] {
        raise(&mut pic, input);
        assert_eq!(take(&mut pic), Some(vector));
        lower(&mut pic, input);
        raise(&mut pic, input);
        assert_eq!(take(&mut pic), None);
    }
}

#[test]
fn in_special_mask_mode_a_masked_input_in_service_locks_nobody_out() {
    let mut pic = pic();
    raise(&mut pic, 3);
    take(&mut pic);
    raise(&mut pic, 5);
    MASTER.data(&mut pic, 0x08);
    assert_eq!(take(&mut pic), None);
    MASTER.command(&mut pic, SPECIAL_MASK);
    lower(&mut pic, 3);
    raise(&mut pic, 3);
    assert_eq!((take(&mut pic), take(&mut pic)), (Some(0x35), None));
}

#[test]
fn in_special_mask_mode_a_non_specific_eoi_passes_masked_inputs_over() {
    let mut pic = pic();
    raise(&mut pic, 3);
    take(&mut pic);
    MASTER.data(&mut pic, 0x08);
    MASTER.command(&mut pic, SPECIAL_MASK);
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    assert_eq!(MASTER.in_service(&mut pic), 0x08);
    MASTER.command(&mut pic, SPECIFIC_EOI | 3);
    assert_eq!(MASTER.in_service(&mut pic), 0);
    raise(&mut pic, 4);
    take(&mut pic);
    MASTER.data(&mut pic, 0x10);
    MASTER.command(&mut pic, NO_SPECIAL_MASK);
    MASTER.command(&mut pic, NON_SPECIFIC_EOI);
    assert_eq!(MASTER.in_service(&mut pic), 0);
}

#[test]
fn a_poll_is_an_acknowledgement_for_one_read_of_either_port() {
    for port in [0x20, 0x21] {
        let mut pic = pic();
        raise(&mut pic, 4);
        MASTER.command(&mut pic, POLL);
        assert_eq!((read(&mut pic, port), pic.output()), (0x84, Level::Low));
        assert_eq!((MASTER.in_service(&mut pic), MASTER.mask(&mut pic)), (0x10, 0));
    }
}

#[test]
fn a_poll_without_a_request_says_so() {
    let mut pic = pic();
    assert_eq!((MASTER.poll(&mut pic), MASTER.in_service(&mut pic)), (0x07, 0));
}

#[test]
fn the_slave_is_polled_after_the_master_has_named_it() {
    let mut pic = pic();
    raise(&mut pic, 12);
    assert_eq!((MASTER.poll(&mut pic), SLAVE.poll(&mut pic)), (0x82, 0x84));
    assert_eq!((MASTER.in_service(&mut pic), SLAVE.in_service(&mut pic)), (0x04, 0x10));
    assert_eq!(pic.output(), Level::Low);
}

#[test]
fn a_poll_of_the_slave_alone_takes_its_request_from_the_master() {
    let mut pic = pic();
    raise(&mut pic, 12);
    assert_eq!(SLAVE.poll(&mut pic), 0x84);
    assert_eq!((pic.output(), MASTER.requests(&mut pic)), (Level::Low, 0));
}

#[test]
fn an_acknowledgement_tells_the_line_it_is_of() {
    for input in (0..16).filter(|input| *input != CASCADE) {
        let mut pic = pic();
        raise(&mut pic, input);
        assert_eq!(pic.acknowledge_input(), Acknowledged { vector: 0x30 + input, input: Some(input) });
        let cascade = if input < 8 { 0 } else { 1 << CASCADE };
        assert_eq!(pic.in_service(), 1 << input | cascade);
        assert_eq!(pic.acknowledge_input(), Acknowledged { vector: 0x37, input: None });
    }
    let mut pic = pic();
    raise(&mut pic, 12);
    lower(&mut pic, 12);
    assert_eq!(pic.acknowledge_input(), Acknowledged { vector: 0x3f, input: None });
}

#[test]
fn a_poll_tells_the_line_it_has_acknowledged() {
    for input in (0..16).filter(|input| *input != CASCADE) {
        let mut pic = pic();
        raise(&mut pic, input);
        let port = if input < 8 { MASTER } else { SLAVE };
        let mut data = [0; 2];
        assert_eq!(pic.read_acknowledging(port.0, &mut data), None, "a status is no poll");
        port.command(&mut pic, POLL);
        // The byte behind it is the mask, which acknowledges nothing and takes nothing back.
        assert_eq!(pic.read_acknowledging(port.0, &mut data), Some(input));
        assert_eq!(data, [0x80 | input & 7, 0]);
    }
    let mut pic = pic();
    raise(&mut pic, 12);
    MASTER.command(&mut pic, POLL);
    assert_eq!(pic.read_acknowledging(MASTER.0, &mut [0]), None, "the cascade is no line's");
}

#[test]
fn a_poll_overrides_the_status_read_that_comes_with_it_and_leaves_it_for_the_next() {
    let mut pic = pic();
    raise(&mut pic, 4);
    MASTER.command(&mut pic, POLL | READ_IN_SERVICE);
    assert_eq!((read(&mut pic, 0x20), read(&mut pic, 0x20)), (0x84, 0x10));
}

#[test]
fn the_status_register_is_the_one_chosen_last() {
    let mut pic = pic();
    raise(&mut pic, 4);
    take(&mut pic);
    raise(&mut pic, 5);
    assert_eq!((read(&mut pic, 0x20), MASTER.in_service(&mut pic)), (0x20, 0x10));
    MASTER.command(&mut pic, 0x08);
    assert_eq!(read(&mut pic, 0x20), 0x10, "an OCW3 that chooses none");
    assert_eq!(MASTER.requests(&mut pic), 0x20);
}

#[test]
fn icw1_resets_what_the_sheet_lists() {
    let mut pic = initialized(AUTO_EOI | SPECIAL_FULLY_NESTED, 0);
    MASTER.initialize(&mut pic, 0x01);
    raise(&mut pic, 4);
    take(&mut pic);
    raise(&mut pic, 5);
    MASTER.data(&mut pic, 0xff);
    for word in [SET_PRIORITY | 3, SPECIAL_MASK, READ_IN_SERVICE, POLL] {
        MASTER.command(&mut pic, word);
    }
    MASTER.command(&mut pic, 0x11);
    assert_eq!((read(&mut pic, 0x20), read(&mut pic, 0x21)), (0, 0), "the edges, no poll, and the mask");
    assert_eq!(MASTER.in_service(&mut pic), 0);
    for word in [0x30, 0x04, 0x01] {
        MASTER.data(&mut pic, word);
    }
    assert_eq!(take(&mut pic), None, "lines that were high need a new rise");
    assert_eq!(order_of_3_and_5(&mut pic), [0x33, 0x35]);
}

#[test]
fn icw1_leaves_a_level_that_is_high() {
    let mut pic = pic();
    pic.write(ELCR + 1, &[0x08]);
    raise(&mut pic, 11);
    MASTER.initialize(&mut pic, 0x01);
    assert_eq!(take(&mut pic), None, "the slave has no new edge for the master");
    SLAVE.initialize(&mut pic, 0x01);
    assert_eq!(take(&mut pic), Some(0x3b));
}

#[test]
fn without_icw4_all_that_it_says_is_off() {
    let mut pic = initialized(AUTO_EOI, 0);
    MASTER.command(&mut pic, 0x10);
    MASTER.data(&mut pic, 0x40);
    MASTER.data(&mut pic, 0x04);
    MASTER.data(&mut pic, 0x80);
    assert_eq!(MASTER.mask(&mut pic), 0x80, "it was the mask already");
    raise(&mut pic, 4);
    assert_eq!((take(&mut pic), MASTER.in_service(&mut pic)), (Some(0x44), 0x10));
}

#[test]
fn a_single_master_expects_no_icw3_and_answers_ir2_itself() {
    let mut pic = pic();
    MASTER.command(&mut pic, 0x13);
    for word in [0x30, 0x01, 0x80] {
        MASTER.data(&mut pic, word);
    }
    assert_eq!(MASTER.mask(&mut pic), 0x80);
    raise(&mut pic, 12);
    assert_eq!((take(&mut pic), SLAVE.in_service(&mut pic)), (Some(0x32), 0));
}

#[test]
fn a_wide_access_is_one_of_each_byte() {
    let mut pic = pic();
    pic.write(0x20, &[READ_IN_SERVICE, 0xab, 0xcd]);
    let mut data = [0; 4];
    pic.read(0x1f, &mut data);
    assert_eq!(data, [0xff, 0x00, 0xab, 0xff]);
    pic.read(u16::MAX, &mut data);
    assert_eq!(data, [0xff; 4]);
    pic.write(u16::MAX, &data);
}

#[test]
fn ports_that_are_not_the_pairs_read_all_ones_and_ignore_writes() {
    let mut pic = pic();
    let before = pic.clone();
    for port in (0..=u16::MAX).filter(|port| !PORTS.contains(port)) {
        pic.write(port, &[0x11]);
        assert_eq!(read(&mut pic, port), 0xff);
    }
    assert_eq!(pic, before);
}

#[test]
fn no_line_is_input_2_or_beyond_15() {
    let mut pic = pic();
    let before = pic.clone();
    for input in [CASCADE, 16, 255] {
        raise(&mut pic, input);
        pic.pulse(input);
    }
    assert_eq!(pic, before);
}

#[test]
fn a_restored_pair_is_the_saved_one() {
    let mut pic = initialized(SPECIAL_FULLY_NESTED, AUTO_EOI);
    pic.write(ELCR, &[0x20, 0x08]);
    for input in [3, 5, 11, 8] {
        raise(&mut pic, input);
    }
    take(&mut pic);
    lower(&mut pic, 3);
    SLAVE.command(&mut pic, POLL);
    assert_eq!(Pic::restore(&pic.save()), pic);
}

#[test]
fn a_state_that_no_pair_can_have_is_made_one() {
    let state =
        ControllerState { high: 0xff, edges: 0xff, elcr: 0xff, vectors: 0xff, highest: 0xff, ..Default::default() };
    let pic = Pic::restore(&PicState { master: ControllerState::default(), slave: state });
    let saved = pic.save();
    assert_eq!((saved.slave.elcr, saved.slave.edges, saved.slave.vectors, saved.slave.highest), (0xde, 0x21, 0xf8, 7));
    assert_eq!((saved.master.high, saved.master.edges, pic.output()), (0x04, 0x04, Level::High));
}

#[cfg(feature = "serde")]
#[test]
fn a_saved_state_travels_as_json() {
    let mut pic = pic();
    raise(&mut pic, 12);
    let json = serde_json::to_string(&pic.save()).unwrap();
    assert_eq!(Pic::restore(&serde_json::from_str(&json).unwrap()), pic);
}

#[derive(Clone, Debug)]
enum Operation {
    Set(u8, Level),
    Pulse(u8),
    Read(u16, usize),
    Write(u16, Vec<u8>),
    Acknowledge,
}

fn operation() -> impl Strategy<Value = Operation> {
    let port = prop_oneof![8 => proptest::sample::select(&PORTS[..]), 1 => any::<u16>()];
    let level = prop_oneof![Just(Level::Low), Just(Level::High)];
    prop_oneof![
        (0..18u8, level).prop_map(|(input, level)| Operation::Set(input, level)),
        (0..18u8).prop_map(Operation::Pulse),
        (port.clone(), 0..9usize).prop_map(|(port, size)| Operation::Read(port, size)),
        (port, vec(any::<u8>(), 0..4)).prop_map(|(port, data)| Operation::Write(port, data)),
        Just(Operation::Acknowledge),
    ]
}

/// What no input may break.
fn check(pic: &Pic) {
    let PicState { master, slave } = pic.save();
    for (chip, writable) in [(master, 0xf8), (slave, 0xde)] {
        assert_eq!((chip.elcr & !writable, chip.edges & chip.elcr, chip.vectors & 7), (0, 0, 0));
        assert!(chip.highest < 8);
    }
    assert_eq!(master.high & 4 != 0, slave.int == Level::High, "one wire");
    assert_eq!(&Pic::restore(&pic.save()), pic);
}

proptest! {
    #[test]
    fn whatever_comes_in_the_pair_stays_one_that_can_be(operations in vec(operation(), 0..200)) {
        let mut pic = Pic::default();
        for operation in operations {
            match operation {
                Operation::Set(input, level) => pic.set(input, level),
                Operation::Pulse(input) => pic.pulse(input),
                Operation::Read(port, size) => pic.read(port, &mut vec![0; size]),
                Operation::Write(port, data) => pic.write(port, &data),
                Operation::Acknowledge => {
                    let requested = pic.output() == Level::High;
                    let before = pic.save();
                    let vector = pic.acknowledge();
                    prop_assert!(requested || vector == before.master.vectors | 7);
                }
            }
            check(&pic);
        }
    }
}
