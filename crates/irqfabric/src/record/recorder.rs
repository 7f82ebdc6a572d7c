//! Who records: a buffer for each thread that makes steps, and one thread that writes what is in them.
//!
//! A step on an interrupt's path costs a lock that nobody else wants and a copy; it waits for no file. Buffers have a bound:
//! what does not fit is counted and leaves its number out, so that a replay knows where to stop.

use super::file::{self, Line};
use super::step::{Begins, Step};
use super::tape::Tapes;
use std::cell::RefCell;
use std::io::{self, BufWriter, Write};
use std::mem;
use std::sync::atomic::{
    AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

/// Records that a thread's buffer holds: some 5 MiB.
const BUFFER: usize = 1 << 16;

/// How long records stay in their buffers. A buffer that is half full does not wait.
const PERIOD: Duration = Duration::from_millis(20);

/// Records what goes on in the fabrics that are [built](crate::fabric::FabricBuilder::record) with it.
///
/// ```
/// use irqfabric::{chip::ioapic::Ioapic, fabric::Fabric, hv::Sim};
/// use irqfabric::record::{Recorder, replay};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let path = std::env::temp_dir().join(format!("irqfabric-doc-{}", std::process::id()));
/// let recorder = Recorder::start(std::fs::File::create(&path)?)?;
/// let fabric = Fabric::builder(Sim::new(1)).ioapic(Ioapic::default()).record(&recorder).build()?;
/// fabric.line(4)?.source("serial").pulse();
/// drop(fabric);
/// recorder.finish()?;
///
/// let replayed = replay(std::io::BufReader::new(std::fs::File::open(&path)?), |_| {})?;
/// assert!(replayed.difference.is_none());
/// # std::fs::remove_file(&path)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<Result<Recorded, RecordError>>>,
}

/// What is in a recording that was finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Recorded {
    /// State machines.
    pub machines: u64,
    /// Steps of theirs.
    pub records: u64,
    /// Steps for which there was no room.
    pub lost: u64,
}

/// Why there is no recording, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The writer's thread could not be started.
    #[error("cannot start a thread to write the recording: {0}")]
    Thread(io::Error),
    /// The file could not be written. What is there of it is no recording.
    #[error("cannot write the recording: {0}")]
    Write(#[from] io::Error),
    /// The writer's thread has panicked.
    #[error("the thread that writes the recording is gone")]
    Gone,
}

#[derive(Debug)]
pub(crate) struct Shared {
    /// Tells recorders of a process apart.
    id: u64,
    buffers: Mutex<Vec<Arc<Buffer>>>,
    machines: Mutex<Machines>,
    lost: AtomicU64,
    closed: AtomicBool,
    writer: OnceLock<Thread>,
}

#[derive(Debug, Default)]
struct Machines {
    next: u32,
    /// Not written yet.
    begun: Vec<(u32, Begins)>,
}

#[derive(Debug, Default)]
struct Buffer {
    records: Mutex<Vec<Record>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub machine: u32,
    pub number: u64,
    pub step: Step,
}

thread_local! {
    /// This thread's buffers, by recorder.
    static BUFFERS: RefCell<Vec<(u64, Arc<Buffer>)>> = const { RefCell::new(Vec::new()) };
}

