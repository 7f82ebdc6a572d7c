//! What this kernel's KVM can do, of the things that irqfabric builds on.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

// linux/kvm.h
const KVM_CHECK_EXTENSION: u64 = 0xae03;
const CAPABILITIES: [(&str, i64); 8] = [
    ("IRQCHIP", 0),
    ("IRQFD", 32),
    ("SIGNAL_MSI", 77),
    ("IRQFD_RESAMPLE", 82),
    ("SPLIT_IRQCHIP", 121),
    ("MAX_VCPU_ID", 128),
    ("X2APIC_API", 129),
    ("IRQ_ROUTING", 25),
];

unsafe extern "C" {
    fn ioctl(fd: i32, request: u64, ...) -> i32;
}

pub fn capabilities() -> Result<String, String> {
    let kvm =
        OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(|error| format!("/dev/kvm: {error}"))?;
    let vendor = ["kvm_amd", "kvm_intel"]
        .into_iter()
        .find(|module| std::path::Path::new("/sys/module").join(module).exists())
        .unwrap_or("none");
    let capabilities = CAPABILITIES.map(|(name, number)| {
        // SAFETY: KVM_CHECK_EXTENSION takes a number and touches no memory of ours; the file is open.
        let value = unsafe { ioctl(kvm.as_raw_fd(), KVM_CHECK_EXTENSION, number) };
        format!("\"{name}\":{value}")
    });
    Ok(format!("{{\"vendor\":{vendor:?},{}}}", capabilities.join(",")))
}
