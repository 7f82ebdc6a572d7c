//! The fabric as a whole against a backend that remembers what was asked of it, and in which order.

mod common;

use common::{Call, Guest, LEVEL, MASKED, REMOTE_IRR, Recorder, entry};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{BuildError, Fabric, GsiError, IOAPIC_ADDRESS, Promotion};
use irqfabric::hv::{Capacity, HvError, Hypervisor, Route};
use irqfabric::line::Level;
use irqfabric::msg::{Acceptance, DestinationFormat, Interrupt, Masking, Message, RequesterId, Trigger};
use irqfabric::pci::Changed;
use irqfabric::pci::msix::Msix;
use irqfabric::remap::{Cookie, Entries, ExtDest, Fault, Refusal, Remapper, Translation, Untranslated};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use vmm_sys_util::eventfd::EventFd;

fn fabric() -> (Fabric, Arc<Recorder>) {
    let recorder = Recorder::new();
    let fabric = Fabric::builder(recorder.clone()).ioapic(Ioapic::default()).build().unwrap();
    (fabric, recorder)
}

fn level(vector: u8, destination: u8) -> Interrupt {
    Interrupt { vector, destination: destination.into(), trigger: Trigger::Level, ..Interrupt::default() }
}

fn edge(vector: u8, destination: u8) -> Interrupt {
    Interrupt { trigger: Trigger::Edge, ..level(vector, destination) }
}

fn route(gsi: u32, interrupt: Interrupt) -> Route {
    Route { gsi, target: interrupt.into() }
}

#[test]
fn a_level_pin_parks_its_route_before_its_first_delivery() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 1) | LEVEL);
    assert_eq!(recorder.take(), [], "programming costs nothing");
    source.raise();
    let route = route(10, level(0x41, 1));
    assert_eq!(recorder.take(), [Call::Commit(vec![route]), Call::Deliver(level(0x41, 1))]);
}

#[test]
fn the_route_is_updated_before_a_pending_interrupt_is_redelivered() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    source.raise();
    recorder.take();
    // A guest moves an interrupt that is in service: mask, change, unmask.
    fabric.program(10, entry(0x41, 0) | LEVEL | MASKED);
    fabric.program(10, entry(0x42, 1) | LEVEL | MASKED);
    fabric.program(10, entry(0x41, 1) | LEVEL);
    assert_eq!(recorder.take(), [], "the parked route stays while the interrupt is in service");
    fabric.end_of_interrupt(0x41);
    let route = route(10, level(0x41, 1));
    assert_eq!(recorder.take(), [Call::Commit(vec![route]), Call::Deliver(level(0x41, 1))]);
}

#[test]
fn an_interrupt_that_was_ended_while_masked_is_not_lost() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    source.raise();
    fabric.program(10, entry(0x41, 0) | LEVEL | MASKED);
    assert_eq!(fabric.entry(10) & REMOTE_IRR, REMOTE_IRR, "masking keeps remote IRR");
    recorder.take();
    fabric.end_of_interrupt(0x41);
    assert_eq!((fabric.entry(10) & REMOTE_IRR, recorder.take()), (0, vec![]));
    fabric.program(10, entry(0x41, 0) | LEVEL);
    assert_eq!(recorder.take(), [Call::Deliver(level(0x41, 0))], "with the route that is parked already");
}

#[test]
fn masking_and_unmasking_a_level_pin_commits_nothing() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    source.raise();
    recorder.take();
    for _ in 0..10 {
        fabric.program(10, entry(0x41, 0) | LEVEL | MASKED);
        source.lower();
        fabric.end_of_interrupt(0x41);
        source.raise();
        assert_eq!(recorder.take(), []);
        fabric.program(10, entry(0x41, 0) | LEVEL);
        assert_eq!(recorder.take(), [Call::Deliver(level(0x41, 0))]);
    }
}

#[test]
fn an_edge_pin_owns_no_route() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(4).unwrap().source("serial");
    for vector in 0x30..0x60 {
        fabric.program(4, entry(vector, 0));
        source.pulse();
        assert_eq!(recorder.take(), [Call::Deliver(edge(vector, 0))]);
    }
}

