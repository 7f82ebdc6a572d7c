//! Our IOAPIC, in a fabric on the split irqchip, against the one that KVM_CREATE_IRQCHIP makes.
//!
//! The in-kernel IOAPIC is `arch/x86/kvm/ioapic.c`. The guest's local APIC is the kernel's on both machines: what it has
//! requested and in service is compared too.

use super::guest::{Access, Guest, LocalApic, Width};
use super::{LENGTH, Operation, Side, compare_all};
use irqfabric::chip::ioapic::{Ioapic, Version};
use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS};
use irqfabric::hv::Kvm;
use irqfabric::line::Level::{self, High, Low};
use irqfabric::line::LineSource;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irqchip,
};
use kvm_ioctls::VcpuExit;

const PINS: u8 = 24;
const SELECT: u16 = 0x00;
const WINDOW: u16 = 0x10;
const EOI: u16 = 0x40;

const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;
const LOGICAL: u32 = 1 << 11;
const FIXED: u32 = 0;
const LOWEST_PRIORITY: u32 = 1 << 8;
const REMOTE_IRR: u32 = 1 << 14;

/// The vCPU's APIC id, and its logical destination too: it is meant in either mode.
const US: u8 = 1;
const EVERYBODY: u8 = 0xff;
const NOBODY: u8 = 6;

/// What a guest can tell of an IOAPIC and its local APIC.
#[derive(Debug, PartialEq)]
struct State {
    entries: Vec<u64>,
    id: u32,
    select: u32,
    local_apic: LocalApic,
}

struct InKernel {
    guest: Guest,
    high: u32,
}

struct Ours {
    guest: Guest,
    fabric: Fabric,
    sources: Vec<LineSource>,
}

impl InKernel {
    /// The kernel's own chips, with lines that end at the IOAPIC only.
    fn new() -> Self {
        let guest = Guest::new(IOAPIC_ADDRESS, US, |vm| {
            vm.create_irq_chip().unwrap();
            let mut routes = KvmIrqRouting::new(PINS.into()).unwrap();
            for (pin, entry) in (0..).zip(routes.as_mut_slice()) {
                *entry = kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
                entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin };
            }
            vm.set_gsi_routing(&routes).unwrap();
        });
        Self { guest, high: 0 }
    }
}

impl Side for InKernel {
    type State = State;

    fn perform(&mut self, accesses: &[Access]) -> Vec<u32> {
        self.guest.perform(accesses, |exit| panic!("the kernel left an access to us: {exit:?}"))
    }

    fn set(&mut self, line: u8, level: Level) {
        self.guest.vm.set_irq_line(line.into(), level == Level::High).unwrap();
        self.high = self.high & !(1 << line) | u32::from(level == Level::High) << line;
    }

    fn acknowledge(&mut self) -> Option<u8> {
        self.guest.acknowledge()
    }

    fn state(&mut self) -> State {
        let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
        self.guest.vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: the kernel has filled in the member that the chip's id names, and all of it is plain numbers.
        let (ioapic, entries) = unsafe {
            let ioapic = chip.chip.ioapic;
            (ioapic, ioapic.redirtbl.map(|entry| entry.bits))
        };
        // It leaves out edges that were delivered, and nothing else can be told from it.
        assert_eq!(ioapic.irr & !self.high, 0, "the kernel takes a line that is low for high");
        State { entries: entries.to_vec(), id: ioapic.id, select: ioapic.ioregsel, local_apic: self.guest.local_apic() }
    }
}

impl Ours {
    fn new(version: Version) -> Self {
        let mut fabric = None;
        let guest = Guest::new(IOAPIC_ADDRESS, US, |vm| {
            let builder = Fabric::builder(Kvm::split(vm.clone())).ioapic(Ioapic::default().with_version(version));
            fabric = Some(builder.build().unwrap());
        });
        let fabric = fabric.unwrap();
        let sources = (0..PINS).map(|pin| fabric.line(pin.into()).unwrap().source("device")).collect();
        Self { guest, fabric, sources }
    }
}

impl Side for Ours {
    type State = State;

