//! 4,000 vectors that nobody signals, for ten seconds: the dispatcher sleeps, without a timeout.

use super::super::error::Error;
use super::super::machine::{Machine, fire, program_all};
use super::super::measure::wait_until;
use super::Fact;
use irqfabric::fabric::Promotion;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const VECTORS: usize = 4000;
/// Of them; the kernel takes their events.
const HOT: usize = 512;
const WINDOW: Duration = Duration::from_secs(10);

pub fn idle() -> Result<Vec<Fact>, Error> {
    let machine = Machine::new(Promotion::default())?;
    let vectors = machine.vectors(VECTORS)?;
    program_all(&vectors)?;
    for round in 1..=2 {
        (0..HOT).try_for_each(|index| fire(&vectors, index))?;
        let expected = (round * HOT) as u64;
        wait_until("the delivery of every event", || machine.hypervisor.calls().deliveries >= expected)?;
    }
    wait_until("the promotion of those that fired", || machine.fabric.stats().promotions >= HOT as u64)?;
    let dispatcher = Thread::of_the_dispatcher()?;
    // Its turn ends behind the last promotion.
    std::thread::sleep(Duration::from_millis(100));
    let before = (machine.fabric.stats().wakeups, machine.system_calls(), dispatcher.spent()?);
    std::thread::sleep(WINDOW);
    let after = (machine.fabric.stats().wakeups, machine.system_calls(), dispatcher.spent()?);
    let zero = |what: &str, value: u64| Fact::new(what, value as f64).at_most(0.0);
    Ok(vec![
        Fact::new("hot vectors, of 4000", vectors.iter().filter(|vector| vector.is_hot()).count() as f64),
        zero("wake-ups in 10 s", after.0 - before.0),
        zero("system calls in 10 s", after.1 - before.1),
        zero("context switches of the dispatcher's thread", after.2.switches - before.2.switches),
        zero("nanoseconds on a CPU of the dispatcher's thread", after.2.nanoseconds - before.2.nanoseconds),
    ])
}

/// A thread of this process, in /proc.
struct Thread(PathBuf);

/// Its use of CPUs so far.
struct Spent {
    nanoseconds: u64,
    switches: u64,
}

impl Thread {
    fn of_the_dispatcher() -> Result<Self, Error> {
        let tasks = fs::read_dir("/proc/self/task").map_err(Error::call("readdir"))?;
        let named = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "irqfabric");
        let main = PathBuf::from(format!("/proc/self/task/{}", std::process::id()));
        // The main thread has the name of the program, which is the same.
        let mut found = tasks.filter_map(|task| Some(task.ok()?.path())).filter(|path| *path != main && named(path));
        found.next().map(Self).ok_or(Error::NoDispatcher)
    }

    fn spent(&self) -> Result<Spent, Error> {
        let read = |file| fs::read_to_string(self.0.join(file)).map_err(Error::call("read of /proc/self/task"));
        // Documentation/scheduler/sched-stats.rst: time on a CPU, time waited for one, times it ran.
        let schedstat = read("schedstat")?;
        let status = read("status")?;
        let switches =
            status.lines().filter_map(|line| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok());
        let nanoseconds = schedstat.split(' ').next().and_then(|field| field.parse().ok());
        Ok(Spent { nanoseconds: nanoseconds.ok_or(Error::NoDispatcher)?, switches: switches.sum() })
    }
}
