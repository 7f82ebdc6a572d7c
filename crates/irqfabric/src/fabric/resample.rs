//! Resampling where eventfds are the way: for devices in other processes or in the kernel, and for lines into a hypervisor's
//! own chips, whose ends of interrupts we do not see.
//!
//! ```text
//!                          pins of ours                                pins of a hypervisor's own chips
//!  pair of eventfds        trigger: read by the dispatcher, which      both bound by the hypervisor: nothing of ours
//!                          raises a source; resample: written          is on the way
//!                          when the source is acknowledged
//!  source in this process  lowered and told by the end of interrupt    raised by writing the trigger of a pair that is
//!                                                                      the line's; resample: read by the dispatcher
//! ```
//!
//! No irqfd is ever bound to a pin of ours, so its chip always knows its remote IRR and its mask.

use super::GsiError;
use super::core::Core;
use super::dispatcher::{Listen, Token};
use super::vector::Vector;
use crate::hv::HvError;
use crate::line::{Level, Line, LineSource, Resampler, WeakLine};
use crate::sync::{EventFd, Mutex};
use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

/// A source of a line, in the form of two eventfds: see [`Fabric::line_eventfds`](super::Fabric::line_eventfds).
///
/// Any number of events of `trigger` raise the source once. The guest's end of interrupt lowers it, and `resample` has an event:
/// the device looks whether it still needs service, and if so triggers again. Neither eventfd blocks. A `resample` that nobody
/// reads keeps its count, and one whose count is at its end keeps that: the next reader sees that there was something.
///
/// An end while the source is not raised makes no event, unless the line ends in a hypervisor's own chips: KVM's write the
/// `resample` of every pair of the line at each end. A device must bear that, and can: an event asks it to look, no more.
///
/// Dropping it takes the source off the line: what it had raised is lowered, and events that come later do nothing. In a
/// hypervisor's own chips the line falls only with its last pair, or at the next end of interrupt.
pub struct LineEventfds {
    taker: Taker,
    resample: Arc<EventFd>,
}

/// Why there is no such pair.
#[derive(Debug, thiserror::Error)]
pub enum LineEventfdsError {
    /// There is no such line.
    #[error(transparent)]
    Gsi(#[from] GsiError),
    /// There are no descriptors left, or no threads.
    #[error("eventfds of a line: {0}")]
    Eventfd(#[from] io::Error),
    /// The hypervisor does not take them.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
}

/// Who takes the events of the trigger.
enum Taker {
    Dispatcher(Arc<Trigger>, Token),
    Hypervisor(Arc<Core>, u32, EventFd),
}

/// The trigger of a pair whose source is ours.
struct Trigger {
    core: Arc<Core>,
    eventfd: EventFd,
    /// Until the pair is dropped. Taken before any line.
    source: Mutex<Option<LineSource>>,
}

impl LineEventfds {
    pub(super) fn new(core: &Arc<Core>, line: &Line, gsi: u32, name: String) -> Result<Self, LineEventfdsError> {
        let (trigger, resample) = (EventFd::new(EFD_NONBLOCK)?, Arc::new(EventFd::new(EFD_NONBLOCK)?));
        if line.is_foreign() {
            core.hypervisor.attach_line(gsi, &trigger, &resample)?;
            return Ok(Self { taker: Taker::Hypervisor(core.clone(), gsi, trigger), resample });
        }
        let source = line.resampling_source(name, {
            let resample = resample.clone();
            // It fails if the count is at its end: then there is one.
            move || drop(resample.write(1))
        })?;
        let dispatcher = Core::dispatcher(core)?;
        let trigger = Arc::new(Trigger { core: core.clone(), eventfd: trigger, source: Mutex::new(Some(source)) });
        let token = dispatcher.add(&trigger.eventfd, &trigger)?;
        Ok(Self { taker: Taker::Dispatcher(trigger, token), resample })
    }

    /// The device writes it when it needs service.
    pub fn trigger(&self) -> &EventFd {
        match &self.taker {
            Taker::Dispatcher(trigger, _) => &trigger.eventfd,
            Taker::Hypervisor(_, _, trigger) => trigger,
        }
    }

    /// The device reads it when the guest has ended the interrupt.
    pub fn resample(&self) -> &EventFd {
        &self.resample
    }

    /// Whether it holds the line: what a snapshot keeps, taken with the device stopped. An event of `trigger` that the dispatcher
    /// has not come to yet counts. What is bound to a hypervisor's own chips is part of their state, and low here.
    pub fn level(&self) -> Level {
        match &self.taker {
            Taker::Dispatcher(trigger, _) => trigger.with_source(LineSource::level).unwrap_or_default(),
            Taker::Hypervisor(..) => Level::Low,
        }
    }

    /// Sets the [`level`](Self::level) that a snapshot says, as [`LineSource::restore`] does.
    pub fn restore(&self, level: Level) {
        if let Taker::Dispatcher(trigger, _) = &self.taker {
            trigger.with_source(|source| source.restore(level));
        }
    }
}

impl Drop for LineEventfds {
    fn drop(&mut self) {
        match &self.taker {
            Taker::Dispatcher(trigger, token) => {
                if let Some(dispatcher) = trigger.core.dispatcher.get() {
                    dispatcher.remove(&trigger.eventfd, *token);
                }
                // A turn of the dispatcher's that is under way finds no source any more.
                let source = trigger.source.lock().take();
                drop(source);
            }
            Taker::Hypervisor(core, gsi, trigger) => {
                if let Err(error) = core.hypervisor.detach(*gsi, trigger) {
                    core.host_error(&error);
                }
            }
        }
    }
}

impl Trigger {
    /// Up to date with the eventfd.
    fn with_source<R>(&self, act: impl FnOnce(&LineSource) -> R) -> Option<R> {
        let source = self.source.lock();
        let source = source.as_ref()?;
        if self.eventfd.read().is_ok() {
            source.raise();
        }
        Some(act(source))
    }
}

impl Listen for Trigger {
    fn readable(self: Arc<Self>) -> Option<Arc<Vector>> {
        self.with_source(|_| ());
        None
    }
}

impl fmt::Debug for LineEventfds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not its level: to look is to take what the trigger holds.
        let taker = match self.taker {
            Taker::Dispatcher(..) => "dispatcher",
            Taker::Hypervisor(..) => "hypervisor",
        };
        f.debug_struct("LineEventfds").field("taker", &taker).finish_non_exhaustive()
    }
}

