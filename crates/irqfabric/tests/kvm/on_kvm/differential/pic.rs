//! Our 8259 pair against the one that KVM_CREATE_IRQCHIP makes (`arch/x86/kvm/i8259.c`).
//!
//! On the kernel's machine the guest's port accesses stay in the kernel, and INTA happens when it injects the interrupt:
//! the guest lets one come and says which. On ours the accesses come out, to the chip, and INTA is asked of it.
//!
//! A random program is made with a pair of ours at hand: an operation is left out where the pair's state says that it
//! would run into a deviation.

use super::guest::{Access, Guest, NOTHING};
use super::{LENGTH, Operation, Side, compare, compare_all};
use irqfabric::chip::pic::{CASCADE, ControllerState, Expected, INPUTS, Pic, PicState, StatusRegister};
use irqfabric::hv::{Hypervisor, Kvm};
use irqfabric::line::Level;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irqchip, kvm_pic_state,
};
use kvm_ioctls::VcpuExit;

const MASTER: u16 = 0x20;
const SLAVE: u16 = 0xa0;
const MASTER_ELCR: u16 = 0x4d0;
const SLAVE_ELCR: u16 = 0x4d1;

const NON_SPECIFIC_EOI: u8 = 0x20;
const SPECIAL_MASK: u8 = 0x68;
const POLL: u8 = 0x0c;
const ICW1: u8 = 0x10;
const SINGLE: u8 = 0x02;
const SPECIAL_FULLY_NESTED: u8 = 0x10;

struct InKernel {
    guest: Guest,
}

struct Ours {
    guest: Guest,
    pic: Pic,
}

/// One of the pair, as the kernel's structure has it.
#[derive(Debug, PartialEq)]
struct Registers {
    requests: u8,
    in_service: u8,
    mask: u8,
    elcr: u8,
    vectors: u8,
    highest: u8,
    expected: u8,
    icw4_needed: bool,
    auto_eoi: bool,
    rotate_in_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    reads_in_service: bool,
    polled: bool,
}

impl InKernel {
    fn new() -> Self {
        let guest = Guest::new(0, 0, |vm| {
            vm.create_irq_chip().unwrap();
            let mut routes = KvmIrqRouting::new(INPUTS.into()).unwrap();
            for (input, entry) in (0..).zip(routes.as_mut_slice()) {
                let irqchip = if input < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
                *entry = kvm_irq_routing_entry { gsi: input, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
                entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin: input & 7 };
            }
            vm.set_gsi_routing(&routes).unwrap();
        });
        Self { guest }
    }

    fn registers(&self, chip_id: u32) -> Registers {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        self.guest.vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: the kernel has filled in the member that the chip's id names, and all of it is plain numbers.
        Registers::from(unsafe { chip.chip.pic })
    }
}

impl Side for InKernel {
    type State = [Registers; 2];

    fn perform(&mut self, accesses: &[Access]) -> Vec<u32> {
        self.guest.perform(accesses, |exit| panic!("the kernel left an access to us: {exit:?}"))
    }

    fn set(&mut self, line: u8, level: Level) {
        self.guest.vm.set_irq_line(line.into(), level == Level::High).unwrap();
    }

    fn acknowledge(&mut self) -> Option<u8> {
        let [answer] = self.perform(&[Access::Take]).try_into().unwrap();
        (answer != NOTHING).then_some(answer as u8)
    }

    fn state(&mut self) -> Self::State {
        [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE].map(|chip| self.registers(chip))
    }
}

impl Ours {
    fn new() -> Self {
        let guest = Guest::new(0, 0, |vm| {
            Kvm::split(vm.clone()).start(24).unwrap();
        });
        Self { guest, pic: Pic::default() }
    }
}

impl Side for Ours {
    type State = [Registers; 2];

    fn perform(&mut self, accesses: &[Access]) -> Vec<u32> {
        let Self { guest, pic } = self;
        guest.perform(accesses, |exit| match exit {
            VcpuExit::IoIn(port, data) => pic.read(port, data),
            VcpuExit::IoOut(port, data) => pic.write(port, data),
            exit => panic!("{exit:?}"),
        })
    }

    fn set(&mut self, line: u8, level: Level) {
        self.pic.set(line, level);
    }

    fn acknowledge(&mut self) -> Option<u8> {
        (self.pic.output() == Level::High).then(|| self.pic.acknowledge())
    }

    fn state(&mut self) -> Self::State {
        let PicState { master, slave } = self.pic.save();
        [master, slave].map(Registers::from)
    }
}

