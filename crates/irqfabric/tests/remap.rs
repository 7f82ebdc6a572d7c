//! What a fabric asks of a remapper, and when: faults at delivery, translations in advance, events, invalidations.

mod common;

use common::{Guest, LEVEL, MASKED, Recorder, entry};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{Fabric, FabricBuilder, Promotion};
use irqfabric::msg::{Interrupt, Masking, Message, RequesterId, Trigger};
use irqfabric::remap::{Cookie, Entries, Event, Fault, Refusal, Remapper, Target, Translation, Untranslated, XenPirq};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// The vector that the table's own fault event asks for.
const FAULT_EVENT: u8 = 0xfe;

/// A remapping table whose index is the low byte of the data. It keeps the faults that it was told to record, and sends an
/// event for each.
#[derive(Default)]
struct Table {
    entries: Mutex<BTreeMap<u8, Target>>,
    faults: Mutex<Vec<(Message, Fault)>>,
    asked: Mutex<u64>,
    raised: Mutex<Vec<u32>>,
}

impl Table {
    fn set(&self, index: u8, vector: u8) {
        let interrupt = Interrupt { vector, ..Interrupt::default() };
        self.entries.lock().unwrap().insert(index, Target::Interrupt(interrupt));
    }

    fn clear(&self, index: u8) {
        self.entries.lock().unwrap().remove(&index);
    }

    /// The indexes and reasons recorded since the last time.
    fn take_faults(&self) -> Vec<(u32, u8)> {
        let faults = std::mem::take(&mut *self.faults.lock().unwrap());
        faults.into_iter().map(|(message, fault)| (message.data & 0xff, fault.reason)).collect()
    }
}

impl Remapper for Table {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        *self.asked.lock().unwrap() += 1;
        let cookie = Some(Cookie(message.data & 0xff));
        let absent = Refusal::Blocked(Fault { reason: 0x22, cookie, silent: false });
        let target = *self.entries.lock().unwrap().get(&(message.data as u8)).ok_or(absent)?;
        Ok(Translation { target, cookie })
    }

    fn record(&self, message: &Message, fault: Fault, send: &dyn Fn(&Interrupt)) {
        self.faults.lock().unwrap().push((*message, fault));
        send(&Interrupt { vector: FAULT_EVENT, ..Interrupt::default() });
    }

    fn raise(&self, Event(number): Event) {
        self.raised.lock().unwrap().push(number);
    }
}

fn machine(parts: impl FnOnce(FabricBuilder) -> FabricBuilder) -> (Fabric, Arc<Recorder>, Arc<Table>) {
    let (recorder, table) = (Recorder::new(), Arc::new(Table::default()));
    let builder = Fabric::builder(recorder.clone()).ioapic(Ioapic::default()).remapper(table.clone());
    (parts(builder).build().unwrap(), recorder, table)
}

fn range(indexes: std::ops::RangeInclusive<u32>) -> Entries {
    Entries::Range(Cookie(*indexes.start())..=Cookie(*indexes.end()))
}

#[test]
fn a_blocked_vector_records_one_fault_each_time_it_fires_and_none_before() {
    for promotion in [Promotion::default(), Promotion::Prefill] {
        let (fabric, recorder, table) = machine(|builder| builder.promotion(promotion));
        let vectors = fabric.msi_vectors(RequesterId(8), 1);
        vectors[0].eventfd().unwrap();
        vectors.program(0, 0xfee0_0000, 7).unwrap();
        vectors.set_masking([0], Masking::Masked).unwrap();
        vectors.set_masking([0], Masking::Unmasked).unwrap();
        fabric.invalidate(&Entries::All);
        assert_eq!((table.take_faults(), fabric.stats().blocked), (vec![], 0), "nothing was sent");
        for fired in 1..=3 {
            vectors[0].signal();
            assert_eq!((table.take_faults(), fabric.stats().blocked), (vec![(7, 0x22)], fired));
        }
        vectors[0].eventfd().unwrap().write(1).unwrap();
        vectors.save();
        assert_eq!(table.take_faults(), [(7, 0x22)], "an event of the eventfd, whoever read it");
        assert_eq!(recorder.take_vectors(), [FAULT_EVENT; 4], "their events are not remapped");
    }
}

