//! KVM on x86: local APICs in the kernel, IOAPIC and PIC ours (split irqchip) or the kernel's (full).
//!
//! Linux `Documentation/virt/kvm/api.rst`: KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_SIGNAL_MSI,
//! KVM_SET_GSI_ROUTING, KVM_CREATE_IRQCHIP, KVM_IRQ_LINE.

mod vcpu;

use super::{Capacity, Ends, HvError, Hypervisor, OpaqueTarget, Route, Target};
use crate::line::{Level, Pin};
use crate::msg::{Acceptance, Interrupt};
use crate::sync::{EventFd, Mutex};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_IOAPIC_NUM_PINS, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI,
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::{Cap, VmFd};
use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

/// KVM_MAX_IRQ_ROUTES: what the kernel reserves at the most, and how many routes its table holds.
const MAX_ROUTES: u32 = 4096;

/// Where no vCPU matches, KVM's slow path answers -1 (`kvm_irq_delivery_to_apic`), which arrives as EPERM; the fast path
/// answers 0.
const NO_DESTINATION: i32 = 1;

/// A KVM virtual machine, with one of its two kinds of irqchip.
#[derive(Debug)]
pub struct Kvm {
    vm: Arc<VmFd>,
    irqchip: Irqchip,
    /// Whether an attached irqfd empties its eventfd. Found out at the start, while there are no routes.
    takes_events: OnceLock<bool>,
    table: Table,
}

/// The last table that was committed, in the kernel's form: kept for its memory.
#[derive(Default)]
struct Table(Mutex<Option<KvmIrqRouting>>);

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Irqchip {
    Split,
    Full,
}

impl Kvm {
    /// The split irqchip on `vm`: local APICs in the kernel, the IOAPICs ours.
    ///
    /// Nothing is asked of the kernel yet: [`FabricBuilder::build`](crate::fabric::FabricBuilder::build) enables
    /// KVM_CAP_SPLIT_IRQCHIP for the pins that were added, and of KVM_CAP_X2APIC_API the 32-bit ids and the switching
    /// off of the broadcast quirk. The former changes the layout of the APIC id in KVM_GET_LAPIC and KVM_SET_LAPIC: 32
    /// bits at 0x20 instead of 8 at 0x23, once the vCPU is in x2APIC mode.
    pub fn split(vm: Arc<VmFd>) -> Self {
        Self { vm, irqchip: Irqchip::Split, takes_events: OnceLock::new(), table: Table::default() }
    }

    /// The kernel's own IOAPIC and PIC on `vm`: lines end there, and no end of interrupt comes to us.
    ///
    /// Nothing is asked of the kernel yet: [`FabricBuilder::build`](crate::fabric::FabricBuilder::build) calls
    /// KVM_CREATE_IRQCHIP and enables KVM_CAP_X2APIC_API as for [`split`](Self::split). The fabric gets no IOAPIC of ours.
    pub fn full(vm: Arc<VmFd>) -> Self {
        Self { vm, irqchip: Irqchip::Full, takes_events: OnceLock::new(), table: Table::default() }
    }

    fn enable(&self, capability: Capability, argument: u64) -> Result<(), HvError> {
        if self.vm.check_extension_int(capability.check) <= 0 {
            return Err(HvError::Missing { capability: capability.name, remedy: "this needs Linux 4.7 or newer, x86" });
        }
        let request = kvm_enable_cap { cap: capability.number, args: [argument, 0, 0, 0], ..Default::default() };
        self.vm.enable_cap(&request).map_err(|errno| HvError::Call { call: capability.name, source: errno.into() })
    }
}

struct Capability {
    name: &'static str,
    number: u32,
    check: Cap,
}

const SPLIT_IRQCHIP: Capability =
    Capability { name: "KVM_CAP_SPLIT_IRQCHIP", number: KVM_CAP_SPLIT_IRQCHIP, check: Cap::SplitIrqchip };
const X2APIC_API: Capability =
    Capability { name: "KVM_CAP_X2APIC_API", number: KVM_CAP_X2APIC_API, check: Cap::X2ApicApi };

impl Hypervisor for Kvm {
    fn start(&self, pins: u32) -> Result<Capacity, HvError> {
        match self.irqchip {
            Irqchip::Split if pins > MAX_ROUTES => return Err(HvError::TooManyPins { pins, most: MAX_ROUTES }),
            Irqchip::Split => self.enable(SPLIT_IRQCHIP, pins.into())?,
            Irqchip::Full if pins > 0 => return Err(HvError::TooManyPins { pins, most: 0 }),
            Irqchip::Full => {
                let failed =
                    |errno: kvm_ioctls::Error| HvError::Call { call: "KVM_CREATE_IRQCHIP", source: errno.into() };
                self.vm.create_irq_chip().map_err(failed)?;
            }
        }
        // Together: without the second, a message to APIC id 255 would go to every vCPU in x2APIC mode.
        let api = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        self.enable(X2APIC_API, api.into())?;
        self.takes_events.get_or_init(|| self.probe_irqfd());
        // Some entries of the full irqchip's table share a GSI with another.
        let shared = self.fixed_routes().count() as u32 - self.pins().len() as u32;
        Ok(Capacity { gsis: MAX_ROUTES - shared, ends: Ends::Reported })
    }

