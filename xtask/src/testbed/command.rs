//! `cargo xtask testbed …`.

use super::{Testbed, record, recording, run};
use crate::report::{Live, Report};
use crate::scenarios::{self, Linux, Scale};
use crate::test::is_ci;
use crate::workspace;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Command {
    /// Get all that the testbed needs: QEMU (installed, as root), a kernel and busybox (unpacked into a cache)
    ///
    /// The cache is .testbed/ in the workspace, or where IRQFABRIC_TESTBED_CACHE says. A second run has
    /// nothing to do. The machine's own apt sources are read, never changed.
    Prepare,
    /// Name the scenarios, and what each proves
    List,
    /// Run scenarios: all, or the named
    Run {
        /// Scenarios to run (see `list`)
        #[arg(value_name = "SCENARIO")]
        names: Vec<String>,
        /// Thorough: more moves, more disks, more time
        #[arg(long)]
        full: bool,
        /// Show the consoles while they run (the default when CI=true)
        #[arg(long, short)]
        verbose: bool,
    },
    /// Boot stock Linux as a guest of `irqfabric boot`, its console on this terminal
    ///
    /// Further arguments go to `irqfabric boot`, after `--`. To leave early: ctrl-A, then X.
    BootLinux {
        /// CPUs of the guest
        #[arg(long, default_value_t = 1)]
        vcpus: u32,
        /// Disks of the guest, with known content
        #[arg(long, default_value_t = 2)]
        disks: u32,
        #[arg(last = true, value_name = "IRQFABRIC BOOT ARGUMENT")]
        arguments: Vec<String>,
    },
    /// A shell in L1, with `irqfabric` on the path and a guest's kernel and initrd in /l2
    ///
    /// To leave: `exit`, or ctrl-A, then X.
    Shell,
    /// Record anew what stock Linux does to the IOAPIC's registers, for `irqfabric bench` to replay
    RecordIoapic,
    /// Record two boots of stock Linux anew, trimmed, for the tests to replay
    RecordBoot,
    /// Remove the cache; installed packages stay
    Clean,
}

pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Prepare => {
            let testbed = prepare()?;
            println!("kernel:  {}", testbed.about.kernel_package);
            println!("busybox: {}", testbed.about.busybox_package);
            println!("cache:   {}", workspace::shown(&workspace::cache()?));
        }
        Command::List => {
            for scenario in scenarios::all(Scale::Quick) {
                println!("{:<22} {}", scenario.name, scenario.proves);
            }
        }
        Command::Run { names, full, verbose } => {
            return run_scenarios(&names, if full { Scale::Full } else { Scale::Quick }, verbose || is_ci());
        }
        Command::BootLinux { vcpus, disks, arguments } => {
            let linux = scenarios::linux::print_interrupts();
            let script = scenarios::linux::boot_script(vcpus, disks, &arguments);
            return status(run::interactive(&prepare()?, &script, &linux)?);
        }
        Command::Shell => {
            let script = "echo; echo 'to leave: exit, or ctrl-A X'; setsid cttyhack sh -l; true";
            return status(run::interactive(&prepare()?, script, &Linux { test: "sh".into() })?);
        }
        Command::RecordIoapic => {
            let testbed = prepare()?;
            let live = Live::start("booting stock Linux", is_ci());
            let recorded = record::ioapic(&testbed, &live);
            live.finish();
            let (path, accesses) = recorded?;
            println!("{accesses} accesses: {}", workspace::shown(&path));
        }
        Command::RecordBoot => {
            let testbed = prepare()?;
            let live = Live::start("booting stock Linux twice", is_ci());
            let recorded = recording::boots(&testbed, &live);
            live.finish();
            recorded?.iter().for_each(|path| println!("{}", workspace::shown(path)));
        }
        Command::Clean => {
            let cache = workspace::cache()?;
            std::fs::remove_dir_all(&cache).with_context(|| format!("cannot remove {}", cache.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status(good: bool) -> Result<ExitCode> {
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn prepare() -> Result<Testbed> {
    let live = Live::start("preparing the testbed", is_ci());
    let testbed = Testbed::prepare(&live);
    live.finish();
    testbed
}

fn run_scenarios(names: &[String], scale: Scale, stream: bool) -> Result<ExitCode> {
    let mut scenarios = scenarios::all(scale);
    if let Some(unknown) = names.iter().find(|name| !scenarios.iter().any(|known| known.name == **name)) {
        bail!("there is no scenario {unknown:?}; `cargo xtask testbed list` names them");
    }
    scenarios.retain(|scenario| names.is_empty() || names.contains(&scenario.name));
    let mut report = Report::default();
    run::scenarios(&scenarios, &mut report, stream);
    status(report.conclude())
}