#[test]
fn a_pin_that_became_edge_gives_its_route_up_at_the_next_commit() {
    let (fabric, recorder) = fabric();
    let (a, b) = (fabric.line(10).unwrap().source("a"), fabric.line(11).unwrap().source("b"));
    fabric.program(10, entry(0x41, 0) | LEVEL);
    a.pulse();
    fabric.program(10, entry(0x41, 0));
    a.pulse();
    fabric.program(11, entry(0x42, 0) | LEVEL);
    b.pulse();
    assert_eq!(recorder.table(), [route(11, level(0x42, 0))]);
    // And as a level pin again it needs a new one.
    fabric.program(10, entry(0x41, 0) | LEVEL);
    recorder.take();
    a.raise();
    assert!(matches!(recorder.take()[..], [Call::Commit(_), Call::Deliver(_)]));
    assert_eq!(recorder.table().len(), 2);
}

#[test]
fn ending_an_interrupt_by_making_its_pin_edge_for_a_moment_commits_nothing() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    source.raise();
    recorder.take();
    fabric.program(10, entry(0x41, 0) | MASKED);
    fabric.program(10, entry(0x41, 0) | LEVEL);
    assert_eq!(recorder.take(), [Call::Deliver(level(0x41, 0))]);
}

#[test]
fn a_level_that_nobody_accepted_is_tried_again_at_a_write_a_rise_and_an_end_and_not_in_between() {
    let (fabric, recorder) = fabric();
    let (a, b) = (fabric.line(10).unwrap().source("a"), fabric.line(11).unwrap().source("b"));
    let tries = |expected: usize, why: &str| assert_eq!(recorder.take_vectors().len(), expected, "{why}");
    recorder.refuse(true);
    fabric.program(10, entry(0x41, 0) | LEVEL);
    fabric.program(11, entry(0x41, 0) | LEVEL);
    a.raise();
    tries(1, "the rise");
    a.raise();
    fabric.entry(10);
    tries(0, "nothing happened");
    fabric.write_register(0x10 + 20, 0x41 | LEVEL as u32);
    tries(1, "an RTE write");
    assert_eq!(fabric.entry(10) & REMOTE_IRR, 0, "remote IRR says that it was accepted");
    a.lower();
    a.raise();
    tries(1, "the next rise");
    recorder.refuse(false);
    fabric.write_register(0x10 + 20, 0x41 | LEVEL as u32);
    b.raise();
    tries(2, "both are in service now");
    recorder.refuse(true);
    fabric.end_of_interrupt(0x41);
    tries(2, "the end covers both");
    fabric.end_of_interrupt(0x41);
    tries(0, "an end that ends nothing is no reason");
    recorder.refuse(false);
    fabric.write_register(0x10 + 20, 0x41 | LEVEL as u32);
    fabric.write_register(0x10 + 22, 0x41 | LEVEL as u32);
    tries(2, "and it was never lost");
}

/// One entry, which the test makes present.
#[derive(Default)]
struct OneEntry(AtomicBool);

impl Remapper for &'static OneEntry {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        let present = self.0.load(Ordering::Relaxed);
        let translated = Untranslated.translate(message)?;
        let absent = Fault { reason: 0x22, cookie: Some(Cookie(7)), silent: false };
        if present { Ok(Translation { cookie: Some(Cookie(7)), ..translated }) } else { Err(Refusal::Blocked(absent)) }
    }
}

#[test]
fn a_level_that_was_blocked_is_delivered_when_an_invalidation_lets_it() {
    let entry_7: &OneEntry = Box::leak(Box::default());
    let recorder = Recorder::new();
    let builder = Fabric::builder(recorder.clone()).ioapic(Ioapic::default()).remapper(entry_7);
    let fabric = builder.build().unwrap();
    fabric.program(10, entry(0x41, 0) | LEVEL);
    let source = fabric.line(10).unwrap().source("disk");
    source.raise();
    assert_eq!((recorder.take_vectors(), fabric.stats().blocked), (vec![], 1));
    fabric.invalidate(&Entries::All);
    assert_eq!((recorder.take_vectors(), fabric.stats().blocked), (vec![], 1), "a fault is a message that was sent");
    entry_7.0.store(true, Ordering::Relaxed);
    fabric.invalidate(&Entries::Range(Cookie(7)..=Cookie(7)));
    assert_eq!(recorder.take_vectors(), [0x41]);
    fabric.invalidate(&Entries::All);
    assert_eq!(recorder.take_vectors(), [0; 0], "in service");
}

