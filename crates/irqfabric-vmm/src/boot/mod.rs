//! `irqfabric boot`: boots a stock Linux kernel, or with `--profile testdev` a bare-metal test image.
//!
//! The machine has no firmware, no PIC that the guest would need and no PIT: local APICs with the TSC-deadline timer,
//! IOAPICs, a serial port, virtio disks by themselves or on a PCI bus, and hardware-reduced ACPI tables that say so. With
//! `--pic` it has a PIC as well, and tables that say that.

mod acpi;
mod attach;
mod disks;
mod firmware;
mod layout;
mod linux;
mod options;
mod report;

pub use options::Args;

use crate::devices::console::Console;
use crate::devices::power;
use crate::devices::serial::{self, SerialPort};
use crate::error::Error;
use crate::machine::{Config, Host, Irqchip, Machine, Stop, Stopped};
use crate::record::Recording;
use crate::testdev;
use attach::Attached;
use disks::Disks;
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::msg::RequesterId;
use options::{IrqchipKind, Legacy, Profile};
use report::Report;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::process::ExitCode;
use std::sync::Arc;

/// Boots, runs to the end, and reports.
pub fn main(args: &Args) -> Result<ExitCode, Error> {
    let apic_ids = args.apic_ids()?;
    let disks = Disks::plan(&args.disk, &args.vfio, args.irqchip, args.legacy(), apic_ids.len())?;
    attach::check(&disks)?;
    let vtd = args.vtd()?;
    let host = Host::open()?;
    let ioapics = || (0..disks.ioapics()).map(ioapic).collect();
    let irqchip = match (args.irqchip, args.legacy()) {
        (IrqchipKind::Split, Legacy::None) => Irqchip::Split(ioapics()),
        (IrqchipKind::Split, Legacy::Pic) => Irqchip::SplitWithPic(ioapics()),
        (IrqchipKind::Kernel, _) => Irqchip::Kernel,
    };
    let (memory, promotion) = (args.memory.0, args.promotion.into());
    let config = Config { memory, apic_ids: apic_ids.clone(), irqchip, promotion, vtd };
    let recording = Recording::start(args.record.as_deref())?;
    let mut machine = Machine::new(&host, &config, recording.as_ref().map(Recording::recorder))?;

    let serial = Arc::new(SerialPort::new(machine.fabric().line(serial::COM1_GSI)?.source("serial")));
    machine.register_pio(serial::COM1, serial::PORTS, serial.clone())?;
    if args.irqchip == IrqchipKind::Kernel && args.legacy() == Legacy::None {
        firmware::silence_pic(machine.vm())?;
    }
    let mut attached = Attached::default();
    match args.profile {
        Profile::Linux => {
            power::attach(&mut machine)?;
            attached = attach::attach(&disks, &mut machine)?;
            firmware::install_reset_vector(machine.memory())?;
            let (legacy, ioapics) = (args.legacy(), acpi::ioapics(&machine));
            let tables = acpi::Tables { apic_ids: &apic_ids, ioapics: &ioapics, disks: &disks, remapping: vtd, legacy };
            let rsdp = tables.write(machine.memory())?;
            linux::load(&machine, args, rsdp)?;
        }
        Profile::Testdev => {
            testdev::attach(&mut machine, args.memory.0, apic_ids.len())?;
            testdev::load(&machine, &args.image())?;
        }
    }
    let target = args.report.as_deref().map(report::Target::create).transpose()?;
    let stopped = run(machine, serial)?;
    // What is still attached does nothing any more: the vCPUs have stopped.
    let recorded = recording.map_or(Ok(()), Recording::finish);
    let report = Report::new(args.irqchip, &apic_ids, &stopped, &attached);
    eprint!("{report}");
    if let Stop::Crash(crash) = &stopped.stop {
        eprint!("{}", report::PostMortem(crash));
    }
    if let Some(mut target) = target {
        report.write(&mut target)?;
    }
    recorded?;
    Ok(exit_code(&stopped.stop))
}

/// Who sends its messages is a function of its own on a bus that has nothing else: the one by which a DMAR table names it.
fn ioapic(id: u8) -> Ioapic {
    Ioapic::default().with_id(id).with_requester(RequesterId::new(layout::CHIPSET_BUS, id, 0))
}

/// Runs it with a console and with signals that end it in good order. Whatever happens, the terminal is given back.
fn run(machine: Machine, serial: Arc<SerialPort>) -> Result<Stopped, Error> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])
        .map_err(|source| Error::Host { what: "install signal handlers", source })?;
    let (handle, stop) = (signals.handle(), machine.stop_switch().clone());
    let listen = move || {
        if let Some(signal) = signals.forever().next() {
            stop.throw(Stop::Signal(signal));
        }
    };
    let listener = std::thread::Builder::new().name("signals".into());
    listener.spawn(listen).map_err(|source| Error::Host { what: "start a thread for signals", source })?;
    let console = Console::start(serial, machine.stop_switch().clone())?;
    let stopped = machine.start()?.wait();
    drop(console);
    handle.close();
    Ok(stopped)
}

/// 0 for an end that the guest meant, 1 for one that it did not; a test image says it itself, as QEMU's isa-debug-exit
/// has it; a signal gives what a shell expects.
fn exit_code(stop: &Stop) -> ExitCode {
    match stop {
        Stop::PowerOff | Stop::Reset | Stop::Finished => ExitCode::SUCCESS,
        Stop::DebugExit(value) => ExitCode::from((value << 1 | 1) as u8),
        Stop::Signal(number) => ExitCode::from(128 | *number as u8),
        Stop::Crash(_) | Stop::ThreadLost | Stop::Dropped => ExitCode::FAILURE,
    }
}
