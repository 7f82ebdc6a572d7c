//! A VT-d unit as a device of the fabric, against a backend that remembers.

mod common;

use common::vtd::*;
use common::{Call, Guest, LEVEL, REMOTE_IRR, Recorder, entry};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{BuildError, Fabric, IOAPIC_ADDRESS, MsiVectors, Promotion};
use irqfabric::hv::{Capacity, Counted, HvError, Hypervisor, Route, Target};
use irqfabric::line::Level;
use irqfabric::memory::Memory as _;
use irqfabric::msg::{Acceptance, Interrupt, Masking, RequesterId, Trigger};
use irqfabric::remap::vtd::{Faults, Vtd};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

const IOAPIC: RequesterId = RequesterId::new(0xff, 0, 0);
const DEVICE: RequesterId = RequesterId::new(0, 3, 0);

fn machine_on(hypervisor: impl Hypervisor + 'static) -> Driver {
    let ram = Ram::new();
    let builder = Fabric::builder(hypervisor).ioapic(Ioapic::default().with_requester(IOAPIC));
    let builder = builder.promotion(Promotion::Prefill).memory(ram.clone());
    Driver::new(builder.vtd(UNIT, Vtd::default(), Faults::default()).build().unwrap(), ram)
}

/// Descriptors none of which can be merged with the one before it.
fn unmergeable(count: u64) -> impl Iterator<Item = u128> {
    (0..count).map(|place| by_index(if place % 2 == 0 { 0 } else { 0x100 }, 0))
}

fn machine() -> (Driver, Arc<Recorder>) {
    let recorder = Recorder::new();
    (machine_on(recorder.clone()), recorder)
}

/// The machine as it is, saved and restored on another backend.
fn restored(guest: &Driver) -> (Driver, Arc<Recorder>) {
    let recorder = Recorder::new();
    let (address, registers, faults) = guest.fabric.vtd().unwrap();
    let chip = guest.fabric.ioapics().next().unwrap().2;
    let builder = Fabric::builder(recorder.clone()).ioapic(Ioapic::restore(&chip).unwrap()).memory(guest.ram.clone());
    let unit = (Vtd::restore(&registers).unwrap(), Faults::restore(&faults).unwrap());
    (Driver::new(builder.vtd(address, unit.0, unit.1).build().unwrap(), guest.ram.clone()), recorder)
}

fn program(vectors: &MsiVectors, index: usize, irte: u16) {
    let (address, data) = remappable(irte);
    vectors.program(index, address, data).unwrap();
}

/// `count` hot vectors, of entries from 0 on, each to vector 0x30.
fn hot(guest: &Driver, count: usize) -> MsiVectors {
    let vectors = guest.fabric.msi_vectors(DEVICE, count);
    for index in 0..count {
        guest.set(index as u16, irte(0x30, 0));
        vectors[index].eventfd().unwrap();
        program(&vectors, index, index as u16);
    }
    assert!(vectors.iter().all(|vector| vector.is_hot()));
    vectors
}

#[test]
fn vectors_and_pins_get_what_their_entries_give_to_their_requester() {
    let (guest, recorder) = machine();
    guest.enable();
    guest.set(3, irte(0x41, 0x12345) | only_for(DEVICE.0));
    guest.set(4, irte(0x42, 300) | only_for(IOAPIC.0));
    let vectors = guest.fabric.msi_vectors(DEVICE, 2);
    program(&vectors, 0, 3);
    program(&vectors, 1, 4);
    vectors[0].signal();
    let sent = Interrupt { destination: 0x12345, vector: 0x41, ..Interrupt::default() };
    assert_eq!(recorder.take(), [Call::Deliver(sent)]);
    guest.fabric.program(4, remappable_pin(4, 4));
    guest.fabric.line(4).unwrap().source("serial").pulse();
    assert_eq!(recorder.take(), [Call::Deliver(Interrupt { destination: 300, vector: 0x42, ..Interrupt::default() })]);
    vectors[1].signal();
    assert_eq!((recorder.take(), guest.take_faults()), (vec![], vec![(0x26, 4)]), "that is the IOAPIC's");
}

