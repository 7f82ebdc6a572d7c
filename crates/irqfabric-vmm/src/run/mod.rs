//! `irqfabric run`: real interrupts through a real hypervisor, and a judge that counts them.
//!
//! ```text
//! sources (threads) ──► lines, vectors ──► fabric ──► KVM or software local APICs ──► guest's handlers
//!        ▲                                                                              │ numbers seen
//!        └───────────── handled, served ◄── board ◄── ports, registers ◄────────────────┤
//! script (masks, moves) ──────────────────► board ──► mailboxes ───────────────────────►┘
//! ```
//!
//! [`scenario`] says who signals what, [`script`] what the guest does meanwhile, [`judge`] what is right. All three are the
//! same on every backend.

mod board;
mod control;
mod guest;
mod guest_code;
mod judge;
mod kvm_guest;
mod layout;
mod memory;
mod report;
mod scenario;
mod script;
mod session;
mod sim_guest;
mod source;

use crate::error::Error;
use crate::machine::Host;
use crate::record::Recording;
use report::Outcome;
use script::Begins;
use session::{Backend, LEAST_PATIENCE, Session, Work};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// About two seconds of work on two cores with KVM.
const DEFAULT_COUNT: u64 = 40_000;

/// Two that wait for the handler and two that do not.
const DEFAULT_EVENTFDS: usize = 4;

/// Options of `irqfabric run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How many interrupts the devices send in all
    #[arg(long, default_value_t = DEFAULT_COUNT, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// For how long they send, at full speed, instead of a count
    #[arg(long, conflicts_with = "count", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// How many message vectors are signalled through eventfds, besides 16 other sources; at most 84
    #[arg(long, default_value_t = DEFAULT_EVENTFDS)]
    vectors: usize,
    /// The guest begins with the PIC and switches to the IOAPIC half-way, where Linux with `noapic` stays
    #[arg(long)]
    pic: bool,
    /// How many vCPUs the guest has
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=layout::MAX_CPUS as i64))]
    vcpus: u16,
    /// Where the interrupts go
    #[arg(long, value_enum, default_value_t)]
    backend: Choice,
    /// Repeats the choices of an earlier run; its report shows the number
    #[arg(long)]
    seed: Option<u64>,
    /// Records what goes into the fabric's state machines and what comes out, for `irqfabric replay`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Prints one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Choice {
    /// KVM if it can be used, otherwise sim
    #[default]
    Auto,
    /// A virtual machine on /dev/kvm
    Kvm,
    /// Software local APICs and a software guest
    Sim,
}

/// Runs it. Exit status 0: nothing was lost, doubled, misdelivered or delivered while masked; 1: something was, or hung; 130: interrupted.
pub fn main(args: &Args) -> Result<ExitCode, Error> {
    scenario::check_room(args.vectors)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone())
            .map_err(|source| Error::Host { what: "install signal handlers", source })?;
    }
    // Short enough to be typed again.
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let recording = Recording::start(args.record.as_deref())?;
    let session = Session {
        work: args.seconds.map_or(Work::Count(args.count), |seconds| Work::For(Duration::from_secs(seconds))),
        eventfds: args.vectors,
        cpus: args.vcpus.into(),
        begins: if args.pic { Begins::WithPic } else { Begins::WithIoapic },
        seed,
        patience: LEAST_PATIENCE,
        recorder: recording.as_ref().map(Recording::recorder),
        interrupted: &interrupted,
    };
    let report = match args.backend {
        Choice::Sim => session.run(Backend::Sim)?,
        Choice::Kvm => session.run(Backend::Kvm(Host::open()?))?,
        Choice::Auto => match Host::open().and_then(|host| session.run(Backend::Kvm(host))) {
            Err(error) if is_kvms_fault(&error) => {
                eprintln!("irqfabric: {error}; the interrupts go to software local APICs instead (sim)");
                session.run(Backend::Sim)?
            }
            result => result?,
        },
    };
    if let Some(recording) = recording {
        recording.finish()?;
    }
    if args.json {
        println!("{}", report.json());
    } else {
        print!("{report}");
    }
    Ok(match report.outcome {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::from(1),
        Outcome::Interrupted => ExitCode::from(130),
    })
}

/// Whether another backend can do what this error prevents.
fn is_kvms_fault(error: &Error) -> bool {
    matches!(error, Error::NoKvm { .. } | Error::Kvm { .. } | Error::Capability { .. } | Error::Fabric(_))
}

/// Whether anybody is there to see a progress bar.
fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}
