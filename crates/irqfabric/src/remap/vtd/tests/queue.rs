use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

const CONTEXT: u128 = 1;
const IOTLB: u128 = 2;
const DEVICE_TLB: u128 = 3;
const ALL_ENTRIES: u128 = 4;
/// Where the tests' waits write their status.
const STATUS: u64 = RAM + 0x3_f000;

fn by_index(index: u16, mask: u8) -> u128 {
    4 | 1 << 4 | u128::from(mask) << 27 | u128::from(index) << 32
}

fn wait(status: u32) -> u128 {
    5 | 1 << 5 | u128::from(status) << 32 | u128::from(STATUS) << 64
}

const WAIT_INTERRUPT: u128 = 5 | 1 << 4;
const WAIT_FENCE: u128 = 5 | 1 << 6;

impl Unit {
    fn descriptor(&self, place: u64, descriptor: u128) {
        self.ram.write(RING + 16 * place, &descriptor.to_le_bytes()).unwrap();
    }

    /// Puts descriptors behind the tail and moves it.
    fn submit(&mut self, descriptors: &[u128]) {
        let mut place = u64::from(self.read32(IQT)) / 16;
        for &descriptor in descriptors {
            self.descriptor(place, descriptor);
            place = (place + 1) % 256;
        }
        self.write32(IQT, (place * 16) as u32);
    }

    fn status(&self) -> u32 {
        let mut data = [0; 4];
        self.ram.read(STATUS, &mut data).unwrap();
        u32::from_le_bytes(data)
    }
}

fn completion_event() -> Message {
    Message { address: 0xfee0_1000, data: 0xc1, requester: RequesterId::default() }
}

#[test]
fn an_invalidation_is_done_before_its_wait_writes_the_status() {
    let mut unit = Unit::xapic();
    unit.submit(&[by_index(0x20, 0), wait(0x1234)]);
    assert_eq!(unit.next(), Some(Effect::Invalidate(cookies(0x20, 0x20))));
    assert_eq!((unit.read32(IQH), unit.status()), (0, 0), "not seen before it is performed");
    assert_eq!(unit.next(), Some(Effect::Write { address: STATUS, data: 0x1234 }));
    assert_eq!(unit.read32(IQH), 16);
    assert_eq!(unit.next(), None);
    assert_eq!((unit.read32(IQH), unit.status()), (32, 0x1234));
}

#[test]
fn a_range_is_what_the_mask_leaves_of_the_index() {
    for (index, mask, first, last) in [
        (0, 0, 0, 0),
        (0xffff, 0, 0xffff, 0xffff),
        (0x123, 4, 0x120, 0x12f),
        (0x8001, 15, 0x8000, 0xffff),
        (0x1234, 16, 0, 0xffff),
        (0x1234, 31, 0, 0xffff),
    ] {
        let mut unit = Unit::xapic();
        unit.submit(&[by_index(index, mask)]);
        assert_eq!(unit.perform(), [Effect::Invalidate(cookies(first, last))]);
    }
}

#[test]
fn a_global_invalidation_is_of_everything() {
    let mut unit = Unit::xapic();
    unit.submit(&[ALL_ENTRIES]);
    assert_eq!(unit.perform(), [Effect::Invalidate(Entries::All)]);
}

#[test]
fn what_follows_one_another_is_merged_where_it_is_one_range() {
    let mut unit = Unit::xapic();
    unit.submit(&[by_index(8, 1), by_index(10, 0), by_index(4, 2), CONTEXT, by_index(6, 0), wait(1)]);
    let status = Effect::Write { address: STATUS, data: 1 };
    assert_eq!(unit.perform(), [Effect::Invalidate(cookies(4, 10)), status.clone()]);
    // What lies between two ranges is left alone.
    unit.submit(&[by_index(8, 0), by_index(10, 0), wait(1)]);
    let apart = [Effect::Invalidate(cookies(8, 8)), Effect::Invalidate(cookies(10, 10)), status.clone()];
    assert_eq!(unit.perform(), apart);
    // A wait ends it: what comes behind must not be claimed to be done.
    unit.submit(&[by_index(8, 0), wait(1), by_index(9, 0)]);
    let split = [Effect::Invalidate(cookies(8, 8)), status, Effect::Invalidate(cookies(9, 9))];
    assert_eq!(unit.perform(), split);
    unit.submit(&[by_index(8, 0), ALL_ENTRIES, by_index(0x80, 0)]);
    assert_eq!(unit.perform(), [Effect::Invalidate(Entries::All)]);
}