#[test]
fn a_blocked_vector_records_one_fault_each_time_it_fires_and_none_before() {
    let (guest, _) = machine();
    guest.enable();
    let vectors = guest.fabric.msi_vectors(DEVICE, 1);
    vectors[0].eventfd().unwrap();
    program(&vectors, 0, 7);
    guest.invalidate(by_index(7, 0));
    guest.invalidate(GLOBAL);
    assert_eq!((guest.take_faults(), guest.fabric.stats().blocked), (vec![], 0));
    for fired in 1..=20 {
        vectors[0].signal();
        assert_eq!((guest.take_faults(), guest.fabric.stats().blocked), (vec![(0x22, 7)], fired));
    }
    guest.set(7, FAULTS_SILENT);
    vectors[0].signal();
    assert_eq!((guest.take_faults(), guest.fabric.stats().blocked), (vec![], 21), "fault processing is disabled");
    guest.set(7, irte(0x41, 0));
    vectors[0].signal();
    assert_eq!((guest.take_faults(), vectors[0].stats().delivered), (vec![], 1), "present, without an invalidation");
}

#[test]
fn the_units_own_events_are_not_remapped() {
    let (guest, recorder) = machine();
    guest.enable();
    // FEDATA, FEADDR, FEUADDR: vector 0x51 to APIC id 0x12303, a message of compatibility format.
    for (offset, value) in [(0x3c, 0x51), (0x40, 0xfee0_3000), (0x44, 0x1_2300), (FECTL, 0)] {
        guest.write(offset, value);
    }
    let vectors = guest.fabric.msi_vectors(DEVICE, 1);
    program(&vectors, 0, 7);
    vectors[0].signal();
    let event = Interrupt { destination: 0x12303, vector: 0x51, ..Interrupt::default() };
    assert_eq!(recorder.take(), [Call::Deliver(event)]);
    vectors[0].signal();
    assert_eq!(recorder.take(), [], "the guest has not served the first");
    guest.take_faults();
    // Masked, it is sent when it is unmasked.
    guest.write(FECTL, 1 << 31);
    vectors[0].signal();
    assert_eq!(recorder.take(), []);
    guest.write(FECTL, 0);
    assert_eq!(recorder.take(), [Call::Deliver(event)]);
    // Outside the interrupt window it is a write to memory.
    guest.take_faults();
    guest.write(0x40, 0x2000);
    guest.write(0x44, 0);
    vectors[0].signal();
    let mut written = [0; 4];
    guest.ram.read(0x2000, &mut written).unwrap();
    assert_eq!((u32::from_le_bytes(written), recorder.take()), (0x51, vec![]));
}

#[test]
fn what_was_translated_without_remapping_does_not_survive_its_switch() {
    let (guest, recorder) = machine();
    let vectors = guest.fabric.msi_vectors(DEVICE, 1);
    vectors.program(0, 0xfee0_0000, 0x41).unwrap();
    vectors[0].signal();
    let source = guest.fabric.line(10).unwrap().source("disk");
    guest.fabric.program(10, entry(0x42, 0) | LEVEL);
    source.raise();
    source.lower();
    guest.fabric.end_of_interrupt(0x42);
    assert_eq!(recorder.take_vectors(), [0x41, 0x42]);
    // Linux invalidates before it sets IRE.
    guest.prepare(true);
    guest.invalidate(GLOBAL);
    vectors[0].signal();
    assert_eq!(recorder.take_vectors(), [0x41]);
    guest.write(GCMD, QIE | IRE);
    vectors[0].signal();
    source.raise();
    assert_eq!((recorder.take_vectors(), guest.take_faults()), (vec![], vec![(0x25, 0); 2]));
    guest.write(GCMD, QIE);
    assert_eq!(recorder.take_vectors(), [0x42], "a level that was blocked comes with the switch back");
    vectors[0].signal();
    assert_eq!((recorder.take_vectors(), guest.take_faults()), (vec![0x41], vec![]));
}

