//! The test guest's program, assembled for 64-bit mode.
//!
//! Every vCPU switches its local APIC on and halts: all the rest is done in interrupt handlers, which do not nest. The doorbell's
//! takes an operation from the mailbox, performs it and says so. One handler serves all test vectors. It knows nothing of
//! the scenario: what a vector means stands in a table in memory.
//!
//! Registers for good: RBX the vCPU's mailbox, RDI the offset of its slots in a source's page, R11 its number. A handler gives
//! back what it borrows.

use super::layout::{self, mailbox, source};
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

/// The assembled program.
pub struct GuestCode {
    /// To be put at [`layout::CODE`].
    pub bytes: Vec<u8>,
    /// Where every vCPU starts.
    pub entry: u64,
    /// The handlers by vector.
    pub handlers: Vec<(u8, u64)>,
}

/// Assembles the program.
pub fn assemble() -> Result<GuestCode, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    // Without its local APIC a vCPU would never wake from its first HLT. What was posted before this, with a doorbell that
    // nobody heard, is performed right away.
    a.mov(edx, layout::APIC_SPURIOUS as u32)?;
    a.mov(eax, layout::APIC_ENABLE)?;
    a.mov(dword_ptr(rdx), eax)?;
    let mut perform = a.create_label();
    a.call(perform)?;
    a.sti()?;
    let idle = label_here(&mut a)?;
    a.hlt()?;
    a.jmp(idle)?;
    a.set_label(&mut perform)?;
    perform_posted(&mut a)?;

    let mut labels = Vec::new();
    for exception in 0..32u8 {
        labels.push((exception, label_here(&mut a)?));
        fault(&mut a, exception)?;
    }
    let mut common = a.create_label();
    for vector in (layout::PIC_VECTORS..layout::PIC_VECTORS_END).chain(layout::FIRST_VECTOR..layout::END_VECTOR) {
        labels.push((vector, label_here(&mut a)?));
        a.push(i32::from(vector))?;
        a.jmp(common)?;
    }
    a.set_label(&mut common)?;
    handler(&mut a)?;

    labels.push((layout::DOORBELL, label_here(&mut a)?));
    doorbell(&mut a, perform)?;
    // A spurious interrupt has no in-service bit and gets no EOI (SDM vol. 3A, 11.9).
    labels.push((layout::SPURIOUS, label_here(&mut a)?));
    a.iretq()?;

    let result = a.assemble_options(layout::CODE, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let handlers = labels.iter().map(|(vector, label)| Ok((*vector, result.label_ip(label)?)));
    Ok(GuestCode {
        entry: layout::CODE,
        handlers: handlers.collect::<Result<_, IcedError>>()?,
        bytes: result.inner.code_buffer,
    })
}

fn label_here(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let mut label = a.create_label();
    a.set_label(&mut label)?;
    Ok(label)
}

/// A subroutine: performs the operation in the mailbox, if there is one. Changes RAX and RDX.
fn perform_posted(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut write, mut done, mut tell) = (a.create_label(), a.create_label(), a.create_label());
    let (mut input, mut output, mut answer) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rax, qword_ptr(rbx + mailbox::POSTED))?;
    a.cmp(rax, qword_ptr(rbx + mailbox::DONE))?;
    a.je(tell)?;
    a.mov(rdx, qword_ptr(rbx + mailbox::ADDRESS))?;
    a.cmp(dword_ptr(rbx + mailbox::OPERATION), mailbox::WRITE)?;
    a.je(write)?;
    a.cmp(dword_ptr(rbx + mailbox::OPERATION), mailbox::IN)?;
    a.je(input)?;
    a.cmp(dword_ptr(rbx + mailbox::OPERATION), mailbox::OUT)?;
    a.je(output)?;
    a.mov(eax, dword_ptr(rdx))?;
    a.set_label(&mut answer)?;
    a.mov(dword_ptr(rbx + mailbox::VALUE), eax)?;
    a.jmp(done)?;
    a.set_label(&mut input)?;
    a.xor(eax, eax)?;
    a.in_(al, dx)?;
    a.jmp(answer)?;
    a.set_label(&mut output)?;
    a.mov(eax, dword_ptr(rbx + mailbox::VALUE))?;
    a.out(dx, al)?;
    a.jmp(done)?;
    a.set_label(&mut write)?;
    a.mov(eax, dword_ptr(rbx + mailbox::VALUE))?;
    a.mov(dword_ptr(rdx), eax)?;
    a.set_label(&mut done)?;
    a.mov(rax, qword_ptr(rbx + mailbox::POSTED))?;
    a.mov(qword_ptr(rbx + mailbox::DONE), rax)?;
    a.set_label(&mut tell)?;
    a.mov(eax, r11d)?;
    a.out(u32::from(layout::DONE_PORT), eax)?;
    a.ret()
}