#[test]
fn descriptors_of_dma_remapping_are_accepted_and_ask_for_nothing() {
    let mut unit = Unit::xapic();
    // As Linux fills them in: granularity, domain, source, address.
    let global = 1 << 4;
    unit.submit(&[
        CONTEXT | global,
        IOTLB | global | 3 << 6 | 1 << 16,
        DEVICE_TLB | 0xf << 12 | 0x18 << 32 | 0xfff << 52 | 1 << 64,
        WAIT_FENCE,
        wait(7),
    ]);
    assert_eq!(unit.perform(), [Effect::Write { address: STATUS, data: 7 }]);
    assert_eq!((unit.read32(IQH), unit.read32(FSTS)), (5 * 16, 0));
}

#[test]
fn a_wait_with_an_interrupt_completes_once_until_it_is_acknowledged() {
    let mut unit = Unit::xapic();
    unit.submit(&[WAIT_INTERRUPT, WAIT_INTERRUPT]);
    assert_eq!(unit.perform(), [Effect::Send(completion_event())]);
    assert_eq!(unit.read32(ICS), 1);
    unit.write32(ICS, 0);
    assert_eq!(unit.read32(ICS), 1);
    unit.write32(ICS, 1);
    assert_eq!(unit.read32(ICS), 0);
    unit.submit(&[WAIT_INTERRUPT]);
    assert_eq!(unit.perform(), [Effect::Send(completion_event())]);
}

#[test]
fn a_wait_may_ask_for_a_status_and_an_interrupt() {
    let mut unit = Unit::xapic();
    unit.submit(&[wait(3) | WAIT_INTERRUPT]);
    let expected = [Effect::Write { address: STATUS, data: 3 }, Effect::Send(completion_event())];
    assert_eq!(unit.next().as_ref(), expected.first());
    assert_eq!(unit.read32(ICS), 0, "complete when its status is written");
    assert_eq!(unit.perform(), expected[1..]);
}

#[test]
fn a_masked_completion_is_pending_until_it_is_unmasked_or_acknowledged() {
    let mut unit = Unit::xapic();
    unit.write32(IECTL, MASKED);
    unit.submit(&[WAIT_INTERRUPT]);
    assert_eq!(unit.perform(), []);
    assert_eq!(unit.read32(IECTL), MASKED | PENDING);
    unit.write32(IECTL, 0);
    assert_eq!(unit.perform(), [Effect::Send(completion_event())]);
    unit.write32(ICS, 1);
    unit.write32(IECTL, MASKED);
    unit.submit(&[WAIT_INTERRUPT]);
    assert_eq!(unit.perform(), []);
    unit.write32(ICS, 1);
    unit.write32(IECTL, 0);
    assert_eq!(unit.perform(), []);
}

#[test]
fn an_unknown_type_or_a_reserved_bit_stops_the_queue_at_its_descriptor() {
    let unknown = [0, 6, 7, 8, 9, 15, 1 << 9 | 4, 2 << 9 | 5, 4 << 9 | 1];
    let entries = (5..27).chain(48..128).map(|bit| ALL_ENTRIES | 1 << bit);
    let waits = (7..32).chain(64..66).map(|bit| WAIT_FENCE | 1 << bit);
    for wrong in unknown.into_iter().chain(entries).chain(waits) {
        let mut unit = Unit::xapic();
        unit.submit(&[by_index(1, 0), wrong, wait(9)]);
        // The one before it is still done.
        assert_eq!(unit.perform(), [Effect::Invalidate(cookies(1, 1)), Effect::Send(fault_event())], "{wrong:#x}");
        assert_eq!((unit.read32(FSTS), unit.read32(IQH), unit.status()), (IQE, 16, 0));
    }
}

