//! A machine of software local APICs: everything of a hypervisor that interrupts can tell, without /dev/kvm.
//!
//! A simulated vCPU is whoever drives it: a thread that takes interrupts by [`Vcpu::acknowledge`], ends them by
//! [`Vcpu::end_of_interrupt`] and waits by [`Vcpu::wait`]. Where there is a PIC it calls
//! [`Fabric::before_run`](crate::fabric::Fabric::before_run) before it acknowledges or waits, and its kick is [`Vcpu::kick`].
//!
//! It deviates from KVM in one thing: the end of an interrupt is reported by the trigger mode register, as on
//! silicon, whether or not a route for it is parked; KVM reports by vector and route. So it cannot notice a missing route.

use super::counted::Counters;
use super::{Calls, Capacity, EVERY_VCPU, Ends, External, HvError, Hypervisor, InterruptWindow, Route, Takes};
use crate::chip::lapic::{DestinationShorthand, Effect, Lapic};
use crate::msg::{Acceptance, DeliveryMode, DestinationMode, Interrupt};
use crate::sync::Mutex;
use std::sync::{Condvar, PoisonError};
use std::time::Duration;

/// A hypervisor with N software local APICs.
#[derive(Debug)]
pub struct Sim {
    vcpus: Box<[Vcpu]>,
    ends: Ends,
    counters: Counters,
}

/// One simulated vCPU: its local APIC, and a place to wait for interrupts.
#[derive(Debug)]
pub struct Vcpu {
    processor: Mutex<Processor>,
    ends: Ends,
    /// Signalled after every change that may have given the vCPU something to do.
    wake: Condvar,
}

#[derive(Debug)]
struct Processor {
    lapic: Lapic,
    /// A vector of the 8259's that it has yet to take. Before those of the local APIC.
    external: Option<u8>,
    kicked: bool,
}

impl Sim {
    /// `vcpus` local APICs with ids from 0 on, as after power-up: in xAPIC mode and software disabled.
    pub fn new(vcpus: u32) -> Self {
        Self::with_apic_ids(0..vcpus)
    }

    /// A local APIC for each id.
    pub fn with_apic_ids(ids: impl IntoIterator<Item = u32>) -> Self {
        let processor = |id| Processor { lapic: Lapic::new(id), external: None, kicked: false };
        let vcpu = |id| Vcpu { processor: Mutex::new(processor(id)), ends: Ends::Reported, wake: Condvar::new() };
        Self { vcpus: ids.into_iter().map(vcpu).collect(), ends: Ends::Reported, counters: Counters::default() }
    }

    /// The same machine, with [`Ends`] reported or not. Hidden, the vectors that its vCPUs end go to nobody.
    pub fn with_ends(mut self, ends: Ends) -> Self {
        self.ends = ends;
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.ends = ends);
        self
    }

    /// The vCPUs in the order of their making.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.vcpus
    }

    /// [Kicks](Vcpu::kick) the vCPU with this APIC id, or all of them: for
    /// [`FabricBuilder::kick`](crate::fabric::FabricBuilder::kick).
    pub fn kick(&self, apic_id: u32) {
        let meant = |vcpu: &&Vcpu| apic_id == EVERY_VCPU || vcpu.processor.lock().lapic.id() == apic_id;
        self.vcpus.iter().filter(meant).for_each(Vcpu::kick);
    }

    /// The calls that the fabric has made so far.
    pub fn calls(&self) -> Calls {
        self.counters.calls()
    }

    /// Performs what a local APIC's register write asked for. IPIs are sent; the vector that was ended, if any, is
    /// returned for [`Fabric::end_of_interrupt`](crate::fabric::Fabric::end_of_interrupt).
    ///
    /// `sender` is the vCPU's place in [`vcpus`](Self::vcpus); one that is not there sends to nobody but by destination.
    pub fn perform(&self, sender: usize, effect: Effect) -> Option<u8> {
        match effect {
            Effect::EndOfInterrupt(vector) => return self.ends.reported(vector),
            Effect::Ipi { interrupt, shorthand } => {
                let Interrupt { destination, destination_mode, .. } = interrupt;
                self.send(&interrupt, |index, lapic| {
                    addressed(index, lapic, sender, shorthand, destination, destination_mode)
                });
            }
            Effect::StartUp { vector, destination, destination_mode, shorthand } => {
                for (index, vcpu) in self.vcpus.iter().enumerate() {
                    vcpu.with_lapic(|lapic| {
                        if addressed(index, lapic, sender, shorthand, destination, destination_mode) {
                            // Not waiting for it: ignored, as on silicon.
                            let _ = lapic.accept_start_up(vector);
                        }
                    });
                }
            }
        }
        None
    }

    fn send(&self, interrupt: &Interrupt, addressed: impl Fn(usize, &Lapic) -> bool) -> Acceptance {
        let mut destinations =
            self.vcpus.iter().enumerate().filter(|(index, vcpu)| addressed(*index, &vcpu.processor.lock().lapic));
        if interrupt.delivery_mode == DeliveryMode::LowestPriority {
            // Locked one after the other, so a priority may have changed by the time it wins: then the
            // interrupt still arrives, only not on the best of them.
            let arbitrates = |(_, vcpu): (usize, &'_ Vcpu)| vcpu.processor.lock().lapic.arbitration_priority();
            let winner = destinations.filter_map(|place| Some((arbitrates(place)?, place.0))).min();
            return winner.map_or(Acceptance::Refused, |(_, index)| self.vcpus[index].accept(interrupt));
        }
        destinations.by_ref().fold(Acceptance::Refused, |so_far, (_, vcpu)| match vcpu.accept(interrupt) {
            Acceptance::Accepted => Acceptance::Accepted,
            Acceptance::Refused => so_far,
        })
    }
}

