//! The test guest on KVM: the program of `guest_code` in 64-bit mode, on a [`Machine`] with the board on its bus.
//!
//! All vCPUs start at the same place, each with its number, its mailbox and its slots in registers. They need no SIPI: a
//! vCPU is put into the state in which it would be afterwards (KVM_SET_MP_STATE).

use super::board::{Board, mailbox_address};
use super::guest::{ApicRegisters, Guest, Stopped};
use super::guest_code::{self, GuestCode};
use super::layout;
use super::memory::GuestMemory;
use super::script::Begins;
use crate::error::Error;
use crate::machine::{Config, Exits, Host, Irqchip, Machine, Running, Stop, StopSwitch, cpu};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::Promotion;
use irqfabric::record::Recorder;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_lapic_state, kvm_mp_state, kvm_regs};
use std::sync::Arc;
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

/// A machine whose guest runs.
pub struct KvmGuest {
    running: Running,
    stop: StopSwitch,
}

/// Makes the machine, without its board yet: its fabric and memory are what the board is made of.
pub fn machine(host: &Host, cpus: usize, begins: Begins, recorder: Option<&Recorder>) -> Result<Machine, Error> {
    let irqchip = match begins {
        Begins::WithIoapic => Irqchip::Split(vec![Ioapic::default()]),
        Begins::WithPic => Irqchip::SplitWithPic(vec![Ioapic::default()]),
    };
    let (apic_ids, promotion) = ((0..cpus as u32).collect(), Promotion::default());
    let config = Config { memory: layout::MEMORY, apic_ids, irqchip, promotion, vtd: None };
    Machine::new(host, &config, recorder)
}

impl KvmGuest {
    /// Puts the program into memory and starts the vCPUs.
    pub fn start(mut machine: Machine, board: &Arc<Board>) -> Result<Self, Error> {
        let code = guest_code::assemble()
            .map_err(|error| Error::Options(format!("the test guest cannot be assembled: {error}")))?;
        load(&board.memory, &code);
        for (index, vcpu) in machine.vcpus().iter().enumerate() {
            let regs = kvm_regs {
                rip: code.entry,
                rsp: layout::STACKS + (index as u64 + 1) * layout::STACK_SIZE,
                rbx: mailbox_address(index),
                rdi: index as u64 * 2 * layout::source::SLOT_SIZE,
                r11: index as u64,
                ..Default::default()
            };
            cpu::start_long_mode(vcpu, layout::GDT, layout::PAGE_TABLES, regs)?;
            let mut sregs = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
            (sregs.idt.base, sregs.idt.limit) = (layout::IDT, 0xfff);
            vcpu.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
            let runnable = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
            vcpu.set_mp_state(runnable).map_err(Error::kvm("KVM_SET_MP_STATE"))?;
        }
        machine.register_pio(layout::PORTS.0, layout::PORTS.1, board.clone())?;
        machine.register_mmio(layout::DEVICE_WINDOW, layout::DEVICE_WINDOW_SIZE, board.clone())?;
        let stop = machine.stop_switch().clone();
        Ok(Self { running: machine.start()?, stop })
    }
}

impl Guest for KvmGuest {
    fn stop(self: Box<Self>) -> Stopped {
        let Self { running, stop } = *self;
        stop.throw(Stop::Finished);
        let stopped = running.wait();
        let apic = |lapic: &Option<kvm_lapic_state>| lapic.as_ref().map(registers).unwrap_or_default();
        Stopped {
            why: stopped.stop,
            apics: stopped.lapics.iter().map(apic).collect(),
            calls: stopped.calls,
            exits: Some(Exits::total(&stopped.exits)),
        }
    }
}

fn registers(lapic: &kvm_lapic_state) -> ApicRegisters {
    ApicRegisters::read(|offset| {
        let offset = offset as usize;
        u32::from_le_bytes(std::array::from_fn(|byte| lapic.regs[offset + byte] as u8))
    })
}

impl DevicePio for Board {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {}

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let Ok(bytes) = data.try_into() {
            self.port_write(base.0 + offset, u32::from_le_bytes(bytes));
        }
    }
}

impl DeviceMmio for Board {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, _: &mut [u8]) {}

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.register_write(offset, data);
    }
}

/// Program, page tables and descriptors.
fn load(memory: &GuestMemory, code: &GuestCode) {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    memory.put(layout::CODE, &code.bytes);
    let page = |index: u64| layout::PAGE_TABLES + index * 0x1000;
    memory.store(page(0), page(1) | PRESENT_WRITABLE);
    for gibibyte in 0..4 {
        memory.store(page(1) + gibibyte * 8, page(2 + gibibyte) | PRESENT_WRITABLE);
    }
    for large_page in 0..4 * 512 {
        memory.store(page(2) + large_page * 8, large_page << 21 | LARGE | PRESENT_WRITABLE);
    }
    for (index, descriptor) in (0..).zip(cpu::gdt(true)) {
        memory.store(layout::GDT + index * 8, descriptor);
    }
    for &(vector, handler) in &code.handlers {
        let [low, high] = gate(handler);
        memory.store(layout::IDT + u64::from(vector) * 16, low);
        memory.store(layout::IDT + u64::from(vector) * 16 + 8, high);
    }
}

/// A 64-bit interrupt gate (SDM vol. 3A, figure 7-8): interrupts stay off in the handler.
fn gate(handler: u64) -> [u64; 2] {
    const CODE_SELECTOR: u64 = 2 * 8;
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e00;
    let low = handler & 0xffff | CODE_SELECTOR << 16 | PRESENT_INTERRUPT_GATE << 32 | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}
