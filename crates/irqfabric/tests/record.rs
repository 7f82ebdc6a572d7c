//! Recording a fabric and replaying it: what was recorded comes out the same, what was changed is found, and a file that is
//! none is refused.

mod common;

use common::vtd::{self, Driver, Ram, UNIT, irte, remappable};
use common::{Guest, LEVEL, entry};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::chip::pic::Pic;
use irqfabric::fabric::{Fabric, FabricBuilder};
use irqfabric::hv::Sim;
use irqfabric::msg::{Masking, RequesterId};
use irqfabric::record::{Problem, RecordError, Recorded, Recorder, Replayed, replay};
use irqfabric::remap::vtd::{Faults, Vtd};
use std::io::{self, Write};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

const DEVICE: RequesterId = RequesterId::new(0, 3, 0);

/// A file that others can look into.
#[derive(Clone, Default)]
struct File(Arc<Mutex<Vec<u8>>>);

impl Write for File {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl File {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// What `work` did with a fabric of these parts.
fn record(parts: impl FnOnce(FabricBuilder) -> FabricBuilder, work: impl FnOnce(&Fabric, &Sim)) -> (String, Recorded) {
    let file = File::default();
    let recorder = Recorder::start(file.clone()).unwrap();
    let sim = Arc::new(Sim::new(2));
    sim.vcpus().iter().for_each(|cpu| cpu.enable());
    let fabric = parts(Fabric::builder(sim.clone()).ioapic(Ioapic::default())).record(&recorder).build().unwrap();
    work(&fabric, &sim);
    drop(fabric);
    let recorded = recorder.finish().unwrap();
    (file.text(), recorded)
}

fn replayed(text: &str) -> Replayed {
    replay(text.as_bytes(), |answer| panic!("an output is missing: {answer}")).unwrap()
}

#[track_caller]
fn assert_same(text: &str, recorded: Recorded) {
    let replayed = replayed(text);
    assert!(replayed.difference.is_none(), "{replayed}");
    assert_eq!((replayed.records as u64, replayed.machines as u64), (recorded.records, recorded.machines));
    assert_eq!((replayed.lost, replayed.gaps), (0, vec![]));
}

/// A level interrupt from its rise to its end, and what comes of a line that stays high.
fn level_interrupt(fabric: &Fabric, sim: &Sim) {
    fabric.program(5, entry(0x31, 0) | LEVEL);
    let line = fabric.line(5).unwrap();
    let (one, other) = (line.source("one"), line.resampling_source("other", || {}).unwrap());
    one.raise();
    other.raise();
    for _ in 0..3 {
        assert_eq!(sim.vcpus()[0].acknowledge(), Some(0x31));
        fabric.end_of_interrupt(0x31);
        sim.vcpus()[0].end_of_interrupt();
    }
    one.lower();
    let mut data = [0; 4];
    fabric.mmio_read(irqfabric::fabric::IOAPIC_ADDRESS + 0x10, &mut data);
}

#[test]
fn a_level_interrupt_replays_as_recorded() {
    let (text, recorded) = record(|builder| builder, level_interrupt);
    assert_same(&text, recorded);
    for step in ["set", "write", "parked", "deliver", "end", "read"] {
        assert!(text.contains(&format!("\"ioapic\":{{\"{step}\":")), "no step {step} in {text}");
    }
}

#[test]
fn message_vectors_replay_as_recorded_whoever_signals_and_whatever_is_masked() {
    let (text, recorded) = record(
        |builder| builder,
        |fabric, _| {
            let vectors = fabric.msi_vectors(DEVICE, 2);
            vectors[0].signal();
            vectors.program(0, 0xfee0_0000, 0x41).unwrap();
            vectors[0].signal();
            vectors.set_masking([0], Masking::Masked).unwrap();
            vectors[0].signal();
            vectors.set_masking([0], Masking::Unmasked).unwrap();
            vectors.set_masking([0], Masking::Disabled).unwrap();
            vectors[0].signal();
            // To memory that is none.
            vectors.program(1, 0x1000, 0x41).unwrap();
            vectors[1].signal();
        },
    );
    assert_same(&text, recorded);
    for signal in ["\"signal\":\"dropped\"", "\"signal\":\"pending\"", "\"sends-pending\":true", "not-an-interrupt"] {
        assert!(text.contains(signal), "no {signal} in {text}");
    }
}

#[test]
fn a_pic_replays_as_recorded() {
    let (text, recorded) = record(
        |builder| builder.pic(Pic::default()).kick(|_| {}),
        |fabric, sim| {
            for (port, words) in [(0x20, [0x11, 0x30, 4, 1]), (0xa0, [0x11, 0x38, 2, 1])] {
                fabric.pio_write(port, &words[..1]);
                words[1..].iter().for_each(|word| assert!(fabric.pio_write(port + 1, &[*word])));
            }
            fabric.line(12).unwrap().source("mouse").pulse();
            // Virtual wire mode.
            let mut vcpu = &sim.vcpus()[0];
            vcpu.with_lapic(|lapic| lapic.write(0x350, &(7u32 << 8).to_le_bytes()));
            fabric.before_run(&mut vcpu).unwrap();
            fabric.pio_write(0xa0, &[0x20]);
            fabric.pio_read(0x20, &mut [0; 1]);
        },
    );
    assert_same(&text, recorded);
    assert!(text.contains("\"acknowledge\":{\"vector\":60"), "{text}");
}

#[test]
fn a_vtd_unit_replays_as_recorded_without_the_guests_memory() {
    let ram = Ram::new();
    let (text, recorded) = record(
        |builder| builder.memory(ram.clone()).vtd(UNIT, Vtd::default(), Faults::default()),
        |fabric, _| {
            let guest = Driver::new(fabric.clone(), ram.clone());
            guest.enable();
            guest.set(3, irte(0x41, 1));
            let vectors = fabric.msi_vectors(DEVICE, 2);
            for (index, entry) in [(0, 3), (1, 4)] {
                let (address, data) = remappable(entry);
                vectors.program(index, address, data).unwrap();
                vectors[index].signal();
            }
            guest.set(3, irte(0x42, 0));
            guest.invalidate(vtd::by_index(3, 0));
            vectors[0].signal();
            assert_eq!(guest.take_faults(), [(0x22, 4)]);
        },
    );
    assert_same(&text, recorded);
    for step in ["\"memory\":", "\"effect\":{\"invalidate\":{\"first\":3,\"last\":3}}", "\"fault\":{\"reason\":34"] {
        assert!(text.contains(step), "no {step} in {text}");
    }
}

#[test]
fn what_many_threads_do_replays_in_the_order_of_each_machine() {
    let (text, recorded) = record(
        |builder| builder,
        |fabric, _| {
            fabric.program(5, entry(0x31, 0) | LEVEL);
            fabric.program(6, entry(0x32, 1));
            let vectors = fabric.msi_vectors(DEVICE, 1);
            vectors.program(0, 0xfee0_0000, 0x41).unwrap();
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let sources = [5, 6].map(|gsi| fabric.line(gsi).unwrap().source("device"));
                        for round in 0..500 {
                            sources.iter().for_each(|source| source.raise());
                            sources.iter().for_each(|source| source.lower());
                            vectors[0].signal();
                            if round % 7 == 0 {
                                fabric.end_of_interrupt(0x31);
                                vectors.set_masking([0], Masking::Masked).unwrap();
                                vectors.set_masking([0], Masking::Unmasked).unwrap();
                            }
                        }
                    });
                }
            });
        },
    );
    assert!(recorded.records > 4 * 500 * 5, "{recorded:?}");
    assert_same(&text, recorded);
}