#[test]
fn compatibility_format_passes_where_the_guest_says_so_and_destinations_have_eight_bits() {
    for (extended, command, passes) in [(false, CFI, true), (false, 0, false), (true, CFI, false)] {
        let (guest, recorder) = machine();
        guest.prepare(extended);
        guest.write(GCMD, QIE | IRE | command);
        let vectors = guest.fabric.msi_vectors(DEVICE, 1);
        vectors.program(0, 0xfee0_5000, 0x41).unwrap();
        vectors[0].signal();
        let faults = if passes { vec![] } else { vec![(0x25, 0)] };
        assert_eq!((recorder.take_vectors().len(), guest.take_faults()), (usize::from(passes), faults));
        guest.write(GCMD, QIE | IRE | (command ^ CFI));
        vectors[0].signal();
        let passes = !passes && !extended;
        assert_eq!(recorder.take_vectors().len(), usize::from(passes), "a change of CFI is an invalidation");
    }
}

#[test]
fn another_table_is_an_invalidation_of_everything() {
    let (guest, recorder) = machine();
    guest.enable();
    let vectors = guest.fabric.msi_vectors(DEVICE, 1);
    guest.set(0x100, irte(0x41, 0));
    guest.set(0x200, irte(0x42, 0));
    program(&vectors, 0, 0x100);
    vectors[0].signal();
    guest.write64(0xb8, 0x10_1000 | 1 << 11 | 0xf);
    vectors[0].signal();
    assert_eq!(recorder.take_vectors(), [0x41, 0x41], "not before it is set");
    guest.write(GCMD, QIE | IRE | SIRTP);
    vectors[0].signal();
    assert_eq!(recorder.take_vectors(), [0x42]);
}

/// Linux under VT-d: the entry behind a level pin is edge-triggered, and the redirection entry's vector field has the pin.
#[test]
fn a_level_pin_whose_entry_is_edge_parks_nothing_and_is_ended_by_the_eoi_register() {
    let (guest, recorder) = machine();
    guest.enable();
    guest.set(9, irte(0x41, 0));
    let source = guest.fabric.line(10).unwrap().source("disk");
    guest.fabric.program(10, remappable_pin(9, 10) | LEVEL);
    for round in 0..3 {
        source.raise();
        assert_eq!(guest.fabric.entry(10) & REMOTE_IRR, REMOTE_IRR);
        guest.fabric.mmio_write(IOAPIC_ADDRESS + 0x40, &10u32.to_le_bytes());
        source.lower();
        guest.fabric.mmio_write(IOAPIC_ADDRESS + 0x40, &10u32.to_le_bytes());
        // Delivered for its rise, and for standing yet at the first end.
        let delivered = Call::Deliver(Interrupt { vector: 0x41, ..Interrupt::default() });
        assert_eq!(recorder.take(), [delivered.clone(), delivered], "round {round}: and no commit");
        assert_eq!(guest.fabric.entry(10) & REMOTE_IRR, 0);
    }
    // Moving it takes no commit either.
    guest.set(9, irte(0x42, 1));
    guest.invalidate(by_index(9, 0));
    source.raise();
    let moved = Interrupt { destination: 1, vector: 0x42, ..Interrupt::default() };
    assert_eq!((recorder.take(), recorder.table()), (vec![Call::Deliver(moved)], vec![]));
}

#[test]
fn a_level_pin_parks_its_route_where_the_entry_is_level_and_has_the_pins_vector() {
    let (guest, recorder) = machine();
    guest.enable();
    let source = guest.fabric.line(10).unwrap().source("disk");
    guest.fabric.program(10, remappable_pin(9, 0x41) | LEVEL);
    guest.set(9, irte(0x42, 0) | TRIGGER_LEVEL);
    source.raise();
    assert_eq!(recorder.table(), [], "KVM would report the end of 0x42, which is nobody's");
    guest.fabric.end_of_interrupt(0x41);
    guest.set(9, irte(0x41, 0) | TRIGGER_LEVEL);
    guest.fabric.program(10, remappable_pin(9, 0x41) | LEVEL);
    guest.fabric.end_of_interrupt(0x41);
    assert_eq!(recorder.table().len(), 1);
}

