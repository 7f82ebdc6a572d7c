//! Moves interrupts from CPU to CPU while they fire, and watches that none arrives where it no longer belongs.
//!
//! Linux moves an IOAPIC interrupt from within its handler (`ioapic_ack_level`: mask, EOI, rewrite the entry,
//! unmask), and an MSI-X vector likewise (`irq_move_irq`: mask, rewrite the table's entry, unmask), so a move needs the
//! interrupt to fire. Once `effective_affinity` shows the new CPU the entry has been rewritten. From then on the old
//! CPU's count must stand still for a level pin; for an edge and for a message, one may have been on its way to the
//! old CPU (its LAPIC had it in IRR already).
//!
//! Behind interrupt remapping Linux moves all kinds from the thread that writes `smp_affinity`, by changing the
//! remapping entry (IRQ_MOVE_PCNTXT): then one more may be on its way of each kind. The old CPU may have taken it and not counted
//! it yet (`handle_edge_irq` and `handle_fasteoi_irq` wait for the lock that the move holds), and for an edge or a message its
//! LAPIC may have the next in IRR besides: a driver's handler also serves what arrives while it runs, so that the device sends
//! again before its last interrupt was taken. So the thread then runs on the old CPU for a moment, which has taken by then
//! what its LAPIC had: from there on its count must stand still for every kind.
//!
//! `/sys/kernel/irq/N/per_cpu_count` has the very counters of `/proc/interrupts`, without the other lines:
//! reading it is cheap enough to do several times for each move.

use crate::disk;
use crate::interrupts::{self, Row};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a move, or the next interrupt, may take before we call it lost. Two emulations deep, a
/// scheduling hiccup of a second is seen now and then.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many interrupts on the new CPU prove that the interrupt lives there now.
const ARRIVALS: u64 = 2;

/// What a CPU has taken and not counted, where a move does not happen in the interrupt's own handler.
const IN_SERVICE: u64 = 1;

struct Wire {
    name: String,
    irq: u32,
    /// How many interrupts the old CPU's LAPIC may still have after the move.
    stragglers_allowed: u64,
    /// Whether the old CPU is visited first.
    remapped: bool,
    cpu: usize,
    moves: u64,
    stragglers: u64,
}

/// How the disk interrupts, and whether that is behind interrupt remapping.
#[derive(Clone, Copy)]
pub struct Kind {
    wire: WireKind,
    remapped: bool,
}

#[derive(Clone, Copy)]
enum WireKind {
    /// By a level line, an action of its own name.
    Level,
    /// By a message vector that its queues share.
    Message,
}

impl Kind {
    pub fn of(word: &str) -> Result<Self, String> {
        let (word, remapped) = word.strip_prefix("remapped-").map_or((word, false), |word| (word, true));
        let wire = match word {
            "level" => Ok(WireKind::Level),
            "message" => Ok(WireKind::Message),
            _ => Err(format!("{word:?} is none of level, message, remapped-level, remapped-message")),
        };
        Ok(Self { wire: wire?, remapped })
    }

    fn wire(self, device: &str) -> Result<Wire, String> {
        match self.wire {
            WireKind::Level => Wire::find(device, 0, self.remapped),
            WireKind::Message => Wire::find(&format!("{device}-virtqueues"), 1, self.remapped),
        }
    }
}

pub fn run(moves: u64, seconds: u64, kind: Kind, disk: &str, edge: Option<&str>) -> Result<String, String> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let cpus = cpus()?;
    if cpus < 2 {
        return Err("an interrupt cannot move: there is only one CPU".into());
    }
    let mut wires = vec![kind.wire(&device_of(disk)?)?];
    if let Some(edge) = edge {
        wires.push(Wire::find(edge, 1, kind.remapped)?);
    }
    let load = Load::default();
    thread::scope(|scope| {
        let reader = scope.spawn(|| load.read(disk));
        if edge.is_some() {
            scope.spawn(|| load.write_terminal());
        }
        let result = move_all(&mut wires, cpus, moves, deadline, &load);
        load.stop.store(true, Ordering::Relaxed);
        let read = reader.join().map_err(|_| "the reading thread panicked".to_owned())?;
        result.and(read)
    })?;
    let mut json = format!("{{\"cpus\":{cpus},\"blocks_read\":{}", load.blocks.into_inner());
    for (kind, wire) in ["disk", "edge"].into_iter().zip(&wires) {
        let total = wire.counts()?.iter().sum::<u64>();
        json += &format!(
            ",\"{kind}\":{{\"name\":{:?},\"irq\":{},\"moves\":{},\"stragglers\":{},\"interrupts\":{total}}}",
            wire.name, wire.irq, wire.moves, wire.stragglers
        );
    }
    Ok(json + "}")
}

/// Moves each wire in turn until each was moved `moves` times or the time is up.
fn move_all(wires: &mut [Wire], cpus: usize, moves: u64, deadline: Instant, load: &Load) -> Result<(), String> {
    for _ in 0..moves {
        for wire in &mut *wires {
            if load.failed.load(Ordering::Relaxed) || Instant::now() > deadline {
                return Ok(());
            }
            wire.move_to((wire.cpu + 1) % cpus)?;
        }
    }
    Ok(())
}

