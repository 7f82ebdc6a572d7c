//! How a [`Fabric`] is put together: the parts that it is given, and in which order they are set up.

use super::core::{CookieIndex, Core, Counters};
use super::ioapic::{IoapicPin, IoapicPort};
use super::pic::{Kick, PicPort};
use super::resample::ForeignResampler;
use super::translation::Translation;
use super::vtd::VtdPort;
use super::{Fabric, IOAPIC_ADDRESS, Inner, PendingExternal, PicSnapshot, PlacedIoapic, PlacedVtd, Promotion};
use crate::chip::ioapic::{Ioapic, WINDOW_SIZE};
use crate::chip::pic::{self as pic_chip, Pic};
use crate::hv::{Ends, HvError, Hypervisor};
use crate::line::{Line, Pin};
use crate::memory::Memory;
use crate::record::{Begins, Tapes};
use crate::remap::vtd::{Faults, Vtd, WINDOW_SIZE as VTD_WINDOW_SIZE};
use crate::remap::{Remapper, Untranslated};
use crate::route::{Cost, GsiTable};
use crate::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

/// Where the second and further IOAPICs are, from the one before them.
const IOAPIC_STEP: u64 = 0x1000;

/// Collects the parts of a [`Fabric`].
#[must_use = "nothing is set up before build"]
pub struct FabricBuilder {
    hypervisor: Box<dyn Hypervisor>,
    ioapics: Vec<(u64, Ioapic)>,
    pic: Option<(Pic, Vec<PendingExternal>)>,
    kick: Option<Kick>,
    memory: Option<Arc<dyn Memory>>,
    remapping: Remapping,
    promotion: Promotion,
    tapes: Tapes,
}

enum Remapping {
    Remapper(Box<dyn Remapper>),
    Vtd(u64, Box<(Vtd, Faults)>),
}

/// Why a fabric could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The hypervisor refused.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
    /// Two chips answer to the same addresses.
    #[error("the registers at {0:#x} and {1:#x} overlap: an IOAPIC takes {WINDOW_SIZE:#x} bytes, a VT-d unit a page")]
    Overlap(u64, u64),
    /// A VT-d unit without the memory that its tables are in.
    #[error("a VT-d unit needs the guest's memory: FabricBuilder::memory")]
    NoMemory,
    /// A PIC, and nobody who gets a vCPU out of the guest for it.
    #[error("a PIC needs a kick: its interrupts are taken by a vCPU that is out of the guest")]
    NoKick,
    /// A PIC of ours beside the hypervisor's own.
    #[error("the hypervisor has a PIC of its own; use the split irqchip")]
    OtherPic,
}

impl FabricBuilder {
    pub(super) fn new(hypervisor: Box<dyn Hypervisor>) -> Self {
        Self {
            hypervisor,
            ioapics: Vec::new(),
            pic: None,
            kick: None,
            memory: None,
            remapping: Remapping::Remapper(Box::new(Untranslated)),
            promotion: Promotion::default(),
            tapes: Tapes::default(),
        }
    }

    /// Adds an IOAPIC. The first is at [`IOAPIC_ADDRESS`] and its pins are the GSIs from 0 on; each further one is 4 KiB
    /// behind the one before it, and so are its GSIs.
    pub fn ioapic(self, ioapic: Ioapic) -> Self {
        let address = self.ioapics.last().map_or(IOAPIC_ADDRESS, |(last, _)| last.saturating_add(IOAPIC_STEP));
        self.ioapic_at(address, ioapic)
    }

    /// Adds an IOAPIC at a guest-physical address of the VMM's choice.
    pub fn ioapic_at(mut self, address: u64, ioapic: Ioapic) -> Self {
        self.ioapics.push((address, ioapic));
        self
    }

    /// Adds a PIC: GSIs 0 to 15 but 2 are its inputs as well as pins of the first IOAPIC. Its INTR ends at LINT0 of the boot
    /// processor, which is that of APIC id 0. It takes a [kick](Self::kick), and [`Fabric::before_run`] in each vCPU's loop.
    pub fn pic(mut self, pic: Pic) -> Self {
        self.pic = Some((pic, Vec::new()));
        self
    }