    fn pins(&self) -> Vec<Arc<dyn Pin>> {
        let pin = |gsi| Arc::new(KvmPin { vm: self.vm.clone(), gsi }) as Arc<dyn Pin>;
        match self.irqchip {
            Irqchip::Split => Vec::new(),
            Irqchip::Full => (0..KVM_IOAPIC_NUM_PINS).map(pin).collect(),
        }
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        let (address, data) = interrupt.encode();
        let msi =
            kvm_msi { address_lo: address as u32, address_hi: (address >> 32) as u32, data, ..Default::default() };
        match self.vm.signal_msi(msi) {
            Ok(0) => Ok(Acceptance::Refused),
            Ok(_) => Ok(Acceptance::Accepted),
            Err(errno) if errno.errno() == NO_DESTINATION => Ok(Acceptance::Refused),
            Err(errno) => Err(HvError::Call { call: "KVM_SIGNAL_MSI", source: errno.into() }),
        }
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        let count = self.fixed_routes().count() + routes.len();
        let mut table = self.table.0.lock();
        // Mostly the table changes without growing, and new pages for it would cost as much as filling it.
        if table.as_ref().is_none_or(|table| table.as_slice().len() != count) {
            let too_many = |_| HvError::TooManyRoutes { routes: count, most: MAX_ROUTES as usize };
            *table = Some(KvmIrqRouting::new(count).map_err(too_many)?);
        }
        let Some(table) = &mut *table else { return Ok(()) };
        for (to, from) in table.as_mut_slice().iter_mut().zip(self.fixed_routes().chain(routes.iter().map(entry))) {
            *to = from;
        }
        let failed = |errno: kvm_ioctls::Error| HvError::Call { call: "KVM_SET_GSI_ROUTING", source: errno.into() };
        self.vm.set_gsi_routing(table).map_err(failed)
    }

    fn attach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        if self.takes_events.get() != Some(&true) {
            return Err(HvError::Missing {
                capability: "an irqfd that takes its events",
                remedy: "this needs Linux 5.11",
            });
        }
        let failed = |errno: kvm_ioctls::Error| HvError::Call { call: "KVM_IRQFD", source: errno.into() };
        self.vm.register_irqfd(eventfd, gsi).map_err(failed)
    }

    fn attach_line(&self, gsi: u32, trigger: &EventFd, resample: &EventFd) -> Result<(), HvError> {
        if self.irqchip == Irqchip::Split {
            // Whatever KVM_CAP_IRQFD_RESAMPLE says: EINVAL (Linux 6.18).
            return Err(HvError::Missing {
                capability: "irqfd with resampling",
                remedy: "lines end in IOAPICs of ours instead",
            });
        }
        let failed = |errno: kvm_ioctls::Error| HvError::Call { call: "KVM_IRQFD (resample)", source: errno.into() };
        self.vm.register_irqfd_with_resample(trigger, resample, gsi).map_err(failed)
    }

    fn detach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        let failed = |errno: kvm_ioctls::Error| HvError::Call { call: "KVM_IRQFD (deassign)", source: errno.into() };
        self.vm.unregister_irqfd(eventfd, gsi).map_err(failed)
    }
}

impl Kvm {
    /// Before Linux 5.11 an event that the kernel had injected stayed in the eventfd, where userspace would read and deliver
    /// it a second time. Tried out on a GSI that has no route yet.
    fn probe_irqfd(&self) -> bool {
        let try_out = || -> Result<bool, io::Error> {
            let eventfd = EventFd::new(EFD_NONBLOCK)?;
            self.vm.register_irqfd(&eventfd, MAX_ROUTES - 1).map_err(io::Error::from)?;
            eventfd.write(1)?;
            let taken = eventfd.read().is_err();
            self.vm.unregister_irqfd(&eventfd, MAX_ROUTES - 1).map_err(io::Error::from)?;
            Ok(taken)
        };
        try_out().unwrap_or(false)
    }

    /// The routes that the kernel's own chips start with, which every new table must hold as well: GSI n is
    /// IOAPIC pin n, and PIC input n where there is one (Linux `arch/x86/kvm/irq.c`, default_routing).
    fn fixed_routes(&self) -> impl Iterator<Item = kvm_irq_routing_entry> {
        let gsis = match self.irqchip {
            Irqchip::Split => 0..0,
            Irqchip::Full => 0..KVM_IOAPIC_NUM_PINS,
        };
        gsis.flat_map(|gsi| {
            let pic = match gsi {
                0..8 => Some((KVM_IRQCHIP_PIC_MASTER, gsi)),
                8..16 => Some((KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
                _ => None,
            };
            [Some((KVM_IRQCHIP_IOAPIC, gsi)), pic].into_iter().flatten().map(move |(irqchip, pin)| {
                let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
                entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
                entry
            })
        })
    }
}

fn entry(route: &Route) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: route.gsi, ..Default::default() };
    match route.target {
        Target::Interrupt(interrupt) => {
            let (address, data) = interrupt.encode();
            entry.type_ = KVM_IRQ_ROUTING_MSI;
            entry.u.msi = kvm_irq_routing_msi {
                address_lo: address as u32,
                address_hi: (address >> 32) as u32,
                data,
                ..Default::default()
            };
        }
        Target::Opaque(OpaqueTarget { kind, flags, data }) => {
            entry.type_ = kind;
            entry.flags = flags;
            entry.u.pad = data;
        }
    }
    entry
}

/// A pin of the kernel's own chips: IOAPIC and PIC together, by the table's routes.
struct KvmPin {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl Pin for KvmPin {
    fn set(&self, level: Level) {
        if let Err(error) = self.vm.set_irq_line(self.gsi, level == Level::High) {
            tracing::error!(gsi = self.gsi, %error, "KVM_IRQ_LINE");
        }
    }
}
