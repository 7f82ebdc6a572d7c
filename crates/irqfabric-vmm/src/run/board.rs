//! What surrounds the vCPUs: the fabric, the devices behind ports and registers, and the mailboxes.
//!
//! The vCPUs of KVM and the software ones come here with the same accesses; the script comes here to have the
//! guest do something. A mailbox holds one operation at a time and is used by one thread, the script's.

use super::control::{Control, Early};
use super::layout::{self, mailbox, registers};
use super::memory::GuestMemory;
use super::source::Sources;
use irqfabric::fabric::{Fabric, MsiVectors};
use irqfabric::msg::Masking;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Everything but the vCPUs.
#[derive(Debug)]
pub struct Board {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The interrupt fabric.
    pub fabric: Fabric,
    /// The devices.
    pub sources: Sources,
    /// How the run ends.
    pub control: Control,
    messages: MessageRegisters,
    doorbells: MsiVectors,
    mailboxes: Box<[Mailbox]>,
    /// The indices of the sources that a vector serves.
    by_vector: Vec<Vec<usize>>,
    spurious: AtomicU64,
}

/// The register window of the devices that send messages.
#[derive(Debug)]
struct MessageRegisters {
    vectors: MsiVectors,
    /// The address registers. They take effect with the data.
    addresses: Box<[AtomicU32]>,
}

#[derive(Debug, Default)]
struct Mailbox {
    done: Mutex<u64>,
    changed: Condvar,
}

/// What a vCPU can be asked to do.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// Read 32 bits at an address.
    Read(u64),
    /// Write 32 bits at an address.
    Write(u64, u32),
    /// Read 8 bits from a port.
    In(u16),
    /// Write 8 bits to a port.
    Out(u16, u8),
}

/// The run has failed; why is in its [`Control`].
#[derive(Clone, Copy, Debug)]
pub struct RunFailed;

impl Board {
    /// A board for `cpus` vCPUs. `attached` says which source has which vectors: the table that the handlers go by.
    pub fn new(
        memory: GuestMemory,
        fabric: Fabric,
        sources: Sources,
        messages: MsiVectors,
        attached: &[(u8, usize)],
        cpus: usize,
        control: Control,
    ) -> Self {
        let doorbells = fabric.msi_vectors(irqfabric::msg::RequesterId::default(), cpus);
        for cpu in 0..cpus {
            let address = layout::message_address(cpu) as u64;
            doorbells.program(cpu, address, layout::DOORBELL.into()).expect("there is a doorbell for each vCPU");
        }
        let mut by_vector = vec![Vec::new(); 256];
        for &(vector, index) in attached {
            let sources_of: &mut Vec<usize> = &mut by_vector[usize::from(vector)];
            let place = u64::from(vector) * layout::SOURCES_PER_VECTOR + sources_of.len() as u64;
            memory.store(layout::VECTORS + place * 8, sources[index].page());
            sources_of.push(index);
        }
        let addresses = messages.iter().map(|_| AtomicU32::default()).collect();
        Self {
            memory,
            fabric,
            sources,
            control,
            messages: MessageRegisters { vectors: messages, addresses },
            doorbells,
            mailboxes: (0..cpus).map(|_| Mailbox::default()).collect(),
            by_vector,
            spurious: AtomicU64::new(0),
        }
    }

    /// How many vCPUs it is made for.
    pub fn cpus(&self) -> usize {
        self.mailboxes.len()
    }

    /// How often a level handler found nobody to serve.
    pub fn spurious(&self) -> u64 {
        self.spurious.load(Relaxed)
    }

    // The vCPUs.

