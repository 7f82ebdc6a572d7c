use super::*;

/// Remembers every level it was driven to.
#[derive(Default)]
struct Probe(Mutex<Vec<Level>>);

impl Pin for Probe {
    fn set(&self, level: Level) {
        self.0.lock().push(level);
    }
}

fn probed() -> (Line, Arc<Probe>) {
    let probe = Arc::new(Probe::default());
    (Line::new(vec![probe.clone()]), probe)
}

#[test]
fn a_wire_is_high_while_any_source_is() {
    let (line, probe) = probed();
    let (a, b) = (line.source("a"), line.source("b"));
    a.raise();
    b.raise();
    a.lower();
    assert_eq!(line.level(), Level::High);
    b.lower();
    assert_eq!(*probe.0.lock(), [Level::High, Level::Low]);
}

#[test]
fn a_source_speaks_for_itself_only() {
    let (line, probe) = probed();
    let (a, b) = (line.source("a"), line.source("b"));
    a.raise();
    b.lower();
    assert_eq!(line.level(), Level::High, "b never raised it");
    drop(b);
    assert_eq!(line.level(), Level::High, "nor did dropping b lower it");
    drop(a);
    assert_eq!(*probe.0.lock(), [Level::High, Level::Low]);
}

#[test]
fn a_source_that_takes_a_dropped_ones_place_starts_lowered() {
    let (line, _) = probed();
    let a = line.source("a");
    a.raise();
    drop(a);
    let b = line.source("b");
    assert_eq!((b.level(), line.level()), (Level::Low, Level::Low));
    assert_eq!(line.stats(), [SourceStats { name: "b".into(), raised: 0 }]);
}

#[test]
fn the_level_it_has_already_does_not_reach_the_pins() {
    let (line, probe) = probed();
    let a = line.source("a");
    a.lower();
    a.raise();
    a.raise();
    assert_eq!(*probe.0.lock(), [Level::High]);
}

#[test]
fn a_pulse_is_one_edge_unless_another_source_holds_the_wire() {
    let (line, probe) = probed();
    let (a, b) = (line.source("a"), line.source("b"));
    a.pulse();
    b.raise();
    a.pulse();
    assert_eq!(*probe.0.lock(), [Level::High, Level::Low, Level::High]);
}

#[test]
fn a_pulse_of_a_source_that_is_raised_lowers_it() {
    let (line, probe) = probed();
    let a = line.source("a");
    a.raise();
    a.pulse();
    assert_eq!((line.level(), &probe.0.lock()[..]), (Level::Low, &[Level::High, Level::Low][..]));
}

#[test]
fn every_pin_of_a_wire_sees_the_same() {
    let pins = [Arc::new(Probe::default()), Arc::new(Probe::default())];
    let line = Line::new(pins.to_vec());
    line.source("a").pulse();
    assert_eq!(*pins[0].0.lock(), *pins[1].0.lock());
}

#[test]
fn a_level_that_still_stands_after_the_end_of_interrupt_is_driven_again() {
    let (line, probe) = probed();
    let a = line.source("a");
    line.end_of_interrupt(|_| true);
    assert_eq!(*probe.0.lock(), []);
    a.raise();
    line.end_of_interrupt(|_| true);
    assert_eq!(*probe.0.lock(), [Level::High, Level::High]);
}

#[test]
fn restoring_a_level_makes_no_edge() {
    let (line, probe) = probed();
    let a = line.source("a");
    a.restore(Level::High);
    assert_eq!((line.level(), probe.0.lock().len()), (Level::High, 0));
    a.lower();
    assert_eq!(*probe.0.lock(), [Level::Low]);
}

#[cfg(feature = "vm-superio")]
#[test]
fn a_superio_device_triggers_a_source_as_it_is() {
    let (line, probe) = probed();
    vm_superio::Trigger::trigger(&line.source("serial")).unwrap();
    assert_eq!(*probe.0.lock(), [Level::High, Level::Low]);
}

#[test]
fn an_edge_source_pulses_and_holds_nothing() {
    let (line, probe) = probed();
    let source = EdgeSource::new(&line, "timer".into());
    source.pulse();
    EdgeInterrupt::trigger(&source);
    let edges = [Level::High, Level::Low, Level::High, Level::Low];
    assert_eq!((line.level(), &probe.0.lock()[..], line.stats()[0].raised), (Level::Low, &edges[..], 2));
}

/// Chips that are not ours: they lower the wire before we hear of it.
#[derive(Default)]
struct Foreign {
    started: Mutex<usize>,
    raised: Mutex<usize>,
    lowered: Mutex<usize>,
}

impl Resampler for Arc<Foreign> {
    fn start(&self, _: &Line) -> io::Result<()> {
        *self.started.lock() += 1;
        Ok(())
    }

    fn raise(&self) {
        *self.raised.lock() += 1;
    }

    fn lower(&self) {
        *self.lowered.lock() += 1;
    }
}

#[test]
fn on_a_foreign_pin_resampling_sources_are_raised_by_the_resampler_and_plain_ones_by_the_pin() {
    let (probe, foreign) = (Arc::new(Probe::default()), Arc::new(Foreign::default()));
    let line = Line::to_foreign_pin(probe.clone(), foreign.clone());
    let told = Arc::new(Mutex::new(0));
    let count = told.clone();
    let resampling = line.resampling_source("a", move || *count.lock() += 1).unwrap();
    let plain = line.source("b");
    assert_eq!(*foreign.started.lock(), 1);
    resampling.raise();
    resampling.raise();
    assert_eq!((*foreign.raised.lock(), line.level(), probe.0.lock().len()), (1, Level::High, 0));
    plain.raise();
    assert_eq!(*probe.0.lock(), [Level::High]);
    line.acknowledge();
    assert_eq!((*told.lock(), resampling.level(), line.level()), (1, Level::Low, Level::High));
    assert_eq!(*probe.0.lock(), [Level::High], "the chips have seen to it themselves");
    line.acknowledge();
    assert_eq!(*told.lock(), 1);
    plain.lower();
    resampling.raise();
    assert_eq!((&probe.0.lock()[..], *foreign.raised.lock()), (&[Level::High, Level::Low][..], 2));
    assert_eq!(*foreign.lowered.lock(), 0, "not by an end, nor by a plain one");
    resampling.lower();
    assert_eq!(*foreign.lowered.lock(), 1);
}
