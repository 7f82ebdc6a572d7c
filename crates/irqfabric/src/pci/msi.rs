//! MSI: one address and up to 32 messages that differ in the low bits of their data, all in configuration space.
//!
//! Accesses to the capability go in, [`Changed`] comes out. PCI Local Bus 3.0, 6.8.1.
//!
//! The guest allots 1 to as many messages as the function is capable of, by a power of two: more than that, or a
//! reserved encoding, allots all. A function may send the allotted messages only, so with fewer than it has vectors
//! its vectors share them: vector n sends message n modulo their number, and has that message's mask and pending bit.

use super::{Changed, VectorConfig, bytes};
use crate::msg::Masking;
use spec::Header;

/// The most messages that a function can have.
pub const MAX_MESSAGES: u8 = 32;

/// The MSI capability of one function.
///
/// ```
/// use irqfabric::msg::Masking;
/// use irqfabric::pci::VectorConfig;
/// use irqfabric::pci::msi::Msi;
///
/// let mut msi = Msi::new(4)?;
/// // The guest programs the address, the data, and enables all four messages.
/// for (offset, value) in [(0x4, 0xfee0_1000u32), (0x8, 0), (0xc, 0x40)] {
///     assert!(msi.write(offset, &value.to_le_bytes()).all(|vector| msi.vector(vector).masking == Masking::Disabled));
/// }
/// let changed = msi.write(2, &0x0021u16.to_le_bytes());
/// assert!(changed.eq(0..4));
/// assert_eq!(msi.vector(3), VectorConfig { address: 0xfee0_1000, data: 0x43, masking: Masking::Unmasked });
/// # Ok::<(), irqfabric::pci::msi::MessageCountError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msi {
    // Configuration and state: the capability's first double word holds both.
    header: Header,
    // State.
    address: u64,
    data: u16,
    mask: u32,
}

/// A number of messages that the capability cannot express.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a function has 1, 2, 4, 8, 16 or {MAX_MESSAGES} MSI messages, not {0}")]
pub struct MessageCountError(pub u8);

/// Why a saved state cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message control {found:#06x} is another function's: this one has {has:#06x}")]
pub struct RestoreError {
    /// This function's message control register, whose read-only bits count.
    pub has: u16,
    /// The state's.
    pub found: u16,
}

/// Everything about an MSI capability that a guest can tell, except what is pending: that is the vectors' state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsiState {
    /// The message control register.
    pub message_control: u16,
    /// Message address and message upper address.
    pub address: u64,
    /// The message data register.
    pub data: u16,
    /// The mask bits.
    pub mask: u32,
}

impl Msi {
    /// A function of 1, 2, 4, 8, 16 or 32 messages as it is after reset: disabled, nothing masked. It has 64-bit
    /// addresses, mask and pending bits.
    pub fn new(messages: u8) -> Result<Self, MessageCountError> {
        if !messages.is_power_of_two() || messages > MAX_MESSAGES {
            return Err(MessageCountError(messages));
        }
        Ok(Self { header: Header::of(messages), address: 0, data: 0, mask: 0 })
    }

    /// The same without a message upper address: the capability gets four bytes shorter.
    pub fn with_32_bit_address(self) -> Self {
        Self { header: self.header.with_address_64(false), address: self.address & 0xffff_ffff, ..self }
    }

    /// The same without mask and pending bits: the capability gets ten bytes shorter.
    pub fn without_masking(self) -> Self {
        Self { header: self.header.with_per_vector_masking(false), mask: 0, ..self }
    }

    /// The same with another next capability pointer. It is 0, the end of the list, until then.
    pub fn with_next(self, next: u8) -> Self {
        Self { header: self.header.with_next(next), ..self }
    }

    /// How many vectors the function has: the messages it is capable of.
    pub fn vectors(&self) -> u16 {
        self.header.capable()
    }

    /// How many messages the guest has allotted; between that and [`vectors`](Self::vectors) messages are shared.
    pub fn allotted(&self) -> u16 {
        self.header.allotted()
    }

    // The way in.

