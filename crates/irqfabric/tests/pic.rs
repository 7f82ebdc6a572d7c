//! The PIC in the fabric, on the simulated machine: wires, messages in ExtINT mode, the vCPU's own thread, snapshots.

mod common;

use common::{Guest, LEVEL, MASKED, entry};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::chip::pic::Pic;
use irqfabric::fabric::{BuildError, Fabric, LineEventfds, PendingExternal};
use irqfabric::hv::{Capacity, EVERY_VCPU, External, HvError, Hypervisor, InterruptWindow, Route, Sim, Takes, Vcpu};
use irqfabric::line::{Level, LineSource, Pin};
use irqfabric::msg::{Acceptance, DestinationMode, Interrupt, RequesterId};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

const EXTINT: u64 = 7 << 8;
const LOGICAL: u64 = 1 << 11;
const LVT0: u64 = 0x350;
const MASTER: u8 = 0x20;
const SLAVE: u8 = 0x28;

struct Machine {
    fabric: Fabric,
    sim: Arc<Sim>,
    kicks: Arc<Mutex<Vec<u32>>>,
}

impl Machine {
    /// A PIC with all inputs open, and LINT0 of the boot processor in ExtINT mode.
    fn new() -> Self {
        let machine = Self::closed();
        machine.lvt0(0, EXTINT as u32);
        machine
    }

    fn closed() -> Self {
        let sim = Arc::new(Sim::new(2));
        let kicks = Arc::new(Mutex::new(Vec::new()));
        let kick = {
            let (sim, kicks) = (sim.clone(), kicks.clone());
            move |apic_id| {
                kicks.lock().unwrap().push(apic_id);
                sim.kick(apic_id);
            }
        };
        let builder = Fabric::builder(sim.clone()).ioapic(Ioapic::default()).pic(Pic::default()).kick(kick);
        let fabric = builder.build().unwrap();
        sim.vcpus().iter().for_each(|vcpu| vcpu.enable());
        let machine = Self { fabric, sim, kicks };
        for (command, vectors) in [(0x20, MASTER), (0xa0, SLAVE)] {
            machine.out(command, 0x11);
            [vectors, 4, 1, 0].iter().for_each(|word| machine.out(command + 1, *word));
        }
        machine
    }

    /// Both chips end interrupts when they are acknowledged.
    fn with_automatic_ends(self) -> Self {
        for (command, vectors) in [(0x20, MASTER), (0xa0, SLAVE)] {
            self.out(command, 0x11);
            [vectors, 4, 3, 0].iter().for_each(|word| self.out(command + 1, *word));
        }
        self
    }

    /// A resampling source, and how often it was told.
    fn resampling(&self, gsi: u32) -> (LineSource, Arc<AtomicUsize>) {
        let told = Arc::new(AtomicUsize::new(0));
        let acknowledged = {
            let told = told.clone();
            move || {
                told.fetch_add(1, Relaxed);
            }
        };
        (self.fabric.line(gsi).unwrap().resampling_source("vfio", acknowledged).unwrap(), told)
    }

    fn out(&self, port: u16, value: u8) {
        assert!(self.fabric.pio_write(port, &[value]));
    }

    fn lvt0(&self, cpu: usize, value: u32) {
        self.sim.vcpus()[cpu].with_lapic(|lapic| lapic.write(LVT0, &value.to_le_bytes()));
    }

    /// A vCPU goes round its loop once.
    fn take(&self, cpu: usize) -> Option<u8> {
        let mut vcpu = &self.sim.vcpus()[cpu];
        self.fabric.before_run(&mut vcpu).unwrap();
        vcpu.acknowledge()
    }

    fn kicked(&self) -> Vec<u32> {
        std::mem::take(&mut self.kicks.lock().unwrap())
    }

    fn requested(&self) -> u8 {
        self.out(0x20, 0x0a);
        self.read(0x20)
    }

    /// The poll command, and its answer.
    fn poll(&self, port: u16) -> u8 {
        self.out(port, 0x0c);
        self.read(port)
    }

