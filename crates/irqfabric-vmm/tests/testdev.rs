//! `irqfabric boot --profile testdev` runs a bare-metal image that uses everything the profile has.
//!
//! The image is assembled here: a 32-bit multiboot ELF that prints its command line, its module and what fw_cfg says,
//! takes a level and an edge interrupt that it pulls itself, starts the other CPUs by INIT and SIPI, and leaves by
//! isa-debug-exit. Each step that fails leaves with a value of its own, [`Step`].
//!
//! It takes a stock KVM: kvm_pvm fails at IRETD, at the end of the first interrupt in 32-bit protected mode. So the tests
//! are ignored unless asked for, and the testbed asks for them. IRQFABRIC in the environment names another binary to
//! test: so this program can be taken, statically linked, to where stock KVM is.

use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Where the image is linked, and how far its code is behind the multiboot header.
const BASE: u64 = 0x10_0000;
const HEADER_SIZE: u64 = 12;

const COM1: u32 = 0x3f8;
const DEBUG_EXIT: u32 = 0xf4;
const FW_CFG: u32 = 0x510;
const LINES: u32 = 0x2000;
const LEVEL_LINE: u32 = 9;
const EDGE_LINE: u32 = 10;
const LEVEL_VECTOR: u32 = 0x40;
const EDGE_VECTOR: u32 = 0x41;

const IOAPIC_INDEX: u32 = 0xfec0_0000;
const IOAPIC_DATA: u32 = 0xfec0_0010;
const APIC_EOI: u32 = 0xfee0_00b0;
const APIC_SPURIOUS: u32 = 0xfee0_00f0;
const APIC_COMMAND: u32 = 0xfee0_0300;

/// Low memory that the image uses for itself.
const GDT: u32 = 0x4000;
const TABLE_POINTER: u32 = 0x4100;
const IDT: u32 = 0x5000;
const STACK_END: u32 = 0x7000;
const TRAMPOLINE: u32 = 0x8000;
const LEVEL_COUNT: u32 = 0x9000;
const EDGE_COUNT: u32 = 0x9004;
const STARTED: u32 = 0x9008;
const CPUS: u32 = 0x900c;

/// What the image leaves with: `Done`, or the step that failed.
#[derive(Clone, Copy)]
enum Step {
    Magic = 1,
    LevelInterrupt = 2,
    EdgeInterrupt = 3,
    OtherCpus = 4,
    Done = 0x10,
}

/// The image's code, at [`BASE`] + [`HEADER_SIZE`]. In 32-bit code a label's address can only be had from the assembled
/// whole: the first pass tells where the handlers are, the second knows.
fn code() -> Result<Vec<u8>, IcedError> {
    let (_, handlers) = assemble([u32::MAX; 2])?;
    Ok(assemble(handlers)?.0)
}

