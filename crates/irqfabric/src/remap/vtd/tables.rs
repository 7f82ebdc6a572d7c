//! From a message to an interrupt through the interrupt remapping table (5.1).

use super::spec::{Entry, RemappingTable};
use crate::memory::Memory;
use crate::msg::{
    DeliveryMode, DestinationFormat, Interrupt, Message, MsiAddress, NotAnInterrupt, RedirectionHint, RequesterId,
    Trigger,
};
use crate::remap::{self, Cookie, Refusal, Target, Translation};

/// What decides how messages are translated: the table's place and size, and whether it is used at all.
///
/// A copy of what [`Vtd`](super::Vtd) has in force, for those that translate, who need no other part of it. Nothing is
/// cached in it: each call reads the entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// IRTA_REG, as the last SIRTP command took it.
    pub(super) table: RemappingTable,
    /// IRES.
    pub(super) remapping: bool,
    /// CFIS.
    pub(super) compatibility_format: bool,
}

/// Why a message is not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no interrupt, which is no fault either.
    #[error(transparent)]
    NotAnInterrupt(#[from] NotAnInterrupt),
    /// It is blocked.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NotAnInterrupt(what) => Self::NotAnInterrupt(what),
            Refused::Fault(fault) => Self::Blocked(fault.into()),
        }
    }
}

/// A blocked interrupt: what [`Faults::record`](super::Faults::record) takes, when and only when it fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupt {index} of {requester} blocked: {reason}")]
pub struct Fault {
    /// Why.
    pub reason: Reason,
    /// The index that the message asked for, the lower 16 bits of it; 0 for one of compatibility format.
    pub index: u16,
    /// Who sent it.
    pub requester: RequesterId,
    /// Whether it is to be recorded.
    pub processing: FaultProcessing,
}

/// The fault reasons of interrupt remapping (7.1.3), by their encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum Reason {
    /// Reserved bits are set in the message.
    #[error("reserved bits of the request are set")]
    ReservedRequest = 0x20,
    /// The index is beyond the table's end.
    #[error("the index is beyond the table")]
    Index = 0x21,
    /// The entry is not present. Qualified.
    #[error("the entry is not present")]
    NotPresent = 0x22,
    /// The table is not in memory.
    #[error("the table cannot be read")]
    Unreadable = 0x23,
    /// Reserved bits, or reserved encodings, are set in the entry. Qualified.
    #[error("reserved bits of the entry are set")]
    ReservedEntry = 0x24,
    /// The message is of compatibility format.
    #[error("compatibility format")]
    CompatibilityFormat = 0x25,
    /// The entry is for another requester. Qualified.
    #[error("the source id is another's")]
    Source = 0x26,
}

/// Whether a fault is recorded. FPD of an entry switches it off for the faults that the entry itself is the reason of:
/// the qualified ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultProcessing {
    /// It is.
    Enabled,
    /// It is blocked in silence.
    Disabled,
}

impl Reason {
    const ALL: [Self; 7] = [
        Self::ReservedRequest,
        Self::Index,
        Self::NotPresent,
        Self::Unreadable,
        Self::ReservedEntry,
        Self::CompatibilityFormat,
        Self::Source,
    ];
}

impl From<Fault> for remap::Fault {
    fn from(fault: Fault) -> Self {
        let Fault { reason, index, requester: _, processing } = fault;
        let silent = processing == FaultProcessing::Disabled;
        Self { reason: reason as u8, cookie: Some(Cookie(index.into())), silent }
    }
}

impl Fault {
    /// The fault that a message was blocked for, as [`Remapper::record`](remap::Remapper::record) is told of it. `None` if it
    /// is none of this unit's.
    pub fn of(message: &Message, fault: remap::Fault) -> Option<Self> {
        let remap::Fault { reason, cookie, silent } = fault;
        let reason = Reason::ALL.into_iter().find(|known| *known as u8 == reason)?;
        let Cookie(index) = cookie?;
        let processing = if silent { FaultProcessing::Disabled } else { FaultProcessing::Enabled };
        Some(Self { reason, index: u16::try_from(index).ok()?, requester: message.requester, processing })
    }
}