    fn read(&self, port: u16) -> u8 {
        let mut data = [0];
        assert!(self.fabric.pio_read(port, &mut data));
        data[0]
    }
}

#[test]
fn a_line_reaches_the_boot_processor_by_the_pic() {
    let machine = Machine::new();
    let source = machine.fabric.line(12).unwrap().source("mouse");
    source.raise();
    assert_eq!(machine.kicked(), [0], "once for INTR's rise");
    assert_eq!(machine.take(1), None, "LINT0 of the other is no end of INTR");
    assert_eq!(machine.take(0), Some(SLAVE | 4));
    assert_eq!(machine.take(0), None, "it is in service");
    assert_eq!(machine.fabric.stats().lines[0].acknowledged, 1);
}

#[test]
fn behind_a_masked_lint0_the_pic_is_not_acknowledged() {
    let machine = Machine::closed();
    machine.fabric.line(4).unwrap().source("serial").pulse();
    assert_eq!(machine.take(0), None);
    assert_eq!(machine.requested(), 1 << 4);
    machine.lvt0(0, EXTINT as u32);
    assert_eq!(machine.take(0), Some(MASTER | 4), "it was kept");
    assert_eq!(machine.requested(), 0);
}

#[test]
fn a_line_reaches_pic_and_ioapic_together() {
    let machine = Machine::new();
    machine.fabric.program(4, entry(0x51, 1));
    machine.fabric.line(4).unwrap().source("serial").pulse();
    assert_eq!((machine.take(0), machine.take(1)), (Some(MASTER | 4), Some(0x51)));
    // The cascade has no line of its own, and beyond input 15 there are pins only.
    machine.fabric.program(2, entry(0x62, 1));
    machine.fabric.program(16, entry(0x73, 1));
    machine.fabric.line(2).unwrap().source("cascade").pulse();
    assert_eq!((machine.take(0), machine.take(1)), (None, Some(0x62)));
    machine.fabric.line(16).unwrap().source("pci").pulse();
    assert_eq!((machine.take(0), machine.take(1)), (None, Some(0x73)));
}

#[test]
fn a_machine_with_a_pic_alone_has_its_sixteen_lines() {
    let sim = Arc::new(Sim::new(1));
    let fabric = Fabric::builder(sim).pic(Pic::default()).kick(|_| {}).build().unwrap();
    assert!(fabric.line(15).is_ok() && fabric.line(16).is_err());
    let source = fabric.line(3).unwrap().source("serial");
    source.raise();
    assert_eq!(fabric.pic().unwrap().chip.master.high, 1 << 3);
}

#[test]
fn a_level_that_still_stands_after_the_pics_eoi_is_delivered_again() {
    let machine = Machine::new();
    machine.out(0x4d1, 1 << 3);
    let source = machine.fabric.line(11).unwrap().source("disk");
    source.raise();
    assert_eq!(machine.take(0), Some(SLAVE | 3));
    assert_eq!(machine.kicked(), [0]);
    machine.out(0xa0, 0x20);
    machine.out(0x20, 0x20);
    assert_eq!(machine.kicked(), [0], "INTR rose again");
    assert_eq!(machine.take(0), Some(SLAVE | 3));
    source.lower();
    machine.out(0xa0, 0x20);
    machine.out(0x20, 0x20);
    assert_eq!(machine.take(0), None);
}

#[test]
fn the_pics_eoi_lowers_resampling_sources_and_then_tells_them() {
    let machine = Machine::new();
    machine.out(0x4d1, 1 << 3);
    let told = Arc::new(AtomicBool::new(false));
    let source = {
        let (told, line) = (told.clone(), machine.fabric.line(11).unwrap());
        line.resampling_source("vfio", move || told.store(true, Relaxed)).unwrap()
    };
    source.raise();
    assert_eq!(machine.take(0), Some(SLAVE | 3));
    machine.out(0xa0, 0x20);
    assert!(told.load(Relaxed));
    machine.out(0x20, 0x20);
    assert_eq!(machine.take(0), None, "neither again nor as a default IR7");
    source.raise();
    assert_eq!(machine.take(0), Some(SLAVE | 3));
}

