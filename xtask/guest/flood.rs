//! Devices that share one interrupt, all busy at once, until it has fired so many times: every word that is read is
//! checked, and no request may hang.

use crate::disk;
use crate::interrupts;
use crate::moves::{device_of, read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What one disk's reader has done.
#[derive(Default)]
struct Progress {
    blocks: AtomicU64,
    seed: AtomicU64,
}

pub fn run(interrupts: u64, seconds: u64, disks: &[&str]) -> Result<String, String> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let devices: Vec<String> = disks.iter().map(|disk| device_of(disk)).collect::<Result<_, _>>()?;
    let irq = shared(&devices)?;
    let before = count(irq)?;
    let progress: Vec<Progress> = disks.iter().map(|_| Progress::default()).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let start = |(disk, progress)| scope.spawn(move || flood(disk, progress, stop));
        let readers: Vec<_> = disks.iter().copied().zip(&progress).map(start).collect();
        let result = wait(irq, before + interrupts, deadline, &progress, stop);
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().map_err(|_| "a reading thread panicked".to_owned())??;
        }
        result
    })?;
    let fired = count(irq)? - before;
    let of = |(disk, progress): (&str, &Progress)| {
        let (blocks, seed) = (progress.blocks.load(Ordering::Relaxed), progress.seed.load(Ordering::Relaxed));
        format!("{{\"disk\":{disk:?},\"seed\":{seed},\"blocks\":{blocks}}}")
    };
    let disks: Vec<String> = disks.iter().copied().zip(&progress).map(of).collect();
    Ok(format!("{{\"irq\":{irq},\"interrupts\":{fired},\"disks\":[{}]}}", disks.join(",")))
}

/// The one interrupt of all devices.
fn shared(devices: &[String]) -> Result<u32, String> {
    let table = read("/proc/interrupts")?;
    let rows = interrupts::parse(&table);
    let row = rows.iter().find(|row| devices.iter().all(|device| row.has_action(device)));
    Ok(row.ok_or_else(|| format!("{devices:?} do not share an interrupt:\n{table}"))?.irq)
}

fn count(irq: u32) -> Result<u64, String> {
    let path = format!("/sys/kernel/irq/{irq}/per_cpu_count");
    let text = read(&path)?;
    text.trim().split(',').map(|count| count.parse::<u64>().map_err(|_| format!("{path}: {text:?}"))).sum()
}

/// Until the interrupt has fired often enough. The time is up sooner when something is lost: then its reader waits for ever.
fn wait(irq: u32, until: u64, deadline: Instant, progress: &[Progress], stop: &AtomicBool) -> Result<(), String> {
    while count(irq)? < until && !stop.load(Ordering::Relaxed) {
        if Instant::now() > deadline {
            let blocks: Vec<u64> = progress.iter().map(|progress| progress.blocks.load(Ordering::Relaxed)).collect();
            return Err(format!("time is up: interrupt {irq} at {} of {until}, blocks read {blocks:?}", count(irq)?));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Reads one disk over and over; a reader that fails stops all.
fn flood(disk: &str, progress: &Progress, stop: &AtomicBool) -> Result<(), String> {
    let result = disk::Reader::open(disk).and_then(|mut reader| {
        while !stop.load(Ordering::Relaxed) {
            match reader.next()? {
                true => _ = progress.blocks.fetch_add(1, Ordering::Relaxed),
                false => reader.rewind()?,
            }
            progress.seed.store(reader.seed(), Ordering::Relaxed);
        }
        Ok(())
    });
    stop.fetch_or(result.is_err(), Ordering::Relaxed);
    result
}
