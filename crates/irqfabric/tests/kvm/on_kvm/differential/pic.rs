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
const MASTER_DATA: u16 = 0x21;
const SLAVE: u16 = 0xa0;
const SLAVE_DATA: u16 = 0xa1;
const MASTER_ELCR: u16 = 0x4d0;
const SLAVE_ELCR: u16 = 0x4d1;

const ICW1_WITH_ICW4: u8 = 0x11;
const AUTO_EOI: u8 = 0x02;
const SPECIFIC_EOI: u8 = 0x60;
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

/// Says why the two would differ in an access to a chip, which is `before` and `after` it.
fn accessed(operation: Operation, (before, after): (ControllerState, ControllerState)) -> Result<(), Deviation> {
    match operation {
        Operation::Guest(Access::In(MASTER | MASTER_DATA | SLAVE | SLAVE_DATA))
            if before.polled && requests(&before) & !before.mask != 0 =>
        {
            Err(Deviation::Polled)
        }
        Operation::Guest(Access::Out(MASTER | SLAVE, value)) if value & (ICW1 | SINGLE) == ICW1 | SINGLE => {
            Err(Deviation::Single)
        }
        Operation::Guest(Access::Out(MASTER | SLAVE, value))
            if value & ICW1 != 0 && (before.in_service != 0 || before.polled) =>
        {
            Err(Deviation::Initialized)
        }
        Operation::Guest(Access::Out(MASTER_ELCR | SLAVE_ELCR, _))
            if (before.elcr ^ after.elcr) & (before.high | before.edges) != 0 =>
        {
            Err(Deviation::ModeChanged)
        }
        _ => Ok(()),
    }
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
    let chips = [(before.master, after.master), (before.slave, after.slave)];
    let interrupts = |state: &PicState| [state.master.int, state.slave.int];
    match operation {
        Operation::Line(_, Level::Low) => {
            let loses = chips.iter().any(|(before, after)| before.edges & !after.edges != 0);
            let settled = |state: ControllerState| ControllerState { int: Level::Low, ..state };
            let settled = Pic::restore(&PicState { master: settled(after.master), slave: settled(after.slave) });
            if loses || interrupts(&settled.save()) != interrupts(&after) {
                return Err(Deviation::Withdrawn);
            }
        }
        Operation::Guest(Access::In(port) | Access::Out(port, _)) => {
            let of_slave = matches!(port, SLAVE | SLAVE_DATA | SLAVE_ELCR);
            accessed(operation, chips[usize::from(of_slave)])?;
            let initializes =
                matches!(operation, Operation::Guest(Access::Out(MASTER | SLAVE, value)) if value & ICW1 != 0);
            if initializes && [before, after].iter().any(|state| interrupts(state) != [Level::Low; 2]) {
                return Err(Deviation::Initialized);
            }
        }
        _ => {}
    }
    if !matches!(operation, Operation::Acknowledge) && before.slave.int == Level::High && after.slave.int == Level::Low
    {
        return Err(Deviation::CascadeTakenBack);
    }
    for (_, chip) in chips {
        if chip.special_mask && chip.in_service & chip.mask != 0 {
            return Err(Deviation::SpecialMask);
        }
    }
    let cascade = 1 << CASCADE;
    let master = after.master;
    if master.special_fully_nested
        && master.in_service & cascade != 0
        && requests(&master) & !master.mask & !cascade != 0
    {
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
        // Not with automatic end of interrupt: a level would never cease to be delivered.
        95..97 if !chip.auto_eoi => vec![out(if input < 8 { MASTER_ELCR } else { SLAVE_ELCR }, rng.u8(..))],
        97 => vec![Operation::Guest(Access::In(*rng.choice(&[MASTER_ELCR, SLAVE_ELCR]).unwrap()))],
        // What a handler does at its end.
        _ => vec![out(SLAVE, NON_SPECIFIC_EOI), out(MASTER, NON_SPECIFIC_EOI)],
    }
}