#[test]
fn restoring_vectors_leaves_nothing_of_what_they_were() {
    let (fabric, recorder) = fabric();
    let vectors = fabric.msi_vectors(RequesterId::default(), 2);
    let fresh = vectors.save();
    for index in 0..2 {
        vectors.program(index, 0xfee0_0000, 0x41).unwrap();
    }
    vectors.set_masking(0..2, Masking::Masked).unwrap();
    vectors[0].signal();
    vectors.restore(&fresh).unwrap();
    vectors[1].signal();
    assert_eq!((vectors.save(), recorder.take_vectors()), (fresh, vec![]));
}

/// What a device signalled is in the snapshot or in a local APIC, whether or not the dispatcher has had its turn.
#[test]
fn saving_delivers_what_an_eventfd_still_holds() {
    let (fabric, recorder) = fabric();
    let vectors = fabric.msi_vectors(RequesterId::default(), 1);
    vectors.program(0, 0xfee0_0000, 0x41).unwrap();
    for round in 0..200 {
        vectors[0].eventfd().unwrap().write(1).unwrap();
        assert!(!vectors.save()[0].pending);
        assert_eq!(recorder.take_vectors(), [0x41], "round {round}");
    }
}

#[test]
fn a_level_whose_route_could_not_be_committed_is_kept_and_counted() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    recorder.fail_commits(true);
    source.raise();
    // The dispatcher may have tried again by now.
    assert!(recorder.take().is_empty() && fabric.stats().host_errors > 0);
    recorder.fail_commits(false);
    fabric.program(10, entry(0x41, 0) | LEVEL);
    assert_eq!(recorder.take_vectors(), [0x41]);
}

#[test]
fn the_eoi_register_redelivers_like_the_broadcast() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    source.raise();
    recorder.take();
    assert!(fabric.mmio_write(IOAPIC_ADDRESS + 0x40, &0x41u32.to_le_bytes()));
    assert_eq!(recorder.take_vectors(), [0x41]);
}

#[test]
fn a_broadcast_reaches_every_ioapic_and_the_eoi_register_only_its_own() {
    let recorder = Recorder::new();
    let builder = Fabric::builder(recorder.clone()).ioapic(Ioapic::default());
    let fabric = builder.ioapic(Ioapic::new(8).unwrap().with_id(1)).build().unwrap();
    let (a, b) = (fabric.line(10).unwrap().source("a"), fabric.line(24).unwrap().source("b"));
    fabric.program(10, entry(0x41, 0) | LEVEL);
    for (index, value) in [(0x11u32, 0u32), (0x10, 0x41 | LEVEL as u32)] {
        fabric.mmio_write(IOAPIC_ADDRESS + 0x1000, &index.to_le_bytes());
        fabric.mmio_write(IOAPIC_ADDRESS + 0x1010, &value.to_le_bytes());
    }
    a.raise();
    b.raise();
    assert_eq!(recorder.table().iter().map(|route| route.gsi).collect::<Vec<_>>(), [10, 24]);
    recorder.take();
    fabric.mmio_write(IOAPIC_ADDRESS + 0x1040, &0x41u32.to_le_bytes());
    assert_eq!(recorder.take_vectors().len(), 1);
    fabric.end_of_interrupt(0x41);
    assert_eq!(recorder.take_vectors().len(), 2);
}

#[test]
fn a_line_shared_by_two_devices_stays_up_until_both_are_served() {
    let (fabric, recorder) = fabric();
    let line = fabric.line(10).unwrap();
    let (a, b) = (line.source("a"), line.source("b"));
    fabric.program(10, entry(0x41, 0) | LEVEL);
    a.raise();
    b.raise();
    a.lower();
    recorder.take();
    fabric.end_of_interrupt(0x41);
    assert_eq!(recorder.take_vectors(), [0x41], "b still waits");
    b.lower();
    fabric.end_of_interrupt(0x41);
    assert_eq!(recorder.take_vectors(), [0; 0]);
}