fn addressed(
    index: usize,
    lapic: &Lapic,
    sender: usize,
    shorthand: DestinationShorthand,
    destination: u32,
    mode: DestinationMode,
) -> bool {
    match shorthand {
        DestinationShorthand::NoShorthand => lapic.matches(destination, mode),
        DestinationShorthand::OnlySelf => index == sender,
        DestinationShorthand::AllIncludingSelf => true,
        DestinationShorthand::AllExcludingSelf => index != sender,
    }
}

impl Ends {
    fn reported(self, vector: u8) -> Option<u8> {
        (self == Self::Reported).then_some(vector)
    }
}

impl Vcpu {
    /// Everything else about its local APIC: registers, NMI, INIT. Waiters look again afterwards.
    pub fn with_lapic<R>(&self, access: impl FnOnce(&mut Lapic) -> R) -> R {
        let result = access(&mut self.processor.lock().lapic);
        self.wake.notify_all();
        result
    }

    /// Enables the local APIC as a guest does, by its spurious-interrupt vector register: vector 0xff.
    pub fn enable(&self) {
        self.with_lapic(|lapic| lapic.write(0xf0, &0x1ff_u32.to_le_bytes()));
    }

    /// The processor takes an interrupt: an external one if its vector has been given, otherwise the highest that its
    /// priority lets through.
    pub fn acknowledge(&self) -> Option<u8> {
        let mut processor = self.processor.lock();
        processor.external.take().or_else(|| processor.lapic.acknowledge())
    }

    /// The processor writes the EOI register. The answer is the vector that the IOAPICs are to be told, which the caller
    /// passes to [`Fabric::end_of_interrupt`](crate::fabric::Fabric::end_of_interrupt).
    pub fn end_of_interrupt(&self) -> Option<u8> {
        match self.processor.lock().lapic.write(0xb0, &[0; 4])? {
            Effect::EndOfInterrupt(vector) => self.ends.reported(vector),
            Effect::Ipi { .. } | Effect::StartUp { .. } => None,
        }
    }

    /// Waits until an interrupt is pending, the vCPU is [kicked](Self::kick) or `awake` says so; [`wake`](Self::wake) makes it
    /// ask again. Returns `false` after `timeout`.
    pub fn wait(&self, timeout: Duration, mut awake: impl FnMut() -> bool) -> bool {
        let idle = |processor: &mut Processor| {
            let pending = processor.external.is_some() || processor.lapic.pending().is_some();
            !pending && !std::mem::take(&mut processor.kicked) && !awake()
        };
        let waited = self.wake.wait_timeout_while(self.processor.lock(), timeout, idle);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Ends the present [`wait`](Self::wait), or the next one.
    pub fn kick(&self) {
        self.processor.lock().kicked = true;
        self.wake.notify_all();
    }

    /// Makes a waiter look again. What it looks at must have changed before.
    pub fn wake(&self) {
        drop(self.processor.lock());
        self.wake.notify_all();
    }

    fn accept(&self, interrupt: &Interrupt) -> Acceptance {
        self.with_lapic(|lapic| lapic.accept(interrupt))
    }
}

/// Its interrupts are on whenever it acknowledges: nobody has to wait for a window.
impl super::Vcpu for &Vcpu {
    fn takes(&mut self, external: &External) -> Result<Takes, HvError> {
        let processor = self.processor.lock();
        let lapic = &processor.lapic;
        let (addressed, open) = match *external {
            External::Lint0 => (lapic.is_bootstrap_processor(), lapic.accepts_extint()),
            // A message passes LINT0 by.
            External::Message { destination, destination_mode } => {
                (lapic.matches(destination, destination_mode), lapic.is_enabled())
            }
        };
        Ok(match (addressed, open && processor.external.is_none()) {
            (false, _) => Takes::Never,
            (true, false) => Takes::Later,
            (true, true) => Takes::Now,
        })
    }

    fn interrupt(&mut self, vector: u8) -> Result<Acceptance, HvError> {
        let mut processor = self.processor.lock();
        if processor.external.is_some() {
            return Ok(Acceptance::Refused);
        }
        processor.external = Some(vector);
        Ok(Acceptance::Accepted)
    }

    fn set_window(&mut self, _: InterruptWindow) {}
}

impl Hypervisor for Sim {
    /// There are no irqfds: every vector is delivered from userspace.
    fn start(&self, _pins: u32) -> Result<Capacity, HvError> {
        Ok(Capacity { ends: self.ends, ..Capacity::default() })
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        let Interrupt { destination, destination_mode, .. } = *interrupt;
        let answer = Ok(self.send(interrupt, |_, lapic| lapic.matches(destination, destination_mode)));
        self.counters.delivered(&answer);
        answer
    }

    fn commit(&self, _routes: &[Route]) -> Result<(), HvError> {
        self.counters.committed();
        Ok(())
    }
}
