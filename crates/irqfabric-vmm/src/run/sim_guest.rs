//! The test guest without a hypervisor: a thread a vCPU that does what the program in `guest_code` does.
//!
//! The same mailbox, the same handler step by step, the same ports and registers; interrupts come from the software
//! local APICs of [`Sim`], by acknowledge and EOI.

use super::board::{Board, mailbox_address};
use super::control::Early;
use super::guest::{ApicRegisters, Guest, Stopped};
use super::layout::{self, mailbox, source};
use crate::error::Error;
use crate::machine::{Stop, StopSwitch};
use irqfabric::chip::lapic::Lapic;
use irqfabric::hv::Sim;
use irqfabric::hv::sim::Vcpu;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Software vCPUs, running.
pub struct SimGuest {
    sim: Arc<Sim>,
    stop: StopSwitch,
    threads: Vec<JoinHandle<()>>,
}

struct Cpu {
    index: usize,
    sim: Arc<Sim>,
    board: Arc<Board>,
    stop: StopSwitch,
}

impl SimGuest {
    /// Starts a thread for each vCPU. They run until `stop` is thrown.
    pub fn start(sim: Arc<Sim>, board: &Arc<Board>, stop: StopSwitch) -> Result<Self, Error> {
        let mut guest = Self { sim, stop, threads: Vec::new() };
        for index in 0..board.cpus() {
            let (sim, board, stop) = (guest.sim.clone(), board.clone(), guest.stop.clone());
            let cpu = Cpu { index, sim, board, stop };
            let thread = std::thread::Builder::new().name(format!("vcpu {index}")).spawn(move || cpu.run());
            guest.threads.push(thread.map_err(|source| Error::Host { what: "start a thread for a vCPU", source })?);
        }
        Ok(guest)
    }

    fn halt(&mut self, why: Stop) {
        self.stop.throw(why);
        self.sim.vcpus().iter().for_each(Vcpu::wake);
        for thread in self.threads.drain(..) {
            // A panic has been reported on stderr, and shows as a guest that hung.
            let _ = thread.join();
        }
    }
}

impl Guest for SimGuest {
    fn stop(mut self: Box<Self>) -> Stopped {
        self.halt(Stop::Finished);
        let apic = |vcpu: &Vcpu| ApicRegisters::read(|offset| vcpu.with_lapic(|apic| read(apic, offset)));
        let apics = self.sim.vcpus().iter().map(apic).collect();
        Stopped { why: self.stop.wait(), apics, calls: self.sim.calls(), exits: None }
    }
}

impl Drop for SimGuest {
    fn drop(&mut self) {
        self.halt(Stop::Dropped);
    }
}

impl Cpu {
    fn run(self) {
        let sim = self.sim.clone();
        let vcpu = &sim.vcpus()[self.index];
        self.write(layout::APIC_SPURIOUS, layout::APIC_ENABLE);
        self.perform_posted();
        while !self.stop.is_thrown() {
            self.take_interrupts();
            vcpu.wait(Duration::from_secs(1), || self.stop.is_thrown());
        }
    }

    fn take_interrupts(&self) {
        while let Some(vector) = self.acknowledge() {
            match vector {
                layout::PIC_VECTORS..layout::PIC_VECTORS_END | layout::FIRST_VECTOR..layout::END_VECTOR => {
                    self.handler(vector)
                }
                layout::DOORBELL => {
                    self.write(layout::APIC_EOI, 0);
                    self.perform_posted();
                }
                _ => self.out(layout::FAULT_PORT, layout::report(self.index, 0, vector)),
            }
        }
    }

    fn acknowledge(&self) -> Option<u8> {
        let mut vcpu = self.vcpu();
        if let Err(error) = self.board.fabric.before_run(&mut vcpu) {
            self.board.control.end(Early::Failed(format!("vCPU {}: {error}", self.index)));
        }
        vcpu.acknowledge()
    }