#[test]
fn dropping_a_source_lowers_what_it_raised() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    source.raise();
    drop(source);
    recorder.take();
    fabric.end_of_interrupt(0x41);
    assert_eq!(recorder.take_vectors(), [0; 0]);
}

#[test]
fn nobody_waits_for_a_commit_that_does_not_concern_it() {
    let (fabric, recorder) = fabric();
    let (disk, serial) = (fabric.line(10).unwrap().source("disk"), fabric.line(4).unwrap().source("serial"));
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    vectors.program(0, 0xfee0_1000, 0x51).unwrap();
    fabric.program(10, entry(0x41, 0) | LEVEL);
    fabric.program(4, entry(0x31, 0));
    recorder.hold_commits(true);
    thread::scope(|scope| {
        scope.spawn(|| disk.raise());
        recorder.wait_held(1);
        // The same chip's registers and other pins, another line, a vector: none of them blocks.
        serial.pulse();
        fabric.program(5, entry(0x32, 0));
        assert_eq!(fabric.entry(5), entry(0x32, 0));
        vectors[0].signal();
        assert_eq!(recorder.take_vectors(), [0x31, 0x51]);
        recorder.hold_commits(false);
    });
    assert_eq!(recorder.take_vectors(), [0x41]);
}

#[test]
fn a_pin_that_is_rewritten_while_its_route_is_committed_is_delivered_by_the_new_entry_only() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    recorder.hold_commits(true);
    thread::scope(|scope| {
        scope.spawn(|| source.raise());
        recorder.wait_held(1);
        let guest = scope.spawn(|| fabric.write_register(0x10 + 20, 0x42 | LEVEL as u32));
        // The guest's write stands before the first commit may finish.
        while fabric.ioapics().next().unwrap().2.pins[10].entry as u8 != 0x42 {
            thread::yield_now();
        }
        recorder.hold_commits(false);
        guest.join().unwrap();
    });
    assert_eq!(recorder.take_vectors(), [0x42]);
    assert_eq!(recorder.table(), [route(10, level(0x42, 0))]);
}

#[test]
fn a_line_that_fell_or_a_pin_that_was_masked_during_the_commit_is_not_delivered() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    recorder.hold_commits(true);
    thread::scope(|scope| {
        scope.spawn(|| source.raise());
        recorder.wait_held(1);
        fabric.program(10, entry(0x41, 0) | LEVEL | MASKED);
        recorder.hold_commits(false);
    });
    assert_eq!(recorder.take_vectors(), [0; 0]);
    fabric.program(10, entry(0x41, 0) | LEVEL);
    assert_eq!(recorder.take(), [Call::Deliver(level(0x41, 0))], "its route was parked by then");
}

#[test]
fn a_write_that_finds_its_route_being_committed_leaves_the_delivery_to_the_one_who_commits() {
    let (fabric, recorder) = fabric();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    recorder.hold_commits(true);
    thread::scope(|scope| {
        scope.spawn(|| source.raise());
        recorder.wait_held(1);
        // Returns at once: it would block here if it committed too.
        fabric.program(10, entry(0x41, 0) | LEVEL);
        recorder.hold_commits(false);
    });
    assert!(matches!(recorder.take()[..], [Call::Commit(_), Call::Deliver(_)]));
}

#[test]
fn restoring_a_machine_parks_what_is_in_service_by_one_commit_and_makes_no_edge() {
    let (fabric, recorder) = fabric();
    let sources: Vec<_> = (8..12).map(|gsi| fabric.line(gsi).unwrap().source("disk")).collect();
    for (pin, source) in (8..12).zip(&sources) {
        fabric.program(pin, entry(0x40 + pin, 0) | LEVEL);
        source.raise();
    }
    let saved = fabric.ioapics().next().unwrap().2;
    let other = Recorder::new();
    let restored = Fabric::builder(other.clone()).ioapic(Ioapic::restore(&saved).unwrap()).build().unwrap();
    let restored_source = restored.line(8).unwrap().source("disk");
    restored_source.restore(Level::High);
    assert_eq!(other.take(), [Call::Commit(recorder.table())]);
    restored.end_of_interrupt(0x48);
    assert_eq!(other.take(), [Call::Deliver(level(0x48, 0))]);
}