#[test]
fn a_pin_whose_entry_became_edge_or_got_another_vector_gives_its_route_up_at_the_next_commit() {
    for other in [irte(0x41, 0), irte(0x42, 0) | TRIGGER_LEVEL] {
        let (guest, recorder) = machine();
        guest.enable();
        guest.set(9, irte(0x41, 0) | TRIGGER_LEVEL);
        guest.set(10, irte(0x48, 0) | TRIGGER_LEVEL);
        let [a, b] = [10, 11].map(|gsi| guest.fabric.line(gsi).unwrap().source("disk"));
        guest.fabric.program(10, remappable_pin(9, 0x41) | LEVEL);
        guest.fabric.program(11, remappable_pin(10, 0x48) | LEVEL);
        a.pulse();
        guest.fabric.end_of_interrupt(0x41);
        guest.set(9, other);
        guest.invalidate(by_index(9, 0));
        recorder.take();
        a.raise();
        assert_eq!(recorder.take().len(), 1, "delivered, and no commit for the sake of what is not needed");
        b.raise();
        assert_eq!(recorder.table().iter().map(|route| route.gsi).collect::<Vec<_>>(), [11]);
        // Level and of its vector again, it needs a new one before it is delivered.
        guest.fabric.mmio_write(IOAPIC_ADDRESS + 0x40, &0x41u32.to_le_bytes());
        recorder.take();
        a.lower();
        guest.fabric.mmio_write(IOAPIC_ADDRESS + 0x40, &0x41u32.to_le_bytes());
        guest.set(9, irte(0x41, 0) | TRIGGER_LEVEL);
        guest.invalidate(by_index(9, 0));
        recorder.take();
        a.raise();
        assert!(matches!(recorder.take()[..], [Call::Commit(_), Call::Deliver(_)]));
    }
}

#[test]
fn a_blocked_level_comes_at_the_invalidation_that_covers_it() {
    let (guest, recorder) = machine();
    guest.enable();
    let source = guest.fabric.line(10).unwrap().source("disk");
    guest.fabric.program(10, remappable_pin(9, 10) | LEVEL);
    guest.take_faults();
    source.raise();
    assert_eq!((recorder.take(), guest.take_faults()), (vec![], vec![(0x22, 9)]));
    guest.invalidate(GLOBAL);
    assert_eq!((recorder.take(), guest.take_faults()), (vec![], vec![]), "still absent, and nothing was sent");
    guest.set(9, irte(0x41, 0));
    guest.invalidate(by_index(0x10, 4));
    assert_eq!(recorder.take(), [], "that was not its entry");
    guest.invalidate(by_index(8, 1));
    assert_eq!((recorder.take_vectors(), guest.take_faults()), (vec![0x41], vec![]));
}

#[test]
fn a_range_invalidation_touches_its_own_routes_only_by_one_commit() {
    let recorder = Recorder::with_irqfds();
    let guest = machine_on(recorder.clone());
    guest.enable();
    let _vectors = hot(&guest, 64);
    let vector_of = |target: Target| match target {
        Target::Interrupt(interrupt) => interrupt.vector,
        Target::Opaque(_) => panic!("there is none"),
    };
    recorder.take();
    guest.invalidate(GLOBAL);
    assert_eq!(recorder.take(), [], "they come out the same");
    (0..64).for_each(|index| guest.set(index, irte(0x31, 0)));
    guest.invalidate(by_index(16, 4));
    assert!(matches!(recorder.take()[..], [Call::Commit(_)]));
    let vectors: Vec<_> = recorder.table().iter().map(|route| vector_of(route.target)).collect();
    let expected: Vec<_> = (0..64).map(|index| if (16..32).contains(&index) { 0x31 } else { 0x30 }).collect();
    assert_eq!(vectors, expected);
}