#[test]
fn a_blocked_vector_that_is_masked_records_its_fault_when_it_is_unmasked() {
    let (fabric, _, table) = machine(|builder| builder);
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    vectors.program(0, 0xfee0_0000, 7).unwrap();
    vectors.set_masking([0], Masking::Masked).unwrap();
    (0..3).for_each(|_| vectors[0].signal());
    assert_eq!(table.take_faults(), []);
    vectors.set_masking([0], Masking::Unmasked).unwrap();
    assert_eq!(table.take_faults(), [(7, 0x22)], "pending is one message");
    vectors.set_masking([0], Masking::Disabled).unwrap();
    vectors[0].signal();
    assert_eq!(table.take_faults(), [], "a function that is off sends nothing");
}

#[test]
fn an_entry_made_present_without_an_invalidation_works_at_the_next_interrupt() {
    let (fabric, recorder, table) = machine(|builder| builder);
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    let source = fabric.line(4).unwrap().source("serial");
    vectors.program(0, 0xfee0_0000, 7).unwrap();
    fabric.program(4, entry(8, 0));
    vectors[0].signal();
    source.pulse();
    assert_eq!(table.take_faults(), [(7, 0x22), (8, 0x22)]);
    table.set(7, 0x41);
    table.set(8, 0x42);
    recorder.take();
    vectors[0].signal();
    source.pulse();
    assert_eq!((recorder.take_vectors(), table.take_faults()), (vec![0x41, 0x42], vec![]));
}

#[test]
fn a_blocked_level_pin_records_one_fault_for_each_try_and_is_tried_for_a_reason_only() {
    let (fabric, recorder, table) = machine(|builder| builder);
    let source = fabric.line(10).unwrap().source("disk");
    let tries = |expected: usize, why: &str| assert_eq!(table.take_faults(), vec![(7, 0x22); expected], "{why}");
    fabric.program(10, entry(7, 0) | LEVEL | MASKED);
    source.raise();
    tries(0, "it is masked");
    fabric.write_register(0x10 + 20, 7 | LEVEL as u32);
    tries(1, "it was unmasked");
    source.raise();
    fabric.entry(10);
    fabric.end_of_interrupt(7);
    fabric.line(11).unwrap().source("another").pulse();
    tries(0, "nothing happened to it");
    fabric.invalidate(&Entries::All);
    fabric.invalidate(&range(7..=7));
    tries(0, "its entry is as absent as before");
    source.lower();
    source.raise();
    tries(1, "its line rose");
    table.set(7, 0x41);
    recorder.take();
    fabric.invalidate(&range(8..=20));
    assert_eq!(recorder.take(), [], "that was not its entry");
    fabric.invalidate(&range(0..=7));
    assert_eq!((recorder.take_vectors(), table.take_faults()), (vec![0x41], vec![]));
}

#[test]
fn a_blocked_edge_is_spent() {
    let (fabric, recorder, table) = machine(|builder| builder);
    let source = fabric.line(4).unwrap().source("serial");
    fabric.program(4, entry(7, 0));
    source.pulse();
    assert_eq!(table.take_faults(), [(7, 0x22)]);
    table.set(7, 0x41);
    recorder.take();
    fabric.invalidate(&Entries::All);
    fabric.program(4, entry(7, 0));
    assert_eq!((recorder.take(), table.take_faults()), (vec![], vec![]));
}

