//! From a message to its end: who is meant, what is taken, in which order, and what is sent.

use super::*;

// Destinations.

#[test]
fn an_xapic_matches_its_id_and_the_broadcast() {
    let lapic = xapic(3);
    assert!(lapic.matches(3, PHYSICAL));
    assert!(lapic.matches(0xff, PHYSICAL));
    assert!(lapic.matches(0xff, LOGICAL));
    for destination in [0, 2, 0x103, 0xffff_ff03, 0xffff_ffff] {
        assert!(!lapic.matches(destination, PHYSICAL), "{destination:#x}");
    }
}

#[test]
fn an_xapic_with_an_id_above_255_matches_that_alone() {
    let lapic = xapic(0x103);
    assert!(lapic.matches(0x103, PHYSICAL));
    assert!(lapic.matches(0xff, PHYSICAL));
    assert!(!lapic.matches(3, PHYSICAL));
    assert!(!lapic.matches(0x103, LOGICAL));
}

#[test]
fn the_flat_model_is_a_mask_of_eight() {
    let lapic = logical(!0, 0b0101_0000);
    for (destination, expected) in [(0x10, true), (0x41, true), (0xff, true), (0xaf, false), (0, false)] {
        assert_eq!(lapic.matches(destination, LOGICAL), expected, "{destination:#x}");
    }
    for destination in [0x110, 0xffff_ff10, 0xffff_ffff] {
        assert!(!lapic.matches(destination, LOGICAL), "{destination:#x}");
    }
}

#[test]
fn the_cluster_model_is_a_number_and_a_mask_of_four() {
    let lapic = logical(0x0fff_ffff, 0x26);
    for (destination, expected) in
        [(0x22, true), (0x2f, true), (0xff, true), (0x29, false), (0x32, false), (0x20, false)]
    {
        assert_eq!(lapic.matches(destination, LOGICAL), expected, "{destination:#x}");
    }
    assert!(!lapic.matches(0x122, LOGICAL));
}

#[test]
fn a_model_that_does_not_exist_matches_the_broadcast_alone() {
    let lapic = logical(0x5fff_ffff, 0xff);
    assert!((0..0xff).all(|destination| !lapic.matches(destination, LOGICAL)));
    assert!(lapic.matches(0xff, LOGICAL));
}

#[test]
fn in_x2apic_mode_ff_is_the_id_255() {
    assert!(x2apic(255).matches(0xff, PHYSICAL));
    assert!(!x2apic(3).matches(0xff, PHYSICAL));
    assert!(x2apic(3).matches(0xffff_ffff, PHYSICAL));
    assert!(x2apic(3).matches(0xffff_ffff, LOGICAL));
}

#[test]
fn in_x2apic_mode_a_logical_destination_is_a_cluster_and_a_mask_of_sixteen() {
    let lapic = x2apic(0x35);
    assert!(lapic.matches(0x3_0020, LOGICAL));
    assert!(lapic.matches(0x3_ffff, LOGICAL));
    assert!(!lapic.matches(0x3_ffdf, LOGICAL));
    assert!(!lapic.matches(0x2_0020, LOGICAL));
    assert!(!lapic.matches(0x20, LOGICAL));
}

#[test]
fn in_x2apic_mode_eight_bits_of_a_legacy_message_reach_the_first_eight_of_cluster_0() {
    for id in 0..64 {
        assert_eq!(x2apic(id).matches(0xff, LOGICAL), id < 8);
        assert_eq!(x2apic(id).matches(0x81, LOGICAL), id == 0 || id == 7);
    }
}

#[test]
fn a_disabled_one_matches_nothing() {
    let mut lapic = xapic(1);
    lapic.write_msr(IA32_APIC_BASE, PAGE).unwrap();
    for destination in [1, 0xff, 0xffff_ffff] {
        assert!(!lapic.matches(destination, PHYSICAL));
        assert!(!lapic.matches(destination, LOGICAL));
    }
}

// Acceptance.

