//! The device's end of a level line's two eventfds, as a device in another process or in the kernel has it.
//!
//! The device *triggers* when it needs service, once until it is answered. The answer, an event of the other eventfd, says
//! that the guest has ended an interrupt: the device looks whether it still needs service, and if so triggers again. So
//! every trigger has its answer, and no need for service is forgotten, whoever else is on the line.

use crate::error::Error;
use irqfabric::fabric::{Fabric, LineEventfds};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The two eventfds, and whether an answer is awaited.
#[derive(Debug)]
pub struct Pair {
    eventfds: LineEventfds,
    /// Triggered, and not answered yet.
    waits: AtomicBool,
    triggered: AtomicU64,
    answered: AtomicU64,
}

/// What went each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PairStats {
    /// How often the device triggered.
    pub triggered: u64,
    /// How often it was told of an end of interrupt.
    pub resampled: u64,
}

/// The thread that takes the answers. Dropping it ends it.
#[derive(Debug)]
pub struct Listener {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Pair {
    /// A pair on the line of a GSI. The name is for reports.
    pub fn new(fabric: &Fabric, gsi: u32, name: &str) -> Result<Arc<Self>, Error> {
        let eventfds = fabric.line_eventfds(gsi, name).map_err(|error| Error::Options(format!("{name}: {error}")))?;
        let (triggered, answered) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Arc::new(Self { eventfds, waits: AtomicBool::new(false), triggered, answered }))
    }

    /// The device needs service: one event, unless it has asked already.
    pub fn trigger(&self) {
        if !self.waits.swap(true, Ordering::AcqRel) {
            self.triggered.fetch_add(1, Ordering::Relaxed);
            // It only fails with the count at its end: there has been an event.
            let _ = self.eventfds.trigger().write(1);
        }
    }

    /// What went each way so far.
    pub fn stats(&self) -> PairStats {
        let resampled = self.answered.load(Ordering::Acquire);
        PairStats { triggered: self.triggered.load(Ordering::Relaxed), resampled }
    }

    /// Whether every trigger has had its answer.
    pub fn is_settled(&self) -> bool {
        !self.waits.load(Ordering::Acquire)
    }

    /// Calls `look` after each answer, on a thread of its own: there the device triggers if it still needs service.
    pub fn listen(self: &Arc<Self>, look: impl Fn(&Self) + Send + 'static) -> Result<Listener, Error> {
        let host = |what| move |source| Error::Host { what, source };
        let answers = || -> io::Result<(Epoll, EventFd)> {
            let (epoll, stop) = (Epoll::new()?, EventFd::new(EFD_NONBLOCK)?);
            for (eventfd, data) in [(self.eventfds.resample(), ANSWER), (&stop, STOP)] {
                epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), EpollEvent::new(EventSet::IN, data))?;
            }
            Ok((epoll, stop))
        };
        let (epoll, stop) = answers().map_err(host("listen to a device's eventfds"))?;
        let pair = self.clone();
        let run = move || pair.run(&epoll, &look);
        let thread = std::thread::Builder::new().name("resample".into()).spawn(run);
        let thread = thread.map_err(host("start a thread for a device's eventfds"))?;
        Ok(Listener { stop, thread: Some(thread) })
    }

    fn run(&self, epoll: &Epoll, look: &impl Fn(&Self)) {
        let mut events = [EpollEvent::default(); 2];
        loop {
            let count = match epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return tracing::error!(%error, "epoll_wait of a device's eventfds"),
            };
            let events = &events[..count];
            if events.iter().any(|event| event.data() == STOP) {
                return;
            }
            // More than one event at a time is still one reason to look.
            if let Ok(ends) = self.eventfds.resample().read() {
                self.answered.fetch_add(ends, Ordering::Release);
                // A swap, as in `trigger`: whoever found the flag still set has told what it needs before, and `look` sees it.
                self.waits.swap(false, Ordering::AcqRel);
                look(self);
            }
        }
    }
}

