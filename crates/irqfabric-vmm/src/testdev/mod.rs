//! `--profile testdev`: the machine that bare-metal interrupt test images expect.
//!
//! Multiboot loading, and the devices that such images (kvm-unit-tests above all, whose `x86/` tests run on QEMU's
//! `-device pc-testdev -device isa-debug-exit`) use to say what they found and to pull interrupt lines themselves. The
//! other CPUs wait for INIT and SIPI, the local APICs are KVM's.

mod fw_cfg;
mod multiboot;
mod ports;

use crate::boot::{Args, GDT};
use crate::error::Error;
use crate::machine::{Machine, cpu};
use vm_memory::{Bytes, GuestAddress};

/// Puts the test devices on the bus.
pub fn attach(machine: &mut Machine, memory: u64, cpus: usize) -> Result<(), Error> {
    fw_cfg::attach(machine, memory, cpus)?;
    ports::attach(machine)
}

/// Loads the image and its modules, and sets the boot processor's registers.
pub fn load(machine: &Machine, args: &Args) -> Result<(), Error> {
    let regs = multiboot::load(machine.memory(), args)?;
    let written = machine.memory().write_obj(cpu::gdt(false), GuestAddress(GDT));
    written.map_err(|_| Error::NoRoom("the segment descriptors"))?;
    cpu::start_protected_mode(&machine.vcpus()[0], GDT, regs)
}
