//! Who signals what: four edge lines, four level lines with two devices each, four message vectors, and some more
//! by their eventfds. Of the devices on level lines three have theirs by two eventfds and resample; one of them shares it with
//! a device that does not.
//!
//! If the guest begins with the PIC, the level lines are four that end there.
//!
//! Of each kind half of the sources wait for the handler. The interrupts start spread over the vCPUs, each with two
//! vectors of its own.

use super::layout;
use super::memory::GuestMemory;
use super::script::{Begins, Binding, Place};
use super::session::{Session, Work};
use super::source::{Pace, Plan, Source, Sources, Wire};
use crate::devices::pair::Pair;
use crate::error::Error;
use irqfabric::fabric::{Fabric, MsiVectors};
use irqfabric::msg::RequesterId;

const EDGE_PINS: [u8; 4] = [3, 4, 5, 6];
const LEVEL_PINS: [u8; 4] = [16, 17, 18, 19];
/// Where the PIC has inputs too.
const LEVEL_PINS_WITH_PIC: [u8; 4] = [10, 11, 14, 15];
/// The two devices on each.
const LEVEL_DEVICES: [[LevelBy; 2]; 4] = [
    [LevelBy::Call, LevelBy::Call],
    [LevelBy::Call, LevelBy::Call],
    [LevelBy::Call, LevelBy::Eventfds],
    [LevelBy::Eventfds, LevelBy::Eventfds],
];
const MESSAGES: u8 = 4;
/// Two devices share a level line.
const OTHER_SOURCES: usize = EDGE_PINS.len() + 2 * LEVEL_PINS.len() + MESSAGES as usize;
const OTHER_INTERRUPTS: usize = EDGE_PINS.len() + LEVEL_PINS.len() + MESSAGES as usize;

/// How a device raises a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LevelBy {
    Call,
    /// By two eventfds: one to trigger, one to resample.
    Eventfds,
}

/// The most sources with eventfds: each takes two of the guest's vectors.
const MOST_EVENTFDS: usize = (layout::END_VECTOR - layout::FIRST_VECTOR) as usize / 2 - OTHER_INTERRUPTS;

const _: () = assert!(OTHER_SOURCES + MOST_EVENTFDS <= layout::MAX_SOURCES);

/// Whether a guest has the vectors for so many sources with eventfds.
pub fn check_room(eventfds: usize) -> Result<(), Error> {
    if eventfds <= MOST_EVENTFDS {
        return Ok(());
    }
    let (first, last) = (layout::FIRST_VECTOR, layout::END_VECTOR - 1);
    Err(Error::Options(format!(
        "{eventfds} vectors with eventfds are more than {MOST_EVENTFDS}: each takes two of the guest's interrupt vectors \
         {first:#x} to {last:#x}"
    )))
}

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
    /// With so many sources that signal by eventfds, for which there is [room](check_room).
    pub fn new(fabric: &Fabric, memory: &GuestMemory, session: &Session<'_>) -> Result<Self, Error> {
        let Session { work, eventfds, cpus, begins, .. } = *session;
        let messages = fabric.msi_vectors(RequesterId::new(0, 3, 0), usize::from(MESSAGES) + eventfds);
        let all = OTHER_SOURCES + eventfds;
        let mut scenario = Builder { memory, cpus, work, begins, all, sources: Vec::new(), bindings: Vec::new() };
        for (number, pin) in EDGE_PINS.into_iter().enumerate() {
            let wire = Wire::Edge(fabric.line(pin.into())?.source(format!("edge{number}")));
            scenario.add(Place::EdgePin(pin), vec![("edge", wire)]);
        }
        let level_pins = match begins {
            Begins::WithIoapic => LEVEL_PINS,
            Begins::WithPic => LEVEL_PINS_WITH_PIC,
        };
        for (pin, devices) in level_pins.into_iter().zip(LEVEL_DEVICES) {
            let line = fabric.line(pin.into())?;
            let device = |(index, (side, by))| {
                let name = format!("pin {pin} {side}");
                Ok(match by {
                    LevelBy::Call => ("level", Wire::Level(line.source(name))),
                    LevelBy::Eventfds => {
                        ("resample", Wire::resample(Pair::new(fabric, pin.into(), &name)?, index, memory)?)
                    }
                })
            };
            let devices = (scenario.sources.len()..).zip(["a", "b"].into_iter().zip(devices));
            let wires = devices.map(device).collect::<Result<_, Error>>()?;
            scenario.add(Place::LevelPin(pin), wires);
        }
        for (number, vector) in (0..).zip(messages.iter()) {
            let vector = vector.clone();
            let (kind, wire) = if number < MESSAGES {
                ("msi", Wire::Message(vector))
            } else {
                vector.eventfd().map_err(|source| Error::Host { what: "get an eventfd for each vector", source })?;
                ("eventfd", Wire::Eventfd(vector))
            };
            scenario.add(Place::Message(number), vec![(kind, wire)]);
        }
        let Builder { sources, bindings, .. } = scenario;
        Ok(Self { sources: sources.into(), bindings, messages })
    }

    /// Which source has which vectors.
    pub fn attached(&self) -> Vec<(u8, usize)> {
        let pairs = |binding: &Binding| {
            let vectors: Vec<_> = binding.vectors().into_iter().chain(binding.pic_vector()).collect();
            let sources: Vec<_> = binding.sources.iter().map(|(source, _)| *source).collect();
            sources.into_iter().flat_map(move |source| vectors.clone().into_iter().map(move |vector| (vector, source)))
        };
        self.bindings.iter().flat_map(pairs).collect()
    }
}

struct Builder<'a> {
    memory: &'a GuestMemory,
    cpus: usize,
    work: Work,
    begins: Begins,
    /// How many sources there will be.
    all: usize,
    sources: Vec<Source>,
    bindings: Vec<Binding>,
}

impl Builder<'_> {
    fn add(&mut self, place: Place, wires: Vec<(&str, Wire)>) {
        let first = self.sources.len();
        for (kind, wire) in wires {
            let index = self.sources.len();
            let share = match self.work {
                Work::Count(count) => count / self.all as u64 + u64::from((index as u64) < count % self.all as u64),
                Work::For(_) => u64::MAX,
            };
            let number = self.sources.iter().filter(|source| source.name.starts_with(kind)).count();
            let pace = if number % 2 == 0 { Pace::Waits } else { Pace::Free };
            let plan = Plan { name: format!("{kind}{number}"), pace };
            self.sources.push(Source::new(plan, index, share, wire, self.memory, self.cpus));
        }
        let number = self.bindings.len();
        let vector = layout::FIRST_VECTOR + 2 * number as u8;
        let sources: Vec<_> = (first..self.sources.len()).collect();
        self.bindings.push(Binding::new(place, self.begins, vector, number % self.cpus, &sources));
    }
}
