//! Disks with known content.
//!
//! Every 64-bit word is a function of the disk's seed and the word's position, so a read that returns the
//! right sector of the wrong disk, or the wrong sector, is noticed. Reads go past the page cache
//! (`O_DIRECT`): each is one request to the device, and so one interrupt.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

/// `O_DIRECT` of x86-64; the standard library does not name it.
const O_DIRECT: i32 = 0o40000;

/// One request. Small, because the test wants many interrupts, not many bytes.
pub const BLOCK: usize = 4096;
const WORDS: u64 = BLOCK as u64 / 8;

/// A block aligned as `O_DIRECT` demands.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

pub fn fill(file: &str, bytes: u64, seed: u64) -> Result<String, String> {
    let write = || -> std::io::Result<()> {
        let mut out = BufWriter::new(File::create(file)?);
        for word in 0..bytes / 8 {
            out.write_all(&pattern(seed, word).to_le_bytes())?;
        }
        out.flush()
    };
    write().map_err(|error| format!("{file}: {error}"))?;
    Ok(format!("{{\"filled\":{file:?},\"bytes\":{bytes},\"seed\":{seed}}}"))
}

pub fn verify(disk: &str) -> Result<String, String> {
    let mut reader = Reader::open(disk)?;
    let mut blocks = 0u64;
    while reader.next()? {
        blocks += 1;
    }
    let bytes = blocks * BLOCK as u64;
    Ok(format!("{{\"verified\":{disk:?},\"bytes\":{bytes},\"seed\":{}}}", reader.seed))
}

/// Reads a disk from its beginning to its end, and checks what it reads.
pub struct Reader {
    name: String,
    file: File,
    buffer: Box<Block>,
    block: u64,
    seed: u64,
}

impl Reader {
    pub fn open(name: &str) -> Result<Self, String> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(O_DIRECT)
            .open(name)
            .map_err(|error| format!("{name}: {error}"))?;
        Ok(Self { name: name.into(), file, buffer: Box::new(Block([0; BLOCK])), block: 0, seed: 0 })
    }

    /// Reads and checks the next block; `false` at the end of the disk.
    pub fn next(&mut self) -> Result<bool, String> {
        let name = &self.name;
        let buffer = &mut self.buffer.0;
        match self.file.read(buffer).map_err(|error| format!("{name}: {error}"))? {
            0 => return Ok(false),
            BLOCK => {}
            short => {
                return Err(format!("{name}: block {} is only {short} bytes long", self.block));
            }
        }
        for (index, bytes) in buffer.chunks_exact(8).enumerate() {
            let seen = u64::from_le_bytes(bytes.try_into().expect("chunks_exact(8) gives 8 bytes"));
            let word = self.block * WORDS + index as u64;
            if word == 0 {
                self.seed = unmix(seen);
            }
            let expected = pattern(self.seed, word);
            if seen != expected {
                return Err(format!("{name}: word {word} is {seen:#x}, expected {expected:#x}"));
            }
        }
        self.block += 1;
        Ok(true)
    }

    /// What the first word has told.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub fn rewind(&mut self) -> Result<(), String> {
        self.block = 0;
        self.file.rewind().map_err(|error| format!("{}: {error}", self.name))
    }
}

/// The word at position `word` of the disk with this seed: word 0 tells the seed.
fn pattern(seed: u64, word: u64) -> u64 {
    mix(seed ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

const ODD: u64 = 0xd6e8_feb8_6659_fd93;

/// A bijection that spreads every bit, with its inverse.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 32)).wrapping_mul(ODD);
    x ^ (x >> 32)
}

fn unmix(x: u64) -> u64 {
    // The inverse of an odd number modulo 2^64, by Newton's iteration.
    let mut inverse = ODD;
    for _ in 0..5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(ODD.wrapping_mul(inverse)));
    }
    let x = (x ^ (x >> 32)).wrapping_mul(inverse);
    x ^ (x >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_tells_the_seed() {
        for seed in [0, 1, 29, u64::MAX] {
            assert_eq!(unmix(pattern(seed, 0)), seed);
        }
    }
}
