//! The fabric: the parts put together for one virtual machine.
//!
//! Faces that do not mix. A *device* holds [`LineSource`](crate::line::LineSource)s and [`MsiVector`]s. The *guest* comes
//! in through the VMM's exit handlers: [`Fabric::mmio_read`] and [`Fabric::mmio_write`], their like for ports,
//! [`MsiVectors::program`], and [`Fabric::end_of_interrupt`]. A *vCPU's thread* calls [`Fabric::before_run`] where there is a
//! PIC. The VMM sets up with a [`FabricBuilder`].
//!
//! Locks are taken in one order: line → translation (shared) → chip or vector → GSI table. The PIC's is a leaf, and so
//! is that of a VT-d unit's faults; its registers' is held with no other but that. A chip's and a vector's lock
//! is held across the one system call that delivers, which is what makes "nothing stale" true; none but the line's is
//! held across a table commit.
//!
//! A line's lock is held across its pins' [`set`](crate::line::Pin::set), so that two sources cannot overtake each other, and across the whole end of an
//! interrupt: its resampling sources are lowered, the chip is told what is left and forgets what was in service, what still stands is
//! delivered again. Nobody can raise and be delivered in the middle of that and be lowered by an end that is older. Whom it
//! concerns is told afterwards: callbacks run with no lock held, of a resampling source as of any other. A trigger that the
//! dispatcher reads has a lock of its own, taken before its line's, so that a pair that was dropped raises nothing any more.
//!
//! The dispatcher is one thread. It waits for eventfds (of cold vectors, of triggers, of the ends that a hypervisor's own chips
//! report) and for deadlines (promotion, the storm brake, a commit that failed); nothing else in the fabric has a timer.

mod builder;
#[cfg(feature = "vm-device")]
mod bus;
mod core;
#[cfg(not(loom))]
mod dispatcher;
#[cfg(loom)]
#[path = "model/dispatcher.rs"]
mod dispatcher;
mod ioapic;
#[cfg(all(test, loom))]
mod model;
mod msi;
mod pic;
mod promotion;
mod report;
mod resample;
mod routes;
mod translation;
mod vector;
mod vtd;

pub use builder::{BuildError, FabricBuilder};
pub use msi::{MsiVector, MsiVectors, Program, VectorIndexError, VectorState};
pub use pic::{PendingExternal, PicSnapshot};
pub use promotion::Promotion;
pub use report::{LineStats, PinStats, Stats, VectorStats};
pub use resample::{LineEventfds, LineEventfdsError};
pub use routes::{OpaqueRoute, RouteError};

use crate::chip::ioapic::{IoapicState, WINDOW_SIZE, Written};
use crate::chip::pic as pic_chip;
use crate::hv::{Ends, HvError, Hypervisor, OpaqueTarget, Vcpu};
use crate::line::{self, Acknowledged, EdgeSource, Line};
use crate::msg::RequesterId;
use crate::remap::Entries;
use crate::remap::vtd::{FaultsState, VtdState, WINDOW_SIZE as VTD_WINDOW_SIZE};
use core::{Core, Counters};
use ioapic::IoapicPort;
use pic::{InputSet, PicPort};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use vtd::VtdPort;

/// Where the first IOAPIC of a PC is; the second and further ones follow at 4 KiB steps.
pub const IOAPIC_ADDRESS: u64 = 0xfec0_0000;

/// The interrupt fabric of one virtual machine. Clones are handles to the same fabric.
///
/// ```
/// use irqfabric::chip::ioapic::Ioapic;
/// use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS};
/// use irqfabric::hv::Sim;
/// use irqfabric::msg::RequesterId;
/// use std::sync::{Arc, OnceLock};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let machine = Arc::new(Sim::new(2));
/// let fabric = Fabric::builder(machine.clone()).ioapic(Ioapic::default()).build()?;
/// let cpu = &machine.vcpus()[1];
/// cpu.enable();
///
/// // The guest programs pin 4 of the IOAPIC: vector 0x31, edge, to APIC id 1.
/// for (index, value) in [(0x19u32, 1u32 << 24), (0x18, 0x31)] {
///     fabric.mmio_write(IOAPIC_ADDRESS, &index.to_le_bytes());
///     fabric.mmio_write(IOAPIC_ADDRESS + 0x10, &value.to_le_bytes());
/// }
/// // A device sends an edge, another a message.
/// fabric.line(4)?.source("serial").pulse();
/// assert_eq!(cpu.acknowledge(), Some(0x31));
/// let vectors = fabric.msi_vectors(RequesterId::new(0, 3, 0), 1);
/// vectors.program(0, 0xfee0_1000, 0x41)?;
/// vectors[0].signal();
/// assert_eq!(cpu.acknowledge(), Some(0x41));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Fabric(Arc<Inner>);