    fn perform(&mut self, accesses: &[Access]) -> Vec<u32> {
        let Self { guest, fabric, .. } = self;
        guest.perform(accesses, |exit| match exit {
            VcpuExit::MmioRead(address, data) => assert!(fabric.mmio_read(address, data)),
            VcpuExit::MmioWrite(address, data) => assert!(fabric.mmio_write(address, data)),
            VcpuExit::IoapicEoi(vector) => fabric.end_of_interrupt(vector),
            exit => panic!("{exit:?}"),
        })
    }

    fn set(&mut self, line: u8, level: Level) {
        self.sources[usize::from(line)].set(level);
    }

    fn acknowledge(&mut self) -> Option<u8> {
        self.guest.acknowledge()
    }

    fn state(&mut self) -> State {
        let (_, _, chip) = self.fabric.ioapics().next().unwrap();
        State {
            entries: chip.pins.iter().map(|pin| pin.entry).collect(),
            id: chip.id.into(),
            select: chip.select.into(),
            local_apic: self.guest.local_apic(),
        }
    }
}

// Programs.

const fn low_half(pin: u8) -> u8 {
    0x10 + 2 * pin
}

const fn high_half(pin: u8) -> u8 {
    low_half(pin) + 1
}

fn write(index: u8, value: u32) -> [Access; 2] {
    [Access::Write(SELECT, Width::Four, index.into()), Access::Write(WINDOW, Width::Four, value)]
}

fn read(index: u8) -> [Access; 2] {
    [Access::Write(SELECT, Width::Four, index.into()), Access::Read(WINDOW, Width::Four)]
}

fn entry(pin: u8, low: u32, destination: u8) -> Vec<Access> {
    [write(high_half(pin), u32::from(destination) << 24), write(low_half(pin), low)].concat()
}

/// Pins from here on are only ever edge.
const FIRST_EDGE_PIN: u8 = 16;

/// Random registers' contents that keep away from what the two are known to differ in:
///
/// - a level has a vector: only the upper pins, which are edge, are programmed to other modes than fixed and lowest
///   priority; what would stop or reset the vCPU is masked on top of that;
/// - level vectors are odd, edge vectors even: no vector is both;
/// - a level pin gets another vector by way of edge, which takes it out of service;
/// - no reserved bit is written, no extended destination, and no vector in use to the EOI register.
struct Random<'a> {
    rng: &'a mut fastrand::Rng,
    /// What was last written to the low halves.
    low: [u32; PINS as usize],
}

