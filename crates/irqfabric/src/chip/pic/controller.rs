//! One 8259A.

use super::CASCADE;
use super::spec::{Icw1, Icw4, Ocw2, Ocw3, PollWord};
use crate::line::Level;

/// Where a chip sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Master,
    Slave,
}

/// One of a chip's eight inputs, IR0 to IR7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Input(u8);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Controller {
    // Configuration.
    role: Role,
    // State.
    /// The levels of the inputs.
    high: u8,
    /// Edges that wait to be acknowledged. None on a level input.
    edges: u8,
    in_service: u8,
    mask: u8,
    elcr: u8,
    vectors: u8,
    /// The input of the highest priority: IR0 unless it was rotated.
    highest: Input,
    single: bool,
    icw4_needed: bool,
    expected: Expected,
    auto_eoi: bool,
    rotate_in_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    status: StatusRegister,
    polled: bool,
    int: Level,
}

/// What a write to the data port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Expected {
    /// OCW1, the mask.
    #[default]
    Mask,
    /// The vector's upper five bits.
    Icw2,
    /// Who is cascaded with whom.
    Icw3,
    /// The modes.
    Icw4,
}

/// What a read of the command port gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum StatusRegister {
    /// The interrupt request register.
    #[default]
    InterruptRequest,
    /// The in-service register.
    InService,
}

/// One chip's part of [`PicState`](super::PicState). A bit stands for an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ControllerState {
    /// The levels of the inputs.
    pub high: u8,
    /// Edges that wait to be acknowledged: with the levels of the level inputs, the interrupt request register.
    pub edges: u8,
    /// The in-service register.
    pub in_service: u8,
    /// The interrupt mask register.
    pub mask: u8,
    /// The edge/level control register.
    pub elcr: u8,
    /// ICW2: the vector of IR0.
    pub vectors: u8,
    /// The number of the input with the highest priority.
    pub highest: u8,
    /// ICW1: there is one chip only.
    pub single: bool,
    /// ICW1: ICW4 will come.
    pub icw4_needed: bool,
    /// How far initialization has come.
    pub expected: Expected,
    /// ICW4: an interrupt ends when it is acknowledged.
    pub auto_eoi: bool,
    /// OCW2: and gets the lowest priority then.
    pub rotate_in_auto_eoi: bool,
    /// ICW4.
    pub special_fully_nested: bool,
    /// OCW3.
    pub special_mask: bool,
    /// OCW3.
    pub status: StatusRegister,
    /// OCW3: the next read is a poll.
    pub polled: bool,
    /// The level of INT, which outlives a request that is withdrawn.
    pub int: Level,
}

impl Controller {
    pub(super) const fn new(role: Role) -> Self {
        Self {
            role,
            high: 0,
            edges: 0,
            in_service: 0,
            mask: 0,
            elcr: 0,
            vectors: 0,
            highest: Input::new(0),
            single: false,
            icw4_needed: false,
            expected: Expected::Mask,
            auto_eoi: false,
            rotate_in_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            status: StatusRegister::InterruptRequest,
            polled: false,
            int: Level::Low,
        }
    }

    // Requests.

    /// A line changes, or is driven to the level that it has already, which does nothing.
    pub(super) fn set(&mut self, input: Input, level: Level) {
        let bit = input.bit();
        match level {
            Level::High => {
                self.edges |= bit & !self.high & !self.elcr;
                self.high |= bit;
            }
            Level::Low => {
                self.edges &= !(bit & self.high);
                self.high &= !bit;
            }
        }
    }

    /// A line rises, and does not fall before it is acknowledged.
    pub(super) const fn pulse(&mut self, input: Input) {
        self.edges |= input.bit() & !self.high & !self.elcr;
    }

    const fn requests(&self) -> u8 {
        self.edges | self.high & self.elcr
    }

    /// The input that is to be acknowledged now, if any. This is the whole rule of priority.
    fn due(&self) -> Option<Input> {
        let requests = self.requests() & !self.mask;
        let in_service = self.nested();
        for input in self.highest.and_below() {
            let bit = input.bit();
            // A chip sees its slave's further requests as one of the same level, and locks them out. Not in special
            // fully nested mode: only higher ones can come from that slave.
            let nests = self.special_fully_nested && self.has_slave(input);
            if requests & bit != 0 && (in_service & bit == 0 || nests) {
                return Some(input);
            }
            // What is in service locks out itself and everything below.
            if in_service & bit != 0 {
                return None;
            }
        }
        None
    }

