//! The fabric on the simulated machine: software local APICs, no /dev/kvm.

mod common;

use common::{Guest, LEVEL, assert_table_commits, entry};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::chip::lapic::Effect;
use irqfabric::fabric::{Fabric, GsiError, IOAPIC_ADDRESS, LineEventfdsError};
use irqfabric::hv::{Counted, Ends, Sim};
use irqfabric::msg::RequesterId;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

fn machine(vcpus: u32) -> (Fabric, Arc<Sim>) {
    let sim = Arc::new(Sim::new(vcpus));
    let fabric = Fabric::builder(sim.clone()).ioapic(Ioapic::default()).build().unwrap();
    for vcpu in sim.vcpus() {
        vcpu.enable();
    }
    (fabric, sim)
}

#[test]
fn table_commits_stay_within_their_bounds_on_the_simulated_machine() {
    let counted = Arc::new(Counted::new(Sim::new(2)));
    assert_table_commits(counted.clone(), || counted.inner().vcpus().iter().for_each(|vcpu| vcpu.enable()));
}

#[test]
fn a_level_goes_all_the_way_and_its_end_comes_back() {
    let (fabric, sim) = machine(2);
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 1) | LEVEL);
    source.raise();
    assert_eq!(sim.vcpus()[0].acknowledge(), None);
    assert_eq!(sim.vcpus()[1].acknowledge(), Some(0x41));
    assert_eq!(sim.vcpus()[1].acknowledge(), None, "it is in service");
    let ended = sim.vcpus()[1].end_of_interrupt().unwrap();
    fabric.end_of_interrupt(ended);
    assert_eq!(sim.vcpus()[1].acknowledge(), Some(0x41), "the line still stands");
    source.lower();
    fabric.end_of_interrupt(sim.vcpus()[1].end_of_interrupt().unwrap());
    assert_eq!(sim.vcpus()[1].acknowledge(), None);
}

#[test]
fn the_end_of_an_edge_is_not_reported() {
    let (fabric, sim) = machine(1);
    fabric.program(4, entry(0x31, 0));
    fabric.line(4).unwrap().source("serial").pulse();
    assert_eq!(sim.vcpus()[0].acknowledge(), Some(0x31));
    assert_eq!(sim.vcpus()[0].end_of_interrupt(), None);
}

#[test]
fn an_interrupt_to_a_local_apic_that_is_switched_off_is_refused() {
    let sim = Arc::new(Sim::new(1));
    let fabric = Fabric::builder(sim.clone()).ioapic(Ioapic::default()).build().unwrap();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 0) | LEVEL);
    source.raise();
    assert_eq!((sim.calls().deliveries, sim.calls().refused), (1, 1));
    // The guest enables its local APIC and then unmasks: the level was never lost.
    sim.vcpus()[0].enable();
    fabric.program(10, entry(0x41, 0) | LEVEL);
    assert_eq!(sim.vcpus()[0].acknowledge(), Some(0x41));
}

#[test]
fn the_lowest_priority_processor_takes_a_lowest_priority_interrupt() {
    let (fabric, sim) = machine(3);
    for (index, vcpu) in sim.vcpus().iter().enumerate() {
        let task_priority = [0x50u32, 0x20, 0x80][index];
        vcpu.with_lapic(|lapic| {
            lapic.write(0xd0, &(1u32 << (24 + index)).to_le_bytes());
            lapic.write(0x80, &task_priority.to_le_bytes())
        });
    }
    fabric.program(4, 0x07 << 56 | 1 << 11 | 1 << 8 | 0x91);
    fabric.line(4).unwrap().source("serial").pulse();
    let taken: Vec<_> = sim.vcpus().iter().map(|vcpu| vcpu.acknowledge()).collect();
    assert_eq!(taken, [None, Some(0x91), None]);
}

#[test]
fn a_broadcast_reaches_everybody() {
    let (fabric, sim) = machine(3);
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    vectors.program(0, 0xfeef_f000, 0x51).unwrap();
    vectors[0].signal();
    assert!(sim.vcpus().iter().all(|vcpu| vcpu.acknowledge() == Some(0x51)));
}

#[test]
fn an_ipi_goes_where_it_says() {
    let (_fabric, sim) = machine(3);
    let send = |high: u32, low: u32| {
        let effect = sim.vcpus()[0].with_lapic(|lapic| {
            lapic.write(0x310, &high.to_le_bytes());
            lapic.write(0x300, &low.to_le_bytes())
        });
        assert!(matches!(effect, Some(Effect::Ipi { .. })));
        assert_eq!(sim.perform(0, effect.unwrap()), None);
        sim.vcpus().iter().map(|vcpu| vcpu.acknowledge().is_some()).collect::<Vec<_>>()
    };
    assert_eq!(send(1 << 24, 0x51), [false, true, false]);
    assert_eq!(send(0, 0x62 | 1 << 18), [true, false, false]);
    assert_eq!(send(0, 0x73 | 2 << 18), [true, true, true]);
    assert_eq!(send(0, 0x84 | 3 << 18), [false, true, true]);
}

