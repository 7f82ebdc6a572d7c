//! INTx: a function's four possible pins, the way they take through bridges, and when a function drives its own.
//!
//! The device's status and the guest's writes go in, a [`Level`] comes out, for the function's own
//! [source](crate::line::LineSource::set) on the line that its pin ends in. PCI Local Bus 3.0, 2.2.6 and 6.2.
//!
//! The Interrupt Pin register (0x3d) is read-only and tells the pin: [`IntxPin::register`], or 0 for none. The
//! Interrupt Line register (0x3c) is a byte in which firmware leaves a note for drivers; it routes nothing, and belongs
//! to whoever owns the rest of configuration space.

use crate::line::Level;

/// Interrupt Disable, in the Command register.
pub const COMMAND_INTERRUPT_DISABLE: u16 = 1 << 10;
/// Interrupt Status, in the Status register.
pub const STATUS_INTERRUPT: u16 = 1 << 3;

/// One of a slot's four interrupt pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum IntxPin {
    /// INTA#, the only one that a function of a single-function device may use.
    A = 1,
    /// INTB#.
    B = 2,
    /// INTC#.
    C = 3,
    /// INTD#.
    D = 4,
}

/// How many lines the pins of a root bus are spread over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RootLines {
    /// Four, as PIRQA to PIRQD.
    #[default]
    Four,
    /// Eight, as PIRQA to PIRQH.
    Eight,
}

/// Where the pins of a root bus end: lines with GSIs in a row. The guest's `_PRT` must say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RootRouting {
    /// The GSI of the first line.
    pub first: u32,
    /// How many lines there are.
    pub lines: RootLines,
}

/// What a function signals its interrupts with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Signalling {
    /// Its INTx pin.
    #[default]
    Pin,
    /// MSI or MSI-X: one of them is enabled, which forbids the pin (6.8.1.3, 6.8.2.3).
    Messages,
}

/// When a function drives its pin.
///
/// ```
/// use irqfabric::line::Level;
/// use irqfabric::pci::intx::Intx;
///
/// let mut intx = Intx::default();
/// assert_eq!(intx.set(Level::High), Level::High);
/// assert_eq!(intx.write_command(1 << 10), Level::Low, "the guest disables the pin");
/// assert_eq!(intx.status(), 1 << 3, "and still sees that the device asks for service");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Intx {
    asserted: Level,
    interrupt_disable: bool,
    signalling: Signalling,
}

/// Everything about an [`Intx`]. There is none that cannot be restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IntxState {
    /// What the device asks for.
    pub asserted: Level,
    /// The Command register, of which Interrupt Disable counts.
    pub command: u16,
    /// Whether MSI or MSI-X is enabled.
    pub signalling: Signalling,
}

impl IntxPin {
    /// All four, in order.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// The pin that the value of an Interrupt Pin register means: `None` for 0, no pin, and for what is reserved.
    pub const fn from_register(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::A),
            2 => Some(Self::B),
            3 => Some(Self::C),
            4 => Some(Self::D),
            _ => None,
        }
    }

    /// The value of the Interrupt Pin register.
    pub const fn register(self) -> u8 {
        self as u8
    }

    /// The pin in front of a bridge that this pin of `device` on the bridge's secondary bus comes out at: pin plus
    /// device, modulo four (Linux `pci_swizzle_interrupt_pin`). A function with ARI counts as device 0.
    ///
    /// Behind several bridges, from the function up to the root bus:
    ///
    /// ```
    /// use irqfabric::pci::intx::IntxPin;
    ///
    /// // The function is device 3 behind a bridge that is device 2 behind a bridge on the root bus.
    /// let pin = [3, 2].into_iter().fold(IntxPin::A, IntxPin::swizzle);
    /// assert_eq!(pin, IntxPin::B);
    /// ```
    pub const fn swizzle(self, device: u8) -> Self {
        match self.step(device) & 3 {
            0 => Self::A,
            1 => Self::B,
            2 => Self::C,
            _ => Self::D,
        }
    }

    /// Pin plus device, counted from A and zero.
    const fn step(self, device: u8) -> u8 {
        (self as u8).wrapping_sub(1).wrapping_add(device & 0x1f)
    }
}

impl RootRouting {
    /// The GSI at which a pin of `device` on the root bus ends: pin plus device, modulo the number of lines.
    pub const fn gsi(self, device: u8, pin: IntxPin) -> u32 {
        let line = match self.lines {
            RootLines::Four => pin.step(device) & 3,
            RootLines::Eight => pin.step(device) & 7,
        };
        self.first.saturating_add(line as u32)
    }
}

impl Intx {
    /// The device asks for service or does not any more.
    pub fn set(&mut self, asserted: Level) -> Level {
        self.asserted = asserted;
        self.level()
    }

    /// The guest has written the Command register, of which Interrupt Disable counts; `command` is its new value.
    pub fn write_command(&mut self, command: u16) -> Level {
        self.interrupt_disable = command & COMMAND_INTERRUPT_DISABLE != 0;
        self.level()
    }

    /// The guest has enabled MSI or MSI-X, or disabled both.
    pub fn use_signalling(&mut self, signalling: Signalling) -> Level {
        self.signalling = signalling;
        self.level()
    }

