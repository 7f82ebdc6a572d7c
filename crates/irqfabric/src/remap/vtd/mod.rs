//! Intel VT-d interrupt remapping: a page of registers, a table of entries and a queue of invalidations.
//!
//! Three parts, for three that must not wait for each other. [`Vtd`] is what the guest programs: register accesses go in,
//! [`Effect`]s come out. [`Tables`] is what is in force of it: whoever delivers asks it what a message becomes.
//! [`Faults`] is what is recorded of the messages that were blocked. All three are plain state: nothing is cached, so an
//! entry that becomes present without an invalidation works at the next interrupt.
//!
//! **Effects are performed one after the other, each before the next is asked for**, and only then does the guest see
//! them: a status bit of the global status register, the head of the queue, the status that a wait descriptor writes, its
//! interrupt. Thus what was invalidated is gone for every delivery when the guest hears so.
//!
//! There is no DMA remapping. CAP_REG says so, by offering no address width, and Linux then uses the unit for interrupts
//! alone. Descriptors that invalidate what DMA remapping would cache are accepted and ask for nothing; its commands and
//! registers have no effect, and translation enable is never reported as set.
//!
//! Where the specification leaves the result undefined: an access that is not an aligned double or quad word reads the
//! bytes that are there and writes nothing. A global command given before the last one has completed adds to it. Writing
//! IQA_REG while the queue is in use moves it.
//!
//! Source: Intel Virtualization Technology for Directed I/O, Architecture Specification, chapters 5 (interrupt
//! remapping), 6.5.2 (queued invalidation), 7 (faults), 9.9 (entries) and 11 (registers); revisions 3 and 4 number some
//! of them differently. What Linux expects is in its `drivers/iommu/intel/{dmar,irq_remapping}.c`.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        clippy::unwrap_used
    )
)]

mod faults;
mod queue;
mod spec;
mod state;
mod tables;

pub use faults::Faults;
pub use state::{CommandState, EventState, FaultsState, QueueState, RestoreError, UnderwayState, VtdState};
pub use tables::{Fault, FaultProcessing, Reason, Refused, Tables};

use crate::memory::Memory;
use crate::msg::Message;
use crate::remap::Entries;
use queue::{Done, Queue, Request};
use spec::{Global, Half, Register, RemappingTable};

/// How many bytes of address space a unit answers to.
pub const WINDOW_SIZE: u64 = 0x1000;

/// The register page of a remapping unit and its invalidation queue.
///
/// ```
/// # use irqfabric::memory::{Memory, OutsideMemory};
/// # struct Ram;
/// # impl Memory for Ram {
/// #     fn read(&self, _: u64, data: &mut [u8]) -> Result<(), OutsideMemory> { data.fill(0); Ok(()) }
/// #     fn write(&self, _: u64, _: &[u8]) -> Result<(), OutsideMemory> { Ok(()) }
/// # }
/// # let memory = Ram;
/// use irqfabric::remap::vtd::{Effect, Faults, Tables, Vtd};
///
/// let (mut vtd, mut faults, mut tables) = (Vtd::default(), Faults::default(), Tables::default());
/// // The guest enables interrupt remapping, with a table of 2^16 entries at 1 MiB.
/// vtd.write(&mut faults, 0xb8, &0x10_000fu64.to_le_bytes());
/// vtd.write(&mut faults, 0x18, &(1u32 << 25 | 1 << 24).to_le_bytes());
/// while let Some(effect) = vtd.next(&mut faults, &memory) {
///     match effect {
///         Effect::Retranslate(new) => tables = new, // and drop every translation there is
///         Effect::Invalidate(entries) => {}         // drop those
///         Effect::Write { address, data } => {}     // perform it
///         Effect::Send(message) => {}               // deliver it as it is
///         Effect::Nothing => {}
///     }
/// }
/// let mut status = [0; 4];
/// vtd.read(&faults, 0x1c, &mut status);
/// assert_eq!(u32::from_le_bytes(status), 1 << 25 | 1 << 24);
/// assert_eq!(tables, vtd.tables());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vtd {
    /// RTADDR_REG, and whether it was taken (RTPS). For the guest's eyes only.
    root_table: u64,
    root_table_set: bool,
    /// IRTA_REG, which counts from the next SIRTP command on.
    table: RemappingTable,
    /// What is in force, and with it IRES and CFIS.
    tables: Tables,
    /// IRTPS.
    table_set: bool,
    /// What the guest has asked for and nobody has been told of.
    command: Option<Command>,
    /// QIES.
    queued_invalidation: bool,
    queue: Queue,
    /// The effect that was handed out last.
    underway: Option<Underway>,
}

