//! The kernel's side of a device: its regions, its interrupts, and the container whose IOMMU mappings are the guest's
//! memory. [`Physical`] is the seam: everything else of this module runs on a test's device as well.

use super::address::Address;
use super::sysfs::{Found, Sysfs};
use crate::error::Error;
use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use kvm_ioctls::VmFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::iter::once;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;
use std::sync::Arc;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioDeviceFd, VfioError, VfioRegionInfoCap};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// A region of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// What a BAR of this number stands for.
    Bar(u8),
    /// Configuration space.
    Configuration,
}

/// What a device may signal with. One at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Intx,
    Msi,
    Msix,
}

/// What VFIO gives of a device.
pub trait Physical: Send + Sync {
    /// Fills `data`; with ones where the device does not answer.
    fn read(&self, region: Region, offset: u64, data: &mut [u8]);

    /// Writes `data`, unless the device does not answer.
    fn write(&self, region: Region, offset: u64, data: &[u8]);

    /// The size of what a BAR stands for: zero if there is nothing.
    fn size(&self, bar: u8) -> u64;

    /// The parts of it that the processor may reach without the kernel.
    fn mappable(&self, bar: u8) -> Vec<Range<u64>>;

    /// Maps such a part, as long as what is returned lives.
    fn map(&self, bar: u8, part: Range<u64>) -> Result<Mapped, String>;

    /// How many interrupts of a kind it has.
    fn interrupts(&self, kind: Kind) -> u32;

    /// From now on each interrupt writes its eventfd. None of another kind may be enabled.
    fn enable(&self, kind: Kind, events: &[&EventFd]) -> Result<(), String>;

    /// What VFIO masks when it has signalled INTx, a write to this eventfd unmasks.
    fn unmask_by(&self, resample: &EventFd) -> Result<(), String>;

    /// The eventfds are let go; the device signals nothing of this kind.
    fn disable(&self, kind: Kind);
}

/// A part of a device's region in our address space.
#[derive(Debug)]
pub struct Mapped {
    start: *mut c_void,
    length: usize,
}

// SAFETY: it is an address range that this value owns. Nothing here dereferences it; KVM and the guest do.
unsafe impl Send for Mapped {}
// SAFETY: as above; `&Mapped` only tells where it is.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.start as u64
    }

    /// How many bytes there are.
    pub fn length(&self) -> u64 {
        self.length as u64
    }
}

#[cfg(test)]
impl Mapped {
    /// Memory that stands for a device's.
    pub fn anonymous(length: u64) -> Self {
        let (length, protection) = (length as usize, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { rustix::mm::mmap_anonymous(null_mut(), length, protection, MapFlags::PRIVATE) };
        Self { start: start.expect("a few pages"), length }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: `start` and `length` are those of one mapping that nobody else unmaps, and whoever gave its address to KVM
        // has taken it back.
        if let Err(error) = unsafe { munmap(self.start, self.length) } {
            tracing::error!(%error, "unmapping a region of a device");
        }
    }
}

/// The devices of one guest: they reach all of its memory, at its own addresses, and nothing else.
pub struct Container {
    container: Arc<VfioContainer>,
    memory: GuestMemoryMmap,
    mapped: bool,
}

impl Container {
    /// Opens /dev/vfio/vfio for a machine with this memory. `first` is the device that wants it, for the refusal.
    pub fn new(vm: &VmFd, memory: &GuestMemoryMmap, first: Address) -> Result<Self, Error> {
        let mut device = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
        let device = vm.create_device(&mut device).map_err(Error::kvm("KVM_CREATE_DEVICE (VFIO)"))?;
        let device = Arc::new(VfioDeviceFd::new_from_kvm(device));
        let container = VfioContainer::new(Some(device)).map_err(|error| Error::vfio(first, no_container(&error)))?;
        Ok(Self { container: Arc::new(container), memory: memory.clone(), mapped: false })
    }

