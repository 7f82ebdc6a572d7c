//! Any sequence of guest accesses, line changes and ends of interrupts keeps the invariants of a fabric.

mod common;

use common::{Call, Guest, LEVEL, MASKED, REMOTE_IRR, Recorder};
use irqfabric::chip::ioapic::{Ioapic, IoapicState};
use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS};
use irqfabric::hv::{Route, Target};
use irqfabric::line::{Level, LineSource};
use irqfabric::msg::{Interrupt, RequesterId, Trigger};
use proptest::collection::vec;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const PINS: u8 = 4;
/// Those from [`PINS`] on are resampling.
const SOURCES: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    /// One half of a redirection entry.
    Half {
        index: u8,
        value: u32,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    Read {
        offset: u64,
        size: usize,
    },
    Drive {
        source: usize,
        level: Level,
    },
    Pulse {
        source: usize,
    },
    Replace {
        source: usize,
    },
    End {
        vector: u8,
    },
    EndRegister {
        vector: u8,
    },
    Refuse(bool),
    FailCommits(bool),
    ProgramVector {
        vector: usize,
        address: u64,
        data: u32,
    },
    Signal {
        vector: usize,
    },
}

/// One step, or the two that program an entry.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let vector = || 0x40..0x44u8;
    let pin = || 0..PINS;
    let source = || 0..SOURCES;
    let level = || prop_oneof![Just(Level::Low), Just(Level::High)];
    let sensible = (vector(), 0..3u64, any::<[bool; 2]>()).prop_map(|(vector, destination, [level, masked])| {
        u64::from(vector) | destination << 56 | if level { LEVEL } else { 0 } | if masked { MASKED } else { 0 }
    });
    let entry = prop_oneof![6 => sensible, 1 => any::<u64>()];
    let offset = || prop_oneof![3 => Just(0u64), 3 => Just(0x10), 1 => 0..0x100u64];
    let address = prop_oneof![4 => (0..3u64).prop_map(|id| 0xfee0_0000 | id << 12), 1 => any::<u64>()];
    let program = (pin(), entry).prop_map(|(pin, entry)| {
        let half = |index, value| Step::Half { index, value };
        vec![half(0x11 + 2 * pin, (entry >> 32) as u32), half(0x10 + 2 * pin, entry as u32)]
    });
    let other = prop_oneof![
        2 => (offset(), vec(any::<u8>(), 0..9)).prop_map(|(offset, data)| Step::Write { offset, data }),
        1 => (offset(), 0..9usize).prop_map(|(offset, size)| Step::Read { offset, size }),
        8 => (source(), level()).prop_map(|(source, level)| Step::Drive { source, level }),
        2 => source().prop_map(|source| Step::Pulse { source }),
        1 => source().prop_map(|source| Step::Replace { source }),
        6 => vector().prop_map(|vector| Step::End { vector }),
        1 => vector().prop_map(|vector| Step::EndRegister { vector }),
        1 => any::<bool>().prop_map(Step::Refuse),
        1 => any::<bool>().prop_map(Step::FailCommits),
        2 => (0..2usize, address, any::<u32>()).prop_map(|(vector, address, data)| Step::ProgramVector { vector, address, data }),
        2 => (0..2usize).prop_map(|vector| Step::Signal { vector }),
    ];
    prop_oneof![1 => program, 4 => other.prop_map(|step| vec![step])]
}

/// What the entry of a pin asks for, written down a second time: the oracle.
fn asked_for(entry: u64) -> Option<Interrupt> {
    let message = irqfabric::msg::Message {
        address: 0xfee0_0000 | (entry >> 48) << 4 | (entry >> 11 & 1) << 2,
        data: (entry & 0x7ff) as u32 | if entry & LEVEL != 0 { 0xc000 } else { 0 },
        ..Default::default()
    };
    message.decode(Default::default()).ok()
}

fn is_level(route: &Route) -> bool {
    matches!(route.target, Target::Interrupt(Interrupt { trigger: Trigger::Level, .. }))
}

struct World {
    fabric: Fabric,
    recorder: Arc<Recorder>,
    sources: Vec<LineSource>,
    refuses: bool,
    fails: bool,
}

impl World {
    fn chip(&self) -> IoapicState {
        self.fabric.ioapics().next().unwrap().2
    }

    fn pin_of(source: usize) -> u32 {
        source as u32 % u32::from(PINS)
    }

    fn resamples(source: usize) -> bool {
        source >= PINS.into()
    }

