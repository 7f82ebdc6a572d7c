//! Loading Linux: a bzImage by its 64-bit entry, a vmlinux by its PVH entry, with command line and initial RAM disk.
//!
//! Linux `Documentation/arch/x86/boot.rst` (the 64-bit boot protocol); Xen `docs/misc/pvh.pandoc`. The loading itself is
//! linux-loader's.

use super::layout;
use super::options::Args;
use crate::error::Error;
use crate::files;
use crate::machine::{LOW_MEMORY_END, Machine, cpu};
use kvm_bindings::kvm_regs;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::{self, BzImage, KernelLoader, bzimage};
use std::fs::File;
use std::io::{Read, Seek};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const DEFAULT_COMMAND_LINE: &str = "console=ttyS0";
/// What kernels without a setup header take: COMMAND_LINE_SIZE in Linux' arch/x86/include/asm/setup.h.
const COMMAND_LINE_LIMIT: u32 = 2047;
const PAGE: u64 = 0x1000;

/// Loads kernel, initial RAM disk and command line, and sets the boot processor's registers.
pub fn load(machine: &Machine, args: &Args, rsdp: u64) -> Result<(), Error> {
    let (memory, vcpu) = (machine.memory(), &machine.vcpus()[0]);
    let loader = Loader { memory, args };
    let kernel = loader.kernel()?;
    loader.command_line(&kernel)?;
    let initrd = loader.initrd(&kernel)?;
    match kernel.entry {
        Entry::Pvh(entry) => {
            loader.gdt(false)?;
            loader.pvh_start_info(initrd, rsdp)?;
            let regs = kvm_regs { rip: entry, rbx: layout::PVH_START_INFO, ..Default::default() };
            cpu::start_protected_mode(vcpu, layout::GDT, regs)
        }
        Entry::Linux64(entry, header) => {
            loader.gdt(true)?;
            loader.page_tables()?;
            loader.zero_page(*header, initrd, rsdp)?;
            let regs = kvm_regs { rip: entry, rsi: layout::ZERO_PAGE, ..Default::default() };
            cpu::start_long_mode(vcpu, layout::GDT, layout::PAGE_TABLES, regs)
        }
    }
}

struct Loader<'a> {
    memory: &'a GuestMemoryMmap,
    args: &'a Args,
}

struct Kernel {
    entry: Entry,
    /// The first address behind it, with what it needs to unpack itself.
    end: u64,
    command_line_limit: u32,
    /// The last address that its initial RAM disk may have.
    initrd_limit: u64,
}

enum Entry {
    /// 32-bit protected mode.
    Pvh(u64),
    /// 64-bit mode, and the setup header to give back.
    Linux64(u64, Box<setup_header>),
}

/// Where the initial RAM disk is.
#[derive(Clone, Copy, Default)]
struct Initrd {
    address: u64,
    size: u64,
}

