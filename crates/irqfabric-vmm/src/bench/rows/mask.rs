//! Masking and unmasking vectors whose eventfd is hot: an irqfd detached, and attached again.

use super::super::error::Error;
use super::super::machine::{Machine, program_all};
use super::super::measure::{Rounds, try_time};
use super::super::raw::{Raw, table};
use super::Measured;
use irqfabric::fabric::{MsiVectors, Promotion};
use irqfabric::msg::Masking;
use std::ops::Range;
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// Vectors that are masked, or unmasked, one after the other.
const BATCH: usize = 8;

/// Threads that the library detaches many from.
const THREADS: usize = 4;

pub fn mask(rounds: Rounds) -> Result<Measured, Error> {
    let both = Both::new(BATCH)?;
    let mut ours = || {
        let took = try_time(|| (0..BATCH).try_for_each(|index| both.set(index..index + 1, Masking::Masked)))?;
        both.set(0..BATCH, Masking::Unmasked)?;
        Ok(took)
    };
    let mut floor = || {
        let took = both.raw_deassigns()?;
        both.raw_assigns()?;
        Ok(took)
    };
    let samples = rounds.measure(BATCH, [&mut ours, &mut floor])?;
    let (mask, _) = calls()?;
    Ok(Measured::new(samples, "deassign+read").at_most(1.15).with_calls(mask, Some(1.0)))
}

pub fn unmask(rounds: Rounds) -> Result<Measured, Error> {
    let both = Both::new(BATCH)?;
    let mut ours = || {
        both.set(0..BATCH, Masking::Masked)?;
        try_time(|| (0..BATCH).try_for_each(|index| both.set(index..index + 1, Masking::Unmasked)))
    };
    let mut floor = || {
        both.raw_deassigns()?;
        both.raw_assigns()
    };
    let samples = rounds.measure(BATCH, [&mut ours, &mut floor])?;
    let (_, unmask) = calls()?;
    Ok(Measured::new(samples, "assign+read").at_most(1.15).with_calls(unmask, Some(2.0)))
}

/// Masked and unmasked again, as Linux does to move a vector. As usual, its route is also taken out of the table, and put back.
pub fn mask_unmask(rounds: Rounds) -> Result<Measured, Error> {
    let both = Both::new(BATCH)?;
    let mut ours = || {
        try_time(|| {
            (0..BATCH).try_for_each(|index| {
                both.set(index..index + 1, Masking::Masked)?;
                both.set(index..index + 1, Masking::Unmasked)
            })
        })
    };
    let mut floor = || Ok(both.raw_deassigns()? + both.raw_assigns()?);
    let (whole, without_one) = (table(BATCH)?, table(BATCH - 1)?);
    let usual_one = |index: usize, eventfd: &EventFd| {
        both.raw.deassign(eventfd, index)?;
        both.raw.commit(&without_one)?;
        both.raw.commit(&whole)?;
        both.raw.assign(eventfd, index)
    };
    let mut usual = || try_time(|| both.each(usual_one));
    let [ours, floor, usual] = rounds.measure(BATCH, [&mut ours, &mut floor, &mut usual])?;
    let (mask, unmask) = calls()?;
    let measured = Measured::new([ours, floor], "both of raw").at_most(1.15).with_calls(mask + unmask, Some(3.0));
    Ok(measured.against(usual, "a commit each time as well"))
}

/// The function mask of a device with as many vectors as MSI-X allows.
pub fn mask_2048(rounds: Rounds) -> Result<Measured, Error> {
    const COUNT: usize = 2048;
    let both = Both::new(COUNT)?;
    let mut ours = || {
        let took = try_time(|| both.set(0..COUNT, Masking::Masked))?;
        both.set(0..COUNT, Masking::Unmasked)?;
        Ok(took)
    };
    let mut floor = || {
        let took = try_time(|| both.raw.deassign_all(&both.bound, THREADS))?;
        both.raw_assigns()?;
        Ok(took)
    };
    let samples = rounds.few().measure(1, [&mut ours, &mut floor])?;
    let (mask, _) = calls()?;
    Ok(Measured::new(samples, "deassign, ×4").at_most(1.15).with_calls(mask * COUNT as f64, Some(COUNT as f64)))
}

/// As many hot vectors of ours as raw irqfds.
struct Both {
    _machine: Machine,
    vectors: MsiVectors,
    raw: Raw,
    bound: Vec<EventFd>,
}

impl Both {
    fn new(count: usize) -> Result<Self, Error> {
        let machine = Machine::uncounted(Promotion::Prefill)?;
        let vectors = machine.vectors(count)?;
        program_all(&vectors)?;
        let raw = Raw::new()?;
        let bound = raw.hot(count)?;
        Ok(Self { _machine: machine, vectors, raw, bound })
    }

    fn set(&self, which: Range<usize>, masking: Masking) -> Result<(), Error> {
        Ok(self.vectors.set_masking(which, masking)?)
    }

    fn raw_deassigns(&self) -> Result<Duration, Error> {
        try_time(|| self.each(|index, eventfd| self.raw.deassign(eventfd, index)))
    }

    fn raw_assigns(&self) -> Result<Duration, Error> {
        try_time(|| self.each(|index, eventfd| self.raw.assign(eventfd, index)))
    }

    fn each(&self, act: impl Fn(usize, &EventFd) -> Result<(), Error>) -> Result<(), Error> {
        self.bound.iter().enumerate().try_for_each(|(index, eventfd)| {
            act(index, eventfd)?;
            // Nothing is in it: the answer is that it would block.
            let _ = eventfd.read();
            Ok(())
        })
    }
}

/// System calls to mask a hot vector and to unmask it again.
fn calls() -> Result<(f64, f64), Error> {
    let machine = Machine::new(Promotion::Prefill)?;
    let vectors = machine.vectors(1)?;
    program_all(&vectors)?;
    let begin = machine.system_calls();
    vectors.set_masking([0], Masking::Masked)?;
    let masked = machine.system_calls();
    vectors.set_masking([0], Masking::Unmasked)?;
    Ok(((masked - begin) as f64, (machine.system_calls() - masked) as f64))
}