/// What a unit asks of its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// From now on messages are translated by these; no translation made before may survive, nor be under way. Each
    /// change of IRE, CFI or the table's place leads to it.
    Retranslate(Tables),
    /// Translations of these entries made before may not survive, nor be under way.
    Invalidate(Entries),
    /// A wait descriptor's status, to be written to the guest's memory. If it is not memory, nothing happens.
    Write {
        /// Where, a multiple of four.
        address: u64,
        /// What, little-endian.
        data: u32,
    },
    /// An event of the unit itself. It is not remapped: decode it by
    /// [`DestinationFormat::ThirtyTwo`](crate::msg::DestinationFormat::ThirtyTwo); outside the interrupt window it is a
    /// plain write.
    Send(Message),
    /// Nothing. A stretch of the queue was passed that asks for nothing here; there may be more.
    Nothing,
}

/// A global command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Command {
    /// What is to be in force.
    tables: Tables,
    /// Whether the table's place is among what it sets (SIRTP).
    pointer: bool,
}

/// An effect that is being performed, and what the guest sees when it has been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Underway {
    Command(Command),
    Queue(Done),
}

impl Vtd {
    /// What is in force: what the last [`Effect::Retranslate`] that was performed said.
    pub fn tables(&self) -> Tables {
        self.tables
    }

    // The way in.

