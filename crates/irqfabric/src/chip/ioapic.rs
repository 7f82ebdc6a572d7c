//! The IOAPIC: levels of pins come in, messages go out; Intel 82093AA data sheet, and the ICH's for the EOI register.
//!
//! Every input answers which pin may now have something to send. The owner asks [`Ioapic::due`], delivers the message, and reports with [`Ioapic::delivered`] what came of it: remote
//! IRR is set only by a delivery that was accepted. A level that nobody accepted stays due and is
//! offered again at the next write to its entry, rise of its line, or end of interrupt; never in a loop.
//!
//! Accesses follow KVM's in-kernel IOAPIC (`arch/x86/kvm/ioapic.c`): registers answer at their own offset
//! only, narrow writes are extended with zeros, wide reads too, everything else reads zero and ignores writes.

mod spec;

use crate::line::Level;
use crate::msg::{Acceptance, DeliveryMode, DestinationMode, Message, MsiAddress, MsiData, RequesterId, Trigger};
use spec::{RedirectionEntry, Register};
use std::fmt;

/// How many pins an IOAPIC can have: the index register has 8 bits, so entry 119 ends at index 0xff.
pub const MAX_PINS: usize = 120;

/// How many bytes of address space an IOAPIC answers to.
pub const WINDOW_SIZE: u64 = 0x100;

/// An IOAPIC of 1 to 120 pins.
///
/// ```
/// use irqfabric::chip::ioapic::Ioapic;
/// use irqfabric::line::Level;
/// use irqfabric::msg::Acceptance;
///
/// let mut ioapic = Ioapic::default();
/// // The guest programs pin 4: vector 0x31, edge, not masked, to APIC id 0.
/// ioapic.write(0x00, &0x18u32.to_le_bytes());
/// ioapic.write(0x10, &0x0000_0031u32.to_le_bytes());
/// // The device raises its line.
/// assert!(ioapic.set(4, Level::High));
/// let message = ioapic.due(4).unwrap();
/// assert_eq!((message.address, message.data), (0xfee0_0000, 0x31));
/// ioapic.delivered(4, Acceptance::Accepted);
/// assert_eq!(ioapic.due(4), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ioapic {
    // Configuration.
    version: Version,
    requester: RequesterId,
    /// The bits of an entry that a guest may write.
    writable: RedirectionEntry,
    // State.
    id: u8,
    select: u8,
    entries: Box<[RedirectionEntry]>,
    /// The pins' levels.
    high: PinSet,
    /// Edges that came while their pin was not masked and have not been sent yet.
    edges: PinSet,
}

/// What the version register says, and with it whether there is an EOI register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Version {
    /// 82093AA: the local APICs' EOI broadcast is the only end of interrupt.
    V11,
    /// ICH and later: an EOI register at +0x40, which Linux needs under interrupt remapping.
    #[default]
    V20,
}

/// What a register write leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[must_use]
pub enum Written {
    /// Nothing that a pin could tell.
    #[default]
    Nothing,
    /// A redirection entry: ask [`Ioapic::due`].
    Entry {
        /// The pin that it belongs to.
        pin: u8,
        /// Whether the write has ended the pin's interrupt: it made the entry edge while remote IRR was set.
        ended: bool,
    },
    /// The EOI register: [`Ioapic::end_of_interrupt`] is the owner's to call, as for a local APIC's broadcast.
    EndOfInterrupt(u8),
}

/// A number of pins that no chip has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an IOAPIC has 1 to {MAX_PINS} pins, not {0}")]
pub struct PinCountError(pub usize);

/// Why a saved state cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The number of pins.
    #[error(transparent)]
    Pins(#[from] PinCountError),
    /// The id register has four bits.
    #[error("an IOAPIC's id is 0 to 15, not {0}")]
    Id(u8),
}

/// Everything about an IOAPIC that a guest can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IoapicState {
    /// Which chip it is.
    pub version: Version,
    /// Who its messages come from.
    pub requester: RequesterId,
    /// The id register's four bits.
    pub id: u8,
    /// The index register.
    pub select: u8,
    /// The pins in order, 1 to [`MAX_PINS`].
    pub pins: Vec<PinState>,
}

