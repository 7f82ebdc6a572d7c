//! Level lines against a backend that remembers: resampling, what is put off, and backends without ends of interrupts.

mod common;

use common::{Call, Guest, LEVEL, MASKED, REMOTE_IRR, Recorder, entry};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS, LineEventfdsError};
use irqfabric::line::{Level, Line, LineSource};
use std::env;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

const GSI: u32 = 10;
const PIN: u8 = 10;
const VECTOR: u8 = 0x41;

/// A machine whose pin 10 is level-triggered.
fn machine() -> (Fabric, Arc<Recorder>, Line) {
    let recorder = Recorder::new();
    let fabric = Fabric::builder(recorder.clone()).ioapic(Ioapic::default()).build().unwrap();
    fabric.program(PIN, entry(VECTOR, 0) | LEVEL);
    let line = fabric.line(GSI).unwrap();
    (fabric, recorder, line)
}

/// A resampling source, and how often it was told.
fn told(line: &Line) -> (LineSource, Arc<AtomicUsize>) {
    let told = Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    let acknowledged = move || {
        count.fetch_add(1, SeqCst);
    };
    (line.resampling_source("device", acknowledged).unwrap(), told)
}

fn eventually(what: &str, so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        thread::sleep(Duration::from_micros(100));
    }
}

/// What an eventfd holds.
fn count(eventfd: &EventFd) -> u64 {
    eventfd.read().unwrap_or(0)
}

#[test]
fn the_end_of_an_interrupt_lowers_a_resampling_source_and_then_tells_it() {
    let (fabric, recorder, line) = machine();
    let level_when_told = Arc::new(Mutex::new(Vec::new()));
    let source = {
        let (line, seen) = (line.clone(), level_when_told.clone());
        fabric.line(GSI).unwrap().resampling_source("device", move || seen.lock().unwrap().push(line.level())).unwrap()
    };
    source.raise();
    assert_eq!(recorder.take_vectors(), [VECTOR]);
    assert_eq!(*level_when_told.lock().unwrap(), [], "not before the end");
    fabric.end_of_interrupt(VECTOR);
    assert_eq!((source.level(), &*level_when_told.lock().unwrap()), (Level::Low, &vec![Level::Low]));
    assert_eq!(recorder.take_vectors(), [0; 0], "nobody holds the line any more");
    fabric.end_of_interrupt(VECTOR);
    assert_eq!(level_when_told.lock().unwrap().len(), 1, "once");
}

#[test]
fn a_device_that_still_needs_service_raises_again_while_it_is_told() {
    let (fabric, recorder, line) = machine();
    let source: Arc<OnceLock<LineSource>> = Arc::default();
    let again = source.clone();
    // No lock is held: the device may do whatever a device does.
    let new = line.resampling_source("device", move || again.get().unwrap().raise()).unwrap();
    assert!(source.set(new).is_ok());
    source.get().unwrap().raise();
    for _ in 0..100 {
        assert_eq!(recorder.take_vectors(), [VECTOR]);
        fabric.end_of_interrupt(VECTOR);
    }
    assert_eq!(source.get().unwrap().level(), Level::High);
}

#[test]
fn every_resampling_source_that_is_raised_is_told_and_a_plain_one_keeps_the_line_up() {
    let (fabric, recorder, line) = machine();
    let ((a, a_told), (b, b_told), (_idle, idle_told)) = (told(&line), told(&line), told(&line));
    let plain = line.source("plain");
    a.raise();
    b.raise();
    plain.raise();
    assert_eq!(recorder.take_vectors(), [VECTOR]);
    fabric.end_of_interrupt(VECTOR);
    assert_eq!([&a_told, &b_told, &idle_told].map(|told| told.load(SeqCst)), [1, 1, 0]);
    assert_eq!((line.level(), recorder.take_vectors()), (Level::High, vec![VECTOR]), "the plain one still waits");
    plain.lower();
    fabric.end_of_interrupt(VECTOR);
    assert_eq!((recorder.take_vectors(), a_told.load(SeqCst)), (vec![], 1));
}