#[test]
fn an_automatic_eoi_lowers_resampling_sources_and_is_followed_by_no_default_ir7() {
    let machine = Machine::new().with_automatic_ends();
    machine.out(0x4d1, 1 << 3);
    let (source, told) = machine.resampling(11);
    for round in 1..=3 {
        source.raise();
        assert_eq!(machine.take(0), Some(SLAVE | 3));
        assert_eq!((told.load(Relaxed), source.level()), (round, Level::Low));
        assert_eq!(machine.take(0), None, "neither again nor as a default IR7");
    }
    assert_eq!(machine.fabric.stats().lines[0].acknowledged, 3);
}

#[test]
fn a_level_that_another_source_holds_is_delivered_again_after_an_automatic_eoi() {
    let machine = Machine::new().with_automatic_ends();
    machine.out(0x4d1, 1 << 3);
    let (source, told) = machine.resampling(11);
    let plain = machine.fabric.line(11).unwrap().source("disk");
    source.raise();
    plain.raise();
    assert_eq!((machine.take(0), machine.take(0)), (Some(SLAVE | 3), Some(SLAVE | 3)));
    assert_eq!(told.load(Relaxed), 1);
    plain.lower();
}

#[test]
fn what_is_raised_again_while_it_is_told_of_an_automatic_eoi_is_not_slept_through() {
    // A level, and an edge.
    for gsi in [11, 12] {
        let machine = Machine::new().with_automatic_ends();
        machine.out(0x4d1, 1 << 3);
        let source = Arc::new(OnceLock::<LineSource>::new());
        let acknowledged = {
            let source = source.clone();
            move || source.get().unwrap().raise()
        };
        let line = machine.fabric.line(gsi).unwrap();
        assert!(source.set(line.resampling_source("vfio", acknowledged).unwrap()).is_ok());
        source.get().unwrap().raise();
        let mut vcpu = Puppet::default();
        // Nobody kicks a vCPU's own thread.
        machine.fabric.before_run(&mut vcpu).unwrap();
        assert_eq!((vcpu.window, &vcpu.got[..]), (InterruptWindow::Wanted, &[SLAVE | gsi as u8 & 7][..]));
    }
}

#[test]
fn a_poll_that_ends_the_interrupt_lowers_resampling_sources_and_then_tells_them() {
    let machine = Machine::new().with_automatic_ends();
    machine.out(0x4d1, 1 << 3);
    let (source, told) = machine.resampling(11);
    source.raise();
    assert_eq!((machine.poll(0x20), told.load(Relaxed)), (0x82, 0), "the master's part ends nothing");
    assert_eq!((machine.poll(0xa0), told.load(Relaxed)), (0x83, 1));
    assert_eq!(source.level(), Level::Low);
    assert_eq!((machine.poll(0xa0), machine.take(0)), (0x07, None), "there is nothing any more");
}

#[test]
fn a_poll_that_does_not_end_the_interrupt_leaves_that_to_the_eoi() {
    let machine = Machine::new();
    machine.out(0x4d0, 1 << 5);
    let (source, told) = machine.resampling(5);
    source.raise();
    assert_eq!((machine.poll(0x20), told.load(Relaxed), source.level()), (0x85, 0, Level::High));
    machine.out(0x20, 0x20);
    assert_eq!((told.load(Relaxed), source.level()), (1, Level::Low));
}

#[test]
fn the_eoi_of_the_cascade_is_none_of_gsi_2() {
    let machine = Machine::new();
    let (source, told) = machine.resampling(2);
    machine.fabric.line(11).unwrap().source("disk").pulse();
    source.raise();
    assert_eq!(machine.take(0), Some(SLAVE | 3));
    machine.out(0xa0, 0x20);
    machine.out(0x20, 0x20);
    assert_eq!((told.load(Relaxed), source.level()), (0, Level::High));
}