#[test]
fn a_range_invalidation_detaches_its_own_vectors_only_where_a_commit_takes_longer() {
    let (recorder, commit) = (Recorder::with_irqfds(), Duration::from_millis(1));
    let slow = Arc::new(Counted::new(Slow { recorder: recorder.clone(), delivery: Duration::ZERO, commit }));
    let guest = machine_on(slow.clone());
    guest.enable();
    let vectors = hot(&guest, 8);
    // Masking detaches: now it is known that this takes no time here.
    for masking in [Masking::Masked, Masking::Unmasked].repeat(20) {
        vectors.set_masking([7], masking).unwrap();
    }
    let before = slow.calls();
    guest.invalidate(GLOBAL);
    assert_eq!(slow.calls(), before, "they come out the same");
    (0..8).for_each(|index| guest.set(index, irte(0x31, 0)));
    guest.invalidate(by_index(4, 1));
    let after = slow.calls();
    assert_eq!((after.detaches - before.detaches, after.commits - before.commits), (2, 0));
    let hot: Vec<_> = vectors.iter().map(|vector| vector.is_hot()).collect();
    assert_eq!(hot, [true, true, true, true, false, false, true, true]);
    recorder.take();
    vectors.iter().for_each(|vector| vector.signal());
    assert_eq!(recorder.take_vectors(), [0x30, 0x30, 0x30, 0x30, 0x31, 0x31, 0x30, 0x30]);
}

#[test]
fn an_invalidation_is_in_force_before_its_wait_is_done_and_registers_are_free_meanwhile() {
    let recorder = Recorder::with_irqfds();
    let guest = machine_on(recorder.clone());
    guest.enable();
    let _vectors = hot(&guest, 1);
    recorder.take();
    guest.set(0, irte(0x31, 0));
    guest.put([by_index(0, 0)]);
    let first = guest.put_wait();
    recorder.hold_commits(true);
    thread::scope(|scope| {
        scope.spawn(|| guest.submit());
        recorder.wait_held(1);
        // Another processor: it can see that nothing is done yet, and ask for more without waiting.
        let head = guest.read(IQH);
        guest.put([GLOBAL]);
        let second = guest.put_wait();
        guest.submit();
        let seen = (guest.is_done(first), guest.is_done(second), guest.read(IQH), guest.read(GSTS));
        // Whatever that was: a test that fails must end.
        recorder.hold_commits(false);
        assert_eq!(seen, (false, false, head, QIE | IRE | SIRTP));
        guest.wait_for(first);
        assert!(matches!(recorder.take()[..], [Call::Commit(_)]), "committed before");
        guest.wait_for(second);
    });
    assert_eq!(guest.read(IQH), guest.read(IQT));
}

#[test]
fn a_full_queue_does_not_hold_a_processor() {
    let (guest, _) = machine();
    guest.enable();
    guest.put(unmergeable(DESCRIPTORS - 2));
    let wait = guest.put_wait();
    guest.submit();
    let read = guest.ram.descriptors_read_here();
    assert!(read <= 64, "{read} descriptors were looked at before the processor went on");
    guest.wait_for(wait);
    assert_eq!(guest.read(IQH), guest.read(IQT));
    assert_eq!(guest.ram.descriptors_read_here(), read, "the rest was the dispatcher's");
}

