//! The local APIC of a software guest CPU.
//!
//! In come register accesses (xAPIC page, x2APIC MSRs, IA32_APIC_BASE), interrupts, and the CPU's
//! acknowledgements; out come [`Effect`]s, which the backend performs: an end of interrupt for the IOAPICs,
//! an interrupt for other processors. It receives like the real one; what it lacks is a clock and pins: the
//! timer's registers are stored and never count, and of the local vector table only LINT0 (see
//! [`Lapic::accepts_extint`]) and the error entry ever do something.
//!
//! Source: Intel SDM vol. 3A, chapter 11, whose sections the comments name. Where it leaves the choice,
//! Linux `arch/x86/kvm/lapic.c` decides.

mod address;
mod spec;
mod state;
#[cfg(test)]
mod tests;

use crate::msg::{Acceptance, DeliveryMode, DestinationMode, Interrupt, RedirectionHint, Trigger, WINDOW_START};
use spec::{
    ApicBase, ErrorStatus, FIRST_LEGAL_VECTOR, IA32_APIC_BASE, InterruptCommand, LocalVector, LocalVectorEntry,
    Register, START_UP, SpuriousVector, VERSION, Vectors, X2APIC_MSRS,
};
use std::mem;

pub(crate) use address::Address;
pub use state::{LapicState, RestoreError};

/// The local APIC of one processor.
///
/// ```
/// use irqfabric::chip::lapic::{Effect, Lapic};
/// use irqfabric::msg::{Acceptance, Interrupt, Trigger};
///
/// let mut lapic = Lapic::new(0);
/// lapic.write(0xf0, &0x1ff_u32.to_le_bytes());                     // software enable
///
/// let interrupt = Interrupt { vector: 0x31, trigger: Trigger::Level, ..Interrupt::default() };
/// assert!(lapic.matches(interrupt.destination, interrupt.destination_mode));
/// assert_eq!(lapic.accept(&interrupt), Acceptance::Accepted);
///
/// assert_eq!(lapic.acknowledge(), Some(0x31));                     // the CPU takes it
/// let effect = lapic.write(0xb0, &[0; 4]);                         // and writes the EOI register
/// assert_eq!(effect, Some(Effect::EndOfInterrupt(0x31)));
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct Lapic {
    // Configuration.
    id: u32,

    // State: registers. `errors` is what a write to the error status register moves there.
    base: ApicBase,
    task_priority: u8,
    logical_destination: u32,
    destination_format: u32,
    spurious_vector: SpuriousVector,
    in_service: Vectors,
    trigger_mode: Vectors,
    interrupt_request: Vectors,
    error_status: ErrorStatus,
    errors: ErrorStatus,
    interrupt_command: u64,
    local_vectors: [u32; LocalVector::ALL.len()],
    initial_count: u32,
    divide_configuration: u32,

    // State: what the processor has yet to take.
    nmi: bool,
    smi: bool,
    init: bool,
    start_up: Option<u8>,
    waiting_for_start_up: bool,
}

/// In which mode IA32_APIC_BASE has put a local APIC (11.12.1, table 11-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Globally disabled: to the processor, and to messages, there is no local APIC.
    Disabled,
    /// Registers in a page, ids of 8 bits.
    Xapic,
    /// Registers in MSRs, ids of 32 bits.
    X2apic,
}

/// What a register write asks of the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A level-triggered vector was ended: tell every IOAPIC.
    EndOfInterrupt(u8),
    /// Deliver an interrupt. Where there is a shorthand, the interrupt's destination is not looked at.
    Ipi {
        /// What to deliver, always edge-triggered.
        interrupt: Interrupt,
        /// Whom to, if not to the interrupt's destination.
        shorthand: DestinationShorthand,
    },
    /// Deliver a STARTUP IPI (SIPI), by [`Lapic::accept_start_up`].
    StartUp {
        /// The page to start at.
        vector: u8,
        /// Whom to, where there is no shorthand.
        destination: u32,
        /// How to read the destination.
        destination_mode: DestinationMode,
        /// Whom to, if not to the destination.
        shorthand: DestinationShorthand,
    },
}

