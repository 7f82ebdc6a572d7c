//! The fabric on real KVM; no guest code runs, the local APICs are looked at from outside.

use crate::common::kvm::{open, requested, vcpu, vm};
use crate::common::{Guest, LEVEL, assert_table_commits, entry};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{BuildError, Fabric};
use irqfabric::hv::{Counted, HvError, Hypervisor, Kvm, Route};
use irqfabric::msg::{Acceptance, DestinationFormat, DestinationMode, Interrupt, RequesterId, Trigger};
use irqfabric::remap::ExtDest;
use std::sync::Arc;

#[test]
fn table_commits_stay_within_their_bounds_on_kvm() {
    let vm = vm();
    let counted = Arc::new(Counted::new(Kvm::split(vm.clone())));
    let mut vcpus = Vec::new();
    assert_table_commits(counted, || vcpus.extend((0..2).map(|id| vcpu(&vm, id))));
}

#[test]
fn lines_and_messages_arrive_at_the_vcpu_they_name() {
    let vm = vm();
    let fabric = Fabric::builder(Kvm::split(vm.clone())).ioapic(Ioapic::default()).build().unwrap();
    let vcpus = [vcpu(&vm, 0), vcpu(&vm, 1)];
    fabric.program(4, entry(0x31, 0));
    fabric.program(10, entry(0x41, 1) | LEVEL);
    let vectors = fabric.msi_vectors(RequesterId(8), 1);
    vectors.program(0, 0xfee0_1000, 0x51).unwrap();
    let level = fabric.line(10).unwrap().source("disk");
    fabric.line(4).unwrap().source("serial").pulse();
    level.raise();
    vectors[0].signal();
    assert_eq!(vcpus.each_ref().map(requested), [vec![0x31], vec![0x41, 0x51]]);
}

#[test]
fn an_interrupt_for_nobody_is_refused_and_no_error() {
    let vm = vm();
    let fabric = Fabric::builder(Kvm::split(vm.clone())).ioapic(Ioapic::default()).build().unwrap();
    let source = fabric.line(10).unwrap().source("disk");
    fabric.program(10, entry(0x41, 7) | LEVEL);
    source.raise();
    let vcpu = vcpu(&vm, 0);
    fabric.program(10, entry(0x41, 7) | LEVEL);
    let stats = fabric.stats();
    // Once for the rise, once for each half that was written.
    assert_eq!((stats.lines[0].pin.refused, stats.host_errors), (3, 0));
    fabric.program(10, entry(0x41, 0) | LEVEL);
    assert_eq!(requested(&vcpu), [0x41], "the level was never lost");
}

#[test]
fn destinations_from_256_to_32767_reach_their_vcpus() {
    let vm = vm();
    let builder = Fabric::builder(Kvm::split(vm.clone())).ioapic(Ioapic::default());
    let fabric = builder.remapper(ExtDest).build().unwrap();
    // KVM takes ids below KVM_CAP_MAX_VCPU_ID, which is smaller than what the format can say.
    let most = open().get_max_vcpu_id() as u32 - 1;
    let vcpus = [0, 255, 256, 300, most.min(32_767)].map(|id| (id, vcpu(&vm, id)));
    let vectors = fabric.msi_vectors(RequesterId(8), vcpus.len());
    let source = fabric.line(4).unwrap().source("serial");
    for (index, (id, vcpu)) in vcpus.iter().enumerate() {
        let interrupt = Interrupt { destination: *id, vector: 0x51, ..Interrupt::default() };
        let message = interrupt.message(DestinationFormat::Fifteen, RequesterId(8)).unwrap();
        vectors.program(index, message.address, message.data).unwrap();
        vectors[index].signal();
        fabric.program(4, u64::from(id & 0xff) << 56 | u64::from(id >> 8) << 49 | 0x31);
        source.pulse();
        assert_eq!(requested(vcpu), [0x31, 0x51], "APIC id {id}");
    }
    // 255 is an id like any other, not everybody.
    assert!(vcpus.iter().all(|(_, vcpu)| requested(vcpu).len() == 2));
}

#[test]
fn every_kind_of_interrupt_makes_a_route_that_kvm_takes() {
    let hypervisor = Kvm::split(vm());
    hypervisor.start(24).unwrap();
    let mut interrupt = Interrupt { destination: 0xffff_ff00, vector: 255, ..Interrupt::default() };
    for destination_mode in [DestinationMode::Physical, DestinationMode::Logical] {
        for trigger in [Trigger::Edge, Trigger::Level] {
            interrupt = Interrupt { destination_mode, trigger, ..interrupt };
            let routes: Vec<_> = (0..24).map(|gsi| Route { gsi, target: interrupt.into() }).collect();
            hypervisor.commit(&routes).unwrap();
        }
    }
    hypervisor.commit(&[]).unwrap();
    assert_eq!(hypervisor.deliver(&interrupt).unwrap(), Acceptance::Refused);
}

#[test]
fn more_pins_than_kvm_reserves_are_an_error_that_names_the_limit() {
    let builder = Fabric::builder(Kvm::split(vm()));
    let chips = (0..35).fold(builder, |builder, _| builder.ioapic(Ioapic::new(120).unwrap()));
    let error = chips.build().unwrap_err();
    assert!(matches!(error, BuildError::Hypervisor(HvError::TooManyPins { pins: 4200, most: 4096 })), "{error}");
}

#[test]
fn lines_end_in_the_kernels_own_chips_with_the_full_irqchip() {
    let vm = vm();
    let fabric = Fabric::builder(Kvm::full(vm.clone())).build().unwrap();
    let source = fabric.line(4).unwrap().source("serial");
    assert!(fabric.line(24).is_err());
    let line_is_high = || {
        let mut chip =
            kvm_bindings::kvm_irqchip { chip_id: kvm_bindings::KVM_IRQCHIP_PIC_MASTER, ..Default::default() };
        vm.get_irqchip(&mut chip).unwrap();
        // kvm_pic_state: last_irr is its first byte, the levels of its inputs.
        let bytes: [u8; 512] = state_bytes(&chip);
        bytes[0] >> 4 & 1 != 0
    };
    assert!(!line_is_high());
    source.raise();
    assert!(line_is_high());
    source.lower();
    assert!(!line_is_high());
}

/// The chip's state as the kernel wrote it.
fn state_bytes(chip: &kvm_bindings::kvm_irqchip) -> [u8; 512] {
    // SAFETY: every member of the union is plain bytes, and `dummy` covers all of it.
    let dummy = unsafe { chip.chip.dummy };
    dummy.map(|byte| byte as u8)
}
