//! The host's KVM: opened once, and checked for what no machine of ours can do without.

use crate::error::Error;
use kvm_ioctls::{Cap, Kvm};
use std::io;

/// An open /dev/kvm that has what we need.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
}

const NEEDED: [(Cap, &str, &str); 4] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "a newer kernel is needed"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "a newer kernel is needed"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI", "Linux 3.5 or newer is needed"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "Linux 4.11 or newer is needed"),
];

impl Host {
    /// Opens /dev/kvm.
    pub fn open() -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(|errno| no_kvm(errno.into()))?;
        let version = kvm.get_api_version();
        if version != kvm_bindings::KVM_API_VERSION as i32 {
            return Err(Error::Capability { capability: "API version 12", remedy: "Linux 2.6.22 or newer is needed" });
        }
        for (cap, capability, remedy) in NEEDED {
            if !kvm.check_extension(cap) {
                return Err(Error::Capability { capability, remedy });
            }
        }
        Ok(Self { kvm })
    }

    /// The system handle.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }
}

fn no_kvm(source: io::Error) -> Error {
    let remedy = match source.kind() {
        io::ErrorKind::NotFound => {
            "load kvm_intel or kvm_amd, or use a machine with virtualization (cargo xtask testbed makes one)"
        }
        io::ErrorKind::PermissionDenied => "join the group that owns it (kvm, as a rule) or be root",
        _ => "see whether the processor's virtualization is switched on in the firmware and not in use by others",
    };
    Error::NoKvm { source, remedy }
}