/// To whom an IPI goes (11.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DestinationShorthand {
    /// To those that its destination matches.
    #[default]
    NoShorthand,
    /// To the sender.
    OnlySelf,
    /// To everybody.
    AllIncludingSelf,
    /// To everybody but the sender.
    AllExcludingSelf,
}

impl DestinationShorthand {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::NoShorthand,
            1 => Self::OnlySelf,
            2 => Self::AllIncludingSelf,
            _ => Self::AllExcludingSelf,
        }
    }
}

/// An MSR access that the processor answers with #GP(0). It had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("general protection fault")]
pub struct GeneralProtection;

/// Who may take what, and in which order.
impl Lapic {
    /// The local APIC with an id, as after power-up: in xAPIC mode, software disabled. Number 0 is the
    /// bootstrap processor's; the others wait for a SIPI.
    pub fn new(id: u32) -> Self {
        let bsp = id == 0;
        let mut lapic = Self {
            id,
            base: ApicBase::new().with_base(WINDOW_START >> 12).with_bsp(bsp).with_en(true),
            task_priority: 0,
            logical_destination: 0,
            destination_format: 0,
            spurious_vector: SpuriousVector::new(),
            in_service: Vectors::default(),
            trigger_mode: Vectors::default(),
            interrupt_request: Vectors::default(),
            error_status: ErrorStatus::new(),
            errors: ErrorStatus::new(),
            interrupt_command: 0,
            local_vectors: [0; LocalVector::ALL.len()],
            initial_count: 0,
            divide_configuration: 0,
            nmi: false,
            smi: false,
            init: false,
            start_up: None,
            waiting_for_start_up: !bsp,
        };
        lapic.reset_registers();
        lapic
    }

    /// Its id: all 32 bits, also in xAPIC mode.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether its processor is the one that starts the machine.
    pub fn is_bootstrap_processor(&self) -> bool {
        self.base.bsp()
    }

    /// Which of its register interfaces is there.
    pub fn mode(&self) -> Mode {
        match (self.base.en(), self.base.extd()) {
            (false, _) => Mode::Disabled,
            (true, false) => Mode::Xapic,
            (true, true) => Mode::X2apic,
        }
    }

    /// Whether a destination means this local APIC. A few compares.
    ///
    /// In xAPIC mode a destination above 0xff means only the one whose id it is, and only physically: a
    /// guest starts its processors above 255 that way, as they come up in xAPIC mode (the "hotplug hack"
    /// of `kvm_apic_match_physical_addr`). So 0xffff_ffff reaches receivers in x2APIC mode only. There,
    /// 0xff is id 255 or processors 0 to 7 of cluster 0, never a broadcast: KVM with
    /// KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK.
    pub fn matches(&self, destination: u32, mode: DestinationMode) -> bool {
        self.address().matches(destination, mode)
    }

    /// How busy its processor is, for the choice among the destinations of a lowest-priority interrupt:
    /// the lowest number takes it. `None` takes no part, as it would refuse it.
    ///
    /// It is the arbitration priority (11.6.2.4): the task priority, if that is above everything in service
    /// and not below anything pending; otherwise the highest class of the three.
    pub fn arbitration_priority(&self) -> Option<u8> {
        self.is_enabled().then(|| self.arbitration_priority_register())
    }

