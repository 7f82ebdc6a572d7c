//! What a device signals with, told to VFIO: the eventfds of the fabric's vectors, or those of its pin's line.
//!
//! VFIO knows one kind at a time and nothing of masks. INTx is a level: VFIO masks it when it has written the trigger
//! eventfd, and unmasks it when the fabric writes the resample eventfd, at the guest's end of interrupt.

use super::config::Signalling;
use super::host::{Kind, Physical};
use irqfabric::fabric::{Fabric, LineEventfds, MsiVectors};
use irqfabric::pci::VectorConfig;
use std::sync::Arc;

/// The interrupts of one device.
pub struct Signals {
    device: Arc<dyn Physical>,
    fabric: Fabric,
    /// For reports.
    name: String,
    /// Where its pin ends.
    gsi: u32,
    vectors: MsiVectors,
    now: Signalling,
    /// While it signals with its pin. Dropping them takes the device off the line.
    line: Option<LineEventfds>,
}

impl Signals {
    /// Those of a device that signals with nothing yet.
    pub fn new(device: Arc<dyn Physical>, fabric: Fabric, name: String, gsi: u32, vectors: MsiVectors) -> Self {
        Self { device, fabric, name, gsi, vectors, now: Signalling::Nothing, line: None }
    }

    /// Its vectors.
    pub fn vectors(&self) -> &MsiVectors {
        &self.vectors
    }

    /// Vectors and their kind are what the guest's registers say.
    ///
    /// What the device must not use any more it is not told of when the vectors change; what is new to it finds them ready.
    pub fn follow(&mut self, wanted: Signalling, config: impl Fn(u16) -> VectorConfig) -> Result<(), String> {
        if self.now != wanted {
            self.disable();
        }
        self.configure(0..self.vectors.len() as u16, config);
        if self.now != wanted { self.enable(wanted) } else { Ok(()) }
    }

    /// Some vectors are what the guest's table says: nothing of VFIO's.
    pub fn configure(&self, vectors: impl Iterator<Item = u16>, config: impl Fn(u16) -> VectorConfig) {
        if let Err(error) = self.vectors.configure(vectors.map(|index| (index.into(), config(index)))) {
            // There are as many as MSI and MSI-X have.
            tracing::error!(%error, device = self.name, "configuring the vectors of a device");
        }
    }

    fn disable(&mut self) {
        match self.now {
            Signalling::Nothing => {}
            Signalling::Pin => self.device.disable(Kind::Intx),
            Signalling::Msi(_) => self.device.disable(Kind::Msi),
            Signalling::Msix(_) => self.device.disable(Kind::Msix),
        }
        self.line = None;
        self.now = Signalling::Nothing;
    }

    fn enable(&mut self, wanted: Signalling) -> Result<(), String> {
        match wanted {
            Signalling::Nothing => {}
            Signalling::Pin => {
                let line = self.fabric.line_eventfds(self.gsi, &self.name).map_err(|error| error.to_string())?;
                self.device.enable(Kind::Intx, &[line.trigger()])?;
                if let Err(why) = self.device.unmask_by(line.resample()) {
                    self.device.disable(Kind::Intx);
                    return Err(why);
                }
                self.line = Some(line);
            }
            Signalling::Msi(count) => self.enable_messages(Kind::Msi, count)?,
            Signalling::Msix(count) => self.enable_messages(Kind::Msix, count)?,
        }
        self.now = wanted;
        Ok(())
    }

    fn enable_messages(&self, kind: Kind, count: u16) -> Result<(), String> {
        let eventfds = self.vectors.iter().take(count.into()).map(|vector| vector.eventfd());
        let eventfds: Vec<_> = eventfds.collect::<Result<_, _>>().map_err(|error| format!("an eventfd: {error}"))?;
        self.device.enable(kind, &eventfds)
    }
}
