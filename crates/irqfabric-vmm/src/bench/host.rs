//! The host: what it is, how many files it lets us open, and which of its CPUs a thread runs on.

use super::error::Error;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs;

/// As many open files as the hard limit allows: each eventfd is one.
pub fn raise_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    // If it fails the soft limit stays, and `need_descriptors` names what is missing.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Whether `vectors` eventfds, beside the few files that are open anyway, are within the limit.
pub fn need_descriptors(vectors: usize) -> Result<(), Error> {
    let needed = vectors as u64 + 64;
    let limit = getrlimit(Resource::Nofile);
    match limit.current {
        Some(soft) if soft < needed => Err(Error::Descriptors { needed, hard: limit.maximum.unwrap_or(soft) }),
        _ => Ok(()),
    }
}

/// The CPU's model, the kernel and how busy the host is.
pub fn describe() -> Host {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Host {
        cpu: model.map_or("unknown", |(_, model)| model).to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
    }
}

#[derive(serde::Serialize)]
pub struct Host {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
    /// Runnable threads on average over the last minute.
    pub load: String,
}

/// Two CPUs: one for the thread that signals and looks, one for the thread that waits. They are the same if there is
/// only one.
pub struct Cpus {
    all: CpuSet,
    signalling: usize,
    waiting: usize,
}

impl Cpus {
    pub fn two() -> Result<Self, Error> {
        let all = sched_getaffinity(None).map_err(Error::call("sched_getaffinity"))?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu));
        let signalling = usable.next().unwrap_or(0);
        Ok(Self { all, signalling, waiting: usable.next().unwrap_or(signalling) })
    }

    /// A thread started by `start` waits, the calling one signals: threads inherit where they may run.
    pub fn with_waiter<T>(&self, start: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        pin(self.waiting)?;
        let started = start();
        pin(self.signalling)?;
        started
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.all);
    }
}

fn pin(cpu: usize) -> Result<(), Error> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).map_err(Error::call("sched_setaffinity"))
}