#[test]
fn the_first_output_that_differs_is_told_with_the_state_around_it() {
    let (text, _) = record(|builder| builder, level_interrupt);
    // The first delivery and a later end: two outputs that the machine never gave.
    let changed = text.replacen("\"data\":49201,\"requester\"", "\"data\":49202,\"requester\"", 1);
    let changed = changed.replacen("\"ended\":true", "\"ended\":false", 1);
    assert_ne!(changed, text);
    let replayed = replayed(&changed);
    let difference = replayed.difference.as_ref().unwrap();
    let line = 1 + changed.lines().position(|line| line.contains("49202")).unwrap();
    assert_eq!(difference.line, line, "{replayed}");
    assert!(difference.recorded.contains("49202") && difference.seen.contains("49201"), "{replayed}");
    assert_eq!(difference.state["chip"]["pins"][5]["level"], "High", "{replayed}");
    assert!(difference.before.last().unwrap().contains("parked"), "{replayed}");
}

#[test]
fn a_level_interrupt_delivered_before_its_route_was_in_force_is_found() {
    let (text, _) = record(|builder| builder, level_interrupt);
    // As if the fabric had delivered by a route that was for another vector.
    let parked = text.lines().find(|line| line.contains("\"parked\"")).unwrap();
    let replayed = replayed(&text.replace(parked, &parked.replace("\"vector\":49", "\"vector\":50")));
    let broken = replayed.difference.and_then(|difference| difference.broken).unwrap();
    assert!(broken.contains("before its parked route was in force"), "{broken}");
}