impl Wire {
    fn find(action: &str, stragglers_allowed: u64, remapped: bool) -> Result<Self, String> {
        let table = read("/proc/interrupts")?;
        let rows = interrupts::parse(&table);
        let Row { irq, .. } = rows
            .into_iter()
            .find(|row| row.has_action(action))
            .ok_or_else(|| format!("/proc/interrupts has no line for {action}:\n{table}"))?;
        let cpu = effective_cpu(irq)?.ok_or_else(|| format!("{action} has more than one CPU"))?;
        let name = action.into();
        Ok(Self { name, irq, stragglers_allowed, remapped, cpu, moves: 0, stragglers: 0 })
    }

    fn move_to(&mut self, new: usize) -> Result<(), String> {
        let old = self.cpu;
        let path = format!("/proc/irq/{}/smp_affinity_list", self.irq);
        fs::write(&path, new.to_string()).map_err(|error| format!("{path}: {error}"))?;
        self.wait("effective_affinity to show the new CPU", new, |wire| Ok(effective_cpu(wire.irq)? == Some(new)))?;
        let mut before = self.counts()?;
        let mut allowed = self.stragglers_allowed;
        if self.remapped {
            run_on(1 << old)?;
            run_on(u64::MAX)?;
            let visited = self.counts()?;
            self.count_stragglers(&before, &visited, new, allowed + IN_SERVICE)?;
            (before, allowed) = (visited, 0);
        }
        self.wait("interrupts on the new CPU", new, |wire| Ok(wire.counts()?[new] >= before[new] + ARRIVALS))?;
        let after = self.counts()?;
        self.count_stragglers(&before, &after, new, allowed)?;
        self.cpu = new;
        self.moves += 1;
        Ok(())
    }

    /// What came between two looks to other CPUs than the new one; only the old one is `allowed` any.
    fn count_stragglers(&mut self, before: &[u64], after: &[u64], new: usize, allowed: u64) -> Result<(), String> {
        let old = self.cpu;
        for cpu in (0..before.len()).filter(|&cpu| cpu != new) {
            let stragglers = after[cpu] - before[cpu];
            let allowed = if cpu == old { allowed } else { 0 };
            if stragglers > allowed {
                return Err(format!(
                    "{}: after move {} (CPU {old} to {new}), CPU {cpu} took {stragglers} more interrupts, \
                     {allowed} allowed",
                    self.name, self.moves
                ));
            }
            self.stragglers += stragglers;
        }
        Ok(())
    }

    fn wait(&self, what: &str, new: usize, done: impl Fn(&Self) -> Result<bool, String>) -> Result<(), String> {
        let start = Instant::now();
        while !done(self)? {
            if start.elapsed() > PATIENCE {
                return Err(format!(
                    "{}: move {} (CPU {} to {new}): waited {} s for {what}; counts {:?}",
                    self.name,
                    self.moves,
                    self.cpu,
                    PATIENCE.as_secs(),
                    self.counts()?
                ));
            }
            thread::yield_now();
        }
        Ok(())
    }

    fn counts(&self) -> Result<Vec<u64>, String> {
        let path = format!("/sys/kernel/irq/{}/per_cpu_count", self.irq);
        let text = read(&path)?;
        text.trim().split(',').map(|count| count.parse().map_err(|_| format!("{path}: {text:?}"))).collect()
    }
}

/// What makes the interrupts fire.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    failed: AtomicBool,
    blocks: AtomicU64,
}

impl Load {
    /// Reads the disk over and over, checking what comes.
    fn read(&self, disk: &str) -> Result<(), String> {
        let result = disk::Reader::open(disk).and_then(|mut reader| {
            while !self.stop.load(Ordering::Relaxed) {
                match reader.next()? {
                    true => _ = self.blocks.fetch_add(1, Ordering::Relaxed),
                    false => reader.rewind()?,
                }
            }
            Ok(())
        });
        self.failed.fetch_or(result.is_err(), Ordering::Relaxed);
        result
    }

    /// Sends NULs, which no terminal shows, so that the UART's "transmitter empty" keeps firing.
    fn write_terminal(&self) {
        let Ok(mut terminal) = OpenOptions::new().write(true).open("/dev/ttyS0") else {
            return;
        };
        while !self.stop.load(Ordering::Relaxed) && terminal.write_all(&[0; 16]).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

unsafe extern "C" {
    fn sched_setaffinity(thread: i32, size: usize, cpus: *const u64) -> i32;
}

/// Has this thread run on these CPUs only, from when it returns.
fn run_on(cpus: u64) -> Result<(), String> {
    // SAFETY: the mask is as large as we say, and read only during the call.
    let failed = unsafe { sched_setaffinity(0, size_of_val(&cpus), &raw const cpus) } != 0;
    if failed { Err(format!("sched_setaffinity: {}", std::io::Error::last_os_error())) } else { Ok(()) }
}

/// The one CPU that the interrupt goes to now.
fn effective_cpu(irq: u32) -> Result<Option<usize>, String> {
    Ok(read(&format!("/proc/irq/{irq}/effective_affinity_list"))?.trim().parse().ok())
}

/// The virtio device behind a disk: `/sys/block/vda/device` links to `…/virtio3`.
pub fn device_of(disk: &str) -> Result<String, String> {
    let name = disk.trim_start_matches("/dev/");
    let link = format!("/sys/block/{name}/device");
    let target = fs::read_link(&link).map_err(|error| format!("{link}: {error}"))?;
    let device = target.file_name().ok_or_else(|| format!("{link} names no device"))?;
    Ok(device.to_string_lossy().into_owned())
}

fn cpus() -> Result<usize, String> {
    let table = read("/proc/interrupts")?;
    Ok(table.lines().next().map_or(0, |header| header.matches("CPU").count()))
}

pub fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}