    /// The inputs in service that count for priority and non-specific EOI: in special mask mode not the masked ones.
    const fn nested(&self) -> u8 {
        if self.special_mask { self.in_service & !self.mask } else { self.in_service }
    }

    /// Whether it is for a slave to say what an input's interrupt is.
    pub(super) fn has_slave(&self, input: Input) -> bool {
        self.role == Role::Master && !self.single && input == Input::CASCADE
    }

    pub(super) const fn in_service(&self) -> u8 {
        self.in_service
    }

    // INT.

    pub(super) const fn int(&self) -> Level {
        self.int
    }

    /// INT rises if there is a request, and stays as it is if there is none.
    pub(super) fn raise_int(&mut self) {
        if self.due().is_some() {
            self.int = Level::High;
        }
    }

    /// INT is high if there is a request.
    pub(super) fn settle(&mut self) {
        self.int = Level::Low;
        self.raise_int();
    }

    // Acknowledgement and end.

    /// INTA: the input, if there is one, goes into service. Its vector, or that of IR7. INT is low until it is settled.
    pub(super) fn acknowledge(&mut self) -> (Option<Input>, u8) {
        self.int = Level::Low;
        let due = self.due();
        if let Some(input) = due {
            self.edges &= !input.bit();
            self.in_service |= input.bit();
            if self.auto_eoi {
                self.end(input, self.rotate_in_auto_eoi);
            }
        }
        (due, self.vectors | due.unwrap_or(Input::DEFAULT).0)
    }

    const fn end(&mut self, input: Input, rotate: bool) {
        self.in_service &= !input.bit();
        if rotate {
            self.highest = input.next();
        }
    }

    // Registers.

    /// Whether the next read is a [`poll`](Self::poll).
    pub(super) const fn is_polled(&self) -> bool {
        self.polled
    }

    /// A read after the poll command, at either port, is an INTA: the word, and the input.
    pub(super) fn poll(&mut self) -> (u8, Option<Input>) {
        self.polled = false;
        let (input, _) = self.acknowledge();
        let word = PollWord::new().with_interrupt(input.is_some()).with_level(input.unwrap_or(Input::DEFAULT).0);
        (word.into_bits(), input)
    }

    /// The command port.
    pub(super) const fn status(&self) -> u8 {
        match self.status {
            StatusRegister::InterruptRequest => self.requests(),
            StatusRegister::InService => self.in_service,
        }
    }

    /// The data port.
    pub(super) const fn mask(&self) -> u8 {
        self.mask
    }

    pub(super) const fn elcr(&self) -> u8 {
        self.elcr
    }

    pub(super) fn write_command(&mut self, value: u8) {
        if Icw1::from_bits(value).is_icw1() {
            self.initialize(Icw1::from_bits(value));
        } else if Ocw3::from_bits(value).is_ocw3() {
            self.select(Ocw3::from_bits(value));
        } else {
            self.command(Ocw2::from_bits(value));
        }
    }

    pub(super) const fn write_data(&mut self, value: u8) {
        let after_icw3 = if self.icw4_needed { Expected::Icw4 } else { Expected::Mask };
        self.expected = match self.expected {
            Expected::Mask => {
                self.mask = value;
                Expected::Mask
            }
            Expected::Icw2 => {
                self.vectors = value & VECTORS;
                if self.single { after_icw3 } else { Expected::Icw3 }
            }
            Expected::Icw3 => after_icw3,
            Expected::Icw4 => {
                let word = Icw4::from_bits(value);
                self.auto_eoi = word.auto_eoi();
                self.special_fully_nested = word.special_fully_nested();
                Expected::Mask
            }
        };
    }

    /// An input whose mode changes has no edge waiting: one that was level never had.
    pub(super) const fn write_elcr(&mut self, value: u8) {
        self.elcr = value & self.role.writable_elcr();
        self.edges &= !self.elcr;
    }

