//! A vCPU of KVM's and the external interrupts that come to it under the split irqchip, by KVM_INTERRUPT.
//!
//! Linux `Documentation/virt/kvm/api.rst`, KVM_INTERRUPT and `struct kvm_run`; `arch/x86/kvm/x86.c`. After each KVM_RUN,
//! `ready_for_interrupt_injection` says whether interrupts are on, no earlier vector waits, and the local APIC lets external
//! interrupts through (`kvm_vcpu_ready_for_interrupt_injection`, `kvm_apic_accept_pic_intr`).
//!
//! **Deviation.** KVM knows one way in, LINT0: also an interrupt by message waits until LVT0 is ExtINT and not masked, or the
//! local APIC is disabled. On silicon a message passes LVT0 by.
//!
//! **The window.** KVM does not open it at an entry that brings a vector along. A second vector that follows without an access to
//! the PIC in between, which takes an automatic end of interrupt, is given at the next exit of any kind, if not at the next
//! window.

use super::super::vcpu::{External, InterruptWindow, Takes, Vcpu};
use crate::chip::lapic::{Address, Mode};
use crate::hv::HvError;
use crate::msg::{Acceptance, DestinationMode};
use kvm_bindings::{KVMIO, kvm_interrupt};
use kvm_ioctls::VcpuFd;
use std::io;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);

/// In `kvm_run.apic_base`, which is IA32_APIC_BASE (Intel SDM vol. 3A, figure 11-5).
const APIC_BASE_BSP: u64 = 1 << 8;
const APIC_BASE_EXTD: u64 = 1 << 10;
const APIC_BASE_ENABLE: u64 = 1 << 11;

/// `linux/errno.h`: a vector waits already.
const EEXIST: i32 = 17;

/// A vCPU that has not run yet says nothing about itself. If it is asked then, its first KVM_RUN returns at once with EINTR
/// (`immediate_exit`), as after a kick, and says everything: also a vCPU that is restored in HLT.
impl Vcpu for VcpuFd {
    fn takes(&mut self, external: &External) -> Result<Takes, HvError> {
        let run = self.get_kvm_run();
        let (base, ready) = (run.apic_base, run.ready_for_interrupt_injection != 0);
        if base == 0 {
            run.immediate_exit = 1;
            return Ok(Takes::Later);
        }
        let addressed = match *external {
            External::Lint0 => base & APIC_BASE_BSP != 0,
            External::Message { destination, destination_mode } => {
                is_destination(self, base, destination, destination_mode)?
            }
        };
        Ok(match (addressed, ready) {
            (false, _) => Takes::Never,
            (true, false) => Takes::Later,
            (true, true) => Takes::Now,
        })
    }

    fn interrupt(&mut self, vector: u8) -> Result<Acceptance, HvError> {
        let answer = match queue_interrupt(self, vector) {
            Ok(()) => Ok(Acceptance::Accepted),
            Err(error) if error.raw_os_error() == Some(EEXIST) => Ok(Acceptance::Refused),
            Err(source) => Err(HvError::Call { call: "KVM_INTERRUPT", source }),
        };
        // One vector waits now. The kernel says so at the next exit only.
        self.get_kvm_run().ready_for_interrupt_injection = 0;
        answer
    }

    fn set_window(&mut self, window: InterruptWindow) {
        self.get_kvm_run().request_interrupt_window = u8::from(window == InterruptWindow::Wanted);
    }
}

/// By one system call.
fn is_destination(vcpu: &VcpuFd, base: u64, destination: u32, mode: DestinationMode) -> Result<bool, HvError> {
    let failed = |errno: kvm_ioctls::Error| HvError::Call { call: "KVM_GET_LAPIC", source: errno.into() };
    let registers = vcpu.get_lapic().map_err(failed)?.regs;
    let register = |offset: usize| u32::from_le_bytes(std::array::from_fn(|byte| registers[offset + byte] as u8));
    let (local_mode, id) = match (base & APIC_BASE_ENABLE != 0, base & APIC_BASE_EXTD != 0) {
        (false, _) => (Mode::Disabled, 0),
        (true, false) => (Mode::Xapic, register(0x20) >> 24),
        // 32 bits of it: KVM_X2APIC_API_USE_32BIT_IDS.
        (true, true) => (Mode::X2apic, register(0x20)),
    };
    let address =
        Address { mode: local_mode, id, logical_destination: register(0xd0), destination_format: register(0xe0) };
    Ok(address.matches(destination, mode))
}

/// KVM_INTERRUPT, which kvm-ioctls has not got.
#[allow(unsafe_code)]
fn queue_interrupt(vcpu: &VcpuFd, vector: u8) -> Result<(), io::Error> {
    let interrupt = kvm_interrupt { irq: vector.into() };
    // SAFETY: the descriptor is a vCPU's for as long as it is borrowed, and KVM_INTERRUPT reads one `struct kvm_interrupt`
    // from the pointer and writes nothing.
    match unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &interrupt) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
