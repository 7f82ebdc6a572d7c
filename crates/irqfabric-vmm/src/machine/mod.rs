//! What every guest of ours needs: a KVM virtual machine with memory, vCPUs, an interrupt fabric and a bus.
//!
//! [`Machine::new`] makes all of it from a [`Config`]. The caller then puts devices on the [bus](Machine::register_pio) and
//! registers into the [vCPUs](Machine::vcpus), and [starts](Machine::start) it: one thread a vCPU, until somebody throws the
//! [stop switch](Machine::stop_switch). [`Running::wait`] then has every thread out of the guest and joined, whatever
//! happened, and says [what the vCPUs did](Stopped).

pub mod cpu;
pub mod exits;
mod host;
mod kick;
pub mod stop;
mod vcpu;

pub use exits::{ExitKind, Exits};
pub use host::Host;
pub use stop::{Stop, StopSwitch};
pub use vcpu::Crash;

use crate::error::Error;
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::chip::pic::Pic;
use irqfabric::fabric::{Fabric, Promotion, Stats};
use irqfabric::hv::{Calls, Counted, Kvm};
use irqfabric::msg::DestinationFormat;
use irqfabric::record::Recorder;
use irqfabric::remap::ExtDest;
use irqfabric::remap::vtd::{Faults, Vtd};
use kick::Kicker;
use kvm_bindings::{kvm_lapic_state, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use std::collections::HashSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, DevicePio};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Guest memory below 4 GiB ends here at the latest: what is above belongs to devices.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;
/// Where the rest of it goes on.
pub const HIGH_MEMORY_START: u64 = 1 << 32;

/// Pages that Intel's KVM uses for itself on processors without unrestricted guests (`Documentation/virt/kvm/api.rst`,
/// KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR): four in all, far from everything else.
const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
const KVM_TSS: usize = 0xfffb_d000;

/// What a machine is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of memory, from address 0 on; what does not fit below [`LOW_MEMORY_END`] is at [`HIGH_MEMORY_START`].
    pub memory: u64,
    /// The APIC ids of its vCPUs. Id 0 is the boot processor and must be the first; KVM starts with it.
    pub apic_ids: Vec<u32>,
    /// Whose IOAPIC the lines end in.
    pub irqchip: Irqchip,
    /// When vectors with an eventfd become hot.
    pub promotion: Promotion,
    /// Where the register page of a VT-d unit is, if there is to be one that messages go through.
    pub vtd: Option<u64>,
}

/// Whose interrupt controllers a machine has.
#[derive(Clone, Debug)]
pub enum Irqchip {
    /// Local APICs in KVM, these IOAPICs in the fabric.
    Split(Vec<Ioapic>),
    /// The same, and a PIC in the fabric.
    SplitWithPic(Vec<Ioapic>),
    /// KVM's own IOAPIC of 24 pins and its PIC as well.
    Kernel,
}

/// A virtual machine that does not run yet.
pub struct Machine {
    // Dropped first: nothing of the guest's is touched once its vCPUs are gone.
    vcpus: Vec<VcpuFd>,
    apic_ids: Vec<u32>,
    bus: IoManager,
    fabric: Fabric,
    kicker: Arc<Kicker>,
    hypervisor: Arc<Counted<Kvm>>,
    vm: Arc<VmFd>,
    memory: GuestMemoryMmap,
    stop: StopSwitch,
}

/// A virtual machine whose vCPU threads run. Dropping it stops them and waits for them.
pub struct Running {
    threads: Vec<JoinHandle<(Exits, Option<kvm_lapic_state>)>>,
    stop: StopSwitch,
    /// Held until the counts are taken: a source that is dropped takes its own with it.
    _bus: Arc<IoManager>,
    fabric: Fabric,
    hypervisor: Arc<Counted<Kvm>>,
    started: Instant,
}

/// A virtual machine that has run.
#[derive(Debug)]
pub struct Stopped {
    /// Why.
    pub stop: Stop,
    /// How long it ran.
    pub ran: Duration,
    /// What each vCPU came out of the guest for, in the order of [`Config::apic_ids`].
    pub exits: Vec<Exits>,
    /// What went through the fabric, by line and source.
    pub stats: Stats,
    /// The local APICs' registers as they were left, where KVM still gave them, in the same order.
    pub lapics: Vec<Option<kvm_lapic_state>>,
    /// What the fabric asked of KVM.
    pub calls: Calls,
}

