//! Where things are in the test guest: memory, ports, device registers, vectors.
//!
//! One page of truth for the assembler, the software guest, the devices and the judge. Guest-physical and
//! guest-virtual addresses are the same. What lies in memory is little-endian, each field aligned to its size.

/// How much memory the guest has, from address 0: room for [`MAX_SOURCES`].
pub const MEMORY: u64 = 5 << 20;

/// The most sources.
pub const MAX_SOURCES: usize = 128;

/// The most vCPUs that an 8-bit APIC destination can name: 255 is the broadcast.
pub const MAX_CPUS: usize = 255;

/// Page tables: one page each of level 4 and level 3, then four of level 2, for 4 GiB.
pub const PAGE_TABLES: u64 = 0x1000;
/// The global descriptor table, see [`crate::machine::cpu::gdt`].
pub const GDT: u64 = 0x8000;
/// The interrupt descriptor table, one page.
pub const IDT: u64 = 0x9000;
/// The program.
pub const CODE: u64 = 0xa000;
/// For each of 256 vectors the addresses of the pages of up to [`SOURCES_PER_VECTOR`] sources, 0 for none.
pub const VECTORS: u64 = 0x1_0000;
/// For each vCPU a mailbox of [`MAILBOX_SIZE`] bytes, see [`mailbox`].
pub const MAILBOXES: u64 = 0x2_0000;
/// For each vCPU a stack of [`STACK_SIZE`] bytes.
pub const STACKS: u64 = 0x10_0000;
/// For each source [`SOURCE_SIZE`] bytes, see [`source`].
pub const SOURCES: u64 = 0x30_0000;

/// Two devices may share a line.
pub const SOURCES_PER_VECTOR: u64 = 2;
/// A cache line: vCPUs do not slow each other down.
pub const MAILBOX_SIZE: u64 = 0x40;
/// Enough for one interrupt handler: they do not nest.
pub const STACK_SIZE: u64 = 0x1000;
/// A header and two slots for each vCPU.
pub const SOURCE_SIZE: u64 = 0x4000;

/// A mailbox: the host posts an operation, the vCPU performs it.
pub mod mailbox {
    /// u64: how many operations the host has posted.
    pub const POSTED: u64 = 0x00;
    /// u64: how many the vCPU has done.
    pub const DONE: u64 = 0x08;
    /// u32: [`READ`], [`WRITE`], [`IN`] or [`OUT`].
    pub const OPERATION: u64 = 0x10;
    /// u32: what to write, then what was read.
    pub const VALUE: u64 = 0x14;
    /// u64: where; for [`IN`] and [`OUT`] a port.
    pub const ADDRESS: u64 = 0x18;
    /// Read 32 bits.
    pub const READ: u32 = 0;
    /// Write 32 bits.
    pub const WRITE: u32 = 1;
    /// Read 8 bits from a port.
    pub const IN: u32 = 2;
    /// Write 8 bits to a port.
    pub const OUT: u32 = 3;
}

/// A source's page: what the device tells the handler, and what each handler has seen.
pub mod source {
    /// u64: the number of the newest signal, written by the device before it signals.
    pub const SENT: u64 = 0x00;
    /// u32: 1 while a level device wants service.
    pub const STATUS: u64 = 0x08;
    /// u32: 1 for a level device: look at the status, ask for service.
    pub const LEVEL: u64 = 0x0c;
    /// u32: what to write to the service port.
    pub const INDEX: u64 = 0x10;
    /// For each vCPU two slots, for the even and the odd vector.
    pub const SLOTS: u64 = 0x40;
    /// Of one slot.
    pub const SLOT_SIZE: u64 = 0x10;
    /// u64 in a slot: the newest number seen.
    pub const SEEN: u64 = 0x00;
    /// u64 in a slot: how often the handler ran for this source.
    pub const ENTRIES: u64 = 0x08;
}

/// u32: the handler asks the level device of this index to lower its line.
pub const SERVICE_PORT: u16 = 0xe0;
/// u32, a [`report`]: a handler is through.
pub const HANDLED_PORT: u16 = 0xe4;
/// u32, the vCPU's number: it has done what was posted.
pub const DONE_PORT: u16 = 0xe8;
/// u32, a [`report`] without a count: an exception.
pub const FAULT_PORT: u16 = 0xec;
/// The first port, and how many there are.
pub const PORTS: (u16, u16) = (SERVICE_PORT, 16);

