//! The command lines of the two QEMU machines.
//!
//! `l1` is where our VMM runs: a PC whose CPU has SVM, so that its kernel has a `/dev/kvm`. `reference` has
//! the devices that *our* VMM gives its guests (virtio-mmio disks by ACPI, level lines on one IOAPIC and a
//! second), emulated by QEMU: a guest test that fails there is wrong itself.

use super::packages::QEMU;
use std::path::Path;
use std::process::Command;

/// `mitigations`, `tsc`, `no_timer_check`: what would be slow or flaky under emulation.
/// `nokaslr`: addresses in an oops are those of the package's symbols.
pub const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check";

pub struct Boot<'a> {
    pub kernel: &'a Path,
    pub initrd: &'a Path,
}

/// L1. What it writes to its one virtio port arrives in `files`, a tar archive.
///
/// It has one CPU. With two, under QEMU 10.0, L1 or its guest was reset without a word in 4 of 11 runs of a
/// busy L2 with two vCPUs (under QEMU as the VMM); with one, in none of 3. Why is not known. It costs a third
/// of the time at most.
pub fn l1(boot: &Boot, files: &Path, serial: &str) -> Command {
    let mut qemu = qemu("q35", boot, serial);
    qemu.args(["-smp", "1", "-m", "2G"]).args(["-device", "virtio-serial-pci"]);
    qemu.arg("-chardev").arg(format!("file,id=files,path={}", escaped(files)));
    qemu.args(["-device", "virtserialport,chardev=files"]);
    qemu
}

/// Stock Linux on QEMU's own emulation of a machine like ours. The `microvm` has room for 24 disks, on the
/// pins of its second IOAPIC. It needs its option ROM to boot a vmlinux, and the PIT for Linux to calibrate by.
pub fn reference(boot: &Boot, cpus: u32, disks: &[impl AsRef<Path>]) -> Command {
    let mut qemu = qemu("microvm,acpi=on,ioapic2=on,pit=on,pic=on,rtc=on", boot, "stdio");
    qemu.args(["-smp", &cpus.to_string(), "-m", "512M", "-global", "virtio-mmio.force-legacy=false"]);
    // The last device takes the first transport: reversed, Linux finds them in the order given.
    for (index, disk) in disks.iter().enumerate().rev() {
        let file = escaped(disk.as_ref());
        qemu.arg("-drive").arg(format!("id=disk{index},if=none,format=raw,file={file}"));
        qemu.arg("-device").arg(format!("virtio-blk-device,drive=disk{index}"));
    }
    qemu
}

fn qemu(machine: &str, boot: &Boot, serial: &str) -> Command {
    let mut qemu = Command::new(QEMU);
    qemu.args(["-M", machine, "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", serial])
        .arg("-kernel")
        .arg(boot.kernel)
        .arg("-initrd")
        .arg(boot.initrd)
        .args(["-append", KERNEL_ARGUMENTS]);
    qemu
}

/// A path inside an option list: QEMU doubles the commas.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
