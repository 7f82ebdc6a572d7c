//! What the host's sysfs says of a function before VFIO is asked: whether it is there, whose it is, and which IOMMU
//! group it is in (Linux `Documentation/driver-api/vfio.rst`, "VFIO Usage Example").

use super::address::Address;
use crate::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// The driver that gives a function to VFIO.
const DRIVER: &str = "vfio-pci";
/// Drivers that leave a group viable: they do no DMA of their own (Linux, `driver_managed_dma`; before 5.19
/// `vfio_driver_allowed`).
const HARMLESS: [&str; 3] = [DRIVER, "pci-stub", "pcieport"];

/// A sysfs: the host's, or a test's.
#[derive(Debug)]
pub struct Sysfs {
    root: PathBuf,
}

/// A function that VFIO has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its folder in sysfs.
    pub path: PathBuf,
    /// The number of its IOMMU group.
    pub group: u32,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self { root: "/sys".into() }
    }
}

impl Sysfs {
    /// Finds a function that is bound to vfio-pci and in an IOMMU group, or says what is to be done about it.
    pub fn find(&self, address: Address) -> Result<Found, Error> {
        let refused = |why: String| Error::vfio(address, why);
        let path = self.root.join("bus/pci/devices").join(address.to_string());
        if !path.exists() {
            return Err(refused("there is no such PCI function on this host; `lspci -D` lists them".into()));
        }
        let group = link(&path, "iommu_group").and_then(|name| name.parse().ok());
        let driver = link(&path, "driver");
        if driver.as_deref() != Some(DRIVER) {
            let whose = driver.map_or("is bound to no driver".into(), |driver| format!("is bound to {driver}"));
            let group = group.map_or(String::new(), |group: u32| format!(" (IOMMU group {group})"));
            let steps = "write vfio-pci into its driver_override, its address into driver/unbind if it has a driver, \
                         and then into /sys/bus/pci/drivers_probe";
            return Err(refused(format!("{whose}, not to vfio-pci{group}: {steps}")));
        }
        let group = group.ok_or_else(|| {
            refused("it is in no IOMMU group: switch the host's IOMMU on (intel_iommu=on, amd_iommu=on)".into())
        })?;
        Ok(Found { path, group })
    }

    /// Why the group of a function is not viable: the members that another driver has.
    pub fn blame(&self, address: Address, group: u32) -> Error {
        let folder = self.root.join("kernel/iommu_groups").join(group.to_string()).join("devices");
        let members = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut others: Vec<String> = members
            .filter_map(|member| {
                let driver = link(&member.path(), "driver").filter(|driver| !HARMLESS.contains(&driver.as_str()))?;
                Some(format!("{} is bound to {driver}", member.file_name().display()))
            })
            .collect();
        others.sort_unstable();
        let others = match others.is_empty() {
            true => "one of its devices is in use".into(),
            false => others.join(", "),
        };
        Error::vfio(
            address,
            format!("IOMMU group {group} is not viable: {others}; bind all of the group to vfio-pci, or to no driver"),
        )
    }
}

/// The last part of what a symbolic link points to.
fn link(folder: &Path, name: &str) -> Option<String> {
    fs::read_link(folder.join(name)).ok()?.file_name().and_then(OsStr::to_str).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A sysfs with these functions: address, driver, group.
    struct Fake {
        sysfs: Sysfs,
    }

    impl Fake {
        fn new(name: &str, functions: &[(&str, Option<&str>, Option<u32>)]) -> Self {
            let root = std::env::temp_dir().join(format!("irqfabric-sysfs-{name}-{}", std::process::id()));
            for (address, driver, group) in functions {
                let device = root.join("bus/pci/devices").join(address);
                fs::create_dir_all(&device).unwrap();
                if let Some(driver) = driver {
                    symlink(Path::new("../../drivers").join(driver), device.join("driver")).unwrap();
                }
                if let Some(group) = group {
                    let members = root.join(format!("kernel/iommu_groups/{group}/devices"));
                    fs::create_dir_all(&members).unwrap();
                    symlink(members.parent().unwrap(), device.join("iommu_group")).unwrap();
                    symlink(&device, members.join(address)).unwrap();
                }
            }
            Self { sysfs: Sysfs { root } }
        }

        fn find(&self, address: &str) -> Result<Found, String> {
            self.sysfs.find(address.parse().unwrap()).map_err(|error| error.to_string())
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.sysfs.root);
        }
    }

    #[test]
    fn a_function_of_vfio_pci_is_found_with_its_group() {
        let fake = Fake::new("found", &[("0000:00:04.0", Some("vfio-pci"), Some(7))]);
        let found = fake.find("00:04.0").unwrap();
        assert_eq!(found.group, 7);
        assert!(found.path.ends_with("bus/pci/devices/0000:00:04.0"));
    }

    #[test]
    fn a_function_that_another_driver_has_is_refused_by_name_and_group() {
        let fake = Fake::new("driver", &[("0000:00:04.0", Some("nvme"), Some(7)), ("0000:00:05.0", None, None)]);
        let refusal = fake.find("0000:00:04.0").unwrap_err();
        let expected = "VFIO device 0000:00:04.0: is bound to nvme, not to vfio-pci (IOMMU group 7): write vfio-pci";
        assert!(refusal.starts_with(expected), "{refusal}");
        let refusal = fake.find("0000:00:05.0").unwrap_err();
        assert!(refusal.contains("0000:00:05.0: is bound to no driver, not to vfio-pci: "), "{refusal}");
    }

    #[test]
    fn a_function_without_an_iommu_or_without_being_there_is_refused() {
        let fake = Fake::new("no-iommu", &[("0000:00:04.0", Some("vfio-pci"), None)]);
        assert!(fake.find("0000:00:04.0").unwrap_err().contains("is in no IOMMU group"));
        assert!(fake.find("0000:00:06.0").unwrap_err().contains("no such PCI function"));
    }

    #[test]
    fn a_group_that_is_not_viable_is_named_with_the_members_to_blame() {
        let fake = Fake::new(
            "viable",
            &[
                ("0000:00:1c.0", Some("pcieport"), Some(9)),
                ("0000:02:00.0", Some("vfio-pci"), Some(9)),
                ("0000:02:00.1", Some("snd_hda_intel"), Some(9)),
                ("0000:02:00.2", None, Some(9)),
                ("0000:03:00.0", Some("e1000e"), Some(10)),
            ],
        );
        let refusal = fake.sysfs.blame("0000:02:00.0".parse().unwrap(), 9).to_string();
        assert_eq!(
            refusal,
            "VFIO device 0000:02:00.0: IOMMU group 9 is not viable: 0000:02:00.1 is bound to snd_hda_intel; bind all of \
             the group to vfio-pci, or to no driver"
        );
    }
}
