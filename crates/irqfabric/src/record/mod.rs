//! Record and replay: what went into each state machine of a fabric and what came out, as a file.
//!
//! A *machine* is what stands behind one lock: an IOAPIC, the PIC, a VT-d unit, a message vector, a line. Whatever enters one
//! is a *step*, numbered under the machine's lock: (machine, number) is the order in which it happened. What else a
//! machine learns from outside is part of its steps: what a message was translated to, who took it, what was read of
//! the guest's memory. So each machine can be run again by itself, and must say the same.
//!
//! ```text
//!  chip behind its lock ──► tape ──► buffer of the thread ──► writer's thread ──► JSON Lines ──► replay
//! ```
//!
//! Off by default: then a step costs one branch. With a [`Recorder`] it is a copy into the buffer of the thread that made
//! it. The file is described in `docs/RECORDING.md`; feature `record` has the recorder and [`replay`].

mod step;
mod tape;
mod taped;

pub(crate) use step::{Begins, LineStep, Outcome, Sent, Step, VectorStep};
pub(crate) use tape::{Tape, Tapes};
pub(crate) use taped::Taped;

#[cfg(feature = "record")]
mod file;
#[cfg(feature = "record")]
mod machine;
#[cfg(feature = "record")]
mod recorder;
#[cfg(feature = "record")]
mod replay;

#[cfg(feature = "record")]
pub use file::{FileError, Problem};
#[cfg(feature = "record")]
pub use recorder::{RecordError, Recorded, Recorder};
#[cfg(feature = "record")]
pub use replay::{Difference, Gap, Replayed, replay};