    fn perform_posted(&self) {
        let (memory, base) = (&self.board.memory, mailbox_address(self.index));
        if memory.load::<u64>(base + mailbox::POSTED) != memory.load::<u64>(base + mailbox::DONE) {
            let address = memory.load::<u64>(base + mailbox::ADDRESS);
            let value = memory.load::<u32>(base + mailbox::VALUE);
            match memory.load::<u32>(base + mailbox::OPERATION) {
                mailbox::WRITE => self.write(address, value),
                mailbox::OUT => drop(self.board.fabric.pio_write(address as u16, &[value as u8])),
                mailbox::IN => {
                    let mut data = [0xff];
                    self.board.fabric.pio_read(address as u16, &mut data);
                    memory.store(base + mailbox::VALUE, u32::from(data[0]));
                }
                _ => memory.store(base + mailbox::VALUE, self.read(address)),
            }
            memory.store(base + mailbox::DONE, memory.load::<u64>(base + mailbox::POSTED));
        }
        self.out(layout::DONE_PORT, self.index as u32);
    }

    fn handler(&self, vector: u8) {
        let memory = &self.board.memory;
        let mut served = 0;
        for place in 0..layout::SOURCES_PER_VECTOR {
            let entry = u64::from(vector) * layout::SOURCES_PER_VECTOR + place;
            let page: u64 = memory.load(layout::VECTORS + entry * 8);
            if page == 0 {
                continue;
            }
            if memory.load::<u32>(page + source::LEVEL) != 0 {
                if memory.load::<u32>(page + source::STATUS) == 0 {
                    continue;
                }
                self.out(layout::SERVICE_PORT, memory.load(page + source::INDEX));
                served += 1;
            }
            let slot = page + layout::slot(self.index, vector & 1);
            memory.store(slot + source::SEEN, memory.load::<u64>(page + source::SENT));
            memory.store(slot + source::ENTRIES, memory.load::<u64>(slot + source::ENTRIES) + 1);
        }
        self.end_of_interrupt(vector);
        self.out(layout::HANDLED_PORT, layout::report(self.index, served, vector));
    }

    fn end_of_interrupt(&self, vector: u8) {
        let [master, slave] = layout::PIC_COMMAND;
        if vector >= layout::PIC_VECTORS_END {
            return self.write(layout::APIC_EOI, 0);
        }
        if vector >= layout::pic_vector(8) {
            self.board.fabric.pio_write(slave, &[layout::PIC_EOI]);
        }
        self.board.fabric.pio_write(master, &[layout::PIC_EOI]);
    }

    fn out(&self, port: u16, value: u32) {
        self.board.port_write(port, value);
    }

    fn read(&self, address: u64) -> u32 {
        let Some(offset) = within(address, layout::APIC, 0x1000) else {
            let mut data = [0xff; 4];
            self.board.fabric.mmio_read(address, &mut data);
            return u32::from_le_bytes(data);
        };
        self.vcpu().with_lapic(|apic| read(apic, offset))
    }

    fn write(&self, address: u64, value: u32) {
        let data = value.to_le_bytes();
        if let Some(offset) = within(address, layout::APIC, 0x1000) {
            let effect = self.vcpu().with_lapic(|apic| apic.write(offset, &data));
            if let Some(ended) = effect.and_then(|effect| self.sim.perform(self.index, effect)) {
                self.board.fabric.end_of_interrupt(ended);
            }
        } else if let Some(offset) = within(address, layout::DEVICE_WINDOW, layout::DEVICE_WINDOW_SIZE) {
            self.board.register_write(offset, &data);
        } else {
            self.board.fabric.mmio_write(address, &data);
        }
    }

    fn vcpu(&self) -> &Vcpu {
        &self.sim.vcpus()[self.index]
    }
}

fn read(apic: &mut Lapic, offset: u64) -> u32 {
    let mut data = [0; 4];
    apic.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn within(address: u64, base: u64, size: u64) -> Option<u64> {
    address.checked_sub(base).filter(|offset| *offset < size)
}