#[test]
fn the_eoi_register_acknowledges_like_the_broadcast() {
    let (fabric, _, line) = machine();
    let (source, told) = told(&line);
    source.raise();
    assert!(fabric.mmio_write(IOAPIC_ADDRESS + 0x40, &u32::from(VECTOR).to_le_bytes()));
    assert_eq!((source.level(), told.load(SeqCst)), (Level::Low, 1));
}

/// As Linux does where there is no EOI register.
#[test]
fn making_the_pin_edge_for_a_moment_acknowledges_too() {
    let (fabric, recorder, line) = machine();
    let ((source, told), plain) = (told(&line), line.source("plain"));
    source.raise();
    plain.raise();
    recorder.take();
    fabric.program(PIN, entry(VECTOR, 0) | MASKED);
    assert_eq!((source.level(), told.load(SeqCst)), (Level::Low, 1));
    fabric.program(PIN, entry(VECTOR, 0) | LEVEL);
    assert_eq!(recorder.take_vectors(), [VECTOR], "the plain one still waits");
    assert_eq!(fabric.stats().lines[0].pin.ended, 1);
}

#[test]
fn an_end_that_comes_while_the_pin_is_masked_acknowledges() {
    let (fabric, recorder, line) = machine();
    let (source, told) = told(&line);
    source.raise();
    fabric.program(PIN, entry(VECTOR, 0) | LEVEL | MASKED);
    fabric.end_of_interrupt(VECTOR);
    assert_eq!((source.level(), told.load(SeqCst)), (Level::Low, 1));
    // What comes now waits for the guest to unmask.
    source.raise();
    recorder.take();
    fabric.program(PIN, entry(VECTOR, 0) | LEVEL);
    assert_eq!(recorder.take_vectors(), [VECTOR]);
}

#[test]
fn a_device_that_lowers_its_own_source_is_not_told() {
    let (fabric, _, line) = machine();
    let (source, told) = told(&line);
    source.raise();
    source.lower();
    fabric.end_of_interrupt(VECTOR);
    assert_eq!(told.load(SeqCst), 0);
}

#[test]
fn a_resampling_source_is_restored_without_an_edge_and_told_by_the_next_end() {
    let (fabric, _, line) = machine();
    let (source, _) = told(&line);
    source.raise();
    let saved = fabric.ioapics().next().unwrap().2;
    let other = Recorder::new();
    let restored = Fabric::builder(other.clone()).ioapic(Ioapic::restore(&saved).unwrap()).build().unwrap();
    let (source, told) = told(&restored.line(GSI).unwrap());
    source.restore(Level::High);
    assert_eq!((other.take_vectors(), told.load(SeqCst)), (vec![], 0));
    restored.end_of_interrupt(VECTOR);
    assert_eq!((source.level(), told.load(SeqCst), other.take_vectors()), (Level::Low, 1, vec![]));
}

#[test]
fn dropping_a_source_in_its_own_callback_is_no_deadlock() {
    let (fabric, _, line) = machine();
    let source: Arc<Mutex<Option<LineSource>>> = Arc::default();
    let mine = source.clone();
    let new = line.resampling_source("device", move || drop(mine.lock().unwrap().take())).unwrap();
    new.raise();
    *source.lock().unwrap() = Some(new);
    fabric.end_of_interrupt(VECTOR);
    assert!(source.lock().unwrap().is_none() && line.stats().is_empty());
}

// Pairs of eventfds.

#[test]
fn a_trigger_raises_once_whatever_its_count_and_the_end_writes_resample_once() {
    let (fabric, recorder, line) = machine();
    let pair = fabric.line_eventfds(GSI, "vfio").unwrap();
    pair.trigger().write(1000).unwrap();
    eventually("the trigger raises the line", || line.level() == Level::High);
    pair.trigger().write(5).unwrap();
    eventually("the dispatcher reads what comes", || count(pair.trigger()) == 0);
    assert_eq!((recorder.take_vectors(), count(pair.resample())), (vec![VECTOR], 0));
    fabric.end_of_interrupt(VECTOR);
    assert_eq!((line.level(), count(pair.resample())), (Level::Low, 1));
    fabric.end_of_interrupt(VECTOR);
    assert_eq!(count(pair.resample()), 0, "resample without a trigger");
    assert_eq!(line.stats()[0].raised, 1);
}

