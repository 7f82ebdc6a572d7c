//! The PIC: a PC's pair of 8259As; Intel 8259A data sheet (231468), and the ICH's for the ELCR.
//!
//! Levels of the 16 inputs and register accesses go in; out comes the level of the INTR wire ([`Pic::output`]), which may
//! be another after every input. Whoever takes the interrupt [acknowledges](Pic::acknowledge) it, which is the INTA
//! sequence, and gets the vector. Nothing else moves an interrupt into service.
//!
//! The slave's INT is wired to the master's IR2. An input of the pair is 0 to 7 on the master, 8 to 15 on the slave.
//!
//! # A request that is withdrawn
//!
//! An input must stay high until it is acknowledged; if not, the default IR7 is what the processor gets (data sheet,
//! edge and level triggered modes): vector 7 of the chip, and no bit in service. So INT, once high, outlives the
//! request: an INTA, or a write to the chip's registers, takes it low. Where the slave's request is withdrawn the master
//! does not know, and has its own IR2 in service. A device that cannot hold its line uses [`Pic::pulse`].
//!
//! # Deviations
//!
//! From the data sheet, each because a PC is wired so, or because guests rely on it:
//!
//! - ICW1's LTIM is ignored, the ELCR decides by input (ICH; KVM and QEMU do the same).
//! - ICW3 is expected where the sheet expects it, and its value ignored: the cascade is wired (ICH demands 04h and 02h).
//! - ICW4's µPM and buffering bits, and with it ICW1's ADI, are ignored: a vector is always that of 8086 mode.
//! - ICW1 clears the in-service register, of which the sheet says nothing: a kernel that takes over from another must
//!   find no interrupt in service.
//! - After reset, where the sheet promises nothing, every register is zero, as on KVM and QEMU.
//!
//! From KVM's in-kernel PIC (`arch/x86/kvm/i8259.c`), which the sheet contradicts:
//!
//! - KVM keeps an edge whose line falls before INTA, and forgets a level that falls. The sheet has the default IR7 in
//!   both cases, see above.
//! - KVM sets the master's IRR bit 2 whenever it finds a request of the slave, and keeps it. Here the bit is an edge of
//!   the slave's INT.
//! - KVM does not know special mask mode: it stores the bit. Here masked inputs in service lock nobody out, and a
//!   non-specific EOI passes them over.
//! - In special fully nested mode KVM lets the master's IR3 to IR7 interrupt the slave's service, too. The sheet has the
//!   mode for further requests of that slave only.
//! - A polled read is an INTA here: the request goes into service. KVM ends it at once.
//! - ICW1 with SNGL set: no ICW3 is expected, and the master answers IR2 itself. KVM ignores the bit.
//! - ICW1 ends a poll command. KVM keeps it.
//! - ICW1 resets the edge sense: a line that is high must fall and rise again. On KVM it counts as an edge as soon as it
//!   is driven high again.
//! - An input whose mode the ELCR changes follows its new mode: level is the line as it is, edge needs a new rise. KVM
//!   keeps the IRR bit until the line is driven.
//! - Accesses of several bytes are as many accesses of one byte, as the bus splits them. KVM ignores them.
//! - IR2 of the master is the slave's alone. KVM lets KVM_IRQ_LINE drive it.

mod controller;
mod spec;

pub use controller::{ControllerState, Expected, StatusRegister};

use crate::line::Level;
use controller::{Controller, Input, Role};

/// How many inputs the pair has. Input [`CASCADE`] is taken.
pub const INPUTS: u8 = 16;

/// The master's input that the slave's INT is wired to.
pub const CASCADE: u8 = 2;

/// The ports of the pair, each one byte wide.
pub const PORTS: [u16; 6] = [MASTER_COMMAND, MASTER_DATA, SLAVE_COMMAND, SLAVE_DATA, MASTER_ELCR, SLAVE_ELCR];

const MASTER_COMMAND: u16 = 0x20;
const MASTER_DATA: u16 = 0x21;
const SLAVE_COMMAND: u16 = 0xa0;
const SLAVE_DATA: u16 = 0xa1;
const MASTER_ELCR: u16 = 0x4d0;
const SLAVE_ELCR: u16 = 0x4d1;

