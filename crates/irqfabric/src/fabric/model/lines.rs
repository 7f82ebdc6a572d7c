//! Resampling sources, plain ones and pairs of eventfds on one level line, with ends of its interrupt and masks of its pin.
//!
//! When the threads are done, with the pin unmasked: if somebody holds the line it is in service, so no level is lost; and if it is,
//! somebody does, unless a device has let go, so nobody was lowered by the end of an older interrupt than its own. Then the guest serves what is left, and each
//! rise of a resampling source has been told of once, after an end.

use super::super::LineEventfds;
use super::pins::{LEVEL, end_of_interrupt, entry, mask_pin, mask_unmask_pin};
use super::*;
use crate::line::{Level, Line};
use std::sync::atomic::AtomicBool;

struct Lines {
    machine: Machine,
    line: Line,
    /// Told as 0 and 1.
    resampling: [LineSource; 2],
    /// Its resample is read by nobody else.
    pair: crate::sync::Mutex<Option<LineEventfds>>,
    trigger: EventFd,
    /// Holds the line beside the machine's.
    neighbour: LineSource,
    /// A device has lowered its own source, whose interrupt may be in service still.
    let_go: AtomicBool,
}

type Act = fn(&Lines);

impl Lines {
    fn new(variant: Variant) -> Self {
        let machine = Machine::new(variant);
        let line = machine.fabric.line(0).unwrap();
        let resampling = [0, 1].map(|number| {
            let kernel = machine.kernel.clone();
            line.resampling_source("device", move || kernel.log(Seen::Told(number))).unwrap()
        });
        let pair = machine.fabric.line_eventfds(0, "device").unwrap();
        let trigger = pair.trigger().try_clone().unwrap();
        let neighbour = line.source("neighbour");
        entry(&machine, 0x10, LEVEL | u32::from(ENTRY));
        let (pair, let_go) = (crate::sync::Mutex::new(Some(pair)), AtomicBool::new(false));
        Self { machine, line, resampling, pair, trigger, neighbour, let_go }
    }

    fn end(&self) {
        self.machine.kernel.log(Seen::Ending);
        end_of_interrupt(&self.machine);
    }

    fn turn(&self) {
        self.machine.core().dispatcher.get().unwrap().turn(&self.trigger);
    }

    /// Remote IRR and mask.
    fn pin(&self) -> (bool, bool) {
        let (_, _, chip) = self.machine.fabric.ioapics().next().unwrap();
        let bits = chip.pins[0].entry;
        (bits & 1 << 14 != 0, bits & 1 << 16 != 0)
    }

    fn log(&self) -> Vec<Seen> {
        self.machine.kernel.state().log.clone()
    }

    fn told(&self, number: usize) -> u64 {
        self.log().iter().filter(|&&seen| seen == Seen::Told(number)).count() as u64
    }

    fn judge(&self) {
        let (in_service, masked) = self.pin();
        let high = self.line.level() == Level::High;
        assert!(!masked);
        assert!(in_service || !high, "lost: {:x?}", self.log());
        let let_go = self.let_go.load(Relaxed);
        assert!(high || !in_service || let_go, "lowered by the end of an older interrupt: {:x?}", self.log());
    }

    fn finish(&self) {
        if self.pin().1 {
            entry(&self.machine, 0x10, LEVEL | u32::from(ENTRY));
        }
        // The dispatcher gets to what it has not seen yet.
        self.turn();
        self.judge();
        self.machine.source.lower();
        self.neighbour.lower();
        while self.pin().0 {
            self.end();
        }
        assert_eq!(self.line.level(), Level::Low);
        let stats = self.line.stats();
        for (number, source) in (0..).zip(&self.resampling) {
            let rises = stats[1 + number].raised;
            assert_eq!(self.told(number), rises, "once for each rise: {:x?}", self.log());
            assert_eq!(source.level(), Level::Low);
        }
        if let Some(pair) = &*self.pair.lock() {
            let told = pair.resample().read().unwrap_or(0);
            assert_eq!(told, stats[3].raised, "once for each rise: {:x?}", self.log());
        }
        let first_end = self.log().iter().position(|&seen| seen == Seen::Ending);
        let first_told = self.log().iter().position(|seen| matches!(seen, Seen::Told(_)));
        assert!(first_told.is_none() || first_end < first_told, "told before an end: {:x?}", self.log());
    }
}

// What threads do.

fn raise(lines: &Lines) {
    lines.machine.source.raise();
}

