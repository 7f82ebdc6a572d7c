//! What a virtio block device does: requests against a raw file (virtio 1.2, 5.2.6).
//!
//! The driver chose every byte and every descriptor. A request that makes no sense is answered with an error status if it
//! has room for one, and is given back empty if it has not; the file is never touched outside its whole sectors.

use crate::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::ops::Deref;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_queue::{DescriptorChain, Reader, Writer};
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::BitmapSlice;

const SECTOR: u64 = 512;
/// How much is copied at a time, whatever the request's size.
const CHUNK: usize = 64 << 10;

/// A raw image or block device, as a disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    queues: u16,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
}

/// Why a request cannot be done.
enum Refusal {
    Unsupported,
    Failed,
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Failed
    }
}

impl Disk {
    /// Opens an image. A tail that is not a whole sector is left out.
    pub fn open(path: &Path, read_only: bool, id: &str) -> Result<Self, Error> {
        let failed = |why: io::Error| Error::file("disk", path, why);
        let mut file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::file("disk", path, "is neither a file nor a block device"));
        }
        // The size of a block device is where its end is, not what its metadata say.
        let sectors = file.seek(io::SeekFrom::End(0)).map_err(failed)? / SECTOR;
        if sectors == 0 {
            return Err(Error::file("disk", path, "has not even one sector of 512 bytes"));
        }
        let mut bytes = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Ok(Self { file, sectors, read_only, queues: 1, id: bytes })
    }

    /// The same with several queues, one at the least, for a request in each at a time.
    pub fn with_queues(self, queues: u16) -> Self {
        Self { queues: queues.max(1), ..self }
    }

    /// How many queues it has.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// The feature bits that come of what it is.
    pub fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_FLUSH
            | u64::from(self.read_only) << VIRTIO_BLK_F_RO
            | u64::from(self.queues > 1) << VIRTIO_BLK_F_MQ
    }

    /// The configuration space (5.2.4): the capacity, at its end the number of queues, and nothing in between.
    pub fn config(&self) -> [u8; 36] {
        let mut config = [0; 36];
        config[..8].copy_from_slice(&self.sectors.to_le_bytes());
        config[34..].copy_from_slice(&self.queues.to_le_bytes());
        config
    }

    /// Does one request. Returns how many bytes the driver may look at.
    pub fn execute<M>(&self, memory: &GuestMemoryMmap, chain: DescriptorChain<M>) -> u32
    where
        M: Deref<Target = GuestMemoryMmap> + Clone,
    {
        let (Ok(mut reader), Ok(mut writer)) = (chain.clone().reader(memory), chain.writer(memory)) else { return 0 };
        // The last byte that the device may write is the status.
        let Some(room) = writer.available_bytes().checked_sub(1) else { return 0 };
        let Ok(mut status) = writer.split_at(room) else { return 0 };
        let answer = match self.request(&mut reader, &mut writer) {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Refusal::Unsupported) => VIRTIO_BLK_S_UNSUPP,
            Err(Refusal::Failed) => VIRTIO_BLK_S_IOERR,
        };
        let answered = status.write_all(&[answer as u8]).is_ok();
        u32::try_from(writer.bytes_written() + usize::from(answered)).unwrap_or(u32::MAX)
    }

    fn request<B: BitmapSlice>(&self, reader: &mut Reader<'_, B>, writer: &mut Writer<'_, B>) -> Result<(), Refusal> {
        let mut header = [0; 16];
        reader.read_exact(&mut header)?;
        // Type, 32 bits; priority, 32; sector, 64.
        let header = u128::from_le_bytes(header);
        let sector = (header >> 64) as u64;
        match header as u32 {
            VIRTIO_BLK_T_IN => {
                let (start, length) = self.range(sector, writer.available_bytes())?;
                copy(length, |chunk, done| {
                    self.file.read_exact_at(chunk, start + done)?;
                    writer.write_all(chunk)
                })
            }
            VIRTIO_BLK_T_OUT if !self.read_only => {
                let (start, length) = self.range(sector, reader.available_bytes())?;
                copy(length, |chunk, done| {
                    reader.read_exact(chunk)?;
                    self.file.write_all_at(chunk, start + done)
                })
            }
            VIRTIO_BLK_T_OUT => Err(Refusal::Failed),
            VIRTIO_BLK_T_FLUSH => Ok(self.file.sync_data()?),
            VIRTIO_BLK_T_GET_ID => Ok(writer.write_all(&self.id)?),
            _ => Err(Refusal::Unsupported),
        }
    }

    /// Where in the file `length` bytes from `sector` on are: whole sectors inside the disk, or nowhere.
    fn range(&self, sector: u64, length: usize) -> Result<(u64, usize), Refusal> {
        let sectors = length as u64 / SECTOR;
        let whole = (length as u64).is_multiple_of(SECTOR);
        let inside = sector.checked_add(sectors).is_some_and(|end| end <= self.sectors);
        if whole && inside { Ok((sector * SECTOR, length)) } else { Err(Refusal::Failed) }
    }
}

/// Moves `length` bytes by way of one buffer: `step` is given a chunk and how much has been moved before it.
fn copy(length: usize, mut step: impl FnMut(&mut [u8], u64) -> io::Result<()>) -> Result<(), Refusal> {
    let mut buffer = vec![0; length.min(CHUNK)];
    let mut done = 0;
    while done < length {
        let chunk = &mut buffer[..(length - done).min(CHUNK)];
        step(chunk, done as u64)?;
        done += chunk.len();
    }
    Ok(())
}