impl Machine {
    /// Makes the machine: memory, irqchip, vCPUs with their CPUID, and an empty bus. What goes through its fabric is recorded, if
    /// there is somebody to.
    ///
    /// No register is set and no thread started. If and only if one of its APIC ids needs it, its vCPUs begin in x2APIC
    /// mode, and the guest is told of 15-bit message destinations (KVM_FEATURE_MSI_EXT_DEST_ID): not where a VT-d unit has
    /// destinations of 32.
    pub fn new(host: &Host, config: &Config, recorder: Option<&Recorder>) -> Result<Self, Error> {
        check_apic_ids(host, config)?;
        let memory = allocate(config.memory)?;
        let vm = Arc::new(host.kvm().create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?);
        vm.set_identity_map_address(KVM_IDENTITY_MAP).map_err(Error::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(KVM_TSS).map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
        give_memory(&vm, &memory)?;

        let destinations = destination_format(config);
        let (kvm, ioapics) = match &config.irqchip {
            Irqchip::Split(ioapics) | Irqchip::SplitWithPic(ioapics) => (Kvm::split(vm.clone()), ioapics.as_slice()),
            Irqchip::Kernel => (Kvm::full(vm.clone()), [].as_slice()),
        };
        let hypervisor = Arc::new(Counted::new(kvm));
        let kicker = Arc::new(Kicker::default());
        let mut builder = Fabric::builder(hypervisor.clone()).memory(memory.clone()).promotion(config.promotion);
        if matches!(config.irqchip, Irqchip::SplitWithPic(_)) {
            let kicker = kicker.clone();
            builder = builder.pic(Pic::default()).kick(move |apic_id| kicker.kick(apic_id));
        }
        if destinations == DestinationFormat::Fifteen {
            builder = builder.remapper(ExtDest);
        }
        if let Some(address) = config.vtd {
            builder = builder.vtd(address, Vtd::default(), Faults::default());
        }
        if let Some(recorder) = recorder {
            builder = builder.record(recorder);
        }
        let fabric = ioapics.iter().cloned().fold(builder, |builder, chip| builder.ioapic(chip)).build()?;

        let cpuid = cpu::Cpuid::new(host, &config.apic_ids, destinations)?;
        let vcpus = config.apic_ids.iter().map(|&apic_id| {
            let vcpu = vm.create_vcpu(apic_id.into()).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
            vcpu.set_cpuid2(&cpuid.of(apic_id)?).map_err(Error::kvm("KVM_SET_CPUID2"))?;
            if has_far_ids(&config.apic_ids) {
                cpu::enter_x2apic_mode(&vcpu)?;
            }
            Ok(vcpu)
        });
        let vcpus = vcpus.collect::<Result<_, Error>>()?;
        let (apic_ids, stop) = (config.apic_ids.clone(), StopSwitch::default());
        Ok(Self { vcpus, apic_ids, bus: IoManager::new(), fabric, kicker, hypervisor, vm, memory, stop })
    }

    /// The interrupt fabric: lines and vectors for devices, counts for reports.
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// The guest's memory. Clones are the same memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The vCPUs in the order of [`Config::apic_ids`]. Those but the first wait for INIT and SIPI unless the caller
    /// says otherwise (KVM_SET_MP_STATE).
    pub fn vcpus(&self) -> &[VcpuFd] {
        &self.vcpus
    }

    /// The virtual machine itself: ioeventfds, devices of the kernel's.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// Ends the run: for devices that power off or reset, signal handlers, and tests.
    pub fn stop_switch(&self) -> &StopSwitch {
        &self.stop
    }

    /// Puts a device at ports `base..base + size`.
    ///
    /// A string instruction arrives as one slice that holds all its elements: kvm-ioctls merges element size and count.
    pub fn register_pio(
        &mut self,
        base: u16,
        size: u16,
        device: Arc<dyn DevicePio + Send + Sync>,
    ) -> Result<(), Error> {
        let range = PioRange::new(PioAddress(base), size);
        range
            .and_then(|range| self.bus.register_pio(range, device))
            .map_err(|why| Error::Bus { address: base.into(), why })
    }

    /// Puts a device at addresses `base..base + size`. The fabric's IOAPICs need not be registered: they are asked first.
    pub fn register_mmio(
        &mut self,
        base: u64,
        size: u64,
        device: Arc<dyn DeviceMmio + Send + Sync>,
    ) -> Result<(), Error> {
        let range = MmioRange::new(MmioAddress(base), size);
        range.and_then(|range| self.bus.register_mmio(range, device)).map_err(|why| Error::Bus { address: base, why })
    }

    /// Starts one thread a vCPU. If one cannot be had, those that run already are stopped and joined.
    pub fn start(self) -> Result<Running, Error> {
        kick::install()?;
        let Self { vcpus, apic_ids, bus, fabric, kicker, hypervisor, vm: _, memory: _, stop } = self;
        let bus = Arc::new(bus);
        let started = Instant::now();
        let threads = Vec::with_capacity(vcpus.len());
        let mut running = Running { threads, stop, _bus: bus.clone(), fabric, hypervisor, started };
        for (vcpu, apic_id) in vcpus.into_iter().zip(apic_ids) {
            let (fabric, stop) = (running.fabric.clone(), running.stop.clone());
            let context = vcpu::Context { apic_id, bus: bus.clone(), fabric, kicker: kicker.clone(), stop };
            let thread = std::thread::Builder::new().name(format!("vcpu {apic_id}"));
            let thread = thread
                .spawn(move || vcpu::run(vcpu, &context))
                .map_err(|source| Error::Host { what: "start a thread for a vCPU", source })?;
            running.threads.push(thread);
        }
        Ok(running)
    }
}

impl Running {
    /// Waits until somebody throws the stop switch, and then until every vCPU is out of the guest and its thread gone.
    pub fn wait(mut self) -> Stopped {
        let stop = self.stop.wait();
        let ran = self.started.elapsed();
        let (exits, lapics) = self.join().into_iter().unzip();
        Stopped { stop, ran, exits, stats: self.fabric.stats(), lapics, calls: self.hypervisor.calls() }
    }