impl Random<'_> {
    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.rng.usize(..list.len())]
    }

    /// A few that are often the same, and all others.
    fn even_vector(&mut self) -> u32 {
        let any = self.rng.u32(0..128) * 2;
        self.one_of(&[0x30, 0x40, 0x42, 0xfe, any, any])
    }

    fn low(&mut self, pin: u8) -> u32 {
        let flags = self.one_of(&[0, 0, ACTIVE_LOW]) | self.one_of(&[0, LOGICAL]);
        let masked = self.one_of(&[0, 0, MASKED]);
        if pin < FIRST_EDGE_PIN {
            let vector = match self.one_of(&[LEVEL, LEVEL, 0]) {
                0 => self.even_vector(),
                level => level | self.even_vector() | 1,
            };
            return vector | flags | masked | self.one_of(&[FIXED, FIXED, LOWEST_PRIORITY]);
        }
        let mode = self.one_of(&[0, 0, 0, 1, 2, 3, 4, 5, 6, 7]);
        let masked = if matches!(mode, 2 | 4 | 5) { MASKED } else { masked };
        self.even_vector() | flags | masked | mode << 8
    }

    fn write_low(&mut self, pin: u8, width: Width, low: u32) -> Vec<Access> {
        let before = std::mem::replace(&mut self.low[usize::from(pin)], low);
        let moves = before & low & LEVEL != 0 && (before ^ low) & 0xff != 0;
        let edge = moves.then_some(Access::Write(WINDOW, Width::Four, MASKED));
        let select = Access::Write(SELECT, Width::One, low_half(pin).into());
        [select].into_iter().chain(edge).chain([Access::Write(WINDOW, width, low)]).collect()
    }

    fn high(&mut self) -> u32 {
        u32::from(self.one_of(&[US, US, EVERYBODY, NOBODY, 0])) << 24
    }

    /// An index that names no redirection entry.
    fn other_index(&mut self) -> u8 {
        let beyond = self.rng.u8(0x40..);
        self.one_of(&[0, 0, 1, 2, 3, 0xf, 0x40, beyond])
    }

    fn width(&mut self) -> Width {
        self.one_of(&[Width::One, Width::Two, Width::Four, Width::Four])
    }

    fn operations(&mut self) -> Vec<Operation> {
        let pin = self.rng.u8(..PINS);
        let line = |level| vec![Operation::Line(pin, level)];
        let accesses = match self.rng.u32(..100) {
            0..16 => return line(Level::High),
            16..32 => return line(Level::Low),
            32..46 => return vec![Operation::Acknowledge],
            46..60 => vec![Access::EndOfInterrupt],
            60..74 => {
                let low = self.low(pin);
                self.write_low(pin, Width::Four, low)
            }
            74..78 => write(high_half(pin), self.high()).into(),
            78..80 => {
                let low = self.low(pin);
                [&write(high_half(pin), self.high())[..], &self.write_low(pin, Width::Four, low)].concat()
            }
            80 => {
                // Narrow, the rest is taken for zeros: an edge, or a level that is not masked.
                let pin = self.rng.u8(..FIRST_EDGE_PIN);
                let (width, value) = match self.rng.bool() {
                    true => (Width::One, self.even_vector()),
                    false => (Width::Two, self.low(pin) & 0xffff),
                };
                self.write_low(pin, width, value)
            }
            81..89 => read(low_half(pin)).into(),
            89..91 => read(high_half(pin)).into(),
            91..93 => write(self.other_index(), self.rng.u32(..)).into(),
            93..95 => read(self.other_index()).into(),
            95 => vec![Access::Write(SELECT, self.width(), self.rng.u32(..))],
            96 => vec![Access::Read(self.one_of(&[SELECT, WINDOW]), self.width())],
            97 => vec![Access::Read(self.rng.u16(..=0xfc), self.width())],
            98 => vec![Access::Write(self.one_of(&[4, 8, 0x14, 0x20, 0x30, 0xf0]), self.width(), self.rng.u32(..))],
            _ => vec![Access::Write(EOI, self.width(), self.even_vector())],
        };
        accesses.into_iter().map(Operation::Guest).collect()
    }
}

fn program(rng: &mut fastrand::Rng) -> Vec<Operation> {
    let mut program: Vec<_> =
        (0..FIRST_EDGE_PIN).flat_map(|pin| write(high_half(pin), u32::from(US) << 24)).map(Operation::Guest).collect();
    let mut random = Random { rng, low: [MASKED; PINS as usize] };
    while program.len() < LENGTH {
        program.extend(random.operations());
    }
    program.truncate(LENGTH);
    program
}

#[test]
fn random_programs_come_out_the_same_on_the_in_kernel_ioapic() {
    compare_all(program, || (InKernel::new(), Ours::new(Version::V11)));
}

/// Runs a program of entries, lines and interrupts on both, and returns the state of each.
fn after(program: &[Step]) -> [State; 2] {
    let (mut kernel, mut ours) = (InKernel::new(), Ours::new(Version::V20));
    [run(&mut kernel, program), run(&mut ours, program)]
}

enum Step {
    Program(u8, u32, u8),
    Line(u8, Level),
    Acknowledge(u8),
    EndOfInterrupt,
    Write(u16, u32),
}
use Step::{Acknowledge, EndOfInterrupt, Line, Program, Write};

fn run<S: Side<State = State>>(side: &mut S, program: &[Step]) -> State {
    for step in program {
        match *step {
            Program(pin, low, destination) => drop(side.perform(&entry(pin, low, destination))),
            Line(pin, level) => side.set(pin, level),
            Acknowledge(vector) => assert_eq!(side.acknowledge(), Some(vector)),
            EndOfInterrupt => drop(side.perform(&[Access::EndOfInterrupt])),
            Write(offset, value) => drop(side.perform(&[Access::Write(offset, Width::Four, value)])),
        }
    }
    side.state()
}