const ANSWER: u64 = 0;
const STOP: u64 = 1;

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use irqfabric::chip::ioapic::Ioapic;
    use irqfabric::fabric::IOAPIC_ADDRESS;
    use irqfabric::hv::Sim;
    use std::time::{Duration, Instant};

    const GSI: u32 = 9;

    fn machine() -> (Arc<Sim>, Fabric) {
        let sim = Arc::new(Sim::new(1));
        let fabric = Fabric::builder(sim.clone()).ioapic(Ioapic::default()).build().unwrap();
        sim.vcpus()[0].enable();
        // Vector 0x31, level, to APIC id 0.
        for (index, value) in [(0x10 + 2 * GSI + 1, 0), (0x10 + 2 * GSI, 0x8031u32)] {
            fabric.mmio_write(IOAPIC_ADDRESS, &index.to_le_bytes());
            fabric.mmio_write(IOAPIC_ADDRESS + 0x10, &value.to_le_bytes());
        }
        (sim, fabric)
    }

    fn eventually(what: &str, done: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(5);
        while !done() {
            assert!(Instant::now() < until, "waited for {what}");
            std::thread::yield_now();
        }
    }

    fn take(sim: &Sim, fabric: &Fabric) {
        eventually("an interrupt", || sim.vcpus()[0].acknowledge() == Some(0x31));
        end(sim, fabric);
    }

    fn end(sim: &Sim, fabric: &Fabric) {
        let effect = sim.vcpus()[0].with_lapic(|lapic| lapic.write(0xb0, &[0; 4]));
        let ended = effect.and_then(|effect| sim.perform(0, effect));
        fabric.end_of_interrupt(ended.expect("a level interrupt was in service"));
    }

    #[test]
    fn a_device_triggers_once_until_it_is_answered() {
        let (sim, fabric) = machine();
        let pair = Pair::new(&fabric, GSI, "device").unwrap();
        let _listener = pair.listen(|_| {}).unwrap();
        pair.trigger();
        pair.trigger();
        take(&sim, &fabric);
        eventually("the answer", || pair.is_settled());
        assert_eq!(pair.stats(), PairStats { triggered: 1, resampled: 1 });
        pair.trigger();
        take(&sim, &fabric);
        eventually("the answer", || pair.stats() == PairStats { triggered: 2, resampled: 2 });
    }

    #[test]
    fn a_device_that_still_needs_service_triggers_again() {
        let (sim, fabric) = machine();
        let pair = Pair::new(&fabric, GSI, "device").unwrap();
        let left = Arc::new(AtomicU64::new(3));
        let _listener = pair
            .listen({
                let left = left.clone();
                move |pair| {
                    if left.fetch_sub(1, Ordering::Relaxed) > 1 {
                        pair.trigger();
                    }
                }
            })
            .unwrap();
        pair.trigger();
        for _ in 0..3 {
            take(&sim, &fabric);
        }
        eventually("the last answer", || pair.stats() == PairStats { triggered: 3, resampled: 3 });
        assert!(pair.is_settled() && sim.vcpus()[0].acknowledge().is_none());
    }

    #[test]
    fn an_end_while_another_device_holds_the_line_is_none_of_its_business() {
        let (sim, fabric) = machine();
        let pair = Pair::new(&fabric, GSI, "device").unwrap();
        let _listener = pair.listen(|_| {}).unwrap();
        let other = fabric.line(GSI).unwrap().source("other");
        other.raise();
        eventually("an interrupt", || sim.vcpus()[0].acknowledge() == Some(0x31));
        other.lower();
        end(&sim, &fabric);
        assert_eq!(pair.stats(), PairStats::default());
        pair.trigger();
        take(&sim, &fabric);
        eventually("the answer", || pair.stats() == PairStats { triggered: 1, resampled: 1 });
    }
}
