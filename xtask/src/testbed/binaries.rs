//! The binaries that run in the testbed: static, so that an initramfs needs no libraries.
//!
//! The normal toolchain links glibc statically; no musl is needed. They have a target folder of their own,
//! since other `RUSTFLAGS` in the shared one would rebuild everything each time.

use crate::process;
use crate::report::{Live, tail};
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "-Ctarget-feature=+crt-static";
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Builds the product: the binary `irqfabric`.
pub fn product(live: &Live) -> Result<PathBuf> {
    let folder = folder()?;
    let mut command = workspace::cargo();
    command
        .args(["build", "--release", "--package", "irqfabric-vmm", "--target", TARGET, "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", STATIC);
    build(command, live)?;
    Ok(folder.join(TARGET).join("release/irqfabric"))
}

/// Builds a test program: `testdev`, which runs where the product is, or `kvm`, the library's own on real KVM.
pub fn test_program(name: &str, live: &Live) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command
        .args(["test", "--release", "--workspace", "--exclude", "xtask", "--test", name, "--no-run"])
        .args(["--message-format", "json-render-diagnostics", "--target", TARGET, "--target-dir"])
        .arg(folder()?)
        .env("RUSTFLAGS", STATIC);
    let log = build(command, live)?;
    // Its name has a hash in it: cargo says which it is.
    let executable = log.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == name).then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executable.with_context(|| format!("cargo did not say where the test program {name} is"))
}

/// Builds `guest-probe` with plain rustc: it has no dependencies, and cargo would build all of xtask's first.
pub fn guest_probe(live: &Live) -> Result<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
    let binary = folder()?.join("guest-probe");
    if built_after(&binary, &sources)? {
        return Ok(binary);
    }
    let mut command = Command::new(workspace::tool("RUSTC", "rustc"));
    command
        .args(["--edition", "2024", "--target", TARGET, "-O", "-Cpanic=abort", "-Cstrip=symbols", STATIC, "-o"])
        .arg(&binary)
        .arg(sources.join("main.rs"));
    build(command, live)?;
    Ok(binary)
}

/// Returns what the command printed.
fn build(command: Command, live: &Live) -> Result<String> {
    let log = workspace::logs()?.join("testbed-build.log");
    fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    let end = process::run(command, &log, live, Some(LIMIT))?;
    let text = fs::read_to_string(&log).unwrap_or_default();
    if !end.is_success() {
        bail!("the static build failed: {end}\n{}", tail(&text, 30));
    }
    Ok(text)
}

fn folder() -> Result<PathBuf> {
    workspace::make(workspace::root().join("target/testbed"))
}

fn built_after(binary: &Path, sources: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(binary).and_then(|data| data.modified()) else {
        return Ok(false);
    };
    let changed: Result<Vec<SystemTime>, std::io::Error> =
        fs::read_dir(sources)?.map(|entry| entry?.metadata()?.modified()).collect();
    Ok(changed?.into_iter().all(|time| time < built))
}