#[test]
fn pairs_and_sources_share_a_line_and_none_is_lost() {
    let (fabric, recorder, line) = machine();
    let pairs = [(); 2].map(|()| fabric.line_eventfds(GSI, "vfio").unwrap());
    let (source, told) = told(&line);
    let mut expected = [0; 2];
    for round in 0..500 {
        let which = round % 2;
        pairs[which].trigger().write(1).unwrap();
        expected[which] += 1;
        if round % 3 == 0 {
            source.raise();
        }
        // A guest that serves whatever comes, until this device is told.
        let start = Instant::now();
        let mut seen = 0;
        while seen == 0 {
            if !recorder.take_vectors().is_empty() {
                fabric.end_of_interrupt(VECTOR);
            }
            seen = count(pairs[which].resample());
            assert!(start.elapsed() < Duration::from_secs(30), "round {round} was lost");
        }
        assert_eq!((seen, count(pairs[1 - which].resample())), (1, 0), "round {round}");
        assert_eq!(source.level(), Level::Low);
    }
    assert_eq!((told.load(SeqCst), expected), (167, [250, 250]));
}

#[test]
fn a_resample_eventfd_that_nobody_reads_never_blocks_and_keeps_its_count() {
    let (fabric, _, line) = machine();
    let pair = fabric.line_eventfds(GSI, "vfio").unwrap();
    // As full as it can be: a blocking write would wait for a reader.
    pair.resample().write(u64::MAX - 1).unwrap();
    pair.trigger().write(1).unwrap();
    eventually("the trigger raises the line", || line.level() == Level::High);
    fabric.end_of_interrupt(VECTOR);
    assert_eq!((line.level(), count(pair.resample())), (Level::Low, u64::MAX - 1));
}

#[test]
fn the_other_side_may_close_its_descriptors_at_any_time() {
    let (fabric, recorder, line) = machine();
    let pair = fabric.line_eventfds(GSI, "vfio").unwrap();
    let others = [pair.trigger().try_clone().unwrap(), pair.resample().try_clone().unwrap()];
    others[0].write(1).unwrap();
    drop(others);
    eventually("what it wrote before counts", || line.level() == Level::High);
    fabric.end_of_interrupt(VECTOR);
    assert_eq!((line.level(), recorder.take_vectors()), (Level::Low, vec![VECTOR]));
}

#[test]
fn a_dropped_pair_lowers_what_it_had_raised_and_its_trigger_does_nothing_any_more() {
    let (fabric, recorder, line) = machine();
    let other = line.source("other");
    for round in 0..200 {
        let pair = fabric.line_eventfds(GSI, "vfio").unwrap();
        let trigger = pair.trigger().try_clone().unwrap();
        // The dispatcher may be in the middle of it.
        trigger.write(1).unwrap();
        if round % 2 == 0 {
            eventually("the trigger raises the line", || line.level() == Level::High);
        }
        drop(pair);
        assert_eq!(line.level(), Level::Low, "round {round}");
        trigger.write(1).unwrap();
        fabric.end_of_interrupt(VECTOR);
        recorder.take();
    }
    other.raise();
    assert_eq!((line.level(), line.stats().len(), recorder.take_vectors()), (Level::High, 1, vec![VECTOR]));
}

