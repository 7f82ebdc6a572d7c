//! `irqfabric replay`: the recorded boots of stock Linux come out as they were recorded, and what is wrong with a file is said
//! with the exit status that the help promises. `cargo xtask testbed record-boot` records them anew.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn irqfabric(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_irqfabric"));
    command.args(arguments).stdin(Stdio::null()).output().expect("irqfabric starts")
}

fn replay(path: &Path, options: &[&str]) -> (Option<i32>, String, String) {
    let output = irqfabric(&[&["replay", path.to_str().expect("an UTF-8 path")], options].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn recording(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings").join(name).with_extension("jsonl")
}

fn file(name: &str, content: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("replay-{name}-{}", std::process::id()));
    std::fs::write(&path, content).expect("a temporary file");
    path
}

fn boot() -> String {
    std::fs::read_to_string(recording("linux-recorded")).expect("the recording")
}

#[test]
fn recorded_boots_of_stock_linux_replay_identically() {
    let kinds = [
        ("linux-recorded", ["ioapic", "pic", "vector", "line"]),
        ("linux-recorded-intremap", ["ioapic", "vtd", "vector", "line"]),
    ];
    let mut size = 0;
    for (name, machines) in kinds {
        let text = std::fs::read_to_string(recording(name)).expect("the recording");
        size += text.len();
        for machine in machines {
            assert!(
                text.contains(&format!(",\"{machine}\":{{")),
                "{name} has no step of a machine of the kind {machine}"
            );
        }
        let (status, said, _) = replay(&recording(name), &[]);
        assert_eq!(status, Some(0), "{name}: {said}");
        let records = text.lines().filter(|line| line.contains("\"number\":")).count();
        assert!(
            said.starts_with(&format!("{records} records of ")) && said.contains("all outputs as recorded"),
            "{said}"
        );
    }
    assert!(size < 200 << 10, "they have {size} bytes");
}

#[test]
fn a_different_output_of_a_boot_is_found_in_text_and_in_json() {
    let whole = boot();
    // Some message of a pin's goes to another vector.
    let delivery = whole.lines().position(|line| line.contains("\"deliver\"")).expect("a delivery");
    let change = |(index, line): (usize, &str)| match index == delivery {
        true => line.replace("\"message\":{\"address\":", "\"message\":{\"address\":1") + "\n",
        false => format!("{line}\n"),
    };
    let path = file("changed", &whole.lines().enumerate().map(change).collect::<String>());
    let (status, said, _) = replay(&path, &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.starts_with(&format!("line {}: machine ", delivery + 1)), "{said}");
    let (status, said, _) = replay(&path, &["--json"]);
    assert_eq!(status, Some(1), "{said}");
    let report: serde_json::Value = serde_json::from_str(&said).expect("one JSON object");
    assert_eq!(report["difference"]["line"], delivery + 1);
    assert!(report["difference"]["state"]["chip"]["pins"].is_array(), "{said}");
}

#[test]
fn what_is_no_whole_recording_is_refused_with_the_line_and_the_reason() {
    let whole = boot();
    let cases = [
        ("cut", whole[..whole.len() / 2].to_owned(), "the recording is cut"),
        ("version", whole.replacen(":1}", ":7}", 1), "line 1: this is a recording of version 7"),
        ("other", "#!/bin/sh\n".to_owned(), "line 1: this is no recording"),
    ];
    for (name, text, reason) in cases {
        let (status, said, why) = replay(&file(name, &text), &[]);
        assert_eq!((status, said.as_str(), why.lines().count()), (Some(2), "", 1), "{name}: {why}");
        assert!(why.contains(reason), "{name}: {why}");
    }
    let (status, _, why) = replay(Path::new("/nowhere/recording"), &[]);
    assert!(status == Some(2) && why.contains("recording /nowhere/recording: No such file"), "{why}");
}

#[test]
fn a_run_that_was_recorded_replays_and_a_file_that_cannot_be_written_is_named() {
    let path = file("run", "");
    let path = path.to_str().expect("an UTF-8 path");
    let ran = irqfabric(&["run", "--backend", "sim", "--count", "500", "--record", path]);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let (status, said, _) = replay(Path::new(path), &[]);
    assert_eq!(status, Some(0), "{said}");
    for (path, reason) in [("/nowhere/recording", "No such file"), ("/dev/full", "No space left")] {
        let refused = irqfabric(&["run", "--backend", "sim", "--count", "500", "--record", path]);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{why}");
        assert!(why.contains(&format!("recording {path}: ")) && why.contains(reason), "{why}");
    }
}
