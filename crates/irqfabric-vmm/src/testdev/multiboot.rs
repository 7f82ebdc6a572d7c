//! Multiboot version 1: 32-bit ELF images, or those that name their addresses in the header, with modules and command
//! line (Multiboot Specification 0.6.96, 3.1 to 3.3).

use super::Image;
use crate::error::Error;
use crate::files::open;
use crate::machine::LOW_MEMORY_END;
use kvm_bindings::kvm_regs;
use object::LittleEndian;
use object::elf::{FileHeader32, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// What the loader says of itself in EAX.
const LOADER_MAGIC: u64 = 0x2bad_b002;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// The header is in the first so many bytes of an image, on a multiple of four.
const HEADER_AREA: usize = 8192;
/// In its flags: load by the addresses in the header, not by the ELF headers.
const HEADER_HAS_ADDRESSES: u32 = 1 << 16;
/// Of the flags below, all that an image may require and we would not know.
const UNKNOWN_REQUIREMENTS: u32 = 0xfffc;

/// Where the information structure and what it points to are: below the image, which is at 1 MiB or above.
const INFORMATION: u64 = 0x1_0000;
const STRINGS: u64 = 0x2_0000;
const STRINGS_END: u64 = 0x8_0000;
const HIGH_START: u64 = 0x10_0000;
const PAGE: u64 = 0x1000;
const CONVENTIONAL_KIB: u32 = 639;

const HAS_MEMORY: u32 = 1;
const HAS_COMMAND_LINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_LOADER_NAME: u32 = 1 << 9;
/// Sizes and offsets in the information structure, in words: flags, mem_lower, mem_upper, boot_device, cmdline, mods_count,
/// mods_addr, … boot_loader_name.
const INFORMATION_WORDS: usize = 22;
const LOADER_NAME_WORD: usize = 16;

/// Loads the image and what goes with it. The answer is how to start it, in 32-bit protected mode.
pub fn load(memory: &GuestMemoryMmap, image: &Image<'_>) -> Result<kvm_regs, Error> {
    let path = image.path;
    open("kernel", path)?;
    let file = std::fs::read(path).map_err(|why| Error::file("kernel", path, why))?;
    let mut loader = Loader { memory, path, size: image.memory, end: HIGH_START, strings: STRINGS };
    let entry = loader.image(&file)?;

    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let command_line = match image.arguments {
        Some(arguments) => format!("{name} {arguments}"),
        None => name.into_owned(),
    };
    let command_line = loader.string(&command_line)?;
    let loader_name = loader.string("irqfabric")?;
    let modules = loader.modules(&image.modules)?;

    let mut information = [0u32; INFORMATION_WORDS];
    let upper = (image.memory.min(LOW_MEMORY_END).saturating_sub(HIGH_START) >> 10) as u32;
    information[0] = HAS_MEMORY | HAS_COMMAND_LINE | HAS_MODULES | HAS_LOADER_NAME;
    (information[1], information[2], information[4]) = (CONVENTIONAL_KIB, upper, command_line);
    (information[5], information[6]) = modules;
    information[LOADER_NAME_WORD] = loader_name;
    loader.words(&information, INFORMATION)?;
    Ok(kvm_regs { rip: entry.into(), rax: LOADER_MAGIC, rbx: INFORMATION, ..Default::default() })
}

/// The part of an image's header that says how to load it.
struct Header {
    at: usize,
    flags: u32,
    /// header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr.
    addresses: Option<[u32; 5]>,
}

struct Loader<'a> {
    memory: &'a GuestMemoryMmap,
    path: &'a Path,
    size: u64,
    /// One past the last byte that was loaded.
    end: u64,
    /// Where the next string or list goes.
    strings: u64,
}

