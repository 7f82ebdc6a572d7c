//! Why something could not be measured, in one sentence.

use irqfabric::fabric::{BuildError, GsiError, LineEventfdsError, VectorIndexError};
use irqfabric::hv::HvError;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot measure without /dev/kvm: {0}; it must exist and be readable and writable by this user")]
    NoKvm(io::Error),
    #[error("{call}: {source}")]
    Call { call: &'static str, source: io::Error },
    #[error("{needed} open files are needed and the hard limit is {hard}: raise it (ulimit -Hn), or leave the row out")]
    Descriptors { needed: u64, hard: u64 },
    #[error("there is no row {asked}; the rows are {}", rows.join(", "))]
    NoSuchRow { asked: String, rows: Vec<&'static str> },
    #[error("the recorded register accesses of Linux are not readable")]
    Recording,
    #[error("the dispatcher's thread is not in /proc/self/task")]
    NoDispatcher,
    #[error("cannot draw {path}: {why}")]
    Plot { path: PathBuf, why: String },
    #[error("{0} did not come about within a minute")]
    Never(&'static str),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Hypervisor(#[from] HvError),
    #[error(transparent)]
    Gsi(#[from] GsiError),
    #[error(transparent)]
    Eventfds(#[from] LineEventfdsError),
    #[error(transparent)]
    Vector(#[from] VectorIndexError),
}

impl Error {
    /// For `map_err` behind a call.
    pub fn call<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Call { call, source: source.into() }
    }
}