    fn ended(&self) -> Vec<u64> {
        self.fabric.stats().lines.iter().map(|line| line.pin.ended).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_sequence_keeps_the_invariants(steps in vec(steps(), 1..120)) {
        let recorder = Recorder::new();
        let chip = Ioapic::new(PINS.into()).unwrap();
        let fabric = Fabric::builder(recorder.clone()).ioapic(chip).build().unwrap();
        let vectors = fabric.msi_vectors(RequesterId(8), 2);
        let told: [Arc<AtomicUsize>; SOURCES] = Default::default();
        let source = |index: usize| {
            let (line, told) = (fabric.line(World::pin_of(index)).unwrap(), told[index].clone());
            let acknowledged = move || {
                told.fetch_add(1, Relaxed);
            };
            if World::resamples(index) { line.resampling_source("device", acknowledged).unwrap() } else { line.source("device") }
        };
        let sources = (0..SOURCES).map(source).collect();
        let mut world = World { fabric: fabric.clone(), recorder, sources, refuses: false, fails: false };
        let mut raised = [false; SOURCES];
        // Level pins whose delivery was refused or whose route failed: due, and waiting for the next occasion.
        let mut waiting = [false; PINS as usize];

        for step in steps.into_iter().flatten() {
            let (before, ended_before) = (world.chip(), world.ended());
            match step.clone() {
                Step::Half { index, value } => fabric.write_register(index, value),
                Step::Write { offset, data } => assert!(fabric.mmio_write(IOAPIC_ADDRESS + offset, &data)),
                Step::Read { offset, size } => assert!(fabric.mmio_read(IOAPIC_ADDRESS + offset, &mut vec![0; size])),
                Step::Drive { source, level } => {
                    world.sources[source].set(level);
                    raised[source] = level == Level::High;
                }
                Step::Pulse { source } => {
                    world.sources[source].pulse();
                    raised[source] = false;
                }
                Step::Replace { source: index } => {
                    world.sources[index] = source(index);
                    raised[index] = false;
                }
                Step::End { vector } => fabric.end_of_interrupt(vector),
                Step::EndRegister { vector } => {
                    fabric.mmio_write(IOAPIC_ADDRESS + 0x40, &[vector]);
                }
                Step::Refuse(refuses) => {
                    world.recorder.refuse(refuses);
                    world.refuses = refuses;
                }
                Step::FailCommits(fails) => {
                    world.recorder.fail_commits(fails);
                    world.fails = fails;
                }
                Step::ProgramVector { vector, address, data } => vectors.program(vector, address, data).unwrap(),
                Step::Signal { vector } => vectors[vector].signal(),
            }
            let after = world.chip();
            let calls = world.recorder.take();
            let delivered = |interrupt: &Interrupt| calls.contains(&Call::Deliver(*interrupt));
            // A resampling source is lowered and told once by the end of its pin's interrupt, if it was raised, and never else.
            let ended: Vec<_> = world.ended().iter().zip(&ended_before).map(|(after, before)| after > before).collect();
            for (index, told) in told.iter().enumerate() {
                let acknowledged = raised[index] && World::resamples(index) && ended[World::pin_of(index) as usize];
                prop_assert_eq!(told.swap(0, Relaxed), usize::from(acknowledged), "source {} after {:?}", index, step);
                raised[index] &= !acknowledged;
            }
            for (pin, ended) in ended.into_iter().enumerate() {
                // Or the dispatcher has tried a failed commit again right before the step.
                let in_service = before.pins[pin].entry & REMOTE_IRR != 0 || waiting[pin];
                prop_assert!(!ended || in_service, "an end of nothing");
            }

            for (pin, state) in (0u32..).zip(&after.pins) {
                let (entry, index) = (state.entry, pin as usize);
                let level_triggered = asked_for(entry).is_some_and(|interrupt| interrupt.trigger == Trigger::Level);
                // A source speaks for itself only: the pin is the OR of its sources.
                let high = (0..SOURCES).any(|source| World::pin_of(source) == pin && raised[source]);
                prop_assert_eq!(state.level == Level::High, high);
                // Nothing lost: what is due was tried, and is only left where nobody took it.
                let due = level_triggered && high && entry & (MASKED | REMOTE_IRR) == 0;
                let unlucky = world.refuses || world.fails;
                let waited = std::mem::replace(&mut waiting[index], due);
                prop_assert!(!due || unlucky || waited, "pin {} is due after {:?}", pin, step);
                prop_assert!(!state.edge, "an edge waits though every delivery is immediate");
                // Nothing stale: a new remote IRR comes of the message that the entry says now, unless the dispatcher has
                // tried a failed commit again right before the step.
                let taken = entry & REMOTE_IRR != 0 && before.pins[index].entry & REMOTE_IRR == 0;
                if taken {
                    let may_be_older = waited && !delivered(&asked_for(entry).unwrap());
                    let interrupt = asked_for(if may_be_older { before.pins[index].entry } else { entry }).unwrap();
                    prop_assert!(delivered(&interrupt), "pin {} went into service by another message", pin);
                    // Its end can be reported: the route in force is this one.
                    let parked = world.recorder.table().contains(&Route { gsi: pin, target: interrupt.into() });
                    prop_assert!(parked, "pin {} is in service without a route", pin);
                }
            }
            // A route stays as it is while its interrupt is in service.
            for (pin, (before, after)) in (0u32..).zip(before.pins.iter().zip(&after.pins)) {
                let stays = before.entry & after.entry & REMOTE_IRR != 0;
                let ended = matches!(step, Step::End { .. } | Step::EndRegister { .. });
                let routed = |table: &[Route]| table.iter().any(|route| route.gsi == pin);
                prop_assert!(!stays || ended || routed(&world.recorder.table()));
            }
            // Edge pins own no route: every commit publishes one that a level pin is about to need.
            for call in &calls {
                if let Call::Commit(routes) = call {
                    prop_assert!(routes.iter().all(is_level));
                }
            }
        }
        // At rest, with everything accepted again and every pin rewritten, nothing is left undelivered.
        world.recorder.refuse(false);
        world.recorder.fail_commits(false);
        for pin in 0..PINS {
            let entry = fabric.entry(pin);
            fabric.program(pin, entry & !MASKED);
            let entry = fabric.entry(pin);
            let level = asked_for(entry).is_some_and(|interrupt| interrupt.trigger == Trigger::Level);
            let high = world.chip().pins[usize::from(pin)].level == Level::High;
            prop_assert!(!(level && high) || entry & REMOTE_IRR != 0);
        }
    }
}
