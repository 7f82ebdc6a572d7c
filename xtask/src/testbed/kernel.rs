//! A Debian kernel package, made ready to boot fast.
//!
//! The `vmlinux` inside a bzImage boots by PVH, without decompressing itself under emulation, which saves
//! seconds. Modules stay compressed in the cache; those wanted are decompressed when an initramfs is made, in
//! the order in which they have to be inserted.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Offsets of the setup header: Documentation/arch/x86/boot.rst.
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

pub fn extract_vmlinux(image: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let payload = payload(&bytes).with_context(|| format!("{} is no bzImage", image.display()))?;
    let vmlinux = decompress(payload)?;
    if !vmlinux.starts_with(b"\x7fELF") {
        bail!("the payload of {} is no ELF file", image.display());
    }
    fs::write(to, vmlinux).with_context(|| format!("cannot write {}", to.display()))
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |offset: usize| {
        let bytes = image.get(offset..offset + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let protected_mode = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * 512;
    let start = protected_mode.checked_add(word(PAYLOAD_OFFSET)?)?;
    // The build appends the decompressed size, 4 bytes that are no part of the stream.
    let end = start.checked_add(word(PAYLOAD_LENGTH)?)?.checked_sub(4)?;
    image.get(start..end)
}

/// By the tools, since they are everywhere and a decompressor in a debug build is slow.
fn decompress(bytes: &[u8]) -> Result<Vec<u8>> {
    let (tool, args): (_, &[&str]) = match bytes {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", &["-dc", "--single-stream"]),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dc"]),
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"]),
        [0x7f, b'E', b'L', b'F', ..] => return Ok(bytes.to_vec()),
        _ => bail!("compressed in a way we do not know: {:02x?}", &bytes[..bytes.len().min(6)]),
    };
    // From a file, not a pipe: a pipe would need a second thread to fill it.
    let mut input = tempfile::tempfile().context("cannot make a temporary file")?;
    input.write_all(bytes).context("cannot write a temporary file")?;
    std::io::Seek::rewind(&mut input).context("cannot rewind a temporary file")?;
    let output = Command::new(tool)
        .args(args)
        .stdin(Stdio::from(input))
        .output()
        .with_context(|| format!("cannot start {tool}"))?;
    if !output.status.success() {
        bail!("{tool}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// A module, decompressed.
pub struct Module {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// The modules of one kernel, found by name.
pub struct Modules(BTreeMap<String, PathBuf>);

impl Modules {
    pub fn open(folder: &Path) -> Result<Self> {
        let mut modules = BTreeMap::new();
        let mut folders = vec![folder.join("kernel")];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
            for entry in entries {
                let path = entry?.path();
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some((name, "" | ".xz" | ".zst" | ".gz")) = file.split_once(".ko") {
                    modules.insert(canonical(name), path);
                }
            }
        }
        Ok(Self(modules))
    }

    /// The wanted modules and all they depend on, in the order in which to insert them. A name that this kernel
    /// has no module for is left out: what is a module in one kernel is built into the next.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut done = Vec::new();
        for name in wanted {
            self.add(&canonical(name), &mut done)?;
        }
        Ok(done)
    }

    fn add(&self, name: &str, done: &mut Vec<Module>) -> Result<()> {
        let Some(path) = self.0.get(name) else {
            return Ok(());
        };
        if done.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let bytes = decompress(&bytes).with_context(|| format!("cannot decompress {}", path.display()))?;
        for dependency in depends(&bytes) {
            self.add(&dependency, done)?;
        }
        done.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

/// The `.modinfo` section holds `key=value` strings, each ended by a NUL; `depends` is a list of names.
fn depends(module: &[u8]) -> Vec<String> {
    module
        .split(|&byte| byte == 0)
        .find_map(|string| string.strip_prefix(b"depends="))
        .map(|list| String::from_utf8_lossy(list).split(',').filter(|name| !name.is_empty()).map(canonical).collect())
        .unwrap_or_default()
}

/// Files are called `kvm-amd`, modules `kvm_amd`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_from_modinfo() {
        let module = b"\x7fELF\0license=GPL\0depends=kvm,ccp-crypto\0name=kvm_amd\0";
        assert_eq!(depends(module), ["kvm", "ccp_crypto"]);
        assert!(depends(b"\x7fELF\0depends=\0").is_empty());
    }

    #[test]
    fn a_file_that_is_no_bzimage_has_no_payload() {
        assert_eq!(payload(&[0; 1024]), None);
        assert_eq!(payload(b""), None);
    }
}
