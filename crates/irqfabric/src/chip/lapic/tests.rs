use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

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

// Reset and modes.

#[test]
fn after_power_up_it_is_in_xapic_mode_and_software_disabled() {
    let mut lapic = Lapic::new(0x1203);
    assert_eq!(lapic.mode(), Mode::Xapic);
    assert_eq!(lapic.id(), 0x1203);
    assert_eq!(lapic.get(ID), 0x0300_0000);
    assert_eq!(lapic.get(VERSION_OFFSET), 0x0005_0015);
    assert_eq!(lapic.get(SVR), 0xff);
    assert_eq!(lapic.get(DFR), 0xffff_ffff);
    for entry in 0..6 {
        assert_eq!(lapic.get(LVT_TIMER + entry * 0x10), MASKED);
    }
    for register in [TPR, PPR, LDR, ESR, ICR, ICR_HIGH, INITIAL_COUNT, CURRENT_COUNT, DIVIDE] {
        assert_eq!(lapic.get(register), 0);
    }
}

#[test]
fn only_the_processor_with_id_0_is_the_bootstrap_processor() {
    assert_eq!(Lapic::new(0).read_msr(IA32_APIC_BASE), Ok(PAGE | EN | 1 << 8));
    assert_eq!(Lapic::new(1).read_msr(IA32_APIC_BASE), Ok(PAGE | EN));
    assert!(Lapic::new(0).is_bootstrap_processor() && !Lapic::new(1).is_bootstrap_processor());
}

#[test]
fn only_the_transitions_of_the_sdm_are_legal() {
    let modes = [(Mode::Disabled, 0), (Mode::Xapic, EN), (Mode::X2apic, EN | EXTD)];
    for (from, through) in [(Mode::Disabled, vec![0]), (Mode::Xapic, vec![]), (Mode::X2apic, vec![EN | EXTD])] {
        for (to, bits) in modes {
            let mut lapic = xapic(1);
            for step in &through {
                lapic.write_msr(IA32_APIC_BASE, PAGE | step).unwrap();
            }
            assert_eq!(lapic.mode(), from);
            let legal = !matches!((from, to), (Mode::Disabled, Mode::X2apic) | (Mode::X2apic, Mode::Xapic));

            let result = lapic.write_msr(IA32_APIC_BASE, PAGE | bits);

            assert_eq!(result, if legal { Ok(None) } else { Err(GeneralProtection) });
            assert_eq!(lapic.mode(), if legal { to } else { from });
        }
    }
}

#[test]
fn a_base_with_reserved_bits_or_extd_alone_faults() {
    let mut lapic = xapic(1);
    for value in [PAGE | EXTD, PAGE | EN | 1, PAGE | EN | 1 << 9, PAGE | EN | 1 << 52, u64::MAX] {
        assert_eq!(lapic.write_msr(IA32_APIC_BASE, value), Err(GeneralProtection));
    }
    assert_eq!(lapic.read_msr(IA32_APIC_BASE), Ok(PAGE | EN));
}

#[test]
fn disabling_it_globally_loses_its_registers() {
    let mut lapic = xapic(1);
    accept(&mut lapic, &[level(0x31)]);
    lapic.write_msr(IA32_APIC_BASE, PAGE).unwrap();
    assert_eq!(lapic.pending(), None);
    lapic.write_msr(IA32_APIC_BASE, PAGE | EN).unwrap();
    assert_eq!(lapic.get(SVR), 0xff);
    assert_eq!(lapic.get(IRR + 0x10), 0);
}

#[test]
fn what_is_pending_survives_the_way_to_x2apic_mode() {
    let mut lapic = xapic(1);
    lapic.set(ICR_HIGH, 0x0100_0000);
    accept(&mut lapic, &[edge(0x31)]);
    lapic.write_msr(IA32_APIC_BASE, PAGE | EN | EXTD).unwrap();
    assert_eq!(lapic.acknowledge(), Some(0x31));
    assert_eq!(lapic.read_msr(0x830), Ok(0));
}

