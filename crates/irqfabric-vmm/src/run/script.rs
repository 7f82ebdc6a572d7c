//! The script: what the guest does while the sources are busy. The same on every backend.
//!
//! It sets up the local APICs, the redirection entries and the message registers, and then keeps choosing an interrupt
//! and masks it for a moment or moves it to another vCPU. Every access is the guest's own: it is posted to a vCPU. The
//! order of accesses is that of a careful driver (Linux `arch/x86/kernel/apic/io_apic.c`): a pin's vector is changed
//! behind the mask, and that of a level only when its remote IRR is clear, since the EOI finds the entry by its vector.
//! A message is changed behind the mask or, every other time, without.
//!
//! A guest that [begins with the PIC](Begins::WithPic) masks its lines there, and moves them away once: all together to
//! the IOAPIC, as Linux does when it switches to it.
//!
//! Behind a mask nothing may be delivered: what the handlers have seen is noted once everything from before is handled, and
//! looked at again right before the unmask.

use super::board::{Board, Operation, RunFailed};
use super::control::Early;
use super::judge::{Epochs, Slot};
use super::layout::{self, registers};
use super::source::Source;
use irqfabric::fabric::IOAPIC_ADDRESS;
use std::time::{Duration, Instant};

const IOAPIC_SELECT: u64 = IOAPIC_ADDRESS;
const IOAPIC_WINDOW: u64 = IOAPIC_ADDRESS + 0x10;

const RTE_LEVEL: u32 = 1 << 15;
const RTE_MASKED: u32 = 1 << 16;
const RTE_REMOTE_IRR: u32 = 1 << 14;

const LVT_EXTINT: u32 = 7 << 8;
const LVT_MASKED: u32 = 1 << 16;
/// The PIC's input that its second chip is at.
const CASCADE: u16 = 1 << 2;

/// Which chip the guest uses for its lines at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// The one it stays with.
    WithIoapic,
    /// The PIC, by LINT0 of the first vCPU.
    WithPic,
}

/// What the guest programs for an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The redirection entry of this pin, edge.
    EdgePin(u8),
    /// The redirection entry of this pin, level.
    LevelPin(u8),
    /// The registers of this message vector.
    Message(u8),
}

/// An interrupt: where it is programmed, where it goes, whose it is.
#[derive(Debug)]
pub struct Binding {
    /// What the guest programs.
    pub place: Place,
    /// Its sources' places among all, with the epochs of each. More than one for a shared line only.
    pub sources: Vec<(usize, Epochs)>,
    first_vector: u8,
    /// The PIC's input, as long as it is the PIC that the interrupt comes from.
    input: Option<u8>,
    at: Slot,
    moves: u64,
}

/// What the script has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Done {
    /// Moves to another vCPU, every other one to another vector as well.
    pub moves: u64,
    /// Masks, each with its unmask, those of moves not counted.
    pub masks: u64,
    /// Unmasks, those of moves included, that found something waiting.
    pub kept: u64,
}

/// The script.
pub struct Script<'a> {
    board: &'a Board,
    random: fastrand::Rng,
    bindings: Vec<Binding>,
    done: Done,
    accesses: u32,
    /// The PIC's mask registers, master first. In use as long as [`uses_pic`](Self::uses_pic).
    pic_masks: u16,
}

/// Somebody who waits for something that the guest can see.
struct Patient {
    until: Instant,
    pause: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

impl Patient {
    fn new(patience: Duration) -> Self {
        Self { until: Instant::now() + patience, pause: FIRST_PAUSE }
    }
}

impl Binding {
    /// An interrupt that goes to `cpu` at first and has two vectors from `first_vector` on; a line that begins with the PIC
    /// goes to the first vCPU, with the PIC's vector.
    pub fn new(place: Place, begins: Begins, first_vector: u8, cpu: usize, sources: &[usize]) -> Self {
        let input = match (place, begins) {
            (Place::EdgePin(pin) | Place::LevelPin(pin), Begins::WithPic) => Some(pin),
            _ => None,
        };
        let at = input.map_or((cpu, first_vector & 1), |input| (0, layout::pic_vector(input) & 1));
        let sources = sources.iter().map(|&source| (source, Epochs::new(at))).collect();
        Self { place, sources, first_vector, input, at, moves: 0 }
    }

