//! Whole machines on the host's KVM. Needs /dev/kvm: `cargo test -- --skip on_kvm::` leaves these out.

use super::*;
use kvm_bindings::kvm_regs;
use std::sync::Mutex;
use vm_device::bus::PioAddressOffset;
use vm_memory::Bytes;

fn machine(apic_ids: &[u32]) -> Machine {
    let host = Host::open().unwrap();
    let irqchip = Irqchip::Split(vec![Ioapic::default()]);
    Machine::new(
        &host,
        &Config { memory: 1 << 20, apic_ids: apic_ids.to_vec(), irqchip, promotion: Promotion::default(), vtd: None },
    )
    .unwrap()
}

/// Puts real-mode code at 0x1000 and the boot processor there.
fn load(machine: &Machine, code: &[u8]) {
    machine.memory().write_slice(code, GuestAddress(0x1000)).unwrap();
    let vcpu = &machine.vcpus()[0];
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&kvm_regs { rip: 0x1000, rflags: 2, rax: 0x5a, ..Default::default() }).unwrap();
}

/// Keeps what is written to it and switches the machine off.
struct Last(Mutex<Vec<u8>>, StopSwitch);

impl DevicePio for Last {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {}

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(data);
        self.1.throw(Stop::PowerOff);
    }
}

#[test]
fn a_guest_reaches_its_devices_and_every_vcpu_comes_home() {
    let mut machine = machine(&[0, 1, 2]);
    let device = Arc::new(Last(Mutex::default(), machine.stop_switch().clone()));
    machine.register_pio(0x80, 1, device.clone()).unwrap();
    load(&machine, &[0xe6, 0x80, 0xf4]); // out 0x80, al; hlt
    let stopped = machine.start().unwrap().wait();
    assert!(matches!(stopped.stop, Stop::PowerOff), "{stopped:?}");
    assert_eq!(*device.0.lock().unwrap(), [0x5a]);
    assert_eq!(stopped.exits[0].of(ExitKind::PioWrite).count, 1);
}

#[test]
fn what_is_not_there_reads_all_ones() {
    let mut machine = machine(&[0]);
    let device = Arc::new(Last(Mutex::default(), machine.stop_switch().clone()));
    machine.register_pio(0x80, 1, device.clone()).unwrap();
    load(&machine, &[0xe4, 0x99, 0xe6, 0x80, 0xf4]); // in al, 0x99; out 0x80, al; hlt
    machine.start().unwrap().wait();
    assert_eq!(*device.0.lock().unwrap(), [0xff]);
}

#[test]
fn a_guest_that_never_leaves_is_fetched() {
    let machine = machine(&[0, 1]);
    load(&machine, &[0xeb, 0xfe]); // jmp $
    let switch = machine.stop_switch().clone();
    let running = machine.start().unwrap();
    switch.throw(Stop::Finished);
    assert!(matches!(running.wait().stop, Stop::Finished));
}

#[test]
fn a_triple_fault_shows_registers_and_the_last_exits() {
    let machine = machine(&[0]);
    // Protected mode, and no interrupt descriptor to be found: the first exception is the last.
    let code = [0xe6, 0x80, 0x0f, 0x0b]; // out 0x80, al; ud2
    machine.memory().write_slice(&code, GuestAddress(0x1000)).unwrap();
    let regs = kvm_regs { rip: 0x1000, rax: 0x5a, ..Default::default() };
    cpu::start_protected_mode(&machine.vcpus()[0], 0x500, regs).unwrap();
    let Stop::Crash(crash) = machine.start().unwrap().wait().stop else { panic!("it did not crash") };
    assert!(crash.was_reset() || crash.regs.unwrap().rax == 0x5a, "{crash:?}");
    assert_eq!(crash.last[0].to_string(), "port write 0x80: 0x5a");
}

#[test]
fn apic_ids_that_no_machine_can_have_are_refused_in_a_sentence() {
    let host = Host::open().unwrap();
    let refusal = |apic_ids: &[u32], irqchip| {
        Machine::new(
            &host,
            &Config {
                memory: 1 << 20,
                apic_ids: apic_ids.to_vec(),
                irqchip,
                promotion: Promotion::default(),
                vtd: None,
            },
        )
        .err()
        .unwrap()
        .to_string()
    };
    let split = || Irqchip::Split(vec![Ioapic::default()]);
    assert!(refusal(&[1], split()).contains("must be 0"));
    assert!(refusal(&[0, 3, 3], split()).contains("3 is there twice"));
    assert!(refusal(&[0, 1 << 20], split()).contains("too large"));
    assert!(refusal(&[0, 300], Irqchip::Kernel).contains("use --irqchip split"));
}
