//! A vCPU's thread: runs it, hands what it comes out for to the bus or the fabric, and counts.
//!
//! KVM hands over a string instruction's accesses to a port together, and kvm-ioctls does not say how wide each was: they go
//! on as one access. No driver of a device here makes such.
//!
//! Whatever is not there reads as all ones and swallows writes without a word: guests probe. What no guest can go on
//! from (triple fault, an instruction that KVM cannot emulate, a failed entry) throws the stop switch with a [`Crash`].

use super::exits::{Exit, ExitKind, Exits};
use super::kick::{Kickable, Kicker};
use super::stop::{Stop, StopSwitch};
use irqfabric::fabric::Fabric;
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_lapic_state, kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Arc;
use std::time::Instant;
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};

/// What a vCPU's thread shares with the others.
pub struct Context {
    pub apic_id: u32,
    pub bus: Arc<IoManager>,
    pub fabric: Fabric,
    pub kicker: Arc<Kicker>,
    pub stop: StopSwitch,
}

/// The end of a vCPU, and what it looked like.
#[derive(Clone, Debug)]
pub struct Crash {
    /// Whose.
    pub apic_id: u32,
    /// What happened, in words.
    pub what: String,
    /// General registers, if KVM still gives them.
    pub regs: Option<kvm_regs>,
    /// Segments and control registers.
    pub sregs: Option<kvm_sregs>,
    /// The last exits before it, oldest first.
    pub last: Vec<Exit>,
}

impl Crash {
    /// Whether the registers are those of a processor after reset: all that kvm_amd leaves of one that triple-faults
    /// (Linux `arch/x86/kvm/svm/svm.c`, shutdown_interception).
    pub fn was_reset(&self) -> bool {
        const RESET_VECTOR: (u64, u64) = (0xffff_0000, 0xfff0);
        match (&self.regs, &self.sregs) {
            (Some(regs), Some(sregs)) => (sregs.cs.base, regs.rip) == RESET_VECTOR,
            _ => false,
        }
    }
}

/// What to do after an exit.
enum Then {
    GoOn,
    Stop(Stop),
    Crash(String),
}

/// Runs until the stop switch is thrown, by this vCPU or another. Leaves its local APIC's registers, if KVM still gives them.
pub fn run(mut vcpu: VcpuFd, context: &Context) -> (Exits, Option<kvm_lapic_state>) {
    // Also when a device panics: the others must not wait for ever. Too late to matter in the orderly case.
    let _lost = ThrowOnDrop(&context.stop);
    let mut exits = Exits::default();
    let crash = {
        let mut kickable = Kickable::new(&mut vcpu, context.apic_id, &context.kicker);
        loop {
            if context.stop.is_thrown() {
                break None;
            }
            if let Err(error) = context.fabric.before_run(kickable.vcpu()) {
                break Some(error.to_string());
            }
            let answer = kickable.vcpu().run();
            let began = Instant::now();
            let (exit, then) = context.handle(answer);
            exits.note(exit, began.elapsed());
            tracing::trace!(target: "irqfabric::exits", "{exit}");
            match then {
                // A kick must not turn every further entry away. Cleared before whatever it was for is looked at.
                Then::GoOn if exit.kind == ExitKind::Interrupted => kickable.vcpu().set_kvm_immediate_exit(0),
                Then::GoOn => {}
                Then::Stop(why) => context.stop.throw(why),
                Then::Crash(what) => break Some(what),
            }
        }
    };
    if let Some(what) = crash {
        let last = exits.last().copied().collect();
        let (regs, sregs) = (vcpu.get_regs().ok(), vcpu.get_sregs().ok());
        context.stop.throw(Stop::Crash(Box::new(Crash { apic_id: context.apic_id, what, regs, sregs, last })));
    }
    (exits, vcpu.get_lapic().ok())
}

struct ThrowOnDrop<'a>(&'a StopSwitch);

impl Drop for ThrowOnDrop<'_> {
    fn drop(&mut self) {
        self.0.throw(Stop::ThreadLost);
    }
}

impl Context {
    fn handle(&self, answer: Result<VcpuExit<'_>, kvm_ioctls::Error>) -> (Exit, Then) {
        let other = |what: String| (Exit::bare(ExitKind::Other, 0), Then::Crash(what));
        match answer {
            Ok(VcpuExit::IoOut(port, data)) => {
                if !self.fabric.pio_write(port, data) {
                    let _nobody = self.bus.pio_write(PioAddress(port), data);
                }
                (Exit::access(ExitKind::PioWrite, port.into(), data), Then::GoOn)
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                data.fill(0xff);
                if !self.fabric.pio_read(port, data) {
                    let _nobody = self.bus.pio_read(PioAddress(port), data);
                }
                (Exit::access(ExitKind::PioRead, port.into(), data), Then::GoOn)
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                if !self.fabric.mmio_write(address, data) {
                    let _nobody = self.bus.mmio_write(MmioAddress(address), data);
                }
                (Exit::access(ExitKind::MmioWrite, address, data), Then::GoOn)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                data.fill(0xff);
                if !self.fabric.mmio_read(address, data) {
                    let _nobody = self.bus.mmio_read(MmioAddress(address), data);
                }
                (Exit::access(ExitKind::MmioRead, address, data), Then::GoOn)
            }
            // On this thread and before the vCPU runs again: Linux commit 7543a635.
            Ok(VcpuExit::IoapicEoi(vector)) => {
                self.fabric.end_of_interrupt(vector);
                (Exit::bare(ExitKind::IoapicEoi, vector.into()), Then::GoOn)
            }
            // The fabric looks again before the vCPU runs.
            Ok(VcpuExit::IrqWindowOpen) => (Exit::bare(ExitKind::IrqWindow, 0), Then::GoOn),
            Ok(VcpuExit::Intr) => (Exit::bare(ExitKind::Interrupted, 0), Then::GoOn),
            // EAGAIN: a vCPU that waited for its SIPI was woken.
            Err(errno) if [libc::EINTR, libc::EAGAIN].contains(&errno.errno()) => {
                (Exit::bare(ExitKind::Interrupted, 0), Then::GoOn)
            }
            Ok(VcpuExit::SystemEvent(kind, _)) => {
                let stop = match kind {
                    KVM_SYSTEM_EVENT_SHUTDOWN => Then::Stop(Stop::PowerOff),
                    KVM_SYSTEM_EVENT_RESET => Then::Stop(Stop::Reset),
                    _ => Then::Crash(format!("system event {kind}")),
                };
                (Exit::bare(ExitKind::Other, kind.into()), stop)
            }
            Ok(VcpuExit::Shutdown) => other("triple fault".into()),
            Ok(VcpuExit::InternalError) => other("KVM could not go on (emulation error)".into()),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                other(format!("the processor refused to enter the guest: {reason:#x}"))
            }
            Ok(VcpuExit::MemoryFault { gpa, .. }) => other(format!("memory fault at {gpa:#x}")),
            Ok(exit) => other(format!("unexpected exit {exit:?}")),
            Err(errno) => other(format!("KVM_RUN: {errno}")),
        }
    }
}