    /// Takes an interrupt whose destination this is ([`matches`](Self::matches) is not asked again).
    ///
    /// - Fixed and lowest priority: refused while the local APIC is disabled, by software or globally, and
    ///   if the vector is below 16, which is recorded as an error. Otherwise in the IRR (11.8.4).
    /// - NMI, SMI, INIT: refused only while it is globally disabled (11.4.7.2). Kept for the processor.
    /// - ExtINT: refused. Its vector is the 8259's, which is asked for it by the processor: see
    ///   [`Fabric::before_run`](crate::fabric::Fabric::before_run).
    pub fn accept(&mut self, interrupt: &Interrupt) -> Acceptance {
        match interrupt.delivery_mode {
            DeliveryMode::ExtInt => return Acceptance::Refused,
            _ if self.mode() == Mode::Disabled => return Acceptance::Refused,
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if !self.is_enabled() {
                    return Acceptance::Refused;
                }
                if interrupt.vector < FIRST_LEGAL_VECTOR {
                    self.detect(ErrorStatus::new().with_receive_illegal_vector(true));
                    return Acceptance::Refused;
                }
                self.request(interrupt.vector, interrupt.trigger);
            }
            DeliveryMode::Nmi => self.nmi = true,
            DeliveryMode::Smi => self.smi = true,
            DeliveryMode::Init => {
                self.init = true;
                // A SIPI that came before the INIT does not end the wait that the INIT begins.
                self.start_up = None;
            }
        }
        Acceptance::Accepted
    }

    /// Takes a STARTUP IPI: only while its processor waits for one, or is about to because of an INIT. The
    /// first one counts.
    pub fn accept_start_up(&mut self, vector: u8) -> Acceptance {
        let will_wait = if self.init { !self.base.bsp() } else { self.waiting_for_start_up };
        if self.mode() == Mode::Disabled || !will_wait || self.start_up.is_some() {
            return Acceptance::Refused;
        }
        self.start_up = Some(vector);
        Acceptance::Accepted
    }

    /// The vector that the processor should be interrupted with: the highest one requested, if its class
    /// is above the processor priority (11.8.3.1).
    pub fn pending(&self) -> Option<u8> {
        let vector = self.interrupt_request.highest()?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// The processor takes the vector that is [`pending`](Self::pending), which is in service from now on.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.interrupt_request.remove(vector);
        self.in_service.insert(vector);
        Some(vector)
    }

    /// The processor takes an NMI.
    pub fn take_nmi(&mut self) -> bool {
        mem::take(&mut self.nmi)
    }

    /// The processor takes a system management interrupt.
    pub fn take_smi(&mut self) -> bool {
        mem::take(&mut self.smi)
    }

    /// Whether the 8259's interrupts get through to the processor: LINT0 is programmed as ExtINT and not
    /// masked, or there is no local APIC in between.
    pub fn accepts_extint(&self) -> bool {
        let entry = self.local_vector(LocalVector::Lint0);
        self.mode() == Mode::Disabled || (!entry.mask() && entry.delivery_mode() == DeliveryMode::ExtInt as u8)
    }

    /// The processor takes an INIT and resets itself. The local APIC is as after power-up, but keeps its
    /// mode, and what was pending is gone (11.4.7.3). All but the bootstrap processor now wait for a SIPI.
    pub fn take_init(&mut self) -> bool {
        if !mem::take(&mut self.init) {
            return false;
        }
        self.reset_registers();
        self.nmi = false;
        self.smi = false;
        self.waiting_for_start_up = !self.base.bsp();
        if !self.waiting_for_start_up {
            self.start_up = None;
        }
        true
    }

    /// The processor takes the SIPI that it waited for, and starts at the page with this number. Not before
    /// it has taken a pending INIT.
    pub fn take_start_up(&mut self) -> Option<u8> {
        if self.init {
            return None;
        }
        let vector = self.start_up.take()?;
        self.waiting_for_start_up = false;
        Some(vector)
    }

    /// Globally and by software (11.4.3).
    pub fn is_enabled(&self) -> bool {
        self.base.en() && self.spurious_vector.software_enable()
    }

    fn request(&mut self, vector: u8, trigger: Trigger) {
        self.interrupt_request.insert(vector);
        match trigger {
            Trigger::Edge => self.trigger_mode.remove(vector),
            Trigger::Level => self.trigger_mode.insert(vector),
        }
    }

    /// 11.8.3.1. Of equal classes the SDM leaves the subclass open: the task priority's, as in KVM.
    fn processor_priority(&self) -> u8 {
        let in_service = self.in_service.highest().unwrap_or(0) & 0xf0;
        if self.task_priority & 0xf0 >= in_service { self.task_priority } else { in_service }
    }

    fn arbitration_priority_register(&self) -> u8 {
        let task = self.task_priority & 0xf0;
        let in_service = self.in_service.highest().unwrap_or(0) & 0xf0;
        let requested = self.interrupt_request.highest().unwrap_or(0) & 0xf0;
        if task >= requested && task > in_service { self.task_priority } else { task.max(in_service).max(requested) }
    }

    /// 11.5.3: an error waits for a write to the ESR, and interrupts if its local vector is not masked.
    fn detect(&mut self, error: ErrorStatus) {
        self.errors = ErrorStatus::from_bits(self.errors.into_bits() | error.into_bits());
        let entry = self.local_vector(LocalVector::Error);
        if entry.mask() {
            return;
        }
        if entry.vector() >= FIRST_LEGAL_VECTOR {
            self.request(entry.vector(), Trigger::Edge);
        } else {
            self.errors.set_receive_illegal_vector(true);
        }
    }
}