    /// The one it has from the PIC.
    pub fn pic_vector(&self) -> Option<u8> {
        self.input.map(layout::pic_vector)
    }

    /// The vectors it may have.
    pub fn vectors(&self) -> [u8; 2] {
        [self.first_vector, self.first_vector + 1]
    }

    fn vector_at(&self, slot: Slot) -> u8 {
        self.first_vector & !1 | slot.1
    }

    fn entry(&self, slot: Slot) -> u32 {
        let level = if matches!(self.place, Place::LevelPin(_)) { RTE_LEVEL } else { 0 };
        u32::from(self.vector_at(slot)) | level
    }
}

impl<'a> Script<'a> {
    /// A script for these interrupts.
    pub fn new(board: &'a Board, bindings: Vec<Binding>, begins: Begins, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        debug_assert!(begins == Begins::WithPic || bindings.iter().all(|binding| binding.input.is_none()));
        Self { board, bindings, random, done: Done::default(), accesses: 0, pic_masks: !CASCADE }
    }

    /// Whether any line comes from the PIC.
    pub fn uses_pic(&self) -> bool {
        self.bindings.iter().any(|binding| binding.input.is_some())
    }

    /// What it has done so far.
    pub fn done(&self) -> Done {
        self.done
    }

    /// The interrupts, when the script is over.
    pub fn into_bindings(self) -> Vec<Binding> {
        self.bindings
    }

    /// The guest programs everything: before any source may signal. Returns how many accesses that took.
    pub fn set_up(&mut self) -> Result<u32, RunFailed> {
        for cpu in 0..self.board.cpus() {
            self.write(cpu, layout::APIC_TPR, 0)?;
        }
        for index in 0..self.bindings.len() {
            let binding = &self.bindings[index];
            let (at, entry) = (binding.at, binding.entry(binding.at));
            match binding.place {
                // Its entry is masked since reset.
                Place::EdgePin(_) | Place::LevelPin(_) if binding.input.is_some() => {}
                Place::EdgePin(pin) | Place::LevelPin(pin) => {
                    self.write_destination(pin, at.0)?;
                    self.write_entry(pin, entry)?;
                }
                Place::Message(vector) => self.write_message(vector, at.0, entry)?,
            }
        }
        if self.uses_pic() {
            self.set_up_pic()?;
        }
        Ok(self.accesses)
    }

    /// Does one thing, to one interrupt.
    pub fn step(&mut self) -> Result<(), RunFailed> {
        let index = self.random.usize(..self.bindings.len());
        // The PIC has one place to go to.
        let stays = self.bindings[index].input.is_some();
        if self.random.bool() || stays { self.mask_for_a_moment(index) } else { self.move_away(index) }
    }

    /// Between two steps. The more interrupts there are the shorter: each has its turn about as often.
    pub fn breathe(&mut self) {
        let interrupts = self.bindings.len() as u64;
        self.pause(14_000 / interrupts, 42_000 / interrupts);
    }

    /// All sources have stopped: waits until every handler is through, or for `most`. Returns whether they are.
    pub fn rest(&mut self, most: Duration) -> Result<bool, RunFailed> {
        let begun = Instant::now();
        let vectors: Vec<_> = self.bindings.iter().flat_map(Binding::vectors).collect();
        while begun.elapsed() < most {
            let over = |source: &Source| source.newest_seen() == source.device().sent && source.is_settled();
            let mut idle = self.board.sources.iter().all(over);
            for cpu in 0..self.board.cpus() {
                idle = idle && self.is_quiet(cpu, &vectors)?;
            }
            if self.uses_pic() {
                idle = idle && self.pic_in_service()? == 0;
            }
            if idle {
                return Ok(true);
            }
            std::thread::sleep(LONGEST_PAUSE);
        }
        Ok(false)
    }

    // The two things that a guest does to an interrupt in use.

    fn mask_for_a_moment(&mut self, index: usize) -> Result<(), RunFailed> {
        let at = self.bindings[index].at;
        self.mask(index)?;
        self.pause(50, 300);
        self.unmask(index, &[at])?;
        self.done.masks += 1;
        Ok(())
    }