#[test]
fn an_interrupt_goes_from_irr_to_isr_to_its_end() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[edge(0x31)]);
    assert!(lapic.shows(IRR, 0x31) && !lapic.shows(ISR, 0x31));
    assert_eq!(lapic.acknowledge(), Some(0x31));
    assert!(!lapic.shows(IRR, 0x31) && lapic.shows(ISR, 0x31));
    assert_eq!(lapic.end(), None);
    assert!(!lapic.shows(IRR, 0x31) && !lapic.shows(ISR, 0x31));
    assert_eq!(lapic.acknowledge(), None);
}

#[test]
fn every_legal_vector_is_shown_where_it_belongs() {
    for vector in 16..=255 {
        let mut lapic = xapic(1);
        accept(&mut lapic, &[level(vector)]);
        for other in 0..=255 {
            assert_eq!(lapic.shows(IRR, other), other == vector);
            assert_eq!(lapic.shows(TMR, other), other == vector);
        }
        assert_eq!(lapic.acknowledge(), Some(vector));
        assert_eq!(lapic.end(), Some(Effect::EndOfInterrupt(vector)));
    }
}

#[test]
fn a_pending_vector_that_comes_again_is_taken_once() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[edge(0x31), edge(0x31)]);
    assert_eq!(lapic.acknowledge(), Some(0x31));
    lapic.end();
    assert_eq!(lapic.acknowledge(), None);
}

#[test]
fn a_vector_in_service_that_comes_again_is_taken_again_after_its_end() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[edge(0x31)]);
    lapic.acknowledge();
    accept(&mut lapic, &[edge(0x31)]);
    assert_eq!(lapic.acknowledge(), None);
    lapic.end();
    assert_eq!(lapic.acknowledge(), Some(0x31));
}

#[test]
fn a_vector_below_16_is_refused_and_an_error() {
    let mut lapic = xapic(1);
    for vector in 0..16 {
        assert_eq!(lapic.accept(&level(vector)), Acceptance::Refused);
        assert_eq!(lapic.take_errors(), RECEIVE_ILLEGAL_VECTOR);
    }
    assert_eq!(lapic.get(IRR), 0);
    assert_eq!(lapic.get(TMR), 0);
}

#[test]
fn a_software_disabled_one_takes_nmi_smi_init_and_sipi_only() {
    let mut lapic = Lapic::new(1);
    assert_eq!(lapic.accept(&edge(0x31)), Acceptance::Refused);
    assert_eq!(lapic.accept(&of(DeliveryMode::LowestPriority)), Acceptance::Refused);
    assert_eq!(lapic.accept(&edge(3)), Acceptance::Refused);
    accept(&mut lapic, &[of(DeliveryMode::Nmi), of(DeliveryMode::Smi), of(DeliveryMode::Init)]);
    assert_eq!(lapic.accept_start_up(8), Acceptance::Accepted);
    assert_eq!(lapic.take_errors(), 0);
}

#[test]
fn what_is_pending_when_it_is_software_disabled_is_held() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[edge(0x31)]);
    lapic.set(SVR, 0xff);
    assert_eq!(lapic.acknowledge(), Some(0x31));
}

#[test]
fn a_disabled_one_takes_no_message() {
    let mut lapic = xapic(1);
    lapic.write_msr(IA32_APIC_BASE, PAGE).unwrap();
    for mode in [DeliveryMode::Fixed, DeliveryMode::Nmi, DeliveryMode::Smi, DeliveryMode::Init] {
        assert_eq!(lapic.accept(&of(mode)), Acceptance::Refused);
    }
    assert_eq!(lapic.accept_start_up(8), Acceptance::Refused);
    assert!(!lapic.take_nmi() && !lapic.take_smi() && !lapic.take_init());
}

