//! MSI-X: a capability, a table with one message for each vector, and the pending bit array (PBA).
//!
//! Accesses to the capability and to the BARs go in, [`Changed`] comes out. PCI Local Bus 3.0, 6.8.2.
//!
//! Where the specification leaves the result undefined: a write to an entry that is not masked takes effect at once,
//! each access for itself, so a guest that changes address and data in two of them sends the mixture in between. A
//! write to the capability or to a masked entry is reported too. The lowest two bits of an address and the reserved
//! bits of vector control are read-only zeros.

use super::{Changed, VectorConfig, bytes};
use crate::msg::Masking;
use spec::{Capability, Entry};
use std::iter;
use std::ops::Range;

/// The most vectors that a function can have: the table size field has 11 bits.
pub const MAX_VECTORS: u16 = 2048;

/// The MSI-X capability, table and PBA of one function.
///
/// ```
/// use irqfabric::msg::Masking;
/// use irqfabric::pci::VectorConfig;
/// use irqfabric::pci::msix::Msix;
///
/// // Three vectors, in a BAR of their own.
/// let mut msix = Msix::new(3, 1)?;
/// // The guest programs vector 2, unmasks it, and enables MSI-X: bit 15 of message control.
/// for (offset, value) in [(0x20, 0xfee0_1000u32), (0x28, 0x31), (0x2c, 0)] {
///     for vector in msix.write_bar(1, offset, &value.to_le_bytes()) {
///         assert_eq!((vector, msix.vector(vector).masking), (2, Masking::Disabled));
///     }
/// }
/// let changed = msix.write(2, &0x8000u16.to_le_bytes());
/// assert!(changed.eq(0..3));
/// assert_eq!(msix.vector(2), VectorConfig { address: 0xfee0_1000, data: 0x31, masking: Masking::Unmasked });
/// # Ok::<(), irqfabric::pci::msix::LayoutError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msix {
    // Configuration: the layout, and with it the read-only fields of the capability.
    table_at: Location,
    pba_at: Location,
    // State.
    capability: Capability,
    table: Box<[Entry]>,
}

/// Where a structure lies: in which BAR, and how many bytes into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Location {
    /// The BAR, 0 to 5.
    pub bar: u8,
    /// The offset, a multiple of eight.
    pub offset: u32,
}

/// Why there is no such MSI-X function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The number of vectors.
    #[error("a function has 1 to {MAX_VECTORS} MSI-X vectors, not {0}")]
    Vectors(u16),
    /// The number of a BAR.
    #[error("a function has BARs 0 to 5, not {0}")]
    Bar(u8),
    /// An offset that the capability cannot express.
    #[error("the offset {0:#x} is not a multiple of 8")]
    Offset(u32),
    /// Table and PBA in one place.
    #[error("the table and the PBA overlap")]
    Overlap,
}

/// Why a saved state cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The table has another number of entries than the function.
    #[error("a function of {has} MSI-X vectors cannot take the state of {found}")]
    Vectors {
        /// How many vectors this function has.
        has: usize,
        /// How many entries the state's table has.
        found: usize,
    },
    /// Message control says another number of vectors than the table has.
    #[error("message control {0:#06x} does not fit the state's table")]
    MessageControl(u16),
    /// Table or PBA lie elsewhere: the guest has their old place.
    #[error("the table or the PBA of the state lies elsewhere")]
    Layout,
}

/// Everything about an MSI-X function that a guest can tell, except what is pending: that is the vectors' state.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsixState {
    /// The message control register.
    pub message_control: u16,
    /// Where the table lies.
    pub table_at: Location,
    /// Where the PBA lies.
    pub pba_at: Location,
    /// The table, one entry for each vector.
    pub table: Vec<EntryState>,
}

/// One table entry of [`MsixState`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EntryState {
    /// Message address and message upper address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Vector control.
    pub vector_control: u32,
}

impl Msix {
    /// A function of 1 to [`MAX_VECTORS`] vectors as it is after reset: disabled, every vector masked. The table lies at
    /// the start of `bar`, the PBA in the next free 4 KiB page.
    pub fn new(vectors: u16, bar: u8) -> Result<Self, LayoutError> {
        let offset = u32::from(vectors).saturating_mul(16).next_multiple_of(0x1000);
        Self::with_layout(vectors, Location { bar, offset: 0 }, Location { bar, offset })
    }