fn problem(text: &[u8]) -> (usize, Problem) {
    let error = replay(text, |_| panic!("half of it was replayed")).unwrap_err();
    (error.line, error.problem)
}

#[test]
fn a_recording_that_was_cut_anywhere_is_refused_and_nothing_of_it_replayed() {
    let (text, _) = record(|builder| builder, |fabric, _| fabric.line(4).unwrap().source("serial").pulse());
    let header = text.find('\n').unwrap() + 1;
    // Without its last line feed it is whole.
    for length in header..text.len() - 1 {
        let (line, problem) = problem(&text.as_bytes()[..length]);
        assert!(matches!(problem, Problem::Cut), "{length}: {problem}");
        let lines = text[..length].lines().count();
        assert!((lines..=lines + 1).contains(&line), "{length}: line {line}");
    }
}

#[test]
fn what_is_no_recording_is_refused_with_the_line_and_the_reason() {
    let begins = "{\"irqfabric-recording\":1}\n{\"machine\":0,\"begins\":{\"line\":{\"gsi\":0}}}\n";
    let step = "{\"machine\":0,\"number\":0,\"line\":{\"add\":{\"source\":0,\"resampling\":false}}}\n";
    let later = step.replace("\"number\":0", "\"number\":1");
    let end = "{\"records\":1,\"lost\":0}\n";
    let long = "x".repeat((1 << 20) + 2);
    let cases: [(String, usize, &str); 16] = [
        (String::new(), 1, "no recording"),
        ("\u{7f}ELF".into(), 1, "no recording"),
        (long.clone(), 1, "no recording"),
        ("{\"records\":0}\n".into(), 1, "no recording"),
        ("{\"irqfabric-recording\":2}\n".into(), 1, "version 2"),
        ("{\"irqfabric-recording\":\"1\"}\n".into(), 1, "version \"1\""),
        (format!("{begins}{end}"), 3, "has 0 records, and its last line says 1"),
        (format!("{begins}{step}{end}{step}"), 5, "follows the last line"),
        (format!("{begins}{step}{step}{end}").replace("ords\":1", "ords\":2"), 4, "two steps number 0"),
        (format!("{begins}{later}{end}"), 3, "number 0 of machine 0, is missing"),
        (format!("{begins}{}{end}", step.replace("\"machine\":0", "\"machine\":1")), 3, "machine 1 has not begun"),
        (format!("{begins}{}{end}", step.replace("{\"add", "{\"sub")), 3, "unknown variant `sub`"),
        (format!("{begins}{}{end}", step.replace("source", "sink")), 3, "unknown field `sink`"),
        (format!("{begins}{}{end}", step.replace("line", "pic")), 3, "unknown variant `add`"),
        (format!("{begins}{begins}"), 3, "names no machine"),
        (format!("{begins}{long}\n{end}"), 3, "it has no end"),
    ];
    for (text, line, reason) in cases {
        let (found, problem) = problem(text.as_bytes());
        let problem = problem.to_string();
        assert!(
            found == line && problem.contains(reason),
            "expected line {line}: {reason}; saw line {found}: {problem}"
        );
    }
    let other = format!("{begins}{}", "{\"machine\":0,\"number\":0,\"pic\":{\"acknowledge\":{}}}\n{\"records\":1}\n");
    assert!(matches!(problem(other.as_bytes()), (3, Problem::Kind(0))));
    let again = format!("{begins}{}", begins.lines().nth(1).unwrap().to_owned() + "\n");
    assert!(matches!(problem(again.as_bytes()), (3, Problem::Again(0))));
    let binary = [begins.as_bytes(), b"\xff\xfe\n"].concat();
    assert!(matches!(problem(&binary), (3, Problem::Malformed(_))));
    let state = "{\"irqfabric-recording\":1}\n{\"machine\":0,\"begins\":{\"ioapic\":{\"gsi\":0,\"state\":{\"version\":\"V20\",\
                 \"requester\":0,\"id\":16,\"select\":0,\"pins\":[]}}}}\n{\"records\":0}\n";
    assert!(matches!(problem(state.as_bytes()), (2, Problem::State(_))));
}

