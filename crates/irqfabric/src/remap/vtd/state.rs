//! Snapshots of a remapping unit, in two parts, as it is.
//!
//! Registers are laid out as the guest reads them. Bits that no register has are dropped; what could not be so is
//! refused.

use super::faults::{Event, Faults};
use super::queue::{Done, Queue};
use super::spec::{
    self, EVENT_ADDRESS_WRITABLE, EventControl, FaultRecord, FaultStatus, Global, QueueAddress, RemappingTable,
};
use super::{Command, Tables, Underway, Vtd};

/// Everything about a [`Vtd`] that a guest can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VtdState {
    /// GSTS_REG.
    pub global_status: u32,
    /// RTADDR_REG.
    pub root_table: u64,
    /// IRTA_REG.
    pub remapping_table: u64,
    /// IRTA_REG as the last SIRTP command that is done took it.
    pub remapping_table_in_force: u64,
    /// The command that the owner has not been told of yet.
    pub command: Option<CommandState>,
    /// The invalidation queue.
    pub queue: QueueState,
    /// The effect that was handed out last: it counts as performed.
    pub underway: Option<UnderwayState>,
}

/// A global command that is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CommandState {
    /// GSTS_REG once it is done: IRES and CFIS, and IRTPS if it is a SIRTP command.
    pub global_status: u32,
    /// IRTA_REG as it takes it.
    pub remapping_table: u64,
}

/// The invalidation queue's part of [`VtdState`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct QueueState {
    /// IQA_REG.
    pub address: u64,
    /// IQH_REG.
    pub head: u32,
    /// IQT_REG.
    pub tail: u32,
    /// ICS_REG.
    pub completion_status: u32,
    /// IECTL_REG and those behind it.
    pub event: EventState,
}

/// What the guest sees next of an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum UnderwayState {
    /// A global command is done.
    Command(CommandState),
    /// The queue's head moves.
    Queue {
        /// To there.
        head: u32,
        /// And a wait descriptor that asks for an interrupt is complete.
        interrupt: bool,
    },
}

/// Everything about [`Faults`] that a guest can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FaultsState {
    /// FSTS_REG.
    pub status: u32,
    /// The FRCD_REGs, the low half of each first.
    pub records: [[u64; 2]; spec::FAULT_REGISTERS as usize],
    /// Which of them is next.
    pub next: u8,
    /// FECTL_REG and those behind it.
    pub event: EventState,
}

/// The four registers of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EventState {
    /// Control.
    pub control: u32,
    /// Data.
    pub data: u32,
    /// Address and upper address.
    pub address: u64,
}

/// Why a saved state cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The head or the tail of the queue, one that the register cannot hold.
    #[error("{0:#x} is no offset into an invalidation queue")]
    QueueOffset(u32),
    /// The number of a fault recording register.
    #[error("there is no fault recording register {0}")]
    FaultRegister(u8),
}

impl Vtd {
    /// Everything that a guest can tell about the registers and the queue.
    ///
    /// The effect that [`next`](Self::next) gave last counts as performed: nothing is done twice after a restore.
    pub fn save(&self) -> VtdState {
        let Self {
            root_table,
            root_table_set: _,
            table,
            tables,
            table_set: _,
            command,
            queued_invalidation: _,
            queue,
            underway,
        } = self;
        VtdState {
            global_status: self.status().into_bits(),
            root_table: *root_table,
            remapping_table: table.into_bits(),
            remapping_table_in_force: tables.table.into_bits(),
            command: command.map(Command::save),
            queue: queue.save(),
            underway: underway.map(|underway| match underway {
                Underway::Command(command) => UnderwayState::Command(command.save()),
                Underway::Queue(Done { head, interrupt }) => UnderwayState::Queue { head, interrupt },
            }),
        }
    }

    /// The unit that was saved. The owner translates by its [`tables`](Self::tables) from now on, and asks
    /// [`next`](Self::next) what was left to do.
    pub fn restore(state: &VtdState) -> Result<Self, RestoreError> {
        let VtdState { global_status, root_table, remapping_table, remapping_table_in_force, command, queue, underway } =
            state;
        let status = Global::from_bits(*global_status);
        Ok(Self {
            root_table: root_table & spec::ROOT_TABLE_WRITABLE,
            root_table_set: status.root_table_pointer(),
            table: table(*remapping_table),
            tables: tables(status, *remapping_table_in_force),
            table_set: status.remapping_table_pointer(),
            command: command.as_ref().map(Command::restored),
            queued_invalidation: status.queued_invalidation(),
            queue: Queue::restored(queue)?,
            underway: match underway {
                None => None,
                Some(UnderwayState::Command(command)) => Some(Underway::Command(Command::restored(command))),
                Some(UnderwayState::Queue { head, interrupt }) => {
                    Some(Underway::Queue(Done { head: offset(*head)?, interrupt: *interrupt }))
                }
            },
        })
    }
}

