//! A virtual machine whose guest does what it is told: accesses of any kind, as only a guest can make them.
//!
//! One vCPU in real mode, interrupts off. DS is based at the window of the chip under test and ES at the local APIC, so
//! that 16-bit offsets reach them. The guest takes its accesses one after the other from a page of memory, answers there,
//! and tells with a port write that it is done.

use crate::common::kvm::open;
use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;
use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use std::array::from_fn;
use std::sync::Arc;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const VECTOR_TABLE: u16 = 0;
const CODE: u16 = 0x1000;
const ACCESSES: u16 = 0x4000;
const ACCESS_SIZE: u16 = 8;
const STACK_END: u16 = 0x8000;
const MEMORY: usize = 0x8000;
const DONE_PORT: u8 = 0xf4;
/// Written after an end of interrupt, which some hosts report to us at the guest's next entry only, and to let an interrupt
/// come, which they inject there.
const ENTRY_PORT: u8 = 0xf5;
const LOCAL_APIC: u64 = 0xfee0_0000;

/// What [`Access::Take`] answers where there was no interrupt to take.
pub const NOTHING: u32 = 0x100;

/// One access of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads at an offset into the window.
    Read(u16, Width),
    /// Writes there.
    Write(u16, Width, u32),
    /// Reads one byte from a port.
    In(u16),
    /// Writes one byte to a port.
    Out(u16, u8),
    /// Writes two bytes to a port.
    OutWord(u16, u16),
    /// Writes zero to the EOI register of the local APIC.
    EndOfInterrupt,
    /// Takes an interrupt: its vector, or [`NOTHING`].
    Take,
}

/// How many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    One,
    Two,
    Four,
}

pub struct Guest {
    pub vm: Arc<VmFd>,
    pub vcpu: VcpuFd,
    memory: GuestMemoryMmap,
    routines: Routines,
}

/// Where the program serves each kind of access.
struct Routines {
    done: u16,
    read: [u16; 3],
    write: [u16; 3],
    inb: u16,
    outb: u16,
    outw: u16,
    end_of_interrupt: u16,
    take: u16,
}

impl Guest {
    /// `prepare` makes the irqchip, before the vCPU.
    pub fn new(window: u64, apic_id: u8, prepare: impl FnOnce(&Arc<VmFd>)) -> Self {
        let vm = Arc::new(open().create_vm().unwrap());
        // Intel processors without unrestricted guest need it for real mode; before the first vCPU.
        vm.set_tss_address(0xfffb_d000).unwrap();
        prepare(&vm);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let region = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: the mapping lives as long as the machine: both are fields of `Guest`.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        let vcpu = vm.create_vcpu(apic_id.into()).unwrap();
        let routines = load(&memory);
        start(&vcpu, window);
        Self { vm, vcpu, memory, routines }
    }

    /// Makes the accesses in order and returns the answer of each; for a write, what was written. `serve` gets the exits.
    pub fn perform(&mut self, accesses: &[Access], mut serve: impl FnMut(VcpuExit<'_>)) -> Vec<u32> {
        let end = ACCESSES + accesses.len() as u16 * ACCESS_SIZE;
        assert!(end + ACCESS_SIZE <= STACK_END - 0x100, "{} accesses are too many at a time", accesses.len());
        let slots = || (ACCESSES..end).step_by(ACCESS_SIZE.into()).map(|slot| GuestAddress(slot.into()));
        for (slot, access) in slots().zip(accesses) {
            self.memory.write_obj(self.routines.encode(*access), slot).unwrap();
        }
        self.memory.write_obj(self.routines.done, GuestAddress(end.into())).unwrap();
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::IoOut(port, _)) if port == u16::from(DONE_PORT) => break,
                Ok(VcpuExit::IoOut(port, _)) if port == u16::from(ENTRY_PORT) => {}
                Ok(exit) => serve(exit),
                Err(error) => assert_eq!(error.errno(), libc::EINTR, "KVM_RUN: {error}"),
            }
        }
        slots().map(|slot| self.memory.read_obj(slot.unchecked_add(4)).unwrap()).collect()
    }

    /// Software INTA: the highest requested vector goes into service, if what is in service lets it. Some hosts end an
    /// interrupt as soon as they inject it: here the guest does, when it is told to.
    pub fn acknowledge(&self) -> Option<u8> {
        let mut lapic = self.vcpu.get_lapic().unwrap();
        let vector = highest(register(&lapic, REQUESTED))?;
        if highest(register(&lapic, IN_SERVICE)).is_some_and(|in_service| in_service >> 4 >= vector >> 4) {
            return None;
        }
        let byte = usize::from(vector >> 5) * 16 + usize::from(vector >> 3 & 3);
        lapic.regs[REQUESTED + byte] &= !(1 << (vector & 7));
        lapic.regs[IN_SERVICE + byte] |= 1 << (vector & 7);
        self.vcpu.set_lapic(&lapic).unwrap();
        Some(vector)
    }

    /// What the local APIC says is requested and in service.
    pub fn local_apic(&self) -> LocalApic {
        let lapic = self.vcpu.get_lapic().unwrap();
        LocalApic { requested: register(&lapic, REQUESTED), in_service: register(&lapic, IN_SERVICE) }
    }
}