struct Inner {
    core: Arc<Core>,
    ioapics: Box<[PlacedIoapic]>,
    ends: Ends,
    /// The lines by GSI: those of the hypervisor's own chip, or of our IOAPICs' pins, one chip's after the other's.
    lines: Box<[Line]>,
    vtd: Option<PlacedVtd>,
}

struct PlacedVtd {
    address: u64,
    port: Arc<VtdPort>,
}

struct PlacedIoapic {
    address: u64,
    first_gsi: u32,
    port: Arc<IoapicPort>,
}

/// A GSI that the machine does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GsiError {
    /// It is beyond the last pin.
    #[error("GSI {gsi} is not one of the machine's: it has lines for GSIs 0 to {last}")]
    OutOfRange {
        /// What was asked for.
        gsi: u32,
        /// The last one there is.
        last: u32,
    },
    /// Nobody would learn of the end of its interrupts.
    #[error(
        "GSI {gsi} has no level line: the hypervisor hides ends of interrupts; there are edge sources and message vectors"
    )]
    NoLevel {
        /// What was asked for.
        gsi: u32,
    },
    /// There are no pins at all.
    #[error("GSI {gsi} is not one of the machine's: it has no IOAPIC")]
    NoPins {
        /// What was asked for.
        gsi: u32,
    },
}

impl Fabric {
    /// A fabric on `hypervisor`, to be given its parts.
    pub fn builder(hypervisor: impl Hypervisor + 'static) -> FabricBuilder {
        FabricBuilder::new(Box::new(hypervisor))
    }

    // Devices.

    /// The line of a GSI. Take a [source](Line::source) of it for each device.
    ///
    /// There is none where the hypervisor [hides](Ends::Hidden) the ends of interrupts: a level that still stands could not be
    /// delivered again. Devices that need no level take an [`edge_source`](Self::edge_source).
    pub fn line(&self, gsi: u32) -> Result<Line, GsiError> {
        let line = self.0.line(gsi)?;
        match self.0.ends {
            Ends::Reported => Ok(line.clone()),
            Ends::Hidden => Err(GsiError::NoLevel { gsi }),
        }
    }

    /// A source of a GSI's line that sends edges and nothing else, on any hypervisor. The name is for reports only.
    pub fn edge_source(&self, gsi: u32, name: impl Into<String>) -> Result<EdgeSource, GsiError> {
        Ok(EdgeSource::new(self.0.line(gsi)?, name.into()))
    }