#[test]
fn a_waiting_processor_wakes_for_an_interrupt_and_for_its_owner() {
    let (fabric, sim) = machine(1);
    let source = fabric.line(4).unwrap().source("serial");
    fabric.program(4, entry(0x31, 0));
    let vcpu = &sim.vcpus()[0];
    assert!(!vcpu.wait(Duration::from_millis(1), || false), "nothing is pending");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| vcpu.wait(Duration::from_secs(30), || false));
        source.pulse();
        assert!(waiter.join().unwrap());
        vcpu.acknowledge();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let stopped = || stop.load(std::sync::atomic::Ordering::Acquire);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| vcpu.wait(Duration::from_secs(30), stopped));
            stop.store(true, std::sync::atomic::Ordering::Release);
            vcpu.wake();
            assert!(waiter.join().unwrap());
        });
    });
}

/// A machine like one with TDX: nobody outside the guest learns of the end of an interrupt.
fn without_ends() -> (Fabric, Arc<Sim>) {
    let sim = Arc::new(Sim::new(1).with_ends(Ends::Hidden));
    let fabric = Fabric::builder(sim.clone()).ioapic(Ioapic::default()).build().unwrap();
    sim.vcpus()[0].enable();
    (fabric, sim)
}

#[test]
fn a_level_line_without_ends_of_interrupts_is_an_error_that_says_what_there_is() {
    let (fabric, _) = without_ends();
    let error = fabric.line(10).unwrap_err();
    assert_eq!(error, GsiError::NoLevel { gsi: 10 });
    assert_eq!(
        error.to_string(),
        "GSI 10 has no level line: the hypervisor hides ends of interrupts; there are edge sources and message vectors"
    );
    assert!(matches!(fabric.line_eventfds(10, "vfio"), Err(LineEventfdsError::Gsi(GsiError::NoLevel { gsi: 10 }))));
    assert_eq!(fabric.edge_source(24, "serial").unwrap_err(), GsiError::OutOfRange { gsi: 24, last: 23 });
}

#[test]
fn edges_and_messages_work_without_ends_of_interrupts() {
    let (fabric, sim) = without_ends();
    let cpu = &sim.vcpus()[0];
    let serial = fabric.edge_source(4, "serial").unwrap();
    fabric.program(4, entry(0x31, 0));
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    vectors.program(0, 0xfee0_0000, 0x51).unwrap();
    for _ in 0..3 {
        serial.pulse();
        vectors[0].signal();
        assert_eq!([cpu.acknowledge(), cpu.end_of_interrupt()], [Some(0x51), None]);
        assert_eq!([cpu.acknowledge(), cpu.end_of_interrupt()], [Some(0x31), None]);
    }
}

#[test]
fn a_pin_that_the_guest_makes_level_goes_on_sending_edges_without_ends_of_interrupts() {
    let (fabric, sim) = without_ends();
    let cpu = &sim.vcpus()[0];
    let source = fabric.edge_source(10, "disk").unwrap();
    fabric.program(10, entry(0x41, 0) | LEVEL);
    assert_eq!(fabric.entry(10), entry(0x41, 0), "the bit is not there to be written");
    for _ in 0..3 {
        source.pulse();
        assert_eq!(cpu.acknowledge(), Some(0x41));
        // A level interrupt's end would be waited for in vain.
        assert_eq!(cpu.end_of_interrupt(), None);
        // What Linux does with a level interrupt that came as an edge: harmless.
        assert!(fabric.mmio_write(IOAPIC_ADDRESS + 0x40, &0x41u32.to_le_bytes()));
        assert_eq!(cpu.acknowledge(), None);
    }
    assert_eq!(sim.calls().commits, 0, "no route is parked for an end that does not come");
}

#[test]
fn a_restored_level_pin_becomes_edge_without_ends_of_interrupts() {
    let (before, _) = machine(1);
    before.program(10, entry(0x41, 0) | LEVEL);
    let source = before.line(10).unwrap().source("disk");
    source.raise();
    let saved = before.ioapics().next().unwrap().2;
    let sim = Arc::new(Sim::new(1).with_ends(Ends::Hidden));
    let fabric = Fabric::builder(sim.clone()).ioapic(Ioapic::restore(&saved).unwrap()).build().unwrap();
    sim.vcpus()[0].enable();
    assert_eq!((fabric.entry(10), sim.calls().commits), (entry(0x41, 0), 0));
    fabric.edge_source(10, "disk").unwrap().pulse();
    assert_eq!(sim.vcpus()[0].acknowledge(), Some(0x41));
}