#[test]
fn a_stopped_queue_goes_on_when_its_error_is_cleared() {
    let mut unit = Unit::xapic();
    unit.submit(&[0, wait(9)]);
    assert_eq!(unit.perform(), [Effect::Send(fault_event())]);
    // More in the queue changes nothing.
    unit.submit(&[by_index(1, 0)]);
    assert_eq!(unit.perform(), []);
    // Linux puts a wait descriptor in its place (`qi_check_fault`).
    unit.descriptor(0, wait(8));
    unit.write32(FSTS, IQE);
    let write = |data| Effect::Write { address: STATUS, data };
    assert_eq!(unit.perform(), [write(8), write(9), Effect::Invalidate(cookies(1, 1))]);
    assert_eq!(unit.read32(FSTS), 0);
    // Not repaired, it stops again, with a new event.
    unit.submit(&[0]);
    assert_eq!(unit.perform(), [Effect::Send(fault_event())]);
    unit.write32(FSTS, IQE);
    assert_eq!(unit.perform(), [Effect::Send(fault_event())]);
}

#[test]
fn a_ring_that_points_nowhere_is_a_queue_error() {
    for address in [0, RAM - 0x1000, RAM + RAM_SIZE as u64, !0xfff] {
        let mut unit = Unit::xapic();
        unit.write64(IQA, address);
        unit.write32(IQT, 16);
        assert_eq!(unit.perform(), [Effect::Send(fault_event())]);
        assert_eq!((unit.read32(FSTS), unit.read32(IQH)), (IQE, 0));
    }
}

#[test]
fn a_tail_or_a_head_beyond_the_ring_is_a_queue_error() {
    let mut unit = Unit::xapic();
    for place in 0..512 {
        unit.descriptor(place, CONTEXT);
    }
    for tail in [0x1000, 0x7_fff0] {
        unit.write32(IQT, tail);
        assert_eq!(unit.perform(), [Effect::Send(fault_event())]);
        assert_eq!((unit.read32(FSTS), unit.read32(IQH)), (IQE, 0));
        unit.write32(IQT, 0);
        unit.write32(FSTS, IQE);
        assert_eq!(unit.perform(), []);
    }
    // A ring that has become smaller.
    unit.write64(IQA, RING | 1);
    unit.write32(IQT, 0x1000);
    assert_eq!((unit.perform(), unit.read32(IQH)), (vec![], 0x1000));
    unit.write64(IQA, RING);
    unit.write32(IQT, 0x10);
    assert_eq!(unit.perform(), [Effect::Send(fault_event())]);
    assert_eq!((unit.read32(FSTS), unit.read32(IQH)), (IQE, 0x1000));
}

#[test]
fn in_a_ring_of_the_largest_size_the_last_descriptor_has_the_largest_offset() {
    let mut unit = Unit::xapic();
    unit.write64(IQA, RING | 7);
    unit.write32(IQT, 0x7_fff0);
    unit.descriptor(0, by_index(3, 0));
    assert_eq!(unit.next(), Some(Effect::Invalidate(cookies(3, 3))));
}

#[test]
fn the_ring_wraps_and_is_empty_when_head_and_tail_meet() {
    let mut unit = Unit::xapic();
    for round in 0..1000 {
        unit.submit(&[by_index(round, 0), wait(round.into())]);
        let write = Effect::Write { address: STATUS, data: round.into() };
        assert_eq!(unit.perform(), [Effect::Invalidate(cookies(round.into(), round.into())), write]);
        assert_eq!(unit.read32(IQH), unit.read32(IQT));
        assert_eq!(unit.perform(), []);
    }
}

#[test]
fn nothing_is_taken_from_the_queue_while_it_is_off() {
    let mut unit = Unit::xapic();
    unit.write32(GCMD, IRE);
    unit.perform();
    unit.submit(&[ALL_ENTRIES]);
    assert_eq!(unit.perform(), []);
    // The tail that was set meanwhile counts from then on.
    unit.write32(GCMD, IRE | QIE);
    assert_eq!(unit.perform(), [Effect::Invalidate(Entries::All)]);
}