/// What leads towards a pair that is idle, which both initialize alike, in the order in which it is to be tried.
fn toward_idle(pic: &Pic) -> Vec<Operation> {
    let PicState { master, slave } = pic.save();
    let mut operations = Vec::new();
    if pic.output() == Level::High {
        operations.push(Operation::Acknowledge);
    }
    for (port, elcr, first, chip) in [(SLAVE, SLAVE_ELCR, 8, slave), (MASTER, MASTER_ELCR, 0, master)] {
        let bits = |set: u8| (0..8).filter(move |bit| set >> bit & 1 != 0);
        operations.extend(bits(chip.in_service).map(|level| Operation::Guest(Access::Out(port, SPECIFIC_EOI | level))));
        operations.extend(bits(chip.high & chip.elcr).map(|input| Operation::Line(first + input, Level::Low)));
        if chip.elcr != 0 {
            operations.push(Operation::Guest(Access::Out(elcr, 0)));
        }
        if chip.polled {
            operations.push(Operation::Guest(Access::In(port)));
        }
    }
    // Let the slave's request through: with all others, or alone if it is they that would be a deviation.
    let mask = if pic.output() == Level::High { !(1 << CASCADE) } else { 0 };
    operations.push(Operation::Guest(Access::Out(MASTER_DATA, mask)));
    operations
}

/// Both, with these ICW4s on top of 8086 mode.
fn initialization(icw4: [u8; 2]) -> Vec<Operation> {
    let words =
        [(MASTER, [ICW1_WITH_ICW4, 0x30, 0x04, icw4[0] | 1]), (SLAVE, [ICW1_WITH_ICW4, 0x38, 0x02, icw4[1] | 1])];
    let words = words.into_iter().flat_map(|(port, [icw1, rest @ ..])| {
        [Access::Out(port, icw1)].into_iter().chain(rest.map(|word| Access::Out(port + 1, word)))
    });
    words.map(Operation::Guest).collect()
}

fn program(rng: &mut fastrand::Rng) -> Vec<Operation> {
    let mut pic = Pic::default();
    let mut program = Vec::new();
    let (mut taken, mut initialized) = (0, 0);
    while program.len() < LENGTH {
        // Now and then all comes to an end, and begins anew in other modes.
        let next = match rng.u32(..100) {
            _ if program.is_empty() => initialization([0; 2]),
            0 => {
                let mut idle = pic.clone();
                let operations = std::iter::from_fn(|| {
                    let before = idle.clone();
                    toward_idle(&before).into_iter().find(|operation| {
                        idle = before.clone();
                        step(&mut idle, *operation).is_ok() && idle != before
                    })
                });
                let mut operations: Vec<_> = operations.take(100).collect();
                operations.extend(initialization([0; 2].map(|_| rng.u8(..) & (AUTO_EOI | SPECIAL_FULLY_NESTED))));
                operations
            }
            _ => random(rng, &pic),
        };
        for operation in next {
            let mut after = pic.clone();
            if step(&mut after, operation).is_ok() {
                taken += u32::from(matches!(operation, Operation::Acknowledge) && after != pic);
                initialized += u32::from(matches!(operation, Operation::Guest(Access::Out(MASTER, ICW1_WITH_ICW4))));
                pic = after;
                program.push(operation);
            }
        }
    }
    assert!(taken > 100 && initialized > 5, "{taken} interrupts and {initialized} beginnings: that says little");
    program.truncate(LENGTH);
    program
}

#[test]
fn random_programs_come_out_the_same_on_the_in_kernel_pic() {
    compare_all(program, || (InKernel::new(), Ours::new()));
}

/// What both are brought to before a deviation is shown, and what each then says.
fn shows(program: &[Operation], kernel: &[u32], ours: &[u32]) {
    let mut machines = (InKernel::new(), Ours::new());
    let initialization = initialization([0; 2]);
    assert!(compare(&initialization, 8, &mut machines.0, &mut machines.1).is_ok());
    assert_eq!((answers(&mut machines.0, program), answers(&mut machines.1, program)), (kernel.into(), ours.into()));
}

/// The answers to reads and acknowledgements.
fn answers(side: &mut impl Side, program: &[Operation]) -> Vec<u32> {
    let mut answers = Vec::new();
    for operation in program {
        match operation {
            Operation::Line(input, level) => side.set(*input, *level),
            Operation::Acknowledge => answers.push(side.acknowledge().map_or(NOTHING, u32::from)),
            Operation::Guest(access) => {
                let [answer] = side.perform(&[*access]).try_into().unwrap();
                if matches!(access, Access::In(_)) {
                    answers.push(answer);
                }
            }
        }
    }
    answers
}

const fn out(port: u16, value: u8) -> Operation {
    Operation::Guest(Access::Out(port, value))
}

const fn read(port: u16) -> Operation {
    Operation::Guest(Access::In(port))
}