    /// The guest reads `data.len()` bytes at `offset` into the page.
    pub fn read(&self, faults: &Faults, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..=u64::MAX).zip(data) {
            let [b0, b1, b2, b3] = self.read_word(faults, offset & !3).to_le_bytes();
            *byte = match offset & 3 {
                0 => b0,
                1 => b1,
                2 => b2,
                _ => b3,
            };
        }
    }

    /// The guest writes `data` at `offset` into the page. Nothing happens but in the registers: ask
    /// [`next`](Self::next) what follows.
    pub fn write(&mut self, faults: &mut Faults, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let (words, _) = data.as_chunks();
        for (offset, &word) in (offset..=u64::MAX).step_by(4).zip(words) {
            self.write_word(faults, offset, u32::from_le_bytes(word));
        }
    }

    // The way out.

    /// What is to be done now; `None` when there is nothing. The effect before it has been performed.
    ///
    /// One call reads a few kilobytes of memory at the most. The guest decides how long the queue is, up to 32,768
    /// descriptors, and can make it longer meanwhile: an owner that must not be held goes on with it elsewhere. Only one
    /// may go on with it at a time.
    pub fn next(&mut self, faults: &mut Faults, memory: &dyn Memory) -> Option<Effect> {
        self.complete(faults);
        if let Some(command) = self.command.take() {
            self.underway = Some(Underway::Command(command));
            return Some(Effect::Retranslate(command.tables));
        }
        if let Some(message) = faults.due().or_else(|| self.queue.event.due()) {
            return Some(Effect::Send(message));
        }
        if !self.queued_invalidation || faults.has_queue_error() {
            return None;
        }
        Some(match self.queue.request(memory)? {
            Request::Nothing => Effect::Nothing,
            Request::Invalidate(entries, then) => {
                self.underway = Some(Underway::Queue(then));
                Effect::Invalidate(entries)
            }
            Request::Write { address, data, then } => {
                self.underway = Some(Underway::Queue(then));
                Effect::Write { address, data }
            }
            Request::Error => {
                faults.record_queue_error();
                Effect::Nothing
            }
        })
    }

    /// The effect that was handed out last has been performed: the guest may see it.
    fn complete(&mut self, faults: &mut Faults) {
        match self.underway.take() {
            Some(Underway::Command(Command { tables, pointer })) => {
                self.tables = tables;
                // A further SIRTP is not done yet.
                self.table_set |= pointer && !self.command.is_some_and(|command| command.pointer);
                if !tables.remapping {
                    faults.restart();
                }
            }
            Some(Underway::Queue(done)) => self.queue.done(done),
            None => {}
        }
    }

    // Registers.

    fn read_word(&self, faults: &Faults, offset: u64) -> u32 {
        match Self::register(offset) {
            Some(Register::Version) => spec::VERSION,
            Some(Register::Capability(half)) => half.of(spec::CAPABILITY),
            Some(Register::ExtendedCapability(half)) => half.of(spec::EXTENDED_CAPABILITY),
            Some(Register::GlobalStatus) => self.status().into_bits(),
            Some(Register::RootTable(half)) => half.of(self.root_table),
            Some(Register::FaultStatus) => faults.read_status(),
            Some(Register::FaultEvent(register)) => faults.event().read(register),
            Some(Register::QueueHead) => self.queue.head,
            Some(Register::QueueTail) => self.queue.tail,
            Some(Register::QueueAddress(half)) => half.of(self.queue.address.into_bits()),
            Some(Register::CompletionStatus) => u32::from(self.queue.wait_complete),
            Some(Register::CompletionEvent(register)) => self.queue.event.read(register),
            Some(Register::RemappingTable(half)) => half.of(self.table.into_bits()),
            Some(Register::FaultRecord { record, word }) => faults.read_record(record, word),
            Some(Register::GlobalCommand) | None => 0,
        }
    }

    fn write_word(&mut self, faults: &mut Faults, offset: u64, value: u32) {
        match Self::register(offset) {
            Some(Register::GlobalCommand) => self.command(Global::from_bits(value)),
            Some(Register::RootTable(half)) => {
                self.root_table = half.merge(self.root_table, spec::ROOT_TABLE_WRITABLE, value);
            }
            Some(Register::FaultStatus) => faults.write_status(value),
            Some(Register::FaultEvent(register)) => faults.event_mut().write(register, value),
            Some(Register::QueueTail) => self.queue.set_tail(value),
            Some(Register::QueueAddress(half)) => {
                let address = half.merge(self.queue.address.into_bits(), spec::QueueAddress::WRITABLE, value);
                self.queue.address = spec::QueueAddress::from_bits(address);
            }
            Some(Register::CompletionStatus) => self.queue.acknowledge(value & spec::WAIT_COMPLETE != 0),
            Some(Register::CompletionEvent(register)) => self.queue.event.write(register, value),
            Some(Register::RemappingTable(half)) => {
                let table = half.merge(self.table.into_bits(), RemappingTable::WRITABLE, value);
                self.table = RemappingTable::from_bits(table);
            }
            Some(Register::FaultRecord { record, word }) => faults.write_record(record, word, value),
            Some(
                Register::Version
                | Register::Capability(Half::Low | Half::High)
                | Register::ExtendedCapability(Half::Low | Half::High)
                | Register::GlobalStatus
                | Register::QueueHead,
            )
            | None => {}
        }
    }

    fn register(offset: u64) -> Option<Register> {
        Register::at(u32::try_from(offset).ok()?)
    }

    fn status(&self) -> Global {
        Global::new()
            .with_compatibility_format(self.tables.compatibility_format)
            .with_remapping_table_pointer(self.table_set)
            .with_remapping(self.tables.remapping)
            .with_queued_invalidation(self.queued_invalidation)
            .with_root_table_pointer(self.root_table_set)
    }

    /// GCMD_REG is written: what is a switch is set to its new position, what is a command is carried out.
    fn command(&mut self, command: Global) {
        self.root_table_set |= command.root_table_pointer();
        if !command.queued_invalidation() {
            self.queue.reset();
            // What it was about is performed, or will be; the queue does not go on from there.
            self.underway = self.underway.filter(|underway| matches!(underway, Underway::Command(_)));
        }
        self.queued_invalidation = command.queued_invalidation();

        let earlier = match (self.command, self.underway) {
            (Some(command), _) | (None, Some(Underway::Command(command))) => Some(command),
            _ => None,
        };
        let before = earlier.map_or(self.tables, |command| command.tables);
        let pointer = command.remapping_table_pointer();
        let tables = Tables {
            table: if pointer { self.table } else { before.table },
            remapping: command.remapping(),
            compatibility_format: command.compatibility_format(),
        };
        if pointer {
            self.table_set = false;
        }
        if pointer || tables != before {
            // That of a command under way comes to its end by itself.
            let pointer = pointer || self.command.is_some_and(|command| command.pointer);
            self.command = Some(Command { tables, pointer });
        }
    }
}

#[cfg(test)]
mod tests;