    fn move_away(&mut self, index: usize) -> Result<(), RunFailed> {
        let board = self.board;
        let binding = &mut self.bindings[index];
        let (old, cpus) = (binding.at, board.cpus());
        let changes_vector = binding.moves % 2 == 1;
        let new = ((old.0 + self.random.usize(1..cpus)) % cpus, old.1 ^ u8::from(changes_vector));
        for (source, epochs) in &mut binding.sources {
            epochs.begin(new, board.sources[*source].seen_in(new));
        }
        let behind_mask = match binding.place {
            // Without: one register, one write, and an interrupt in service does not mind.
            Place::EdgePin(_) | Place::LevelPin(_) => changes_vector,
            // Without: address and data take effect together.
            Place::Message(_) => self.random.bool(),
        };
        if behind_mask {
            self.mask(index)?;
        }
        self.program(index, new, changes_vector)?;
        if !behind_mask {
            self.wait_until_quiet(index, &[old])?;
        }
        let binding = &mut self.bindings[index];
        for (source, epochs) in &mut binding.sources {
            epochs.end(old, board.sources[*source].device().sent);
        }
        binding.at = new;
        binding.moves += 1;
        if behind_mask {
            self.pause(0, 100);
            self.unmask(index, &[old, new])?;
        }
        self.done.moves += 1;
        Ok(())
    }

    /// Has the interrupt go to another place.
    fn program(&mut self, index: usize, new: Slot, changes_vector: bool) -> Result<(), RunFailed> {
        let entry = self.bindings[index].entry(new);
        match self.bindings[index].place {
            Place::Message(vector) => self.write_message(vector, new.0, entry),
            Place::EdgePin(pin) | Place::LevelPin(pin) => {
                self.write_destination(pin, new.0)?;
                if changes_vector { self.write_entry(pin, entry | RTE_MASKED) } else { Ok(()) }
            }
        }
    }

    /// On return nothing is under way any more.
    fn mask(&mut self, index: usize) -> Result<(), RunFailed> {
        let binding = &self.bindings[index];
        let (at, entry) = (binding.at, binding.entry(binding.at));
        match (binding.place, binding.input) {
            (_, Some(input)) => self.mask_input(input, true)?,
            (Place::Message(vector), _) => self.write_register(vector, registers::CONTROL, registers::MASKED)?,
            (Place::EdgePin(pin) | Place::LevelPin(pin), None) => {
                self.write_entry(pin, entry | RTE_MASKED)?;
                self.wait_for_end_of_interrupt(pin)?;
            }
        }
        self.wait_until_quiet(index, &[at])?;
        let board = self.board;
        for (source, epochs) in &mut self.bindings[index].sources {
            epochs.mask(board.sources[*source].slots());
        }
        Ok(())
    }

    /// Nothing has come in `slots` behind the mask. Edges that came meanwhile at the IOAPIC were dropped, as the data sheet
    /// says: the driver polls its device, which signals again. Messages, levels and the PIC's edges are still there and need
    /// no help.
    fn unmask(&mut self, index: usize, slots: &[Slot]) -> Result<(), RunFailed> {
        // What was delivered though it must not be has been handled now.
        self.wait_until_quiet(index, slots)?;
        let board = self.board;
        let binding = &mut self.bindings[index];
        for (source, epochs) in &mut binding.sources {
            epochs.unmask(board.sources[*source].slots());
        }
        let entry = binding.entry(binding.at);
        let sources: Vec<_> = binding.sources.iter().map(|(source, _)| &board.sources[*source]).collect();
        sources.iter().for_each(|source| source.restart_clock());
        self.done.kept += u64::from(sources.iter().any(|source| source.newest_seen() < source.device().sent));
        if let Some(input) = binding.input {
            return self.mask_input(input, false);
        }
        match binding.place {
            Place::EdgePin(pin) => {
                // Nobody signals between the unmask and the look at what was seen. No handler needs these locks: it is
                // an edge, which is not served.
                let mut devices: Vec<_> = sources.iter().map(|source| (source.device(), *source)).collect();
                self.write_entry(pin, entry)?;
                for (device, source) in &mut devices {
                    if source.newest_seen() < device.sent {
                        source.send_again(device);
                    }
                }
                Ok(())
            }
            Place::LevelPin(pin) => self.write_entry(pin, entry),
            Place::Message(vector) => self.write_register(vector, registers::CONTROL, 0),
        }
    }