// The register interfaces.

#[test]
fn reserved_registers_read_zeros_and_are_errors() {
    for offset in [0, 0x10, 0x40, 0x2f0, 0x3a0, 0x3f0, 0x400, 0xff0, 0x1000, u64::MAX] {
        let mut lapic = xapic(1);
        assert_eq!(lapic.get(offset), 0);
        assert_eq!(lapic.take_errors(), ILLEGAL_REGISTER_ADDRESS);
        assert_eq!(lapic.set(offset, !0), None);
        assert_eq!(lapic.take_errors(), ILLEGAL_REGISTER_ADDRESS);
        assert_eq!(lapic.take_errors(), 0);
    }
}

#[test]
fn a_read_within_a_register_reads_those_bytes() {
    let mut lapic = xapic(1);
    let mut byte = [0xee];
    lapic.read(VERSION_OFFSET + 2, &mut byte);
    assert_eq!(byte, [5]);
    let mut half = [0xee; 2];
    lapic.read(VERSION_OFFSET + 1, &mut half);
    assert_eq!(half, [0, 5]);
}

#[test]
fn a_read_beyond_a_register_reads_zeros() {
    let mut lapic = xapic(1);
    for (start, size) in [(0, 5), (0, 8), (1, 4), (4, 1), (15, 4), (0, 16), (3, 64)] {
        let mut data = vec![0xee; size];
        lapic.read(VERSION_OFFSET + start, &mut data);
        assert!(data.iter().all(|&byte| byte == 0));
    }
    lapic.read(VERSION_OFFSET, &mut []);
}

#[test]
fn a_write_that_is_not_four_aligned_bytes_does_nothing() {
    let mut lapic = xapic(1);
    let before = lapic.save();
    for (offset, size) in [(TPR, 0), (TPR, 1), (TPR, 8), (TPR + 1, 4), (TPR + 4, 4), (EOI + 8, 4)] {
        assert_eq!(lapic.write(offset, &vec![0x55; size]), None);
    }
    assert_eq!(lapic.save(), before);
}

#[test]
fn read_only_registers_do_not_change() {
    let mut lapic = xapic(1);
    let before = lapic.save();
    for offset in [ID, VERSION_OFFSET, APR, PPR, 0xc0, ISR, TMR + 0x70, IRR + 0x30, CURRENT_COUNT] {
        assert_eq!(lapic.set(offset, !0), None);
    }
    assert_eq!(lapic.save(), before);
}

#[test]
fn only_the_writable_bits_are_stored() {
    let stored = [
        (TPR, 0xff),
        (LDR, 0xff00_0000),
        (DFR, 0xffff_ffff),
        (SVR, 0x3ff),
        (ICR_HIGH, 0xff00_0000),
        (LVT_TIMER, 0x0003_00ff),
        (LVT_TIMER + 0x10, 0x0001_07ff),
        (LVT_TIMER + 0x20, 0x0001_07ff),
        (LVT_LINT0, 0x0001_a7ff),
        (LVT_LINT0 + 0x10, 0x0001_a7ff),
        (LVT_ERROR, 0x0001_00ff),
        (INITIAL_COUNT, 0xffff_ffff),
        (DIVIDE, 0xb),
    ];
    for (offset, expected) in stored {
        let mut lapic = xapic(1);
        lapic.set(offset, !0);
        assert_eq!(lapic.get(offset), expected, "{offset:#x}");
    }
}

#[test]
fn the_delivery_status_of_the_icr_reads_idle() {
    let mut lapic = xapic(1);
    lapic.set(ICR, 0x1431);
    assert_eq!(lapic.get(ICR), 0x0431);
}

#[test]
fn the_page_is_gone_outside_xapic_mode() {
    let mut disabled = xapic(1);
    disabled.write_msr(IA32_APIC_BASE, PAGE).unwrap();
    for mut lapic in [disabled, x2apic(1)] {
        let before = lapic.save();
        assert_eq!(lapic.set(TPR, 0x20), None);
        assert_eq!(lapic.set(0x40, 0x20), None);
        assert_eq!(lapic.get(TPR), !0);
        assert_eq!(lapic.save(), before);
    }
}