impl From<kvm_pic_state> for Registers {
    fn from(chip: kvm_pic_state) -> Self {
        Self {
            requests: chip.irr,
            in_service: chip.isr,
            mask: chip.imr,
            elcr: chip.elcr,
            vectors: chip.irq_base,
            highest: chip.priority_add,
            expected: chip.init_state,
            icw4_needed: chip.init4 != 0,
            auto_eoi: chip.auto_eoi != 0,
            rotate_in_auto_eoi: chip.rotate_on_auto_eoi != 0,
            special_fully_nested: chip.special_fully_nested_mode != 0,
            special_mask: chip.special_mask != 0,
            reads_in_service: chip.read_reg_select != 0,
            polled: chip.poll != 0,
        }
    }
}

impl From<ControllerState> for Registers {
    fn from(chip: ControllerState) -> Self {
        Self {
            requests: requests(&chip),
            in_service: chip.in_service,
            mask: chip.mask,
            elcr: chip.elcr,
            vectors: chip.vectors,
            highest: chip.highest,
            expected: match chip.expected {
                Expected::Mask => 0,
                Expected::Icw2 => 1,
                Expected::Icw3 => 2,
                Expected::Icw4 => 3,
            },
            icw4_needed: chip.icw4_needed,
            auto_eoi: chip.auto_eoi,
            rotate_in_auto_eoi: chip.rotate_in_auto_eoi,
            special_fully_nested: chip.special_fully_nested,
            special_mask: chip.special_mask,
            reads_in_service: chip.status == StatusRegister::InService,
            polled: chip.polled,
        }
    }
}

fn requests(chip: &ControllerState) -> u8 {
    chip.edges | chip.high & chip.elcr
}

// Programs.

/// What the two are known to differ in. The reasons are in the module documentation of `chip::pic`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Deviation {
    /// A request falls before it is acknowledged.
    Withdrawn,
    /// The slave's request is taken back by a write to its registers.
    CascadeTakenBack,
    /// In special mask mode an input is in service and masked.
    SpecialMask,
    /// In special fully nested mode something below the slave is requested while the slave is in service.
    SpecialFullyNested,
    /// A poll finds a request.
    Polled,
    /// ICW1 while the chip has anything to do.
    Initialized,
    /// ICW1 says that there is one chip only.
    Single,
    /// The mode of an input changes that is high or has an edge waiting.
    ModeChanged,
}

/// Performs an operation on `pic`, or says why the two would differ.
fn step(pic: &mut Pic, operation: Operation) -> Result<(), Deviation> {
    let before = pic.save();
    match operation {
        Operation::Line(input, level) => pic.set(input, level),
        Operation::Acknowledge => {
            if pic.output() == Level::High {
                pic.acknowledge();
            }
        }
        Operation::Guest(Access::In(port)) => pic.read(port, &mut [0]),
        Operation::Guest(Access::Out(port, value)) => pic.write(port, &[value]),
        operation => unreachable!("{operation:?} is in no random program"),
    }
    let after = pic.save();
    let interrupts = |state: &PicState| [state.master.int, state.slave.int];
    let chips = [(before.master, after.master), (before.slave, after.slave)];

    let (accessed, _) = match operation {
        Operation::Guest(Access::In(port) | Access::Out(port, _)) if [SLAVE, SLAVE + 1, SLAVE_ELCR].contains(&port) => {
            (chips[1], "slave")
        }
        _ => (chips[0], "master"),
    };
    match operation {
        Operation::Line(_, Level::Low) => {
            let loses = chips.iter().any(|(before, after)| before.edges & !after.edges != 0);
            let settled = |state: ControllerState| ControllerState { int: Level::Low, ..state };
            let outlives = Pic::restore(&PicState { master: settled(after.master), slave: settled(after.slave) });
            if loses || interrupts(&outlives.save()) != interrupts(&after) {
                return Err(Deviation::Withdrawn);
            }
        }
        Operation::Guest(Access::In(_)) if accessed.0.polled && before != after => {
            if requests(&accessed.0) & !accessed.0.mask != 0 {
                return Err(Deviation::Polled);
            }
        }
        Operation::Guest(Access::Out(MASTER | SLAVE, value)) if value & ICW1 != 0 => {
            if value & SINGLE != 0 {
                return Err(Deviation::Single);
            }
            let idle = [Level::Low; 2];
            if interrupts(&before) != idle || interrupts(&after) != idle || accessed.0.in_service != 0 || accessed.0.polled {
                return Err(Deviation::Initialized);
            }
        }
        Operation::Guest(Access::Out(MASTER_ELCR | SLAVE_ELCR, _)) => {
            let (before, after) = accessed;
            if (before.elcr ^ after.elcr) & (before.high | before.edges) != 0 {
                return Err(Deviation::ModeChanged);
            }
        }
        _ => {}
    }
    if !matches!(operation, Operation::Acknowledge) && before.slave.int == Level::High && after.slave.int == Level::Low {
        return Err(Deviation::CascadeTakenBack);
    }
    for (_, chip) in chips {
        if chip.special_mask && chip.in_service & chip.mask != 0 {
            return Err(Deviation::SpecialMask);
        }
    }
    let cascade = 1 << CASCADE;
    let master = after.master;
    if master.special_fully_nested && master.in_service & cascade != 0 && requests(&master) & !master.mask & !cascade != 0 {
        return Err(Deviation::SpecialFullyNested);
    }
    Ok(())
}

