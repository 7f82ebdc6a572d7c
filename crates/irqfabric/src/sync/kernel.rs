//! The kernel as the models have it: eventfds, irqfds and the table of routes, as FIELD-NOTES.md measured them on Linux 6.18.
//!
//! - While an irqfd is attached, a write is consumed at once and becomes one interrupt, by the route of that moment. Without
//!   a route it is [swallowed](Seen::Swallowed), which no model forgives.
//! - Attaching with a count injects once and leaves the count. The injection is a worker's: at once, or as late as
//!   can be, which is when somebody detaches (detaching waits for it) or the execution is over.
//! - Reading returns the count and makes it zero, or would block. Attaching twice is EBUSY.
//! - Epoll is level-triggered: ready is what is watched and has a count.
//!
//! All is behind one lock, so that loom sees how everything here depends on everything else; so is the log, in which what
//! happened to a vector has one order.

use loom::sync::{Mutex, MutexGuard};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// What an interrupt is here: destination and vector.
pub type What = u16;

/// One entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The vector with this eventfd was signalled.
    Signalled(usize),
    /// An interrupt reached the guest.
    Delivered(What),
    /// A fault was recorded.
    Faulted,
    /// An irqfd without a route took an event.
    Swallowed,
    /// A call has returned: from here on nobody may deliver this.
    Old(What),
    /// Masking the vector has returned.
    Masked(usize),
    /// Unmasking the vector begins.
    Unmasking(usize),
    /// The guest begins to end the pin's interrupt.
    Ending,
    /// The resampling source of this number was told that its interrupt was ended.
    Told(usize),
}

/// When the worker injects what an irqfd found at its attaching.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Worker {
    #[default]
    AtOnce,
    Late,
}

#[derive(Debug, Default)]
pub struct Kernel(Mutex<State>);

#[derive(Debug, Default)]
pub struct State {
    pub worker: Worker,
    /// Whether tables, and irqfds, are refused.
    pub refuses_tables: bool,
    pub refuses_irqfds: bool,
    pub routes: BTreeMap<u32, What>,
    pub log: Vec<Seen>,
    objects: Vec<Object>,
}

/// What an eventfd's descriptors stand for.
#[derive(Debug, Default)]
struct Object {
    count: u64,
    watched: bool,
    irqfd: Option<Irqfd>,
}

#[derive(Debug)]
struct Irqfd {
    gsi: u32,
    /// The worker has not run yet.
    scheduled: bool,
}

/// A descriptor; as vmm-sys-util's.
#[derive(Debug)]
pub struct EventFd {
    kernel: Arc<Kernel>,
    object: usize,
}

thread_local! {
    /// That of the present execution. All threads of a model are coroutines on one real thread.
    static PRESENT: RefCell<Arc<Kernel>> = panic!("a model installs its kernel first");
}

impl Kernel {
    pub fn install(worker: Worker) -> Arc<Self> {
        let kernel = Arc::new(Self(Mutex::new(State { worker, ..State::default() })));
        PRESENT.set(kernel.clone());
        kernel
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn log(&self, seen: Seen) {
        self.state().log.push(seen);
    }

    pub fn attach(&self, gsi: u32, eventfd: &EventFd) -> io::Result<()> {
        let mut state = self.state();
        if state.refuses_irqfds {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let object = &mut state.objects[eventfd.object];
        if object.irqfd.is_some() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        object.irqfd = Some(Irqfd { gsi, scheduled: object.count > 0 });
        if state.worker == Worker::AtOnce {
            state.run_worker(eventfd.object);
        }
        Ok(())
    }

    pub fn detach(&self, gsi: u32, eventfd: &EventFd) -> io::Result<()> {
        let mut state = self.state();
        if state.objects[eventfd.object].irqfd.as_ref().is_none_or(|irqfd| irqfd.gsi != gsi) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.run_worker(eventfd.object);
        state.objects[eventfd.object].irqfd = None;
        Ok(())
    }

    /// The workers that did not come to run yet.
    pub fn settle(&self) {
        let mut state = self.state();
        (0..state.objects.len()).for_each(|object| state.run_worker(object));
    }
}

impl State {
    fn run_worker(&mut self, object: usize) {
        if let Some(irqfd) = &mut self.objects[object].irqfd
            && std::mem::take(&mut irqfd.scheduled)
        {
            let gsi = irqfd.gsi;
            self.inject(gsi);
        }
    }

    fn inject(&mut self, gsi: u32) {
        let seen = self.routes.get(&gsi).map_or(Seen::Swallowed, |&what| Seen::Delivered(what));
        self.log.push(seen);
    }

    /// How many irqfds there are.
    pub fn irqfds(&self) -> usize {
        self.objects.iter().filter(|object| object.irqfd.is_some()).count()
    }

    /// The eventfds that epoll would report.
    pub fn ready(&self) -> Vec<usize> {
        let ready = |object: &&Object| object.watched && object.count > 0;
        self.objects.iter().enumerate().filter(|(_, object)| ready(object)).map(|(index, _)| index).collect()
    }
}

impl EventFd {
    pub fn new(_flags: i32) -> io::Result<Self> {
        let kernel = PRESENT.with_borrow(Arc::clone);
        let mut state = kernel.state();
        state.objects.push(Object::default());
        let object = state.objects.len() - 1;
        drop(state);
        Ok(Self { kernel, object })
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { kernel: self.kernel.clone(), object: self.object })
    }

    pub fn write(&self, value: u64) -> io::Result<()> {
        let mut state = self.kernel.state();
        state.log.push(Seen::Signalled(self.object));
        let object = &mut state.objects[self.object];
        object.count += value;
        if let Some(irqfd) = &object.irqfd {
            let gsi = irqfd.gsi;
            // All of it, what was left there included.
            object.count = 0;
            state.inject(gsi);
        }
        Ok(())
    }

    pub fn read(&self) -> io::Result<u64> {
        match std::mem::take(&mut self.kernel.state().objects[self.object].count) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    /// What tells it from others.
    pub(crate) fn object(&self) -> usize {
        self.object
    }

    /// What epoll_ctl does.
    pub(crate) fn watch(&self, on: bool) {
        self.kernel.state().objects[self.object].watched = on;
    }
}