/// The pair of 8259As of a PC.
///
/// ```
/// use irqfabric::chip::pic::Pic;
/// use irqfabric::line::Level;
///
/// let mut pic = Pic::default();
/// // The guest initializes both: vectors from 0x30 and 0x38, a slave on IR2, 8086 mode.
/// for (port, words) in [(0x20, [0x11, 0x30, 0x04, 0x01]), (0xa0, [0x11, 0x38, 0x02, 0x01])] {
///     pic.write(port, &words[..1]);
///     words[1..].iter().for_each(|word| pic.write(port + 1, &[*word]));
/// }
/// // A device on input 12 raises its line, and the processor takes the interrupt.
/// pic.set(12, Level::High);
/// assert_eq!(pic.output(), Level::High);
/// assert_eq!(pic.acknowledge(), 0x3c);
/// assert_eq!(pic.output(), Level::Low);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pic {
    master: Controller,
    slave: Controller,
}

/// What an INTA sequence gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The vector.
    pub vector: u8,
    /// Whose it is, if that is a line's: `None` for the default IR7, and for input 2 of a master that is to be alone.
    pub input: Option<u8>,
}

/// Everything about a PIC that a guest can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PicState {
    /// The chip whose INT is the INTR wire.
    pub master: ControllerState,
    /// The chip on the master's IR2.
    pub slave: ControllerState,
}

/// A register that a port stands for.
enum Register {
    Command,
    Data,
    Elcr,
}

impl Default for Pic {
    /// As after reset.
    fn default() -> Self {
        Self { master: Controller::new(Role::Master), slave: Controller::new(Role::Slave) }
    }
}

impl Pic {
    // The way in: lines and registers.

    /// A line changes. What is driven to input 2, where no line can be, or beyond 15 is ignored.
    #[inline]
    pub fn set(&mut self, input: u8, level: Level) {
        if let Some((chip, input)) = self.input(input) {
            chip.set(input, level);
            self.lines_changed();
        }
    }

    /// An edge of a device that does not hold its line until the interrupt is acknowledged: latched as one that does. An
    /// input that is high already sees no edge, and a level input nothing that lasts.
    #[inline]
    pub fn pulse(&mut self, input: u8) {
        if let Some((chip, input)) = self.input(input) {
            chip.pulse(input);
            self.lines_changed();
        }
    }