    /// The same with table and PBA where they are wanted: beside a device's registers, or where another VMM put them.
    pub fn with_layout(vectors: u16, table_at: Location, pba_at: Location) -> Result<Self, LayoutError> {
        if !(1..=MAX_VECTORS).contains(&vectors) {
            return Err(LayoutError::Vectors(vectors));
        }
        for Location { bar, offset } in [table_at, pba_at] {
            if bar > 5 {
                return Err(LayoutError::Bar(bar));
            }
            if !offset.is_multiple_of(8) {
                return Err(LayoutError::Offset(offset));
            }
        }
        let msix = Self {
            table_at,
            pba_at,
            capability: Capability::of(vectors),
            table: vec![Entry::RESET; usize::from(vectors)].into(),
        };
        let (table, pba) = (msix.table_range(), msix.pba_range());
        if table_at.bar == pba_at.bar && table.start < pba.end && pba.start < table.end {
            return Err(LayoutError::Overlap);
        }
        Ok(msix)
    }

    /// The same with another next capability pointer. It is 0, the end of the list, until then.
    pub fn with_next(self, next: u8) -> Self {
        Self { capability: self.capability.with_next(next), ..self }
    }

    /// How many vectors the function has.
    pub fn vectors(&self) -> u16 {
        self.capability.vectors()
    }

    /// The size that `bar` needs, a power of two, for what lies in it: zero if that is nothing.
    pub fn bar_size(&self, bar: u8) -> u64 {
        self.ranges(bar).map(|range| range.end).max().map_or(0, u64::next_power_of_two)
    }

    /// Where in `bar` the table and the PBA lie: what must come out to the VMM when the rest of the BAR does not.
    pub fn ranges(&self, bar: u8) -> impl Iterator<Item = Range<u64>> {
        let here = [(self.table_at.bar, self.table_range()), (self.pba_at.bar, self.pba_range())];
        here.into_iter().filter_map(move |(at, range)| (at == bar).then_some(range))
    }

    // The way in: the capability.

    /// How many bytes of configuration space the capability takes.
    pub const fn size(&self) -> usize {
        12
    }

