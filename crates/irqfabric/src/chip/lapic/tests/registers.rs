//! What the processor and a snapshot see: modes, the page, the MSRs.

use super::*;

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
