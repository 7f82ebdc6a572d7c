//! Where things are: the workspace, the logs, the testbed's cache.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Moves the testbed's cache out of the workspace, for machines that keep it between clones.
pub const CACHE_VARIABLE: &str = "IRQFABRIC_TESTBED_CACHE";

/// The root of the workspace that this binary was built from.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap_or_else(|_| "..".into())
}

/// Logs of steps and consoles of scenarios.
pub fn logs() -> Result<PathBuf> {
    make(root().join("target/xtask"))
}

/// What the testbed has downloaded and made; survives `cargo clean`.
pub fn cache() -> Result<PathBuf> {
    let folder = std::env::var_os(CACHE_VARIABLE).map_or_else(|| root().join(".testbed"), PathBuf::from);
    make(std::path::absolute(&folder).unwrap_or(folder))
}

/// The cargo that runs us, or the one on the path.
pub fn cargo() -> Command {
    let mut cargo = Command::new(tool("CARGO", "cargo"));
    cargo.current_dir(root());
    // What cargo set for us is about xtask, not about the packages that the child builds.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Whether cargo has a subcommand of this name that somebody has installed.
pub fn has_subcommand(name: &str) -> bool {
    let mut command = cargo();
    command.args([name, "--version"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|end| end.success())
}

/// The tool that this environment variable names, or else the one of that name on the path.
pub fn tool(variable: &str, name: &str) -> OsString {
    std::env::var_os(variable).unwrap_or_else(|| name.into())
}

pub fn make(folder: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    Ok(folder)
}

/// The path as seen from the workspace's root, for messages.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
