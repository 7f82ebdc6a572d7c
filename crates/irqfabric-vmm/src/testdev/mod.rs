//! `--profile testdev`: the machine that bare-metal interrupt test images expect.
//!
//! Multiboot loading, and the devices that such images (kvm-unit-tests above all, whose `x86/` tests run on QEMU's
//! `-device pc-testdev -device isa-debug-exit`) use to say what they found and to pull interrupt lines themselves. The
//! other CPUs wait for INIT and SIPI, the local APICs are KVM's.

mod fw_cfg;
mod multiboot;
mod ports;

use crate::error::Error;
use crate::machine::{Machine, cpu};
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress};

/// Where the descriptors of the start segments are.
const GDT: u64 = 0x500;

/// What is to run.
#[derive(Debug)]
pub struct Image<'a> {
    /// The multiboot image.
    pub path: &'a Path,
    /// Its modules.
    pub modules: Vec<PathBuf>,
    /// What its command line has behind its name.
    pub arguments: Option<&'a str>,
    /// Bytes of memory that the machine has.
    pub memory: u64,
}

/// Puts the test devices on the bus.
pub fn attach(machine: &mut Machine, memory: u64, cpus: usize) -> Result<(), Error> {
    fw_cfg::attach(machine, memory, cpus)?;
    ports::attach(machine)
}

/// Loads the image and its modules, and sets the boot processor's registers.
pub fn load(machine: &Machine, image: &Image<'_>) -> Result<(), Error> {
    let regs = multiboot::load(machine.memory(), image)?;
    let written = machine.memory().write_obj(cpu::gdt(false), GuestAddress(GDT));
    written.map_err(|_| Error::NoRoom("the segment descriptors"))?;
    cpu::start_protected_mode(&machine.vcpus()[0], GDT, regs)
}
