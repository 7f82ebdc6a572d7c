//! Level lines on real KVM, with IOAPICs of ours and with the kernel's: a device cannot tell the one from the other.
//!
//! The guest never takes an interrupt: its IF stays 0, and the test does what a processor does when it acknowledges one, on
//! the registers of its local APIC. The EOI register is written by guest code. So an interrupt ends when the guest says
//! so, also on a host whose local APIC would end it when it injects.

use crate::common::kvm::{open, requested, vcpu, vm};
use crate::common::{Guest, LEVEL, MASKED, entry};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::Fabric;
use irqfabric::hv::{HvError, Hypervisor, Kvm, OpaqueTarget};
use irqfabric::line::Level;
use irqfabric::msg::RequesterId;
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, kvm_irqchip, kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const GSI: u32 = 10;
const VECTOR: u8 = 0x41;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Irqchip {
    Split,
    Full,
}

/// A machine of one vCPU, whose pin 10 is level-triggered.
struct Machine {
    irqchip: Irqchip,
    fabric: Fabric,
    vcpu: VcpuFd,
    vm: Arc<VmFd>,
    _memory: GuestMemoryMmap<()>,
}

/// Real mode, at 0x1000: write the EOI register of the x2APIC, tell the host by a port, and again.
const CODE: [u8; 18] = [
    0x66, 0xb9, 0x0b, 0x08, 0, 0, // mov ecx, 0x80b
    0x66, 0x31, 0xc0, // xor eax, eax
    0x66, 0x31, 0xd2, // xor edx, edx
    0x0f, 0x30, // wrmsr
    0xe6, 0x80, // out 0x80, al
    0xeb, 0xee, // jmp to the start
];

impl Machine {
    fn new(irqchip: Irqchip) -> Self {
        let vm = vm();
        let fabric = match irqchip {
            Irqchip::Split => Fabric::builder(Kvm::split(vm.clone())).ioapic(Ioapic::default()).build(),
            Irqchip::Full => Fabric::builder(Kvm::full(vm.clone())).build(),
        };
        let fabric = fabric.unwrap();
        let code = GuestAddress(0x1000);
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(code, 0x1000)]).unwrap();
        memory.write_slice(&CODE, code).unwrap();
        let region = kvm_userspace_memory_region {
            guest_phys_addr: code.0,
            memory_size: 0x1000,
            userspace_addr: memory.get_host_address(code).unwrap() as u64,
            ..Default::default()
        };
        // SAFETY: the memory is the machine's, which keeps it for as long as the virtual machine.
        unsafe { vm.set_user_memory_region(region).unwrap() };
        let vcpu = vcpu(&vm, 0);
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rip, regs.rflags) = (code.0, 2);
        vcpu.set_regs(&regs).unwrap();
        let machine = Self { irqchip, fabric, vcpu, vm, _memory: memory };
        machine.program(entry(VECTOR, 0) | LEVEL);
        machine
    }

    fn program(&self, entry: u64) {
        if self.irqchip == Irqchip::Split {
            return self.fabric.program(GSI as u8, entry);
        }
        let mut chip = chip(&self.vm, KVM_IRQCHIP_IOAPIC);
        // SAFETY: the kernel has filled in the IOAPIC's part of the union.
        unsafe { chip.chip.ioapic.redirtbl[GSI as usize].bits = entry };
        self.vm.set_irqchip(&chip).unwrap();
    }

    /// The processor acknowledges its highest interrupt: from requested to in service.
    fn acknowledge(&self) -> Option<u8> {
        let vector = requested(&self.vcpu).pop()?;
        let mut lapic = self.vcpu.get_lapic().unwrap();
        let (byte, bit) = (usize::from(vector >> 5) * 16 + usize::from(vector >> 3 & 3), 1 << (vector & 7));
        lapic.regs[0x200 + byte] &= !bit;
        lapic.regs[0x100 + byte] |= bit;
        self.vcpu.set_lapic(&lapic).unwrap();
        Some(vector)
    }

    /// The guest writes the EOI register.
    fn end(&mut self) {
        // By its second round everything that came of the first has been reported.
        let mut rounds = 0;
        while rounds < 2 {
            match self.vcpu.run().unwrap() {
                VcpuExit::IoOut(0x80, _) => rounds += 1,
                VcpuExit::IoapicEoi(vector) => self.fabric.end_of_interrupt(vector),
                exit => panic!("{exit:?}"),
            }
        }
    }

    fn serve(&mut self) -> Option<u8> {
        let vector = self.acknowledge()?;
        self.end();
        Some(vector)
    }

    fn wait_for_interrupt(&self) {
        eventually("an interrupt", || !requested(&self.vcpu).is_empty());
    }
}