#[test]
fn an_nmi_and_an_smi_are_taken_once_and_touch_no_vector() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[of(DeliveryMode::Nmi), of(DeliveryMode::Nmi), of(DeliveryMode::Smi)]);
    assert_eq!(lapic.pending(), None);
    assert!(lapic.take_nmi() && !lapic.take_nmi());
    assert!(lapic.take_smi() && !lapic.take_smi());
}

#[test]
fn an_init_resets_all_but_id_and_mode() {
    let mut lapic = x2apic(0x1203);
    lapic.write_msr(0x808, 0x20).unwrap();
    accept(&mut lapic, &[level(0x31), of(DeliveryMode::Nmi), of(DeliveryMode::Init)]);
    assert!(lapic.take_init() && !lapic.take_init());
    assert_eq!(lapic.mode(), Mode::X2apic);
    assert_eq!(lapic.read_msr(0x802), Ok(0x1203));
    assert_eq!(lapic.read_msr(0x808), Ok(0));
    assert_eq!(lapic.read_msr(0x80f), Ok(0xff));
    assert_eq!(lapic.pending(), None);
    assert!(!lapic.take_nmi());
}

#[test]
fn a_processor_waits_for_a_sipi_after_power_up_and_after_an_init() {
    let mut lapic = Lapic::new(1);
    for _ in 0..2 {
        assert_eq!(lapic.take_start_up(), None);
        assert_eq!(lapic.accept_start_up(0x9a), Acceptance::Accepted);
        assert_eq!(lapic.accept_start_up(0x9b), Acceptance::Refused);
        assert_eq!(lapic.take_start_up(), Some(0x9a));
        assert_eq!(lapic.accept_start_up(0x9a), Acceptance::Refused);
        accept(&mut lapic, &[of(DeliveryMode::Init)]);
        assert!(lapic.take_init());
    }
}

#[test]
fn a_sipi_that_comes_before_the_init_is_taken_waits_for_it() {
    let mut lapic = Lapic::new(1);
    accept(&mut lapic, &[of(DeliveryMode::Init)]);
    assert_eq!(lapic.accept_start_up(0x9a), Acceptance::Accepted);
    assert_eq!(lapic.take_start_up(), None);
    assert!(lapic.take_init());
    assert_eq!(lapic.take_start_up(), Some(0x9a));
}

#[test]
fn an_init_overtakes_a_sipi_that_came_before_it() {
    let mut lapic = Lapic::new(1);
    assert_eq!(lapic.accept_start_up(0x9a), Acceptance::Accepted);
    accept(&mut lapic, &[of(DeliveryMode::Init)]);
    assert!(lapic.take_init());
    assert_eq!(lapic.take_start_up(), None);
}

#[test]
fn the_bootstrap_processor_never_waits_for_a_sipi() {
    let mut lapic = Lapic::new(0);
    assert_eq!(lapic.accept_start_up(0x9a), Acceptance::Refused);
    accept(&mut lapic, &[of(DeliveryMode::Init)]);
    assert_eq!(lapic.accept_start_up(0x9a), Acceptance::Refused);
    assert!(lapic.take_init());
    assert_eq!(lapic.accept_start_up(0x9a), Acceptance::Refused);
}

#[test]
fn an_extint_gets_through_an_unmasked_lint0_in_extint_mode_only() {
    let mut lapic = xapic(0);
    for (entry, expected) in [(EXTINT, true), (EXTINT | MASKED, false), (0x31, false), (4 << 8, false)] {
        lapic.set(LVT_LINT0, entry);
        assert_eq!(lapic.accepts_extint(), expected, "{entry:#x}");
    }
}

#[test]
fn an_extint_gets_through_where_there_is_no_local_apic() {
    let mut lapic = xapic(0);
    lapic.write_msr(IA32_APIC_BASE, PAGE).unwrap();
    assert!(lapic.accepts_extint());
}

#[test]
fn an_extint_is_no_vector_of_its_own() {
    let mut lapic = xapic(0);
    lapic.set(LVT_LINT0, EXTINT);
    assert_eq!(lapic.accept(&of(DeliveryMode::ExtInt)), Acceptance::Refused);
    assert_eq!(lapic.pending(), None);
}