/// A master that was told to be alone answers for input 2 itself. The slave's wire is there all the same, and no line.
#[test]
fn a_master_without_a_slave_acknowledges_no_interrupt_of_gsi_2() {
    let machine = Machine::new();
    // ICW1 with SNGL, ICW2, ICW4 with AEOI.
    machine.out(0x20, 0x13);
    [MASTER, 3].iter().for_each(|word| machine.out(0x21, *word));
    let (source, told) = machine.resampling(2);
    source.raise();
    machine.fabric.line(11).unwrap().source("disk").pulse();
    assert_eq!(machine.take(0), Some(MASTER | 2));
    assert_eq!((told.load(Relaxed), source.level()), (0, Level::High));
}

#[test]
fn a_pin_in_extint_mode_interrupts_its_destination_with_the_pics_vector() {
    for destination in [1 << 56, 2 << 56 | LOGICAL] {
        let machine = Machine::closed();
        machine.sim.vcpus()[1].with_lapic(|lapic| lapic.write(0xd0, &(2u32 << 24).to_le_bytes()));
        machine.fabric.program(5, destination | EXTINT);
        machine.kicked();
        machine.fabric.line(5).unwrap().source("network").pulse();
        let expected = if destination & LOGICAL == 0 { 1 } else { EVERY_VCPU };
        // INTR rises too, for a LINT0 that lets nothing through.
        assert_eq!(machine.kicked(), [0, expected]);
        assert_eq!((machine.take(0), machine.take(1)), (None, Some(MASTER | 5)), "LINT0 is not asked");
        assert_eq!(machine.take(1), None);
    }
}

#[test]
fn an_extint_without_a_request_is_the_default_ir7() {
    let machine = Machine::closed();
    machine.out(0x21, 0xff);
    machine.fabric.program(5, entry(0, 1) | EXTINT);
    machine.fabric.line(5).unwrap().source("network").pulse();
    assert_eq!(machine.take(1), Some(MASTER | 7));
}

#[test]
fn an_extint_without_a_pic_is_dropped_and_counted() {
    let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).build().unwrap();
    fabric.program(5, entry(0, 0) | EXTINT | LEVEL);
    fabric.line(5).unwrap().source("network").pulse();
    assert_eq!(fabric.stats().dropped, 1);
}

#[test]
fn messages_to_nobody_are_bounded() {
    let machine = Machine::closed();
    let source = machine.fabric.line(5).unwrap().source("network");
    for destination in 2..=200 {
        machine.fabric.program(5, entry(0, destination) | EXTINT);
        source.pulse();
    }
    assert_eq!(machine.fabric.pic().unwrap().pending.len(), 4);
    assert_eq!(machine.fabric.stats().dropped, 199 - 4);
    machine.fabric.program(5, MASKED);
    machine.lvt0(0, EXTINT as u32);
    assert_eq!(machine.take(0), Some(MASTER | 5), "and in nobody's way");
}

#[test]
fn a_message_to_somebody_arrives_whatever_was_sent_to_nobody() {
    let machine = Machine::closed();
    let source = machine.fabric.line(5).unwrap().source("network");
    for destination in (2..=200).chain([1]) {
        machine.fabric.program(5, entry(0, destination) | EXTINT);
        source.pulse();
    }
    assert_eq!(machine.take(1), Some(MASTER | 5));
}

#[test]
fn a_message_vector_cannot_be_an_extint() {
    let machine = Machine::new();
    let vectors = machine.fabric.msi_vectors(RequesterId(8), 1);
    vectors.program(0, 0xfee0_0000, 7 << 8).unwrap();
    vectors[0].signal();
    assert_eq!((vectors[0].stats().delivered, machine.take(0)), (0, None));
}

/// A vCPU that is told what to answer.
#[derive(Default)]
struct Puppet {
    busy: bool,
    latched: bool,
    got: Vec<u8>,
    window: InterruptWindow,
}

