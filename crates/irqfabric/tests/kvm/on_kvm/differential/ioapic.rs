//! Our IOAPIC, in a fabric on the split irqchip, against the one that KVM_CREATE_IRQCHIP makes.
//!
//! The in-kernel IOAPIC is `arch/x86/kvm/ioapic.c`. The guest's local APIC is the kernel's on both machines: what it has
//! requested and in service is compared too.

use super::guest::{Access, Guest, LocalApic, Width};
use super::{LENGTH, Operation, Side, compare_all};
use irqfabric::chip::ioapic::{Ioapic, Version};
use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS};
use irqfabric::hv::Kvm;
use irqfabric::line::{Level, LineSource};
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
const NMI: u32 = 4 << 8;
const EXTINT: u32 = 7 << 8;

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
        State {
            entries: entries.to_vec(),
            id: ioapic.id,
            select: ioapic.ioregsel,
            local_apic: self.guest.local_apic(),
        }
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
/// - a level goes to somebody: lower pins name a destination that exists, in either mode;
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

    fn high(&mut self, pin: u8) -> u32 {
        let somebody = self.one_of(&[US, EVERYBODY]);
        let destination = if pin < FIRST_EDGE_PIN { somebody } else { self.one_of(&[somebody, NOBODY, 0]) };
        u32::from(destination) << 24
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
            74..78 => write(high_half(pin), self.high(pin)).into(),
            78..80 => {
                let low = self.low(pin);
                [&write(high_half(pin), self.high(pin))[..], &self.write_low(pin, Width::Four, low)].concat()
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
    let mut program: Vec<_> = (0..FIRST_EDGE_PIN)
        .flat_map(|pin| write(high_half(pin), u32::from(US) << 24))
        .map(Operation::Guest)
        .collect();
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