// Priorities and the end of interrupt.

#[test]
fn a_higher_class_interrupts_a_lower_one() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[edge(0x31)]);
    assert_eq!(lapic.acknowledge(), Some(0x31));
    accept(&mut lapic, &[edge(0x3f), edge(0x41)]);
    assert_eq!(lapic.acknowledge(), Some(0x41));
    assert_eq!(lapic.acknowledge(), None);
    lapic.end();
    assert!(!lapic.shows(ISR, 0x41) && lapic.shows(ISR, 0x31));
    assert_eq!(lapic.acknowledge(), None);
    lapic.end();
    assert_eq!(lapic.acknowledge(), Some(0x3f));
}

#[test]
fn the_task_priority_holds_back_its_class_and_those_below() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[edge(0x31)]);
    for (tpr, expected) in [(0x20, Some(0x31)), (0x2f, Some(0x31)), (0x30, None), (0x3f, None), (0xff, None)] {
        lapic.set(TPR, tpr);
        assert_eq!(lapic.pending(), expected, "{tpr:#x}");
    }
}

#[test]
fn the_processor_priority_is_the_higher_of_task_and_service() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[edge(0x35)]);
    lapic.acknowledge();
    for (tpr, expected) in [(0, 0x30), (0x2f, 0x30), (0x34, 0x34), (0x41, 0x41)] {
        lapic.set(TPR, tpr);
        assert_eq!(lapic.get(PPR), expected, "{tpr:#x}");
    }
}

#[test]
fn the_arbitration_priority_counts_what_is_pending_too() {
    let mut lapic = xapic(1);
    lapic.set(TPR, 0x25);
    assert_eq!(lapic.arbitration_priority(), Some(0x25));
    accept(&mut lapic, &[edge(0x21)]);
    assert_eq!(lapic.arbitration_priority(), Some(0x25));
    accept(&mut lapic, &[edge(0x31)]);
    assert_eq!(lapic.arbitration_priority(), Some(0x30));
    lapic.acknowledge();
    assert_eq!(lapic.arbitration_priority(), Some(0x30));
    assert_eq!(lapic.get(APR), 0x30);
}

#[test]
fn the_arbitration_priority_has_a_subclass_only_where_the_task_is_above_everything_in_service() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[edge(0x35)]);
    lapic.acknowledge();
    for (tpr, expected) in [(0x2f, 0x30), (0x3f, 0x30), (0x41, 0x41)] {
        lapic.set(TPR, tpr);
        assert_eq!(lapic.arbitration_priority(), Some(expected), "{tpr:#x}");
    }
}

#[test]
fn a_software_disabled_one_takes_no_part_in_the_arbitration() {
    assert_eq!(Lapic::new(1).arbitration_priority(), None);
}

#[test]
fn an_eoi_of_a_level_vector_is_broadcast() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[level(0x31)]);
    lapic.acknowledge();
    assert_eq!(lapic.end(), Some(Effect::EndOfInterrupt(0x31)));
}

#[test]
fn an_eoi_by_msr_is_broadcast_too() {
    let mut lapic = x2apic(1);
    accept(&mut lapic, &[level(0x31)]);
    lapic.acknowledge();
    assert_eq!(lapic.write_msr(0x80b, 0), Ok(Some(Effect::EndOfInterrupt(0x31))));
}

#[test]
fn an_eoi_of_an_edge_vector_is_not_broadcast() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[level(0x31)]);
    lapic.acknowledge();
    lapic.end();
    accept(&mut lapic, &[edge(0x31)]);
    lapic.acknowledge();
    assert!(!lapic.shows(TMR, 0x31));
    assert_eq!(lapic.end(), None);
}

