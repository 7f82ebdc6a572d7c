//! A VT-d unit on real KVM: what the kernel delivers by, the guest's table has said.

use crate::common::Guest;
use crate::common::kvm::{requested, take, vcpu, vm};
use crate::common::vtd::*;
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{Fabric, MsiVectors, Promotion};
use irqfabric::hv::{Counted, Kvm};
use irqfabric::msg::RequesterId;
use irqfabric::remap::vtd::{Faults, Vtd};
use irqfabric::remap::{Untranslated, XenPirq};
use kvm_ioctls::{VcpuFd, VmFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

struct Machine {
    guest: Driver,
    hypervisor: Arc<Counted<Kvm>>,
    vm: Arc<VmFd>,
}

/// Every vector that is programmed and has an eventfd is hot at once.
fn machine() -> Machine {
    let (vm, ram) = (vm(), Ram::new());
    let hypervisor = Arc::new(Counted::new(Kvm::split(vm.clone())));
    let builder = Fabric::builder(hypervisor.clone()).ioapic(Ioapic::default()).memory(ram.clone());
    let builder = builder.promotion(Promotion::Prefill).vtd(UNIT, Vtd::default(), Faults::default());
    let guest = Driver::new(builder.build().unwrap(), ram);
    guest.enable();
    Machine { guest, hypervisor, vm }
}

impl Machine {
    /// `count` hot vectors, of entries from 0 on: vector 0x40 and on, to APIC id 0.
    fn vectors(&self, count: u16) -> MsiVectors {
        let vectors = self.guest.fabric.msi_vectors(RequesterId(8), count.into());
        for index in 0..count {
            self.guest.set(index, irte(0x40 + index as u8, 0));
            vectors[usize::from(index)].eventfd().unwrap();
            program(&vectors, index.into(), index);
        }
        assert!(vectors.iter().all(|vector| vector.is_hot()));
        vectors
    }
}

fn program(vectors: &MsiVectors, index: usize, entry: u16) {
    let (address, data) = remappable(entry);
    vectors.program(index, address, data).unwrap();
}

fn fire(vectors: &MsiVectors, index: usize) {
    vectors[index].eventfd().unwrap().write(1).unwrap();
}

fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "it never happened");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Waits for a vector, which must be the only one.
fn arrives(vcpu: &VcpuFd, vector: u8) {
    assert_eq!(eventually(|| Some(take(vcpu)).filter(|taken| !taken.is_empty())), [vector]);
}

#[test]
fn a_hot_vector_whose_entry_went_records_one_fault_each_time_it_fires_and_none_before() {
    let machine = machine();
    let vcpu = vcpu(&machine.vm, 0);
    let vectors = machine.vectors(1);
    fire(&vectors, 0);
    arrives(&vcpu, 0x40);
    machine.guest.set(0, 0);
    machine.guest.invalidate(by_index(0, 0));
    assert_eq!((vectors[0].is_hot(), machine.guest.take_faults()), (false, vec![]));
    for fired in 1..=3 {
        fire(&vectors, 0);
        eventually(|| (machine.guest.fabric.stats().blocked == fired).then_some(()));
        assert_eq!((machine.guest.take_faults(), requested(&vcpu)), (vec![(0x22, 0)], vec![]));
    }
    machine.guest.set(0, irte(0x51, 0));
    fire(&vectors, 0);
    arrives(&vcpu, 0x51);
    assert_eq!((machine.guest.take_faults(), machine.guest.fabric.stats().blocked), (vec![], 3));
}

#[test]
fn once_the_wait_is_done_the_kernel_delivers_by_the_new_entry() {
    let machine = machine();
    let vcpu = vcpu(&machine.vm, 0);
    let vectors = machine.vectors(2);
    for round in 0..200u8 {
        machine.guest.set(0, irte(0x50 + round % 100, 0));
        machine.guest.invalidate(by_index(0, 0));
        fire(&vectors, 0);
        arrives(&vcpu, 0x50 + round % 100);
        fire(&vectors, 1);
        arrives(&vcpu, 0x41);
    }
}

#[test]
fn a_range_invalidation_makes_no_call_for_others_and_none_for_what_comes_out_the_same() {
    let machine = machine();
    let vcpu = vcpu(&machine.vm, 0);
    let vectors = machine.vectors(64);
    let before = machine.hypervisor.calls();
    machine.guest.invalidate(GLOBAL);
    machine.guest.invalidate(by_index(32, 5));
    assert_eq!(machine.hypervisor.calls(), before, "nothing has changed");
    (0..64).for_each(|index| machine.guest.set(index, irte(0x80 + index as u8, 0)));
    machine.guest.invalidate(by_index(8, 3));
    let after = machine.hypervisor.calls();
    let (commits, detaches) = (after.commits - before.commits, after.detaches - before.detaches);
    assert!((commits, detaches) == (1, 0) || (commits, detaches) == (0, 8), "{commits} commits, {detaches} detaches");
    for index in 0..64 {
        fire(&vectors, index);
        arrives(&vcpu, if (8..16).contains(&index) { 0x80 } else { 0x40 } + index as u8);
    }
}

#[test]
fn destinations_of_32_bits_reach_their_vcpus_hot_or_not_and_from_pins() {
    let machine = machine();
    let ids = [0, 255, 256, 300];
    let vcpus = ids.map(|id| vcpu(&machine.vm, id));
    let vectors = machine.vectors(4);
    let source = machine.guest.fabric.line(4).unwrap().source("serial");
    for (index, (id, vcpu)) in (0..).zip(ids.iter().zip(&vcpus)) {
        machine.guest.set(index, irte(0x51, *id));
        machine.guest.set(0x100 + index, irte(0x31, *id));
        machine.guest.invalidate(GLOBAL);
        machine.guest.fabric.program(4, remappable_pin(0x100 + index, 4));
        fire(&vectors, index.into());
        arrives(vcpu, 0x51);
        vectors[usize::from(index)].signal();
        source.pulse();
        assert_eq!(take(vcpu), [0x31, 0x51], "APIC id {id}");
    }
    assert!(vcpus.iter().all(|vcpu| requested(vcpu).is_empty()), "and nobody else");
}

#[test]
fn an_event_never_gets_an_irqfd_and_a_hot_vector_that_becomes_one_loses_it() {
    let raised = Arc::new(AtomicU64::new(0));
    let count = raised.clone();
    let xen = XenPirq::new(Untranslated, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let vm = vm();
    let builder = Fabric::builder(Kvm::split(vm.clone())).ioapic(Ioapic::default()).remapper(xen);
    let fabric = builder.promotion(Promotion::Prefill).build().unwrap();
    let vcpu = vcpu(&vm, 0);
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    vectors[0].eventfd().unwrap();
    vectors.program(0, 0xfee0_0000, 0x41).unwrap();
    assert!(vectors[0].is_hot());
    // PIRQ 5.
    vectors.program(0, 0xfee0_5000, 0x4300).unwrap();
    for fired in 1..=5 {
        fire(&vectors, 0);
        eventually(|| (raised.load(Ordering::Relaxed) == fired).then_some(()));
    }
    assert_eq!((vectors[0].is_hot(), fabric.stats().promotions, requested(&vcpu)), (false, 1, vec![]));
}