impl Vcpu for Puppet {
    fn takes(&mut self, external: &External) -> Result<Takes, HvError> {
        assert_eq!(*external, External::Lint0);
        Ok(if self.busy { Takes::Later } else { Takes::Now })
    }

    fn interrupt(&mut self, vector: u8) -> Result<Acceptance, HvError> {
        self.busy = true;
        if self.latched {
            return Ok(Acceptance::Refused);
        }
        self.got.push(vector);
        Ok(Acceptance::Accepted)
    }

    fn set_window(&mut self, window: InterruptWindow) {
        self.window = window;
    }
}

#[test]
fn a_vcpu_that_is_not_ready_is_asked_for_its_window_until_it_is() {
    let machine = Machine::new();
    let mut vcpu = Puppet { busy: true, ..Puppet::default() };
    machine.fabric.before_run(&mut vcpu).unwrap();
    assert_eq!(vcpu.window, InterruptWindow::Unwanted, "nothing is there");
    machine.fabric.line(4).unwrap().source("serial").pulse();
    machine.fabric.before_run(&mut vcpu).unwrap();
    assert_eq!((vcpu.window, &vcpu.got[..]), (InterruptWindow::Wanted, &[][..]));
    assert_eq!(machine.requested(), 1 << 4, "nor was it acknowledged");
    vcpu.busy = false;
    machine.fabric.before_run(&mut vcpu).unwrap();
    assert_eq!((vcpu.window, &vcpu.got[..]), (InterruptWindow::Unwanted, &[MASTER | 4][..]));
}

#[test]
fn a_vector_that_the_vcpu_could_not_take_is_given_again_and_is_part_of_a_snapshot() {
    let machine = Machine::new();
    machine.fabric.line(4).unwrap().source("serial").pulse();
    let mut vcpu = Puppet { latched: true, ..Puppet::default() };
    machine.fabric.before_run(&mut vcpu).unwrap();
    assert_eq!((vcpu.window, &vcpu.got[..]), (InterruptWindow::Wanted, &[][..]));
    let mut saved = machine.fabric.pic().unwrap();
    assert_eq!(saved.pending[0].vector, Some(MASTER | 4));
    // What no machine has saved: INTR is the chip's to say, and there are not so many vCPUs.
    saved.pending.extend([PendingExternal { external: External::Lint0, vector: None }; 1000]);
    let restored = Fabric::builder(Sim::new(1)).restore_pic(&saved).kick(|_| {}).build().unwrap();
    for fabric in [machine.fabric, restored] {
        let mut vcpu = Puppet::default();
        fabric.before_run(&mut vcpu).unwrap();
        assert_eq!(vcpu.got, [MASTER | 4]);
        assert!(fabric.pic().unwrap().pending.is_empty());
    }
}

#[test]
fn with_automatic_eoi_the_next_vector_waits_for_its_turn() {
    let machine = Machine::new();
    machine.out(0x20, 0x11);
    [MASTER, 4, 3, 0].iter().for_each(|word| machine.out(0x21, *word));
    for gsi in [3, 4] {
        machine.fabric.line(gsi).unwrap().source("serial").pulse();
    }
    let mut vcpu = Puppet::default();
    machine.fabric.before_run(&mut vcpu).unwrap();
    assert_eq!((vcpu.window, &vcpu.got[..]), (InterruptWindow::Wanted, &[MASTER | 3][..]));
    vcpu.busy = false;
    machine.fabric.before_run(&mut vcpu).unwrap();
    assert_eq!((vcpu.window, &vcpu.got[..]), (InterruptWindow::Unwanted, &[MASTER | 3, MASTER | 4][..]));
}