    /// A pair of eventfds that are a [resampling source](Line::resampling_source) of a GSI's line: what VFIO and vhost take for a level
    /// interrupt. The name is for reports, in which there is nothing of a pair that a hypervisor's own chips take.
    ///
    /// With IOAPICs of ours the fabric's thread reads `trigger` and raises the line: about as long as a wake-up, a read and the
    /// delivery take. In a hypervisor's own chips nothing of ours is on the way.
    ///
    /// **Whoever holds a descriptor is trusted not to make it block.** Both are non-blocking, but O_NONBLOCK belongs to the open
    /// file, not to the descriptor: a process that was sent one (SCM_RIGHTS) can clear it, and then a read of the fabric's thread, or
    /// a write by the vCPU that ends the interrupt, can wait for that process. What an untrusted device process gets is an eventfd
    /// of its own; a thread of the VMM's that may wait carries its events over.
    ///
    /// ```
    /// # use irqfabric::{chip::ioapic::Ioapic, fabric::Fabric, hv::Sim};
    /// # let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).build()?;
    /// let intx = fabric.line_eventfds(16, "vfio")?;
    /// // VFIO_DEVICE_SET_IRQS with VFIO_IRQ_SET_ACTION_TRIGGER takes the first, with VFIO_IRQ_SET_ACTION_UNMASK the second.
    /// let (trigger, resample) = (intx.trigger(), intx.resample());
    /// trigger.write(1)?;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn line_eventfds(&self, gsi: u32, name: impl Into<String>) -> Result<LineEventfds, LineEventfdsError> {
        let line = self.line(gsi)?;
        LineEventfds::new(&self.0.core, &line, gsi, name.into())
    }

    /// `count` message vectors of one device. Neither a GSI nor a system call is spent on them.
    pub fn msi_vectors(&self, requester: RequesterId, count: usize) -> MsiVectors {
        MsiVectors::new(&self.0.core, requester, count)
    }

    // The guest.

    /// The guest reads. Returns whether the address is one of ours; if not, `data` is left alone.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> bool {
        if let Some((ioapic, offset)) = self.0.ioapic_at(address) {
            ioapic.port.read(offset, data);
        } else if let Some((vtd, offset)) = self.0.vtd_at(address) {
            vtd.read(offset, data);
        } else {
            return false;
        }
        true
    }

    /// The guest writes. Returns whether the address is one of ours.
    ///
    /// On return no delivery uses what the write replaced. A write that makes a pin deliver costs that system call, and
    /// for a level pin whose message is new a table commit; any other write to an IOAPIC costs none. A write to a VT-d unit
    /// performs what it asks for, as [`invalidate`](Self::invalidate) does, or the first part of it.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> bool {
        if let Some((ioapic, offset)) = self.0.ioapic_at(address) {
            match ioapic.port.write(offset, data) {
                Written::EndOfInterrupt(vector) => self.0.end_of_interrupt(ioapic, vector),
                Written::Entry { pin, ended: true } => self.0.line_of(ioapic, pin).end_of_interrupt(|_| true),
                Written::Entry { .. } | Written::Nothing => {}
            }
            self.0.ring();
        } else if let Some((vtd, offset)) = self.0.vtd_at(address) {
            vtd.write(offset, data, &self.0);
            self.0.ring();
        } else {
            return false;
        }
        true
    }

    /// The guest reads from a port. Returns whether it is one of ours; if not, `data` is left alone.
    ///
    /// `data` is one access: of several bytes, each is at the port after the one before, as the bus splits it. A string
    /// instruction (`rep insb`), for which KVM hands over all its accesses in one exit, is a call for each of them.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) -> bool {
        let found = self.0.pic_at(port);
        if let Some(pic) = found {
            pic.read(port, data, &self.0.lines);
            pic.ring();
        }
        found.is_some()
    }

    /// The guest writes to a port, by one access as in [`pio_read`](Self::pio_read). Returns whether it is one of ours. No system
    /// call but the kick that may follow.
    pub fn pio_write(&self, port: u16, data: &[u8]) -> bool {
        let found = self.0.pic_at(port);
        if let Some(pic) = found {
            let acknowledged = self.0.lower_resampling(pic.ending(port, data));
            pic.write(port, data);
            pic.ring();
            line::tell(&acknowledged);
        }
        found.is_some()
    }

    /// A vCPU has ended `vector`: what its loop calls at KVM_EXIT_IOAPIC_EOI, on the vCPU's own thread and before the vCPU
    /// runs again (Linux commit 7543a635).
    ///
    /// No system call if the lines concerned are low, otherwise one each.
    pub fn end_of_interrupt(&self, vector: u8) {
        for ioapic in &self.0.ioapics {
            self.0.end_of_interrupt(ioapic, vector);
        }
    }

    /// Drops what is known about some entries of the remapping table: what the guest's invalidation asks for. On return no
    /// delivery uses them as they were.
    ///
    /// Waits for deliveries under way, and for vectors of these entries that another thread is changing or dropping until the
    /// kernel knows. Vectors that come out the same cost nothing; changed ones one commit together, or
    /// a detach each where that is cheaper. A level that was blocked or that nobody took is delivered now if its entry lets it.
    ///
    /// Hold no lock that the [`Remapper`](crate::remap::Remapper) takes to translate: this waits for those who translate.
    pub fn invalidate(&self, entries: &Entries) {
        self.0.invalidate(entries);
    }

    // A vCPU's thread.

    /// A vCPU is about to enter the guest: what its loop calls before each KVM_RUN, on the vCPU's own thread, where there is a
    /// PIC. This is where the PIC is acknowledged, for a vCPU that takes the vector at once. One that cannot yet leaves the
    /// guest when it can (KVM_EXIT_IRQ_WINDOW_OPEN), which the loop answers by going round.
    ///
    /// The loop clears `kvm_run.immediate_exit` before the call, not after it: a kick that comes meanwhile must not be
    /// forgotten.
    ///
    /// One load while nobody has anything to take; nothing without a PIC.
    pub fn before_run(&self, vcpu: &mut (impl Vcpu + ?Sized)) -> Result<(), HvError> {
        match &self.0.core.pic {
            Some(pic) => pic.before_run(vcpu, &self.0.lines),
            None => Ok(()),
        }
    }

    // The VMM.

    /// Adds an entry of the VMM's own to the hypervisor's table, on a GSI of its own, by one commit. It is there until
    /// the handle is dropped.
    pub fn opaque_route(&self, target: OpaqueTarget) -> Result<OpaqueRoute, RouteError> {
        OpaqueRoute::new(&self.0.core, target)
    }

    /// The IOAPICs in the order in which they were added: where the guest finds each, its first GSI and its state.
    pub fn ioapics(&self) -> impl Iterator<Item = (u64, u32, IoapicState)> + '_ {
        self.0.ioapics.iter().map(|ioapic| (ioapic.address, ioapic.first_gsi, ioapic.port.save()))
    }

    /// The PIC's state, and what is on its way from it: for [`FabricBuilder::restore_pic`]. `None` if there is none.
    ///
    /// Not in it is a vector that was given to a vCPU: the VMM saves its vCPUs after [`before_run`](Self::before_run) and one
    /// more entry each.
    pub fn pic(&self) -> Option<PicSnapshot> {
        self.0.core.pic.as_ref().map(|pic| pic.save())
    }

    /// The VT-d unit, if there is one: where the guest finds it, its registers and its faults. Stop the vCPUs first; this waits
    /// until what they have asked for is done.
    pub fn vtd(&self) -> Option<(u64, VtdState, FaultsState)> {
        let PlacedVtd { address, port } = self.0.vtd.as_ref()?;
        let (registers, faults) = port.save();
        Some((*address, registers, faults))
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        let Counters { memory_writes, dropped, blocked, host_errors, wakeups, .. } = &self.0.core.counters;
        let Counters { promotions, evictions, shortages, brakes, panics, .. } = &self.0.core.counters;
        let lines = (0..).zip(&self.0.lines).filter_map(|(gsi, line)| {
            let sources = line.stats();
            let pin = self.0.pin_stats(gsi);
            let acknowledged = self.0.core.pic.as_ref().map_or(0, |pic| pic.acknowledged(gsi));
            (!sources.is_empty()).then_some(LineStats { gsi, sources, pin, acknowledged })
        });
        Stats {
            lines: lines.collect(),
            commits: self.0.core.table.commits(),
            entry_writes: self.0.ioapics.iter().map(|ioapic| ioapic.port.entry_writes()).sum(),
            memory_writes: memory_writes.load(Relaxed),
            dropped: dropped.load(Relaxed),
            blocked: blocked.load(Relaxed),
            wakeups: wakeups.load(Relaxed),
            promotions: promotions.load(Relaxed),
            evictions: evictions.load(Relaxed),
            shortages: shortages.load(Relaxed),
            brakes: brakes.load(Relaxed),
            panics: panics.load(Relaxed),
            host_errors: host_errors.load(Relaxed),
        }
    }
}