impl Loader<'_> {
    fn kernel(&self) -> Result<Kernel, Error> {
        let path = &self.args.kernel;
        let (mut file, size) = files::open("kernel", path)?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic).map_err(|_| Error::file("kernel", path, "is too short for a kernel"))?;
        file.rewind().map_err(|why| Error::file("kernel", path, why))?;
        // Both loaders can only say that something could not be read: it does not fit is by far the likeliest reason.
        self.fits(layout::HIGH_START + size, "the kernel")?;
        if magic == ELF_MAGIC { self.vmlinux(&mut file) } else { self.bzimage(&mut file) }
    }

    fn vmlinux(&self, file: &mut File) -> Result<Kernel, Error> {
        let path = &self.args.kernel;
        let start = Some(GuestAddress(layout::HIGH_START));
        let loaded = Elf::load(self.memory, None, file, start).map_err(|why| Error::file("kernel", path, why))?;
        let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
            return Err(Error::file("kernel", path, "has no PVH entry (CONFIG_PVH); a bzImage would do as well"));
        };
        self.fits(loaded.kernel_end, "the kernel")?;
        Ok(Kernel {
            entry: Entry::Pvh(entry.0),
            end: loaded.kernel_end,
            command_line_limit: COMMAND_LINE_LIMIT,
            initrd_limit: LOW_MEMORY_END - 1,
        })
    }

    fn bzimage(&self, file: &mut File) -> Result<Kernel, Error> {
        const XLF_KERNEL_64: u16 = 1;
        const ENTRY_64: u64 = 0x200;
        let path = &self.args.kernel;
        let start = Some(GuestAddress(layout::HIGH_START));
        let loaded = BzImage::load(self.memory, None, file, start).map_err(|why| match why {
            loader::Error::Bzimage(bzimage::Error::ReadBzImageCompressedKernel) => {
                Error::file("kernel", path, "is cut short")
            }
            _ => Error::file("kernel", path, "is neither a bzImage nor an ELF image"),
        })?;
        let header = loaded.setup_header.ok_or_else(|| Error::file("kernel", path, "has no setup header"))?;
        if header.version < 0x20c || header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(Error::file("kernel", path, "has no 64-bit entry"));
        }
        let unpacked = header.pref_address.max(loaded.kernel_load.0).saturating_add(header.init_size.into());
        let end = loaded.kernel_end.max(unpacked);
        self.fits(end, "the kernel")?;
        Ok(Kernel {
            entry: Entry::Linux64(loaded.kernel_load.0 + ENTRY_64, Box::new(header)),
            end,
            command_line_limit: header.cmdline_size,
            initrd_limit: u64::from(header.initrd_addr_max).min(LOW_MEMORY_END - 1),
        })
    }

    /// Refuses what would reach beyond low memory.
    fn fits(&self, end: u64, what: &str) -> Result<(), Error> {
        let memory = self.args.memory.0.min(LOW_MEMORY_END);
        if end <= memory {
            return Ok(());
        }
        let needed = end.div_ceil(1 << 20);
        Err(Error::TooLittleMemory { size: self.args.memory.0 >> 20, what: what.into(), needed })
    }

    fn write<T: vm_memory::ByteValued>(&self, value: T, address: u64) -> Result<(), Error> {
        self.memory.write_obj(value, GuestAddress(address)).map_err(|_| Error::NoRoom("what the kernel starts with"))
    }

    fn command_line(&self, kernel: &Kernel) -> Result<(), Error> {
        let line = self.args.append.as_deref().unwrap_or(DEFAULT_COMMAND_LINE);
        let limit = (kernel.command_line_limit as usize).min(layout::COMMAND_LINE_SIZE - 1);
        if line.len() > limit {
            let length = line.len();
            return Err(Error::Options(format!("--append: {length} bytes are more than the {limit} of this kernel")));
        }
        for (byte, address) in line.bytes().chain([0]).zip(layout::COMMAND_LINE..) {
            self.write(byte, address)?;
        }
        Ok(())
    }

    /// As high as kernel and memory allow, which keeps it out of the way of what the kernel unpacks.
    fn initrd(&self, kernel: &Kernel) -> Result<Option<Initrd>, Error> {
        let Some(path) = &self.args.initrd else { return Ok(None) };
        let (mut file, size) = files::open("initrd", path)?;
        let top = self.args.memory.0.min(kernel.initrd_limit + 1);
        let lowest = kernel.end.next_multiple_of(PAGE);
        let address = top.checked_sub(size).map(|address| address & !(PAGE - 1)).filter(|address| *address >= lowest);
        let Some(address) = address else {
            let needed = (lowest + size).div_ceil(1 << 20);
            let what = format!("the kernel and {}", path.display());
            return Err(Error::TooLittleMemory { size: self.args.memory.0 >> 20, what, needed });
        };
        self.memory
            .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
            .map_err(|why| Error::file("initrd", path, why))?;
        Ok(Some(Initrd { address, size }))
    }

    fn gdt(&self, long_mode: bool) -> Result<(), Error> {
        self.write(cpu::gdt(long_mode), layout::GDT)
    }

    /// Identity mapping of 4 GiB by pages of 2 MiB.
    fn page_tables(&self) -> Result<(), Error> {
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 1 << 7;
        let level3 = layout::PAGE_TABLES + PAGE;
        let level2 = level3 + PAGE;
        self.write(level3 | PRESENT_WRITABLE, layout::PAGE_TABLES)?;
        for gib in 0..4 {
            self.write((level2 + gib * PAGE) | PRESENT_WRITABLE, level3 + gib * 8)?;
        }
        for page in 0..4 * 512 {
            self.write(page << 21 | LARGE | PRESENT_WRITABLE, level2 + page * 8)?;
        }
        Ok(())
    }

    fn zero_page(&self, header: setup_header, initrd: Option<Initrd>, rsdp: u64) -> Result<(), Error> {
        const UNDEFINED_LOADER: u8 = 0xff;
        let mut page = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..Default::default() };
        page.hdr.type_of_loader = UNDEFINED_LOADER;
        page.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
        if let Some(Initrd { address, size }) = initrd {
            (page.hdr.ramdisk_image, page.hdr.ramdisk_size) = (address as u32, size as u32);
        }
        let map = layout::memory_map(self.args.memory.0);
        page.e820_entries = map.len() as u8;
        for (entry, stretch) in page.e820_table.iter_mut().zip(map) {
            *entry = boot_e820_entry { addr: stretch.start, size: stretch.size, r#type: stretch.kind };
        }
        self.write(page, layout::ZERO_PAGE)
    }

    fn pvh_start_info(&self, initrd: Option<Initrd>, rsdp: u64) -> Result<(), Error> {
        const MAGIC: u32 = 0x336e_c578;
        let map = layout::memory_map(self.args.memory.0);
        let start_info = hvm_start_info {
            magic: MAGIC,
            version: 1,
            nr_modules: initrd.is_some().into(),
            modlist_paddr: layout::PVH_MODULES,
            cmdline_paddr: layout::COMMAND_LINE,
            rsdp_paddr: rsdp,
            memmap_paddr: layout::PVH_MEMORY_MAP,
            memmap_entries: map.len() as u32,
            ..Default::default()
        };
        self.write(start_info, layout::PVH_START_INFO)?;
        if let Some(Initrd { address: paddr, size }) = initrd {
            self.write(hvm_modlist_entry { paddr, size, ..Default::default() }, layout::PVH_MODULES)?;
        }
        let entries = map.iter().zip((layout::PVH_MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>()));
        for (stretch, address) in entries {
            let entry = hvm_memmap_table_entry {
                addr: stretch.start,
                size: stretch.size,
                type_: stretch.kind,
                ..Default::default()
            };
            self.write(entry, address)?;
        }
        Ok(())
    }
}