/// What the guest reads and writes.
impl Lapic {
    /// A read at an offset in the local APIC's page. It fills all of `data`.
    ///
    /// All ones unless in xAPIC mode. One to four bytes within a register read those; everything else reads
    /// zeros: what is between registers, what is write-only, and what is reserved, which is an error
    /// too (11.5.3).
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        if self.mode() != Mode::Xapic {
            data.fill(0xff);
            return;
        }
        data.fill(0);
        let bytes = match Register::at(offset >> 4, Mode::Xapic) {
            Some(register) => self.register(register).to_le_bytes(),
            None => {
                self.detect(ErrorStatus::new().with_illegal_register_address(true));
                return;
            }
        };
        let start = (offset & 0xf) as usize;
        if let Some(bytes) = bytes.get(start..).and_then(|bytes| bytes.get(..data.len())) {
            data.copy_from_slice(bytes);
        }
    }

    /// A write at an offset in the local APIC's page.
    ///
    /// It has an effect in xAPIC mode only, and only if it writes the four bytes of a register. Bits that
    /// are reserved or read-only are ignored; a reserved register is an error too (11.5.3).
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        if self.mode() != Mode::Xapic {
            return None;
        }
        let Some(register) = Register::at(offset >> 4, Mode::Xapic) else {
            self.detect(ErrorStatus::new().with_illegal_register_address(true));
            return None;
        };
        let bytes = data.try_into().ok().filter(|_| offset & 0xf == 0)?;
        let writable = register.writable(Mode::Xapic)?;
        self.set_register(register, u32::from_le_bytes(bytes) & writable)
    }

    /// RDMSR of IA32_APIC_BASE (0x1b) and, in x2APIC mode, of 0x800 to 0x8ff.
    pub fn read_msr(&self, msr: u32) -> Result<u64, GeneralProtection> {
        if msr == IA32_APIC_BASE {
            return Ok(self.base.into_bits());
        }
        match self.x2apic_register(msr)? {
            register if register.is_write_only() => Err(GeneralProtection),
            Register::InterruptCommand => Ok(self.interrupt_command),
            register => Ok(self.register(register).into()),
        }
    }

    /// WRMSR to IA32_APIC_BASE (0x1b) and, in x2APIC mode, to 0x800 to 0x8ff. A write of reserved bits or to
    /// a read-only register faults (11.12.1.3).
    pub fn write_msr(&mut self, msr: u32, value: u64) -> Result<Option<Effect>, GeneralProtection> {
        if msr == IA32_APIC_BASE {
            self.set_base(value)?;
            return Ok(None);
        }
        let register = self.x2apic_register(msr)?;
        let writable = register.writable(Mode::X2apic).ok_or(GeneralProtection)?;
        let (high, low) = ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
        if low & !(writable | register.read_only()) != 0 {
            return Err(GeneralProtection);
        }
        match register {
            Register::InterruptCommand => self.interrupt_command = u64::from(high) << 32,
            _ if high != 0 => return Err(GeneralProtection),
            _ => {}
        }
        Ok(self.set_register(register, low & writable))
    }

    fn x2apic_register(&self, msr: u32) -> Result<Register, GeneralProtection> {
        let number = msr.checked_sub(X2APIC_MSRS).ok_or(GeneralProtection)?;
        match self.mode() {
            Mode::X2apic => Register::at(number.into(), Mode::X2apic).ok_or(GeneralProtection),
            Mode::Disabled | Mode::Xapic => Err(GeneralProtection),
        }
    }

    /// The value of a register, in the layout of the present mode; of the ICR the low half.
    fn register(&self, register: Register) -> u32 {
        let x2apic = self.mode() == Mode::X2apic;
        match register {
            Register::Id if x2apic => self.id,
            Register::Id => self.id << 24,
            Register::Version => VERSION,
            Register::TaskPriority => self.task_priority.into(),
            Register::ArbitrationPriority => self.arbitration_priority_register().into(),
            Register::ProcessorPriority => self.processor_priority().into(),
            Register::LogicalDestination if x2apic => self.address().logical_x2apic_id(),
            Register::LogicalDestination => self.logical_destination,
            Register::DestinationFormat => self.destination_format,
            Register::SpuriousVector => self.spurious_vector.into_bits(),
            Register::InService(number) => self.in_service.register(number),
            Register::TriggerMode(number) => self.trigger_mode.register(number),
            Register::InterruptRequest(number) => self.interrupt_request.register(number),
            Register::ErrorStatus => self.error_status.into_bits(),
            Register::InterruptCommand => (self.interrupt_command & 0xffff_ffff) as u32,
            Register::InterruptCommandHigh => (self.interrupt_command >> 32) as u32,
            Register::LocalVector(entry) => self.local_vector(entry).into_bits(),
            Register::InitialCount => self.initial_count,
            // There is no clock: the timer is loaded and stays there.
            Register::CurrentCount => self.initial_count,
            Register::DivideConfiguration => self.divide_configuration,
            Register::EndOfInterrupt | Register::RemoteRead | Register::SelfIpi => 0,
        }
    }

    /// `value` has no bits but those that are writable.
    fn set_register(&mut self, register: Register, value: u32) -> Option<Effect> {
        match register {
            Register::TaskPriority => self.task_priority = (value & 0xff) as u8,
            Register::EndOfInterrupt => return self.end_of_interrupt(),
            Register::LogicalDestination => self.logical_destination = value,
            // 11.6.2.2: the reserved bits read as ones.
            Register::DestinationFormat => self.destination_format = value | 0x0fff_ffff,
            Register::SpuriousVector => {
                self.spurious_vector = SpuriousVector::from_bits(value);
                self.mask_local_vectors_if_disabled();
            }
            // 11.5.3: a write brings what was detected since the last one to where it can be read.
            Register::ErrorStatus => self.error_status = mem::take(&mut self.errors),
            Register::InterruptCommand => {
                self.interrupt_command = self.interrupt_command & !0xffff_ffff | u64::from(value);
                return self.send();
            }
            Register::InterruptCommandHigh => {
                self.interrupt_command = u64::from(value) << 32 | self.interrupt_command & 0xffff_ffff;
            }
            Register::LocalVector(entry) => {
                if let Some(stored) = self.local_vectors.get_mut(entry as usize) {
                    *stored = value;
                }
                self.mask_local_vectors_if_disabled();
            }
            Register::InitialCount => self.initial_count = value,
            Register::DivideConfiguration => self.divide_configuration = value,
            Register::SelfIpi => return self.send_to_self((value & 0xff) as u8),
            Register::Id
            | Register::Version
            | Register::ArbitrationPriority
            | Register::ProcessorPriority
            | Register::RemoteRead
            | Register::InService(_)
            | Register::TriggerMode(_)
            | Register::InterruptRequest(_)
            | Register::CurrentCount => {}
        }
        None
    }

    /// 11.8.5. The TMR bit stays until the vector is accepted again.
    fn end_of_interrupt(&mut self) -> Option<Effect> {
        let vector = self.in_service.highest()?;
        self.in_service.remove(vector);
        self.trigger_mode.contains(vector).then_some(Effect::EndOfInterrupt(vector))
    }

    /// 11.6.1, of which table 11-3 says what is valid. Where that leaves things undefined they are as in
    /// KVM: every delivery mode goes with every shorthand.
    fn send(&mut self) -> Option<Effect> {
        let command = InterruptCommand::from_bits((self.interrupt_command & 0xffff_ffff) as u32);
        let destination = match self.mode() {
            Mode::X2apic => (self.interrupt_command >> 32) as u32,
            Mode::Xapic | Mode::Disabled => (self.interrupt_command >> 56) as u32,
        };
        let destination_mode = command.destination_mode();
        let shorthand = DestinationShorthand::from_bits(command.shorthand());
        let vector = command.vector();
        if command.delivery_mode() == START_UP {
            return Some(Effect::StartUp { vector, destination, destination_mode, shorthand });
        }
        let delivery_mode = match DeliveryMode::from_bits(command.delivery_mode())? {
            // The ICR's encoding 7 is reserved.
            DeliveryMode::ExtInt => return None,
            // INIT level de-assert: processors since the Pentium 4 do nothing then.
            DeliveryMode::Init if command.level_triggered() && !command.level_assert() => return None,
            delivery_mode => delivery_mode,
        };
        if delivery_mode.has_vector() && vector < FIRST_LEGAL_VECTOR {
            self.detect(ErrorStatus::new().with_send_illegal_vector(true));
            return None;
        }
        let interrupt = Interrupt {
            destination,
            destination_mode,
            redirection_hint: RedirectionHint::All,
            delivery_mode,
            // Table 11-3, note: level is overridden, and sent as edge.
            trigger: Trigger::Edge,
            vector,
        };
        Some(Effect::Ipi { interrupt, shorthand })
    }

    /// 11.12.11.
    fn send_to_self(&mut self, vector: u8) -> Option<Effect> {
        if vector < FIRST_LEGAL_VECTOR {
            self.detect(ErrorStatus::new().with_send_illegal_vector(true));
            return None;
        }
        let interrupt = Interrupt { destination: self.id, vector, ..Interrupt::default() };
        Some(Effect::Ipi { interrupt, shorthand: DestinationShorthand::OnlySelf })
    }

    fn set_base(&mut self, value: u64) -> Result<(), GeneralProtection> {
        let new = ApicBase::from_bits(value);
        if !is_valid_base(value) {
            return Err(GeneralProtection);
        }
        // Figure 11-27: into x2APIC mode only from xAPIC mode, out of it only by disabling.
        match (self.mode(), new.en(), new.extd()) {
            (Mode::Disabled, true, true) | (Mode::X2apic, true, false) => return Err(GeneralProtection),
            // 11.4.3: "prior initialization to the APIC may be lost". It is.
            (_, false, _) => self.reset_registers(),
            // The two modes' destinations differ, so the ICR's is not kept.
            (Mode::Xapic, true, true) => self.interrupt_command &= 0xffff_ffff,
            (Mode::Disabled | Mode::Xapic, true, false) | (Mode::X2apic, true, true) => {}
        }
        self.base = new;
        Ok(())
    }

    /// 11.4.7.1. The id and the mode stay, and so does what the processor has yet to take.
    fn reset_registers(&mut self) {
        self.task_priority = 0;
        self.logical_destination = 0;
        self.destination_format = 0xffff_ffff;
        self.spurious_vector = SpuriousVector::new();
        self.in_service = Vectors::default();
        self.trigger_mode = Vectors::default();
        self.interrupt_request = Vectors::default();
        self.error_status = ErrorStatus::new();
        self.errors = ErrorStatus::new();
        self.interrupt_command = 0;
        self.local_vectors = [0; LocalVector::ALL.len()];
        self.initial_count = 0;
        self.divide_configuration = 0;
        self.mask_local_vectors_if_disabled();
    }

    /// 11.4.7.2: all entries are masked, and remain so.
    fn mask_local_vectors_if_disabled(&mut self) {
        if !self.spurious_vector.software_enable() {
            for entry in &mut self.local_vectors {
                *entry = LocalVectorEntry::from_bits(*entry).with_mask(true).into_bits();
            }
        }
    }

    fn local_vector(&self, entry: LocalVector) -> LocalVectorEntry {
        LocalVectorEntry::from_bits(self.local_vectors.get(entry as usize).copied().unwrap_or_default())
    }

    /// 11.6.2.
    fn address(&self) -> Address {
        Address {
            mode: self.mode(),
            id: self.id,
            logical_destination: self.logical_destination,
            destination_format: self.destination_format,
        }
    }
}

fn is_valid_base(value: u64) -> bool {
    let base = ApicBase::from_bits(value);
    value & ApicBase::RESERVED == 0 && (base.en() || !base.extd())
}