    /// The guest reads `data.len()` bytes at `offset` into the capability.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        bytes::read(self.registers().as_flattened(), offset, data);
    }

    /// The guest writes `data` at `offset` into the capability. Only enable and function mask can be written.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Changed {
        let mut registers = self.registers();
        let writable = [Capability::WRITABLE, 0, 0].map(u32::to_le_bytes);
        bytes::merge(registers.as_flattened_mut(), writable.as_flattened(), offset, data);
        let [capability, ..] = registers.map(u32::from_le_bytes);
        self.set_capability(Capability::from_bits(capability))
    }

    // The way in: the BARs.

    /// The guest reads `data.len()` bytes at `offset` into a BAR; `pending` is as for [`read_pba`](Self::read_pba).
    /// Bytes that belong neither to the table nor to the PBA read zero.
    pub fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8], pending: impl FnMut(u16) -> bool) {
        data.fill(0);
        if let Some((offset, part)) = overlap(self.table_at.bar == bar, self.table_range(), offset, data.len())
            && let Some(data) = data.get_mut(part)
        {
            self.read_table(offset, data);
        }
        if let Some((offset, part)) = overlap(self.pba_at.bar == bar, self.pba_range(), offset, data.len())
            && let Some(data) = data.get_mut(part)
        {
            self.read_pba(offset, data, pending);
        }
    }

    /// The guest writes `data` at `offset` into a BAR. Bytes that do not belong to the table are ignored: the PBA is
    /// read-only.
    pub fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Changed {
        match overlap(self.table_at.bar == bar, self.table_range(), offset, data.len()) {
            Some((offset, part)) => self.write_table(offset, data.get(part).unwrap_or_default()),
            None => Changed::NOTHING,
        }
    }

    /// The guest reads `data.len()` bytes at `offset` into the table. Beyond its end it reads zero.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (offset, byte) in (offset..=u64::MAX).zip(data) {
            let (vector, lane) = Entry::at(offset);
            let Some(entry) = usize::try_from(vector).ok().and_then(|vector| self.table.get(vector)) else { break };
            bytes::read(&entry.to_bytes(), lane, std::slice::from_mut(byte));
        }
    }

    /// The guest writes `data` at `offset` into the table. What goes beyond its end is ignored.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Changed {
        let function = self.capability.masking();
        let mut changed = Changed::NOTHING;
        for (vector, lane, part) in by_entry(offset, data) {
            let Ok(vector) = u16::try_from(vector) else { break };
            let Some(entry) = self.table.get_mut(usize::from(vector)) else { break };
            let before = entry.config(function);
            entry.merge(lane, part);
            if entry.config(function) != before {
                changed.add(vector);
            }
        }
        changed
    }

    /// The guest reads `data.len()` bytes at `offset` into the PBA: one bit for each vector, from bit 0 on.
    ///
    /// `pending` is asked once for each vector that the access covers, in ascending order. Beyond the last vector the
    /// bits are zero.
    pub fn read_pba(&self, offset: u64, data: &mut [u8], mut pending: impl FnMut(u16) -> bool) {
        data.fill(0);
        for (offset, byte) in (offset..=u64::MAX).zip(data) {
            let first = u16::try_from(offset).unwrap_or(u16::MAX).saturating_mul(8);
            let vectors = first..self.vectors();
            *byte = [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80]
                .into_iter()
                .zip(vectors)
                .fold(0, |bits, (bit, vector)| if pending(vector) { bits | bit } else { bits });
        }
    }

    /// The function is reset.
    pub fn reset(&mut self) -> Changed {
        self.capability = self.capability.with_enable(false).with_function_mask(false);
        self.table.fill(Entry::RESET);
        Changed::all(self.vectors())
    }

    // The way out.

    /// Whether MSI-X is enabled. While it is, the function may not use its INTx pin.
    pub fn is_enabled(&self) -> bool {
        self.capability.enable()
    }

    /// What the guest has programmed for `vector`; [`VectorConfig::NONE`] beyond the last.
    pub fn vector(&self, vector: u16) -> VectorConfig {
        let entry = self.table.get(usize::from(vector));
        entry.map_or(VectorConfig::NONE, |entry| entry.config(self.capability.masking()))
    }

    // Snapshots.

    /// Everything that a guest can tell about the function.
    pub fn save(&self) -> MsixState {
        let Self { table_at, pba_at, capability, table } = self;
        MsixState {
            message_control: capability.message_control(),
            table_at: *table_at,
            pba_at: *pba_at,
            table: table.iter().map(|entry| entry.save()).collect(),
        }
    }

    /// Takes over a state, of which read-only and reserved bits are dropped. What is not this function's is refused, and
    /// nothing changes. Every vector counts as changed.
    pub fn restore(&mut self, state: &MsixState) -> Result<Changed, RestoreError> {
        let MsixState { message_control, table_at, pba_at, table } = state;
        if table.len() != self.table.len() {
            return Err(RestoreError::Vectors { has: self.table.len(), found: table.len() });
        }
        let capability = self.capability.with_message_control(*message_control);
        if capability.vectors() != self.vectors() {
            return Err(RestoreError::MessageControl(*message_control));
        }
        if (*table_at, *pba_at) != (self.table_at, self.pba_at) {
            return Err(RestoreError::Layout);
        }
        self.capability = capability;
        for (entry, state) in self.table.iter_mut().zip(table) {
            *entry = Entry::restored(state);
        }
        Ok(Changed::all(self.vectors()))
    }

    // Private helpers.

    fn registers(&self) -> [[u8; 4]; 3] {
        let location = |at: Location| at.offset | u32::from(at.bar);
        let registers = [self.capability.into_bits(), location(self.table_at), location(self.pba_at)];
        registers.map(u32::to_le_bytes)
    }

    fn set_capability(&mut self, capability: Capability) -> Changed {
        let before = self.capability.masking();
        self.capability = capability;
        if capability.masking() == before {
            return Changed::NOTHING;
        }
        Changed::all(self.vectors())
    }

    fn table_range(&self) -> Range<u64> {
        self.table_at.range(u64::from(self.vectors()).saturating_mul(Entry::SIZE))
    }

    fn pba_range(&self) -> Range<u64> {
        self.pba_at.range(u64::from(self.vectors()).div_ceil(64).saturating_mul(8))
    }
}

impl Location {
    fn range(self, size: u64) -> Range<u64> {
        let start = u64::from(self.offset);
        start..start.saturating_add(size)
    }
}

/// Which part of an access of `len` bytes at `offset` falls into `range`, and how far into it.
fn overlap(same_bar: bool, range: Range<u64>, offset: u64, len: usize) -> Option<(u64, Range<usize>)> {
    let skipped = usize::try_from(range.start.saturating_sub(offset)).ok()?;
    let left = range.end.saturating_sub(offset.max(range.start));
    let end = skipped.saturating_add(usize::try_from(left).unwrap_or(usize::MAX)).min(len);
    (same_bar && skipped < end).then_some((offset.saturating_sub(range.start), skipped..end))
}