#[test]
fn the_msrs_fault_outside_x2apic_mode() {
    let mut disabled = xapic(1);
    disabled.write_msr(IA32_APIC_BASE, PAGE).unwrap();
    for mut lapic in [disabled, xapic(1)] {
        for msr in 0x800..0x900 {
            assert_eq!(lapic.read_msr(msr), Err(GeneralProtection));
            assert_eq!(lapic.write_msr(msr, 0), Err(GeneralProtection));
        }
    }
}

#[test]
fn in_x2apic_mode_just_the_msrs_of_the_sdm_are_readable() {
    let lapic = x2apic(1);
    for msr in (0x7ff..0x901).chain([0, 0x1a, u32::MAX]) {
        let readable = matches!(msr, 0x802 | 0x803 | 0x808 | 0x80a | 0x80d | 0x80f..=0x828 | 0x830)
            || matches!(msr, 0x832..=0x839 | 0x83e);
        assert_eq!(lapic.read_msr(msr).is_ok(), readable, "{msr:#x}");
    }
}

#[test]
fn in_x2apic_mode_just_the_msrs_of_the_sdm_are_writable() {
    for msr in (0x7ff..0x901).chain([0, 0x1a, u32::MAX]) {
        let mut lapic = x2apic(1);
        let writable = matches!(msr, 0x808 | 0x80b | 0x80f | 0x828 | 0x830 | 0x832..=0x838 | 0x83e | 0x83f);
        assert_eq!(lapic.write_msr(msr, 0).is_ok(), writable, "{msr:#x}");
    }
}

#[test]
fn in_x2apic_mode_reserved_bits_fault_and_change_nothing() {
    let reserved = [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 1 << 12),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x830, 1 << 16),
        (0x830, 1 << 20),
        (0x832, 1 << 18),
        (0x837, 1 << 8),
        (0x838, 1 << 32),
        (0x83e, 4),
        (0x83f, 0x100),
    ];
    let mut lapic = x2apic(1);
    let before = lapic.save();
    for (msr, value) in reserved {
        assert_eq!(lapic.write_msr(msr, value), Err(GeneralProtection), "{msr:#x}");
    }
    assert_eq!(lapic.save(), before);
}

#[test]
fn in_x2apic_mode_status_bits_are_ignored() {
    let mut lapic = x2apic(1);
    for msr in 0x832..=0x837 {
        assert_eq!(lapic.write_msr(msr, 1 << 12 | 0x31), Ok(None), "{msr:#x}: delivery status");
        assert_eq!(lapic.read_msr(msr), Ok(0x31));
        let is_pin = matches!(msr, 0x835 | 0x836);
        assert_eq!(lapic.write_msr(msr, 1 << 14 | 0x31).is_ok(), is_pin, "{msr:#x}: remote IRR");
        assert_eq!(lapic.read_msr(msr), Ok(0x31));
    }
    assert!(matches!(lapic.write_msr(0x830, 1 << 12 | 0x31), Ok(Some(Effect::Ipi { .. }))));
    assert_eq!(lapic.read_msr(0x830), Ok(0x31));
}

#[test]
fn the_x2apic_registers_show_all_32_bits_of_the_id() {
    let lapic = x2apic(0x1_0235);
    assert_eq!(lapic.read_msr(0x802), Ok(0x1_0235));
    assert_eq!(lapic.read_msr(0x80d), Ok(0x1023 << 16 | 1 << 5));
}

#[test]
fn software_disabling_masks_the_local_vectors() {
    let mut lapic = xapic(1);
    lapic.set(LVT_LINT0, EXTINT);
    lapic.set(SVR, 0xff);
    assert_eq!(lapic.get(LVT_LINT0), EXTINT | MASKED);
    lapic.set(LVT_LINT0, EXTINT);
    assert_eq!(lapic.get(LVT_LINT0), EXTINT | MASKED);
    lapic.set(SVR, 0x1ff);
    lapic.set(LVT_LINT0, EXTINT);
    assert_eq!(lapic.get(LVT_LINT0), EXTINT);
}

