//! One target for each surface that a guest can touch, and one for the recordings that a stranger may send.
//!
//! A target is a function that takes bytes, makes accesses and events of them, and panics when what the part answers is
//! not what it must be: each has an oracle, a second account of the part's state or of the rule that it follows. The
//! fuzzer runs them (`cargo xtask fuzz`), and so does `cargo test`, over the corpus and random inputs.

pub mod fabric;
pub mod ioapic;
pub mod lapic;
pub mod msi;
pub mod msix;
pub mod pic;
pub mod recording;
pub mod snapshots;
pub mod vtd;

use arbitrary::{Arbitrary, Unstructured};

/// A target: it panics on an input that shows a mistake.
pub type Target = fn(&[u8]);

/// All targets by their names.
pub const TARGETS: [(&str, Target); 9] = [
    ("fabric", fabric::run),
    ("ioapic", ioapic::run),
    ("lapic", lapic::run),
    ("msi", msi::run),
    ("msix", msix::run),
    ("pic", pic::run),
    ("recording", recording::run),
    ("snapshots", snapshots::run),
    ("vtd", vtd::run),
];

/// The most steps that one input is good for: an input is to end in milliseconds.
const STEPS: usize = 4096;

/// The steps that the rest of an input stands for.
fn steps<'a, S: Arbitrary<'a>>(input: Unstructured<'a>) -> impl Iterator<Item = S> {
    let mut input = input;
    std::iter::from_fn(move || (!input.is_empty()).then(|| input.arbitrary().ok()).flatten()).take(STEPS)
}

/// The data of a guest's access: 0 to 16 bytes, most often 4.
#[derive(Clone, Copy, Debug)]
struct Data {
    bytes: [u8; 16],
    size: usize,
}

impl Data {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.size]
    }
}

impl<'a> Arbitrary<'a> for Data {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let size = match input.int_in_range(0..=31)? {
            size @ 0..=16 => size,
            17..=26 => 4,
            _ => 8,
        };
        let mut bytes = [0; 16];
        input.fill_buffer(&mut bytes[..size])?;
        Ok(Self { bytes, size })
    }
}

/// A number of a pin or a vector: most often one of a few, so that steps meet.
#[derive(Clone, Copy, Debug)]
struct Number(u8);

impl<'a> Arbitrary<'a> for Number {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(match input.arbitrary()? {
            any @ 0..32 => input.arbitrary::<u8>()? ^ any,
            near @ 32..144 => near % 4,
            near => 0x20 + near % 16 * 3,
        }))
    }
}
