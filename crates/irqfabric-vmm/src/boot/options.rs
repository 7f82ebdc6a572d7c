//! The options of `irqfabric boot`, and what their words mean.

use super::layout;
use crate::devices::vfio::Address;
use crate::devices::virtio::SignalBy;
use crate::error::Error;
use crate::testdev::Image;
use clap::{Args as ClapArgs, ValueEnum};
use irqfabric::fabric::Promotion;
use irqfabric::msg::Trigger;
use serde::Serialize;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

/// The options of `irqfabric boot`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Kernel: a bzImage, or a vmlinux with a PVH entry; with `--profile testdev` a multiboot image
    #[arg(long, value_name = "IMAGE")]
    pub kernel: PathBuf,
    /// Initial RAM disk; with `--profile testdev` a module, several separated by commas
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; of several the last
    #[arg(long, value_name = "STRING", overrides_with = "append")]
    pub append: Option<String>,
    /// How many vCPUs, with APIC ids from 0 on
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "apic_ids")]
    vcpus: u32,
    /// One vCPU for each of these APIC ids; the first must be 0
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    apic_ids: Vec<u32>,
    /// Guest memory, in MiB or with a unit: 512M, 2G
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: Size,
    /// Raw image as a virtio disk: its interrupt is a level (default) or an edge, its line the next free one or
    /// that of GSI N, which disks may share
    ///
    /// With `eventfd` it has its level line by two eventfds, one to trigger and one to resample. With `pci` it is a PCI function with MSI-X: so many queues (default: one a vCPU, 4 at the most) and vectors
    /// (default: one a queue and one for the configuration), signalled by calls or, with `eventfd`, by their eventfds.
    #[arg(long, value_name = "FILE[,ro][,eventfd][,level|edge][,gsi=N][,pci[,queues=N][,vectors=N]]")]
    pub disk: Vec<DiskOption>,
    /// PCI function of the host, bound to vfio-pci, as a function of the guest's; with `intx` without MSI and MSI-X
    #[arg(long, value_name = "DDDD:BB:DD.F[,intx]")]
    pub vfio: Vec<VfioOption>,
    /// Whose IOAPIC: irqfabric's, or KVM's own for comparison
    #[arg(long, value_enum, default_value_t = IrqchipKind::Split)]
    pub irqchip: IrqchipKind,
    /// Who says which interrupts a message may become: nobody but the message, or an Intel VT-d unit that the guest
    /// programs
    #[arg(long, value_enum, default_value_t = IntremapKind::None)]
    pub intremap: IntremapKind,
    /// Adds a PIC, and the parts of ACPI that guests expect beside one: Linux uses it with `noapic`
    ///
    /// Disks have GSIs that the PIC has level inputs for.
    #[arg(long)]
    pub pic: bool,
    /// When a vector that is signalled by its eventfd gets an irqfd in KVM
    #[arg(long, value_enum, default_value_t = PromotionKind::OnDemand)]
    pub promotion: PromotionKind,
    /// What kind of machine
    #[arg(long, value_enum, default_value_t = Profile::Linux)]
    pub profile: Profile,
    /// Records what goes into the fabric's state machines and what comes out, for `irqfabric replay`
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Writes what happened, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

impl Args {
    /// The APIC ids of the vCPUs.
    pub fn apic_ids(&self) -> Result<Vec<u32>, Error> {
        match (self.apic_ids.as_slice(), self.vcpus) {
            ([], 0) => Err(Error::Options("--vcpus 0: a machine needs at least one".into())),
            ([], count) => Ok((0..count).collect()),
            (ids, _) => Ok(ids.to_vec()),
        }
    }
}

impl Args {
    /// Where the VT-d unit is to be, if there is to be one.
    pub fn vtd(&self) -> Result<Option<u64>, Error> {
        match (self.intremap, self.irqchip) {
            (IntremapKind::None, _) => Ok(None),
            (IntremapKind::Vtd, IrqchipKind::Split) => Ok(Some(layout::VTD)),
            (IntremapKind::Vtd, IrqchipKind::Kernel) => {
                Err(Error::Options("--intremap vtd: KVM's own IOAPIC knows nothing of it; use --irqchip split".into()))
            }
        }
    }