const fn raise(input: u8) -> Operation {
    Operation::Line(input, Level::High)
}

const fn lower(input: u8) -> Operation {
    Operation::Line(input, Level::Low)
}

const TAKE: Operation = Operation::Acknowledge;

#[test]
fn kvm_keeps_an_edge_that_is_withdrawn_where_the_sheet_has_the_default_ir7() {
    shows(&[raise(4), lower(4), read(MASTER), TAKE, TAKE], &[0x10, 0x34, NOTHING], &[0, 0x37, NOTHING]);
}

#[test]
fn kvm_forgets_a_level_that_is_withdrawn_where_the_sheet_has_the_default_ir7() {
    shows(&[out(MASTER_ELCR, 0x20), raise(5), lower(5), TAKE], &[NOTHING], &[0x37]);
    // Of the slave's, its edge in the master is all that is left: there both have the default IR7.
    shows(&[out(SLAVE_ELCR, 0x08), raise(11), lower(11), TAKE], &[0x3f], &[0x3f]);
}

#[test]
fn kvm_keeps_the_slaves_request_in_the_master_when_the_slave_takes_it_back() {
    shows(&[raise(12), out(SLAVE_DATA, 0x10), read(MASTER), TAKE], &[0x04, 0x3f], &[0, NOTHING]);
}

#[test]
fn kvm_does_not_know_special_mask_mode() {
    let masked = [raise(3), TAKE, out(MASTER_DATA, 0x08), out(MASTER, SPECIAL_MASK)];
    shows(&[&masked[..], &[raise(5), TAKE]].concat(), &[0x33, NOTHING], &[0x33, 0x35]);
    let end = [out(MASTER, NON_SPECIFIC_EOI), out(MASTER, 0x0b), read(MASTER)];
    shows(&[&masked[..], &end].concat(), &[0x33, 0], &[0x33, 0x08]);
}

#[test]
fn kvm_lets_all_of_the_master_into_the_service_of_a_specially_nested_slave() {
    let nested = initialization([SPECIAL_FULLY_NESTED, 0]);
    let program = [&nested[..], &[raise(12), TAKE, raise(5), TAKE]].concat();
    shows(&program, &[0x3c, 0x35], &[0x3c, NOTHING]);
}

#[test]
fn kvm_ends_what_it_is_polled_for() {
    let program = [raise(4), out(MASTER, POLL), read(MASTER), out(MASTER, 0x0b), read(MASTER)];
    shows(&program, &[0x84, 0], &[0x84, 0x10]);
}

#[test]
fn kvm_leaves_in_service_what_icw1_does_not_find_requested() {
    let program = [raise(4), TAKE, out(MASTER, ICW1_WITH_ICW4), out(MASTER, 0x0b), read(MASTER)];
    shows(&program, &[0x34, 0x10], &[0x34, 0]);
}

#[test]
fn kvm_keeps_a_poll_command_over_icw1() {
    let program = [out(MASTER, POLL), out(MASTER, ICW1_WITH_ICW4), read(MASTER)];
    shows(&program, &[0x07], &[0]);
}

#[test]
fn kvm_takes_a_line_that_is_driven_high_again_after_icw1_for_an_edge() {
    let program = [raise(4), out(MASTER, ICW1_WITH_ICW4), raise(4), read(MASTER)];
    shows(&program, &[0x10], &[0]);
}

#[test]
fn kvm_expects_icw3_of_a_single_chip() {
    let program = [out(MASTER, ICW1 | SINGLE), out(MASTER_DATA, 0x30), out(MASTER_DATA, 0x55), read(MASTER_DATA)];
    shows(&program, &[0], &[0x55]);
}

#[test]
fn kvm_keeps_the_request_of_an_input_that_becomes_edge() {
    let program = [out(MASTER_ELCR, 0x20), raise(5), out(MASTER_ELCR, 0), read(MASTER), TAKE];
    shows(&program, &[0x20, 0x35], &[0, NOTHING]);
}

#[test]
fn kvm_ignores_accesses_of_several_bytes() {
    let program = [Operation::Guest(Access::OutWord(MASTER, 0x5a0a)), read(MASTER_DATA)];
    shows(&program, &[0], &[0x5a]);
}

#[test]
fn kvm_lets_a_line_drive_the_cascade() {
    shows(&[raise(CASCADE), read(MASTER), TAKE], &[0x04, 0x3f], &[0, NOTHING]);
}
