//! What the tests of the whole share: a backend that remembers, and a guest's hand on the IOAPIC.

#![allow(dead_code)] // Each test crate uses its part.

pub mod vtd;

use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS};
use irqfabric::hv::{Capacity, Counted, HvError, Hypervisor, Route};
use irqfabric::line::LineSource;
use irqfabric::msg::{Acceptance, Interrupt};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

pub const MASKED: u64 = 1 << 16;
pub const LEVEL: u64 = 1 << 15;
pub const REMOTE_IRR: u64 = 1 << 14;

/// The entry of a pin for vector and APIC id, edge and not masked.
pub const fn entry(vector: u8, destination: u8) -> u64 {
    (destination as u64) << 56 | vector as u64
}

/// A guest's accesses to the first IOAPIC.
pub trait Guest {
    fn select(&self, index: u8);
    fn write_register(&self, index: u8, value: u32);
    fn read_register(&self, index: u8) -> u32;
    fn program(&self, pin: u8, entry: u64);
    fn entry(&self, pin: u8) -> u64;
}

impl Guest for Fabric {
    fn select(&self, index: u8) {
        assert!(self.mmio_write(IOAPIC_ADDRESS, &u32::from(index).to_le_bytes()));
    }

    fn write_register(&self, index: u8, value: u32) {
        self.select(index);
        assert!(self.mmio_write(IOAPIC_ADDRESS + 0x10, &value.to_le_bytes()));
    }

    fn read_register(&self, index: u8) -> u32 {
        self.select(index);
        let mut data = [0; 4];
        assert!(self.mmio_read(IOAPIC_ADDRESS + 0x10, &mut data));
        u32::from_le_bytes(data)
    }

    /// As Linux does: the high half first, so that a pin is whole when it is unmasked.
    fn program(&self, pin: u8, entry: u64) {
        self.write_register(0x11 + 2 * pin, (entry >> 32) as u32);
        self.write_register(0x10 + 2 * pin, entry as u32);
    }

    fn entry(&self, pin: u8) -> u64 {
        u64::from(self.read_register(0x11 + 2 * pin)) << 32 | u64::from(self.read_register(0x10 + 2 * pin))
    }
}

/// A call to the backend.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    Deliver(Interrupt),
    Commit(Vec<Route>),
}

/// A backend that remembers its calls in their order, refuses when told to, and can hold a commit at a barrier.
#[derive(Default)]
pub struct Recorder {
    state: Mutex<Recorded>,
    changed: Condvar,
    irqfds: bool,
}

#[derive(Default)]
struct Recorded {
    calls: Vec<Call>,
    table: Vec<Route>,
    refuses: bool,
    fails_commits: bool,
    holds_commits: bool,
    held: usize,
}

impl Recorder {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// It attaches eventfds as well, and takes none of their events.
    pub fn with_irqfds() -> Arc<Self> {
        Arc::new(Self { irqfds: true, ..Self::default() })
    }

    /// The calls since the last time.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }

    /// The vectors delivered since the last time.
    pub fn take_vectors(&self) -> Vec<u8> {
        let calls = self.take().into_iter();
        calls
            .filter_map(|call| if let Call::Deliver(interrupt) = call { Some(interrupt.vector) } else { None })
            .collect()
    }

    /// Which of these vectors was delivered last.
    pub fn last(&self, vectors: &[u8]) -> Option<u8> {
        let state = self.state.lock().unwrap();
        state.calls.iter().rev().find_map(|call| match call {
            Call::Deliver(interrupt) if vectors.contains(&interrupt.vector) => Some(interrupt.vector),
            Call::Deliver(_) | Call::Commit(_) => None,
        })
    }

    /// The table in force.
    pub fn table(&self) -> Vec<Route> {
        self.state.lock().unwrap().table.clone()
    }

    pub fn refuse(&self, refuses: bool) {
        self.state.lock().unwrap().refuses = refuses;
    }

    pub fn fail_commits(&self, fails: bool) {
        self.state.lock().unwrap().fails_commits = fails;
    }

    /// From now on commits wait, until they are let go.
    pub fn hold_commits(&self, holds: bool) {
        self.state.lock().unwrap().holds_commits = holds;
        self.changed.notify_all();
    }

    /// Waits until `count` commits are held.
    pub fn wait_held(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let waited = self.changed.wait_timeout_while(state, Duration::from_secs(30), |state| state.held < count);
        assert!(!waited.unwrap().1.timed_out(), "no commit came to be held");
    }
}

impl Hypervisor for Recorder {
    fn start(&self, _pins: u32) -> Result<Capacity, HvError> {
        Ok(Capacity { gsis: if self.irqfds { 4096 } else { 0 }, ..Capacity::default() })
    }

    fn attach(&self, _gsi: u32, _eventfd: &EventFd) -> Result<(), HvError> {
        let missing = HvError::Missing { capability: "irqfd", remedy: "this backend has none" };
        if self.irqfds { Ok(()) } else { Err(missing) }
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        let mut state = self.state.lock().unwrap();
        state.calls.push(Call::Deliver(*interrupt));
        Ok(if state.refuses { Acceptance::Refused } else { Acceptance::Accepted })
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        let mut state = self.state.lock().unwrap();
        state.held += 1;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.holds_commits).unwrap();
        state.held -= 1;
        if state.fails_commits {
            let source = std::io::ErrorKind::OutOfMemory.into();
            return Err(HvError::Call { call: "KVM_SET_GSI_ROUTING", source });
        }
        state.calls.push(Call::Commit(routes.to_vec()));
        state.table = routes.to_vec();
        Ok(())
    }
}