    /// The PIC of a machine that was saved, instead of [`pic`](Self::pic).
    pub fn restore_pic(mut self, saved: &PicSnapshot) -> Self {
        self.pic = Some((Pic::restore(&saved.chip), saved.pending.clone()));
        self
    }

    /// How to fetch a vCPU out of the guest, by its APIC id; [`EVERY_VCPU`](crate::hv::EVERY_VCPU) stands for all of them.
    /// Called from any thread, with no lock of the fabric's held, and at the vCPU's expense: about once for each interrupt of
    /// the PIC's.
    ///
    /// What it must guarantee: after it was called, the vCPU's thread calls [`Fabric::before_run`] before it is in the guest
    /// again, or, if it is in the guest or in HLT, leaves it and does so. A signal alone is lost when it comes between
    /// `before_run` and KVM_RUN; one whose handler sets `kvm_run.immediate_exit` is not (Linux
    /// `Documentation/virt/kvm/api.rst`). And `before_run` must see what was done before the kick, which the thread that
    /// receives a signal does; a flag of the VMM's own is cleared by a swap, not by a store.
    ///
    /// For an id that no vCPU has it does nothing. Nor need it on the vCPU's own thread, which then is on its way to
    /// `before_run`, or in it: that looks again after whatever it calls. Between `before_run` and KVM_RUN a vCPU's thread
    /// touches no line.
    pub fn kick(mut self, kick: impl Fn(u32) + Send + Sync + 'static) -> Self {
        self.kick = Some(Box::new(kick));
        self
    }

    /// The guest's memory: messages whose address is not in the interrupt window are written there, and a VT-d unit has its
    /// tables and its queue there. Without it such messages are dropped and counted.
    pub fn memory(mut self, memory: impl Memory + 'static) -> Self {
        self.memory = Some(Arc::new(memory));
        self
    }

    /// Messages go through `remapper`. The VMM passes the guest's invalidations on to [`Fabric::invalidate`]. There is one
    /// remapper, and the last call counts.
    pub fn remapper(mut self, remapper: impl Remapper + 'static) -> Self {
        self.remapping = Remapping::Remapper(Box::new(remapper));
        self
    }

    /// Messages go through a VT-d unit whose register page is at `address`; the guest's invalidations come in there. For a
    /// machine that was saved, the guest's memory must be what it was: what the guest had asked for is done by
    /// [`build`](Self::build).
    pub fn vtd(mut self, address: u64, registers: Vtd, faults: Faults) -> Self {
        self.remapping = Remapping::Vtd(address, Box::new((registers, faults)));
        self
    }

    /// When vectors with an eventfd get a route and an irqfd.
    pub const fn promotion(mut self, promotion: Promotion) -> Self {
        self.promotion = promotion;
        self
    }

    /// Records what goes into each state machine of the fabric and what comes out. One recorder may be given to several fabrics.
    #[cfg(feature = "record")]
    pub fn record(mut self, recorder: &crate::record::Recorder) -> Self {
        self.tapes = recorder.tapes();
        self
    }

