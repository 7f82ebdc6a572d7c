//! An eventfd that our dispatcher listens to, a vector's or a level line's, against the least that can do the same: a thread in
//! epoll_wait, a read and KVM_SIGNAL_MSI.
//!
//! Measured from the write until the other thread has counted the delivery, behind its system call: on both sides by the
//! same kind of counter. One CPU writes and looks, the other waits; before each write the waiter has had time to go
//! to sleep.

use super::super::error::Error;
use super::super::host::Cpus;
use super::super::machine::{FIRST, Machine, fire, program_all};
use super::super::measure::Rounds;
use super::super::raw::{msi, signal};
use super::Measured;
use irqfabric::fabric::Promotion;
use std::hint::black_box;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const BATCH: usize = 8;

const PIN: u8 = 10;
const LEVEL: u64 = 1 << 15;

/// Until a thread that has delivered is asleep again.
const REST: Duration = Duration::from_micros(100);

pub fn eventfd_cold(rounds: Rounds) -> Result<Measured, Error> {
    let cpus = Cpus::two()?;
    let machine = Machine::new(Promotion::Never)?;
    let vectors = cpus.with_waiter(|| machine.vectors(1))?;
    program_all(&vectors)?;
    let raw = cpus.with_waiter(|| Waiter::start(&machine))?;
    let mut ours = || batch(|| fire(&vectors, 0), || machine.hypervisor.calls().deliveries, || {});
    let write = || raw.eventfd.write(1).map_err(Error::call("write of an eventfd"));
    let mut floor = || batch(write, || raw.shared.delivered.load(Ordering::Relaxed), || {});
    let (wakeups, calls) = (machine.fabric.stats().wakeups, machine.system_calls());
    let samples = rounds.measure(BATCH, [&mut ours, &mut floor])?;
    let events = machine.system_calls() - calls;
    let wakeups = machine.fabric.stats().wakeups - wakeups;
    // Each event is written, waited for, read and delivered.
    let calls = (events + wakeups + events + events) as f64 / events as f64;
    Ok(Measured::new(samples, "wake+read+MSI").at_most(1.3).with_calls(calls, None))
}

/// The trigger of a pair on a level pin, whose route is parked. That the guest ends the interrupt, which lowers the line and
/// tells the device, is not counted here.
pub fn line_eventfd(rounds: Rounds) -> Result<Measured, Error> {
    let cpus = Cpus::two()?;
    let machine = Machine::new(Promotion::Never)?;
    machine.program_pin(PIN, LEVEL | u64::from(FIRST));
    let pair = cpus.with_waiter(|| Ok(machine.fabric.line_eventfds(PIN.into(), "device")?))?;
    let raw = cpus.with_waiter(|| Waiter::start(&machine))?;
    let trigger = || pair.trigger().write(1).map_err(Error::call("write of an eventfd"));
    let end = || {
        machine.fabric.end_of_interrupt(FIRST);
        black_box(pair.resample().read().is_ok());
    };
    let mut ours = || batch(trigger, || machine.hypervisor.calls().deliveries, end);
    let write = || raw.eventfd.write(1).map_err(Error::call("write of an eventfd"));
    let mut floor = || batch(write, || raw.shared.delivered.load(Ordering::Relaxed), || {});
    let (wakeups, before) = (machine.fabric.stats().wakeups, machine.hypervisor.calls());
    let samples = rounds.measure(BATCH, [&mut ours, &mut floor])?;
    let after = machine.hypervisor.calls();
    let events = after.deliveries - before.deliveries;
    let wakeups = machine.fabric.stats().wakeups - wakeups;
    // As above; the commit is the first event's.
    let calls = (events + wakeups + events + events) as f64 / events as f64;
    let measured = Measured::new(samples, "wake+read+MSI").at_most(1.3).with_calls(calls, None);
    Ok(measured.with_fact("table commits", after.commits as f64, Some(1.0)))
}

fn batch(
    write: impl Fn() -> Result<(), Error>,
    delivered: impl Fn() -> u64,
    after: impl Fn(),
) -> Result<Duration, Error> {
    let mut took = Duration::ZERO;
    for _ in 0..BATCH {
        let rest = Instant::now();
        while rest.elapsed() < REST {
            std::hint::spin_loop();
        }
        let before = delivered();
        let start = Instant::now();
        write()?;
        while delivered() == before {
            // With one CPU the waiter must get it.
            if start.elapsed() > REST {
                thread::yield_now();
            }
        }
        took += start.elapsed();
        after();
    }
    Ok(took)
}

/// The raw loop.
struct Waiter {
    shared: Arc<Shared>,
    eventfd: EventFd,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    delivered: AtomicU64,
    stopped: AtomicU64,
}

impl Waiter {
    fn start(machine: &Machine) -> Result<Self, Error> {
        let epoll = Epoll::new().map_err(Error::call("epoll_create1"))?;
        let eventfd = EventFd::new(EFD_NONBLOCK).map_err(Error::call("eventfd"))?;
        let interest = EpollEvent::new(EventSet::IN, 0);
        let add = epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), interest);
        add.map_err(Error::call("epoll_ctl"))?;
        let shared = Arc::new(Shared::default());
        let run = {
            let eventfd = eventfd.try_clone().map_err(Error::call("dup"))?;
            let (shared, vm) = (shared.clone(), machine.vm.clone());
            move || {
                let mut events = [EpollEvent::default(); 16];
                while epoll.wait(-1, &mut events).is_ok() && shared.stopped.load(Ordering::Relaxed) == 0 {
                    if eventfd.read().is_ok() && signal(&vm, msi(0)).is_ok() {
                        shared.delivered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        };
        let thread = thread::Builder::new().spawn(run).map_err(Error::call("clone"))?;
        Ok(Self { shared, eventfd, thread: Some(thread) })
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.shared.stopped.store(1, Ordering::Relaxed);
        if self.eventfd.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