impl Command {
    fn save(self) -> CommandState {
        let Self { tables: Tables { table, remapping, compatibility_format }, pointer } = self;
        let status = Global::new()
            .with_remapping(remapping)
            .with_compatibility_format(compatibility_format)
            .with_remapping_table_pointer(pointer);
        CommandState { global_status: status.into_bits(), remapping_table: table.into_bits() }
    }

    fn restored(state: &CommandState) -> Self {
        let CommandState { global_status, remapping_table } = *state;
        let status = Global::from_bits(global_status);
        Self { tables: tables(status, remapping_table), pointer: status.remapping_table_pointer() }
    }
}

impl Queue {
    fn save(&self) -> QueueState {
        let Self { address, head, tail, wait_complete, event } = self;
        QueueState {
            address: address.into_bits(),
            head: *head,
            tail: *tail,
            completion_status: u32::from(*wait_complete),
            event: event.save(),
        }
    }

    fn restored(state: &QueueState) -> Result<Self, RestoreError> {
        let QueueState { address, head, tail, completion_status, event } = state;
        let wait_complete = completion_status & spec::WAIT_COMPLETE != 0;
        Ok(Self {
            address: QueueAddress::from_bits(address & QueueAddress::WRITABLE),
            head: offset(*head)?,
            tail: offset(*tail)?,
            wait_complete,
            event: Event::restored(event, wait_complete),
        })
    }
}

impl Faults {
    /// Everything that a guest can tell about the recorded faults.
    pub fn save(&self) -> FaultsState {
        let Self { overflow: _, queue_error: _, first: _, records, next, event } = self;
        FaultsState {
            status: self.read_status(),
            records: records.map(|record| halves(record.into_bits())),
            next: *next,
            event: event.save(),
        }
    }

    /// The faults that were saved.
    pub fn restore(state: &FaultsState) -> Result<Self, RestoreError> {
        let FaultsState { status, records, next, event } = state;
        let status = FaultStatus::from_bits(*status);
        let mut faults = Self {
            overflow: status.overflow(),
            queue_error: status.queue_error(),
            first: register(status.first())?,
            records: records.map(FaultRecord::restored),
            next: register(*next)?,
            event: Event::restored(event, true),
        };
        faults.settle();
        Ok(faults)
    }
}

impl FaultRecord {
    fn restored([low, high]: [u64; 2]) -> Self {
        let record = Self::from_bits(u128::from(high) << 64 | u128::from(low));
        // Only the fields that are ours.
        Self::new()
            .with_index(record.index())
            .with_source(record.source())
            .with_reason(record.reason())
            .with_fault(record.fault())
    }
}

impl Event {
    fn save(&self) -> EventState {
        let Self { masked, pending, data, address } = *self;
        let control = EventControl::new().with_masked(masked).with_pending(pending);
        EventState { control: control.into_bits(), data, address }
    }

    /// No event is pending without its reason.
    fn restored(state: &EventState, reason: bool) -> Self {
        let EventState { control, data, address } = *state;
        let control = EventControl::from_bits(control);
        let pending = control.pending() && reason;
        Self { masked: control.masked(), pending, data, address: address & EVENT_ADDRESS_WRITABLE }
    }
}

fn table(bits: u64) -> RemappingTable {
    RemappingTable::from_bits(bits & RemappingTable::WRITABLE)
}

fn tables(status: Global, bits: u64) -> Tables {
    Tables { table: table(bits), remapping: status.remapping(), compatibility_format: status.compatibility_format() }
}

fn offset(offset: u32) -> Result<u32, RestoreError> {
    if offset & !spec::QUEUE_OFFSET == 0 { Ok(offset) } else { Err(RestoreError::QueueOffset(offset)) }
}

fn register(register: u8) -> Result<u8, RestoreError> {
    if register < spec::FAULT_REGISTERS { Ok(register) } else { Err(RestoreError::FaultRegister(register)) }
}

fn halves(bits: u128) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bits.to_le_bytes();
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes(rest)]
}