/// The dispatcher is held in the middle of a long queue, an eventfd fires, and it goes on.
#[test]
fn a_cold_eventfd_does_not_wait_for_the_rest_of_a_queue() {
    let (guest, recorder) = machine();
    guest.enable();
    let vectors = guest.fabric.msi_vectors(DEVICE, 1);
    guest.set(3, irte(0x61, 0));
    program(&vectors, 0, 3);
    let eventfd = vectors[0].eventfd().unwrap();
    // Two levels that come at their invalidations, the first of them by a commit.
    let sources = [10, 11].map(|gsi| guest.fabric.line(gsi).unwrap().source("disk"));
    guest.fabric.program(10, remappable_pin(0x10, 0x50) | LEVEL);
    guest.fabric.program(11, remappable_pin(0x11, 0x51) | LEVEL);
    sources.iter().for_each(|source| source.raise());
    guest.set(0x10, irte(0x50, 0) | TRIGGER_LEVEL);
    guest.set(0x11, irte(0x51, 0));
    guest.put(unmergeable(100));
    guest.put([by_index(0x10, 0)]);
    guest.put(unmergeable(100));
    guest.put([by_index(0x11, 0)]);
    let wait = guest.put_wait();
    recorder.hold_commits(true);
    guest.submit();
    recorder.wait_held(1);
    eventfd.write(1).unwrap();
    recorder.hold_commits(false);
    guest.wait_for(wait);
    assert_eq!(recorder.take_vectors(), [0x50, 0x61, 0x51]);
}

/// A backend that takes its time.
struct Slow {
    recorder: Arc<Recorder>,
    delivery: Duration,
    commit: Duration,
}

impl Hypervisor for Slow {
    fn start(&self, pins: u32) -> Result<Capacity, HvError> {
        self.recorder.start(pins)
    }

    fn attach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        self.recorder.attach(gsi, eventfd)
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        thread::sleep(self.delivery);
        self.recorder.deliver(interrupt)
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        thread::sleep(self.commit);
        self.recorder.commit(routes)
    }
}

#[test]
fn invalidations_that_take_long_do_not_hold_a_processor_either() {
    let recorder = Recorder::new();
    let (delivery, commit) = (Duration::from_millis(2), Duration::ZERO);
    let guest = machine_on(Slow { recorder: recorder.clone(), delivery, commit });
    guest.enable();
    let pins = 10..20;
    let sources: Vec<_> = pins.clone().map(|gsi| guest.fabric.line(gsi).unwrap().source("disk")).collect();
    for (pin, source) in (10..).zip(&sources) {
        guest.fabric.program(pin, remappable_pin(2 * u16::from(pin), pin) | LEVEL);
        source.raise();
        guest.set(2 * u16::from(pin), irte(0x40 + pin, 0));
    }
    // Each delivers a level that was blocked.
    guest.put(pins.clone().map(|pin| by_index(2 * pin as u16, 0)));
    let wait = guest.put_wait();
    let before = guest.ram.descriptors_read_here();
    guest.submit();
    let read = guest.ram.descriptors_read_here() - before;
    // One to be performed, one that comes too late, and each time the one behind it, for it might be part of the same range.
    assert!(read <= 4, "{read} descriptors were looked at before the processor went on");
    guest.wait_for(wait);
    assert_eq!(recorder.take_vectors(), pins.map(|pin| 0x40 + pin as u8).collect::<Vec<_>>());
}

/// The processor waits for nothing else, and to wake another thread takes longer than to tell it.
#[test]
fn a_wait_behind_one_invalidation_that_takes_long_is_over_when_the_processor_goes_on() {
    let (delivery, commit) = (Duration::from_millis(2), Duration::ZERO);
    let guest = machine_on(Slow { recorder: Recorder::new(), delivery, commit });
    guest.enable();
    let source = guest.fabric.line(10).unwrap().source("disk");
    guest.fabric.program(10, remappable_pin(20, 10) | LEVEL);
    source.raise();
    guest.set(20, irte(0x40, 0));
    guest.put([by_index(20, 0)]);
    let wait = guest.put_wait();
    guest.submit();
    assert!(guest.is_done(wait), "left to the dispatcher");
}