fn lower(lines: &Lines) {
    lines.machine.source.lower();
    lines.let_go.store(true, Relaxed);
}

fn raise_resampling(lines: &Lines) {
    lines.resampling[0].raise();
}

fn raise_other_resampling(lines: &Lines) {
    lines.resampling[1].raise();
}

/// The device is in another process.
fn trigger(lines: &Lines) {
    lines.trigger.write(1).unwrap();
}

fn turn(lines: &Lines) {
    lines.turn();
}

fn drop_pair(lines: &Lines) {
    let pair = lines.pair.lock().take();
    drop(pair);
    lines.let_go.store(true, Relaxed);
    // From here on it holds nothing, whatever the dispatcher is at.
    let stats = lines.line.stats();
    assert_eq!(stats.len(), 4, "the source is gone");
}

fn end(lines: &Lines) {
    lines.end();
}

fn mask(lines: &Lines) {
    mask_pin(&lines.machine);
}

fn mask_unmask(lines: &Lines) {
    mask_unmask_pin(&lines.machine);
}

// How a line begins.

fn low(_: &Lines) {}

fn held(lines: &Lines) {
    lines.machine.source.raise();
}

/// Its interrupt has not been ended, and nobody holds the line any more.
fn served(lines: &Lines) {
    held(lines);
    lines.machine.source.lower();
}

fn resampling_held(lines: &Lines) {
    lines.resampling[0].raise();
}

fn both_held(lines: &Lines) {
    held(lines);
    resampling_held(lines);
}

fn held_by_two(lines: &Lines) {
    held(lines);
    lines.neighbour.raise();
}

fn triggered(lines: &Lines) {
    trigger(lines);
}

fn served_and_triggered(lines: &Lines) {
    served(lines);
    trigger(lines);
}

fn pair_held(lines: &Lines) {
    trigger(lines);
    turn(lines);
}

fn explore_lines(begin: Act, threads: &'static [Act]) {
    let preemptions = if threads.len() > 2 { PREEMPTIONS } else { PREEMPTIONS_OF_PINS };
    explore(Some(preemptions), move |variant| {
        let lines = Arc::new(Lines::new(variant));
        begin(&lines);
        let spawn = |&act: &Act| {
            let lines = lines.clone();
            loom::thread::spawn(move || act(&lines))
        };
        let threads: Vec<_> = threads.iter().map(spawn).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        lines.finish();
    });
}

macro_rules! line_models {
    ($($name:ident: $begin:ident, $($act:ident)|+;)*) => {
        $(
            #[test]
            fn $name() {
                explore_lines($begin, &[$($act),+]);
            }
        )*
    };
}

line_models! {
    raise_and_raise: low, raise | raise_resampling;
    raise_and_end: served, raise_resampling | end;
    raise_beside_and_end: held, raise_resampling | end;
    raise_again_and_end: resampling_held, raise_resampling | end;
    raise_other_and_end: resampling_held, raise_other_resampling | end;
    lower_and_end: both_held, lower | end;
    mask_and_end: resampling_held, mask | end;
    mask_unmask_and_end: both_held, mask_unmask | end;
    end_and_end: both_held, end | end;
    trigger_and_turn: low, trigger | turn;
    turn_and_end: triggered, turn | end;
    trigger_and_end: pair_held, trigger | end;
    drop_and_turn: triggered, drop_pair | turn;
    drop_and_end: pair_held, drop_pair | end;

    raise_plain_raise_and_end: served, raise | raise_resampling | end;
    raise_raise_and_end: served, raise_resampling | raise_other_resampling | end;
    raise_lower_and_end: held, raise_resampling | lower | end;
    lower_beside_end_and_mask_unmask: held_by_two, lower | end | mask_unmask;
    raise_end_and_mask: served, raise_resampling | end | mask;
    raise_end_and_mask_unmask: served, raise_resampling | end | mask_unmask;
    raise_other_end_and_mask: resampling_held, raise_other_resampling | end | mask;
    raise_plain_end_and_mask_unmask: resampling_held, raise | end | mask_unmask;
    raise_end_and_end: resampling_held, raise_other_resampling | end | end;
    turn_raise_and_end: triggered, turn | raise | end;
    turn_raise_and_end_of_another: served_and_triggered, turn | raise_resampling | end;
    trigger_turn_and_end: pair_held, trigger | turn | end;
    drop_turn_and_end: triggered, drop_pair | turn | end;
}