#[test]
fn a_pair_is_saved_with_what_its_trigger_holds_and_restored_without_an_edge() {
    let (fabric, recorder, _) = machine();
    let pair = fabric.line_eventfds(GSI, "vfio").unwrap();
    for round in 0..200 {
        assert_eq!(pair.level(), Level::Low);
        pair.trigger().write(1).unwrap();
        assert_eq!((pair.level(), recorder.take_vectors()), (Level::High, vec![VECTOR]), "round {round}");
        fabric.end_of_interrupt(VECTOR);
    }
    pair.trigger().write(1).unwrap();
    let level = pair.level();
    let saved = fabric.ioapics().next().unwrap().2;
    let other = Recorder::new();
    let restored = Fabric::builder(other.clone()).ioapic(Ioapic::restore(&saved).unwrap()).build().unwrap();
    let pair = restored.line_eventfds(GSI, "vfio").unwrap();
    pair.restore(level);
    assert_eq!((pair.level(), other.take_vectors(), count(pair.resample())), (Level::High, vec![], 0));
    restored.end_of_interrupt(VECTOR);
    assert_eq!((pair.level(), other.take_vectors(), count(pair.resample())), (Level::Low, vec![], 1));
}

#[test]
fn a_gsi_that_is_not_there_has_no_pair() {
    let (fabric, ..) = machine();
    let error = fabric.line_eventfds(24, "vfio").unwrap_err();
    assert_eq!(error.to_string(), "GSI 24 is not one of the machine's: it has lines for GSIs 0 to 23");
}

// What is put off.

/// Ends the interrupt as often as a storm takes, with the line held high.
fn storm(fabric: &Fabric, recorder: &Recorder) {
    for _ in 0..10_000 {
        fabric.end_of_interrupt(VECTOR);
    }
    let delivered = recorder.take_vectors().len();
    assert_eq!((delivered, fabric.stats().brakes), (10_001, 0), "the first and 10,000 redeliveries");
}

#[test]
fn after_10_000_redeliveries_in_a_row_the_next_waits_10_ms() {
    let (fabric, recorder, line) = machine();
    let source = line.source("device");
    source.raise();
    storm(&fabric, &recorder);
    let start = Instant::now();
    fabric.end_of_interrupt(VECTOR);
    assert_eq!(fabric.stats().brakes, 1);
    eventually("it is delivered in the end", || recorder.take_vectors() == [VECTOR]);
    assert!(start.elapsed() >= Duration::from_millis(10), "{:?}", start.elapsed());
    // And again.
    for _ in 0..10_000 {
        fabric.end_of_interrupt(VECTOR);
    }
    assert_eq!((recorder.take_vectors().len(), fabric.stats().brakes), (10_000, 1));
    fabric.end_of_interrupt(VECTOR);
    assert_eq!(fabric.stats().brakes, 2);
    eventually("it is delivered in the end", || recorder.take_vectors() == [VECTOR]);
}

#[test]
fn a_write_to_the_entry_ends_the_delay_and_a_fall_of_the_line_the_interrupt() {
    let (fabric, recorder, line) = machine();
    let source = line.source("device");
    source.raise();
    storm(&fabric, &recorder);
    let brake = || {
        let before = fabric.stats().brakes;
        while fabric.stats().brakes == before {
            recorder.take();
            fabric.end_of_interrupt(VECTOR);
        }
    };
    brake();
    fabric.write_register(0x10 + 2 * PIN, u32::from(VECTOR) | LEVEL as u32);
    assert_eq!(recorder.take_vectors(), [VECTOR], "at once");
    brake();
    source.lower();
    // On a host that is busy enough the delay may be over by then.
    fabric.end_of_interrupt(VECTOR);
    recorder.take();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(recorder.take_vectors(), [0; 0], "there is nothing to deliver");
    source.raise();
    assert_eq!(recorder.take_vectors(), [VECTOR], "and a rise is no redelivery");
}