#[test]
fn an_eoi_ends_the_highest_vector_in_service() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[level(0x31)]);
    lapic.acknowledge();
    accept(&mut lapic, &[level(0x41)]);
    lapic.acknowledge();
    assert_eq!(lapic.end(), Some(Effect::EndOfInterrupt(0x41)));
    assert_eq!(lapic.end(), Some(Effect::EndOfInterrupt(0x31)));
}

#[test]
fn an_eoi_with_nothing_in_service_does_nothing() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[level(0x31)]);
    assert_eq!(lapic.end(), None);
    assert_eq!(lapic.pending(), Some(0x31));
}

#[test]
fn broadcasts_cannot_be_suppressed() {
    let mut lapic = xapic(1);
    assert_eq!(lapic.get(VERSION_OFFSET) & 1 << 24, 0);
    lapic.set(SVR, 0x11ff);
    assert_eq!(lapic.get(SVR), 0x1ff);
    accept(&mut lapic, &[level(0x31)]);
    lapic.acknowledge();
    assert_eq!(lapic.end(), Some(Effect::EndOfInterrupt(0x31)));
}

// Interrupts between processors.

fn ipi(destination: u32, destination_mode: DestinationMode, delivery_mode: DeliveryMode, vector: u8) -> Interrupt {
    Interrupt { destination, destination_mode, delivery_mode, vector, ..Interrupt::default() }
}

#[test]
fn writing_the_low_half_of_the_icr_sends() {
    let mut lapic = xapic(1);
    assert_eq!(lapic.set(ICR_HIGH, 0x0300_0000), None);
    let effect = lapic.set(ICR, 0x31 | 1 << 8 | 1 << 11);
    let interrupt = ipi(3, LOGICAL, DeliveryMode::LowestPriority, 0x31);
    assert_eq!(effect, Some(Effect::Ipi { interrupt, shorthand: DestinationShorthand::NoShorthand }));
}

#[test]
fn in_x2apic_mode_the_icr_is_one_write_with_32_bits_of_destination() {
    let mut lapic = x2apic(1);
    let effect = lapic.write_msr(0x830, 0x1203_0405 << 32 | 0x31);
    let interrupt = ipi(0x1203_0405, PHYSICAL, DeliveryMode::Fixed, 0x31);
    assert_eq!(effect, Ok(Some(Effect::Ipi { interrupt, shorthand: DestinationShorthand::NoShorthand })));
    assert_eq!(lapic.read_msr(0x830), Ok(0x1203_0405 << 32 | 0x31));
}

#[test]
fn every_shorthand_is_named() {
    let names = [
        DestinationShorthand::NoShorthand,
        DestinationShorthand::OnlySelf,
        DestinationShorthand::AllIncludingSelf,
        DestinationShorthand::AllExcludingSelf,
    ];
    let mut lapic = xapic(1);
    for (encoding, expected) in (0..).zip(names) {
        let effect = lapic.set(ICR, encoding << 18 | 0x31);
        assert!(matches!(effect, Some(Effect::Ipi { shorthand, .. }) if shorthand == expected));
    }
}

#[test]
fn a_self_ipi_goes_to_its_sender() {
    let mut lapic = x2apic(0x1203);
    let effect = lapic.write_msr(0x83f, 0x31);
    let interrupt = ipi(0x1203, PHYSICAL, DeliveryMode::Fixed, 0x31);
    assert_eq!(effect, Ok(Some(Effect::Ipi { interrupt, shorthand: DestinationShorthand::OnlySelf })));
}

#[test]
fn a_start_up_ipi_is_its_own_effect() {
    let mut lapic = xapic(0);
    lapic.set(ICR_HIGH, 0x0300_0000);
    let effect = lapic.set(ICR, 6 << 8 | 0x9a);
    let shorthand = DestinationShorthand::NoShorthand;
    let expected = Effect::StartUp { vector: 0x9a, destination: 3, destination_mode: PHYSICAL, shorthand };
    assert_eq!(effect, Some(expected));
}