impl Tables {
    /// Where IRES and CFIS are in a [word](Self::into_word): bits that are reserved in IRTA_REG.
    const REMAPPING: u32 = 4;
    const COMPATIBILITY_FORMAT: u32 = 5;

    /// All of it at once, for an atomic.
    pub(crate) fn into_word(self) -> u64 {
        let Self { table, remapping, compatibility_format } = self;
        let flags =
            u64::from(remapping) << Self::REMAPPING | u64::from(compatibility_format) << Self::COMPATIBILITY_FORMAT;
        table.into_bits() | flags
    }

    /// What [`into_word`](Self::into_word) made a word of.
    pub(crate) const fn from_word(word: u64) -> Self {
        Self {
            table: RemappingTable::from_bits(word & RemappingTable::WRITABLE),
            remapping: word >> Self::REMAPPING & 1 == 1,
            compatibility_format: word >> Self::COMPATIBILITY_FORMAT & 1 == 1,
        }
    }

    /// IRTA_REG, IRES and CFIS.
    pub(crate) const fn registers(&self) -> (u64, bool, bool) {
        (self.table.into_bits(), self.remapping, self.compatibility_format)
    }

    /// What `message` becomes now. Reads each half of the message's entry once, and nothing else; records nothing.
    // Inlined, with what it calls: an interrupt handed back in memory is written by bytes, and slow to be read as a whole.
    #[inline(always)]
    pub fn translate(&self, message: &Message, memory: &dyn Memory) -> Result<Translation, Refused> {
        if !message.is_interrupt() {
            return Err(NotAnInterrupt::Memory(message.address).into());
        }
        if !self.remapping {
            return Ok(untranslated(message)?);
        }
        let blocked =
            |reason, index| Fault { reason, index, requester: message.requester, processing: FaultProcessing::Enabled };
        let Some(request) = Request::of(message) else {
            if self.compatibility_format && !self.table.extended_interrupt_mode() {
                return Ok(untranslated(message)?);
            }
            return Err(blocked(Reason::CompatibilityFormat, 0).into());
        };
        let index = request.index();
        let [low, high, ..] = index.to_le_bytes();
        let blocked = |reason| blocked(reason, u16::from_le_bytes([low, high]));
        if request.reserved {
            return Err(blocked(Reason::ReservedRequest).into());
        }
        if index >= self.entries() {
            return Err(blocked(Reason::Index).into());
        }
        let entry = self.read(index, memory).ok_or(blocked(Reason::Unreadable))?;
        let interrupt = self.check(entry, message.requester).map_err(|reason| Fault {
            processing: if entry.fault_processing_disable() {
                FaultProcessing::Disabled
            } else {
                FaultProcessing::Enabled
            },
            ..blocked(reason)
        })?;
        Ok(Translation { target: Target::Interrupt(interrupt), cookie: Some(Cookie(index)) })
    }

    /// How many entries the table has: 2 to 65,536.
    fn entries(&self) -> u32 {
        2 << self.table.size()
    }

    fn read(&self, index: u32, memory: &dyn Memory) -> Option<Entry> {
        let base = self.table.page().checked_shl(12)?;
        let address = base.checked_add(u64::from(index).checked_mul(Entry::SIZE)?)?;
        // Neither half is torn. The two are of one entry as long as software changes only one of them at once, or switches
        // P off in between, which a second read could not make sure of either.
        let mut halves = [[0; 8]; 2];
        memory.read(address, halves.as_flattened_mut()).ok()?;
        // One by one: what was stored in halves is slow to be loaded as a whole.
        let [low, high] = halves.map(u64::from_le_bytes);
        Some(Entry::from_bits(u128::from(high) << 64 | u128::from(low)))
    }

