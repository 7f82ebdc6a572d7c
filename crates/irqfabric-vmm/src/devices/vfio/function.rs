//! The device on our bus: every access of the guest's comes here, but those that [`Mappings`] have taken.

use super::address::Address;
use super::bars::{AddressSpace, Mappings, Slots};
use super::config::{Config, Shape, Written};
use super::host::{Physical, Region};
use super::signals::Signals;
use crate::devices::pci::{self, Bar};
use crate::error::Error;
use irqfabric::fabric::{Fabric, MsiVector};
use irqfabric::msg::RequesterId;
use irqfabric::pci::intx::IntxPin;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where the guest finds a device.
pub struct Place<'a> {
    /// Its slot, of which it is function 0.
    pub slot: u8,
    /// Its pin, if it has one, and the GSI where that ends.
    pub pin: IntxPin,
    pub gsi: u32,
    /// Without MSI and MSI-X.
    pub only_pin: bool,
    /// The addresses of the bus, and one for a BAR of this size.
    pub window: Range<u64>,
    pub bar: &'a mut dyn FnMut(u64) -> Option<u32>,
}

/// A device of the host's as a function of the guest's.
pub struct Function {
    address: Address,
    device: Arc<dyn Physical>,
    window: Range<u64>,
    registers: Mutex<Registers>,
}

struct Registers {
    // Dropped before the device, and so unmapped and let go.
    mappings: Mappings,
    signals: Signals,
    config: Config,
}

impl Function {
    /// A device at its place in a guest. It signals with its pin until the guest enables messages.
    pub fn new(
        address: Address,
        device: impl Physical + 'static,
        place: Place<'_>,
        fabric: &Fabric,
        vm: Arc<dyn AddressSpace>,
        slots: &Slots,
    ) -> Result<Self, Error> {
        let device: Arc<dyn Physical> = Arc::new(device);
        let Place { slot, pin, gsi, only_pin, window, bar } = place;
        let shape = Shape { pin: pin.register(), line: gsi as u8, only_pin, place: bar };
        let config = Config::new(&*device, shape).map_err(|why| Error::vfio(address, why))?;
        let mappings = Mappings::new(vm, slots, &*device, config.bar_numbers(), config.msix());
        let vectors = fabric.msi_vectors(RequesterId::new(0, slot, 0), config.vectors().into());
        let mut signals = Signals::new(device.clone(), fabric.clone(), address.to_string(), gsi, vectors);
        let followed = signals.follow(config.signalling(), |vector| config.vector(vector));
        followed.map_err(|why| Error::vfio(address, why))?;
        Ok(Self { address, device, window, registers: Mutex::new(Registers { mappings, signals, config }) })
    }

    /// Its address on the host, for reports.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// Handles to its vectors, for reports.
    pub fn vectors(&self) -> Box<[MsiVector]> {
        self.registers().signals.vectors().to_vec().into()
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an access touches the MSI-X table or the PBA.
fn is_ours(config: &Config, bar: u8, offset: u64, length: usize) -> bool {
    let end = offset.saturating_add(length as u64);
    config.msix().is_some_and(|msix| msix.ranges(bar).any(|range| range.start < end && offset < range.end))
}

impl pci::Function for Function {
    fn read_config(&self, offset: u8, data: &mut [u8]) {
        let Registers { config, signals, .. } = &*self.registers();
        config.read(&*self.device, offset, data, |vector| signals.vectors().pending(vector.into()));
    }

    fn write_config(&self, offset: u8, data: &[u8]) {
        let Registers { config, signals, mappings } = &mut *self.registers();
        let Written { forward, changed } = config.write(offset, data);
        if changed && let Err(error) = signals.follow(config.signalling(), |vector| config.vector(vector)) {
            tracing::error!(error, "a device cannot signal as its guest wants it to");
        }
        let bars = config.bars();
        // A BAR that the device does not answer to must be nobody's memory: VFIO would have nothing to map.
        mappings.hide_but(&bars, &self.window);
        for (offset, part) in forward {
            self.device.write(Region::Configuration, offset.into(), &data[part]);
        }
        mappings.show(&bars, &self.window);
    }

    fn bars(&self) -> Vec<Bar> {
        self.registers().config.bars()
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let registers = self.registers();
        match registers.config.msix().filter(|_| is_ours(&registers.config, bar, offset, data.len())) {
            Some(msix) => {
                let vectors = registers.signals.vectors();
                msix.read_bar(bar, offset, data, |vector| vectors.pending(vector.into()));
            }
            None => {
                drop(registers);
                self.device.read(Region::Bar(bar), offset, data);
            }
        }
    }

    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) {
        let mut registers = self.registers();
        let Registers { config, signals, .. } = &mut *registers;
        if is_ours(config, bar, offset, data.len()) {
            let changed = config.write_table(bar, offset, data);
            signals.configure(changed, |vector| config.vector(vector));
        } else {
            drop(registers);
            self.device.write(Region::Bar(bar), offset, data);
        }
    }
}