    /// What `--pic` says.
    pub fn legacy(&self) -> Legacy {
        if self.pic { Legacy::Pic } else { Legacy::None }
    }

    /// The same options, as the test profile reads them.
    pub fn image(&self) -> Image<'_> {
        let modules = self.initrd.iter().flat_map(|list| list.as_os_str().as_bytes().split(|byte| *byte == b','));
        Image {
            path: &self.kernel,
            modules: modules.map(|path| PathBuf::from(OsStr::from_bytes(path))).collect(),
            arguments: self.append.as_deref(),
            memory: self.memory.0,
        }
    }
}

/// What kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// For Linux: ACPI, disks
    Linux,
    /// For bare-metal test images: multiboot, debug exit, test lines, fw_cfg
    Testdev,
}

/// Whose IOAPIC the lines end in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IrqchipKind {
    /// irqfabric's, on KVM's split irqchip
    Split,
    /// KVM's own, with its PIC
    Kernel,
}

/// Who remaps interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntremapKind {
    /// Nobody; APIC ids above 254 are reached by 15-bit destinations
    None,
    /// A VT-d unit, told of by a DMAR table
    Vtd,
}

/// What the machine has that a PC had before it had an IOAPIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Legacy {
    /// Nothing: hardware-reduced ACPI.
    None,
    /// A PIC, and ACPI's fixed hardware.
    Pic,
}

/// When vectors become hot: the fabric's policies by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PromotionKind {
    /// When it has fired twice, many together
    OnDemand,
    /// When the guest has programmed and unmasked it
    Prefill,
    /// Never: irqfabric's thread delivers every event
    Never,
}

impl From<PromotionKind> for Promotion {
    fn from(kind: PromotionKind) -> Self {
        match kind {
            PromotionKind::OnDemand => Self::default(),
            PromotionKind::Prefill => Self::Prefill,
            PromotionKind::Never => Self::Never,
        }
    }
}

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, shift) = match text.trim_end_matches(|c: char| c.is_ascii_alphabetic()) {
            number if number.len() == text.len() => (number, 20),
            number => match &text[number.len()..].to_ascii_uppercase() as &str {
                "M" | "MIB" => (number, 20),
                "G" | "GIB" => (number, 30),
                unit => return Err(format!("{unit} is no unit for memory: M or G")),
            },
        };
        let number: u64 = number.parse().map_err(|_| format!("{number:?} is not a number"))?;
        if number == 0 {
            return Err("a machine needs some".into());
        }
        let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes < 1 << 46);
        bytes.map(Self).ok_or_else(|| format!("{text} is more than any machine has"))
    }
}

/// One `--disk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOption {
    /// The image.
    pub path: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
    /// How the guest reaches it, and it the guest.
    pub interface: Interface,
}

/// How a disk is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interface {
    /// By virtio-mmio and a line.
    Mmio {
        /// How it interrupts.
        trigger: Trigger,
        /// Its line, if not the next free one.
        gsi: Option<u32>,
        /// How it raises a level.
        signal_by: SignalBy,
    },
    /// By virtio-pci and MSI-X.
    Pci {
        /// How many queues, if not as many as suit the machine.
        queues: Option<u16>,
        /// How many vectors, if not one for each queue and one more.
        vectors: Option<u16>,
        /// How it signals them.
        signal_by: SignalBy,
    },
}

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |what, text: &str| text.parse().map_err(|_| format!("{text:?} is not a number of {what}"));
        let mut words = text.split(',');
        let path = PathBuf::from(words.next().unwrap_or_default());
        let (mut read_only, mut pci) = (false, false);
        let (mut trigger, mut gsi) = (None, None);
        let (mut queues, mut vectors, mut signal_by) = (None, None, None);
        for word in words {
            match word.split_once('=').map_or((word, None), |(word, value)| (word, Some(value))) {
                ("ro", None) => read_only = true,
                ("pci", None) => pci = true,
                ("level", None) => trigger = Some(Trigger::Level),
                ("edge", None) => trigger = Some(Trigger::Edge),
                ("gsi", Some(value)) => gsi = Some(value.parse().map_err(|_| format!("{value:?} is not a GSI"))?),
                ("queues", Some(value)) => queues = Some(number("queues", value)?),
                ("vectors", Some(value)) => vectors = Some(number("vectors", value)?),
                ("eventfd", None) => signal_by = Some(SignalBy::Eventfd),
                _ => {
                    return Err(format!(
                        "{word:?} is none of ro, level, edge, gsi=N, pci, queues=N, vectors=N, eventfd"
                    ));
                }
            }
        }
        let interface = if pci {
            if trigger.is_some() || gsi.is_some() {
                return Err("a PCI disk has vectors: level, edge and gsi are for disks without `pci`".into());
            }
            Interface::Pci { queues, vectors, signal_by: signal_by.unwrap_or_default() }
        } else {
            if queues.is_some() || vectors.is_some() {
                return Err("queues and vectors are for disks with `pci`".into());
            }
            if trigger == Some(Trigger::Edge) && signal_by.is_some() {
                return Err("eventfd is for levels and for vectors: nobody resamples an edge".into());
            }
            let (trigger, signal_by) = (trigger.unwrap_or(Trigger::Level), signal_by.unwrap_or_default());
            Interface::Mmio { trigger, gsi, signal_by }
        };
        Ok(Self { path, read_only, interface })
    }
}