#[test]
fn the_timer_is_loaded_but_does_not_run() {
    let mut lapic = xapic(1);
    lapic.set(LVT_TIMER, 0x31);
    lapic.set(INITIAL_COUNT, 1);
    assert_eq!(lapic.get(CURRENT_COUNT), 1);
    assert_eq!(lapic.pending(), None);
}

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

// Snapshots.

#[test]
fn a_state_of_another_local_apic_is_refused() {
    let state = xapic(1).save();
    assert_eq!(Lapic::new(2).restore(&state), Err(RestoreError::OtherId(1)));
}

#[test]
fn a_state_that_cannot_be_is_refused_and_changes_nothing() {
    let good = xapic(1).save();
    let states = [
        (LapicState { apic_base: EXTD, ..good.clone() }, RestoreError::ApicBase(EXTD)),
        (LapicState { apic_base: PAGE | EN | 1, ..good.clone() }, RestoreError::ApicBase(PAGE | EN | 1)),
        (LapicState { irr: [1 << 15, 0, 0, 0], ..good.clone() }, RestoreError::ReservedVector(15)),
        (LapicState { isr: [1, 0, 0, 0], ..good.clone() }, RestoreError::ReservedVector(0)),
    ];
    for (state, error) in states {
        let mut lapic = xapic(1);
        assert_eq!(lapic.restore(&state), Err(error));
        assert_eq!(lapic, xapic(1));
    }
}

#[test]
fn bits_that_no_register_has_are_dropped() {
    let state = LapicState { svr: !0, ldr: !0, dfr: 0, lvt: [!0; 6], esr: !0, icr: !0, ..xapic(1).save() };
    let mut lapic = Lapic::new(1);
    lapic.restore(&state).unwrap();
    assert_eq!(lapic.get(SVR), 0x3ff);
    assert_eq!(lapic.get(LDR), 0xff00_0000);
    assert_eq!(lapic.get(DFR), 0x0fff_ffff, "reserved bits read as ones");
    assert_eq!(lapic.get(LVT_TIMER), 0x0003_00ff);
    assert_eq!(lapic.get(ESR), 0xe0);
    assert_eq!(lapic.get(ICR), 0x000c_cfff);
    assert_eq!(lapic.get(ICR_HIGH), 0xff00_0000);
}

#[test]
fn the_local_vectors_of_a_software_disabled_state_are_masked() {
    let state = LapicState { lvt: [EXTINT; 6], ..Lapic::new(1).save() };
    let mut lapic = Lapic::new(1);
    lapic.restore(&state).unwrap();
    assert!(!lapic.accepts_extint());
}

// Whatever a guest does.

#[derive(Clone, Debug)]
enum Step {
    Read { offset: u64, size: usize },
    Write { offset: u64, data: Vec<u8> },
    ReadMsr(u32),
    WriteMsr { msr: u32, value: u64 },
    Accept(Interrupt),
    AcceptStartUp(u8),
    Acknowledge,
    EndOfInterrupt,
    Take,
}

fn interrupts() -> impl Strategy<Value = Interrupt> {
    let modes = prop_oneof![
        12 => Just(DeliveryMode::Fixed),
        2 => Just(DeliveryMode::LowestPriority),
        3 => (0..8_u8).prop_filter_map("reserved", DeliveryMode::from_bits),
    ];
    let vectors = prop_oneof![Just(0x31), Just(0x41), 0x30..0x50_u8, any::<u8>()];
    (modes, vectors, any::<bool>()).prop_map(|(delivery_mode, vector, level)| Interrupt {
        delivery_mode,
        vector,
        trigger: if level { Trigger::Level } else { Trigger::Edge },
        ..Interrupt::default()
    })
}

