//! The dispatcher under loom: what it listens to is known to the [model of the kernel](crate::sync::kernel), its turns are
//! the test's to take.

use super::core::Core;
use super::vector::Vector;
use crate::sync::EventFd;
use std::io;
use std::sync::Arc;
use std::time::Instant;

pub(super) trait Listen: Send + Sync {
    fn readable(self: Arc<Self>) -> Option<Arc<Vector>>;
}

#[derive(Default)]
pub(crate) struct Dispatcher;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token;

impl Core {
    pub(super) fn dispatcher(core: &Arc<Self>) -> io::Result<&Dispatcher> {
        Ok(core.dispatcher.get_or_init(Dispatcher::default))
    }
}

impl Dispatcher {
    pub(super) fn add<L: Listen + 'static>(&self, eventfd: &EventFd, _listener: &Arc<L>) -> io::Result<Token> {
        eventfd.watch(true);
        Ok(Token)
    }

    pub(super) fn listen(&self, eventfd: &EventFd, _token: Token, on: bool) {
        eventfd.watch(on);
    }

    pub(super) fn remove(&self, eventfd: &EventFd, _token: Token) {
        eventfd.watch(false);
    }

    /// Time stands still: what is put off does not come.
    pub(super) fn at(&self, _time: Instant, _act: impl FnOnce() + Send + 'static) {}
}