/// The handler of every test vector, entered with the vector on top of the interrupt frame.
fn handler(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let saved = [rax, rcx, rdx, rsi, r8, r9, r10];
    let (mut next, mut record, mut skip) = (a.create_label(), a.create_label(), a.create_label());
    for register in saved {
        a.push(register)?;
    }
    a.mov(r10, qword_ptr(rsp + 8 * saved.len() as u64))?;
    // r9: this vCPU's slot for vectors of this parity.
    a.mov(r9, r10)?;
    a.and(r9d, 1)?;
    a.imul_3(r9, r9, source::SLOT_SIZE as i32)?;
    a.add(r9, rdi)?;
    // rsi: the vector's sources; ecx: level devices served; edx: how many are still to be looked at.
    a.imul_3(rsi, r10, 8 * layout::SOURCES_PER_VECTOR as i32)?;
    a.add(rsi, layout::VECTORS as i32)?;
    a.xor(ecx, ecx)?;
    a.mov(edx, layout::SOURCES_PER_VECTOR as u32)?;

    a.set_label(&mut next)?;
    a.mov(r8, qword_ptr(rsi))?;
    a.test(r8, r8)?;
    a.je(skip)?;
    a.cmp(dword_ptr(r8 + source::LEVEL), 0)?;
    a.je(record)?;
    a.cmp(dword_ptr(r8 + source::STATUS), 0)?;
    a.je(skip)?;
    // Service first, then read the number: what is sent after the service raises the line again. The line is low, as
    // far as this device goes, before the EOI.
    a.mov(eax, dword_ptr(r8 + source::INDEX))?;
    a.out(u32::from(layout::SERVICE_PORT), eax)?;
    a.inc(ecx)?;
    a.set_label(&mut record)?;
    a.mov(rax, qword_ptr(r8 + source::SENT))?;
    a.mov(qword_ptr(r8 + r9 + (source::SLOTS + source::SEEN)), rax)?;
    a.add(qword_ptr(r8 + r9 + (source::SLOTS + source::ENTRIES)), 1)?;
    a.set_label(&mut skip)?;
    a.add(rsi, 8)?;
    a.dec(edx)?;
    a.jne(next)?;

    let (mut pic, mut ended) = (a.create_label(), a.create_label());
    a.cmp(r10d, u32::from(layout::PIC_VECTORS_END))?;
    a.jb(pic)?;
    end_of_interrupt(a)?;
    a.jmp(ended)?;
    a.set_label(&mut pic)?;
    end_of_pic_interrupt(a)?;
    a.set_label(&mut ended)?;
    // Last of all a port write: some hosts report the end of interrupt only at the guest's next entry or exit, and
    // never after HLT.
    a.mov(eax, r11d)?;
    a.shl(eax, 8)?;
    a.or(eax, ecx)?;
    a.shl(eax, 8)?;
    a.or(eax, r10d)?;
    a.out(u32::from(layout::HANDLED_PORT), eax)?;
    for register in saved.into_iter().rev() {
        a.pop(register)?;
    }
    a.add(rsp, 8)?;
    a.iretq()
}

/// No other handler is under way where this one runs: what it finds ended has been handled.
fn doorbell(a: &mut CodeAssembler, perform: CodeLabel) -> Result<(), IcedError> {
    a.push(rax)?;
    a.push(rdx)?;
    end_of_interrupt(a)?;
    a.call(perform)?;
    a.pop(rdx)?;
    a.pop(rax)?;
    a.iretq()
}

/// Changes EAX's upper half and RDX.
fn end_of_interrupt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, layout::APIC_EOI as u32)?;
    a.xor(eax, eax)?;
    a.mov(dword_ptr(rdx), eax)
}

/// The PIC's, of the vector in R10. Of the default IR7 too: handlers do not nest, so nothing else can be in service. Changes AL.
fn end_of_pic_interrupt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let [master, slave] = layout::PIC_COMMAND.map(u32::from);
    let mut on_master = a.create_label();
    a.mov(eax, u32::from(layout::PIC_EOI))?;
    a.cmp(r10d, u32::from(layout::pic_vector(8)))?;
    a.jb(on_master)?;
    a.out(slave, al)?;
    a.set_label(&mut on_master)?;
    a.out(master, al)
}

fn fault(a: &mut CodeAssembler, exception: u8) -> Result<(), IcedError> {
    let mut forever = a.create_label();
    a.mov(eax, r11d)?;
    a.shl(eax, 16)?;
    a.or(eax, i32::from(exception))?;
    a.out(u32::from(layout::FAULT_PORT), eax)?;
    a.set_label(&mut forever)?;
    a.cli()?;
    a.hlt()?;
    a.jmp(forever)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_fits_and_every_vector_in_use_has_a_handler() {
        let code = assemble().unwrap();
        assert!(layout::CODE + code.bytes.len() as u64 <= layout::VECTORS);
        for vector in (0..32).chain(layout::FIRST_VECTOR..layout::END_VECTOR).chain([layout::DOORBELL]) {
            let (_, address) = code.handlers.iter().find(|(handled, _)| *handled == vector).unwrap();
            assert!((layout::CODE..layout::VECTORS).contains(address));
        }
    }
}
