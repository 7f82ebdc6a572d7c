//! The dispatcher under loom: whether an eventfd is ready is known to the [model of the kernel](crate::sync::kernel), its turns
//! are the test's to take.

use super::core::Core;
use super::vector::Vector;
use crate::sync::EventFd;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

pub(super) trait Listen: Send + Sync {
    fn readable(self: Arc<Self>) -> Option<Arc<Vector>>;
}

/// By eventfd. Never held while another thread can run.
#[derive(Default)]
pub(crate) struct Dispatcher(Mutex<BTreeMap<usize, Weak<dyn Listen>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token;

impl Core {
    pub(super) fn dispatcher(core: &Arc<Self>) -> io::Result<&Dispatcher> {
        Ok(core.dispatcher.get_or_init(Dispatcher::default))
    }
}

impl Dispatcher {
    pub(super) fn add<L: Listen + 'static>(&self, eventfd: &EventFd, listener: &Arc<L>) -> io::Result<Token> {
        let listener: Weak<L> = Arc::downgrade(listener);
        self.0.lock().unwrap().insert(eventfd.object(), listener);
        eventfd.watch(true);
        Ok(Token)
    }

    pub(super) fn listen(&self, eventfd: &EventFd, _token: Token, on: bool) {
        eventfd.watch(on);
    }

    pub(super) fn remove(&self, eventfd: &EventFd, _token: Token) {
        eventfd.watch(false);
        self.0.lock().unwrap().remove(&eventfd.object());
    }

    /// Time stands still: what is put off does not come.
    pub(super) fn at(&self, _time: Instant, _act: impl FnOnce() + Send + 'static) {}

    /// What the thread does for an eventfd that is ready. It may have been so a moment ago.
    pub(super) fn turn(&self, eventfd: &EventFd) {
        let listener = self.0.lock().unwrap().get(&eventfd.object()).and_then(Weak::upgrade);
        if let Some(listener) = listener {
            listener.readable();
        }
    }
}
