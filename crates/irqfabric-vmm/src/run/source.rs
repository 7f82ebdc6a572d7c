//! A source of interrupts: a device with a wire or a message vector, and a thread that keeps it busy.
//!
//! Before it signals it writes the number of the signal into its guest page; what the handlers see of these
//! numbers is what the judge goes by. Half of the sources wait for the handler before they signal again, so
//! that each signal is an interrupt of its own. The others do not, and theirs may coalesce.
//!
//! Locks: `device` is held across a signal and across the service of a level, `heard` is a leaf.

use super::control::{Control, Early};
use super::judge::{Seen, Slot};
use super::layout::{self, source};
use super::memory::GuestMemory;
use crate::devices::pair::{Listener, Pair, PairStats};
use crate::error::Error;
use hdrhistogram::Histogram;
use irqfabric::fabric::MsiVector;
use irqfabric::line::LineSource;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a device signals with.
#[derive(Debug)]
pub enum Wire {
    /// A line of its own, pulsed.
    Edge(LineSource),
    /// A line shared with others, raised until the guest has served the device.
    Level(LineSource),
    /// The same, by the line's two eventfds: triggered until the guest has ended the interrupt, and then again if it has not
    /// served the device.
    Resample { pair: Arc<Pair>, _listener: Listener },
    /// A message vector.
    Message(MsiVector),
    /// A message vector, by its eventfd.
    Eventfd(MsiVector),
}

/// Which way a source's signals go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// By an IOAPIC pin.
    Pin,
    /// By an eventfd that the fabric's dispatcher reads, then by an IOAPIC pin; another eventfd comes back.
    Resampled,
    /// Straight to a local APIC.
    Message,
    /// By the fabric's dispatcher, which listens to the eventfd.
    Dispatcher,
    /// By the kernel alone.
    Irqfd,
}

/// When a source signals again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// After the handler has seen the last signal.
    Waits,
    /// Whenever it likes, about as fast on the whole as those that wait.
    Free,
}

/// One source.
#[derive(Debug)]
pub struct Source {
    /// Its name in the report.
    pub name: String,
    /// When it signals again.
    pub pace: Pace,
    /// How many signals it is to send.
    pub share: u64,
    index: usize,
    cpus: usize,
    wire: Wire,
    memory: GuestMemory,
    device: Mutex<Device>,
    heard: Mutex<Heard>,
    changed: Condvar,
}

/// The device's side of a source.
#[derive(Clone, Copy, Debug, Default)]
pub struct Device {
    /// How many signals it has sent; the number of the newest.
    pub sent: u64,
    /// How often the guest served a level.
    pub served: u64,
    /// Signals dropped at a masked pin and sent again after the unmask.
    pub resent: u64,
}

/// What is decided of a source before there is a machine.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name in the report.
    pub name: String,
    /// When it signals again.
    pub pace: Pace,
}

/// What the vCPUs' threads have told of the handlers.
#[derive(Debug)]
struct Heard {
    /// The newest number seen.
    seen: u64,
    /// Signals that no handler has seen yet, oldest first.
    pending: VecDeque<(u64, Instant)>,
    /// Signal to handler's port write, nanoseconds; for signals that coalesced that of the oldest.
    latency: Histogram<u64>,
}

/// Where the sources that wait have got to: nobody runs far ahead of the slowest.
///
/// A local APIC serves the highest vector first. Without this a few busy sources with high vectors would keep a vCPU to
/// themselves.
#[derive(Debug)]
pub struct Progress {
    /// How many signals of each source have been answered; for those that do not wait, more than anybody's.
    answered: Box<[AtomicU64]>,
}

/// How far a source that waits may be ahead of the slowest.
const LEAD: u64 = 32;

impl Progress {
    /// Nothing has been sent yet.
    pub fn new(sources: &[Source]) -> Self {
        let begin = |source: &Source| if source.pace == Pace::Waits { 0 } else { u64::MAX };
        Self { answered: sources.iter().map(|source| begin(source).into()).collect() }
    }

    fn slowest(&self) -> u64 {
        self.answered.iter().map(|answered| answered.load(Relaxed)).min().unwrap_or(u64::MAX)
    }

    /// The more sources there are the longer.
    fn nap(&self, random: &mut fastrand::Rng) {
        let least = 4 * self.answered.len() as u64;
        std::thread::sleep(Duration::from_micros(random.u64(least..5 * least)));
    }
}