fn chip(vm: &VmFd, chip_id: u32) -> kvm_irqchip {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    vm.get_irqchip(&mut chip).unwrap();
    chip
}

fn eventually(what: &str, so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(30), "never: {what}");
        thread::yield_now();
    }
}

fn on_both(test: impl Fn(Machine)) {
    for irqchip in [Irqchip::Split, Irqchip::Full] {
        test(Machine::new(irqchip));
    }
}

#[test]
fn a_level_that_stands_comes_back_at_each_end_and_no_other_time() {
    on_both(|mut machine| {
        let source = machine.fabric.line(GSI).unwrap().source("disk");
        source.raise();
        for _ in 0..3 {
            assert_eq!(machine.acknowledge(), Some(VECTOR));
            assert_eq!(requested(&machine.vcpu), [0; 0], "in service");
            machine.end();
        }
        source.lower();
        assert_eq!(machine.serve(), Some(VECTOR), "it was requested before it fell");
        assert_eq!(machine.serve(), None);
    });
}

#[test]
fn two_resampling_sources_and_a_plain_one_share_a_pin() {
    on_both(|mut machine| {
        let line = machine.fabric.line(GSI).unwrap();
        let pair = machine.fabric.line_eventfds(GSI, "vfio").unwrap();
        let told = Arc::new(AtomicU64::new(0));
        let count = told.clone();
        let resampling = line
            .resampling_source("device", move || {
                count.fetch_add(1, SeqCst);
            })
            .unwrap();
        let plain = line.source("plain");

        pair.trigger().write(3).unwrap();
        machine.wait_for_interrupt();
        assert_eq!(machine.acknowledge(), Some(VECTOR));
        resampling.raise();
        plain.raise();
        assert_eq!(requested(&machine.vcpu), [0; 0], "in service");
        assert_eq!((pair.resample().read().is_ok(), told.load(SeqCst)), (false, 0), "not before the end");
        machine.end();
        eventually("the pair is told", || pair.resample().read().is_ok());
        eventually("the source is told", || told.load(SeqCst) == 1);
        assert_eq!(resampling.level(), Level::Low);

        assert_eq!(machine.acknowledge(), Some(VECTOR), "the plain one still waits");
        plain.lower();
        machine.end();
        assert_eq!(machine.serve(), None, "nobody holds the line any more");
        // The kernel tells every pair at each end, which a device must bear.
        if machine.irqchip == Irqchip::Split {
            assert!(pair.resample().read().is_err());
        }
        assert_eq!(told.load(SeqCst), 1);
    });
}

/// Devices with work to do and a guest that serves whatever comes: each piece of work needs one acknowledgement after it was
/// begun, and gets it.
#[test]
fn devices_that_trigger_again_when_they_are_told_all_get_through() {
    const ROUNDS: u64 = 200;
    on_both(|mut machine| {
        let line = machine.fabric.line(GSI).unwrap();
        let pair = machine.fabric.line_eventfds(GSI, "vfio").unwrap();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let told = wake.clone();
        let resampling = line.resampling_source("device", move || told.write(1).unwrap()).unwrap();
        let plain = line.source("plain");
        let (mut by_pair, mut by_source) = (0, 0);
        pair.trigger().write(1).unwrap();
        resampling.raise();
        while by_pair < ROUNDS || by_source < ROUNDS {
            plain.set(if (by_pair + by_source) % 3 == 0 { Level::High } else { Level::Low });
            machine.wait_for_interrupt();
            assert_eq!(machine.acknowledge(), Some(VECTOR));
            plain.lower();
            machine.end();
            if pair.resample().read().is_ok() {
                by_pair += 1;
                pair.trigger().write(1).unwrap();
            }
            if wake.read().is_ok() {
                by_source += 1;
                resampling.raise();
            }
        }
    });
}

#[test]
fn a_resampling_source_that_its_device_lowers_or_drops_is_off_the_line() {
    on_both(|machine| {
        let line = machine.fabric.line(GSI).unwrap();
        let [device, other] = [(); 2].map(|()| line.resampling_source("device", || ()).unwrap());
        // Masked: no interrupt is in service whose end could lower anything.
        machine.program(entry(VECTOR, 0) | LEVEL | MASKED);
        device.raise();
        device.lower();
        other.raise();
        drop(other);
        // What KVM raises for an irqfd it raises a little later.
        thread::sleep(Duration::from_millis(10));
        machine.program(entry(VECTOR, 0) | LEVEL);
        assert!(requested(&machine.vcpu).is_empty(), "{:?}", machine.irqchip);
        device.raise();
        machine.wait_for_interrupt();
    });
}

