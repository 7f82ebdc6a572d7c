//! The user's side of the serial console: what is typed, or piped in, goes to the guest.
//!
//! A terminal is in raw mode while the console lives, so that the guest sees every key; Ctrl-C alone stays ours and stops
//! the machine. End of file means no more input, not the end.

use super::serial::SerialPort;
use crate::error::Error;
use crate::machine::{Stop, StopSwitch};
use std::fs::File;
use std::io::{IsTerminal, Read, stdin};
use std::os::fd::AsFd;
use std::sync::Arc;
use vmm_sys_util::terminal::Terminal;

const CTRL_C: u8 = 3;

/// Feeds stdin to a guest. Dropping it gives the terminal back as it was found; its thread sleeps in a read until the
/// process ends.
pub struct Console {
    raw: bool,
}

impl Console {
    /// Starts to feed stdin to `serial`. Without a usable stdin there is simply no input.
    pub fn start(serial: Arc<SerialPort>, stop: StopSwitch) -> Result<Self, Error> {
        let terminal = stdin().is_terminal();
        let raw = terminal && stdin().lock().set_raw_mode().is_ok();
        let console = Self { raw };
        // A handle of its own: std's stdin would stay locked for as long as the thread waits in a read.
        if let Ok(input) = stdin().as_fd().try_clone_to_owned() {
            let feed = move || feed(File::from(input), &serial, &stop, terminal);
            std::thread::Builder::new()
                .name("console".into())
                .spawn(feed)
                .map_err(|source| Error::Host { what: "start the console's thread", source })?;
        }
        Ok(console)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if self.raw {
            // Nothing can be done about a terminal that has gone away.
            let _ = stdin().lock().set_canon_mode();
        }
    }
}

fn feed(mut input: File, serial: &SerialPort, stop: &StopSwitch, terminal: bool) {
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = input.read(&mut buffer) {
        let typed = &buffer[..length];
        if terminal && typed.contains(&CTRL_C) {
            stop.throw(Stop::Signal(signal_hook::consts::SIGINT));
            return;
        }
        serial.type_in(typed);
    }
}