/// What a handler writes: bits 31:16 the vCPU, 15:8 how many level devices it has served, 7:0 the vector.
pub const fn report(cpu: usize, served: u32, vector: u8) -> u32 {
    (cpu as u32) << 16 | served << 8 | vector as u32
}

/// The message devices' registers: for each message vector 16 bytes, see [`registers`].
pub const DEVICE_WINDOW: u64 = 0xd000_0000;
/// Its size.
pub const DEVICE_WINDOW_SIZE: u64 = 0x1000;
/// Bytes from one vector's registers to the next one's.
pub const DEVICE_STRIDE: u64 = 0x10;

/// A message vector's registers, 32 bits each.
pub mod registers {
    /// The message's address.
    pub const ADDRESS: u64 = 0x00;
    /// The message's data. Writing it programs the vector with both.
    pub const DATA: u64 = 0x04;
    /// Vector control, as in an MSI-X table (PCI Local Bus 3.0, 6.8.2.9).
    pub const CONTROL: u64 = 0x08;
    /// In it: the vector must not send.
    pub const MASKED: u32 = 1;
}

/// The local APIC's page.
pub const APIC: u64 = 0xfee0_0000;
/// Task priority.
pub const APIC_TPR: u64 = APIC + 0x80;
/// Processor priority.
pub const APIC_PPR: u64 = APIC + 0xa0;
/// End of interrupt.
pub const APIC_EOI: u64 = APIC + 0xb0;
/// Spurious interrupt vector; bit 8 switches the APIC on.
pub const APIC_SPURIOUS: u64 = APIC + 0xf0;
/// What is written there.
pub const APIC_ENABLE: u32 = 1 << 8 | SPURIOUS as u32;
/// Local vector table, LINT0: where the PIC's wire ends.
pub const APIC_LVT0: u64 = APIC + 0x350;
/// In-service register, 32 vectors every 16 bytes.
pub const APIC_ISR: u64 = APIC + 0x100;
/// Interrupt request register, likewise.
pub const APIC_IRR: u64 = APIC + 0x200;

/// The PIC's vectors, for as long as the guest uses it: one for each input, master and slave.
pub const PIC_VECTORS: u8 = 0x20;
/// One past the last of them.
pub const PIC_VECTORS_END: u8 = PIC_VECTORS + 16;
/// The command ports of the PIC's two chips; their data ports follow.
pub const PIC_COMMAND: [u16; 2] = [0x20, 0xa0];
/// The edge/level control registers of the two chips.
pub const PIC_ELCR: [u16; 2] = [0x4d0, 0x4d1];
/// OCW2: non-specific end of interrupt.
pub const PIC_EOI: u8 = 0x20;

/// The vector of an input.
pub const fn pic_vector(input: u8) -> u8 {
    PIC_VECTORS | input & 0xf
}

/// The first vector with a handler. Even: a source's two vectors are an even one and the next.
pub const FIRST_VECTOR: u8 = 0x30;
/// One past the last vector with a handler.
pub const END_VECTOR: u8 = 0xf0;
/// Has a vCPU look into its mailbox. The highest priority there is: the script gets on however busy the vCPU is.
pub const DOORBELL: u8 = 0xf0;
/// The local APIC's spurious vector.
pub const SPURIOUS: u8 = 0xff;

/// The low half of the address of a message to one vCPU: its APIC id is its index.
pub const fn message_address(cpu: usize) -> u32 {
    APIC as u32 | (cpu as u32) << 12
}

/// The offset of a slot in a source's page.
pub const fn slot(cpu: usize, parity: u8) -> u64 {
    source::SLOTS + (cpu as u64 * 2 + parity as u64) * source::SLOT_SIZE
}

const _: () = assert!(slot(MAX_CPUS, 1) + source::SLOT_SIZE <= SOURCE_SIZE);
const _: () = assert!(SOURCES + MAX_SOURCES as u64 * SOURCE_SIZE <= MEMORY);
const _: () = assert!((END_VECTOR - FIRST_VECTOR) as u64 / 2 * DEVICE_STRIDE <= DEVICE_WINDOW_SIZE);
const _: () = assert!(MAILBOXES + MAX_CPUS as u64 * MAILBOX_SIZE <= STACKS);
const _: () = assert!(STACKS + MAX_CPUS as u64 * STACK_SIZE <= SOURCES);