/// The code, and where the two handlers came to be in it.
fn assemble(handlers: [u32; 2]) -> Result<(Vec<u8>, [u32; 2]), IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let [mut put, mut put_string, mut hex, mut leave] = std::array::from_fn(|_| a.create_label());
    let [mut level_handler, mut edge_handler] = std::array::from_fn(|_| a.create_label());

    a.mov(esp, STACK_END)?;
    a.mov(ebp, ebx)?; // the multiboot information
    a.mov(edi, Step::Magic as u32)?;
    a.cmp(eax, 0x2bad_b002u32 as i32)?;
    a.jne(leave)?;

    // Command line and module, as they came.
    a.mov(esi, dword_ptr(ebp + 16))?;
    a.call(put_string)?;
    a.mov(ebx, dword_ptr(ebp + 24))?; // the first module: start, end
    a.mov(esi, dword_ptr(ebx))?;
    let (mut next, mut end) = (a.create_label(), a.create_label());
    a.set_label(&mut next)?;
    a.cmp(esi, dword_ptr(ebx + 4))?;
    a.jae(end)?;
    a.lodsb()?;
    a.call(put)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;

    // fw_cfg: the signature as text, memory size and CPU count as bytes in hexadecimal.
    for (key, length, text) in [(0, 4, true), (3, 8, false), (5, 2, false)] {
        a.mov(dx, FW_CFG)?;
        a.mov(ax, key)?;
        a.out(dx, ax)?;
        for byte in 0..length {
            a.mov(dx, FW_CFG + 1)?;
            a.in_(al, dx)?;
            if key == 5 {
                a.mov(byte_ptr(CPUS + byte), al)?;
            }
            a.call(if text { put } else { hex })?;
        }
        a.mov(al, u32::from(b'\n'))?;
        a.call(put)?;
    }

    // Descriptor tables of its own, as the specification wants it: code 0x10, data 0x18.
    for (index, descriptor) in [(2, 0x00cf_9b00_0000_ffffu64), (3, 0x00cf_9300_0000_ffff)] {
        a.mov(dword_ptr(GDT + index * 8), descriptor as u32)?;
        a.mov(dword_ptr(GDT + index * 8 + 4), (descriptor >> 32) as u32)?;
    }
    a.mov(word_ptr(TABLE_POINTER), 31)?;
    a.mov(dword_ptr(TABLE_POINTER + 2), GDT)?;
    a.lgdt(fword_ptr(TABLE_POINTER))?;
    for (vector, handler) in [LEVEL_VECTOR, EDGE_VECTOR].into_iter().zip(handlers) {
        a.mov(dword_ptr(IDT + vector * 8), handler & 0xffff | 0x10 << 16)?;
        a.mov(dword_ptr(IDT + vector * 8 + 4), handler & 0xffff_0000 | 0x8e00)?;
    }
    a.mov(word_ptr(TABLE_POINTER), 0x7ff)?;
    a.mov(dword_ptr(TABLE_POINTER + 2), IDT)?;
    a.lidt(fword_ptr(TABLE_POINTER))?;

    // Both pins to this CPU, then both lines.
    a.mov(dword_ptr(APIC_SPURIOUS), 0x1ff)?;
    const LEVEL: u32 = 1 << 15;
    for (pin, entry) in [(LEVEL_LINE, LEVEL | LEVEL_VECTOR), (EDGE_LINE, EDGE_VECTOR)] {
        for (half, value) in [(1, 0), (0, entry)] {
            a.mov(dword_ptr(IOAPIC_INDEX), 0x10 + 2 * pin + half)?;
            a.mov(dword_ptr(IOAPIC_DATA), value)?;
        }
    }
    a.sti()?;
    for (step, line, count) in
        [(Step::LevelInterrupt, LEVEL_LINE, LEVEL_COUNT), (Step::EdgeInterrupt, EDGE_LINE, EDGE_COUNT)]
    {
        a.mov(edi, step as u32)?;
        a.mov(dx, LINES + line)?;
        a.mov(al, 1)?;
        a.out(dx, al)?;
        wait_for(&mut a, count, None, leave)?;
        a.mov(dx, LINES + line)?;
        a.mov(al, 0)?;
        a.out(dx, al)?;
    }
    a.cli()?;

    // The other CPUs: each adds one and halts.
    a.mov(edi, Step::OtherCpus as u32)?;
    let trampoline: [u8; 12] =
        [0x31, 0xc0, 0x8e, 0xd8, 0xf0, 0xff, 0x06, STARTED as u8, (STARTED >> 8) as u8, 0xfa, 0xf4, 0x90];
    for (word, at) in trampoline.chunks(4).zip((TRAMPOLINE..).step_by(4)) {
        a.mov(dword_ptr(at), u32::from_le_bytes([word[0], word[1], word[2], word[3]]))?;
    }
    const ALL_BUT_SELF_ASSERT: u32 = 0xc_4000;
    a.mov(dword_ptr(APIC_COMMAND), ALL_BUT_SELF_ASSERT | 0x500)?;
    a.mov(dword_ptr(APIC_COMMAND), ALL_BUT_SELF_ASSERT | 0x600 | TRAMPOLINE >> 12)?;
    a.dec(dword_ptr(CPUS))?;
    wait_for(&mut a, STARTED, Some(CPUS), leave)?;
    a.mov(edi, Step::Done as u32)?;

    a.set_label(&mut leave)?;
    a.mov(eax, edi)?;
    a.out(DEBUG_EXIT, eax)?;
    a.hlt()?;

    // Each handler ends with a port write, for hosts that report an EOI at the next exit only.
    for (label, line, count) in
        [(&mut level_handler, LEVEL_LINE, LEVEL_COUNT), (&mut edge_handler, EDGE_LINE, EDGE_COUNT)]
    {
        a.set_label(label)?;
        a.pushad()?;
        a.inc(dword_ptr(count))?;
        a.mov(dx, LINES + line)?;
        a.mov(al, 0)?;
        a.out(dx, al)?;
        a.mov(dword_ptr(APIC_EOI), 0)?;
        a.out(0x80, al)?;
        a.popad()?;
        a.iretd()?;
    }

    // al to the serial port, once that takes it.
    a.set_label(&mut put)?;
    a.push(eax)?;
    a.mov(dx, COM1 + 5)?;
    let mut busy = a.create_label();
    a.set_label(&mut busy)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.jz(busy)?;
    a.pop(eax)?;
    a.mov(dx, COM1)?;
    a.out(dx, al)?;
    a.ret()?;

    // The string at esi, and a new line.
    a.set_label(&mut put_string)?;
    let mut newline = a.create_label();
    a.lodsb()?;
    a.test(al, al)?;
    a.jz(newline)?;
    a.call(put)?;
    a.jmp(put_string)?;
    a.set_label(&mut newline)?;
    a.mov(al, u32::from(b'\n'))?;
    a.jmp(put)?;

    // al as two digits.
    a.set_label(&mut hex)?;
    let mut digit = a.create_label();
    a.push(eax)?;
    a.shr(al, 4)?;
    a.call(digit)?;
    a.pop(eax)?;
    a.set_label(&mut digit)?;
    a.and(al, 0xf)?;
    let mut decimal = a.create_label();
    a.add(al, u32::from(b'0'))?;
    a.cmp(al, i32::from(b'9'))?;
    a.jbe(decimal)?;
    a.add(al, i32::from(b'a' - b'9' - 1))?;
    a.set_label(&mut decimal)?;
    a.jmp(put)?;

    let whole = a.assemble_options(BASE + HEADER_SIZE, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let handlers = [whole.label_ip(&level_handler)? as u32, whole.label_ip(&edge_handler)? as u32];
    Ok((whole.inner.code_buffer, handlers))
}