#[test]
fn a_vector_delivers_its_newest_message() {
    let (fabric, recorder) = fabric();
    let vectors = fabric.msi_vectors(RequesterId(8), 2);
    vectors[0].signal();
    assert_eq!(recorder.take(), [], "it was never programmed");
    vectors.program(0, 0xfee0_1000, 0x51).unwrap();
    vectors[0].signal();
    vectors.program(0, 0xfee0_2000, 0x52).unwrap();
    vectors[0].signal();
    assert_eq!(recorder.take(), [Call::Deliver(edge(0x51, 1)), Call::Deliver(edge(0x52, 2))]);
    assert_eq!((vectors[0].stats().signalled, vectors[0].stats().delivered), (3, 2));
    let error = vectors.program(2, 0, 0).unwrap_err();
    assert_eq!(error.to_string(), "vector 2 of 2: the last is 1");
}

/// A backend whose kernel finds an event in whatever it attaches: it injects that, and leaves the count, as Linux does. Nor does
/// it read what is left when it detaches, as Linux 6.18 does.
struct Injects(Arc<Recorder>);

impl Hypervisor for Injects {
    fn start(&self, pins: u32) -> Result<Capacity, HvError> {
        self.0.start(pins)
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        self.0.deliver(interrupt)
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        self.0.commit(routes)
    }

    fn attach(&self, _: u32, eventfd: &EventFd) -> Result<(), HvError> {
        eventfd.write(1).map_err(|source| HvError::Call { call: "write", source })
    }
}

#[test]
fn what_the_kernel_injected_as_it_attached_an_eventfd_is_no_event_once_it_is_detached() {
    let recorder = Recorder::with_irqfds();
    let builder = Fabric::builder(Injects(recorder.clone())).promotion(Promotion::Prefill);
    let fabric = builder.ioapic(Ioapic::default()).build().unwrap();
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    vectors[0].eventfd().unwrap();
    vectors.program(0, 0xfee0_0000, 0x41).unwrap();
    for _ in 0..2 {
        assert!(vectors[0].is_hot());
        vectors.set_masking([0], Masking::Masked).unwrap();
        assert!(!vectors.pending(0), "a ghost");
        vectors.set_masking([0], Masking::Unmasked).unwrap();
    }
    assert_eq!(recorder.take_vectors(), [0; 0]);
}

#[test]
fn an_msix_table_drives_its_vectors() {
    let (fabric, recorder) = fabric();
    let mut msix = Msix::new(3, 0).unwrap();
    let vectors = fabric.msi_vectors(RequesterId(8), 3);
    let apply = |msix: &Msix, changed: Changed| {
        vectors.configure(changed.map(|index| (index.into(), msix.vector(index)))).unwrap();
    };
    vectors.configure((0..3).map(|index| (index, msix.vector(index as u16)))).unwrap();
    vectors[1].signal();
    assert_eq!((recorder.take(), fabric.stats().dropped), (vec![], 1), "the function is off");

    // The guest programs vector 1, switches the function on, and leaves the vector masked.
    for (offset, value) in [(0x10, 0xfee0_1000u32), (0x14, 0), (0x18, 0x51)] {
        let changed = msix.write_table(offset, &value.to_le_bytes());
        apply(&msix, changed);
    }
    let changed = msix.write(2, &0x8000u16.to_le_bytes());
    apply(&msix, changed);
    vectors[1].signal();
    assert_eq!((recorder.take(), vectors.pending(1)), (vec![], true));
    let mut bits = [0; 8];
    msix.read_pba(0, &mut bits, |index| vectors.pending(index.into()));
    assert_eq!(bits[0], 0b010);

    // Unmasking delivers what waited.
    let changed = msix.write_table(0x1c, &[0; 4]);
    apply(&msix, changed);
    assert_eq!((recorder.take(), vectors.pending(1)), (vec![Call::Deliver(edge(0x51, 1))], false));
    // The function's mask masks all, and its end unmasks.
    let changed = msix.write(2, &0xc000u16.to_le_bytes());
    apply(&msix, changed);
    vectors[1].signal();
    assert_eq!(recorder.take(), []);
    let changed = msix.write(2, &0x8000u16.to_le_bytes());
    apply(&msix, changed);
    assert_eq!(recorder.take(), [Call::Deliver(edge(0x51, 1))]);
    // A vector that was never programmed writes nothing.
    let changed = msix.write_table(0x2c, &[0; 4]);
    apply(&msix, changed);
    vectors[2].signal();
    assert_eq!(recorder.take(), []);
}