    /// What the entry gives to a requester: the qualified faults, in the order of 5.1.4.
    #[inline(always)]
    fn check(&self, entry: Entry, requester: RequesterId) -> Result<Interrupt, Reason> {
        if !entry.present() {
            return Err(Reason::NotPresent);
        }
        let extended = self.table.extended_interrupt_mode();
        let reserved = if extended { Entry::RESERVED } else { Entry::RESERVED | Entry::RESERVED_XAPIC };
        if entry.into_bits() & reserved != 0 {
            return Err(Reason::ReservedEntry);
        }
        let delivery_mode = DeliveryMode::from_bits(entry.delivery_mode()).ok_or(Reason::ReservedEntry)?;
        let validation = SourceValidation::of(entry).ok_or(Reason::ReservedEntry)?;
        if !validation.accepts(requester) {
            return Err(Reason::Source);
        }
        Ok(Interrupt {
            destination: if extended { entry.destination() } else { entry.destination() >> 8 },
            destination_mode: entry.destination_mode(),
            redirection_hint: if entry.redirection_hint() { RedirectionHint::Any } else { RedirectionHint::All },
            delivery_mode,
            // NMI, SMI, INIT and ExtINT have no end to report: level is treated as edge.
            trigger: if delivery_mode.has_vector() { entry.trigger() } else { Trigger::Edge },
            vector: entry.vector(),
        })
    }
}

/// A message says itself what it asks for: no remapping, or compatibility format.
fn untranslated(message: &Message) -> Result<Translation, NotAnInterrupt> {
    let interrupt = message.decode(DestinationFormat::Eight)?;
    Ok(Translation { target: Target::Interrupt(interrupt), cookie: None })
}

/// A message of remappable format (5.1.2.2): it names an entry.
struct Request {
    handle: u16,
    /// Zero unless the message says that it has one (SHV).
    subhandle: u16,
    reserved: bool,
}

impl Request {
    /// `None` for a message of compatibility format.
    fn of(message: &Message) -> Option<Self> {
        const SHV: u64 = 1 << 3;
        let [a0, a1, a2, ..] = message.address.to_le_bytes();
        if !MsiAddress::from_bits(u32::from_le_bytes([a0, a1, a2, 0])).remappable() {
            return None;
        }
        // Handle bits 14:0 are address bits 19:5, handle bit 15 is address bit 2.
        let low = u32::from_le_bytes([a0, a1, a2 & 0xf, 0]) >> 5;
        let [h0, h1, ..] = (low | u32::from(a0 >> 2 & 1) << 15).to_le_bytes();
        let has_subhandle = message.address & SHV != 0;
        let [d0, d1, d2, d3] = message.data.to_le_bytes();
        Some(Self {
            handle: u16::from_le_bytes([h0, h1]),
            subhandle: if has_subhandle { u16::from_le_bytes([d0, d1]) } else { 0 },
            // Without a subhandle the data is not looked at.
            reserved: has_subhandle && [d2, d3] != [0, 0],
        })
    }

    /// Up to 0x1fffe: the sum is not cut off.
    fn index(&self) -> u32 {
        u32::from(self.handle).saturating_add(u32::from(self.subhandle))
    }
}

/// SVT and SQ of an entry: who may use it.
enum SourceValidation {
    Anyone,
    /// Those whose id is this in the bits of the mask.
    Source {
        id: u16,
        mask: u16,
    },
    /// Those on the buses from the first to the last.
    Buses {
        first: u8,
        last: u8,
    },
}

impl SourceValidation {
    /// `None` for the encoding that is reserved.
    fn of(entry: Entry) -> Option<Self> {
        let id = entry.source();
        let [last, first] = id.to_le_bytes();
        match (entry.source_validation(), entry.source_qualifier()) {
            (0, _) => Some(Self::Anyone),
            (1, 0) => Some(Self::Source { id, mask: 0xffff }),
            (1, 1) => Some(Self::Source { id, mask: 0xfffb }),
            (1, 2) => Some(Self::Source { id, mask: 0xfff9 }),
            (1, _) => Some(Self::Source { id, mask: 0xfff8 }),
            (2, _) => Some(Self::Buses { first, last }),
            _ => None,
        }
    }

    fn accepts(&self, requester: RequesterId) -> bool {
        match *self {
            Self::Anyone => true,
            Self::Source { id, mask } => (requester.0 ^ id) & mask == 0,
            Self::Buses { first, last } => {
                let [_, bus] = requester.0.to_le_bytes();
                (first..=last).contains(&bus)
            }
        }
    }
}