/// One pin's part of [`IoapicState`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PinState {
    /// Its redirection entry, read-only bits included.
    pub entry: u64,
    /// The level of its line.
    pub level: Level,
    /// Whether an edge waits to be sent.
    pub edge: bool,
}

impl Default for Ioapic {
    /// 24 pins, version 0x20.
    fn default() -> Self {
        Self::with_entries(24)
    }
}

impl Ioapic {
    /// A chip of `pins` pins as it is after reset: all masked, id 0.
    pub fn new(pins: usize) -> Result<Self, PinCountError> {
        if (1..=MAX_PINS).contains(&pins) { Ok(Self::with_entries(pins)) } else { Err(PinCountError(pins)) }
    }

    fn with_entries(pins: usize) -> Self {
        Self {
            version: Version::default(),
            requester: RequesterId::default(),
            writable: RedirectionEntry::WRITABLE,
            id: 0,
            select: 0,
            entries: vec![RedirectionEntry::RESET; pins].into(),
            high: PinSet::EMPTY,
            edges: PinSet::EMPTY,
        }
    }

    /// The same chip with another version register.
    pub fn with_version(self, version: Version) -> Self {
        Self { version, ..self }
    }

    /// The same chip with another id register, of which four bits count.
    pub fn with_id(self, id: u8) -> Self {
        Self { id: id & 0xf, ..self }
    }

    /// The same chip sending as `requester`: what its firmware tables say for interrupt remapping.
    pub fn with_requester(self, requester: RequesterId) -> Self {
        Self { requester, ..self }
    }

    /// The same chip for a machine on which ends of interrupts do not come back: the trigger mode bit of every entry reads
    /// edge, whatever is written. A pin that was level-triggered becomes edge; what it had in service, and that its line was
    /// high, is forgotten.
    ///
    /// A level pin would deliver once and never again. So each rise of a line is one message, whatever the guest thinks
    /// the pin is; Linux takes a level interrupt that comes as an edge for a known flaw of the 82093AA, and copes.
    pub fn with_edges_only(mut self) -> Self {
        self.writable.set_trigger(Trigger::Edge);
        self.high = PinSet::EMPTY;
        for entry in &mut self.entries {
            *entry = entry.with_trigger(Trigger::Edge).with_remote_irr(false);
        }
        self
    }

    /// How many pins it has.
    pub fn pins(&self) -> usize {
        self.entries.len()
    }

    /// The id register's four bits.
    pub fn id(&self) -> u8 {
        self.id
    }

    // The way in: lines and registers.

    /// A line changes, or its unchanged level is driven again. Returns whether the pin may have something to send now:
    /// ask [`due`](Self::due).
    ///
    /// An edge on a pin that is masked or sends nothing is dropped (data sheet, interrupt mask). A pin beyond the end is ignored.
    #[inline]
    #[must_use]
    pub fn set(&mut self, pin: u8, level: Level) -> bool {
        let Some(entry) = self.entries.get(usize::from(pin)) else { return false };
        let rises = level == Level::High && !self.high.contains(pin);
        self.high.set(pin, level == Level::High);
        if rises && entry.trigger_mode() == Trigger::Edge && entry.sends() {
            self.edges.insert(pin);
        }
        level == Level::High
    }