#[test]
fn destinations_above_255_are_read_where_the_guest_was_told_of_them() {
    let recorder = Recorder::new();
    let builder = Fabric::builder(recorder.clone()).ioapic(Ioapic::default());
    let fabric = builder.remapper(ExtDest).build().unwrap();
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    let source = fabric.line(4).unwrap().source("serial");
    for destination in (0..0x8000).step_by(17).chain([255, 256, 32_767]) {
        let wide = Interrupt { destination, vector: 0x31, ..Interrupt::default() };
        let message = wide.message(DestinationFormat::Fifteen, RequesterId(8)).unwrap();
        vectors.program(0, message.address, message.data).unwrap();
        vectors[0].signal();
        fabric.program(4, u64::from(destination & 0xff) << 56 | u64::from(destination >> 8) << 49 | 0x31);
        source.pulse();
        assert_eq!(recorder.take(), [Call::Deliver(wide), Call::Deliver(wide)]);
    }
}

#[cfg(feature = "vm-memory")]
#[test]
fn a_message_outside_the_window_is_a_memory_write() {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let recorder = Recorder::new();
    let fabric = Fabric::builder(recorder.clone()).memory(memory.clone()).build().unwrap();
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    for (address, data) in [(0x800, 0x1234_5678), (0xffd, 1), (0x1_fee0_0000, 2)] {
        vectors.program(0, address, data).unwrap();
        vectors[0].signal();
    }
    assert_eq!(memory.read_obj::<u32>(GuestAddress(0x800)).unwrap(), 0x1234_5678);
    let stats = fabric.stats();
    assert_eq!((stats.memory_writes, stats.dropped, recorder.take()), (1, 2, vec![]));
}

#[test]
fn a_gsi_out_of_range_is_an_error_that_names_the_range() {
    let (fabric, _) = fabric();
    let error = fabric.line(24).unwrap_err();
    assert_eq!(error, GsiError::OutOfRange { gsi: 24, last: 23 });
    assert_eq!(error.to_string(), "GSI 24 is not one of the machine's: it has lines for GSIs 0 to 23");
    let bare = Fabric::builder(Recorder::new()).build().unwrap();
    assert_eq!(bare.line(0).unwrap_err(), GsiError::NoPins { gsi: 0 });
}

#[test]
fn two_ioapics_at_one_address_are_refused() {
    let builder = Fabric::builder(Recorder::new()).ioapic(Ioapic::default());
    let error = builder.ioapic_at(IOAPIC_ADDRESS + 0x80, Ioapic::default()).build().unwrap_err();
    assert!(matches!(error, BuildError::Overlap(IOAPIC_ADDRESS, _)), "{error}");
}

#[test]
fn addresses_that_are_not_ours_are_left_alone() {
    let (fabric, _) = fabric();
    let mut data = [0xaa; 4];
    for address in [0, IOAPIC_ADDRESS - 1, IOAPIC_ADDRESS + 0x100, u64::MAX] {
        assert!(!fabric.mmio_read(address, &mut data) && !fabric.mmio_write(address, &data));
    }
    assert_eq!(data, [0xaa; 4]);
}

#[test]
fn the_report_counts_by_line_and_source() {
    let (fabric, _recorder) = fabric();
    let line = fabric.line(10).unwrap();
    let (a, _b) = (line.source("a"), line.source("b"));
    fabric.program(10, entry(0x41, 0) | LEVEL);
    for _ in 0..3 {
        a.raise();
        a.lower();
        fabric.end_of_interrupt(0x41);
    }
    let stats = fabric.stats();
    assert_eq!((stats.commits, stats.entry_writes, stats.lines.len(), stats.lines[0].gsi), (1, 2, 1, 10));
    assert_eq!(stats.lines[0].sources.iter().map(|source| source.raised).collect::<Vec<_>>(), [3, 0]);
    assert_eq!((stats.lines[0].pin.delivered, stats.lines[0].pin.ended), (3, 3));
}
