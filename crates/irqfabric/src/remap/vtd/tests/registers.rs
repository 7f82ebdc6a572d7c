use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

#[test]
fn after_reset_everything_is_off_and_the_events_are_masked() {
    let unit = Unit::new();
    for offset in (0x18..WINDOW_SIZE).step_by(4) {
        let expected = if matches!(offset, FECTL | IECTL) { MASKED } else { 0 };
        assert_eq!(unit.read32(offset), expected, "{offset:#x}");
    }
}

#[test]
fn the_capabilities_are_those_of_interrupt_remapping_and_nothing_else() {
    let unit = Unit::new();
    assert_eq!(unit.read32(0x00), 0x10);
    let (cap, ecap) = (unit.read64(0x08), unit.read64(0x10));
    // No supported address width: `alloc_iommu` of Linux then ignores the unit for DMA.
    assert_eq!(cap >> 8 & 0x1f, 0);
    assert_eq!(cap >> 16 & 0x3f, 47);
    // No caching mode, no posted interrupts, no protected memory, no advanced fault log, no write buffer to flush.
    assert_eq!(cap & (1 << 7 | 1 << 59 | 0b11 << 5 | 1 << 3 | 1 << 4), 0);
    assert_eq!((cap >> 24 & 0x3ff) * 16, FRCD);
    assert_eq!((cap >> 40 & 0xff) + 1, 8);
    assert_eq!(cap >> 62 & 1, 1);
    // Coherent, QI, IR, EIM; no device TLB, pass-through, scalable mode. Masks up to 15 bits.
    assert_eq!(ecap & 0xff, 0b0001_1011);
    assert_eq!(ecap >> 20 & 0xf, 0xf);
    assert_eq!(ecap >> 24, 0);
    // Behind the fault registers, and within the page.
    let iotlb = (ecap >> 8 & 0x3ff) * 16;
    assert_eq!(iotlb, 0xf00);
    assert!(FRCD + 8 * 16 <= iotlb && iotlb + 16 <= WINDOW_SIZE);
}

#[test]
fn a_change_of_enable_compatibility_or_table_is_done_before_its_status_shows() {
    let mut unit = Unit::new();
    unit.write64(IRTA, TABLE | EIME | 3);
    let mut status = 0;
    for command in [SIRTP, IRE, IRE | CFI, CFI | SIRTP, CFI, 0] {
        let before = unit.tables;
        unit.write32(GCMD, command);
        let retranslates = command & SIRTP != 0 || (command ^ status) & (IRE | CFI) != 0;
        status = if command & SIRTP != 0 { status & !SIRTP } else { status };
        assert_eq!(unit.read32(GSTS), status);
        assert_eq!(unit.vtd.tables(), before);
        if retranslates {
            assert!(matches!(unit.next(), Some(Effect::Retranslate(_))));
            assert_eq!(unit.read32(GSTS), status, "not before it is performed");
        }
        assert_eq!(unit.next(), None);
        status = command | status & SIRTP;
        assert_eq!(unit.read32(GSTS), status);
        assert_eq!(unit.vtd.tables(), unit.tables);
    }
}

#[test]
fn a_command_that_changes_nothing_invalidates_nothing() {
    let mut unit = Unit::xapic();
    unit.write32(GCMD, IRE | QIE);
    assert_eq!(unit.perform(), []);
    // Setting the same table again is a change: the guest may have filled it anew.
    unit.write32(GCMD, IRE | QIE | SIRTP);
    assert_eq!(unit.perform(), [Effect::Retranslate(unit.tables)]);
}

#[test]
fn the_table_register_counts_from_the_next_sirtp_on() {
    let mut unit = Unit::xapic();
    unit.put(0, ENTRY);
    unit.write64(IRTA, 0);
    unit.write32(GCMD, IRE | QIE | CFI);
    unit.perform();
    assert!(unit.translate(&request(0)).is_ok());
    unit.write32(GCMD, IRE | QIE | CFI | SIRTP);
    unit.perform();
    assert_eq!(unit.translate(&request(0)), Err(fault(Reason::Unreadable, 0)));
}