#[test]
fn a_dropped_pair_is_off_the_line() {
    on_both(|mut machine| {
        let pair = machine.fabric.line_eventfds(GSI, "vfio").unwrap();
        let trigger = pair.trigger().try_clone().unwrap();
        trigger.write(1).unwrap();
        machine.wait_for_interrupt();
        drop(pair);
        assert_eq!(machine.serve(), Some(VECTOR));
        assert_eq!(machine.serve(), None, "it was lowered");
        trigger.write(1).unwrap();
        thread::sleep(Duration::from_millis(10));
        assert_eq!(machine.serve(), None, "{:?}", machine.irqchip);
        // And another takes its place.
        let pair = machine.fabric.line_eventfds(GSI, "vfio").unwrap();
        pair.trigger().write(1).unwrap();
        machine.wait_for_interrupt();
        assert_eq!(machine.serve(), Some(VECTOR));
    });
}

#[test]
fn a_pair_on_the_kernels_own_chips_costs_the_dispatcher_nothing() {
    let mut machine = Machine::new(Irqchip::Full);
    let pair = machine.fabric.line_eventfds(GSI, "vfio").unwrap();
    for _ in 0..100 {
        pair.trigger().write(1).unwrap();
        machine.wait_for_interrupt();
        assert_eq!(machine.serve(), Some(VECTOR));
        assert_eq!(pair.resample().read().unwrap(), 1);
    }
    assert_eq!(machine.fabric.stats().wakeups, 0);
}

#[test]
fn every_table_keeps_the_routes_of_the_kernels_own_chips() {
    let machine = Machine::new(Irqchip::Full);
    let vectors = machine.fabric.msi_vectors(RequesterId(8), 1);
    vectors.program(0, 0xfee0_0000, 0x51).unwrap();
    let mut routes = Vec::new();
    for round in 0..3 {
        // 0xfee0_0000, vector 0x52.
        let target = OpaqueTarget { kind: KVM_IRQ_ROUTING_MSI, flags: 0, data: [0xfee0_0000, 0, 0x52, 0, 0, 0, 0, 0] };
        routes.push(machine.fabric.opaque_route(target).unwrap());
        assert!(routes[round].gsi() >= 24, "the pins' GSIs are taken");
        for gsi in 0..24 {
            let source = machine.fabric.line(gsi).unwrap().source("device");
            source.raise();
            let ioapic = chip(&machine.vm, KVM_IRQCHIP_IOAPIC);
            // SAFETY: the kernel has filled in the IOAPIC's part of the union.
            assert_eq!(unsafe { ioapic.chip.ioapic.irr } >> gsi & 1, 1, "IOAPIC pin {gsi}, table {round}");
            if gsi < 8 && gsi != 2 {
                let pic = chip(&machine.vm, KVM_IRQCHIP_PIC_MASTER);
                // SAFETY: the kernel has filled in the PIC's part of the union.
                assert_eq!(unsafe { pic.chip.pic.last_irr } >> gsi & 1, 1, "PIC input {gsi}, table {round}");
            }
        }
    }
    assert_eq!(machine.fabric.stats().commits, 3);
    vectors[0].signal();
    assert!(requested(&machine.vcpu).contains(&0x51));
}

#[test]
fn the_split_irqchip_takes_no_line_of_its_own() {
    let kvm = Kvm::split(vm());
    kvm.start(24).unwrap();
    let [trigger, resample] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
    assert!(matches!(kvm.attach_line(4, &trigger, &resample), Err(HvError::Missing { .. })));
    // It is the kernel that does not, whatever the capability says.
    assert!(open().check_extension(kvm_ioctls::Cap::IrqfdResample));
    let raw = vm();
    Kvm::split(raw.clone()).start(24).unwrap();
    assert!(raw.register_irqfd_with_resample(&trigger, &resample, 4).is_err());
}

#[test]
fn a_pair_that_the_kernel_does_not_take_is_an_error_with_its_answer() {
    let kvm = Kvm::full(vm());
    kvm.start(0).unwrap();
    let [trigger, resample] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
    kvm.attach_line(4, &trigger, &resample).unwrap();
    let error = kvm.attach_line(4, &trigger, &resample).unwrap_err();
    assert!(error.to_string().starts_with("KVM_IRQFD (resample): "), "{error}");
}