/// The address of a source's guest page.
const fn page(index: usize) -> u64 {
    layout::SOURCES + index as u64 * layout::SOURCE_SIZE
}

impl Wire {
    /// That of the source with number `index`, which has its line by two eventfds.
    pub fn resample(pair: Arc<Pair>, index: usize, memory: &GuestMemory) -> Result<Self, Error> {
        let (memory, status) = (memory.clone(), page(index) + source::STATUS);
        let look = move |pair: &Pair| {
            if memory.load::<u32>(status) != 0 {
                pair.trigger();
            }
        };
        let listener = pair.listen(look)?;
        Ok(Self::Resample { pair, _listener: listener })
    }
}

impl Source {
    /// The source with number `index` of a guest with `cpus` vCPUs: it will send `share` signals.
    pub fn new(plan: Plan, index: usize, share: u64, wire: Wire, memory: &GuestMemory, cpus: usize) -> Self {
        // 3 digits, from 1 ns to 10 minutes; what is beyond saturates.
        let latency = Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("the bounds are constants");
        let heard = Heard { seen: 0, pending: VecDeque::new(), latency };
        let source = Self {
            name: plan.name,
            pace: plan.pace,
            share,
            index,
            cpus,
            wire,
            memory: memory.clone(),
            device: Mutex::default(),
            heard: Mutex::new(heard),
            changed: Condvar::new(),
        };
        source.memory.store(source.page() + source::LEVEL, u32::from(source.is_level()));
        source.memory.store(source.page() + source::INDEX, index as u32);
        source
    }

    /// The address of its guest page.
    pub fn page(&self) -> u64 {
        page(self.index)
    }

    /// Whether it is a level device.
    pub fn is_level(&self) -> bool {
        matches!(self.wire, Wire::Level(_) | Wire::Resample { .. })
    }

    /// What went through its two eventfds, if that is how it has its line.
    pub fn pair(&self) -> Option<PairStats> {
        match &self.wire {
            Wire::Resample { pair, .. } => Some(pair.stats()),
            _ => None,
        }
    }

    /// Whether nothing is on its way between it and its line.
    pub fn is_settled(&self) -> bool {
        match &self.wire {
            Wire::Resample { pair, .. } => pair.is_settled(),
            _ => true,
        }
    }

    /// Which way it signals at the moment.
    pub fn path(&self) -> Path {
        match &self.wire {
            Wire::Edge(_) | Wire::Level(_) => Path::Pin,
            Wire::Resample { .. } => Path::Resampled,
            Wire::Message(_) => Path::Message,
            Wire::Eventfd(vector) if vector.is_hot() => Path::Irqfd,
            Wire::Eventfd(_) => Path::Dispatcher,
        }
    }

    /// How often the dispatcher found its eventfd signalled.
    pub fn dispatched(&self) -> u64 {
        match &self.wire {
            Wire::Eventfd(vector) => vector.stats().signalled,
            _ => 0,
        }
    }

    /// The device as it is now. While the guard lives it neither signals nor is served.
    pub fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // The source's own thread.

    /// Sends its share, unless the run ends before.
    pub fn run(&self, seed: u64, progress: &Progress, control: &Control) {
        let mut random = fastrand::Rng::with_seed(seed);
        match self.pace {
            Pace::Waits => self.run_waiting(&mut random, progress, control),
            Pace::Free => self.run_free(&mut random, progress, control),
        }
    }

    fn run_waiting(&self, random: &mut fastrand::Rng, progress: &Progress, control: &Control) {
        for number in 1..=self.share {
            self.send();
            if !self.wait_until_seen(number, control) {
                return;
            }
            progress.answered[self.index].store(number, Relaxed);
            while number > progress.slowest().saturating_add(LEAD) && !control.stopping() {
                progress.nap(random);
            }
        }
    }

    fn run_free(&self, random: &mut fastrand::Rng, progress: &Progress, control: &Control) {
        while !control.stopping() {
            let own = self.device().sent;
            if own >= self.share {
                return;
            }
            if own > progress.slowest() {
                progress.nap(random);
                continue;
            }
            for _ in 0..random.u32(1..=8) {
                self.send();
            }
            std::thread::yield_now();
        }
    }