fn steps() -> impl Strategy<Value = Step> {
    let offsets = || prop_oneof![(0..0x40_u64).prop_map(|number| number << 4), 0..0x410_u64, any::<u64>()];
    let bytes = prop_oneof![any::<u32>().prop_map(|value| value.to_le_bytes().to_vec()), vec(any::<u8>(), 0..20)];
    let msrs = || prop_oneof![0x800..0x840_u32, 0x7ff..0x901_u32, Just(IA32_APIC_BASE), any::<u32>()];
    let values = prop_oneof![0..0x400_u64, any::<u32>().prop_map(u64::from), any::<u64>()];
    let bases = prop_oneof![Just(0), Just(EN), Just(EN | EXTD), Just(EXTD), any::<u64>()];
    prop_oneof![
        2 => (offsets(), 0..20_usize).prop_map(|(offset, size)| Step::Read { offset, size }),
        4 => (offsets(), bytes).prop_map(|(offset, data)| Step::Write { offset, data }),
        2 => msrs().prop_map(Step::ReadMsr),
        4 => (msrs(), values).prop_map(|(msr, value)| Step::WriteMsr { msr, value }),
        1 => bases.prop_map(|bits| Step::WriteMsr { msr: IA32_APIC_BASE, value: PAGE | bits }),
        2 => Just(Step::Write { offset: SVR, data: vec![0xff, 1, 0, 0] }),
        1 => Just(Step::WriteMsr { msr: 0x80f, value: 0x1ff }),
        2 => Just(Step::Write { offset: TPR, data: vec![0; 4] }),
        12 => interrupts().prop_map(Step::Accept),
        1 => any::<u8>().prop_map(Step::AcceptStartUp),
        8 => Just(Step::Acknowledge),
        6 => Just(Step::EndOfInterrupt),
        1 => Just(Step::Take),
    ]
}

/// All that a step can tell its caller.
#[derive(Debug, PartialEq)]
enum Answer {
    Read(Vec<u8>),
    Effect(Option<Effect>),
    Value(Result<u64, GeneralProtection>),
    Written(Result<Option<Effect>, GeneralProtection>),
    Accepted(Acceptance),
    Vector(Option<u8>),
    Taken([bool; 3], Option<u8>),
}

impl Step {
    fn perform(&self, lapic: &mut Lapic) -> Answer {
        match self {
            Self::Read { offset, size } => {
                let mut data = vec![0xee; *size];
                lapic.read(*offset, &mut data);
                Answer::Read(data)
            }
            Self::Write { offset, data } => Answer::Effect(lapic.write(*offset, data)),
            Self::ReadMsr(msr) => Answer::Value(lapic.read_msr(*msr)),
            Self::WriteMsr { msr, value } => Answer::Written(lapic.write_msr(*msr, *value)),
            Self::Accept(interrupt) => Answer::Accepted(lapic.accept(interrupt)),
            Self::AcceptStartUp(vector) => Answer::Accepted(lapic.accept_start_up(*vector)),
            Self::Acknowledge => Answer::Vector(lapic.acknowledge()),
            Self::EndOfInterrupt if lapic.mode() == Mode::X2apic => Answer::Written(lapic.write_msr(0x80b, 0)),
            Self::EndOfInterrupt => Answer::Effect(lapic.write(EOI, &[0; 4])),
            Self::Take => {
                let taken = [lapic.take_nmi(), lapic.take_smi(), lapic.take_init()];
                Answer::Taken(taken, lapic.take_start_up())
            }
        }
    }
}