/// One `--vfio`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfioOption {
    /// Where it is on the host.
    pub address: Address,
    /// Whether the guest sees its pin only.
    pub only_pin: bool,
}

impl FromStr for VfioOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, only_pin) = match text.split_once(',') {
            None => (text, false),
            Some((address, "intx")) => (address, true),
            Some((_, other)) => return Err(format!("{other:?} is not intx")),
        };
        Ok(Self { address: address.parse()?, only_pin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_mib_unless_they_say_otherwise() {
        let size = |text: &str| text.parse().map(|Size(bytes)| bytes >> 20);
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("512M"), Ok(512));
        assert_eq!(size("2g"), Ok(2048));
        assert!(
            size("2T").is_err()
                && size("M").is_err()
                && size("").is_err()
                && size("0").is_err()
                && size("99999999G").is_err()
        );
    }

    #[test]
    fn a_disk_says_how_and_where_it_interrupts() {
        let disk = |path: &str, trigger, gsi| DiskOption {
            path: path.into(),
            read_only: false,
            interface: Interface::Mmio { trigger, gsi, signal_by: SignalBy::Call },
        };
        assert_eq!("a.img".parse(), Ok(disk("a.img", Trigger::Level, None)));
        let interface = Interface::Mmio { trigger: Trigger::Level, gsi: Some(9), signal_by: SignalBy::Eventfd };
        let by_eventfds = DiskOption { interface, ..disk("c", Trigger::Level, None) };
        assert_eq!("c,level,gsi=9,eventfd".parse(), Ok(by_eventfds));
        assert!("c,edge,eventfd".parse::<DiskOption>().is_err());
        let shared = DiskOption { read_only: true, ..disk("b", Trigger::Edge, Some(9)) };
        assert_eq!("b,ro,edge,gsi=9".parse(), Ok(shared));
        assert!("b,rw".parse::<DiskOption>().is_err() && "b,gsi=x".parse::<DiskOption>().is_err());
    }

    #[test]
    fn a_pci_disk_has_queues_and_vectors_and_no_line() {
        let disk = |queues, vectors, signal_by| DiskOption {
            path: "a".into(),
            read_only: false,
            interface: Interface::Pci { queues, vectors, signal_by },
        };
        assert_eq!("a,pci".parse(), Ok(disk(None, None, SignalBy::Call)));
        assert_eq!("a,pci,queues=2,vectors=3,eventfd".parse(), Ok(disk(Some(2), Some(3), SignalBy::Eventfd)));
        for text in ["a,pci,edge", "a,gsi=5,pci", "a,queues=2", "a,pci,queues", "a,pci,vectors=-1"] {
            assert!(text.parse::<DiskOption>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_passed_through_function_is_named_by_its_address() {
        let option =
            |text: &str| text.parse::<VfioOption>().map(|option| (option.address.to_string(), option.only_pin));
        assert_eq!(option("0000:00:04.0"), Ok(("0000:00:04.0".into(), false)));
        assert_eq!(option("00:04.0,intx"), Ok(("0000:00:04.0".into(), true)));
        assert!(option("00:04.0,msi").is_err() && option("nvme0").is_err() && option("").is_err());
    }
}
