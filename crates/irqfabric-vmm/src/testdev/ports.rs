//! Ports by which a test image ends the run and drives interrupt lines.
//!
//! 0xf4: isa-debug-exit; a value v ends the process with status (v << 1) | 1. 0x2000 + GSI: a byte, its lowest bit is the
//! level of a line source of that GSI (QEMU `hw/misc/pc-testdev.c`, test-irq-line).

use crate::error::Error;
use crate::machine::{Machine, Stop, StopSwitch};
use irqfabric::line::{Level, LineSource};
use std::sync::Arc;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

const DEBUG_EXIT: u16 = 0xf4;
const DEBUG_EXIT_PORTS: u16 = 4;
const LINES: u16 = 0x2000;
/// A PC's one IOAPIC.
const LINE_COUNT: u16 = 24;

/// Puts both on the bus.
pub fn attach(machine: &mut Machine) -> Result<(), Error> {
    let exit = Arc::new(DebugExit(machine.stop_switch().clone()));
    machine.register_pio(DEBUG_EXIT, DEBUG_EXIT_PORTS, exit)?;
    let source = |gsi| Ok(machine.fabric().line(gsi)?.source(format!("test line {gsi}")));
    let sources = (0..u32::from(LINE_COUNT)).map(source).collect::<Result<Vec<_>, Error>>()?;
    machine.register_pio(LINES, LINE_COUNT, Arc::new(TestLines(sources)))
}

struct DebugExit(StopSwitch);

impl DevicePio for DebugExit {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        self.0.throw(Stop::DebugExit(u32::from_le_bytes(bytes)));
    }
}

struct TestLines(Vec<LineSource>);

impl DevicePio for TestLines {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {}

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (Some(source), &[level]) = (self.0.get(usize::from(offset)), data) {
            source.set(if level & 1 == 0 { Level::Low } else { Level::High });
        }
    }
}
