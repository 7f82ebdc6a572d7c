//! Snapshots of a local APIC.

use super::spec::{ApicBase, ErrorStatus, FIRST_LEGAL_VECTOR, LocalVector, Register, SpuriousVector, Vectors};
use super::{Lapic, Mode, is_valid_base};

/// All the state of a [`Lapic`], named and laid out as its registers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LapicState {
    /// Which local APIC it is the state of.
    pub id: u32,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// Task priority register.
    pub tpr: u8,
    /// Logical destination register, as in xAPIC mode.
    pub ldr: u32,
    /// Destination format register.
    pub dfr: u32,
    /// Spurious interrupt vector register.
    pub svr: u32,
    /// In-service register, vector 0 first.
    pub isr: [u64; 4],
    /// Trigger mode register.
    pub tmr: [u64; 4],
    /// Interrupt request register.
    pub irr: [u64; 4],
    /// Error status register.
    pub esr: u32,
    /// Errors detected since it was last written.
    pub errors: u32,
    /// Interrupt command register, both halves.
    pub icr: u64,
    /// Local vector table: timer, thermal, performance counter, LINT0, LINT1, error.
    pub lvt: [u32; 6],
    /// Timer: initial count register.
    pub initial_count: u32,
    /// Timer: divide configuration register.
    pub divide_configuration: u32,
    /// An NMI is pending.
    pub nmi: bool,
    /// A system management interrupt is pending.
    pub smi: bool,
    /// An INIT is pending.
    pub init: bool,
    /// A SIPI is pending, with this vector.
    pub start_up: Option<u8>,
    /// The processor waits for a SIPI.
    pub waiting_for_start_up: bool,
}

/// Why a state cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It is another local APIC's.
    #[error("the state is that of local APIC {0:#x}")]
    OtherId(u32),
    /// IA32_APIC_BASE has reserved bits set, or a mode that does not exist.
    #[error("IA32_APIC_BASE cannot be {0:#x}")]
    ApicBase(u64),
    /// A vector below 16 is pending or in service.
    #[error("the reserved vector {0} is pending or in service")]
    ReservedVector(u8),
}

/// Snapshots.
impl Lapic {
    /// All its state.
    pub fn save(&self) -> LapicState {
        let Self {
            id,
            base,
            task_priority,
            logical_destination,
            destination_format,
            spurious_vector,
            in_service,
            trigger_mode,
            interrupt_request,
            error_status,
            errors,
            interrupt_command,
            local_vectors,
            initial_count,
            divide_configuration,
            nmi,
            smi,
            init,
            start_up,
            waiting_for_start_up,
        } = self;
        LapicState {
            id: *id,
            apic_base: base.into_bits(),
            tpr: *task_priority,
            ldr: *logical_destination,
            dfr: *destination_format,
            svr: spurious_vector.into_bits(),
            isr: in_service.words(),
            tmr: trigger_mode.words(),
            irr: interrupt_request.words(),
            esr: error_status.into_bits(),
            errors: errors.into_bits(),
            icr: *interrupt_command,
            lvt: *local_vectors,
            initial_count: *initial_count,
            divide_configuration: *divide_configuration,
            nmi: *nmi,
            smi: *smi,
            init: *init,
            start_up: *start_up,
            waiting_for_start_up: *waiting_for_start_up,
        }
    }

    /// Takes over a state. What could not be so is refused, and nothing changes; bits that no register has
    /// are dropped.
    pub fn restore(&mut self, state: &LapicState) -> Result<(), RestoreError> {
        let LapicState {
            id,
            apic_base,
            tpr,
            ldr,
            dfr,
            svr,
            isr,
            tmr,
            irr,
            esr,
            errors,
            icr,
            lvt,
            initial_count,
            divide_configuration,
            nmi,
            smi,
            init,
            start_up,
            waiting_for_start_up,
        } = *state;
        if id != self.id {
            return Err(RestoreError::OtherId(id));
        }
        if !is_valid_base(apic_base) {
            return Err(RestoreError::ApicBase(apic_base));
        }
        let (irr, isr) = (Vectors::from_words(irr), Vectors::from_words(isr));
        let mut reserved = 0..FIRST_LEGAL_VECTOR;
        if let Some(vector) = reserved.find(|&vector| irr.contains(vector) || isr.contains(vector)) {
            return Err(RestoreError::ReservedVector(vector));
        }
        let mut local_vectors = lvt;
        for (value, entry) in local_vectors.iter_mut().zip(LocalVector::ALL) {
            *value &= entry.writable();
        }
        let base = ApicBase::from_bits(apic_base);
        let writable = |register: Register| register.writable(Mode::Xapic).unwrap_or(0);
        let destination = if base.extd() { u32::MAX } else { writable(Register::InterruptCommandHigh) };
        let command = u64::from(destination) << 32 | u64::from(writable(Register::InterruptCommand));
        *self = Self {
            id,
            base,
            task_priority: tpr,
            logical_destination: ldr & writable(Register::LogicalDestination),
            destination_format: dfr | !writable(Register::DestinationFormat),
            spurious_vector: SpuriousVector::from_bits(svr & writable(Register::SpuriousVector)),
            in_service: isr,
            trigger_mode: Vectors::from_words([tmr[0] & !0xffff, tmr[1], tmr[2], tmr[3]]),
            interrupt_request: irr,
            error_status: ErrorStatus::from_bits(esr & ErrorStatus::DETECTED),
            errors: ErrorStatus::from_bits(errors & ErrorStatus::DETECTED),
            interrupt_command: icr & command,
            local_vectors,
            initial_count,
            divide_configuration: divide_configuration & writable(Register::DivideConfiguration),
            nmi,
            smi,
            init,
            start_up: start_up.filter(|_| init || waiting_for_start_up),
            waiting_for_start_up,
        };
        if self.mode() == Mode::Disabled {
            self.reset_registers();
        }
        self.mask_local_vectors_if_disabled();
        Ok(())
    }
}