    /// The guest reads `data.len()` bytes at `offset` into the chip's window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match Register::at(offset, self.version) {
            Some(Register::Select) => u32::from(self.select),
            Some(Register::Window) => self.read_selected(),
            Some(Register::EndOfInterrupt) | None => 0,
        };
        let bytes = value.to_le_bytes();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(index).copied().unwrap_or(0);
        }
    }

    /// The guest writes `data` at `offset` into the chip's window.
    #[inline(always)]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Written {
        let value = match *data {
            // As guests do; the loop would be a call of memcpy.
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => {
                let mut bytes = [0; 4];
                for (to, from) in bytes.iter_mut().zip(data) {
                    *to = *from;
                }
                u32::from_le_bytes(bytes)
            }
        };
        match Register::at(offset, self.version) {
            Some(Register::Select) => self.select = (value & 0xff) as u8,
            Some(Register::Window) => return self.write_selected(value),
            Some(Register::EndOfInterrupt) => return Written::EndOfInterrupt((value & 0xff) as u8),
            None => {}
        }
        Written::Nothing
    }

    /// The pin whose redirection entry an access at `offset` would reach.
    pub fn entry_at(&self, offset: u64) -> Option<u8> {
        let window = matches!(Register::at(offset, self.version), Some(Register::Window));
        let (pin, _) =
            spec::entry_of(self.select).filter(|(pin, _)| window && usize::from(*pin) < self.entries.len())?;
        Some(pin)
    }

    /// A local APIC has broadcast the end of `vector`, or the guest wrote it to the EOI register: [ends](Self::end) the
    /// interrupt of every pin [concerned](Self::ending), and returns them.
    pub fn end_of_interrupt(&mut self, vector: u8) -> PinSet {
        let ending = self.ending(vector);
        for entry in self.entries.iter_mut().filter(|entry| entry.ends_with(vector)) {
            entry.set_remote_irr(false);
        }
        ending
    }

    /// The pins that an end of `vector` concerns: those with remote IRR set whose entry holds that vector.
    ///
    /// It goes by the entry's vector field as it is now, as on silicon: under interrupt remapping Linux keeps
    /// the pin's number there.
    pub fn ending(&self, vector: u8) -> PinSet {
        (0..).zip(&self.entries).filter(|(_, entry)| entry.ends_with(vector)).map(|(pin, _)| pin).collect()
    }

    /// Ends the interrupt of one pin, if an end of `vector` concerns it still: clears its remote IRR. Whether it did.
    #[must_use]
    pub fn end(&mut self, pin: u8, vector: u8) -> bool {
        let Some(entry) = self.entries.get_mut(usize::from(pin)) else { return false };
        let ends = entry.ends_with(vector);
        if ends {
            entry.set_remote_irr(false);
        }
        ends
    }

    // The way out: messages and what came of them.

    /// The message that `pin` has to send now, if any. This is the whole rule of delivery.
    #[inline]
    pub fn due(&self, pin: u8) -> Option<Message> {
        let entry = *self.entries.get(usize::from(pin))?;
        if !entry.sends() {
            return None;
        }
        let due = match entry.trigger_mode() {
            Trigger::Edge => self.edges.contains(pin),
            // Remote IRR: delivered, and the guest has not ended it yet.
            Trigger::Level => self.high.contains(pin) && !entry.remote_irr(),
        };
        due.then(|| entry.message(self.requester))
    }

    /// The message that [`due`](Self::due) gave has been tried. An edge is spent either way; a level that was refused
    /// stays due.
    #[inline]
    pub fn delivered(&mut self, pin: u8, acceptance: Acceptance) {
        let Some(entry) = self.entries.get_mut(usize::from(pin)) else { return };
        match entry.trigger_mode() {
            Trigger::Edge => self.edges.remove(pin),
            Trigger::Level => entry.set_remote_irr(acceptance == Acceptance::Accepted),
        }
    }

    /// The message that a pin would send, masked or not.
    pub fn programmed(&self, pin: u8) -> Option<Message> {
        Some(self.entries.get(usize::from(pin))?.message(self.requester))
    }

    /// The trigger mode that counts for a pin: level for a vector with the bit set, edge for everything else.
    #[inline]
    pub fn trigger(&self, pin: u8) -> Option<Trigger> {
        Some(self.entries.get(usize::from(pin))?.trigger_mode())
    }

    /// The vector field of a pin's entry: what an end of interrupt is compared with.
    #[inline]
    pub fn vector(&self, pin: u8) -> Option<u8> {
        Some(self.entries.get(usize::from(pin))?.vector())
    }

    /// The pins whose interrupt was delivered and not ended yet.
    pub fn in_service(&self) -> PinSet {
        (0..).zip(&self.entries).filter(|(_, entry)| entry.remote_irr()).map(|(pin, _)| pin).collect()
    }

    // Snapshots.

    /// Everything that a guest can tell about the chip.
    pub fn save(&self) -> IoapicState {
        let Self { version, requester, writable: _, id, select, entries, high, edges } = self;
        let pins = (0..).zip(entries).map(|(pin, entry)| PinState {
            entry: entry.into_bits(),
            level: if high.contains(pin) { Level::High } else { Level::Low },
            edge: edges.contains(pin),
        });
        IoapicState { version: *version, requester: *requester, id: *id, select: *select, pins: pins.collect() }
    }

    /// The chip that was saved. Bits that no chip can have set (reserved ones, remote IRR of an edge pin, an
    /// edge waiting on a level pin) are dropped.
    pub fn restore(state: &IoapicState) -> Result<Self, RestoreError> {
        let IoapicState { version, requester, id, select, pins } = state;
        if *id > 0xf {
            return Err(RestoreError::Id(*id));
        }
        let mut chip = Self::new(pins.len())?.with_version(*version).with_requester(*requester).with_id(*id);
        chip.select = *select;
        for ((pin, entry), state) in (0..).zip(chip.entries.iter_mut()).zip(pins) {
            *entry = RedirectionEntry::restored(state.entry);
            chip.high.set(pin, state.level == Level::High);
            chip.edges.set(pin, state.edge && entry.trigger_mode() == Trigger::Edge);
        }
        Ok(chip)
    }

    // The indirect registers.

    fn read_selected(&self) -> u32 {
        match self.select {
            spec::INDEX_ID | spec::INDEX_ARBITRATION => u32::from(self.id) << 24,
            spec::INDEX_VERSION => {
                // The last entry's number.
                let last = u8::try_from(self.entries.len()).unwrap_or(u8::MAX).saturating_sub(1);
                u32::from(last) << 16 | self.version.number()
            }
            index => {
                match spec::entry_of(index).and_then(|(pin, half)| Some((self.entries.get(usize::from(pin))?, half))) {
                    Some((entry, half)) => entry.half(half),
                    None => u32::MAX,
                }
            }
        }
    }

    #[inline]
    fn write_selected(&mut self, value: u32) -> Written {
        if self.select == spec::INDEX_ID {
            self.id = (value >> 24) as u8 & 0xf;
        }
        // Version and arbitration are read-only: Windows writes 0 to the former.
        let Some((pin, half)) = spec::entry_of(self.select) else { return Written::Nothing };
        let Some(entry) = self.entries.get_mut(usize::from(pin)) else { return Written::Nothing };
        let in_service = entry.remote_irr();
        entry.write_half(half, value, self.writable);
        let ended = in_service && !entry.remote_irr();
        if entry.trigger_mode() == Trigger::Level {
            self.edges.remove(pin);
        }
        Written::Entry { pin, ended }
    }
}