/// What a machine of 24 pins and two enabled local APICs, ids 0 and 1, may spend on table commits: asserted on every
/// backend alike.
pub fn assert_table_commits<H: Hypervisor + 'static>(counted: Arc<Counted<H>>, prepare: impl FnOnce()) {
    let fabric = Fabric::builder(counted.clone()).ioapic(Ioapic::default()).build().unwrap();
    prepare();
    let commits = || counted.calls().commits;
    let serve = |source: &LineSource, vector: u8| {
        source.raise();
        source.lower();
        fabric.end_of_interrupt(vector);
    };
    let sources: Vec<_> = (0..24).map(|gsi| fabric.line(gsi).unwrap().source("device")).collect();
    let entry_of = |pin: u8, destination| entry(0x40 + pin, destination) | if pin < 12 { 0 } else { LEVEL };

    for pin in 0..24 {
        fabric.program(pin, MASKED);
    }
    for pin in 0..24 {
        fabric.program(pin, entry_of(pin, 0) | MASKED);
        fabric.program(pin, entry_of(pin, 0));
    }
    assert_eq!(commits(), 0, "programming and unmasking 24 pins, none of which fires");

    for (pin, source) in (0..12).zip(&sources) {
        serve(source, 0x40 + pin);
        fabric.program(pin, entry_of(pin, 1));
        serve(source, 0x40 + pin);
    }
    assert_eq!(commits(), 0, "edge pins, always");

    serve(&sources[20], 0x54);
    assert_eq!(commits(), 1, "a level pin by its first delivery");
    for _ in 0..10 {
        fabric.program(20, entry_of(20, 0) | MASKED);
        fabric.program(20, entry_of(20, 0));
        serve(&sources[20], 0x54);
    }
    assert_eq!(commits(), 1, "masking, unmasking and firing it again");
    for step in 0..100 {
        fabric.program(20, entry_of(20, step & 1) | MASKED);
        fabric.program(20, entry_of(20, step & 1));
    }
    assert_eq!(commits(), 1, "100 moves to another CPU without an interrupt");
    for step in 0..100 {
        fabric.program(20, entry_of(20, step & 1));
        serve(&sources[20], 0x54);
    }
    let moved = commits() - 1;
    assert!(moved <= 100, "100 moves with an interrupt after each took {moved}");
    let calls = counted.calls();
    assert_eq!((calls.deliveries, calls.refused), (24 + 1 + 10 + 100, 0), "and every one of them was delivered");
}

/// What the tests on real KVM share.
#[cfg(feature = "kvm")]
pub mod kvm {
    use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
    use kvm_ioctls::{VcpuFd, VmFd};
    use std::sync::Arc;

    pub fn open() -> kvm_ioctls::Kvm {
        kvm_ioctls::Kvm::new().expect("these tests need /dev/kvm, readable and writable")
    }

    pub fn vm() -> Arc<VmFd> {
        Arc::new(open().create_vm().unwrap())
    }

    /// A vCPU that never runs, with its local APIC switched on, in x2APIC mode.
    pub fn vcpu(vm: &VmFd, id: u32) -> VcpuFd {
        let vcpu = vm.create_vcpu(id.into()).unwrap();
        let mut cpuid = open().get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        for leaf in cpuid.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1) {
            leaf.ecx |= 1 << 21;
        }
        vcpu.set_cpuid2(&cpuid).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        sregs.apic_base |= 0xc00;
        vcpu.set_sregs(&sregs).unwrap();
        let mut lapic = vcpu.get_lapic().unwrap();
        lapic.regs[0xf1] = 1; // Bit 8 of the spurious-interrupt vector register: software enable.
        vcpu.set_lapic(&lapic).unwrap();
        vcpu
    }

    const IRR: usize = 0x200;

    /// The vectors that are requested.
    pub fn requested(vcpu: &VcpuFd) -> Vec<u8> {
        let registers = vcpu.get_lapic().unwrap().regs;
        let set = |vector: &u8| registers[byte(*vector)] as u8 >> (vector & 7) & 1 != 0;
        (0..=255).filter(set).collect()
    }

    /// The vectors that are requested, which are no longer so afterwards.
    pub fn take(vcpu: &VcpuFd) -> Vec<u8> {
        let requested = requested(vcpu);
        if requested.is_empty() {
            // Writing the registers back could undo a request that comes at this moment.
            return requested;
        }
        let mut lapic = vcpu.get_lapic().unwrap();
        requested.iter().for_each(|&vector| lapic.regs[byte(vector)] = 0);
        vcpu.set_lapic(&lapic).unwrap();
        requested
    }

    fn byte(vector: u8) -> usize {
        IRR + usize::from(vector >> 5) * 16 + usize::from(vector >> 3 & 3)
    }
}