    // The PIC.

    /// As Linux' `init_8259A`, and the ELCR as `elcr_set_level_irq`.
    fn set_up_pic(&mut self) -> Result<(), RunFailed> {
        const ICW1: u8 = 0x11;
        const ICW3: [u8; 2] = [CASCADE as u8, 2];
        const ICW4: u8 = 0x01;
        let mut levels = 0;
        for binding in &self.bindings {
            if let (Place::LevelPin(_), Some(input)) = (binding.place, binding.input) {
                levels |= 1 << input;
            }
        }
        for (chip, command) in layout::PIC_COMMAND.into_iter().enumerate() {
            self.out(command, ICW1)?;
            for word in [layout::pic_vector(8 * chip as u8), ICW3[chip], ICW4] {
                self.out(command + 1, word)?;
            }
            self.out(layout::PIC_ELCR[chip], (levels >> (8 * chip)) as u8)?;
        }
        self.pic_masks = !CASCADE;
        for input in self.bindings.iter().filter_map(|binding| binding.input).collect::<Vec<_>>() {
            self.pic_masks &= !(1 << input);
        }
        self.write_masks()?;
        self.write(0, layout::APIC_LVT0, LVT_EXTINT)
    }

    /// What Linux does when it finds its IOAPIC: every line is masked at the PIC, and opened at the IOAPIC where it is to go.
    pub fn switch_to_ioapic(&mut self) -> Result<(), RunFailed> {
        let board = self.board;
        for index in 0..self.bindings.len() {
            if self.bindings[index].input.is_none() {
                continue;
            }
            self.mask(index)?;
            let new = (self.random.usize(..board.cpus()), self.random.u8(..2));
            let binding = &mut self.bindings[index];
            let old = std::mem::replace(&mut binding.at, new);
            binding.input = None;
            for (source, epochs) in binding.sources.iter_mut().filter(|_| old != new) {
                epochs.begin(new, board.sources[*source].seen_in(new));
                epochs.end(old, board.sources[*source].device().sent);
            }
            self.program(index, new, true)?;
            self.unmask(index, &[new])?;
        }
        self.write(0, layout::APIC_LVT0, LVT_EXTINT | LVT_MASKED)
    }

    /// On return the input is masked and nothing of it under way, or it is not masked any more.
    fn mask_input(&mut self, input: u8, masked: bool) -> Result<(), RunFailed> {
        self.pic_masks = self.pic_masks & !(1 << input) | u16::from(masked) << input;
        self.write_masks()?;
        let mut patient = Patient::new(self.board.control.patience());
        while masked && self.pic_in_service()? >> input & 1 != 0 {
            self.wait_a_little(&mut patient, || format!("input {input} of the PIC is not ended"))?;
        }
        Ok(())
    }

    /// Masked inputs are never in service here but on their way to their end: a vector that was acknowledged is.
    fn pic_in_service(&mut self) -> Result<u16, RunFailed> {
        const READ_ISR: u8 = 0x0b;
        let mut in_service = [0; 2];
        for (bits, command) in in_service.iter_mut().zip(layout::PIC_COMMAND) {
            self.out(command, READ_ISR)?;
            let cpu = self.any_cpu();
            *bits = self.board.perform(cpu, Operation::In(command))? as u8;
        }
        Ok(u16::from_le_bytes(in_service))
    }

    fn write_masks(&mut self) -> Result<(), RunFailed> {
        for (command, masks) in layout::PIC_COMMAND.into_iter().zip(self.pic_masks.to_le_bytes()) {
            self.out(command + 1, masks)?;
        }
        Ok(())
    }

    fn out(&mut self, port: u16, value: u8) -> Result<(), RunFailed> {
        self.accesses = self.accesses.saturating_add(1);
        let cpu = self.any_cpu();
        self.board.perform(cpu, Operation::Out(port, value)).map(drop)
    }

    // Waiting, by what the guest can see.

