//! A heartbeat for L1: an interrupt of the HPET's at a steady rate, whatever the kernel sleeps for.
//!
//! QEMU's TCG loses a processor's interrupt request now and then (`testbed/machine.rs`). The interrupt is still in the local
//! APIC, and the next one of any kind brings it along; but an idle Linux has set just one timer, and its end is what was lost.

use std::fs::File;
use std::os::fd::AsRawFd;

// linux/hpet.h
const HPET_IE_ON: u64 = 0x6801;
const HPET_EPI: u64 = 0x6804;
const HPET_IRQFREQ: u64 = 0x4008_6806;

/// A second. What the kernel allows anybody is 64.
const BEATS: u64 = 50;

unsafe extern "C" {
    fn ioctl(fd: i32, request: u64, ...) -> i32;
}

/// Beats until the process is killed.
pub fn run() -> Result<String, String> {
    let hpet = File::open("/dev/hpet").map_err(|error| format!("/dev/hpet: {error}"))?;
    for (what, request, value) in
        [("HPET_IRQFREQ", HPET_IRQFREQ, BEATS), ("HPET_EPI", HPET_EPI, 0), ("HPET_IE_ON", HPET_IE_ON, 0)]
    {
        // SAFETY: these take a number and touch no memory of ours; the file is open.
        if unsafe { ioctl(hpet.as_raw_fd(), request, value) } != 0 {
            return Err(format!("{what}: {}", std::io::Error::last_os_error()));
        }
    }
    loop {
        std::thread::park();
    }
}
