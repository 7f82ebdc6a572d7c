//! A fabric with 4,000 vectors that nobody signals costs nothing: its thread is in epoll_wait, without a timeout, and does not
//! come out of it.

#[path = "common/mod.rs"]
mod common;

use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{Fabric, MsiVectors, Program};
use irqfabric::hv::{Capacity, HvError, Hypervisor, Route};
use irqfabric::msg::{Acceptance, Interrupt, RequesterId};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

const VECTORS: usize = 4000;
/// Of them fire twice, and no more.
const FIRE: usize = 300;
/// What does not come about within a minute never does.
const NEVER: Duration = Duration::from_secs(60);
/// Anything with a timer of ours would wake up in it: the longest is ten milliseconds.
const WINDOW: Duration = Duration::from_millis(500);

/// Threads are found by their name: one fabric at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Nowhere;

impl Hypervisor for Nowhere {
    fn start(&self, _: u32) -> Result<Capacity, HvError> {
        Ok(Capacity { gsis: 4096, ..Capacity::default() })
    }

    fn deliver(&self, _: &Interrupt) -> Result<Acceptance, HvError> {
        Ok(Acceptance::Accepted)
    }

    fn commit(&self, _: &[Route]) -> Result<(), HvError> {
        Ok(())
    }

    fn attach(&self, _: u32, _: &EventFd) -> Result<(), HvError> {
        Ok(())
    }
}

/// 4,000 programmed vectors, all with an eventfd, of which some have fired twice.
fn vectors(fabric: &Fabric) -> MsiVectors {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let vectors = fabric.msi_vectors(RequesterId::new(0, 3, 0), VECTORS);
    vectors.iter().for_each(|vector| assert!(vector.eventfd().is_ok()));
    let program = |index| Program { index, address: 0xfee0_0000, data: 0x30 + index as u32 % 192 };
    vectors.program_all(&(0..VECTORS).map(program).collect::<Vec<_>>()).unwrap();
    for round in 1..=2 {
        vectors[..FIRE].iter().for_each(|vector| vector.eventfd().unwrap().write(1).unwrap());
        // Each before its next event, or the two might be read as one.
        let taken = || vectors[..FIRE].iter().all(|vector| vector.stats().signalled == round);
        wait_until("every event is taken", taken);
    }
    wait_until("what fired twice is hot", || vectors[..FIRE].iter().all(|vector| vector.is_hot()));
    vectors
}

fn wait_until(what: &str, so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < NEVER, "{what}");
        sleep(Duration::from_millis(1));
    }
}

/// The dispatcher's thread, in /proc.
struct Dispatcher(PathBuf);

impl Dispatcher {
    fn find() -> Self {
        let named = |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "irqfabric\n");
        let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let mut found: Vec<_> = tasks.filter(named).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        Self(found.remove(0))
    }

    /// In epoll_wait, whose fourth argument is the timeout, for ever.
    fn sleeps_for_ever(&self) -> bool {
        const EPOLL_WAIT: &str = "232";
        let text = fs::read_to_string(self.0.join("syscall")).unwrap();
        let mut words = text.split_whitespace();
        let (call, timeout) = (words.next(), words.nth(3).and_then(|word| word.strip_prefix("0x")));
        let timeout = timeout.and_then(|hex| u64::from_str_radix(hex, 16).ok());
        call == Some(EPOLL_WAIT) && timeout.map(|timeout| timeout as i32) == Some(-1)
    }

    /// How often it left a CPU, and for how many nanoseconds it has had one.
    fn spent(&self) -> (u64, u64) {
        let status = fs::read_to_string(self.0.join("status")).unwrap();
        let switches =
            status.lines().filter_map(|line| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok());
        let schedstat = fs::read_to_string(self.0.join("schedstat")).unwrap();
        (switches.sum(), schedstat.split(' ').next().unwrap().parse().unwrap())
    }
}

fn costs_nothing(fabric: &Fabric, vectors: &MsiVectors) {
    let dispatcher = Dispatcher::find();
    wait_until("the dispatcher sleeps without a timeout", || dispatcher.sleeps_for_ever());
    let before = (fabric.stats(), dispatcher.spent());
    sleep(WINDOW);
    assert_eq!((fabric.stats(), dispatcher.spent()), before);
    assert!(dispatcher.sleeps_for_ever());
    assert_eq!(vectors.iter().filter(|vector| vector.is_hot()).count(), FIRE);
    // And it is not that nobody listens.
    vectors[VECTORS - 1].eventfd().unwrap().write(1).unwrap();
    wait_until("a cold vector is delivered", || vectors[VECTORS - 1].stats().delivered == 1);
    assert!(fabric.stats().wakeups > before.0.wakeups);
}

#[test]
fn four_thousand_idle_vectors_wake_nobody() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let fabric = Fabric::builder(Nowhere).ioapic(Ioapic::default()).build().unwrap();
    costs_nothing(&fabric, &vectors(&fabric));
}

#[cfg(feature = "kvm")]
mod on_kvm {
    use super::*;
    use crate::common::kvm::{vcpu, vm};
    use irqfabric::hv::Kvm;

    #[test]
    fn four_thousand_idle_vectors_wake_nobody_and_the_kernel_keeps_the_hot_ones() {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let vm = vm();
        let fabric = Fabric::builder(Kvm::split(vm.clone())).ioapic(Ioapic::default()).build().unwrap();
        let _vcpu = vcpu(&vm, 0);
        let vectors = vectors(&fabric);
        costs_nothing(&fabric, &vectors);
        // What is hot wakes nobody either.
        let before = fabric.stats().wakeups;
        vectors[..FIRE].iter().for_each(|vector| vector.eventfd().unwrap().write(1).unwrap());
        sleep(WINDOW);
        assert_eq!(fabric.stats().wakeups, before);
    }
}