#[test]
fn processors_that_invalidate_at_once_are_all_served_and_nothing_stale_is_delivered() {
    let recorder = Recorder::with_irqfds();
    let guest = machine_on(recorder.clone());
    guest.enable();
    let vectors = hot(&guest, 4);
    thread::scope(|scope| {
        for processor in 0..4 {
            let (guest, recorder) = (guest.clone(), &recorder);
            let vector = &vectors[usize::from(processor)];
            scope.spawn(move || {
                let own = [0x40, 0x41].map(|vector| vector + 2 * processor as u8);
                for round in 0..200 {
                    let present = own[round % 2];
                    guest.set(processor, irte(present, 0));
                    guest.invalidate(by_index(processor, 0));
                    // Its route, unless it was detached instead.
                    let routed = recorder.table().iter().any(|route| {
                        route.target == Interrupt { vector: own[(round + 1) % 2], ..Interrupt::default() }.into()
                    });
                    assert!(!vector.is_hot() || !routed, "round {round}: the route of the one before is in force");
                    vector.signal();
                    assert_eq!(recorder.last(&own), Some(present), "round {round}");
                    assert_eq!(guest.read(GSTS), QIE | IRE | SIRTP);
                }
            });
        }
    });
    assert_eq!((guest.take_faults(), guest.fabric.stats().blocked), (vec![], 0));
    assert_eq!(vectors.iter().map(|vector| vector.stats().delivered).sum::<u64>(), 800);
}

#[test]
fn whatever_processors_write_at_once_the_unit_comes_back() {
    let (guest, recorder) = machine();
    guest.enable();
    guest.set(3, irte(0x41, 0));
    // Descriptors of every kind, some of them wrong.
    guest.put((0..DESCRIPTORS).map(|place| u128::from(place) * 0x9e37_79b9_7f4a_7c15));
    thread::scope(|scope| {
        for processor in 0..4u32 {
            let guest = guest.clone();
            scope.spawn(move || {
                for round in 0..300 {
                    let value = (processor * 300 + round).wrapping_mul(0x9e37_79b9);
                    let offset = [IQT, GCMD, FSTS, FECTL, 0x9c, IRTA][value as usize % 6];
                    guest.write(offset, value);
                    guest.read(u64::from(value >> 8 & 0xffc));
                }
            });
        }
    });
    guest.restart_queue();
    guest.enable();
    let vectors = guest.fabric.msi_vectors(DEVICE, 1);
    program(&vectors, 0, 3);
    guest.invalidate(GLOBAL);
    recorder.take();
    vectors[0].signal();
    assert_eq!(recorder.take_vectors(), [0x41]);
}

#[test]
fn a_saved_unit_goes_on_as_it_was() {
    let (guest, _) = machine();
    guest.enable();
    guest.set(3, irte(0x41, 0));
    let vectors = guest.fabric.msi_vectors(DEVICE, 2);
    program(&vectors, 0, 3);
    program(&vectors, 1, 4);
    vectors.iter().for_each(|vector| vector.signal());
    let source = guest.fabric.line(10).unwrap().source("disk");
    guest.fabric.program(10, remappable_pin(3, 10) | LEVEL);
    source.raise();
    let states = vectors.save();
    let (restored, recorder) = restored(&guest);
    assert_eq!(recorder.take(), [], "no end of an interrupt is to be reported");
    assert_eq!(restored.fabric.vtd(), guest.fabric.vtd());
    assert_eq!((restored.read(GSTS), restored.take_faults()), (QIE | IRE | SIRTP, vec![(0x22, 4)]));
    let vectors = restored.fabric.msi_vectors(DEVICE, 2);
    vectors.restore(&states).unwrap();
    vectors.iter().for_each(|vector| vector.signal());
    assert_eq!((recorder.take_vectors(), restored.take_faults()), (vec![0x41], vec![(0x22, 4)]));
    let disk = restored.fabric.line(10).unwrap().source("disk");
    disk.restore(Level::High);
    restored.fabric.mmio_write(IOAPIC_ADDRESS + 0x40, &10u32.to_le_bytes());
    assert_eq!(recorder.take_vectors(), [0x41], "the level stands, and was ended");
}