#[test]
fn what_waits_survives_a_snapshot() {
    let machine = Machine::closed();
    machine.fabric.program(5, entry(0, 1) | EXTINT);
    machine.fabric.line(5).unwrap().source("network").pulse();
    let saved = machine.fabric.pic().unwrap();
    let message = External::Message { destination: 1, destination_mode: DestinationMode::Physical };
    assert_eq!(saved.pending.iter().map(|waits| waits.external).collect::<Vec<_>>(), [message]);
    let sim = Arc::new(Sim::new(2));
    let fabric = Fabric::builder(sim.clone()).restore_pic(&saved).kick(|_| {}).build().unwrap();
    sim.vcpus()[1].enable();
    fabric.before_run(&mut &sim.vcpus()[1]).unwrap();
    assert_eq!(sim.vcpus()[1].acknowledge(), Some(MASTER | 5));
}

#[test]
fn a_pic_without_a_kick_is_refused() {
    let built = Fabric::builder(Sim::new(1)).pic(Pic::default()).build();
    assert!(matches!(built, Err(BuildError::NoKick)));
}

/// A hypervisor with chips of its own, as under the full irqchip.
struct WithChips;

impl Pin for WithChips {
    fn set(&self, _: Level) {}
}

impl Hypervisor for WithChips {
    fn start(&self, _: u32) -> Result<Capacity, HvError> {
        Ok(Capacity::default())
    }

    fn pins(&self) -> Vec<Arc<dyn Pin>> {
        vec![Arc::new(Self)]
    }

    fn deliver(&self, _: &Interrupt) -> Result<Acceptance, HvError> {
        Ok(Acceptance::Refused)
    }

    fn commit(&self, _: &[Route]) -> Result<(), HvError> {
        Ok(())
    }
}

#[test]
fn a_pic_beside_the_hypervisors_own_is_refused() {
    let built = Fabric::builder(WithChips).pic(Pic::default()).kick(|_| {}).build();
    assert!(matches!(built, Err(BuildError::OtherPic)));
}

#[test]
fn ports_that_are_not_the_pics_are_left_alone() {
    let machine = Machine::new();
    let mut data = [0x5a];
    assert!(!machine.fabric.pio_read(0x22, &mut data) && !machine.fabric.pio_write(0x22, &data));
    assert_eq!(data, [0x5a]);
    let without = Fabric::builder(Sim::new(1)).build().unwrap();
    assert!(!without.pio_read(0x20, &mut data) && !without.pio_write(0x20, &data));
}

#[test]
fn a_kick_may_ask_the_pair_of_eventfds_that_it_comes_from() {
    let pair = Arc::new(OnceLock::<Arc<LineEventfds>>::new());
    let (said, says) = mpsc::channel();
    let kick = {
        let pair = pair.clone();
        move |_| said.send(pair.get().map(|pair| pair.level())).unwrap()
    };
    let fabric = Fabric::builder(Sim::new(1)).pic(Pic::default()).kick(kick).build().unwrap();
    let vfio = Arc::new(fabric.line_eventfds(4, "vfio").unwrap());
    assert!(pair.set(vfio.clone()).is_ok());
    vfio.trigger().write(1).unwrap();
    assert_eq!(says.recv_timeout(Duration::from_secs(20)), Ok(Some(Level::High)));
}

#[test]
fn a_processor_that_waits_wakes_for_every_interrupt() {
    const ROUNDS: usize = 500;
    let machine = Machine::new();
    let source = machine.fabric.line(4).unwrap().source("serial");
    thread::scope(|scope| {
        let (sent, seen) = mpsc::channel();
        let processor = scope.spawn({
            let machine = &machine;
            move || {
                for _ in 0..ROUNDS {
                    while machine.take(0).is_none() {
                        if !machine.sim.vcpus()[0].wait(Duration::from_secs(20), || false) {
                            return Err("it slept through its interrupt");
                        }
                    }
                    machine.out(0x20, 0x20);
                    sent.send(()).map_err(|_| "nobody listens")?;
                }
                Ok(())
            }
        });
        for _ in 0..ROUNDS {
            source.pulse();
            if seen.recv().is_err() {
                break;
            }
        }
        assert_eq!(processor.join().unwrap(), Ok(()));
    });
}
