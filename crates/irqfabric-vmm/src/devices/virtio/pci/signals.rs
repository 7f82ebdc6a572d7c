//! How a virtio-pci function reaches its driver: by the MSI-X vectors that the driver chose for its queues, or, while MSI-X
//! is off, by the ISR status register and the function's pin (virtio 1.2, 4.1.4.5 and 4.1.5.1).

use crate::devices::virtio::interrupt::Interrupt;
use irqfabric::fabric::MsiVectors;
use irqfabric::line::{Level, LineSource};
use irqfabric::pci::intx::{Intx, Signalling};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the driver writes and reads where there is no vector: VIRTIO_MSI_NO_VECTOR.
pub const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIGURATION: u8 = 1 << 1;

/// How the device signals a vector: to show both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SignalBy {
    /// By a call into the fabric.
    #[default]
    Call,
    /// By its eventfd, as a device in another process would.
    Eventfd,
}

/// What interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Configuration,
    Queue(u16),
}

/// The vectors, the pin, and which of them is in use.
pub struct Signals {
    vectors: MsiVectors,
    by: SignalBy,
    /// The vector of the configuration, then that of each queue.
    chosen: Box<[AtomicU16]>,
    /// MSI-X is enabled.
    messages: AtomicBool,
    pin: Mutex<Pin>,
}

struct Pin {
    isr: u8,
    intx: Intx,
    source: LineSource,
}

impl Signals {
    /// For a function of so many queues. `source` is its pin's line.
    pub fn new(vectors: MsiVectors, by: SignalBy, queues: u16, source: LineSource) -> Self {
        let chosen = (0..=queues).map(|_| AtomicU16::new(NO_VECTOR)).collect();
        let pin = Mutex::new(Pin { isr: 0, intx: Intx::default(), source });
        Self { vectors, by, chosen, messages: AtomicBool::new(false), pin }
    }

    /// The function's vectors.
    pub fn vectors(&self) -> &MsiVectors {
        &self.vectors
    }

    // The driver.

    /// The driver has a vector for something. One that the function has not got reads back as [`NO_VECTOR`]: so it learns.
    pub fn choose(&self, source: Source, vector: u16) {
        let known = usize::from(vector) < self.vectors.len();
        if let Some(chosen) = self.chosen(source) {
            chosen.store(if known { vector } else { NO_VECTOR }, Ordering::Release);
        }
    }

    /// The vector of something.
    pub fn vector_of(&self, source: Source) -> u16 {
        self.chosen(source).map_or(NO_VECTOR, |chosen| chosen.load(Ordering::Acquire))
    }

    /// The Command register, or whether MSI-X is enabled, may have changed.
    pub fn write_command(&self, command: u16, messages: bool) {
        let mut pin = self.pin();
        self.messages.store(messages, Ordering::Release);
        let _ = pin.intx.write_command(command);
        let level = pin.intx.use_signalling(if messages { Signalling::Messages } else { Signalling::Pin });
        pin.source.set(level);
    }

    /// The driver reads the ISR status register, which empties it and lets the pin go.
    pub fn take_isr(&self) -> u8 {
        let mut pin = self.pin();
        let level = pin.intx.set(Level::Low);
        pin.source.set(level);
        std::mem::take(&mut pin.isr)
    }

    /// Whether the device asks for service by its pin: Interrupt Status.
    pub fn asks(&self) -> bool {
        self.pin().intx.status() != 0
    }

    // The device.

    fn signal(&self, source: Source) {
        let messages = self.messages.load(Ordering::Acquire);
        if source == Source::Configuration || !messages {
            // With MSI-X the register tells of the configuration all the same, and the pin stays low.
            let mut pin = self.pin();
            pin.isr |= if source == Source::Configuration { ISR_CONFIGURATION } else { ISR_QUEUE };
            let level = pin.intx.set(Level::High);
            pin.source.set(level);
        }
        if messages {
            self.send(self.vector_of(source));
        }
    }

    fn send(&self, vector: u16) {
        let Some(vector) = self.vectors.get(usize::from(vector)) else { return };
        match self.by {
            SignalBy::Call => vector.signal(),
            // Without an eventfd there is still the call; a full count has been signalled.
            SignalBy::Eventfd => match vector.eventfd() {
                Ok(eventfd) => _ = eventfd.write(1),
                Err(_) => vector.signal(),
            },
        }
    }

    fn chosen(&self, source: Source) -> Option<&AtomicU16> {
        match source {
            Source::Configuration => self.chosen.first(),
            Source::Queue(queue) => self.chosen.get(usize::from(queue) + 1),
        }
    }

    fn pin(&self) -> MutexGuard<'_, Pin> {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupt for Signals {
    fn used(&self, queue: u16) {
        self.signal(Source::Queue(queue));
    }

    fn configuration_changed(&self) {
        self.signal(Source::Configuration);
    }

    fn reset(&self) {
        for chosen in &self.chosen {
            chosen.store(NO_VECTOR, Ordering::Release);
        }
        let _ = self.take_isr();
    }
}
