//! What the user gets to read when a machine cannot be had: one sentence each, naming the file or the limit and, where
//! there is one, the way out. All of these happen before or instead of a run, and end the process with status 2.

use std::io;
use std::path::PathBuf;

/// Why there is no machine, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// /dev/kvm is not there for us.
    #[error("cannot open /dev/kvm: {source}; {remedy}")]
    NoKvm {
        /// The kernel's answer.
        source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A system call of KVM's failed.
    #[error("{call}: {source}")]
    Kvm {
        /// Its name.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// KVM lacks something that every machine of ours needs.
    #[error("this KVM lacks {capability}: {remedy}")]
    Capability {
        /// Its name in the kernel's documentation.
        capability: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The fabric could not be set up.
    #[error(transparent)]
    Fabric(#[from] irqfabric::fabric::BuildError),
    /// A device asked for a line that is not there.
    #[error(transparent)]
    Gsi(#[from] irqfabric::fabric::GsiError),
    /// Two devices at one address: a mistake of ours, never of the user's.
    #[error("a device at {address:#x} overlaps another: {why}")]
    Bus {
        /// Where.
        address: u64,
        /// What the bus says.
        why: vm_device::bus::Error,
    },
    /// The host has not got the memory.
    #[error("cannot allocate {} MiB of guest memory: {why}", size >> 20)]
    Allocate {
        /// What was asked for, in bytes.
        size: u64,
        /// What the allocator says.
        why: String,
    },
    /// The guest's memory cannot hold what must be in it.
    #[error("{size} MiB of memory are too little for {what}: it takes {needed} MiB; raise --memory")]
    TooLittleMemory {
        /// What was asked for, in MiB.
        size: u64,
        /// What does not fit.
        what: String,
        /// What would be enough, in MiB.
        needed: u64,
    },
    /// There is not even memory for what every guest starts with, which is all in the first MiB.
    #[error("there is no memory for {0}: raise --memory")]
    NoRoom(&'static str),
    /// More vCPUs than KVM takes.
    #[error("{asked} vCPUs are more than the {most} of this KVM (KVM_CAP_MAX_VCPUS)")]
    TooManyVcpus {
        /// What was asked for.
        asked: usize,
        /// The limit.
        most: usize,
    },
    /// A list of APIC ids that no machine can have, or not this one.
    #[error("APIC ids: {0}")]
    ApicIds(String),
    /// A file that the user named.
    #[error("{what} {}: {why}", path.display())]
    File {
        /// What it was meant to be.
        what: &'static str,
        /// Its name.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A function of the host that VFIO does not give, or not to this machine.
    #[error("VFIO device {device}: {why}")]
    Vfio {
        /// Its address.
        device: String,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// Options that do not go together, or beyond a limit.
    #[error("{0}")]
    Options(String),
    /// A thread could not be started or a signal handler not be installed.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err` behind a call of KVM's.
    pub fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |errno| Self::Kvm { call, source: errno.into() }
    }

    /// For a function of the host that cannot be passed through.
    pub fn vfio(device: impl ToString, why: impl ToString) -> Self {
        Self::Vfio { device: device.to_string(), why: why.to_string() }
    }

    /// For a file that cannot be used.
    pub fn file(what: &'static str, path: impl Into<PathBuf>, why: impl ToString) -> Self {
        Self::File { what, path: path.into(), why: why.to_string() }
    }
}