#[test]
fn what_is_wrong_with_a_file_is_told_without_its_control_characters() {
    let unknown = "{\"irqfabric-recording\":1}\n{\"machine\":0,\"begins\":{\"\\u001b[2J\\n\u{9b}\":0}}\n";
    let version = "{\"irqfabric-recording\":\"\u{7f}\"}\n";
    for (text, shown) in [(unknown, "\\u{1b}[2J\\n\\u{9b}"), (version, "version \"\\u{7f}\"")] {
        let (_, problem) = problem(text.as_bytes());
        let said = problem.to_string();
        assert!(said.contains(shown) && !said.contains(char::is_control), "{said:?}");
    }
}

/// Takes so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.0.checked_sub(data.len()) {
            Some(left) => self.0 = left,
            None => return Err(io::ErrorKind::StorageFull.into()),
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_disk_that_is_full_is_an_error_of_the_recording_and_none_of_the_machine() {
    let recorder = Recorder::start(Full(100)).unwrap();
    let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).record(&recorder).build().unwrap();
    let source = fabric.line(4).unwrap().source("serial");
    (0..10_000).for_each(|_| source.pulse());
    let failed = recorder.finish().unwrap_err();
    assert!(matches!(&failed, RecordError::Write(why) if why.kind() == io::ErrorKind::StorageFull), "{failed}");
}

/// Takes the first bytes when it is let.
struct Slow(File, Option<Arc<Barrier>>);

impl Write for Slow {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if let Some(barrier) = self.1.take() {
            barrier.wait();
        }
        self.0.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_is_too_slow_holds_nobody_up_and_the_replay_stops_where_steps_are_missing() {
    let (file, barrier) = (File::default(), Arc::new(Barrier::new(2)));
    let recorder = Recorder::start(Slow(file.clone(), Some(barrier.clone()))).unwrap();
    let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).record(&recorder).build().unwrap();
    let source = fabric.line(4).unwrap().source("serial");
    // Four steps each, more than the buffers hold while the file takes nothing.
    (0..200_000).for_each(|_| source.pulse());
    barrier.wait();
    // There is room again once what was held up is in the file.
    let mut lines = 0;
    while lines < 10_000 || lines != file.text().lines().count() {
        lines = file.text().lines().count();
        thread::sleep(Duration::from_millis(100));
    }
    for _ in 0..100 {
        source.pulse();
        thread::sleep(Duration::from_millis(1));
    }
    drop((source, fabric));
    let recorded = recorder.finish().unwrap();
    assert!(recorded.lost > 0, "{recorded:?}");
    let replayed = replayed(&file.text());
    assert!(replayed.difference.is_none(), "{replayed}");
    assert_eq!((replayed.lost, replayed.records < recorded.records as usize), (recorded.lost, true), "{replayed}");
    let machines: Vec<_> = replayed.gaps.iter().map(|gap| gap.machine.as_str()).collect();
    assert_eq!(machines, ["machine 0 (IOAPIC of GSI 0 and further)", "machine 5 (line of GSI 4)"]);
}

#[test]
fn the_script_of_the_documentation_gives_the_answers_that_it_says() {
    let page = include_str!("../../../docs/RECORDING.md");
    let block = |kind| page.split_once(&format!("```{kind}\n")).and_then(|(_, rest)| rest.split_once("```")).unwrap().0;
    let mut answers = String::new();
    let replayed = replay(block("script").as_bytes(), |answer| answers.extend([answer, "\n"])).unwrap();
    assert!(replayed.difference.is_none(), "{replayed}");
    assert_eq!(answers, block("answers"));
}