#[test]
fn a_range_invalidation_asks_for_its_own_vectors_only_and_those_when_they_fire() {
    let (fabric, recorder, table) = machine(|builder| builder);
    let vectors = fabric.msi_vectors(RequesterId(8), 100);
    for index in 0..100 {
        table.set(index, 0x30 + index);
        vectors.program(index.into(), 0xfee0_0000, index.into()).unwrap();
        vectors[usize::from(index)].signal();
        table.set(index, 0x31 + index);
    }
    let asked = || std::mem::take(&mut *table.asked.lock().unwrap());
    asked();
    recorder.take();
    fabric.invalidate(&range(40..=49));
    assert_eq!(asked(), 0, "none of them has a route, which would have to be right at once");
    vectors.iter().for_each(|vector| vector.signal());
    let expected = (0..100).map(|index: u8| if (40..50).contains(&index) { 0x31 + index } else { 0x30 + index });
    assert_eq!((recorder.take_vectors(), asked()), (expected.collect(), 10));
}

#[test]
fn a_hot_vector_that_goes_through_all_entries_is_found_by_the_last_two_at_the_most() {
    let table = Arc::new(Table::default());
    let builder = Fabric::builder(Recorder::with_irqfds()).remapper(table.clone()).promotion(Promotion::Prefill);
    let fabric = builder.build().unwrap();
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    vectors[0].eventfd().unwrap();
    for index in 0..=255 {
        table.set(index, 0x40 + index % 2);
        vectors.program(0, 0xfee0_0000, index.into()).unwrap();
        assert!(vectors[0].is_hot());
    }
    let asked = || std::mem::take(&mut *table.asked.lock().unwrap());
    asked();
    fabric.invalidate(&range(0..=253));
    assert_eq!(asked(), 0, "by entries that it has left");
    fabric.invalidate(&range(254..=255));
    assert!((1..=2).contains(&asked()), "by the present one, and by the last");
    fabric.invalidate(&range(254..=255));
    assert_eq!(asked(), 1, "by the present one");
}

#[test]
fn a_vector_whose_entry_went_faults_when_it_fires() {
    let (fabric, recorder, table) = machine(|builder| builder);
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    table.set(7, 0x41);
    vectors.program(0, 0xfee0_0000, 7).unwrap();
    vectors[0].signal();
    table.clear(7);
    fabric.invalidate(&range(7..=7));
    assert_eq!((recorder.take_vectors(), table.take_faults()), (vec![0x41], vec![]));
    vectors[0].signal();
    assert_eq!((recorder.take_vectors(), table.take_faults()), (vec![FAULT_EVENT], vec![(7, 0x22)]));
}

#[test]
fn a_pin_that_asks_for_an_event_sends_nothing() {
    let (fabric, recorder, table) = machine(|builder| builder);
    table.entries.lock().unwrap().insert(7, Target::Event(Event(3)));
    fabric.program(4, entry(7, 0));
    fabric.line(4).unwrap().source("serial").pulse();
    assert_eq!((recorder.take(), fabric.stats().dropped, table.raised.lock().unwrap().len()), (vec![], 1, 0));
}

/// PIRQ 5, as Linux composes it.
const PIRQ_5: (u64, u32) = (0xfee0_5000, 0x4300);

#[test]
fn an_event_is_masked_and_pending_like_any_message() {
    let raised = Arc::new(Mutex::new(Vec::new()));
    let sink = raised.clone();
    let xen = XenPirq::new(Untranslated, move |pirq| sink.lock().unwrap().push(pirq));
    let recorder = Recorder::new();
    let fabric = Fabric::builder(recorder.clone()).remapper(xen).build().unwrap();
    let vectors = fabric.msi_vectors(RequesterId(8), 2);
    vectors.program(0, PIRQ_5.0, PIRQ_5.1).unwrap();
    vectors.program(1, 0xfee0_0000, 0x41).unwrap();
    (0..2).for_each(|index| vectors[index].signal());
    vectors.set_masking([0], Masking::Masked).unwrap();
    vectors[0].signal();
    assert_eq!((raised.lock().unwrap().clone(), vectors.pending(0)), (vec![5], true));
    vectors.set_masking([0], Masking::Unmasked).unwrap();
    assert_eq!((raised.lock().unwrap().clone(), recorder.take_vectors()), (vec![5, 5], vec![0x41]));
    assert_eq!(vectors[0].stats().delivered, 2);
}

