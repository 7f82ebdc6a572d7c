//! What `irqfabric` cannot do, it says in one sentence that names the file or the limit, with exit status 2.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn irqfabric(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_irqfabric"));
    command.args(arguments).stdin(Stdio::null()).output().expect("irqfabric starts")
}

/// Runs `irqfabric boot` with these options.
fn boot(options: &[&str]) -> Output {
    irqfabric(&[&["boot"], options].concat())
}

/// The one sentence of a refusal of `irqfabric boot`.
fn refusal(options: &[&str]) -> String {
    sentence(&boot(options))
}

fn sentence(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("refusal-{name}-{}", std::process::id()));
    std::fs::write(&path, content).expect("a temporary file");
    path
}

#[test]
fn options_that_cannot_be_are_refused_before_anything_is_done() {
    assert!(refusal(&["--kernel", "x", "--vcpus", "0"]).contains("at least one"));
    let disks: Vec<&str> = ["--disk", "x"].into_iter().cycle().take(2 * 30).collect();
    let refused = refusal(&[&["--kernel", "x", "--irqchip", "kernel"], &disks[..]].concat());
    assert!(refused.contains("24 pins"), "{refused}");
    let refused = refusal(&["--kernel", "x", "--irqchip", "kernel", "--intremap", "vtd"]);
    assert!(refused.contains("use --irqchip split"), "{refused}");
    for options in [["--memory", "0"], ["--memory", "9T"], ["--disk", "x,rw"], ["--irqchip", "none"]] {
        let output = boot(&[&["--kernel", "x"], &options[..]].concat());
        assert_eq!(output.status.code(), Some(2));
    }
}

#[test]
fn a_test_guest_has_vectors_for_so_many_eventfds_and_no_more() {
    assert!(sentence(&irqfabric(&["run", "--vectors", "85"])).contains("more than 84"));
    assert_eq!(irqfabric(&["run", "--seconds", "1", "--count", "1"]).status.code(), Some(2));
}

#[test]
fn a_function_that_is_not_there_is_refused_and_so_is_what_is_no_address() {
    let refused = refusal(&["--kernel", "x", "--vfio", "ffff:ff:1f.7"]);
    assert!(refused.contains("VFIO device ffff:ff:1f.7: there is no such PCI function"), "{refused}");
    let twice = refusal(&["--kernel", "x", "--vfio", "ff:1f.7", "--vfio", "0000:ff:1f.7,intx"]);
    assert!(twice.contains("VFIO device 0000:ff:1f.7: it is there twice"), "{twice}");
    for address in ["nvme0", "00:20.0", "0000:00:04.0,msi"] {
        let output = boot(&["--kernel", "x", "--vfio", address]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(address.split(',').next_back().unwrap()));
    }
}

/// What it takes an open /dev/kvm to find out.
mod on_kvm {
    use super::{file, refusal};

    #[test]
    fn files_that_are_not_there_or_not_what_they_should_be_are_named() {
        let (text, short) = (file("text", &[b'x'; 4096]), file("short", b"x"));
        let [text, short] = [&text, &short].map(|path| path.to_str().expect("an UTF-8 path"));
        assert!(refusal(&["--kernel", "/nowhere/bzImage"]).contains("kernel /nowhere/bzImage: No such file"));
        assert!(
            refusal(&["--kernel", text]).contains(&format!("kernel {text}: is neither a bzImage nor an ELF image"))
        );
        assert!(refusal(&["--kernel", short]).contains("too short"));
        assert!(refusal(&["--kernel", "/"]).contains("kernel /: is not a file"));
        assert!(refusal(&["--kernel", text, "--disk", "/nowhere/disk"]).contains("disk /nowhere/disk: No such file"));
        assert!(refusal(&["--kernel", text, "--profile", "testdev"]).contains("has no multiboot header"));
        for path in [text, short] {
            std::fs::remove_file(path).expect("it was there");
        }
    }

    #[test]
    fn limits_are_named() {
        assert!(refusal(&["--kernel", "x", "--vcpus", "1000000"]).contains("KVM_CAP_MAX_VCPUS"));
        assert!(
            refusal(&["--kernel", "x", "--apic-ids", "0,300", "--irqchip", "kernel"]).contains("use --irqchip split")
        );
        assert!(refusal(&["--kernel", "x", "--apic-ids", "3"]).contains("must be 0"));
    }
}