    /// Nothing if it has sent its share.
    fn send(&self) {
        let mut device = self.device();
        if device.sent < self.share {
            device.sent += 1;
            self.memory.store(self.page() + source::SENT, device.sent);
            self.heard().pending.push_back((device.sent, Instant::now()));
            self.signal();
        }
    }

    fn signal(&self) {
        match &self.wire {
            Wire::Edge(line) => line.pulse(),
            Wire::Level(line) => {
                self.memory.store(self.page() + source::STATUS, 1u32);
                line.raise();
            }
            Wire::Resample { pair, .. } => {
                self.memory.store(self.page() + source::STATUS, 1u32);
                pair.trigger();
            }
            Wire::Message(vector) => vector.signal(),
            // As vhost would: a write, and nothing of the fabric's. It was made before the first signal.
            Wire::Eventfd(vector) => drop(vector.eventfd().and_then(|eventfd| eventfd.write(1))),
        }
    }

    /// Returns whether the source may go on.
    fn wait_until_seen(&self, number: u64, control: &Control) -> bool {
        let begun = Instant::now();
        let mut heard = self.heard();
        while heard.seen < number {
            if control.stopping() {
                return false;
            }
            if begun.elapsed() > control.patience() {
                drop(heard);
                let patience = control.patience().as_secs_f32();
                control.end(Early::Failed(format!(
                    "{} hung: no handler has seen its signal {number} within {patience:.0} s",
                    self.name
                )));
                return false;
            }
            let waited = self.changed.wait_timeout(heard, Duration::from_millis(100));
            heard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        !control.stopping()
    }

    // The vCPUs' threads.

    /// The guest serves the level device: it lowers its line, unless the end of the interrupt does. Every now and then it
    /// has more to say at once, and raises it again before the handler comes to its EOI.
    pub fn serve(&self) {
        let mut device = self.device();
        if self.is_level() {
            self.memory.store(self.page() + source::STATUS, 0u32);
            device.served += 1;
            if let Wire::Level(line) = &self.wire {
                line.lower();
            }
            if self.pace == Pace::Free && device.served.is_multiple_of(4) && device.sent < self.share {
                device.sent += 1;
                self.memory.store(self.page() + source::SENT, device.sent);
                self.signal();
            }
        }
    }

    /// A handler on `cpu` is through with a vector of this parity.
    pub fn handled(&self, cpu: usize, parity: u8, now: Instant) {
        let seen = self.seen_in((cpu, parity)).newest;
        let mut heard = self.heard();
        if seen <= heard.seen {
            return;
        }
        heard.seen = seen;
        if let Some(&(number, since)) = heard.pending.front()
            && number <= seen
        {
            let nanoseconds = now.saturating_duration_since(since).as_nanos() as u64;
            heard.latency.saturating_record(nanoseconds.max(1));
        }
        while heard.pending.front().is_some_and(|(number, _)| *number <= seen) {
            heard.pending.pop_front();
        }
        if self.pace == Pace::Waits {
            self.changed.notify_one();
        }
    }

    // The script and the judge.

    /// What waited behind a mask counts from the unmask: latencies are those of interrupts, not of the script's pauses.
    pub fn restart_clock(&self) {
        let now = Instant::now();
        for (_, since) in &mut self.heard().pending {
            *since = now;
        }
    }

    /// Sends the newest signal again: the pin dropped it while it was masked.
    pub fn send_again(&self, device: &mut Device) {
        device.resent += 1;
        self.signal();
    }

    /// What stands in a slot.
    pub fn seen_in(&self, (cpu, parity): Slot) -> Seen {
        let slot = self.page() + layout::slot(cpu, parity);
        Seen { newest: self.memory.load(slot + source::SEEN), entries: self.memory.load(slot + source::ENTRIES) }
    }

    /// All its slots.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, Seen)> + '_ {
        let slots = (0..self.cpus).flat_map(|cpu| [(cpu, 0), (cpu, 1)]);
        slots.map(|slot| (slot, self.seen_in(slot)))
    }

    /// The newest number that any handler has seen.
    pub fn newest_seen(&self) -> u64 {
        self.slots().map(|(_, seen)| seen.newest).max().unwrap_or_default()
    }

    /// Latencies so far, in nanoseconds.
    pub fn latency(&self) -> Histogram<u64> {
        self.heard().latency.clone()
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sources are shared by their own threads, the vCPUs' and the script.
pub type Sources = Arc<[Source]>;