    /// How many bytes of configuration space the capability takes: 10, 14, 20 or 24.
    pub fn size(&self) -> usize {
        match (self.header.address_64(), self.header.per_vector_masking()) {
            (false, false) => 10,
            (true, false) => 14,
            (false, true) => 20,
            (true, true) => 24,
        }
    }

    /// The guest reads `data.len()` bytes at `offset` into the capability.
    ///
    /// If the access covers the pending bits, `pending` is asked once for each of the function's vectors, in ascending
    /// order.
    pub fn read(&self, offset: u64, data: &mut [u8], pending: impl FnMut(u16) -> bool) {
        let pending = if self.covers_pending(offset, data.len()) { self.pending_bits(pending) } else { 0 };
        let [low, high] = halves(self.address);
        let registers = [self.header.into_bits(), low, high, self.data.into(), self.mask, pending];
        bytes::read(self.arrange(registers).map(u32::to_le_bytes).as_flattened(), offset, data);
    }

    /// The guest writes `data` at `offset` into the capability.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Changed {
        let [low, high] = halves(self.address);
        let registers = [self.header.into_bits(), low, high, self.data.into(), self.mask, 0];
        let mut registers = self.arrange(registers).map(u32::to_le_bytes);
        let [low, high] = halves(self.writable_address());
        let writable = [Header::WRITABLE, low, high, u16::MAX.into(), self.writable_mask(), 0];
        let writable = self.arrange(writable).map(u32::to_le_bytes);
        bytes::merge(registers.as_flattened_mut(), writable.as_flattened(), offset, data);

        let before = self.clone();
        let registers = registers.map(u32::from_le_bytes);
        let [header, low, high, data, mask] = match (self.header.address_64(), registers) {
            (true, [header, low, high, data, mask, _]) => [header, low, high, data, mask],
            (false, [header, low, data, mask, ..]) => [header, low, 0, data, mask],
        };
        self.header = Header::from_bits(header).clamped();
        self.address = u64::from(high) << 32 | u64::from(low);
        self.data = (data & 0xffff) as u16;
        self.mask = mask;
        self.changed_since(&before)
    }

    /// The function is reset.
    pub fn reset(&mut self) -> Changed {
        let before = self.clone();
        *self = Self { header: self.header.with_enable(false).with_enabled_log(0), address: 0, data: 0, mask: 0 };
        self.changed_since(&before)
    }

    // The way out.

    /// Whether MSI is enabled. While it is, the function may not use its INTx pin.
    pub fn is_enabled(&self) -> bool {
        self.header.enable()
    }

    /// What the guest has programmed for `vector`; [`VectorConfig::NONE`] beyond the last.
    pub fn vector(&self, vector: u16) -> VectorConfig {
        if vector >= self.vectors() {
            return VectorConfig::NONE;
        }
        let message = self.message_of(vector);
        let masking = match (self.is_enabled(), self.mask & bit(message)) {
            (false, _) => Masking::Disabled,
            (true, 0) => Masking::Unmasked,
            (true, _) => Masking::Masked,
        };
        // The allotted number is how many low bits of the data are the function's to set (6.8.1.3).
        let low = self.allotted().saturating_sub(1);
        VectorConfig { address: self.address, data: u32::from(self.data & !low | message), masking }
    }

    // Snapshots.

    /// Everything that a guest can tell about the capability.
    pub fn save(&self) -> MsiState {
        let Self { header, address, data, mask } = self;
        MsiState { message_control: header.message_control(), address: *address, data: *data, mask: *mask }
    }

    /// Takes over a state, of which reserved bits are dropped. What is not this function's is refused, and nothing
    /// changes. Every vector counts as changed.
    pub fn restore(&mut self, state: &MsiState) -> Result<Changed, RestoreError> {
        let MsiState { message_control, address, data, mask } = *state;
        let header = self.header.with_message_control(message_control).clamped();
        if header.fixed() != self.header.fixed() {
            return Err(RestoreError { has: self.header.message_control(), found: message_control });
        }
        let (address, mask) = (address & self.writable_address(), mask & self.writable_mask());
        *self = Self { header, address, data, mask };
        Ok(Changed::all(self.vectors()))
    }

    // Private helpers.

    /// Which of the allotted messages a vector sends.
    fn message_of(&self, vector: u16) -> u16 {
        vector & self.allotted().saturating_sub(1)
    }

    fn pending_bits(&self, mut pending: impl FnMut(u16) -> bool) -> u32 {
        let pending = (0..self.vectors()).filter(|vector| pending(*vector));
        pending.fold(0, |bits, vector| bits | bit(self.message_of(vector)))
    }

    fn covers_pending(&self, offset: u64, len: usize) -> bool {
        let (Ok(offset), end) = (usize::try_from(offset), self.size()) else { return false };
        self.header.per_vector_masking() && offset < end && offset.saturating_add(len) > end.saturating_sub(4)
    }

    /// The registers in the order of a capability with 64-bit addresses, in the order of this one.
    fn arrange(&self, registers: [u32; 6]) -> [u32; 6] {
        match (self.header.address_64(), registers) {
            (true, registers) => registers,
            (false, [header, low, _, data, mask, pending]) => [header, low, data, mask, pending, 0],
        }
    }

    fn writable_address(&self) -> u64 {
        if self.header.address_64() { !3 } else { 0xffff_fffc }
    }

    fn writable_mask(&self) -> u32 {
        if !self.header.per_vector_masking() {
            return 0;
        }
        (0..self.vectors()).fold(0, |mask, message| mask | bit(message))
    }

    fn changed_since(&self, before: &Self) -> Changed {
        let mut changed = Changed::NOTHING;
        for vector in (0..self.vectors()).filter(|vector| self.vector(*vector) != before.vector(*vector)) {
            changed.add(vector);
        }
        changed
    }
}