/// Not fixed, so that there are locks to be held.
struct Invalidated;

impl Remapper for Invalidated {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        Untranslated.translate(message)
    }
}

#[test]
fn who_waits_for_an_event_may_call_back() {
    let machine = Arc::new(OnceLock::<(Fabric, irqfabric::fabric::MsiVectors)>::new());
    let calls = Arc::new(Mutex::new(Vec::new()));
    let (back, sink) = (machine.clone(), calls.clone());
    let xen = XenPirq::new(Invalidated, move |pirq| {
        sink.lock().unwrap().push(pirq);
        let (fabric, vectors) = back.get().unwrap();
        vectors.set_masking([0], Masking::Masked).unwrap();
        fabric.invalidate(&Entries::All);
        vectors.program(0, PIRQ_5.0, PIRQ_5.1).unwrap();
        vectors[1].signal();
    });
    let recorder = Recorder::new();
    let fabric = Fabric::builder(recorder.clone()).remapper(xen).build().unwrap();
    let vectors = fabric.msi_vectors(RequesterId(8), 2);
    vectors.program(0, PIRQ_5.0, PIRQ_5.1).unwrap();
    vectors.program(1, 0xfee0_0000, 0x41).unwrap();
    let signal = vectors[0].clone();
    assert!(machine.set((fabric, vectors)).is_ok());
    // By its eventfd as well: then it is the dispatcher that is called back from.
    signal.signal();
    assert_eq!((calls.lock().unwrap().clone(), recorder.take_vectors()), (vec![5], vec![0x41]));
}

/// A guest that rewrites a level pin's entry all the time: another destination at each look, until it rests.
#[derive(Default)]
struct Restless {
    rests: AtomicBool,
    destination: AtomicU32,
}

impl Remapper for Restless {
    fn translate(&self, _: &Message) -> Result<Translation, Refusal> {
        let destination = match self.rests.load(Relaxed) {
            true => self.destination.load(Relaxed),
            false => self.destination.fetch_add(1, Relaxed),
        };
        let interrupt = Interrupt { vector: 0x41, destination, trigger: Trigger::Level, ..Interrupt::default() };
        Ok(Translation { target: Target::Interrupt(interrupt), cookie: None })
    }
}

#[test]
fn who_raises_a_level_comes_back_though_its_entry_never_rests_and_it_is_delivered_when_it_does() {
    let (recorder, table) = (Recorder::new(), Arc::new(Restless::default()));
    let builder = Fabric::builder(recorder.clone()).ioapic(Ioapic::default()).remapper(table.clone());
    let fabric = builder.build().unwrap();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    let (raised, comes_back) = mpsc::channel();
    // Not joined if it does not come back: the test fails all the same.
    thread::spawn(move || {
        source.raise();
        raised.send(source).unwrap();
    });
    let source = comes_back.recv_timeout(Duration::from_secs(10)).expect("raise does not come back");
    assert!(recorder.take_vectors().is_empty());
    // The dispatcher does not stay with it either: the line is free.
    source.lower();
    source.raise();
    table.rests.store(true, Relaxed);
    let start = Instant::now();
    while recorder.take_vectors() != [0x41] {
        assert!(start.elapsed() < Duration::from_secs(10), "a level that stands was never delivered");
        thread::yield_now();
    }
    let destination = table.destination.load(Relaxed);
    let parked = Interrupt { vector: 0x41, destination, trigger: Trigger::Level, ..Interrupt::default() };
    assert_eq!(recorder.table()[0].target, parked.into());
}