impl Recorder {
    /// Starts the thread that writes to `file`. Give it a file, not a buffered writer: it is buffered here.
    pub fn start(file: impl Write + Send + 'static) -> Result<Self, RecordError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let shared = Arc::new(Shared {
            id: NEXT.fetch_add(1, Relaxed),
            buffers: Mutex::default(),
            machines: Mutex::default(),
            lost: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            writer: OnceLock::new(),
        });
        let writer = {
            let shared = shared.clone();
            let write = move || {
                let written = shared.write(BufWriter::with_capacity(1 << 16, file));
                // Nobody records for a file that takes no more.
                shared.closed.store(true, Release);
                written
            };
            thread::Builder::new().name("recorder".into()).spawn(write).map_err(RecordError::Thread)?
        };
        // Set once.
        let _ = shared.writer.set(writer.thread().clone());
        Ok(Self { shared, writer: Some(writer) })
    }

    /// Ends the recording: what happens later is not in it. Call it when the machine has stopped. Until it has returned without an error
    /// there is no recording: it may have been the last write that failed.
    pub fn finish(mut self) -> Result<Recorded, RecordError> {
        self.close();
        match self.writer.take() {
            Some(writer) => writer.join().map_err(|_| RecordError::Gone)?,
            None => Err(RecordError::Gone),
        }
    }

    pub(crate) fn tapes(&self) -> Tapes {
        Tapes { shared: Some(self.shared.clone()) }
    }

    fn close(&self) {
        self.shared.closed.store(true, Release);
        self.shared.wake();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// A new machine. Its steps follow.
    pub(super) fn begin(&self, begins: Begins) -> u32 {
        let mut machines = lock(&self.machines);
        let machine = machines.next;
        machines.next += 1;
        machines.begun.push((machine, begins));
        machine
    }

    /// Called with the machine's lock held. Allocates while the thread's buffer grows, and not for a record.
    pub(super) fn push(&self, machine: u32, number: u64, step: Step) {
        let pushed = BUFFERS.try_with(|buffers| {
            let mut buffers = buffers.borrow_mut();
            let buffer = match buffers.iter().find(|(id, _)| *id == self.id) {
                Some((_, buffer)) => buffer,
                None => {
                    // Of recorders that are gone, nobody else knows the buffer.
                    buffers.retain(|(_, buffer)| Arc::strong_count(buffer) > 1);
                    buffers.push((self.id, self.buffer()));
                    let Some((_, buffer)) = buffers.last() else { return false };
                    buffer
                }
            };
            self.fill(buffer, Record { machine, number, step })
        });
        if !pushed.unwrap_or(false) {
            self.lost.fetch_add(1, AcqRel);
        }
    }

    fn fill(&self, buffer: &Buffer, record: Record) -> bool {
        let mut records = lock(&buffer.records);
        // Under this lock: what comes after the last look into the buffer finds it closed, and what follows that as well.
        if self.closed.load(Acquire) || records.len() >= BUFFER {
            return false;
        }
        records.push(record);
        let wakes = records.len() == BUFFER / 2;
        drop(records);
        if wakes {
            self.wake();
        }
        true
    }

    #[cold]
    fn buffer(&self) -> Arc<Buffer> {
        let buffer = Arc::new(Buffer::default());
        lock(&self.buffers).push(buffer.clone());
        buffer
    }

    fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    fn write(&self, mut file: impl Write) -> Result<Recorded, RecordError> {
        let mut written = Recorded::default();
        let mut spare = Vec::new();
        file::write(&mut file, &Line::header())?;
        loop {
            // Before the last look.
            let closed = self.closed.load(Acquire);
            let buffers = lock(&self.buffers).clone();
            for buffer in &buffers {
                mem::swap(&mut *lock(&buffer.records), &mut spare);
                // A machine is begun before its first step: those of the steps at hand are among these.
                for (machine, begins) in mem::take(&mut lock(&self.machines).begun) {
                    file::write(&mut file, &Line::Begins { machine, begins })?;
                    written.machines += 1;
                }
                for Record { machine, number, step } in spare.drain(..) {
                    file::write(&mut file, &Line::Step { machine, number: Some(number), step })?;
                    written.records += 1;
                }
            }
            drop(buffers);
            // Threads end.
            lock(&self.buffers).retain(|buffer| Arc::strong_count(buffer) > 1 || !lock(&buffer.records).is_empty());
            if closed {
                break;
            }
            thread::park_timeout(PERIOD);
        }
        for (machine, begins) in mem::take(&mut lock(&self.machines).begun) {
            file::write(&mut file, &Line::Begins { machine, begins })?;
            written.machines += 1;
        }
        written.lost = self.lost.load(Acquire);
        file::write(&mut file, &Line::End { records: written.records, lost: written.lost })?;
        file.flush()?;
        Ok(written)
    }
}

/// A panic elsewhere is no reason for another.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