#[test]
fn commands_given_before_the_last_is_done_add_up() {
    let mut unit = Unit::new();
    unit.write64(IRTA, TABLE | TABLE_SIZE);
    unit.write32(GCMD, SIRTP);
    unit.write32(GCMD, IRE);
    assert_eq!(unit.perform(), [Effect::Retranslate(unit.tables)]);
    assert_eq!(unit.read32(GSTS), SIRTP | IRE);
    // One that is being performed is not forgotten either, and each SIRTP is done by itself.
    unit.write32(GCMD, SIRTP | IRE);
    assert!(matches!(unit.next(), Some(Effect::Retranslate(_))));
    unit.write32(GCMD, SIRTP | IRE);
    unit.write32(GCMD, 0);
    assert!(matches!(unit.next(), Some(Effect::Retranslate(_))));
    assert_eq!(unit.read32(GSTS), IRE, "the second SIRTP is still under way");
    assert_eq!(unit.next(), None);
    assert_eq!(unit.read32(GSTS), SIRTP);
    assert_eq!(unit.tables, Tables { remapping: false, ..unit.tables });
    // Nor does a command of another kind hold it up.
    unit.write32(GCMD, SIRTP);
    assert!(matches!(unit.next(), Some(Effect::Retranslate(_))));
    unit.write32(GCMD, CFI);
    assert!(matches!(unit.next(), Some(Effect::Retranslate(_))));
    assert_eq!(unit.read32(GSTS), SIRTP);
}

#[test]
fn commands_of_dma_remapping_have_no_effect_but_that_the_root_table_is_taken() {
    let mut unit = Unit::xapic();
    let before = unit.read32(GSTS);
    // Translation enable, fault log, write buffer flush.
    unit.write32(GCMD, IRE | QIE | 1 << 31 | 0b11 << 28 | 1 << 27);
    assert_eq!((unit.perform(), unit.read32(GSTS)), (vec![], before));
    unit.write64(0x20, 0x1234_5fff);
    unit.write32(GCMD, IRE | QIE | RTP);
    assert_eq!((unit.perform(), unit.read32(GSTS)), (vec![], before | RTP));
    assert_eq!(unit.read64(0x20), 0x1234_5000);
    // CCMD and IOTLB commands are over at once.
    for offset in [0x28, 0xf08] {
        unit.write64(offset, 1 << 63 | 1 << 61);
        assert_eq!(unit.read64(offset), 0);
    }
}

#[test]
fn read_only_and_reserved_bits_stay() {
    let mut unit = Unit::xapic();
    let expected = |offset, before: u32| match offset {
        0x20 => 0xffff_f000,
        0x24 | FEDATA | 0x44 | IEDATA | 0xac | 0x94 | 0xbc => u32::MAX,
        FECTL | IECTL => MASKED,
        FEADDR | IEADDR => !3,
        IQT => 0x7_fff0,
        IQA => 0xffff_f007,
        IRTA => 0xffff_f80f,
        _ => before,
    };
    for offset in (0..WINDOW_SIZE).step_by(4).filter(|&offset| offset != GCMD) {
        let before = unit.read32(offset);
        unit.write32(offset, u32::MAX);
        assert_eq!(unit.read32(offset), expected(offset, before), "{offset:#x}");
    }
}

#[test]
fn a_quad_word_is_two_double_words() {
    let mut unit = Unit::new();
    unit.write64(IRTA, 0x1234_5678_9abc_d80f);
    assert_eq!((unit.read32(IRTA), unit.read32(IRTA + 4)), (0x9abc_d80f, 0x1234_5678));
    unit.write32(IRTA + 4, 1);
    assert_eq!(unit.read64(IRTA), 0x1_9abc_d80f);
    unit.write64(FECTL, 0x0000_00f1_0000_0000);
    assert_eq!((unit.read32(FECTL), unit.read32(FEDATA)), (0, 0xf1));
}

#[test]
fn an_access_that_is_not_an_aligned_word_reads_bytes_and_writes_nothing() {
    let mut unit = Unit::xapic();
    let page: Vec<u8> = (0..WINDOW_SIZE).step_by(4).flat_map(|offset| unit.read32(offset).to_le_bytes()).collect();
    for size in [0, 1, 2, 3, 4, 5, 8, 9, 16] {
        for offset in (0..WINDOW_SIZE + 8).chain([u64::MAX - 3, u64::MAX]) {
            let mut data = vec![0xff; size];
            unit.vtd.read(&unit.faults, offset, &mut data);
            for (place, byte) in (offset..=u64::MAX).zip(data) {
                let expected = page.get(usize::try_from(place).unwrap()).copied().unwrap_or(0);
                assert_eq!(byte, expected, "{place:#x} of {size} bytes at {offset:#x}");
            }
            let aligned = matches!(size, 4 | 8) && offset % size as u64 == 0;
            if !aligned {
                let before = (unit.vtd.clone(), unit.faults.clone());
                unit.vtd.write(&mut unit.faults, offset, &vec![0xff; size]);
                assert_eq!((&unit.vtd, &unit.faults), (&before.0, &before.1), "{size} bytes at {offset:#x}");
            }
        }
    }
}

