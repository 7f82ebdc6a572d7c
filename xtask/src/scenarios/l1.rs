//! L1 itself, and the payload test of `irqfabric run` on its real KVM.

use super::evidence::{Evidence, probe};
use super::{Machine, Needs, Scale, Scenario};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

pub fn kvm() -> Scenario {
    Scenario {
        name: "l1-kvm".into(),
        proves: "L1 has a stock /dev/kvm of kvm_amd with all that irqfabric builds on".into(),
        limit: Duration::from_secs(60),
        machine: Machine::L1 { script: "guest-probe kvm >/out/kvm".into(), needs: Needs::Nothing, linux: None },
        judge: Box::new(judge_kvm),
    }
}

fn judge_kvm(evidence: &Evidence) -> Result<()> {
    #[derive(Deserialize)]
    struct Kvm {
        vendor: String,
        #[serde(flatten)]
        capabilities: BTreeMap<String, i64>,
    }
    evidence.l1_passed()?;
    let text = evidence.text("kvm")?;
    let answer = text.lines().find_map(|line| line.strip_prefix("PROBE ")).context("guest-probe gave no answer")?;
    let kvm: Kvm = probe(answer)?;
    ensure!(kvm.vendor == "kvm_amd", "expected KVM to be kvm_amd, saw {}", kvm.vendor);
    for wanted in ["SPLIT_IRQCHIP", "IRQFD", "IRQFD_RESAMPLE", "SIGNAL_MSI"] {
        let seen = kvm.capabilities.get(wanted).copied().unwrap_or(0);
        ensure!(seen > 0, "expected KVM_CAP_{wanted}, saw {seen}");
    }
    Ok(())
}

pub fn run() -> Scenario {
    Scenario {
        name: "run-in-l1".into(),
        proves: "every event of `irqfabric run` arrives exactly once on a stock KVM with true EOI order".into(),
        limit: Duration::from_secs(90),
        machine: Machine::L1 {
            script: "irqfabric run --count 2000 --json >/out/run.json 2>/out/stderr".into(),
            needs: Needs::Product,
            linux: None,
        },
        judge: Box::new(judge_run),
    }
}

pub fn run_with_pic() -> Scenario {
    Scenario {
        name: "run-pic-in-l1".into(),
        proves: "so it does when the lines interrupt by the PIC, until the guest switches to the IOAPIC".into(),
        limit: Duration::from_secs(90),
        machine: Machine::L1 {
            script: "irqfabric run --pic --count 2000 --json >/out/run.json 2>/out/stderr".into(),
            needs: Needs::Product,
            linux: None,
        },
        judge: Box::new(|evidence| {
            judge_run(evidence)?;
            let Report { fabric, .. } = evidence.json("run.json")?;
            let by_pic: u64 = fabric.lines.iter().map(|line| line.acknowledged).sum();
            ensure!(by_pic > 0, "expected interrupts by the PIC, saw none");
            Ok(())
        }),
    }
}

/// The report of `irqfabric run`.
#[derive(Deserialize)]
struct Report {
    outcome: String,
    verdict: String,
    backend: String,
    fabric: Fabric,
}

#[derive(Deserialize)]
struct Fabric {
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    /// By the PIC.
    acknowledged: u64,
}

/// The exit status is the verdict, and the report must be whole and say the same.
fn judge_run(evidence: &Evidence) -> Result<()> {
    evidence.l1_passed()?;
    let report: Report = evidence.json("run.json")?;
    ensure!(report.outcome == "passed" && report.backend == "kvm", "{} on {}", report.verdict, report.backend);
    Ok(())
}

pub fn testdev() -> Scenario {
    Scenario {
        name: "testdev".into(),
        proves: "a bare-metal test image finds all it needs on our IOAPIC and on KVM's".into(),
        limit: Duration::from_secs(90),
        machine: Machine::L1 {
            script: "IRQFABRIC=/bin/irqfabric testdev --ignored --test-threads 1 >/out/tests 2>/out/stderr".into(),
            needs: Needs::Testdev,
            linux: None,
        },
        judge: Box::new(|evidence| {
            let tests = evidence.text("tests").unwrap_or_default();
            evidence.l1_passed().context(tests.clone())?;
            ensure!(tests.contains("2 passed; 0 failed; 0 ignored"), "expected two tests to pass, saw:\n{tests}");
            Ok(())
        }),
    }
}

/// The library's tests that need KVM, here on the kernel's own: ends of interrupts come when the guest writes them. Those that
/// set limits of open files need a program that L1 has not.
pub fn kvm_tests() -> Scenario {
    const WITHOUT: [&str; 4] = [
        "differential::",
        "four_thousand_vectors_that_fire_twice_cost_sixteen_commits_at_the_most",
        "ten_thousand_vectors_with_eventfds_all_arrive_though_there_are_fewer_routes",
        "without_descriptors_a_vector_is_signalled_in_process_and_the_shortage_counted",
    ];
    let skips = WITHOUT.map(|name| format!(" --skip {name}")).concat();
    Scenario {
        name: "kvm-tests".into(),
        proves: "the library's tests on KVM pass on a stock one".into(),
        limit: Duration::from_secs(180),
        machine: Machine::L1 {
            script: format!("kvm{skips} --test-threads 1 >/out/tests 2>/out/stderr"),
            needs: Needs::KvmTests,
            linux: None,
        },
        judge: Box::new(|evidence| {
            let tests = evidence.text("tests").unwrap_or_default();
            evidence.l1_passed().context(tests.clone())?;
            ensure!(
                tests.contains("test result: ok.") && tests.contains(" 0 failed"),
                "expected no failure, saw:\n{tests}"
            );
            let passed = tests.lines().filter(|line| line.ends_with(" ... ok")).count();
            ensure!(passed >= 40, "expected 40 tests at the least, saw {passed}:\n{tests}");
            Ok(())
        }),
    }
}

/// Each access of the guest is a trap into two emulations: a program of 5,000 operations takes seconds here.
pub fn differential(scale: Scale) -> Scenario {
    let seeds = if scale == Scale::Quick { 2 } else { 50 };
    Scenario {
        name: "differential".into(),
        proves: "random guests see no difference between our IOAPIC and PIC and stock KVM's, but the named ones".into(),
        limit: Duration::from_secs(60 + 12 * seeds),
        machine: Machine::L1 {
            script: format!("IRQFABRIC_SEEDS=0..{seeds} kvm differential:: >/out/tests 2>/out/stderr"),
            needs: Needs::KvmTests,
            linux: None,
        },
        judge: Box::new(|evidence| {
            let tests = evidence.text("tests").unwrap_or_default();
            evidence.l1_passed().context(tests.clone())?;
            for name in ["ioapic", "pic"] {
                let line = format!("random_programs_come_out_the_same_on_the_in_kernel_{name} ... ok");
                ensure!(tests.contains(&line), "expected the line {line:?}, saw:\n{tests}");
            }
            Ok(())
        }),
    }
}