#[test]
fn switched_off_and_on_the_queue_starts_from_the_beginning() {
    let mut unit = Unit::xapic();
    unit.submit(&[ALL_ENTRIES, wait(1)]);
    unit.perform();
    unit.submit(&[ALL_ENTRIES]);
    assert_eq!(unit.next(), Some(Effect::Invalidate(Entries::All)));
    // As Linux does (`__dmar_enable_qi`), though with something left.
    unit.write32(GCMD, IRE);
    unit.write32(IQT, 0);
    unit.write32(GCMD, IRE | QIE);
    assert_eq!(unit.perform(), []);
    assert_eq!((unit.read32(IQH), unit.read32(GSTS) & QIE), (0, QIE));
    unit.submit(&[wait(2)]);
    assert_eq!(unit.perform(), [Effect::Write { address: STATUS, data: 2 }]);
}

#[test]
fn a_command_that_leaves_the_queue_on_leaves_it_where_it_is() {
    let mut unit = Unit::xapic();
    unit.submit(&[wait(1), by_index(8, 0), wait(2)]);
    let write = |data| Effect::Write { address: STATUS, data };
    assert_eq!((unit.next(), unit.next()), (Some(write(1)), Some(Effect::Invalidate(cookies(8, 8)))));
    unit.write32(GCMD, IRE | QIE | SIRTP);
    assert_eq!(unit.read32(IQH), 16);
    assert_eq!(unit.perform(), [Effect::Retranslate(unit.tables), write(2)]);
    assert_eq!(unit.read32(IQH), 48);
}

#[test]
fn a_full_ring_of_the_largest_size_takes_bounded_steps() {
    struct Endless(u128);
    impl Memory for Endless {
        fn read(&self, _: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
            data.copy_from_slice(&self.0.to_le_bytes());
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<(), OutsideMemory> {
            Ok(())
        }
    }
    for (descriptor, most) in [(CONTEXT, 128), (ALL_ENTRIES, 128), (WAIT_FENCE, 32_767), (wait(1), 32_767)] {
        let mut unit = Unit::xapic();
        unit.write64(IQA, RING | 7);
        unit.write32(IQT, 0x7_fff0);
        let mut calls = 0;
        while unit.vtd.next(&mut unit.faults, &Endless(descriptor)).is_some() {
            calls += 1;
            assert!(calls <= most);
        }
        assert_eq!(calls, most);
        assert_eq!(unit.read32(IQH), 0x7_fff0);
    }
}

proptest! {
    /// Against a model that takes one descriptor after the other.
    #[test]
    fn any_queue_invalidates_what_it_asks_for_before_each_wait(
        descriptors in vec(
            prop_oneof![
                4 => (0..40u16, 0..3u8).prop_map(|(index, mask)| by_index(index, mask)),
                1 => Just(ALL_ENTRIES),
                2 => (1..100u32).prop_map(wait),
                1 => Just(CONTEXT),
                1 => Just(WAIT_FENCE),
            ],
            0..200,
        ),
    ) {
        let mut unit = Unit::xapic();
        unit.submit(&descriptors);
        let (mut effects, mut asked) = (unit.perform().into_iter().peekable(), [false; 64]);
        let mut all = false;
        for descriptor in descriptors.into_iter().chain([wait(0)]) {
            match descriptor & 0xf {
                4 if descriptor == ALL_ENTRIES => all = true,
                4 => {
                    let (index, mask) = ((descriptor >> 32) as usize, (descriptor >> 27) as usize & 0x1f);
                    asked[index >> mask << mask..][..1 << mask].fill(true);
                }
                5 if descriptor & 1 << 5 != 0 => {
                    let (mut done, mut everything) = ([false; 64], false);
                    while let Some(Effect::Invalidate(entries)) =
                        effects.next_if(|effect| matches!(effect, Effect::Invalidate(_)))
                    {
                        everything |= entries == Entries::All;
                        for (index, done) in (0..).zip(&mut done) {
                            *done |= entries.covers(Some(Cookie(index)));
                        }
                    }
                    prop_assert_eq!(everything, all);
                    prop_assert!(all || done == asked, "exactly what was asked for");
                    (asked, all) = ([false; 64], false);
                    let data = (descriptor >> 32) as u32;
                    let status = (data != 0).then_some(Effect::Write { address: STATUS, data });
                    prop_assert_eq!(effects.next(), status);
                }
                _ => {}
            }
        }
        prop_assert_eq!(unit.read32(IQH), unit.read32(IQT));
    }
}