    /// ICW1, and what follows automatically (data sheet, initialization command words).
    const fn initialize(&mut self, word: Icw1) {
        self.single = word.sngl();
        self.icw4_needed = word.ic4();
        self.expected = Expected::Icw2;
        self.edges = 0;
        self.in_service = 0;
        self.mask = 0;
        self.highest = Input::new(0);
        self.special_mask = false;
        self.status = StatusRegister::InterruptRequest;
        self.polled = false;
        if !word.ic4() {
            self.auto_eoi = false;
            self.special_fully_nested = false;
        }
        // What is still requested requests anew.
        self.int = Level::Low;
    }

    /// OCW2, in the order of its table.
    fn command(&mut self, word: Ocw2) {
        let level = Input::new(word.level());
        match (word.eoi(), word.sl(), word.rotate()) {
            // End of interrupt, non-specific: the one of the highest priority.
            (true, false, rotate) => {
                let nested = self.nested();
                if let Some(input) = self.highest.and_below().find(|input| nested & input.bit() != 0) {
                    self.end(input, rotate);
                }
            }
            // End of interrupt, specific.
            (true, true, rotate) => self.end(level, rotate),
            (false, false, rotate) => self.rotate_in_auto_eoi = rotate,
            // Set priority: that of the lowest.
            (false, true, true) => self.highest = level.next(),
            // No operation.
            (false, true, false) => {}
        }
    }

    /// OCW3.
    const fn select(&mut self, word: Ocw3) {
        if word.esmm() {
            self.special_mask = word.smm();
        }
        if word.rr() {
            self.status = if word.ris() { StatusRegister::InService } else { StatusRegister::InterruptRequest };
        }
        // It overrides the status for one read.
        self.polled |= word.poll();
    }

    // Snapshots.

    pub(super) const fn save(&self) -> ControllerState {
        let Self {
            role: _,
            high,
            edges,
            in_service,
            mask,
            elcr,
            vectors,
            highest,
            single,
            icw4_needed,
            expected,
            auto_eoi,
            rotate_in_auto_eoi,
            special_fully_nested,
            special_mask,
            status,
            polled,
            int,
        } = *self;
        ControllerState {
            high,
            edges,
            in_service,
            mask,
            elcr,
            vectors,
            highest: highest.0,
            single,
            icw4_needed,
            expected,
            auto_eoi,
            rotate_in_auto_eoi,
            special_fully_nested,
            special_mask,
            status,
            polled,
            int,
        }
    }

    pub(super) fn restore(role: Role, state: &ControllerState) -> Self {
        let ControllerState {
            high,
            edges,
            in_service,
            mask,
            elcr,
            vectors,
            highest,
            single,
            icw4_needed,
            expected,
            auto_eoi,
            rotate_in_auto_eoi,
            special_fully_nested,
            special_mask,
            status,
            polled,
            int,
        } = *state;
        let elcr = elcr & role.writable_elcr();
        let mut chip = Self {
            role,
            high,
            edges: edges & !elcr,
            in_service,
            mask,
            elcr,
            vectors: vectors & VECTORS,
            highest: Input::new(highest),
            single,
            icw4_needed,
            expected,
            auto_eoi,
            rotate_in_auto_eoi,
            special_fully_nested,
            special_mask,
            status,
            polled,
            int,
        };
        chip.raise_int();
        chip
    }
}

/// The bits of a vector that ICW2 gives.
const VECTORS: u8 = 0xf8;

impl Role {
    /// Timer, keyboard and cascade, real-time clock and coprocessor are always edges (ICH, ELCR1 and ELCR2).
    const fn writable_elcr(self) -> u8 {
        match self {
            Self::Master => 0xf8,
            Self::Slave => 0xde,
        }
    }
}

impl Input {
    pub(super) const CASCADE: Self = Self::new(CASCADE);
    /// What is acknowledged where there is no request.
    const DEFAULT: Self = Self::new(7);

    pub(super) const fn new(number: u8) -> Self {
        Self(number & 7)
    }

    pub(super) const fn number(self) -> u8 {
        self.0
    }

    const fn bit(self) -> u8 {
        1u8.rotate_left(self.0 as u32)
    }

    /// The one below it in priority; after IR7 comes IR0.
    const fn next(self) -> Self {
        Self::new(self.0.wrapping_add(1))
    }

    /// All eight, beginning with this one.
    fn and_below(self) -> impl Iterator<Item = Self> {
        (0..8).map(move |below| Self::new(self.0.wrapping_add(below)))
    }
}
