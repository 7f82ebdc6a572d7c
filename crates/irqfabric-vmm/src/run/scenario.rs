//! Who signals what: four edge lines, two level lines with two devices each, four message vectors.
//!
//! Of each kind half of the sources wait for the handler. The interrupts start spread over the vCPUs, each with two
//! vectors of its own.

use super::layout;
use super::memory::GuestMemory;
use super::script::{Binding, Place};
use super::source::{Pace, Plan, Source, Sources, Wire};
use irqfabric::fabric::{Fabric, GsiError, MsiVectors};
use irqfabric::msg::RequesterId;

const EDGE_PINS: [u8; 4] = [3, 4, 5, 6];
const LEVEL_PINS: [u8; 2] = [16, 17];
const MESSAGES: u8 = 4;
/// Two devices share a level line.
const SOURCES: u64 = 12;

/// Everything that there is to run.
pub struct Scenario {
    /// The devices.
    pub sources: Sources,
    /// Their interrupts.
    pub bindings: Vec<Binding>,
    /// The message vectors, to be programmed by the guest.
    pub messages: MsiVectors,
}

impl Scenario {
    /// Of `count` signals in all.
    pub fn new(fabric: &Fabric, memory: &GuestMemory, cpus: usize, count: u64) -> Result<Self, GsiError> {
        let messages = fabric.msi_vectors(RequesterId::new(0, 3, 0), MESSAGES.into());
        let mut scenario = Builder { memory, cpus, count, sources: Vec::new(), bindings: Vec::new() };
        for (number, pin) in EDGE_PINS.into_iter().enumerate() {
            let wire = Wire::Edge(fabric.line(pin.into())?.source(format!("edge{number}")));
            scenario.add(Place::EdgePin(pin), vec![("edge", wire)]);
        }
        for pin in LEVEL_PINS {
            let line = fabric.line(pin.into())?;
            let device = |side| ("level", Wire::Level(line.source(format!("pin {pin} {side}"))));
            scenario.add(Place::LevelPin(pin), vec![device("a"), device("b")]);
        }
        for number in 0..MESSAGES {
            let wire = Wire::Message(messages[usize::from(number)].clone());
            scenario.add(Place::Message(number), vec![("msi", wire)]);
        }
        let Builder { sources, bindings, .. } = scenario;
        Ok(Self { sources: sources.into(), bindings, messages })
    }

    /// Which source has which vectors.
    pub fn attached(&self) -> Vec<(u8, usize)> {
        let pairs = |binding: &Binding| {
            let vectors = binding.vectors();
            let sources: Vec<_> = binding.sources.iter().map(|(source, _)| *source).collect();
            sources.into_iter().flat_map(move |source| vectors.map(|vector| (vector, source)))
        };
        self.bindings.iter().flat_map(pairs).collect()
    }
}

struct Builder<'a> {
    memory: &'a GuestMemory,
    cpus: usize,
    count: u64,
    sources: Vec<Source>,
    bindings: Vec<Binding>,
}

impl Builder<'_> {
    fn add(&mut self, place: Place, wires: Vec<(&str, Wire)>) {
        let first = self.sources.len();
        for (kind, wire) in wires {
            let index = self.sources.len();
            let share = self.count / SOURCES + u64::from((index as u64) < self.count % SOURCES);
            let number = self.sources.iter().filter(|source| source.name.starts_with(kind)).count();
            let pace = if number % 2 == 0 { Pace::Waits } else { Pace::Free };
            let plan = Plan { name: format!("{kind}{number}"), pace };
            self.sources.push(Source::new(plan, index, share, wire, self.memory, self.cpus));
        }
        let number = self.bindings.len();
        let vector = layout::FIRST_VECTOR + 2 * number as u8;
        let sources: Vec<_> = (first..self.sources.len()).collect();
        self.bindings.push(Binding::new(place, vector, number % self.cpus, &sources));
    }
}
