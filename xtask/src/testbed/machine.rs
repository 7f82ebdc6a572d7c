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

/// L1's own devices that it can pass on: each with a disk, at an address of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Passable {
    /// An NVMe controller: INTx and MSI-X.
    Nvme,
    /// An AHCI controller: INTx and MSI.
    Ahci,
    /// An NVMe controller whose IOMMU group it shares with the device that L1 needs itself, virtio-serial.
    NvmeInGroup,
}

impl Passable {
    /// Its address in L1.
    pub fn address(self) -> &'static str {
        match self {
            Self::Nvme => "0000:00:04.0",
            Self::Ahci => "0000:00:05.0",
            Self::NvmeInGroup => "0000:00:06.0",
        }
    }
}

pub struct Boot<'a> {
    pub kernel: &'a Path,
    pub initrd: &'a Path,
}

/// L1. What it writes to its one virtio port arrives in `files`, a tar archive.
///
/// An interrupt that comes while the processor enters a guest or leaves one can be lost: TCG's VMRUN and #VMEXIT change
/// `CPUState.interrupt_request` without the lock under which devices set it (QEMU 10.0, `svm_helper.c`; kvm_amd asks for an
/// interrupt window by the bit that they change). L1 then sleeps for ever, its timer's vector in IRR: without a heartbeat
/// (`guest/beat.rs`), `irqfabric run --pic` did so in 7 of 21 runs, and went on as soon as any device interrupted.
///
/// It has one CPU. With two, under QEMU 10.0, L1 or its guest was reset without a word in 4 of 11 runs of a
/// busy L2 with two vCPUs (under QEMU as the VMM); with one, in none of 3. Why is not known. It costs a third
/// of the time at most.
pub fn l1(boot: &Boot, files: &Path, serial: &str) -> Command {
    l1_with(qemu("q35", boot, KERNEL_ARGUMENTS, serial), "virtio-serial-pci", files)
}

/// L1 with an IOMMU (VT-d, whatever the processor is) and devices that it can pass on.
pub fn l1_with_iommu(boot: &Boot, files: &Path, devices: &[(Passable, impl AsRef<Path>)]) -> Command {
    let mut qemu = qemu("q35", boot, &format!("{KERNEL_ARGUMENTS} intel_iommu=on"), "stdio");
    // Before all devices that are to be behind it.
    qemu.args(["-device", "intel-iommu,intremap=on,caching-mode=on"]);
    for (index, (device, disk)) in devices.iter().enumerate() {
        let (id, file) = (format!("disk{index}"), escaped(disk.as_ref()));
        qemu.arg("-drive").arg(format!("id={id},if=none,format=raw,file={file}"));
        let nvme = |address: &str| format!("nvme,drive={id},serial={id},{address}");
        match device {
            Passable::Nvme => qemu.arg("-device").arg(nvme("addr=4")),
            Passable::NvmeInGroup => qemu.arg("-device").arg(nvme("addr=6.0,multifunction=on")),
            Passable::Ahci => {
                qemu.args(["-device", "ich9-ahci,id=ahci,addr=5", "-device"]);
                qemu.arg(format!("ide-hd,bus=ahci.0,drive={id}"))
            }
        };
    }
    // Linux looks for a second function only where there is a first.
    let grouped = devices.iter().any(|(device, _)| *device == Passable::NvmeInGroup);
    l1_with(qemu, if grouped { "virtio-serial-pci,addr=6.1" } else { "virtio-serial-pci" }, files)
}

fn l1_with(mut qemu: Command, virtio_serial: &str, files: &Path) -> Command {
    qemu.args(["-smp", "1", "-m", "2G", "-device", virtio_serial]);
    qemu.arg("-chardev").arg(format!("file,id=files,path={}", escaped(files)));
    qemu.args(["-device", "virtserialport,chardev=files"]);
    qemu
}

/// Stock Linux on QEMU's own emulation of a machine like ours. The `microvm` has room for 24 disks, on the
/// pins of its second IOAPIC. It needs its option ROM to boot a vmlinux, and the PIT for Linux to calibrate by.
pub fn reference(boot: &Boot, cpus: u32, disks: &[impl AsRef<Path>]) -> Command {
    let mut qemu = qemu("microvm,acpi=on,ioapic2=on,pit=on,pic=on,rtc=on", boot, KERNEL_ARGUMENTS, "stdio");
    qemu.args(["-smp", &cpus.to_string(), "-m", "512M", "-global", "virtio-mmio.force-legacy=false"]);
    // The last device takes the first transport: reversed, Linux finds them in the order given.
    for (index, disk) in disks.iter().enumerate().rev() {
        let file = escaped(disk.as_ref());
        qemu.arg("-drive").arg(format!("id=disk{index},if=none,format=raw,file={file}"));
        qemu.arg("-device").arg(format!("virtio-blk-device,drive=disk{index}"));
    }
    qemu
}

fn qemu(machine: &str, boot: &Boot, append: &str, serial: &str) -> Command {
    let mut qemu = Command::new(QEMU);
    qemu.args(["-M", machine, "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", serial])
        .arg("-kernel")
        .arg(boot.kernel)
        .arg("-initrd")
        .arg(boot.initrd)
        .args(["-append", append]);
    qemu
}

/// A path inside an option list: QEMU doubles the commas.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