#[test]
fn an_init_is_sent_but_its_deassertion_is_not() {
    let mut lapic = xapic(0);
    let assert = lapic.set(ICR, 5 << 8 | 1 << 14 | 1 << 15);
    assert!(matches!(assert, Some(Effect::Ipi { interrupt, .. }) if interrupt.delivery_mode == DeliveryMode::Init));
    assert_eq!(lapic.set(ICR, 5 << 8 | 1 << 15), None);
}

#[test]
fn an_ipi_is_never_level_triggered() {
    let mut lapic = xapic(0);
    let effect = lapic.set(ICR, 0x31 | 1 << 14 | 1 << 15);
    assert!(matches!(effect, Some(Effect::Ipi { interrupt, .. }) if interrupt.trigger == Trigger::Edge));
}

#[test]
fn reserved_delivery_modes_send_nothing() {
    let mut lapic = xapic(0);
    for mode in [3, 7] {
        assert_eq!(lapic.set(ICR, mode << 8 | 0x31), None);
    }
    assert_eq!(lapic.take_errors(), 0);
}

#[test]
fn the_lowest_vector_that_can_be_sent_is_16() {
    let mut lapic = x2apic(1);
    let sent = |interrupt, shorthand| Ok(Some(Effect::Ipi { interrupt, shorthand }));
    let to_processor_0 = ipi(0, PHYSICAL, DeliveryMode::Fixed, 16);
    assert_eq!(lapic.write_msr(0x830, 16), sent(to_processor_0, DestinationShorthand::NoShorthand));
    let to_itself = ipi(1, PHYSICAL, DeliveryMode::Fixed, 16);
    assert_eq!(lapic.write_msr(0x83f, 16), sent(to_itself, DestinationShorthand::OnlySelf));
}

#[test]
fn sending_a_vector_below_16_is_an_error() {
    let mut lapic = xapic(0);
    assert_eq!(lapic.set(ICR, 15), None);
    assert_eq!(lapic.take_errors(), SEND_ILLEGAL_VECTOR);
    let mut lapic = x2apic(0);
    assert_eq!(lapic.write_msr(0x83f, 15), Ok(None));
    lapic.write_msr(0x828, 0).unwrap();
    assert_eq!(lapic.read_msr(0x828), Ok(SEND_ILLEGAL_VECTOR.into()));
}

// Errors.

#[test]
fn errors_show_after_a_write_and_are_gone_after_the_next() {
    let mut lapic = xapic(1);
    assert_eq!(lapic.accept(&edge(3)), Acceptance::Refused);
    lapic.get(0x40);
    assert_eq!(lapic.get(ESR), 0);
    assert_eq!(lapic.take_errors(), RECEIVE_ILLEGAL_VECTOR | ILLEGAL_REGISTER_ADDRESS);
    assert_eq!(lapic.get(ESR), RECEIVE_ILLEGAL_VECTOR | ILLEGAL_REGISTER_ADDRESS);
    assert_eq!(lapic.take_errors(), 0);
}

#[test]
fn an_error_that_is_detected_twice_is_one() {
    let mut lapic = xapic(1);
    lapic.get(0x40);
    lapic.get(0x40);
    assert_eq!(lapic.take_errors(), ILLEGAL_REGISTER_ADDRESS);
}

#[test]
fn an_error_interrupts_if_its_local_vector_is_not_masked() {
    let mut lapic = xapic(1);
    lapic.get(0x40);
    assert_eq!(lapic.pending(), None);
    lapic.set(LVT_ERROR, 0xfe);
    lapic.get(0x40);
    assert_eq!(lapic.acknowledge(), Some(0xfe));
    assert_eq!(lapic.end(), None);
}

#[test]
fn an_error_whose_local_vector_is_illegal_is_another_error() {
    let mut lapic = xapic(1);
    lapic.set(LVT_ERROR, 3);
    lapic.get(0x40);
    assert_eq!(lapic.pending(), None);
    assert_eq!(lapic.take_errors(), RECEIVE_ILLEGAL_VECTOR | ILLEGAL_REGISTER_ADDRESS);
}