/// The low and the high double word of an address.
fn halves(address: u64) -> [u32; 2] {
    [(address & 0xffff_ffff) as u32, (address >> 32) as u32]
}

/// The bit of a message in the mask and pending bits.
fn bit(message: u16) -> u32 {
    1_u32.wrapping_shl(message.into())
}

/// The registers as the specification lays them out.
mod spec {
    use bitfield_struct::bitfield;

    const CAPABILITY_ID: u8 = 0x05;

    /// The capability's first double word, message control in its upper half.
    #[bitfield(u32)]
    #[derive(PartialEq, Eq)]
    pub(super) struct Header {
        pub id: u8,
        pub next: u8,
        pub enable: bool,
        /// Multiple message capable, as a power of two.
        #[bits(3)]
        pub capable_log: u8,
        /// Multiple message enable, as a power of two.
        #[bits(3)]
        pub enabled_log: u8,
        pub address_64: bool,
        pub per_vector_masking: bool,
        #[bits(7)]
        __: u8,
    }

    impl Header {
        /// The bits that a guest may write.
        pub(super) const WRITABLE: u32 = Self::new().with_enable(true).with_enabled_log(7).into_bits();

        pub(super) fn of(messages: u8) -> Self {
            Self::new()
                .with_id(CAPABILITY_ID)
                .with_capable_log(messages.checked_ilog2().map_or(0, |log| log.min(5) as u8))
                .with_address_64(true)
                .with_per_vector_masking(true)
        }

        pub(super) fn capable(self) -> u16 {
            1_u16.wrapping_shl(self.capable_log().into())
        }

        pub(super) fn allotted(self) -> u16 {
            1_u16.wrapping_shl(self.enabled_log().into())
        }

        /// No more messages are allotted than there are.
        pub(super) fn clamped(self) -> Self {
            self.with_enabled_log(self.enabled_log().min(self.capable_log()))
        }

        pub(super) fn message_control(self) -> u16 {
            (self.into_bits() >> 16) as u16
        }

        /// Reserved bits of `control` are dropped.
        pub(super) fn with_message_control(self, control: u16) -> Self {
            let control = Self::from_bits(u32::from(control) << 16);
            self.with_enable(control.enable())
                .with_capable_log(control.capable_log())
                .with_enabled_log(control.enabled_log())
                .with_address_64(control.address_64())
                .with_per_vector_masking(control.per_vector_masking())
        }

        /// What a guest cannot change.
        pub(super) fn fixed(self) -> u32 {
            self.into_bits() & !Self::WRITABLE
        }
    }
}

#[cfg(test)]
mod tests;
