//! What is recorded: fixed-size, without a pointer, so that a record is a copy.
//!
//! What is an `Option` and none of the machine's own choices is an output: replay computes it, and compares it with what
//! is there. Registers' bytes are a number, the first byte its lowest.

use crate::chip::ioapic::{IoapicState, Written};
use crate::chip::pic::PicState;
use crate::hv::Ends;
use crate::line::Level;
use crate::msg::{Acceptance, Interrupt, Masking, Message, RequesterId};
use crate::remap::vtd::{FaultsState, VtdState};
use crate::remap::{Refusal, Target, Translation};

macro_rules! recorded {
    ($($item:item)*) => {$(
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "record", serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields))]
        $item
    )*};
}

recorded! {
    /// Something that entered a machine.
    pub(crate) enum Step {
        Ioapic(IoapicStep),
        Pic(PicStep),
        Vtd(VtdStep),
        Vector(VectorStep),
        Line(LineStep),
    }

    pub(crate) enum IoapicStep {
        Set { pin: u8, level: Level, asks: Option<bool> },
        Read { offset: u64, length: u8, data: Option<u64> },
        Write { offset: u64, length: u8, data: u64, led_to: Option<Written> },
        End { pin: u8, vector: u8, ended: Option<bool> },
        /// What the pin had to send was tried. The message is the output.
        Deliver { pin: u8, outcome: Outcome, acceptance: Acceptance, message: Option<Message> },
        /// A commit has put the pin's parked route in force.
        Parked { pin: u8, interrupt: Interrupt },
        /// A commit has failed, and no route of the pin's is certain to be in force.
        Unparked { pin: u8 },
    }

    pub(crate) enum PicStep {
        Set { input: u8, level: Level, intr: Option<Level> },
        Pulse { input: u8, intr: Option<Level> },
        Read { port: u16, length: u8, data: Option<u64>, intr: Option<Level> },
        Write { port: u16, length: u8, data: u64, intr: Option<Level> },
        Acknowledge { vector: Option<u8>, intr: Option<Level> },
        /// The acknowledgement before it was an automatic end as well, which leaves the input's line at `level`.
        Ended { input: u8, level: Level, intr: Option<Level> },
    }

    pub(crate) enum VtdStep {
        Read { offset: u64, length: u8, data: Option<u64> },
        Write { offset: u64, length: u8, data: u64 },
        /// The step after it has read this of the guest's memory; nothing, if it is no memory.
        Memory { address: u64, length: u8, data: Option<[u64; 2]> },
        /// The effect before it was performed, and the next asked for.
        Next { effect: Option<Effects> },
        /// A message was blocked.
        Fault { reason: u8, index: u16, requester: RequesterId, silent: bool, event: Option<Effects> },
    }

    pub(crate) enum Effects {
        None,
        Nothing,
        Retranslate { table: u64, remapping: bool, compatibility_format: bool },
        InvalidateAll,
        Invalidate { first: u32, last: u32 },
        Write { address: u64, data: u32 },
        Send(Message),
    }

    pub(crate) enum VectorStep {
        Program { message: Option<Message> },
        Mask { masking: Masking, sends_pending: Option<bool> },
        /// A snapshot says that a signal waits.
        Pending,
        /// An event of the device's: what became of the message, if one went out.
        Signal { outcome: Option<Outcome>, acceptance: Option<Acceptance>, signal: Option<Sent> },
    }

    /// What a signal is.
    pub(crate) enum Sent {
        Message(Message),
        Pending,
        Dropped,
    }

    pub(crate) enum LineStep {
        Add { source: u32, resampling: bool },
        Drop { source: u32, wire: Option<Level> },
        Set { source: u32, level: Level, wire: Option<Level> },
        /// An end of interrupt lowers the resampling sources.
        End { lowered: Option<u32>, wire: Option<Level> },
    }

    /// What a message was translated to.
    pub(crate) enum Outcome {
        Interrupt(Interrupt),
        Event(u32),
        Blocked { reason: u8, index: Option<u32> },
        NotAnInterrupt,
    }
}

/// A machine as it is when its first step enters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "record", serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields))]
pub(crate) enum Begins {
    Ioapic {
        gsi: u32,
        #[cfg_attr(feature = "record", serde(default))]
        ends: Ends,
        #[cfg_attr(feature = "record", serde(default, skip_serializing_if = "Option::is_none"))]
        state: Option<IoapicState>,
    },
    Pic {
        #[cfg_attr(feature = "record", serde(default, skip_serializing_if = "Option::is_none"))]
        state: Option<PicState>,
    },
    Vtd {
        #[cfg_attr(feature = "record", serde(default, skip_serializing_if = "Option::is_none"))]
        state: Option<Box<(VtdState, FaultsState)>>,
    },
    Vector {
        requester: RequesterId,
        index: u32,
    },
    Line {
        gsi: u32,
    },
}

impl Outcome {
    pub(crate) fn of(translated: &Result<Translation, Refusal>) -> Self {
        match translated {
            Ok(translation) => translation.target.into(),
            Err(refusal) => (*refusal).into(),
        }
    }
}

impl From<&Interrupt> for Outcome {
    fn from(interrupt: &Interrupt) -> Self {
        Self::Interrupt(*interrupt)
    }
}

impl From<Target> for Outcome {
    fn from(target: Target) -> Self {
        match target {
            Target::Interrupt(interrupt) => Self::Interrupt(interrupt),
            Target::Event(event) => Self::Event(event.0),
        }
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotAnInterrupt(_) => Self::NotAnInterrupt,
            Refusal::Blocked(fault) => {
                Self::Blocked { reason: fault.reason, index: fault.cookie.map(|cookie| cookie.0) }
            }
        }
    }
}