/// IRR and ISR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalApic {
    pub requested: [u32; 8],
    pub in_service: [u32; 8],
}

const IN_SERVICE: usize = 0x100;
const REQUESTED: usize = 0x200;

fn register(lapic: &kvm_lapic_state, at: usize) -> [u32; 8] {
    from_fn(|word| u32::from_le_bytes(from_fn(|byte| lapic.regs[at + word * 16 + byte] as u8)))
}

fn highest(register: [u32; 8]) -> Option<u8> {
    let word = register.iter().rposition(|word| *word != 0)?;
    Some(word as u8 * 32 + register[word].ilog2() as u8)
}

impl Routines {
    /// Routine, offset or port, value: as the program reads them.
    fn encode(&self, access: Access) -> u64 {
        let (routine, at, value) = match access {
            Access::Read(offset, width) => (self.read[width as usize], offset, 0),
            Access::Write(offset, width, value) => (self.write[width as usize], offset, value),
            Access::In(port) => (self.inb, port, 0),
            Access::Out(port, value) => (self.outb, port, value.into()),
            Access::OutWord(port, value) => (self.outw, port, value.into()),
            Access::EndOfInterrupt => (self.end_of_interrupt, 0xb0, 0),
            Access::Take => (self.take, 0, 0),
        };
        u64::from(routine) | u64::from(at) << 16 | u64::from(value) << 32
    }
}

/// Puts the program and the interrupt vectors into memory.
fn load(memory: &GuestMemoryMmap) -> Routines {
    let mut a = CodeAssembler::new(16).unwrap();
    let (program, labels) = assemble(&mut a).unwrap();
    let addresses: Vec<u16> = labels.iter().map(|label| program.label_ip(label).unwrap() as u16).collect();
    memory.write_slice(&program.inner.code_buffer, GuestAddress(CODE.into())).unwrap();
    let (routines, handlers) = addresses.split_at(12);
    for (vector, handler) in (0u64..).zip(handlers) {
        // Segment 0.
        memory.write_obj(u32::from(*handler), GuestAddress(u64::from(VECTOR_TABLE) + 4 * vector)).unwrap();
    }
    let [done, r1, r2, r4, w1, w2, w4, inb, outb, outw, end_of_interrupt, take] = routines.try_into().unwrap();
    Routines { done, read: [r1, r2, r4], write: [w1, w2, w4], inb, outb, outw, end_of_interrupt, take }
}