    /// The interrupt's vectors are neither pending nor in service in these slots.
    fn wait_until_quiet(&mut self, index: usize, slots: &[Slot]) -> Result<(), RunFailed> {
        for &slot in slots {
            let (cpu, vector) = (slot.0, self.bindings[index].vector_at(slot));
            let mut patient = Patient::new(self.board.control.patience());
            while !self.is_quiet(cpu, &[vector])? {
                self.wait_a_little(&mut patient, || format!("vector {vector:#x} is not ended on vCPU {cpu}"))?;
            }
        }
        Ok(())
    }

    /// The vCPU reads this between two handlers: what it finds ended has been handled.
    fn is_quiet(&mut self, cpu: usize, vectors: &[u8]) -> Result<bool, RunFailed> {
        let mut words = [0u32; 8];
        for vector in vectors {
            words[usize::from(vector / 32)] |= 1 << (vector % 32);
        }
        for (word, mask) in (0u64..).zip(words).filter(|(_, mask)| *mask != 0) {
            for register in [layout::APIC_IRR, layout::APIC_ISR] {
                if self.read(cpu, register + word * 0x10)? & mask != 0 {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn wait_for_end_of_interrupt(&mut self, pin: u8) -> Result<(), RunFailed> {
        let mut patient = Patient::new(self.board.control.patience());
        loop {
            let cpu = self.any_cpu();
            self.write(cpu, IOAPIC_SELECT, entry_index(pin))?;
            if self.read(cpu, IOAPIC_WINDOW)? & RTE_REMOTE_IRR == 0 {
                return Ok(());
            }
            self.wait_a_little(&mut patient, || format!("remote IRR of pin {pin} does not clear"))?;
        }
    }

    /// Between two looks at the same thing: longer and longer, since each look interrupts the vCPU.
    fn wait_a_little(&self, patient: &mut Patient, what: impl FnOnce() -> String) -> Result<(), RunFailed> {
        if Instant::now() > patient.until {
            let patience = self.board.control.patience().as_secs_f32();
            self.board.control.end(Early::Failed(format!("hung: {} within {patience:.0} s", what())));
            return Err(RunFailed);
        }
        std::thread::sleep(patient.pause);
        patient.pause = LONGEST_PAUSE.min(patient.pause * 2);
        Ok(())
    }

    /// A pause of this many microseconds.
    pub fn pause(&mut self, least: u64, most: u64) {
        std::thread::sleep(Duration::from_micros(self.random.u64(least..=most)));
    }

    // Accesses.

    fn write_destination(&mut self, pin: u8, cpu: usize) -> Result<(), RunFailed> {
        self.write_ioapic(entry_index(pin) + 1, (cpu as u32) << 24)
    }

    fn write_entry(&mut self, pin: u8, low: u32) -> Result<(), RunFailed> {
        self.write_ioapic(entry_index(pin), low)
    }

    fn write_ioapic(&mut self, index: u32, value: u32) -> Result<(), RunFailed> {
        let cpu = self.any_cpu();
        self.write(cpu, IOAPIC_SELECT, index)?;
        self.write(cpu, IOAPIC_WINDOW, value)
    }

    fn write_message(&mut self, vector: u8, cpu: usize, data: u32) -> Result<(), RunFailed> {
        self.write_register(vector, registers::ADDRESS, layout::message_address(cpu))?;
        self.write_register(vector, registers::DATA, data)
    }

    fn write_register(&mut self, vector: u8, register: u64, value: u32) -> Result<(), RunFailed> {
        let by = self.any_cpu();
        self.write(by, layout::DEVICE_WINDOW + u64::from(vector) * layout::DEVICE_STRIDE + register, value)
    }

    fn any_cpu(&mut self) -> usize {
        self.random.usize(..self.board.cpus())
    }

    fn write(&mut self, cpu: usize, address: u64, value: u32) -> Result<(), RunFailed> {
        self.accesses = self.accesses.saturating_add(1);
        self.board.perform(cpu, Operation::Write(address, value)).map(drop)
    }

    fn read(&mut self, cpu: usize, address: u64) -> Result<u32, RunFailed> {
        self.accesses = self.accesses.saturating_add(1);
        self.board.perform(cpu, Operation::Read(address))
    }
}

/// The index of the low half of a pin's redirection entry; the high half follows.
fn entry_index(pin: u8) -> u32 {
    0x10 + 2 * u32::from(pin)
}