#[test]
fn what_no_unit_can_have_is_refused_and_reserved_bits_are_dropped() {
    let unit = Unit::xapic();
    let state = unit.vtd.save();
    for offset in [1, 8, 0x8_0000, u32::MAX] {
        let head = VtdState { queue: QueueState { head: offset, ..state.queue.clone() }, ..state.clone() };
        let tail = VtdState { queue: QueueState { tail: offset, ..state.queue.clone() }, ..state.clone() };
        let underway = Some(UnderwayState::Queue { head: offset, interrupt: true });
        for wrong in [head, tail, VtdState { underway, ..state.clone() }] {
            assert_eq!(Vtd::restore(&wrong), Err(RestoreError::QueueOffset(offset)));
        }
    }
    let faults = unit.faults.save();
    let next = FaultsState { next: 8, ..faults.clone() };
    assert_eq!(Faults::restore(&next), Err(RestoreError::FaultRegister(8)));
    let first = FaultsState { status: 0x900, ..faults.clone() };
    assert_eq!(Faults::restore(&first), Err(RestoreError::FaultRegister(9)));
    let full = FaultsState { records: [[u64::MAX; 2]; 8], ..faults };
    let restored = Faults::restore(&full).unwrap();
    let record = [0xffff << 48, 1 << 63 | 0xff << 32 | 0xffff];
    assert_eq!(restored.save(), FaultsState { status: PPF, records: [record; 8], ..full });
}

#[derive(Clone, Debug)]
enum Step {
    Write32(u64, u32),
    Write64(u64, u64),
    Descriptor(u64, u128),
    Fire(u32),
    Next,
}

fn steps() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![4 => (0..0xc0u64 / 4).prop_map(|word| word * 4), 1 => (0..WINDOW_SIZE / 4).prop_map(|word| word * 4)];
    let command = any::<[bool; 4]>().prop_map(|bits| {
        let switches = [QIE, IRE, SIRTP, CFI];
        switches.into_iter().zip(bits).filter(|(_, on)| *on).map(|(bit, _)| bit).sum()
    });
    let descriptor = prop_oneof![
        (0..256u64, 0..3u32).prop_map(|(index, mask)| 4 | 1 << 4 | u128::from(index) << 32 | u128::from(mask) << 27),
        Just(5 | 1 << 4 | 1 << 5 | u128::from(RAM) << 64),
        any::<u128>(),
    ];
    prop_oneof![
        3 => (offset, any::<u32>()).prop_map(|(offset, value)| Step::Write32(offset, value)),
        3 => command.prop_map(|value| Step::Write32(GCMD, value)),
        3 => (0..64u32).prop_map(|place| Step::Write32(IQT, place * 16)),
        2 => Just(Step::Write64(IQA, RING)),
        2 => Just(Step::Write64(IRTA, TABLE | TABLE_SIZE)),
        2 => Just(Step::Write32(FSTS, IQE | PFO)),
        1 => Just(Step::Write32(ICS, 1)),
        1 => prop_oneof![Just(0), Just(MASKED)].prop_map(|value| Step::Write32(FECTL, value)),
        4 => (0..64u64, descriptor).prop_map(|(place, descriptor)| Step::Descriptor(place, descriptor)),
        4 => (0..0x120u32).prop_map(Step::Fire),
        6 => Just(Step::Next),
    ]
}

proptest! {
    /// At any point, the middle of an effect included.
    #[test]
    fn a_unit_that_is_saved_and_restored_goes_on_as_if_nothing_had_been(
        before in vec(steps(), 0..60),
        after in vec(steps(), 0..40),
    ) {
        let mut unit = Unit::new();
        let step = |unit: &mut Unit, step: &Step| match *step {
            Step::Write32(offset, value) => { unit.write32(offset, value); None }
            Step::Write64(offset, value) => { unit.write64(offset, value); None }
            Step::Descriptor(place, descriptor) => { unit.ram.write(RING + 16 * place, &descriptor.to_le_bytes()).unwrap(); None }
            Step::Fire(index) => unit.fire(&request(index)).map(Effect::Send),
            Step::Next => unit.next(),
        };
        for one in &before {
            step(&mut unit, one);
        }
        let mut other = Unit {
            vtd: Vtd::restore(&unit.vtd.save()).unwrap(),
            faults: Faults::restore(&unit.faults.save()).unwrap(),
            tables: unit.tables,
            ram: Ram(Mutex::new(unit.ram.0.lock().unwrap().clone())),
        };
        prop_assert_eq!((&unit.vtd, &unit.faults), (&other.vtd, &other.faults));
        for one in &after {
            prop_assert_eq!(step(&mut unit, one), step(&mut other, one));
        }
        for offset in (0..WINDOW_SIZE).step_by(4) {
            prop_assert_eq!(unit.read32(offset), other.read32(offset));
        }
    }
}