    /// A vCPU writes to one of our ports.
    pub fn port_write(&self, port: u16, value: u32) {
        let (cpu, served, vector) = ((value >> 16) as usize, value >> 8 & 0xff, value as u8);
        match port {
            layout::SERVICE_PORT => {
                if let Some(source) = self.sources.get(value as usize) {
                    source.serve();
                }
            }
            layout::HANDLED_PORT => self.handled(cpu, vector, served),
            layout::DONE_PORT => {
                let cpu = value as usize;
                if let Some(mailbox) = self.mailboxes.get(cpu) {
                    mailbox.answer(self.memory.load(mailbox_address(cpu) + mailbox::DONE));
                }
            }
            layout::FAULT_PORT => self.control.end(Early::Failed(format!("vCPU {cpu} hit exception {vector}"))),
            _ => {}
        }
    }

    /// A vCPU writes to the message devices' registers, `offset` into their window. They read as all ones.
    pub fn register_write(&self, offset: u64, data: &[u8]) {
        self.messages.write(offset, data);
    }

    fn handled(&self, cpu: usize, vector: u8, served: u32) {
        let now = Instant::now();
        let attached = &self.by_vector[usize::from(vector)];
        if served == 0 && attached.iter().any(|&index| self.sources[index].is_level()) {
            self.spurious.fetch_add(1, Relaxed);
        }
        for &index in attached {
            self.sources[index].handled(cpu, vector & 1, now);
        }
    }

    // The script.

    /// Has a vCPU perform an operation, and waits until it has.
    pub fn perform(&self, cpu: usize, operation: Operation) -> Result<u32, RunFailed> {
        let (kind, address, value) = match operation {
            Operation::Read(address) => (mailbox::READ, address, 0),
            Operation::Write(address, value) => (mailbox::WRITE, address, value),
            Operation::In(port) => (mailbox::IN, port.into(), 0),
            Operation::Out(port, value) => (mailbox::OUT, port.into(), value.into()),
        };
        let base = mailbox_address(cpu);
        self.memory.store(base + mailbox::OPERATION, kind);
        self.memory.store(base + mailbox::ADDRESS, address);
        self.memory.store(base + mailbox::VALUE, value);
        let posted = self.memory.load::<u64>(base + mailbox::POSTED) + 1;
        self.memory.store(base + mailbox::POSTED, posted);
        self.doorbells[cpu].signal();
        if !self.mailboxes[cpu].wait(posted, &self.control) {
            let patience = self.control.patience().as_secs_f32();
            // Does nothing if that is not what has ended the wait: the first reason stands.
            self.control.end(Early::Failed(format!(
                "vCPU {cpu} hung: it has not performed {operation:x?} within {patience:.0} s"
            )));
            return Err(RunFailed);
        }
        Ok(self.memory.load(base + mailbox::VALUE))
    }
}

/// Where a vCPU's mailbox is.
pub const fn mailbox_address(cpu: usize) -> u64 {
    layout::MAILBOXES + cpu as u64 * layout::MAILBOX_SIZE
}

impl MessageRegisters {
    fn write(&self, offset: u64, data: &[u8]) {
        let (index, register) = ((offset / layout::DEVICE_STRIDE) as usize, offset % layout::DEVICE_STRIDE);
        let (Some(latched), Ok(bytes)) = (self.addresses.get(index), data.try_into()) else { return };
        let value = u32::from_le_bytes(bytes);
        let done = match register {
            registers::ADDRESS => {
                latched.store(value, Relaxed);
                Ok(())
            }
            registers::DATA => self.vectors.program(index, latched.load(Relaxed).into(), value),
            registers::CONTROL => {
                let masked = value & registers::MASKED != 0;
                self.vectors.set_masking([index], if masked { Masking::Masked } else { Masking::Unmasked })
            }
            _ => Ok(()),
        };
        debug_assert!(done.is_ok(), "there is an address register for each vector");
    }
}

impl Mailbox {
    fn answer(&self, done: u64) {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) = done;
        self.changed.notify_one();
    }

    /// Returns whether the answer has come.
    fn wait(&self, posted: u64, control: &Control) -> bool {
        let begun = Instant::now();
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        while *done < posted {
            if control.failed() || begun.elapsed() > control.patience() {
                return false;
            }
            let waited = self.changed.wait_timeout(done, Duration::from_millis(100));
            done = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