/// Spins until the word at `count` is one, or what is at `goal`; goes to `failed` when it takes too long.
fn wait_for(a: &mut CodeAssembler, count: u32, goal: Option<u32>, failed: CodeLabel) -> Result<(), IcedError> {
    let (mut again, mut reached) = (a.create_label(), a.create_label());
    a.mov(ecx, 200_000_000)?;
    a.mov(eax, 1)?;
    if let Some(goal) = goal {
        a.mov(eax, dword_ptr(goal))?;
    }
    a.set_label(&mut again)?;
    a.pause()?;
    a.cmp(dword_ptr(count), eax)?;
    a.je(reached)?;
    a.dec(ecx)?;
    a.jnz(again)?;
    a.jmp(failed)?;
    a.set_label(&mut reached)
}

/// An ELF32 file of one segment: the multiboot header and the code behind it.
fn image() -> Vec<u8> {
    const FILE_HEADERS: u32 = 52 + 32;
    let code = code().expect("the image assembles");
    let magic = 0x1bad_b002u32;
    let mut segment: Vec<u8> = [magic, 0, magic.wrapping_neg()].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(segment.len() as u64, HEADER_SIZE);
    segment.extend(code);
    let (base, size) = (BASE as u32, segment.len() as u32);

    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    let halves = |low: u32, high: u32| low | high << 16;
    #[rustfmt::skip]
    let words = [
        halves(2, 3), 1, base + HEADER_SIZE as u32, 52, 0, 0, // executable, i386; version, entry, headers
        halves(52, 32), halves(1, 40), 0,                     // sizes and counts
        1, FILE_HEADERS, base, base, size, size, 7, 4,        // PT_LOAD
    ];
    file.extend(words.iter().flat_map(|word: &u32| word.to_le_bytes()));
    assert_eq!(file.len() as u32, FILE_HEADERS);
    file.extend(segment);
    file
}

/// A folder for one test's files, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("irqfabric-testdev-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("a temporary file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn boot(folder: &Folder, irqchip: &str) -> Output {
    let (image, module) = (folder.file("image.elf", &image()), folder.file("module", b"a module's words\n"));
    let binary = std::env::var_os("IRQFABRIC").unwrap_or_else(|| env!("CARGO_BIN_EXE_irqfabric").into());
    let mut command = Command::new(binary);
    command.args(["boot", "--profile", "testdev", "--append", "one two", "--memory", "64M", "--vcpus", "3"]);
    command.args(["--irqchip", irqchip]).arg("--kernel").arg(image).arg("--initrd").arg(module);
    command.arg("--report").arg(folder.0.join("report")).stdin(Stdio::null());
    command.output().expect("irqfabric starts")
}

fn judge(irqchip: &str) {
    let folder = Folder::new(irqchip);
    let output = boot(&folder, irqchip);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(Step::Done as i32 * 2 + 1), "{stderr}");
    let memory = (64u64 << 20).to_le_bytes().map(|byte| format!("{byte:02x}")).concat();
    let expected = format!("image.elf one two\na module's words\nQEMU\n{memory}\n0300\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);

    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.0.join("report")).expect("a report")).expect("JSON");
    let line = |gsi: u32| {
        let lines = report["lines"].as_array().expect("lines");
        lines.iter().find(|line| line["gsi"] == gsi && line["name"] != "serial").expect("the test line")
    };
    for gsi in [LEVEL_LINE, EDGE_LINE] {
        assert_eq!((&line(gsi)["raised"], &line(gsi)["delivered"]), (&1.into(), &1.into()), "{report}");
    }
}

#[test]
#[ignore = "takes a stock KVM: cargo xtask testbed run testdev"]
fn a_test_image_finds_all_it_needs_on_our_ioapic() {
    judge("split");
}

#[test]
#[ignore = "takes a stock KVM: cargo xtask testbed run testdev"]
fn a_test_image_finds_all_it_needs_on_kvms_ioapic() {
    judge("kernel");
}