    /// Takes a device over from the host. With the first, the guest's memory is mapped for all of them, and so pinned.
    pub fn open(&mut self, sysfs: &Sysfs, address: Address) -> Result<Device, Error> {
        let Found { path, group } = sysfs.find(address)?;
        let device = VfioDevice::new(&path, self.container.clone(), false).map_err(|error| match error {
            VfioError::GroupViable => sysfs.blame(address, group),
            VfioError::OpenGroup(source, _) => Error::vfio(address, no_group(group, &source)),
            error => Error::vfio(address, format!("IOMMU group {group}: {error}")),
        })?;
        if !self.mapped {
            // SAFETY: a guest's memory is only ever accessed as what a guest, and here a device, may change at any time:
            // by vm-memory's volatile accesses and by system calls. It is unmapped after the last device is closed:
            // `Device` holds it.
            unsafe { self.container.vfio_map_guest_memory(&self.memory) }.map_err(|error| {
                let size: u64 = self.memory.iter().map(GuestMemoryRegion::len).sum();
                Error::vfio(
                    address,
                    format!("{error}: {} MiB of guest memory have to be pinned (ulimit -l, --memory)", size >> 20),
                )
            })?;
            self.mapped = true;
        }
        Ok(Device { device, _memory: self.memory.clone() })
    }
}

fn no_container(error: &VfioError) -> String {
    match error {
        VfioError::OpenContainer(source) if source.kind() == std::io::ErrorKind::NotFound => {
            "/dev/vfio/vfio is not there: load vfio-pci and vfio_iommu_type1".into()
        }
        VfioError::OpenContainer(source) => format!("cannot open /dev/vfio/vfio: {source}"),
        error => format!("/dev/vfio/vfio: {error}"),
    }
}

fn no_group(group: u32, source: &std::io::Error) -> String {
    match source.kind() {
        std::io::ErrorKind::ResourceBusy => format!("IOMMU group {group} is in use by another process"),
        std::io::ErrorKind::PermissionDenied => {
            format!("cannot open /dev/vfio/{group}, its IOMMU group: {source}; own that file or be root")
        }
        _ => format!("cannot open /dev/vfio/{group}, its IOMMU group: {source}"),
    }
}

/// A device that is the guest's as long as this lives.
pub struct Device {
    // Closed first.
    device: VfioDevice,
    _memory: GuestMemoryMmap,
}

impl Region {
    const fn index(self) -> u32 {
        match self {
            Self::Bar(number) => number as u32,
            Self::Configuration => VFIO_PCI_CONFIG_REGION_INDEX,
        }
    }
}

impl Kind {
    const fn index(self) -> u32 {
        match self {
            Self::Intx => VFIO_PCI_INTX_IRQ_INDEX,
            Self::Msi => VFIO_PCI_MSI_IRQ_INDEX,
            Self::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
        }
    }
}

impl Physical for Device {
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.device.region_read(region.index(), data, offset);
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        self.device.region_write(region.index(), data, offset);
    }

    fn size(&self, bar: u8) -> u64 {
        self.device.get_region_size(bar.into())
    }

    fn mappable(&self, bar: u8) -> Vec<Range<u64>> {
        let size = self.size(bar);
        if size == 0 || self.device.get_region_flags(bar.into()) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
            return Vec::new();
        }
        let capabilities = self.device.get_region_caps(bar.into());
        let sparse = capabilities.into_iter().find_map(|capability| match capability {
            VfioRegionInfoCap::SparseMmap(sparse) => Some(sparse.areas),
            _ => None,
        });
        // Without that capability all of it is (VFIO_REGION_INFO_CAP_SPARSE_MMAP in linux/vfio.h).
        match sparse {
            Some(areas) => areas.iter().map(|area| area.offset..area.offset + area.size).collect(),
            None => once(0..size).collect(),
        }
    }

    fn map(&self, bar: u8, part: Range<u64>) -> Result<Mapped, String> {
        let length = (part.end - part.start) as usize;
        let offset = self.device.get_region_offset(bar.into()) + part.start;
        // SAFETY: the device is open for as long as `self` lives, which outlives this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) };
        // SAFETY: a new mapping, at an address of the kernel's choice, touches no memory that Rust knows of.
        let start =
            unsafe { mmap(null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, offset) };
        start.map(|start| Mapped { start, length }).map_err(|error| error.to_string())
    }

    fn interrupts(&self, kind: Kind) -> u32 {
        self.device.get_irq_info(kind.index()).map_or(0, |info| info.count)
    }

    fn enable(&self, kind: Kind, events: &[&EventFd]) -> Result<(), String> {
        self.device.enable_irq(kind.index(), events.to_vec()).map_err(|error| error.to_string())
    }

    fn unmask_by(&self, resample: &EventFd) -> Result<(), String> {
        self.device.set_irq_resample_fd(Kind::Intx.index(), vec![resample]).map_err(|error| error.to_string())
    }

    fn disable(&self, kind: Kind) {
        if let Err(error) = self.device.disable_irq(kind.index()) {
            tracing::error!(%error, ?kind, "VFIO_DEVICE_SET_IRQS");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_missing_container_or_group_says_what_to_do() {
        let text = no_container(&VfioError::OpenContainer(ErrorKind::NotFound.into()));
        assert!(text.contains("load vfio-pci"), "{text}");
        let text = no_group(9, &Error::from_raw_os_error(libc::EBUSY));
        assert_eq!(text, "IOMMU group 9 is in use by another process");
        assert!(no_group(9, &ErrorKind::PermissionDenied.into()).contains("/dev/vfio/9"));
    }
}