/// The route of the interrupt that was delivered is not in the snapshot, and its entry is another by now.
#[test]
fn a_restored_level_in_service_is_ended_though_its_entry_changed_meanwhile() {
    let level = irte(0x41, 0) | TRIGGER_LEVEL;
    let absent = 0;
    for changed in [level, absent, irte(0x41, 0), irte(0x42, 0) | TRIGGER_LEVEL] {
        let (guest, _) = machine();
        guest.enable();
        guest.set(3, level);
        let source = guest.fabric.line(10).unwrap().source("disk");
        guest.fabric.program(10, remappable_pin(3, 0x41) | LEVEL);
        source.raise();
        guest.set(3, changed);
        guest.invalidate(by_index(3, 0));
        let (Driver { fabric, .. }, recorder) = restored(&guest);
        let reported = |route: &Route| match route.target {
            Target::Interrupt(interrupt) => (route.gsi, interrupt.vector, interrupt.trigger),
            Target::Opaque(_) => panic!("there is none"),
        };
        assert_eq!(recorder.table().iter().map(reported).collect::<Vec<_>>(), [(10, 0x41, Trigger::Level)]);
        // KVM reports the end for that route's sake. By then the entry is as it was before.
        let disk = fabric.line(10).unwrap().source("disk");
        disk.restore(Level::High);
        recorder.take();
        guest.set(3, level);
        fabric.end_of_interrupt(0x41);
        assert_eq!(recorder.take_vectors(), [0x41]);
        let parked = Interrupt { vector: 0x41, trigger: Trigger::Level, ..Interrupt::default() };
        assert_eq!(recorder.table()[0].target, parked.into(), "and is to its own processor again");
    }
}

#[test]
fn whoever_saves_a_unit_waits_until_its_queue_is_at_rest() {
    let recorder = Recorder::with_irqfds();
    let guest = machine_on(recorder.clone());
    guest.enable();
    let _vectors = hot(&guest, 1);
    guest.set(0, irte(0x31, 0));
    guest.put([by_index(0, 0)]);
    recorder.hold_commits(true);
    let processor = guest.clone();
    let invalidates = thread::spawn(move || processor.submit());
    recorder.wait_held(1);
    let (saved, saves) = mpsc::channel();
    for _ in 0..2 {
        let (guest, saved) = (guest.clone(), saved.clone());
        thread::spawn(move || saved.send(guest.fabric.vtd().unwrap().1));
    }
    let early = saves.recv_timeout(Duration::from_millis(50));
    recorder.hold_commits(false);
    assert!(early.is_err(), "its queue is not at rest");
    for _ in 0..2 {
        let queue = saves.recv_timeout(Duration::from_secs(30)).expect("it waits for ever").queue;
        assert_eq!((queue.head, queue.tail), (guest.read(IQT), guest.read(IQT)));
    }
    invalidates.join().unwrap();
}

/// What the guest had asked for when it was saved is done when it is restored.
#[test]
fn a_saved_queue_is_emptied() {
    let (guest, _) = machine();
    guest.enable();
    let wait = guest.put_wait();
    let (address, mut registers, faults) = guest.fabric.vtd().unwrap();
    registers.queue.tail += 16;
    let builder = Fabric::builder(Recorder::new()).memory(guest.ram.clone());
    let unit = (Vtd::restore(&registers).unwrap(), Faults::restore(&faults).unwrap());
    let _restored = builder.vtd(address, unit.0, unit.1).build().unwrap();
    assert!(guest.is_done(wait));
}

#[test]
fn a_unit_needs_memory_and_an_address_of_its_own() {
    let builder = || Fabric::builder(Recorder::new()).ioapic(Ioapic::default());
    let alone = builder().vtd(UNIT, Vtd::default(), Faults::default()).build().unwrap_err();
    assert!(matches!(alone, BuildError::NoMemory), "{alone}");
    for address in [IOAPIC_ADDRESS, IOAPIC_ADDRESS - 0xfff, IOAPIC_ADDRESS + 0xff] {
        let unit = builder().memory(Ram::new()).vtd(address, Vtd::default(), Faults::default());
        assert!(matches!(unit.build().unwrap_err(), BuildError::Overlap(..)), "{address:#x}");
    }
    assert!(builder().build().unwrap().vtd().is_none());
}
