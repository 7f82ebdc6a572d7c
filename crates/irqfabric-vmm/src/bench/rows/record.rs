//! What a record costs whoever makes it, and that it costs nothing where nobody records.

use super::super::error::Error;
use super::super::machine::Machine;
use super::super::measure::{Rounds, time};
use super::Measured;
use irqfabric::record::Recorder;
use std::io;
use std::thread;
use std::time::Duration;

const BATCH: usize = 128;

/// Nanoseconds that a record may cost.
const MOST: f64 = 100.0;

/// A register read by a guest: one record each, against the same read of a machine without a recorder. The writer's thread, which has
/// time between the batches, is not in it.
pub fn record(rounds: Rounds) -> Result<Measured, Error> {
    let recorder =
        Recorder::start(io::sink()).map_err(|why| Error::call("start of a recorder")(io::Error::other(why)))?;
    let recorded = Machine::build(|builder| builder.record(&recorder))?;
    let silent = Machine::build(|builder| builder)?;
    let read = |machine: &Machine| {
        time(|| {
            for _ in 0..BATCH {
                std::hint::black_box(machine.read_window());
            }
        })
    };
    let mut ours = || {
        let took = read(&recorded);
        // A few times what writing the batch takes, so that the buffer never overflows.
        thread::sleep(Duration::from_micros(500));
        Ok(took)
    };
    let [ours, floor] = rounds.measure(BATCH, [&mut ours, &mut || Ok(read(&silent))])?;
    drop(recorded);
    let made = recorder.finish().map_err(|why| Error::call("end of a recorder")(io::Error::other(why)))?;
    let cost = ours.median() - floor.median();
    let measured = Measured::new([ours, floor], "not recorded").with_calls(0.0, Some(0.0));
    Ok(measured.with_fact("nanoseconds a record", cost, Some(MOST)).with_fact(
        "records lost",
        made.lost as f64,
        Some(0.0),
    ))
}