fn highest_of(words: [u64; 4]) -> Option<u8> {
    (0..=255).rev().find(|&vector: &u8| words[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0)
}

/// What holds whatever was done.
fn check_state(lapic: &Lapic) {
    let state = lapic.save();
    assert_eq!((state.irr[0] | state.isr[0] | state.tmr[0]) & 0xffff, 0, "a reserved vector");
    let class = (state.tpr >> 4).max(highest_of(state.isr).unwrap_or(0) >> 4);
    assert_eq!(lapic.processor_priority() >> 4, class);
    assert_eq!(lapic.pending(), highest_of(state.irr).filter(|vector| vector >> 4 > class));
    if lapic.mode() == Mode::Disabled {
        assert_eq!(lapic.pending(), None);
    }
}

proptest! {
    #[test]
    fn whatever_a_guest_does_the_rules_hold(id in prop_oneof![0..4_u32, any::<u32>()], steps in vec(steps(), 1..200)) {
        let mut lapic = Lapic::new(id);
        let mut last_trigger = [Trigger::Edge; 256];
        for step in steps {
            let before = lapic.save();
            let mut restored = Lapic::new(id);
            restored.restore(&before).unwrap();
            prop_assert_eq!(&restored, &lapic);

            let answer = step.perform(&mut lapic);

            prop_assert_eq!(&step.perform(&mut restored), &answer);
            prop_assert_eq!(&restored, &lapic);
            check_state(&lapic);
            match (&step, &answer) {
                (Step::Accept(interrupt), Answer::Accepted(Acceptance::Accepted)) if interrupt.delivery_mode.has_vector() => {
                    last_trigger[usize::from(interrupt.vector)] = interrupt.trigger;
                    prop_assert!(interrupt.vector >= 16);
                }
                (_, Answer::Vector(Some(vector))) => {
                    prop_assert!(*vector >= 16);
                    prop_assert_eq!(highest_of(lapic.save().isr), Some(*vector));
                }
                (_, Answer::Effect(Some(Effect::EndOfInterrupt(vector))))
                | (_, Answer::Written(Ok(Some(Effect::EndOfInterrupt(vector))))) => {
                    prop_assert_eq!(last_trigger[usize::from(*vector)], Trigger::Level);
                    prop_assert_eq!(highest_of(before.isr), Some(*vector));
                }
                (_, Answer::Written(Err(GeneralProtection))) => prop_assert_eq!(lapic.save(), before),
                (Step::EndOfInterrupt, _) if before.apic_base & EN != 0 => {
                    let ended = highest_of(before.isr).map(|vector| before.tmr[usize::from(vector >> 6)] >> (vector & 63) & 1);
                    prop_assert_ne!(ended, Some(1), "an end of interrupt is lost");
                }
                _ => {}
            }
        }
    }

    #[test]
    fn whatever_a_snapshot_holds_the_rules_hold(
        words in any::<([u64; 4], [u64; 4], [u64; 4], [u32; 6], u64, u64)>(),
        registers in any::<(u8, u32, u32, u32, u32, u32, u32, u32)>(),
        flags in any::<(bool, bool, bool, Option<u8>, bool)>(),
        legal in any::<bool>(),
        mode in prop_oneof![Just(0), Just(EN), Just(EN | EXTD)],
        steps in vec(steps(), 0..30),
    ) {
        let (mut isr, mut tmr, mut irr, lvt, icr, mut apic_base) = words;
        if legal {
            for set in [&mut isr, &mut tmr, &mut irr] {
                set[0] &= !0xffff;
            }
            apic_base = PAGE | mode;
        }
        let (tpr, ldr, dfr, svr, esr, errors, initial_count, divide_configuration) = registers;
        let (nmi, smi, init, start_up, waiting_for_start_up) = flags;
        let state = LapicState {
            id: 1, apic_base, tpr, ldr, dfr, svr, isr, tmr, irr, esr, errors, icr, lvt, initial_count,
            divide_configuration, nmi, smi, init, start_up, waiting_for_start_up,
        };
        let mut lapic = Lapic::new(1);
        let result = lapic.restore(&state);
        prop_assert!(result.is_ok() || !legal);

        let again = lapic.save();
        let mut restored = Lapic::new(1);
        prop_assert_eq!(restored.restore(&again), Ok(()));
        prop_assert_eq!(&restored, &lapic);
        for step in steps {
            check_state(&lapic);
            step.perform(&mut lapic);
        }
    }
}
