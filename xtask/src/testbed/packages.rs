//! What the testbed needs from the machine and from Debian, and whether it is there.
//!
//! QEMU is installed (only root can); the guests' kernel and busybox are only downloaded and unpacked. What
//! is unpacked appears in the cache by one rename, so that nothing half-made is ever taken for complete.

use super::apt::Apt;
use super::kernel;
use crate::report::{Live, Unavailable};
use crate::workspace;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const QEMU: &str = "qemu-system-x86_64";

/// With more than one CPU, the L1 kernel has been seen to panic under the QEMU 7.2 of Debian 12.
const OLDEST_QEMU: u32 = 8;

const KERNEL_METAPACKAGE: &str = "linux-image-cloud-amd64";

/// A machine that has everything: QEMU, and the guests' files in the cache.
pub struct Testbed {
    pub folder: PathBuf,
    pub about: About,
}

/// What is in the folder.
#[derive(Serialize, Deserialize)]
pub struct About {
    pub kernel: String,
    pub kernel_package: String,
    pub busybox_package: String,
}

impl Testbed {
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    pub fn busybox(&self) -> PathBuf {
        self.folder.join("busybox")
    }

    pub fn modules(&self) -> PathBuf {
        self.folder.join("modules")
    }

    /// Finds or gets everything. Quick when it is all there.
    pub fn prepare(live: &Live) -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!(Unavailable {
                reason: format!("the testbed runs x86-64 binaries built here, and this is {}", std::env::consts::ARCH),
                enable: "cargo xtask testbed prepare, on an x86-64 machine".into(),
            });
        }
        let cache = workspace::cache()?;
        let _lock = lock(&cache)?;
        let mut apt = None;
        let missing = missing_tools();
        if !missing.is_empty() {
            only_root(&missing)?;
            install(apt.insert(Apt::open(&cache, live)?), &missing)?;
        }
        let folder = cache.join("guest");
        let about = match read_about(&folder) {
            Some(about) => about,
            None => {
                let apt = match &apt {
                    Some(apt) => apt,
                    None => apt.insert(Apt::open(&cache, live)?),
                };
                fetch_guest(apt, &cache, &folder, live)?
            }
        };
        Ok(Self { folder, about })
    }
}

/// One preparation at a time: the lock ends with the file, however we end.
fn lock(cache: &Path) -> Result<fs::File> {
    let path = cache.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Packages whose tool is not here, or too old.
fn missing_tools() -> Vec<&'static str> {
    let runs = |tool: &str| Command::new(tool).arg("--version").output().is_ok_and(|out| out.status.success());
    let mut missing = Vec::new();
    if qemu_version().is_none_or(|version| version < OLDEST_QEMU) {
        missing.push("qemu-system-x86");
    }
    missing.extend([("xz", "xz-utils"), ("zstd", "zstd")].iter().filter(|(tool, _)| !runs(tool)).map(|(_, p)| *p));
    missing
}

/// QEMU's major version.
fn qemu_version() -> Option<u32> {
    let output = Command::new(QEMU).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_once("version ")?.1.split('.').next()?.parse().ok()
}

/// Said before anything is fetched in vain.
fn only_root(missing: &[&str]) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!(Unavailable {
        reason: format!("not installed here, or too old: {}; only root can install packages", missing.join(", ")),
        enable: "sudo env \"PATH=$PATH\" cargo xtask testbed prepare".into(),
    })
}

fn install(apt: &Apt, missing: &[&str]) -> Result<()> {
    let newest = apt.newest(missing.first().context("nothing is missing")?)?;
    apt.install(missing, &newest.suite)?;
    match qemu_version() {
        Some(version) if version >= OLDEST_QEMU => Ok(()),
        version => bail!(Unavailable {
            reason: format!("QEMU {OLDEST_QEMU} or newer is needed; Debian's mirrors gave {version:?}"),
            enable: "cargo xtask testbed prepare, on Debian 12 or newer".into(),
        }),
    }
}

fn read_about(folder: &Path) -> Option<About> {
    serde_json::from_slice(&fs::read(folder.join("about.json")).ok()?).ok()
}

fn fetch_guest(apt: &Apt, cache: &Path, folder: &Path, live: &Live) -> Result<About> {
    let meta = apt.newest(KERNEL_METAPACKAGE)?;
    let package = apt.behind(KERNEL_METAPACKAGE, &meta.version, "linux-image-")?;
    let kernel = apt.newest(&package)?;
    let busybox = apt.newest("busybox-static")?;
    let making = tempfile::tempdir_in(cache).context("cannot make a folder in the cache")?;
    let (unpacked, guest) = (making.path().join("unpacked"), workspace::make(making.path().join("guest"))?);
    apt.unpack(&package, &kernel.version, &unpacked)?;
    apt.unpack("busybox-static", &busybox.version, &unpacked)?;

    let release = package.trim_start_matches("linux-image-").to_owned();
    live.note("extracting the kernel");
    kernel::extract_vmlinux(&unpacked.join(format!("boot/vmlinuz-{release}")), &guest.join("vmlinux"))?;
    // Where /usr is merged the package has usr/bin, usr/lib.
    let place = |path: &str| {
        let merged = unpacked.join("usr").join(path);
        if merged.exists() { merged } else { unpacked.join(path) }
    };
    let moves = [(place("bin/busybox"), "busybox"), (place("lib/modules").join(&release), "modules")];
    for (from, to) in moves {
        fs::rename(&from, guest.join(to)).with_context(|| format!("the package has no {}", from.display()))?;
    }
    let about = About {
        kernel: release,
        kernel_package: format!("{package} {}", kernel.version),
        busybox_package: format!("busybox-static {}", busybox.version),
    };
    fs::write(guest.join("about.json"), serde_json::to_string_pretty(&about)?).context("cannot write about.json")?;
    // An incomplete folder of an older version may be in the way; a complete one would have been used.
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    fs::rename(&guest, folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(about)
}
