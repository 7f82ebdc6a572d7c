//! The ways out of a machine: ACPI's sleep and reset registers, and the keyboard controller's reset line.
//!
//! Sleep control and status are those of hardware-reduced ACPI (ACPI 6.5, 4.8.3.7): a write of SLP_EN with the type that
//! the DSDT names for S5 switches off. A machine with a PIC has the fixed ones instead, PM1 events and PM1 control
//! (4.8.3.1, 4.8.3.2); nothing is in the way of having both.

use crate::machine::{Machine, Stop, StopSwitch};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_device::{DevicePio, MutDevicePio};
use vm_superio::{I8042Device, Trigger};

/// Where SLEEP_CONTROL_REG is.
pub const SLEEP_CONTROL: u16 = 0x600;
/// Where SLEEP_STATUS_REG is.
pub const SLEEP_STATUS: u16 = 0x601;
/// Where RESET_REG is.
pub const RESET: u16 = 0x602;
/// Where PM1_STS and PM1_EN are, 16 bits each.
pub const PM1_EVENT: u16 = 0x604;
/// Both of them.
pub const PM1_EVENT_LENGTH: u8 = 4;
/// Where PM1_CNT is.
pub const PM1_CONTROL: u16 = 0x608;
/// 16 bits.
pub const PM1_CONTROL_LENGTH: u8 = 2;
/// What to write there.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5.
pub const SLEEP_TYPE_S5: u8 = 5;

const I8042: u16 = 0x60;
const I8042_PORTS: u16 = 5;

/// Puts both on the bus.
pub fn attach(machine: &mut Machine) -> Result<(), crate::error::Error> {
    let stop = machine.stop_switch().clone();
    let keyboard = Keyboard(I8042Device::new(ResetLine(stop.clone())));
    machine.register_pio(SLEEP_CONTROL, RESET - SLEEP_CONTROL + 1, Arc::new(Power(stop.clone())))?;
    let pm1 = Pm1 { stop, enable: AtomicU16::new(0) };
    machine.register_pio(PM1_EVENT, PM1_CONTROL - PM1_EVENT + u16::from(PM1_CONTROL_LENGTH), Arc::new(pm1))?;
    machine.register_pio(I8042, I8042_PORTS, Arc::new(Mutex::new(keyboard)))
}

struct Power(StopSwitch);

impl DevicePio for Power {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        const SLEEP_ENABLE: u8 = 1 << 5;
        const OFF: u8 = SLEEP_ENABLE | SLEEP_TYPE_S5 << 2;
        match (base.0 + offset, data) {
            (SLEEP_CONTROL, [OFF]) => self.0.throw(Stop::PowerOff),
            (RESET, [RESET_VALUE]) => self.0.throw(Stop::Reset),
            _ => {}
        }
    }
}

/// The fixed registers: no event ever comes, and ACPI mode is all there is.
struct Pm1 {
    stop: StopSwitch,
    enable: AtomicU16,
}

const PM1_ENABLE: u16 = PM1_EVENT + 2;

impl DevicePio for Pm1 {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        const SCI_ENABLED: u16 = 1;
        let value = match base.0 + offset {
            PM1_ENABLE => self.enable.load(Relaxed),
            PM1_CONTROL => SCI_ENABLED,
            _ => 0,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes().into_iter().chain([0, 0])) {
            *to = from;
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        const SLEEP_ENABLE: u16 = 1 << 13;
        const SLEEP_TYPE: u16 = 7 << 10;
        const OFF: u16 = SLEEP_ENABLE | (SLEEP_TYPE_S5 as u16) << 10;
        let &[low, high] = data else { return };
        let value = u16::from_le_bytes([low, high]);
        match base.0 + offset {
            PM1_ENABLE => self.enable.store(value, Relaxed),
            PM1_CONTROL if value & (SLEEP_ENABLE | SLEEP_TYPE) == OFF => self.stop.throw(Stop::PowerOff),
            _ => {}
        }
    }
}

struct ResetLine(StopSwitch);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.throw(Stop::Reset);
        Ok(())
    }
}

struct Keyboard(I8042Device<ResetLine>);

impl MutDevicePio for Keyboard {
    fn pio_read(&mut self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill_with(|| self.0.read(offset as u8));
    }

    fn pio_write(&mut self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        for &byte in data {
            let Ok(()) = self.0.write(offset as u8, byte);
        }
    }
}