impl Loader<'_> {
    /// Returns the entry point.
    fn image(&mut self, image: &[u8]) -> Result<u32, Error> {
        let header = header(image).ok_or_else(|| self.refused("has no multiboot header in its first 8 KiB"))?;
        if header.flags & UNKNOWN_REQUIREMENTS != 0 {
            let flags = header.flags;
            return Err(self.refused(&format!("asks its loader for what we do not know (flags {flags:#x})")));
        }
        match header.addresses {
            Some(addresses) => self.by_addresses(image, header.at, addresses),
            None => self.elf(image),
        }
    }

    fn elf(&mut self, image: &[u8]) -> Result<u32, Error> {
        let refused =
            |why: object::Error| Error::file("kernel", self.path, format!("is not a 32-bit ELF image: {why}"));
        let header = FileHeader32::<LittleEndian>::parse(image).map_err(refused)?;
        let endian = header.endian().map_err(refused)?;
        let segments = header.program_headers(endian, image).map_err(refused)?;
        for segment in segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD) {
            let data = segment.data(endian, image).map_err(|()| self.refused("is cut short"))?;
            let (start, size) = (segment.p_paddr(endian), segment.p_memsz(endian));
            self.segment(start.into(), data, size.into())?;
        }
        Ok(header.e_entry(endian))
    }

    /// Specification 3.1.3. An end of zero means the rest of the file, or no bss.
    fn by_addresses(&mut self, image: &[u8], at: usize, addresses: [u32; 5]) -> Result<u32, Error> {
        let [header, load, load_end, bss_end, entry] = addresses;
        let impossible = || self.refused("has a multiboot header whose addresses cannot be");
        let before = header.checked_sub(load).ok_or_else(impossible)? as usize;
        let data = image.get(at.checked_sub(before).ok_or_else(impossible)?..).ok_or_else(impossible)?;
        let data = match load_end {
            0 => data,
            end => data.get(..end.checked_sub(load).ok_or_else(impossible)? as usize).ok_or_else(impossible)?,
        };
        let size = u64::from(bss_end.saturating_sub(load)).max(data.len() as u64);
        self.segment(load.into(), data, size)?;
        Ok(entry)
    }

    /// Memory is zero as it comes: what is behind `data` is so already.
    fn segment(&mut self, start: u64, data: &[u8], size: u64) -> Result<(), Error> {
        if start < HIGH_START && start + size > INFORMATION {
            return Err(self.refused("wants to be loaded below 1 MiB, where its loader is"));
        }
        let end = start + size.max(data.len() as u64);
        self.fits(end, "the image")?;
        self.memory.write_slice(data, GuestAddress(start)).map_err(|why| Error::file("kernel", self.path, why))?;
        self.end = self.end.max(end);
        Ok(())
    }

    /// Returns how many there are and where their list is.
    fn modules(&mut self, paths: &[PathBuf]) -> Result<(u32, u32), Error> {
        let mut list = Vec::new();
        for path in paths {
            let (mut file, size) = open("module", path)?;
            let start = self.end.next_multiple_of(PAGE);
            self.fits(start + size, "the modules")?;
            let read = self.memory.read_exact_volatile_from(GuestAddress(start), &mut file, size as usize);
            read.map_err(|why| Error::file("module", path, why))?;
            self.end = start + size;
            let name = self.string(&path.to_string_lossy())?;
            list.extend([start as u32, self.end as u32, name, 0]);
        }
        let address = self.room(list.len() * 4)?;
        self.words(&list, address)?;
        Ok((paths.len() as u32, address as u32))
    }

    fn string(&mut self, text: &str) -> Result<u32, Error> {
        let address = self.room(text.len() + 1)?;
        let written = self.memory.write_slice(text.as_bytes(), GuestAddress(address));
        written.map_err(|why| Error::file("kernel", self.path, why))?;
        Ok(address as u32)
    }

    fn words(&self, words: &[u32], address: u64) -> Result<(), Error> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let written = self.memory.write_slice(&bytes, GuestAddress(address));
        written.map_err(|why| Error::file("kernel", self.path, why))
    }

    fn room(&mut self, size: usize) -> Result<u64, Error> {
        let address = self.strings;
        self.strings += (size as u64).next_multiple_of(4);
        match self.strings <= STRINGS_END {
            true => Ok(address),
            false => Err(Error::Options("--append and the names of the modules are too long".into())),
        }
    }

    fn fits(&self, end: u64, what: &str) -> Result<(), Error> {
        if end <= self.size.min(LOW_MEMORY_END) {
            return Ok(());
        }
        let needed = end.div_ceil(1 << 20);
        Err(Error::TooLittleMemory { size: self.size >> 20, what: what.into(), needed })
    }

    fn refused(&self, why: &str) -> Error {
        Error::file("kernel", self.path, why)
    }
}

/// Finds the header: magic, flags and checksum, which together are zero.
fn header(image: &[u8]) -> Option<Header> {
    let area = &image[..image.len().min(HEADER_AREA)];
    let word = |at: usize| image.get(at..at + 4).and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
    (0..area.len()).step_by(4).find_map(|at| {
        let (magic, flags, checksum) = (word(at)?, word(at + 4)?, word(at + 8)?);
        let valid = magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0;
        let addresses = match flags & HEADER_HAS_ADDRESSES {
            0 => None,
            _ => Some([word(at + 12)?, word(at + 16)?, word(at + 20)?, word(at + 24)?, word(at + 28)?]),
        };
        valid.then_some(Header { at, flags, addresses })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(flags: u32, more: &[u32]) -> Vec<u8> {
        let checksum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
        [&[0xdead_beef, HEADER_MAGIC, flags, checksum], more]
            .concat()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    fn load_into(memory: &GuestMemoryMmap, image: &[u8]) -> Result<u32, Error> {
        let size = 4 << 20;
        Loader { memory, path: Path::new("image"), size, end: HIGH_START, strings: STRINGS }.image(image)
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap()
    }

    #[test]
    fn an_image_that_names_its_addresses_is_loaded_by_them() {
        let memory = memory();
        let image = image(HEADER_HAS_ADDRESSES, &[0x20_0004, 0x20_0000, 0, 0, 0x20_0010]);
        assert_eq!(load_into(&memory, &image).unwrap(), 0x20_0010);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x20_0000)).unwrap(), 0xdead_beef);
    }

    #[test]
    fn addresses_that_cannot_be_are_refused() {
        let all = [0, 4, 0x10_0000, 0x20_0000, 0x20_0004, 0xffff_ffff];
        for header in all {
            for load in all {
                for end in all {
                    // Some of them can be; none may panic.
                    let _ = load_into(&memory(), &image(HEADER_HAS_ADDRESSES, &[header, load, end, end, 0]));
                }
            }
        }
    }

    #[test]
    fn what_is_no_multiboot_image_is_refused_in_a_sentence() {
        let refusal = |image: &[u8]| load_into(&memory(), image).unwrap_err().to_string();
        assert!(refusal(&[]).contains("no multiboot header"));
        assert!(refusal(&image(0, &[])).contains("not a 32-bit ELF image"));
        assert!(refusal(&image(1 << 3, &[])).contains("asks its loader"));
    }
}
