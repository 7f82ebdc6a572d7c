//! Faults and the events that report them (7.2 and 7.3).

use super::spec::{
    EVENT_ADDRESS_WRITABLE, EventControl, EventRegister, FAULT_REGISTERS, FaultRecord, FaultStatus, Half,
};
use super::{Fault, FaultProcessing};
use crate::msg::{Message, RequesterId};

/// The fault recording registers, the fault status register and the fault event.
///
/// Apart from [`Vtd`](super::Vtd), so that a delivery can record its fault while the guest's registers are held
/// elsewhere. It knows nothing of tables: a fault comes in when a blocked interrupt fires, the message that reports it
/// goes out.
///
/// A fault that is pending already, for the same requester, index and reason, is not recorded a second time, so that an
/// interrupt which fires again and again takes one register and leaves the others to the rest. (The specification lets a
/// unit go further, and drop whatever comes from a requester with a pending fault.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    pub(super) overflow: bool,
    pub(super) queue_error: bool,
    /// FRI.
    pub(super) first: u8,
    pub(super) records: [FaultRecord; FAULT_REGISTERS as usize],
    /// Where the next fault is recorded.
    pub(super) next: u8,
    pub(super) event: Event,
}

impl Default for Faults {
    /// As after reset: no fault, the event masked.
    fn default() -> Self {
        Self {
            overflow: false,
            queue_error: false,
            first: 0,
            records: [FaultRecord::new(); FAULT_REGISTERS as usize],
            next: 0,
            event: Event::default(),
        }
    }
}

impl Faults {
    /// A blocked interrupt has fired. Returns the message of the fault event, if one is due; it is not remapped: decode
    /// it by [`DestinationFormat::ThirtyTwo`](crate::msg::DestinationFormat::ThirtyTwo).
    ///
    /// A silent fault leaves no trace. When the register whose turn it is still holds a fault the overflow bit is set,
    /// and until the guest clears that nothing more is recorded (7.2.1).
    #[must_use = "the event is lost if its message is not sent"]
    pub fn record(&mut self, fault: &Fault) -> Option<Message> {
        let Fault { reason, index, requester, processing } = *fault;
        if processing == FaultProcessing::Disabled || self.overflow {
            return None;
        }
        let record =
            FaultRecord::new().with_index(index).with_source(requester.0).with_reason(reason as u8).with_fault(true);
        if self.records.contains(&record) {
            return None;
        }
        let quiet = self.is_quiet();
        let was_pending = self.is_pending();
        match self.records.get_mut(usize::from(self.next)).filter(|place| !place.fault()) {
            Some(place) => {
                *place = record;
                if !was_pending {
                    self.first = self.next;
                }
                self.next = (0..FAULT_REGISTERS).find(|&place| place > self.next).unwrap_or(0);
            }
            None => self.overflow = true,
        }
        self.condition(quiet);
        self.due()
    }

    /// The invalidation queue stops at a descriptor that is wrong.
    pub(super) fn record_queue_error(&mut self) {
        let quiet = self.is_quiet();
        self.queue_error = true;
        self.condition(quiet);
    }

    /// Whether the queue stands still until the guest has cleared its error.
    pub(super) fn has_queue_error(&self) -> bool {
        self.queue_error
    }

    /// Interrupt remapping is off: the next fault is recorded in the first register (7.2.1).
    pub(super) fn restart(&mut self) {
        self.next = 0;
    }

    /// The message of the fault event, if it was unmasked while it was pending.
    pub(super) fn due(&mut self) -> Option<Message> {
        self.event.due()
    }

    // Registers.

    pub(super) fn read_status(&self) -> u32 {
        FaultStatus::new()
            .with_overflow(self.overflow)
            .with_pending(self.is_pending())
            .with_queue_error(self.queue_error)
            .with_first(self.first)
            .into_bits()
    }

    /// Ones clear what can be cleared.
    pub(super) fn write_status(&mut self, value: u32) {
        let cleared = FaultStatus::from_bits(value);
        self.overflow &= !cleared.overflow();
        self.queue_error &= !cleared.queue_error();
        self.settle();
    }

    pub(super) fn read_record(&self, record: usize, word: usize) -> u32 {
        let bytes = self.records.get(record).map_or(0, |record| record.into_bits()).to_le_bytes();
        let (words, _) = bytes.as_chunks();
        words.get(word).map_or(0, |&word| u32::from_le_bytes(word))
    }

    /// A one clears the fault bit, the highest of the register. The rest is read-only.
    pub(super) fn write_record(&mut self, record: usize, word: usize, value: u32) {
        if word == 3
            && value >> 31 != 0
            && let Some(record) = self.records.get_mut(record)
        {
            record.set_fault(false);
            self.settle();
        }
    }

    pub(super) fn event(&self) -> &Event {
        &self.event
    }

    pub(super) fn event_mut(&mut self) -> &mut Event {
        &mut self.event
    }

    // The interrupt condition.

    /// PPF.
    fn is_pending(&self) -> bool {
        self.records.iter().any(|record| record.fault())
    }

    /// Whether nothing is reported at all.
    fn is_quiet(&self) -> bool {
        !self.overflow && !self.queue_error && !self.is_pending()
    }

    /// Something new is reported: an interrupt condition only if nothing was before (11.4.7.2).
    fn condition(&mut self, was_quiet: bool) {
        if was_quiet && !self.is_quiet() {
            self.event.pending = true;
        }
    }

    /// The guest has served everything: an event that could not be sent until now is not sent any more.
    pub(super) fn settle(&mut self) {
        if self.is_quiet() {
            self.event.pending = false;
        }
    }
}

/// An interrupt of the unit itself: control, data, address and upper address registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) masked: bool,
    pub(super) pending: bool,
    pub(super) data: u32,
    pub(super) address: u64,
}

impl Default for Event {
    fn default() -> Self {
        Self { masked: true, pending: false, data: 0, address: 0 }
    }
}

impl Event {
    /// The message to send now, if one is pending and may be sent: it is pending no more.
    pub(super) fn due(&mut self) -> Option<Message> {
        let due = self.pending && !self.masked;
        due.then(|| {
            self.pending = false;
            Message { address: self.address, data: self.data, requester: RequesterId::default() }
        })
    }

    pub(super) fn read(&self, register: EventRegister) -> u32 {
        match register {
            EventRegister::Control => {
                EventControl::new().with_masked(self.masked).with_pending(self.pending).into_bits()
            }
            EventRegister::Data => self.data,
            EventRegister::Address => Half::Low.of(self.address),
            EventRegister::UpperAddress => Half::High.of(self.address),
        }
    }

    /// Whether an event is pending is read-only.
    pub(super) fn write(&mut self, register: EventRegister, value: u32) {
        match register {
            EventRegister::Control => self.masked = EventControl::from_bits(value).masked(),
            EventRegister::Data => self.data = value,
            EventRegister::Address => self.address = Half::Low.merge(self.address, EVENT_ADDRESS_WRITABLE, value),
            EventRegister::UpperAddress => self.address = Half::High.merge(self.address, EVENT_ADDRESS_WRITABLE, value),
        }
    }
}