impl Version {
    const fn number(self) -> u32 {
        match self {
            Self::V11 => 0x11,
            Self::V20 => 0x20,
        }
    }
}

/// A set of pins of one IOAPIC.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct PinSet(u128);

impl PinSet {
    /// No pin.
    pub const EMPTY: Self = Self(0);

    /// One pin. None if it is beyond 127, which no IOAPIC has.
    pub const fn only(pin: u8) -> Self {
        Self(if pin < 128 { 1 << pin } else { 0 })
    }

    /// Whether `pin` is in it.
    pub const fn contains(self, pin: u8) -> bool {
        self.0 & Self::only(pin).0 != 0
    }

    /// Whether no pin is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds `pin`.
    pub const fn insert(&mut self, pin: u8) {
        self.0 |= Self::only(pin).0;
    }

    /// Takes `pin` out.
    pub const fn remove(&mut self, pin: u8) {
        self.0 &= !Self::only(pin).0;
    }

    const fn set(&mut self, pin: u8, member: bool) {
        if member { self.insert(pin) } else { self.remove(pin) }
    }
}

impl Iterator for PinSet {
    type Item = u8;

    /// The lowest pin, taken out.
    fn next(&mut self) -> Option<u8> {
        let pin = (self.0.trailing_zeros() & 0xff) as u8;
        (pin < 128).then(|| {
            self.remove(pin);
            pin
        })
    }
}

impl FromIterator<u8> for PinSet {
    fn from_iter<I: IntoIterator<Item = u8>>(pins: I) -> Self {
        pins.into_iter().fold(Self::EMPTY, |set, pin| Self(set.0 | Self::only(pin).0))
    }
}

impl fmt::Debug for PinSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((0..128).filter(|pin| self.contains(*pin))).finish()
    }
}

#[cfg(test)]
mod tests;