    /// The stop switch is thrown: fetches the threads out of the guest.
    fn join(&mut self) -> Vec<(Exits, Option<kvm_lapic_state>)> {
        for thread in &self.threads {
            kick::kick(thread);
        }
        // A thread that panicked has thrown the switch and has nothing to tell.
        self.threads.drain(..).map(|thread| thread.join().unwrap_or_default()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.throw(Stop::Dropped);
        self.join();
    }
}

/// Whether there is an APIC id that does not fit into 8 bits; 255 is the broadcast id.
fn has_far_ids(apic_ids: &[u32]) -> bool {
    apic_ids.iter().any(|&id| id > 254)
}

/// 15 bits only where they are needed: a guest that need not know is not told.
fn destination_format(config: &Config) -> DestinationFormat {
    match has_far_ids(&config.apic_ids) && config.vtd.is_none() {
        true => DestinationFormat::Fifteen,
        false => DestinationFormat::Eight,
    }
}

fn check_apic_ids(host: &Host, config: &Config) -> Result<(), Error> {
    let ids = &config.apic_ids;
    let most = host.kvm().get_max_vcpus();
    if ids.len() > most {
        return Err(Error::TooManyVcpus { asked: ids.len(), most });
    }
    // KVM's boot processor is the vCPU of id 0, and kvm-ioctls has no KVM_SET_BOOT_CPU_ID.
    if ids.first() != Some(&0) {
        return Err(Error::ApicIds("the first is the boot processor's and must be 0".into()));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = ids.iter().find(|id| !seen.insert(**id)) {
        return Err(Error::ApicIds(format!("{twice} is there twice")));
    }
    let most = (host.kvm().get_max_vcpu_id() as u32).min(1 << 15);
    if let Some(beyond) = ids.iter().find(|id| **id >= most) {
        return Err(Error::ApicIds(format!("{beyond} is too large, this KVM takes ids below {most}")));
    }
    match (&config.irqchip, ids.iter().find(|id| **id > 254)) {
        (Irqchip::Kernel, Some(far)) => Err(Error::ApicIds(format!(
            "{far} is out of reach of KVM's own IOAPIC, whose destinations have 8 bits; use --irqchip split"
        ))),
        _ => Ok(()),
    }
}

fn allocate(size: u64) -> Result<GuestMemoryMmap, Error> {
    let low = size.min(LOW_MEMORY_END);
    let ranges = [(GuestAddress(0), low as usize), (GuestAddress(HIGH_MEMORY_START), (size - low) as usize)];
    let ranges: Vec<_> = ranges.into_iter().filter(|(_, size)| *size > 0).collect();
    GuestMemoryMmap::from_ranges(&ranges).map_err(|error| Error::Allocate { size, why: error.to_string() })
}

fn give_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped for as long as `memory` or a clone of it lives. `Machine` owns one that is dropped
        // after its vCPUs, and the fabric, which every vCPU thread holds, another: no guest outlives its memory.
        unsafe { vm.set_user_memory_region(slot) }.map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

#[cfg(test)]
mod on_kvm;