/// Lines are driven when they change, as a [`Line`](irqfabric::line::Line) does: after ICW1 KVM has forgotten which are high, and
/// would take one that is driven high again for an edge.
fn random(rng: &mut fastrand::Rng, pic: &Pic) -> Vec<Operation> {
    let port = *rng.choice(&[MASTER, MASTER, SLAVE]).unwrap();
    let input = loop {
        let input = rng.u8(..INPUTS);
        if input != CASCADE {
            break input;
        }
    };
    let chip = if input < 8 { pic.save().master } else { pic.save().slave };
    let opposite = if chip.high >> (input & 7) & 1 == 0 { Level::High } else { Level::Low };
    let out = |port, value| Operation::Guest(Access::Out(port, value));
    match rng.u32(..100) {
        0..38 => vec![Operation::Line(input, opposite)],
        38..56 => vec![Operation::Acknowledge],
        56..68 => vec![out(port, NON_SPECIFIC_EOI)],
        // OCW2 and OCW3, all of them.
        68..76 => vec![out(port, rng.u8(..) & !ICW1)],
        76..81 => vec![out(port + 1, rng.u8(..) & rng.u8(..))],
        81..89 => vec![Operation::Guest(Access::In(port))],
        89..91 => vec![Operation::Guest(Access::In(port + 1))],
        91..93 => vec![out(port, rng.u8(..) | ICW1)],
        93..95 => {
            let icw4 = rng.u8(..) & 0x13;
            vec![out(port, 0x11), out(port + 1, rng.u8(..)), out(port + 1, rng.u8(..)), out(port + 1, icw4)]
        }
        95..97 => vec![out(*rng.choice(&[MASTER_ELCR, SLAVE_ELCR]).unwrap(), rng.u8(..))],
        97 => vec![Operation::Guest(Access::In(*rng.choice(&[MASTER_ELCR, SLAVE_ELCR]).unwrap()))],
        // What a handler does at its end.
        _ => vec![out(SLAVE, NON_SPECIFIC_EOI), out(MASTER, NON_SPECIFIC_EOI)],
    }
}

fn initialization() -> Vec<Operation> {
    let words = [(MASTER, [0x11, 0x30, 0x04, 0x01]), (SLAVE, [0x11, 0x38, 0x02, 0x01])];
    let words = words.into_iter().flat_map(|(port, [icw1, rest @ ..])| {
        [Access::Out(port, icw1)].into_iter().chain(rest.map(|word| Access::Out(port + 1, word)))
    });
    words.map(Operation::Guest).collect()
}

fn program(rng: &mut fastrand::Rng) -> Vec<Operation> {
    let mut pic = Pic::default();
    let mut program = Vec::new();
    let mut taken = 0;
    let mut stat = std::collections::BTreeMap::<String,u32>::new();
    let mut next = initialization();
    while program.len() < LENGTH {
        for operation in next {
            let mut after = pic.clone();
            let r = step(&mut after, operation);
            if let Err(e) = r { *stat.entry(format!("{e:?}")).or_default() += 1; }
            if let Operation::Guest(Access::Out(MASTER|SLAVE, v)) = operation && r.is_ok() { *stat.entry(if v & 0x10 != 0 { "icw1".into() } else if v & 8 != 0 { "ocw3".into() } else { format!("ocw2 {}", v>>5) }).or_default() += 1; }
            if r.is_ok() {
                taken += u32::from(matches!(operation, Operation::Acknowledge) && after != pic);
                pic = after;
                program.push(operation);
            }
        }
        next = random(rng, &pic);
    }
    println!("taken {taken} {stat:?}");
    program.truncate(LENGTH);
    program
}

#[test]
fn random_programs_come_out_the_same_on_the_in_kernel_pic() {
    compare_all(program, || (InKernel::new(), Ours::new()));
}