#[test]
fn a_line_that_falls_or_an_entry_that_is_accessed_in_between_is_no_storm() {
    let (fabric, _, line) = machine();
    let (plain, other) = (line.source("device"), line.source("other"));
    let calm: [&dyn Fn(); 3] = [
        &|| {
            plain.lower();
            plain.raise();
        },
        &|| assert_eq!(fabric.entry(PIN) as u8, VECTOR),
        &|| fabric.write_register(0x11 + 2 * PIN, 0),
    ];
    plain.raise();
    for calms in calm {
        for _ in 0..3 {
            (0..9_000).for_each(|_| fabric.end_of_interrupt(VECTOR));
            calms();
        }
        assert_eq!(fabric.stats().brakes, 0);
    }
    // A source that falls while another holds the line is no fall of the line.
    other.raise();
    for _ in 0..3 {
        (0..9_000).for_each(|_| fabric.end_of_interrupt(VECTOR));
        plain.lower();
        plain.raise();
    }
    assert!(fabric.stats().brakes > 0);
}

#[test]
fn a_resampling_device_that_triggers_at_every_end_is_no_storm() {
    let (fabric, _, line) = machine();
    let (source, told) = told(&line);
    for _ in 0..30_000 {
        source.raise();
        fabric.end_of_interrupt(VECTOR);
    }
    assert_eq!((told.load(SeqCst), fabric.stats().brakes), (30_000, 0));
}

#[test]
fn a_level_whose_route_could_not_be_committed_is_tried_again_every_10_ms_and_no_more_often() {
    let (fabric, recorder, line) = machine();
    let source = line.source("device");
    recorder.fail_commits(true);
    source.raise();
    let start = Instant::now();
    eventually("it is tried again", || fabric.stats().host_errors >= 5);
    let errors = fabric.stats().host_errors;
    let most = 1 + start.elapsed().as_millis() as u64 / 10;
    assert!(errors <= most, "{errors} tries, {most} at the most");
    recorder.fail_commits(false);
    eventually("it is delivered", || fabric.entry(PIN) & REMOTE_IRR != 0);
    assert!(matches!(recorder.take()[..], [Call::Commit(_), Call::Deliver(_)]));
    // Nothing is left to do.
    let wakeups = fabric.stats().wakeups;
    thread::sleep(Duration::from_millis(30));
    assert!(fabric.stats().wakeups <= wakeups + 1, "it was on its way to sleep");
}

#[test]
fn a_level_that_falls_is_not_tried_again() {
    let (fabric, recorder, line) = machine();
    let source = line.source("device");
    recorder.fail_commits(true);
    source.raise();
    source.lower();
    let errors = fabric.stats().host_errors;
    thread::sleep(Duration::from_millis(30));
    assert_eq!((fabric.stats().host_errors, recorder.take()), (errors, vec![]));
}

/// In a process of its own, in which no thread finds room for its stack.
#[test]
fn where_the_host_gives_no_thread_a_storm_goes_on_and_a_failed_commit_waits_for_the_next_reason() {
    if env::var_os("RUST_MIN_STACK").is_none() {
        let name = "where_the_host_gives_no_thread_a_storm_goes_on_and_a_failed_commit_waits_for_the_next_reason";
        let mut child = Command::new(env::current_exe().unwrap());
        let child = child.args([name, "--exact", "--test-threads=1"]).env("RUST_MIN_STACK", (1_u64 << 62).to_string());
        return assert!(child.status().unwrap().success());
    }
    assert!(thread::Builder::new().spawn(|| ()).is_err());
    let (fabric, recorder, line) = machine();
    let source = line.source("device");
    recorder.fail_commits(true);
    source.raise();
    assert_eq!((recorder.take_vectors(), fabric.stats().shortages), (vec![], 1));
    recorder.fail_commits(false);
    fabric.write_register(0x10 + 2 * PIN, u32::from(VECTOR) | LEVEL as u32);
    assert_eq!(recorder.take_vectors(), [VECTOR]);
    for _ in 0..10_001 {
        fabric.end_of_interrupt(VECTOR);
    }
    let stats = fabric.stats();
    assert_eq!((recorder.take_vectors().len(), stats.brakes, stats.shortages), (10_001, 0, 2));
    assert!(matches!(fabric.line_eventfds(GSI, "vfio"), Err(LineEventfdsError::Eventfd(_))));
    assert_eq!(line.stats().len(), 1, "nothing is left of it");
}
