//! The invalidation queue: a ring of descriptors in the guest's memory (6.5.2).

use super::faults::Event;
use super::spec::{Descriptor, QUEUE_OFFSET, QueueAddress};
use crate::memory::Memory;
use crate::remap::{Cookie, Entries};

/// How many descriptors one call looks at, at the most: some ten microseconds.
const BATCH: usize = 256;

/// The queue's registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Queue {
    pub(super) address: QueueAddress,
    /// IQH_REG: the descriptor that is next.
    pub(super) head: u32,
    /// IQT_REG: the one behind the last.
    pub(super) tail: u32,
    /// ICS_REG.IWC.
    pub(super) wait_complete: bool,
    /// The invalidation completion event.
    pub(super) event: Event,
}

/// What the queue asks for. Its head has moved past all that is done already, and not past what is asked for: that is
/// for [`Queue::done`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Nothing so far, and there may be more.
    Nothing,
    Invalidate(Entries, Done),
    Write {
        address: u64,
        data: u32,
        then: Done,
    },
    /// The descriptor at the head is wrong, or the ring is nowhere.
    Error,
}

/// What is so once a request has been performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    /// Where the head is then.
    pub(super) head: u32,
    /// Whether a wait descriptor that asks for an interrupt is complete then.
    pub(super) interrupt: bool,
}

impl Queue {
    pub(super) fn set_tail(&mut self, value: u32) {
        self.tail = value & QUEUE_OFFSET;
    }

    /// Queued invalidation is switched off, and with it starts from the ring's beginning again.
    pub(super) fn reset(&mut self) {
        self.head = 0;
    }

    /// Ones clear the wait's completion; an event that could not be sent until now is not sent any more.
    pub(super) fn acknowledge(&mut self, complete: bool) {
        if complete {
            self.wait_complete = false;
            self.event.pending = false;
        }
    }

    /// What was asked for has been performed.
    pub(super) fn done(&mut self, done: Done) {
        let Done { head, interrupt } = done;
        self.head = head;
        // Already set, it is no new interrupt condition (11.4.9.6).
        if interrupt && !self.wait_complete {
            self.wait_complete = true;
            self.event.pending = true;
        }
    }

    /// What the next descriptors ask for; `None` when the queue is empty.
    ///
    /// Invalidations that follow one another are merged where together they are one range, so that a ring full of them
    /// costs no more than its length.
    pub(super) fn request(&mut self, memory: &dyn Memory) -> Option<Request> {
        let size = self.address.bytes();
        if self.head == self.tail {
            return None;
        }
        if self.head >= size || self.tail >= size {
            return Some(Request::Error);
        }
        let mut head = self.head;
        let mut entries: Option<Entries> = None;
        let mut error = false;
        for _ in 0..BATCH {
            if head == self.tail {
                break;
            }
            let Some(descriptor) = self.read(head, memory) else {
                error = true;
                break;
            };
            let next = head.wrapping_add(Descriptor::SIZE) & size.wrapping_sub(1);
            match descriptor {
                Descriptor::Translation => {}
                Descriptor::AllEntries => entries = Some(Entries::All),
                Descriptor::Entries { index, mask } => match merged(entries.as_ref(), range(index, mask)) {
                    Some(union) => entries = Some(union),
                    None => break,
                },
                Descriptor::Wait { .. } if entries.is_some() => break,
                Descriptor::Wait { status: Some((address, data)), interrupt } => {
                    self.head = head;
                    return Some(Request::Write { address, data, then: Done { head: next, interrupt } });
                }
                Descriptor::Wait { status: None, interrupt } => {
                    self.done(Done { head: next, interrupt });
                    return Some(Request::Nothing);
                }
            }
            head = next;
        }
        Some(match entries {
            Some(entries) => Request::Invalidate(entries, Done { head, interrupt: false }),
            None => {
                self.head = head;
                if error { Request::Error } else { Request::Nothing }
            }
        })
    }

    fn read(&self, head: u32, memory: &dyn Memory) -> Option<Descriptor> {
        let mut descriptor = [0; Descriptor::SIZE as usize];
        let address = self.address.address().checked_add(u64::from(head))?;
        memory.read(address, &mut descriptor).ok()?;
        Descriptor::decode(u128::from_le_bytes(descriptor))
    }
}

/// The entries that differ from `index` in the lowest `mask` bits only. A mask beyond what ECAP_REG.MHMV allows is taken
/// at its word: that is all of them, and more than asked for may always be invalidated.
fn range(index: u16, mask: u32) -> (u16, u16) {
    let masked = !u16::MAX.checked_shl(mask).unwrap_or(0);
    (index & !masked, index | masked)
}

/// The union, if it is a range.
fn merged(entries: Option<&Entries>, (first, last): (u16, u16)) -> Option<Entries> {
    let (first, last) = (u32::from(first), u32::from(last));
    match entries {
        None => Some(Entries::Range(Cookie(first)..=Cookie(last))),
        Some(Entries::All) => Some(Entries::All),
        Some(Entries::Range(range)) => {
            let (start, end) = (range.start().0, range.end().0);
            let adjoin = first <= end.saturating_add(1) && start <= last.saturating_add(1);
            adjoin.then(|| Entries::Range(Cookie(first.min(start))..=Cookie(last.max(end))))
        }
    }
}