    /// The function is reset: Interrupt Disable is clear, MSI and MSI-X are disabled, nothing is asked for.
    pub fn reset(&mut self) -> Level {
        *self = Self::default();
        self.level()
    }

    /// What the function drives its pin to.
    pub fn level(&self) -> Level {
        match (self.interrupt_disable, self.signalling) {
            (false, Signalling::Pin) => self.asserted,
            _ => Level::Low,
        }
    }

    /// Interrupt Disable, as a bit of the Command register.
    pub fn command(&self) -> u16 {
        if self.interrupt_disable { COMMAND_INTERRUPT_DISABLE } else { 0 }
    }

    /// Interrupt Status, as a bit of the Status register: what the device asks for, whether or not it may drive its pin
    /// (6.2.3).
    pub fn status(&self) -> u16 {
        match self.asserted {
            Level::High => STATUS_INTERRUPT,
            Level::Low => 0,
        }
    }

    /// Everything about it.
    pub fn save(&self) -> IntxState {
        let Self { asserted, interrupt_disable: _, signalling } = *self;
        IntxState { asserted, command: self.command(), signalling }
    }

    /// What was saved. Its [`level`](Self::level) is for [`LineSource::restore`](crate::line::LineSource::restore): the
    /// edge has been seen already.
    pub fn restore(state: &IntxState) -> Self {
        let IntxState { asserted, command, signalling } = *state;
        Self { asserted, interrupt_disable: command & COMMAND_INTERRUPT_DISABLE != 0, signalling }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interrupt_pin_register_tells_the_pin() {
        for (value, pin) in (1..).zip(IntxPin::ALL) {
            assert_eq!((pin.register(), IntxPin::from_register(value)), (value, Some(pin)));
        }
        for value in (0..=0).chain(5..=255) {
            assert_eq!(IntxPin::from_register(value), None);
        }
    }

    #[test]
    fn a_bridge_turns_the_pins_by_the_device_number() {
        for device in 0..32 {
            for (index, pin) in (0..).zip(IntxPin::ALL) {
                assert_eq!(pin.swizzle(device), IntxPin::ALL[(index + usize::from(device)) % 4]);
            }
        }
    }

    #[test]
    fn bits_of_a_device_number_above_5_are_cut_off() {
        assert_eq!(IntxPin::D.swizzle(255), IntxPin::D.swizzle(31));
    }

    #[test]
    fn a_root_bus_spreads_devices_over_its_lines() {
        let four = RootRouting { first: 16, lines: RootLines::Four };
        let eight = RootRouting { first: 16, lines: RootLines::Eight };
        let gsis = |routing: RootRouting, pin| [0, 1, 4, 7, 8].map(|device| routing.gsi(device, pin));
        assert_eq!(gsis(four, IntxPin::A), [16, 17, 16, 19, 16]);
        assert_eq!(gsis(eight, IntxPin::A), [16, 17, 20, 23, 16]);
        assert_eq!(gsis(eight, IntxPin::D), [19, 20, 23, 18, 19]);
        assert_eq!(RootRouting { first: u32::MAX, lines: RootLines::Four }.gsi(1, IntxPin::A), u32::MAX);
    }

    #[test]
    fn interrupt_disable_lowers_the_pin_and_leaves_the_status() {
        let mut intx = Intx::default();
        assert_eq!((intx.set(Level::High), intx.status()), (Level::High, STATUS_INTERRUPT));
        assert_eq!((intx.write_command(0xffff), intx.status()), (Level::Low, STATUS_INTERRUPT));
        assert_eq!(intx.command(), COMMAND_INTERRUPT_DISABLE);
        assert_eq!(intx.write_command(!COMMAND_INTERRUPT_DISABLE), Level::High);
        assert_eq!((intx.set(Level::Low), intx.status(), intx.command()), (Level::Low, 0, 0));
    }

    #[test]
    fn disable_and_status_are_the_bits_that_the_specification_gives_them() {
        let mut intx = Intx::default();
        assert_eq!((intx.set(Level::High), intx.write_command(0x0400)), (Level::High, Level::Low));
        assert_eq!((intx.command(), intx.status()), (0x0400, 0x0008));
    }

    #[test]
    fn a_function_that_sends_messages_does_not_drive_its_pin() {
        let mut intx = Intx::default();
        assert_eq!(intx.use_signalling(Signalling::Messages), Level::Low);
        assert_eq!((intx.set(Level::High), intx.status()), (Level::Low, STATUS_INTERRUPT));
        assert_eq!(intx.use_signalling(Signalling::Pin), Level::High);
    }

    #[test]
    fn a_reset_lets_go_of_the_pin() {
        let mut intx = Intx::default();
        let _ = intx.set(Level::High);
        assert_eq!((intx.reset(), intx), (Level::Low, Intx::default()));
    }

    #[test]
    fn what_is_saved_is_restored_whatever_else_the_command_register_holds() {
        for asserted in [Level::Low, Level::High] {
            for (command, signalling) in [(0, Signalling::Pin), (0xffff, Signalling::Pin), (0, Signalling::Messages)] {
                let mut intx = Intx::default();
                let _ = intx.set(asserted);
                let _ = intx.write_command(command);
                let _ = intx.use_signalling(signalling);
                assert_eq!(Intx::restore(&intx.save()), intx);
                assert_eq!(Intx::restore(&IntxState { command, ..intx.save() }), intx);
            }
        }
    }
}