/// Whether the pin is in service.
fn remote_irr(states: &[State; 2], pin: usize) -> [bool; 2] {
    states.each_ref().map(|state| state.entries[pin] as u32 & REMOTE_IRR != 0)
}

#[test]
fn our_version_register_says_that_there_is_an_eoi_register_and_kvms_has_none() {
    assert_eq!(InKernel::new().perform(&read(1))[1], 0x17_0011);
    assert_eq!(Ours::new(Version::V20).perform(&read(1))[1], 0x17_0020);
    let states = after(&[Program(5, 0x41 | LEVEL, US), Line(5, High), Line(5, Low), Write(EOI, 0x41)]);
    assert_eq!(remote_irr(&states, 5), [true, false]);
}

#[test]
fn kvm_keeps_reserved_bits_and_we_read_them_as_zero() {
    let all = [write(low_half(5), u32::MAX), write(high_half(5), u32::MAX)].concat();
    let halves = [read(low_half(5)), read(high_half(5))].concat();
    let answers = |mut side: Box<dyn Side<State = State>>| {
        side.perform(&all);
        let [_, low, _, high] = side.perform(&halves).try_into().unwrap();
        [low, high]
    };
    // Delivery status and remote IRR are read-only.
    assert_eq!(answers(Box::new(InKernel::new())), [0xffff_afff, 0xffff_ffff]);
    // The extended destination, and the bit that says that the entry is remappable, mean something here.
    assert_eq!(answers(Box::new(Ours::new(Version::V20))), [0x0001_afff, 0xffff_0000]);
}

/// They have no end that could take them out of service again; reserved modes send nothing.
#[test]
fn kvm_has_levels_in_service_that_have_no_vector() {
    let (remote_read, nmi, init, start_up) = (3 << 8, 4 << 8, 5 << 8, 6 << 8);
    for mode in [remote_read, nmi, init, start_up] {
        let states = after(&[Program(5, 0x41 | mode | LEVEL, US), Line(5, High)]);
        assert_eq!(remote_irr(&states, 5), [true, false], "{mode:#x}");
    }
}

/// An end of interrupt is compared with the vector that the entry has by then. The split irqchip tells us of one only if a
/// route has that vector, and the route stays that of the interrupt in service.
#[test]
fn kvm_ends_a_pin_whose_vector_was_rewritten_in_service_by_any_level_of_the_new_vector() {
    let states = after(&[
        Program(5, 0x41 | LEVEL, US),
        Program(6, 0x51 | LEVEL, US),
        Line(5, High),
        Line(6, High),
        Program(5, 0x51 | LEVEL, US),
        Line(5, Low),
        Acknowledge(0x51),
        // Pin 6 gives up its route, and the next commit takes it out.
        Program(6, 0x60 | MASKED, US),
        Program(7, 0x71 | LEVEL, US),
        Line(7, High),
        EndOfInterrupt,
    ]);
    assert_eq!(remote_irr(&states, 5), [false, true]);
}

/// KVM's own IOAPIC goes by the trigger mode register, the exit of the split irqchip by vector: an edge of the same vector
/// ends the level as well, which is delivered again if it still stands.
#[test]
fn kvm_does_not_end_a_level_by_an_edge_of_its_vector() {
    let states = after(&[
        Program(5, 0x41 | LEVEL, US),
        Program(6, 0x41, US),
        Line(5, High),
        Acknowledge(0x41),
        Line(6, High),
        Line(5, Low),
        EndOfInterrupt,
    ]);
    assert_eq!(remote_irr(&states, 5), [true, false]);
}

/// It looks at the lines of all pins with the vector that was ended, and takes a high one for a level.
#[test]
fn kvm_sends_an_edge_again_that_shares_the_vector_of_an_ended_level() {
    let states = after(&[
        Program(5, 0x41 | LEVEL, US),
        Program(6, 0x41, US),
        Line(6, High),
        Acknowledge(0x41),
        EndOfInterrupt,
        Line(5, High),
        Acknowledge(0x41),
        Line(5, Low),
        EndOfInterrupt,
    ]);
    assert_eq!(states.map(|state| state.local_apic.requested[2]), [1 << 1, 0]);
}