/// How sources in this process resample on a line into a hypervisor's own chips: they share a pair of eventfds.
pub(super) struct ForeignResampler {
    core: Arc<Core>,
    gsi: u32,
    pair: OnceLock<Pair>,
    /// Held while the pair is made.
    starting: Mutex<()>,
}

struct Pair {
    trigger: EventFd,
    ends: Arc<Ends>,
    token: Token,
}

/// Where a hypervisor tells us of the ends of interrupts.
struct Ends {
    resample: EventFd,
    line: WeakLine,
}

impl ForeignResampler {
    pub(super) fn new(core: &Arc<Core>, gsi: u32) -> Self {
        Self { core: core.clone(), gsi, pair: OnceLock::new(), starting: Mutex::default() }
    }

    fn pair(&self, line: &Line) -> io::Result<Pair> {
        let dispatcher = Core::dispatcher(&self.core)?;
        let trigger = EventFd::new(EFD_NONBLOCK)?;
        let ends = Arc::new(Ends { resample: EventFd::new(EFD_NONBLOCK)?, line: line.downgrade() });
        let token = dispatcher.add(&ends.resample, &ends)?;
        if let Err(error) = self.core.hypervisor.attach_line(self.gsi, &trigger, &ends.resample) {
            dispatcher.remove(&ends.resample, token);
            return Err(io::Error::other(error));
        }
        Ok(Pair { trigger, ends, token })
    }
}

impl Resampler for ForeignResampler {
    fn start(&self, line: &Line) -> io::Result<()> {
        let _one_at_a_time = self.starting.lock();
        if self.pair.get().is_none() {
            let _ = self.pair.set(self.pair(line)?);
        }
        Ok(())
    }

    fn raise(&self) {
        if let Some(pair) = self.pair.get()
            && let Err(error) = pair.trigger.write(1)
        {
            tracing::error!(gsi = self.gsi, %error, "write of a line's trigger");
        }
    }
}

impl Drop for ForeignResampler {
    fn drop(&mut self) {
        let Some(Pair { trigger, ends, token }) = self.pair.take() else { return };
        if let Err(error) = self.core.hypervisor.detach(self.gsi, &trigger) {
            self.core.host_error(&error);
        }
        if let Some(dispatcher) = self.core.dispatcher.get() {
            dispatcher.remove(&ends.resample, token);
        }
    }
}

impl Listen for Ends {
    fn readable(self: Arc<Self>) -> Option<Arc<Vector>> {
        if self.resample.read().is_ok()
            && let Some(line) = self.line.upgrade()
        {
            line.acknowledge();
        }
        None
    }
}