impl Inner {
    fn pic_at(&self, port: u16) -> Option<&PicPort> {
        self.core.pic.as_deref().filter(|_| pic_chip::PORTS.contains(&port))
    }

    /// The interrupts of these inputs are about to be ended. The answer is whom to tell when they are.
    fn lower_resampling(&self, inputs: InputSet) -> Vec<Acknowledged> {
        inputs.iter().filter_map(|input| self.lines.get(usize::from(input))).flat_map(Line::lower_resampling).collect()
    }

    /// Kicks whom what was done concerns. No lock is held.
    fn ring(&self) {
        if let Some(pic) = &self.core.pic {
            pic.ring();
        }
    }

    fn ioapic_at(&self, address: u64) -> Option<(&PlacedIoapic, u64)> {
        self.ioapics.iter().find_map(|ioapic| {
            let offset = address.checked_sub(ioapic.address)?;
            (offset < WINDOW_SIZE).then_some((ioapic, offset))
        })
    }

    fn vtd_at(&self, address: u64) -> Option<(&VtdPort, u64)> {
        let PlacedVtd { address: start, port } = self.vtd.as_ref()?;
        let offset = address.checked_sub(*start)?;
        (offset < VTD_WINDOW_SIZE).then_some((port, offset))
    }

    /// See [`Fabric::invalidate`].
    fn invalidate(&self, entries: &Entries) {
        promotion::invalidate(&self.core, entries);
        for ioapic in &self.ioapics {
            for pin in ioapic.port.recovered(entries) {
                self.line_of(ioapic, pin).drive_again();
            }
        }
    }

    fn line(&self, gsi: u32) -> Result<&Line, GsiError> {
        self.lines.get(gsi as usize).ok_or(match self.lines.len().checked_sub(1) {
            Some(last) => GsiError::OutOfRange { gsi, last: last as u32 },
            None => GsiError::NoPins { gsi },
        })
    }

    /// Ends the interrupts of `vector` at one chip, line by line.
    fn end_of_interrupt(&self, ioapic: &PlacedIoapic, vector: u8) {
        for pin in ioapic.port.ending(vector) {
            self.line_of(ioapic, pin).end_of_interrupt(|left| ioapic.port.end(pin, vector, left));
        }
    }

    fn line_of(&self, ioapic: &PlacedIoapic, pin: u8) -> &Line {
        &self.lines[ioapic.first_gsi as usize + usize::from(pin)]
    }

    fn pin_stats(&self, gsi: u32) -> PinStats {
        let ioapic = self.ioapics.iter().rfind(|ioapic| ioapic.first_gsi <= gsi);
        ioapic.map(|ioapic| ioapic.port.stats((gsi - ioapic.first_gsi) as u8)).unwrap_or_default()
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