    /// The guest reads from `port`, which has effects after a poll command. Bytes at ports that are not the pair's read
    /// all ones.
    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        self.read_acknowledging(port, data);
    }

    /// The same, for those who keep books: the input that a poll has acknowledged, if it is one of a line's.
    pub fn read_acknowledging(&mut self, port: u16, data: &mut [u8]) -> Option<u8> {
        let mut acknowledged = None;
        data.fill(0xff);
        for (port, byte) in (port..=u16::MAX).zip(data) {
            if let Some((value, input)) = self.read_byte(port) {
                *byte = value;
                acknowledged = input.or(acknowledged);
            }
        }
        acknowledged
    }

    /// The guest writes to `port`. Bytes at ports that are not the pair's are ignored.
    pub fn write(&mut self, port: u16, data: &[u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            self.write_byte(port, *byte);
        }
    }

    // The way out.

    /// The INTR wire.
    #[inline]
    pub fn output(&self) -> Level {
        self.master.int()
    }

    /// The INTA sequence: the processor takes the interrupt and gets its vector. Without a request it is the vector of
    /// the default IR7, and only a master that has acknowledged its slave has a bit in service.
    pub fn acknowledge(&mut self) -> u8 {
        self.acknowledge_input().vector
    }

    /// The same, for those who keep books.
    pub fn acknowledge_input(&mut self) -> Acknowledged {
        let (input, vector) = self.master.acknowledge();
        let slave = input.is_some_and(|input| self.master.has_slave(input)).then(|| self.slave.acknowledge());
        self.settle(if slave.is_some() { Role::Slave } else { Role::Master });
        match slave {
            Some((input, vector)) => Acknowledged { vector, input: of_a_line(Role::Slave, input) },
            None => Acknowledged { vector, input: of_a_line(Role::Master, input) },
        }
    }

    /// The interrupt of `input` was just acknowledged, and with that automatically ended: its line's level is `left` now. What
    /// falls so was not withdrawn, and INT does not outlive it.
    pub(crate) fn ended(&mut self, input: u8, left: Level) {
        if let Some((chip, place)) = self.input(input) {
            chip.set(place, left);
            self.settle(if input < 8 { Role::Master } else { Role::Slave });
        }
    }

    /// The inputs whose interrupt was acknowledged and not ended yet, a bit for each.
    pub const fn in_service(&self) -> u16 {
        u16::from_le_bytes([self.master.in_service(), self.slave.in_service()])
    }

    // Snapshots.

    /// Everything that a guest can tell about the pair.
    pub fn save(&self) -> PicState {
        let Self { master, slave } = self;
        PicState { master: master.save(), slave: slave.save() }
    }

    /// The pair that was saved. What no pair can have (unwritable bits, an edge waiting on a level input, a request
    /// without INT) is dropped or made up for.
    pub fn restore(state: &PicState) -> Self {
        let PicState { master, slave } = state;
        let slave = Controller::restore(Role::Slave, slave);
        let mut master = Controller::restore(Role::Master, master);
        // A rise that the snapshot does not know of becomes an edge; that of a consistent one is known.
        master.set(Input::CASCADE, slave.int());
        master.raise_int();
        Self { master, slave }
    }

    // Who is where.

    fn input(&mut self, input: u8) -> Option<(&mut Controller, Input)> {
        match input {
            CASCADE | INPUTS.. => None,
            0..8 => Some((&mut self.master, Input::new(input))),
            8..INPUTS => Some((&mut self.slave, Input::new(input))),
        }
    }

    /// The value, and the input that was acknowledged, if it is one of a line's.
    fn read_byte(&mut self, port: u16) -> Option<(u8, Option<u8>)> {
        let (role, register) = Register::at(port)?;
        let chip = self.chip(role);
        let (value, input) = match register {
            Register::Elcr => return Some((chip.elcr(), None)),
            Register::Command | Register::Data if chip.is_polled() => chip.poll(),
            Register::Command => return Some((chip.status(), None)),
            Register::Data => return Some((chip.mask(), None)),
        };
        self.settle(role);
        Some((value, of_a_line(role, input)))
    }

    fn write_byte(&mut self, port: u16, value: u8) {
        let Some((role, register)) = Register::at(port) else { return };
        let chip = self.chip(role);
        match register {
            Register::Command => chip.write_command(value),
            Register::Data => chip.write_data(value),
            Register::Elcr => chip.write_elcr(value),
        }
        self.settle(role);
    }

    const fn chip(&mut self, role: Role) -> &mut Controller {
        match role {
            Role::Master => &mut self.master,
            Role::Slave => &mut self.slave,
        }
    }

    // The wire between the two.

    /// A request can only have come or been withdrawn, and INT only rises.
    fn lines_changed(&mut self) {
        self.slave.raise_int();
        self.master.set(Input::CASCADE, self.slave.int());
        self.master.raise_int();
    }

    /// A register was written, or an interrupt acknowledged: INT is what the requests say. What the slave takes back
    /// that way is taken back from the master too.
    fn settle(&mut self, role: Role) {
        if role == Role::Slave {
            // INT may have been low for a moment, which makes an edge of what it is now.
            self.master.set(Input::CASCADE, self.slave.int());
            self.slave.settle();
            self.master.set(Input::CASCADE, self.slave.int());
        }
        self.master.settle();
    }
}

/// The pair's number for a chip's input, if a line can be there.
fn of_a_line(role: Role, input: Option<Input>) -> Option<u8> {
    let first = match role {
        Role::Master => 0,
        Role::Slave => 8,
    };
    input.map(|input| first | input.number()).filter(|input| *input != CASCADE)
}

impl Register {
    const fn at(port: u16) -> Option<(Role, Self)> {
        match port {
            MASTER_COMMAND => Some((Role::Master, Self::Command)),
            MASTER_DATA => Some((Role::Master, Self::Data)),
            SLAVE_COMMAND => Some((Role::Slave, Self::Command)),
            SLAVE_DATA => Some((Role::Slave, Self::Data)),
            MASTER_ELCR => Some((Role::Master, Self::Elcr)),
            SLAVE_ELCR => Some((Role::Slave, Self::Elcr)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
