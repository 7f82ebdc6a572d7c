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
        None,
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
            None,
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

mod pic {
    //! A guest whose interrupts come from the PIC, by KVM_INTERRUPT.

    use super::*;
    use irqfabric::hv::External;
    use irqfabric::line::LineSource;
    use std::time::{Duration, Instant};

    const BASE: u8 = 0x40;
    const INPUT: u8 = 4;
    /// Where the handler of the input's vector is; its segment is 0.
    const HANDLER: u16 = 0x1800;
    /// KVM_SET_LAPIC takes LVT0 from here.
    const LVT0: usize = 0x350;
    const LVT_MASKED: i8 = 1;

    /// Ports that the guest tells us by: it is through with what comes before, or in the handler.
    const READY: u8 = 0x81;
    const HANDLED: u8 = 0x80;

    /// Says it is ready, with a line raised on it; stops the machine from its handler.
    struct Device {
        source: Mutex<Option<LineSource>>,
        seen: Mutex<Vec<u8>>,
        stop: StopSwitch,
    }

    impl DevicePio for Device {
        fn pio_read(&self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {}

        fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, _: &[u8]) {
            let port = (base.0 + offset) as u8;
            self.seen.lock().unwrap().push(port);
            match port {
                READY => self.source.lock().unwrap().iter().for_each(LineSource::raise),
                _ => self.stop.throw(Stop::PowerOff),
            }
        }
    }

    /// A guest of `code`, with the PIC initialized: vectors from [`BASE`], only [`INPUT`] unmasked.
    fn guest(code: &[u8], raises: bool) -> (Machine, Arc<Device>) {
        let host = Host::open().unwrap();
        let irqchip = Irqchip::SplitWithPic(vec![Ioapic::default()]);
        let config = Config { memory: 1 << 20, apic_ids: vec![0], irqchip, promotion: Promotion::default(), vtd: None };
        let mut machine = Machine::new(&host, &config, None).unwrap();
        for (port, value) in [(0x20, 0x11), (0x21, BASE), (0x21, 4), (0x21, 1), (0x21, !(1 << INPUT))] {
            assert!(machine.fabric().pio_write(port, &[value]));
        }
        let source = machine.fabric().line(INPUT.into()).unwrap().source("device");
        let stop = machine.stop_switch().clone();
        let device = Arc::new(Device { source: Mutex::new(raises.then_some(source)), seen: Mutex::default(), stop });
        machine.register_pio(HANDLED.into(), 2, device.clone()).unwrap();
        load(&machine, code);
        machine.memory().write_slice(&[0xe6, HANDLED, 0xfb, 0xf4], GuestAddress(HANDLER.into())).unwrap();
        let entry = u64::from(BASE + INPUT) * 4;
        machine.memory().write_slice(&u32::from(HANDLER).to_le_bytes(), GuestAddress(entry)).unwrap();
        let mut sregs = machine.vcpus()[0].get_sregs().unwrap();
        (sregs.idt.base, sregs.idt.limit) = (0, 0x3ff);
        machine.vcpus()[0].set_sregs(&sregs).unwrap();
        let mut regs = machine.vcpus()[0].get_regs().unwrap();
        regs.rsp = 0x8000;
        machine.vcpus()[0].set_regs(&regs).unwrap();
        (machine, device)
    }

    fn requested(fabric: &Fabric) -> u8 {
        let mut data = [0];
        assert!(fabric.pio_write(0x20, &[0x0a]) && fabric.pio_read(0x20, &mut data));
        data[0]
    }

    #[test]
    fn its_vector_arrives_through_an_lvt0_in_extint_mode() {
        // sti; out READY, al; jmp $
        let (machine, device) = guest(&[0xfb, 0xe6, READY, 0xeb, 0xfe], true);
        let stopped = machine.start().unwrap().wait();
        assert!(matches!(stopped.stop, Stop::PowerOff), "{stopped:?}");
        assert_eq!(*device.seen.lock().unwrap(), [READY, HANDLED]);
    }

    #[test]
    fn a_guest_with_interrupts_off_is_left_alone_until_the_window_opens() {
        // cli; out READY, al; out READY, al; sti; jmp $
        let (machine, device) = guest(&[0xfa, 0xe6, READY, 0xe6, READY, 0xfb, 0xeb, 0xfe], true);
        let stopped = machine.start().unwrap().wait();
        assert!(matches!(stopped.stop, Stop::PowerOff), "{stopped:?}");
        assert_eq!(*device.seen.lock().unwrap(), [READY, READY, HANDLED]);
        assert_eq!(stopped.exits[0].of(ExitKind::IrqWindow).count, 1);
    }