/// The routines in the order of [`load`], then a handler for each of the 256 vectors.
fn assemble(a: &mut CodeAssembler) -> Result<(CodeAssemblerResult, Vec<CodeLabel>), iced_x86::IcedError> {
    let mut labels = Vec::new();
    let here = |a: &mut CodeAssembler| {
        let mut label = a.create_label();
        a.set_label(&mut label).map(|()| label)
    };
    // FS is based at the accesses; SI is where the next one is.
    let (kind, at, value) = (word_ptr(si).fs(), word_ptr(si + 2).fs(), dword_ptr(si + 4).fs());
    let start = here(a)?;
    a.xor(si, si)?;
    let next = here(a)?;
    a.mov(bx, at)?;
    a.mov(dx, bx)?;
    a.mov(eax, value)?;
    a.jmp(kind)?;

    let mut answer = a.create_label();
    let mut advance = a.create_label();
    labels.push(here(a)?);
    a.out(i32::from(DONE_PORT), al)?;
    a.jmp(start)?;
    for width in [1, 2, 4] {
        labels.push(here(a)?);
        a.xor(eax, eax)?;
        match width {
            1 => a.mov(al, byte_ptr(bx))?,
            2 => a.mov(ax, word_ptr(bx))?,
            _ => a.mov(eax, dword_ptr(bx))?,
        }
        a.jmp(answer)?;
    }
    for width in [1, 2, 4] {
        labels.push(here(a)?);
        match width {
            1 => a.mov(byte_ptr(bx), al)?,
            2 => a.mov(word_ptr(bx), ax)?,
            _ => a.mov(dword_ptr(bx), eax)?,
        }
        a.jmp(advance)?;
    }
    labels.push(here(a)?);
    a.in_(al, dx)?;
    a.jmp(answer)?;
    labels.push(here(a)?);
    a.out(dx, al)?;
    a.jmp(advance)?;
    labels.push(here(a)?);
    a.out(dx, ax)?;
    a.jmp(advance)?;
    labels.push(here(a)?);
    a.mov(dword_ptr(bx).es(), eax)?;
    a.out(i32::from(ENTRY_PORT), al)?;
    a.jmp(advance)?;
    labels.push(here(a)?);
    a.sti()?;
    a.nop()?;
    a.out(i32::from(ENTRY_PORT), al)?;
    a.nop()?;
    a.cli()?;
    a.mov(eax, NOTHING)?;

    a.set_label(&mut answer)?;
    a.mov(value, eax)?;
    a.set_label(&mut advance)?;
    a.add(si, i32::from(ACCESS_SIZE))?;
    a.jmp(next)?;

    let mut common = a.create_label();
    for vector in 0..256 {
        labels.push(here(a)?);
        a.mov(ax, vector)?;
        a.jmp(common)?;
    }
    // It does not return: interrupts stay off, and the next is left where it is.
    a.set_label(&mut common)?;
    a.add(sp, 6)?;
    a.movzx(eax, ax)?;
    a.jmp(answer)?;
    let program = a.assemble_options(CODE.into(), BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    Ok((program, labels))
}

/// Real mode, with the local APIC on, and LINT0 taking the interrupts of a PIC.
fn start(vcpu: &VcpuFd, window: u64) {
    let based = |base| kvm_segment {
        base,
        selector: (base >> 4) as u16,
        limit: 0xffff,
        type_: 0x3,
        present: 1,
        s: 1,
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs().unwrap();
    sregs.cs = kvm_segment { type_: 0xb, ..based(0) };
    (sregs.ss, sregs.gs) = (based(0), based(0));
    (sregs.ds, sregs.es, sregs.fs) = (based(window), based(LOCAL_APIC), based(ACCESSES.into()));
    vcpu.set_sregs(&sregs).unwrap();
    // Only the vCPU with id 0 starts without a SIPI.
    vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
    let regs = kvm_regs { rip: CODE.into(), rsp: STACK_END.into(), rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).unwrap();
    let mut lapic = vcpu.get_lapic().unwrap();
    let mut set = |register: usize, value: u32| {
        for (to, from) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
            *to = from as i8;
        }
    };
    set(0xf0, 0x1ff); // Spurious-interrupt vector register: software enable.
    set(0xd0, 1 << 24); // Logical destination register.
    set(0xe0, u32::MAX); // Destination format register: flat.
    set(0x350, 0x700); // LVT LINT0: ExtINT, not masked.
    vcpu.set_lapic(&lapic).unwrap();
}
