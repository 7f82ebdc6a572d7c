//! What L1 and L2 boot into: an uncompressed cpio of busybox, kernel modules, our binaries and a script.
//!
//! Made anew for each scenario: it takes a tenth of a second, less than finding out whether an old one
//! would do.
//!
//! What a stock Debian cloud kernel (6.12) has built in, and so needs no module: 8250 serial and its console,
//! virtio core, virtio-pci, virtio-console, ACPI with S5 (`poweroff` needs no module; `button` serves only
//! the *host's* wish to power off). Modules:
//!
//! | for | modules |
//! | --- | --- |
//! | `/dev/kvm` in L1 | `kvm-amd` (after `irqbypass`, `kvm`) |
//! | disks of L2 on virtio-mmio, by ACPI `LNRO0005` | `virtio_mmio`, `virtio_blk` |
//! | disks of L2 on virtio-pci | `virtio_blk` |
//! | what L1 passes on | `vfio-pci`, `vfio_iommu_type1`; in L2 `nvme`, `ahci`, `sd_mod` |

use super::Testbed;
use super::kernel::Modules;
use anyhow::{Context, Result};
use cpio::newc;
use std::fs::File;
use std::io::{BufWriter, Cursor, Read, Seek, Write};
use std::path::Path;

const L1_INIT: &str = include_str!("../../guest/l1-init");
const L2_INIT: &str = include_str!("../../guest/l2-init");

const L1_MODULES: &[&str] = &["kvm-amd", "virtio_console", "virtio_pci"];
const L2_MODULES: &[&str] = &["virtio_pci", "virtio_mmio", "virtio_blk", "button"];

/// Also, for devices that L1 passes on to L2.
const L1_VFIO_MODULES: &[&str] = &["vfio_iommu_type1", "vfio-pci"];
const L2_VFIO_MODULES: &[&str] = &["nvme", "ahci", "sd_mod"];

const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// What a scenario adds to L1.
pub struct L1<'a> {
    pub test: &'a str,
    pub product: Option<&'a Path>,
    /// A test program and the name that it has there.
    pub tests: Option<(&'a str, &'a Path)>,
    pub guest_probe: &'a Path,
    /// The stock kernel and this initramfs as `/l2/vmlinux` and `/l2/initrd`.
    pub l2: Option<&'a Path>,
    pub devices: Devices,
}

/// Whose devices a guest has drivers for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// Our VMM's.
    Ours,
    /// Those and the ones that are passed on.
    Passed,
}

pub fn write_l1(testbed: &Testbed, to: &Path, l1: &L1) -> Result<()> {
    let mut archive = Archive::create(to)?;
    archive.base(testbed, L1_INIT, &with(L1_MODULES, L1_VFIO_MODULES, l1.devices), l1.test, l1.guest_probe)?;
    if let Some(product) = l1.product {
        archive.file("bin/irqfabric", PROGRAM, product)?;
    }
    if let Some((name, tests)) = l1.tests {
        archive.file(&format!("bin/{name}"), PROGRAM, tests)?;
    }
    if let Some(initrd) = l1.l2 {
        archive.folder("l2")?;
        archive.file("l2/vmlinux", FILE, &testbed.vmlinux())?;
        archive.file("l2/initrd", FILE, initrd)?;
    }
    archive.finish()
}

pub fn write_l2(testbed: &Testbed, to: &Path, test: &str, devices: Devices, guest_probe: &Path) -> Result<()> {
    let mut archive = Archive::create(to)?;
    archive.base(testbed, L2_INIT, &with(L2_MODULES, L2_VFIO_MODULES, devices), test, guest_probe)?;
    archive.finish()
}

fn with<'a>(modules: &[&'a str], passed: &[&'a str], devices: Devices) -> Vec<&'a str> {
    let passed = if devices == Devices::Passed { passed } else { &[] };
    [modules, passed].concat()
}

struct Archive {
    out: BufWriter<File>,
    path: String,
    inode: u32,
}

impl Archive {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { out: BufWriter::new(file), path: path.display().to_string(), inode: 0 })
    }

    /// What both levels have.
    fn base(&mut self, testbed: &Testbed, init: &str, modules: &[&str], test: &str, probe: &Path) -> Result<()> {
        for folder in ["bin", "dev", "modules"] {
            self.folder(folder)?;
        }
        // The kernel opens it for init's input and output, before there is a devtmpfs.
        let console = newc::Builder::new("dev/console").mode(CHARACTER_DEVICE).rdev_major(5).rdev_minor(1);
        self.entry(console, &mut Cursor::new([]))?;
        self.file("busybox", PROGRAM, &testbed.busybox())?;
        self.file("bin/guest-probe", PROGRAM, probe)?;
        self.text("init", PROGRAM, init)?;
        self.text("test", FILE, test)?;
        let mut order = String::new();
        for module in Modules::open(&testbed.modules())?.closure(modules)? {
            order += &module.name;
            order.push('\n');
            let builder = newc::Builder::new(&format!("modules/{}.ko", module.name)).mode(FILE);
            self.entry(builder, &mut Cursor::new(module.bytes))?;
        }
        self.text("modules/order", FILE, &order)
    }

    fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(newc::Builder::new(name).mode(FOLDER), &mut Cursor::new([]))
    }

    fn text(&mut self, name: &str, mode: u32, text: &str) -> Result<()> {
        self.entry(newc::Builder::new(name).mode(mode), &mut Cursor::new(text))
    }

    fn file(&mut self, name: &str, mode: u32, from: &Path) -> Result<()> {
        let mut file = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.entry(newc::Builder::new(name).mode(mode), &mut file)
    }

    fn entry(&mut self, builder: newc::Builder, content: &mut (impl Read + Seek)) -> Result<()> {
        self.inode += 1;
        let write = || -> std::io::Result<()> {
            let size = content.seek(std::io::SeekFrom::End(0))?;
            content.rewind()?;
            let size = u32::try_from(size).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
            // Distinct inodes, or the kernel would take entries for hard links of one another.
            let mut entry = builder.ino(self.inode).nlink(1).write(&mut self.out, size);
            std::io::copy(content, &mut entry)?;
            entry.finish()?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", self.path))
    }

    fn finish(self) -> Result<()> {
        let finish = || newc::trailer(self.out)?.flush();
        finish().with_context(|| format!("cannot write {}", self.path))
    }
}