    #[test]
    fn behind_a_masked_lvt0_the_pic_is_not_acknowledged() {
        // sti; out READY, al; jmp $
        let (machine, device) = guest(&[0xfb, 0xe6, READY, 0xeb, 0xfe], true);
        let mut lapic = machine.vcpus()[0].get_lapic().unwrap();
        lapic.regs[LVT0 + 2] |= LVT_MASKED;
        machine.vcpus()[0].set_lapic(&lapic).unwrap();
        let (fabric, switch) = (machine.fabric().clone(), machine.stop_switch().clone());
        let running = machine.start().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(requested(&fabric), 1 << INPUT, "nobody has asked for the vector");
        switch.throw(Stop::Finished);
        running.wait();
        assert_eq!(*device.seen.lock().unwrap(), [READY]);
        assert_eq!(requested(&fabric), 1 << INPUT);
    }

    #[test]
    fn a_guest_that_writes_0_to_its_apic_base_goes_on_and_takes_the_vector() {
        // mov ecx, IA32_APIC_BASE; xor eax, eax; xor edx, edx; wrmsr; sti; out READY, al; jmp $
        let write = [0x66, 0xb9, 0x1b, 0, 0, 0, 0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x30];
        let (machine, device) = guest(&[&write[..], &[0xfb, 0xe6, READY, 0xeb, 0xfe]].concat(), true);
        let switch = machine.stop_switch().clone();
        let running = machine.start().unwrap();
        let start = Instant::now();
        while !switch.is_thrown() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        switch.throw(Stop::Finished);
        let stopped = running.wait();
        assert_eq!(*device.seen.lock().unwrap(), [READY, HANDLED], "{stopped:?}");
    }

    #[test]
    fn a_guest_in_hlt_is_woken() {
        // sti; hlt; jmp to the hlt
        let (machine, device) = guest(&[0xfb, 0xf4, 0xeb, 0xfd], false);
        let source = machine.fabric().line(INPUT.into()).unwrap().source("late");
        let running = machine.start().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        source.raise();
        let stopped = running.wait();
        assert!(matches!(stopped.stop, Stop::PowerOff), "{stopped:?}");
        assert_eq!(*device.seen.lock().unwrap(), [HANDLED]);
    }

    #[test]
    fn a_guest_that_was_saved_in_hlt_is_woken_by_what_waited() {
        // hlt; jmp to the hlt
        let (machine, device) = guest(&[0xf4, 0xeb, 0xfd], false);
        let mut regs = machine.vcpus()[0].get_regs().unwrap();
        regs.rflags |= 1 << 9;
        machine.vcpus()[0].set_regs(&regs).unwrap();
        let halted = kvm_bindings::kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_HALTED };
        machine.vcpus()[0].set_mp_state(halted).unwrap();
        let source = machine.fabric().line(INPUT.into()).unwrap().source("early");
        source.raise();
        let stopped = machine.start().unwrap().wait();
        assert!(matches!(stopped.stop, Stop::PowerOff), "{stopped:?}");
        assert_eq!(*device.seen.lock().unwrap(), [HANDLED]);
    }

    #[test]
    fn a_pin_in_extint_mode_takes_its_vector_from_the_pic() {
        // sti; jmp $
        let (machine, device) = guest(&[0xfb, 0xeb, 0xfe], false);
        let (fabric, source) = (machine.fabric().clone(), machine.fabric().line(INPUT.into()).unwrap().source("pin"));
        // Its INTR is not what interrupts: the message is, to logical destination 1, flat.
        let mut lapic = machine.vcpus()[0].get_lapic().unwrap();
        lapic.regs[0xd3] = 1;
        machine.vcpus()[0].set_lapic(&lapic).unwrap();
        for (index, value) in [(0x19u32, 1u32 << 24), (0x18, 7 << 8 | 1 << 11)] {
            fabric.mmio_write(0xfec0_0000, &index.to_le_bytes());
            fabric.mmio_write(0xfec0_0010, &value.to_le_bytes());
        }
        source.raise();
        let pending = fabric.pic().unwrap().pending;
        assert!(matches!(pending[..], [waits] if matches!(waits.external, External::Message { destination: 1, .. })));
        let stopped = machine.start().unwrap().wait();
        assert!(matches!(stopped.stop, Stop::PowerOff), "{stopped:?}");
        assert_eq!(*device.seen.lock().unwrap(), [HANDLED]);
        assert!(fabric.pic().unwrap().pending.is_empty(), "the message was taken, whichever way the vector went");
    }
}