    /// Sets the virtual machine up, before its first vCPU is made: on KVM this enables the split irqchip.
    pub fn build(self) -> Result<Fabric, BuildError> {
        let Self { hypervisor, ioapics, pic, kick, memory, remapping, promotion, tapes } = self;
        let mut windows: Vec<_> = ioapics.iter().map(|(address, _)| (*address, WINDOW_SIZE)).collect();
        if let Remapping::Vtd(address, _) = remapping {
            windows.push((address, VTD_WINDOW_SIZE));
        }
        if let Some((one, other)) = overlap(windows) {
            return Err(BuildError::Overlap(one, other));
        }
        let (remapper, vtd): (Box<dyn Remapper>, _) = match remapping {
            Remapping::Remapper(remapper) => (remapper, None),
            Remapping::Vtd(address, unit) => {
                let (registers, faults) = *unit;
                let memory = memory.clone().ok_or(BuildError::NoMemory)?;
                let begins = || Begins::Vtd { state: Some(Box::new((registers.save(), faults.save()))) };
                let tape = tapes.tape(begins);
                let port = Arc::new(VtdPort::new(registers, faults, memory, tape));
                (Box::new(port.clone()), Some(PlacedVtd { address, port }))
            }
        };
        let pins: usize = ioapics.iter().map(|(_, chip)| chip.pins()).sum();
        let capacity = hypervisor.start(u32::try_from(pins).unwrap_or(u32::MAX))?;
        let foreign = hypervisor.pins();
        let pic = match (pic, kick) {
            (Some(_), _) if !foreign.is_empty() => return Err(BuildError::OtherPic),
            (Some(_), None) => return Err(BuildError::NoKick),
            (Some((chip, pending)), Some(kick)) => {
                let tape = tapes.tape(|| Begins::Pic { state: Some(chip.save()) });
                Some(Arc::new(PicPort::new(chip, pending, kick, tape)))
            }
            (None, _) => None,
        };
        let translation = Translation::new(remapper);
        let cookies = if translation.is_fixed() { CookieIndex::unused() } else { CookieIndex::new() };
        let core = Arc::new(Core {
            hypervisor,
            memory,
            translation,
            cookies,
            table: Arc::new(GsiTable::new((foreign.len() + pins) as u32, capacity.gsis)),
            pic,
            promotion,
            promotes: AtomicBool::new(((foreign.len() + pins) as u32) < capacity.gsis),
            hot: Mutex::default(),
            // Linux 6.18, a few irqfds.
            detach_cost: Cost::from_nanos(80_000),
            detaching: AtomicU64::new(0),
            dispatcher: OnceLock::new(),
            counters: Counters::default(),
            tapes,
        });
        let foreign_line = |(gsi, pin)| Line::to_foreign_pin(pin, ForeignResampler::new(&core, gsi));
        let mut lines: Vec<_> = (0..).zip(foreign).map(foreign_line).collect();
        let mut placed = Vec::with_capacity(ioapics.len());
        let mut restored = None;
        for (address, chip) in ioapics {
            let chip = match capacity.ends {
                Ends::Reported => chip,
                Ends::Hidden => chip.with_edges_only(),
            };
            let first_gsi = lines.len() as u32;
            let count = chip.pins() as u8;
            let begins = || Begins::Ioapic { gsi: first_gsi, ends: capacity.ends, state: Some(chip.save()) };
            let tape = core.tapes.tape(begins);
            let port = Arc::new(IoapicPort::new(core.clone(), first_gsi, chip, tape));
            restored = restored.max(port.park_restored());
            lines.extend((0..count).map(|pin| {
                let ioapic: Arc<dyn Pin> = Arc::new(IoapicPin { port: port.clone(), pin });
                core.line(first_gsi + u32::from(pin), Some(ioapic))
            }));
            placed.push(PlacedIoapic { address, first_gsi, port });
        }
        if core.pic.is_some() {
            lines.extend((lines.len() as u32..pic_chip::INPUTS.into()).map(|gsi| core.line(gsi, None)));
        }
        for (gsi, line) in (0..).zip(&lines) {
            line.record(core.tapes.tape(|| Begins::Line { gsi }));
        }
        if let Some(since) = restored {
            core.table.publish(since, &*core.hypervisor)?;
        }
        let inner = Inner { core, ioapics: placed.into(), ends: capacity.ends, lines: lines.into(), vtd };
        let inner = Arc::new(inner);
        if let Some(vtd) = &inner.vtd {
            vtd.port.run(&inner);
        }
        Ok(Fabric(inner))
    }
}

/// Two windows, each of an address and a size, that have an address in common.
fn overlap(mut windows: Vec<(u64, u64)>) -> Option<(u64, u64)> {
    windows.sort_unstable();
    windows.windows(2).find_map(|pair| match *pair {
        [(one, size), (other, _)] if other - one < size => Some((one, other)),
        _ => None,
    })
}
