//! What is below the fabric: simulated processors and a little memory, and what both have seen.

use super::{MESSAGES, RAM, RAM_SIZE, STATUS};
use irqfabric::fabric::MsiVectors;
use irqfabric::hv::{Capacity, HvError, Hypervisor, Route, Sim};
use irqfabric::memory::{Memory, OutsideMemory};
use irqfabric::msg::{Acceptance, Interrupt};
use std::sync::{Arc, Mutex};

/// What is seen of the fabric from below, in its order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Seen {
    Delivered(Interrupt, Acceptance),
    Stored(u64, u32),
    /// The status of a wait descriptor: from here on every vector was signalled once.
    Status(u32),
}

pub(super) struct Machine {
    pub(super) sim: Sim,
    pub(super) seen: Mutex<Vec<Seen>>,
    pub(super) kicked: Mutex<Vec<u32>>,
    pub(super) bytes: Mutex<Vec<u8>>,
    /// Who is signalled when a status is written.
    pub(super) watching: Mutex<Option<Arc<Vec<MsiVectors>>>>,
}

#[derive(Clone)]
pub(super) struct Shared(pub(super) Arc<Machine>);

impl Shared {
    fn saw(&self, seen: Seen) {
        self.0.seen.lock().unwrap().push(seen);
    }

    pub(super) fn range(address: u64, length: usize) -> Result<std::ops::Range<usize>, OutsideMemory> {
        let start = address.checked_sub(RAM).and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        range.filter(|range| range.end <= RAM_SIZE).ok_or(OutsideMemory { address, length })
    }

    pub(super) fn sixteen(&self, address: u64) -> Option<[u8; 16]> {
        self.0.bytes.lock().unwrap()[Self::range(address, 16).ok()?].try_into().ok()
    }

    /// The guest's own hand.
    pub(super) fn poke(&self, address: u64, data: &[u8]) {
        self.0.bytes.lock().unwrap()[Self::range(address, data.len()).unwrap()].copy_from_slice(data);
    }
}

impl Hypervisor for Shared {
    fn start(&self, pins: u32) -> Result<Capacity, HvError> {
        self.0.sim.start(pins)
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        let acceptance = self.0.sim.deliver(interrupt)?;
        self.saw(Seen::Delivered(*interrupt, acceptance));
        Ok(acceptance)
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        self.0.sim.commit(routes)
    }
}

impl Memory for Shared {
    fn read(&self, address: u64, data: &mut [u8]) -> Result<(), OutsideMemory> {
        data.copy_from_slice(&self.0.bytes.lock().unwrap()[Self::range(address, data.len())?]);
        Ok(())
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), OutsideMemory> {
        self.0.bytes.lock().unwrap()[Self::range(address, data.len())?].copy_from_slice(data);
        let value = u32::from_le_bytes(data.try_into().expect("messages and statuses have 32 bits"));
        if !(STATUS..MESSAGES).contains(&address) {
            self.saw(Seen::Stored(address, value));
            return Ok(());
        }
        self.saw(Seen::Status(value));
        let watching = self.0.watching.lock().unwrap().take();
        if let Some(vectors) = watching {
            vectors.iter().for_each(|device| device.iter().for_each(|vector| vector.signal()));
        }
        Ok(())
    }
}