/// Cuts a write into what each entry gets: its vector, the offset into the entry, and the bytes.
fn by_entry(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, u64, &[u8])> {
    let (vector, lane) = Entry::at(offset);
    let first = usize::try_from(Entry::SIZE.saturating_sub(lane)).unwrap_or_default();
    let (first, rest) = data.split_at_checked(first).unwrap_or((data, &[]));
    let rest = (vector..).skip(1).zip(rest.chunks(size_of::<Entry>())).map(|(vector, part)| (vector, 0, part));
    iter::once((vector, lane, first)).chain(rest)
}

/// The registers as the specification lays them out.
mod spec {
    use super::*;
    use bitfield_struct::bitfield;

    const CAPABILITY_ID: u8 = 0x11;

    /// The capability's first double word, message control in its upper half.
    #[bitfield(u32)]
    #[derive(PartialEq, Eq)]
    pub(super) struct Capability {
        pub id: u8,
        pub next: u8,
        /// The number of vectors less one.
        #[bits(11)]
        pub table_size: u16,
        #[bits(3)]
        __: u8,
        pub function_mask: bool,
        pub enable: bool,
    }

    impl Capability {
        /// The bits that a guest may write.
        pub(super) const WRITABLE: u32 = Self::new().with_function_mask(true).with_enable(true).into_bits();

        pub(super) fn of(vectors: u16) -> Self {
            Self::new().with_id(CAPABILITY_ID).with_table_size(vectors.saturating_sub(1))
        }

        pub(super) fn vectors(self) -> u16 {
            self.table_size().saturating_add(1)
        }

        pub(super) fn message_control(self) -> u16 {
            (self.into_bits() >> 16) as u16
        }

        /// Reserved bits of `control` are dropped.
        pub(super) fn with_message_control(self, control: u16) -> Self {
            let control = Self::from_bits(u32::from(control) << 16);
            self.with_table_size(control.table_size())
                .with_function_mask(control.function_mask())
                .with_enable(control.enable())
        }

        /// What holds for all vectors (6.8.3.5): the function mask does not change their own mask bits.
        pub(super) fn masking(self) -> Masking {
            match (self.enable(), self.function_mask()) {
                (false, _) => Masking::Disabled,
                (true, true) => Masking::Masked,
                (true, false) => Masking::Unmasked,
            }
        }
    }

    /// A table entry: message address, message upper address, message data, vector control.
    #[bitfield(u128)]
    #[derive(PartialEq, Eq)]
    pub(super) struct Entry {
        pub address: u64,
        pub data: u32,
        pub masked: bool,
        #[bits(31)]
        __: u32,
    }

    impl Entry {
        /// In bytes.
        pub(super) const SIZE: u64 = 16;

        /// The specification leaves address and data undefined.
        pub(super) const RESET: Self = Self::new().with_masked(true);

        /// The bits that a guest may write.
        const WRITABLE: Self = Self::new().with_address(!3).with_data(u32::MAX).with_masked(true);

        /// The vector whose entry an offset into the table falls into, and how far into it.
        pub(super) fn at(offset: u64) -> (u64, u64) {
            (offset / Self::SIZE, offset % Self::SIZE)
        }

        pub(super) fn to_bytes(self) -> [u8; size_of::<Self>()] {
            self.into_bits().to_le_bytes()
        }

        pub(super) fn merge(&mut self, offset: u64, data: &[u8]) {
            let mut entry = self.to_bytes();
            bytes::merge(&mut entry, &Self::WRITABLE.to_bytes(), offset, data);
            *self = Self::from_bits(u128::from_le_bytes(entry));
        }

        /// What the entry asks for in a function that is so masked.
        pub(super) fn config(self, function: Masking) -> VectorConfig {
            let masking = match function {
                Masking::Unmasked if self.masked() => Masking::Masked,
                function => function,
            };
            VectorConfig { address: self.address(), data: self.data(), masking }
        }

        pub(super) fn save(self) -> EntryState {
            EntryState { address: self.address(), data: self.data(), vector_control: u32::from(self.masked()) }
        }

        pub(super) fn restored(state: &EntryState) -> Self {
            let EntryState { address, data, vector_control } = *state;
            let masked = vector_control & 1 != 0;
            let entry = Self::new().with_address(address).with_data(data).with_masked(masked);
            Self::from_bits(entry.into_bits() & Self::WRITABLE.into_bits())
        }
    }
}

#[cfg(test)]
mod tests;
