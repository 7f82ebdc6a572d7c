//! A 16550 on stdout: vm-superio's, whose interrupt is a line source as it is.

use irqfabric::line::LineSource;
use std::io::{Stdout, stdout};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::Serial;
use vm_superio::serial::SerialEvents;

/// The first serial port of a PC: its ports and its GSI.
pub const COM1: u16 = 0x3f8;
/// How many ports it has.
pub const PORTS: u16 = 8;
/// ISA interrupt 4, edge.
pub const COM1_GSI: u32 = 4;
const LOOP_BACK_PAUSE: Duration = Duration::from_millis(10);

/// The port, for the guest's bus and for whoever types into it.
pub struct SerialPort {
    uart: Mutex<Serial<LineSource, Arc<Drained>, Stdout>>,
    drained: Arc<Drained>,
}

/// Wakes whoever waits for room in the receive FIFO.
#[derive(Default)]
struct Drained(Condvar);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.notify_all();
    }
}

impl SerialPort {
    /// A port that interrupts by `source`, an edge each time.
    pub fn new(source: LineSource) -> Self {
        let drained = Arc::new(Drained::default());
        Self { uart: Mutex::new(Serial::with_events(source, drained.clone(), stdout())), drained }
    }

    /// Puts all of `input` into the receive FIFO, as the guest makes room for it.
    pub fn type_in(&self, mut input: &[u8]) {
        while !input.is_empty() {
            let mut uart = self.lock();
            match uart.enqueue_raw_bytes(input) {
                // In loop-back mode the wire is cut off: Linux probes that way, and what is typed can wait.
                Ok(0) => {
                    drop(uart);
                    std::thread::sleep(LOOP_BACK_PAUSE);
                }
                Ok(taken) => input = &input[taken..],
                Err(_) => drop(self.drained.0.wait(uart).unwrap_or_else(PoisonError::into_inner)),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Serial<LineSource, Arc<Drained>, Stdout>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Its registers are a byte wide; of a wider access, or a string, each byte is one access.
impl DevicePio for SerialPort {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill_with(|| self.lock().read(offset as u8));
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        for &byte in data {
            // Fails when stdout is gone: the guest goes on without it, as it would without a cable.
            let _ = self.lock().write(offset as u8, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use irqfabric::line::{Level, Line, Pin};

    struct Nowhere;

    impl Pin for Nowhere {
        fn set(&self, _: Level) {}
    }

    const DATA: u16 = 0;
    const MODEM_CONTROL: u16 = 4;
    const LINE_STATUS: u16 = 5;

    fn read(port: &SerialPort, offset: u16) -> u8 {
        let mut data = [0];
        port.pio_read(PioAddress(COM1), offset, &mut data);
        data[0]
    }

    fn receive(port: &SerialPort) -> u8 {
        while read(port, LINE_STATUS) & 1 == 0 {
            std::thread::yield_now();
        }
        read(port, DATA)
    }

    #[test]
    fn more_input_than_the_fifo_holds_arrives_whole_also_after_loop_back() {
        let port = SerialPort::new(Line::new(vec![Arc::new(Nowhere)]).source("serial"));
        port.pio_write(PioAddress(COM1), MODEM_CONTROL, &[0x10]);
        let input: Vec<u8> = (0..=255).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| port.type_in(&input));
            std::thread::sleep(2 * LOOP_BACK_PAUSE);
            port.pio_write(PioAddress(COM1), MODEM_CONTROL, &[0]);
            assert!(input.iter().all(|byte| receive(&port) == *byte));
        });
    }
}
