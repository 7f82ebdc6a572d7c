//! Lines into a hypervisor's own chips, against a backend that keeps what it was given: who raises, who is told, what is left.

use irqfabric::fabric::{Fabric, LineEventfdsError};
use irqfabric::hv::{Capacity, HvError, Hypervisor, Route};
use irqfabric::line::{Level, Pin};
use irqfabric::msg::{Acceptance, Interrupt};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// A hypervisor with one pin.
#[derive(Default)]
struct OwnChips {
    level: Arc<Driven>,
    pairs: Mutex<Vec<Pair>>,
    refuses: Mutex<bool>,
}

#[derive(Default)]
struct Driven(Mutex<Level>);

struct Pair {
    trigger: EventFd,
    resample: EventFd,
}

impl Pin for Driven {
    fn set(&self, level: Level) {
        *self.0.lock().unwrap() = level;
    }
}

impl Hypervisor for OwnChips {
    fn start(&self, _: u32) -> Result<Capacity, HvError> {
        Ok(Capacity::default())
    }

    fn pins(&self) -> Vec<Arc<dyn Pin>> {
        vec![self.level.clone()]
    }

    fn deliver(&self, _: &Interrupt) -> Result<Acceptance, HvError> {
        Ok(Acceptance::Accepted)
    }

    fn commit(&self, _: &[Route]) -> Result<(), HvError> {
        Ok(())
    }

    fn attach_line(&self, gsi: u32, trigger: &EventFd, resample: &EventFd) -> Result<(), HvError> {
        assert_eq!(gsi, 0);
        if *self.refuses.lock().unwrap() {
            return Err(HvError::Call { call: "KVM_IRQFD (resample)", source: ErrorKind::OutOfMemory.into() });
        }
        let pair = Pair { trigger: trigger.try_clone().unwrap(), resample: resample.try_clone().unwrap() };
        self.pairs.lock().unwrap().push(pair);
        Ok(())
    }

    /// What was attached by this eventfd: a write to it shows which.
    fn detach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        assert_eq!(gsi, 0);
        eventfd.write(1).unwrap();
        self.pairs.lock().unwrap().retain(|pair| pair.trigger.read().is_err());
        Ok(())
    }
}

impl OwnChips {
    fn attached(&self) -> usize {
        self.pairs.lock().unwrap().len()
    }

    /// How many pairs hold the pin. Asking takes what their triggers hold.
    fn triggered(&self) -> usize {
        self.pairs.lock().unwrap().iter().filter(|pair| pair.trigger.read().is_ok()).count()
    }

    /// The guest ends an interrupt.
    fn end(&self) {
        self.pairs.lock().unwrap().iter().for_each(|pair| pair.resample.write(1).unwrap());
    }
}

fn machine() -> (Fabric, Arc<OwnChips>) {
    let chips = Arc::<OwnChips>::default();
    (Fabric::builder(chips.clone()).build().unwrap(), chips)
}

fn eventually(what: &str, so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn a_pair_is_bound_as_it_is_and_taken_back_when_it_is_dropped() {
    let (fabric, chips) = machine();
    let pairs = [(); 2].map(|()| fabric.line_eventfds(0, "vfio").unwrap());
    pairs[0].trigger().write(1).unwrap();
    assert_eq!((chips.attached(), chips.triggered()), (2, 1));
    chips.end();
    assert!(pairs.iter().all(|pair| pair.resample().read().is_ok()));
    drop(pairs);
    assert_eq!((chips.attached(), fabric.stats().wakeups), (0, 0), "and nothing of ours was on the way");
}

#[test]
fn sources_of_this_process_share_one_pair_and_are_told_by_it() {
    let (fabric, chips) = machine();
    let line = fabric.line(0).unwrap();
    let told = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let source = |told: &Arc<AtomicUsize>| {
        let told = told.clone();
        let acknowledged = move || {
            told.fetch_add(1, SeqCst);
        };
        line.resampling_source("device", acknowledged).unwrap()
    };
    let sources = told.each_ref().map(source);
    let plain = line.source("plain");
    assert_eq!(chips.attached(), 1);
    for rounds in 1..=100 {
        sources[0].raise();
        plain.raise();
        assert_eq!((chips.triggered(), *chips.level.0.lock().unwrap()), (1, Level::High));
        chips.end();
        eventually("it is told", || told[0].load(SeqCst) == rounds);
        assert_eq!((sources[0].level(), line.level()), (Level::Low, Level::High), "the plain one still waits");
        plain.lower();
        assert_eq!((chips.triggered(), *chips.level.0.lock().unwrap()), (0, Level::Low));
    }
    assert_eq!(told[1].load(SeqCst), 0, "it was never raised");
}

#[test]
fn what_the_hypervisor_does_not_take_is_an_error_and_leaves_nothing() {
    let (fabric, chips) = machine();
    let line = fabric.line(0).unwrap();
    *chips.refuses.lock().unwrap() = true;
    let error = line.resampling_source("device", || ()).unwrap_err();
    assert!(error.to_string().starts_with("KVM_IRQFD (resample)"), "{error}");
    assert!(matches!(fabric.line_eventfds(0, "vfio"), Err(LineEventfdsError::Hypervisor(_))));
    assert_eq!((line.stats(), chips.attached()), (vec![], 0));
    // Another time it may.
    *chips.refuses.lock().unwrap() = false;
    let source = line.resampling_source("device", || ()).unwrap();
    source.raise();
    assert_eq!((chips.attached(), chips.triggered()), (1, 1));
}

#[test]
fn the_shared_pair_goes_with_the_fabric() {
    let (fabric, chips) = machine();
    let source = fabric.line(0).unwrap().resampling_source("device", || ()).unwrap();
    drop(fabric);
    assert_eq!(chips.attached(), 1, "a source keeps its line");
    drop(source);
    assert_eq!(chips.attached(), 0);
}
