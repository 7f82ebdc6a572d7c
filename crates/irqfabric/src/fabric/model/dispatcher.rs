//! The dispatcher under loom: what it listens to is known to the [model of the kernel](crate::sync::kernel), its turns are
//! the test's to take.

use super::core::Core;
use super::vector::Vector;
use crate::sync::EventFd;
use std::io;
use std::sync::Arc;

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
    pub(super) fn add(&self, eventfd: &EventFd, _vector: &Arc<Vector>) -> io::Result<Token> {
        eventfd.watch(true);
        Ok(Token)
    }

    pub(super) fn listen(&self, eventfd: &EventFd, _token: Token, on: bool) {
        eventfd.watch(on);
    }

    /// At once: a model has no time.
    pub(super) fn at(&self, _: std::time::Instant, act: impl FnOnce() + Send + 'static) {
        act();
    }

    pub(super) fn remove(&self, eventfd: &EventFd, _token: Token) {
        eventfd.watch(false);
    }
}
