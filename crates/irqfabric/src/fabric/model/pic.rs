//! A vCPU's thread, its kick, and whoever has something for it to take: nobody sleeps through an interrupt of the PIC's.
//!
//! The vCPU goes round its loop as a VMM's must: it forgets its last kick, calls `before_run`, and enters the guest unless it
//! was kicked meanwhile (`immediate_exit`). There it stays, unless its window was wanted: what fetches it out is another kick
//! alone, and none of its own thread's. When all threads are done it is fetched if it was kicked, and must then have been given
//! what there is, each vector once.

use super::*;
use crate::chip::pic::Pic;
use crate::hv::{External, InterruptWindow, Takes, Vcpu};
use crate::line::Level;
use loom::thread::ThreadId;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

const VECTORS: u8 = 0x20;
const COMMAND: u16 = 0x20;
const MASK: u16 = 0x21;
/// GSI 4 is on both chips, GSI 5 too.
const PINS: usize = 6;

/// No vector is delivered here but the PIC's.
struct Nobody;

impl Hypervisor for Nobody {
    fn start(&self, pins: u32) -> Result<Capacity, HvError> {
        Ok(Capacity { gsis: pins, ..Capacity::default() })
    }

    fn deliver(&self, _: &Interrupt) -> Result<Acceptance, HvError> {
        Ok(Acceptance::Refused)
    }

    fn commit(&self, _: &[Route]) -> Result<(), HvError> {
        Ok(())
    }
}

/// Between two entries: takes one vector.
struct Processor {
    /// What it has been given.
    got: Vec<u8>,
    /// One of them since it was in the guest.
    latched: bool,
    lint0: Takes,
    window: InterruptWindow,
}

impl Vcpu for Processor {
    fn takes(&mut self, external: &External) -> Result<Takes, HvError> {
        Ok(match external {
            External::Lint0 => self.lint0,
            External::Message { .. } if self.latched => Takes::Later,
            External::Message { .. } => Takes::Now,
        })
    }

    fn interrupt(&mut self, vector: u8) -> Result<Acceptance, HvError> {
        assert!(!self.latched, "it was asked first");
        self.latched = true;
        self.lint0 = if self.lint0 == Takes::Now { Takes::Later } else { self.lint0 };
        self.got.push(vector);
        Ok(Acceptance::Accepted)
    }

    fn set_window(&mut self, window: InterruptWindow) {
        self.window = window;
    }
}

struct Pc {
    fabric: Fabric,
    /// Which thread is the vCPU's, while it is not in the guest. No lock of the model's: only that thread finds itself.
    own: Arc<std::sync::Mutex<Option<ThreadId>>>,
    /// The kernel's: a signal and what was done before it arrive in this order.
    kicked: Arc<crate::sync::Mutex<bool>>,
    processor: crate::sync::Mutex<Processor>,
    sources: [LineSource; 2],
}

/// By which way interrupts come.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Intr,
    ExtIntPin,
}

impl Pc {
    fn new(way: Way) -> Self {
        let kicked = Arc::<crate::sync::Mutex<bool>>::default();
        let own = Arc::<std::sync::Mutex<Option<ThreadId>>>::default();
        let kick = {
            let (kicked, own) = (kicked.clone(), own.clone());
            move |_| {
                let is_own = *own.lock().unwrap() == Some(loom::thread::current().id());
                if !is_own {
                    *kicked.lock() = true;
                }
            }
        };
        let builder = Fabric::builder(Nobody).ioapic(Ioapic::new(PINS).unwrap()).pic(Pic::default()).kick(kick);
        let fabric = builder.build().unwrap();
        for word in [VECTORS, 4, 1, 0] {
            // ICW1, and then its words to the other port.
            if word == VECTORS {
                fabric.pio_write(COMMAND, &[0x11]);
            }
            fabric.pio_write(MASK, &[word]);
        }
        if way == Way::ExtIntPin {
            for (index, value) in [(0x10 + 2 * 4, 7 << 8), (0x10 + 2 * 5, 7 << 8)] {
                fabric.mmio_write(IOAPIC_ADDRESS, &u32::to_le_bytes(index));
                fabric.mmio_write(IOAPIC_ADDRESS + 0x10, &u32::to_le_bytes(value));
            }
        }
        let lint0 = if way == Way::Intr { Takes::Now } else { Takes::Never };
        let processor = crate::sync::Mutex::new(Processor {
            got: Vec::new(),
            latched: false,
            lint0,
            window: InterruptWindow::Unwanted,
        });
        let sources = [4, 5].map(|gsi| fabric.line(gsi).unwrap().source("device"));
        Self { fabric, own, kicked, processor, sources }
    }

    /// The vCPU's thread, until it is in the guest and not kicked.
    fn run(&self) {
        let mut processor = self.processor.lock();
        *self.own.lock().unwrap() = Some(loom::thread::current().id());
        loop {
            *self.kicked.lock() = false;
            self.fabric.before_run(&mut *processor).unwrap();
            if *self.kicked.lock() {
                continue;
            }
            // The guest takes what it was given, and then it is ready.
            processor.latched = false;
            processor.lint0 = if processor.lint0 == Takes::Later { Takes::Now } else { processor.lint0 };
            if processor.window == InterruptWindow::Unwanted {
                return *self.own.lock().unwrap() = None;
            }
        }
    }

    /// If the vCPU was kicked while it was in the guest, it comes out.
    fn fetch(&self) {
        let kicked = *self.kicked.lock();
        if kicked {
            self.run();
        }
    }

    fn got(&self) -> Vec<u8> {
        self.processor.lock().got.clone()
    }

    /// `expected`, in any order, and nothing else: each at the latest after the end of the one before.
    fn finish(&self, expected: &[u8]) {
        self.fetch();
        for round in 1..=expected.len() {
            assert!(self.got().len() >= round, "it slept through {expected:x?} but {:x?}", self.got());
            self.fabric.pio_write(COMMAND, &[0x20]);
            self.fetch();
        }
        let mut got = self.got();
        got.sort_unstable();
        assert_eq!(got, expected);
        assert_eq!(self.fabric.pic().unwrap().pending, []);
    }
}

// What threads do.

type Act = fn(&Pc);

fn run(pc: &Pc) {
    pc.run();
}

fn pulse(pc: &Pc) {
    pc.sources[0].pulse();
}

fn raise(pc: &Pc) {
    pc.sources[0].raise();
}

fn pulse_other(pc: &Pc) {
    pc.sources[1].pulse();
}

fn unmask(pc: &Pc) {
    pc.fabric.pio_write(MASK, &[0]);
}

// How it begins.

fn open(_: &Pc) {}

fn masked(pc: &Pc) {
    pc.fabric.pio_write(MASK, &[1 << 4]);
}

fn masked_and_pulsed(pc: &Pc) {
    masked(pc);
    pulse(pc);
}

fn explore_pic(way: Way, begin: Act, threads: &'static [Act], expected: &'static [u8]) {
    let preemptions = if threads.len() > 2 { PREEMPTIONS } else { PREEMPTIONS_OF_PINS };
    explore(Some(preemptions), move |_| {
        let pc = Arc::new(Pc::new(way));
        begin(&pc);
        let spawn = |&act: &Act| {
            let pc = pc.clone();
            loom::thread::spawn(move || act(&pc))
        };
        let threads: Vec<_> = threads.iter().map(spawn).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        pc.finish(expected);
    });
}

macro_rules! pic_models {
    ($($name:ident: $way:ident, $begin:ident, $($act:ident)|+ => $expected:expr;)*) => {
        $(
            #[test]
            fn $name() {
                explore_pic(Way::$way, $begin, &[$($act),+], &$expected);
            }
        )*
    };
}

pic_models! {
    run_and_pulse: Intr, open, run | pulse => [VECTORS | 4];
    run_and_raise: Intr, open, run | raise => [VECTORS | 4];
    run_and_unmask: Intr, masked_and_pulsed, run | unmask => [VECTORS | 4];
    run_and_message: ExtIntPin, open, run | pulse => [VECTORS | 4];
    run_pulse_and_unmask: Intr, masked, run | pulse | unmask => [VECTORS | 4];
    run_and_two_pulses: Intr, open, run | pulse | pulse_other => [VECTORS | 4, VECTORS | 5];
}

/// A level that both chips see, of a device that raises again when it is told for the first time, under automatic EOI, and one
/// that pulses: each interrupt is given once, and nothing comes of the levels that fell with their ends.
#[test]
fn run_and_resample_by_automatic_eoi() {
    const ELCR: u16 = 0x4d0;
    explore(Some(PREEMPTIONS_OF_PINS), |_| {
        let pc = Arc::new(Pc::new(Way::Intr));
        pc.fabric.pio_write(COMMAND, &[0x11]);
        [VECTORS, 4, 3, 0].iter().for_each(|word| assert!(pc.fabric.pio_write(MASK, &[*word])));
        pc.fabric.pio_write(ELCR, &[1 << 4]);
        let (told, source) = (Arc::new(AtomicUsize::new(0)), Arc::new(OnceLock::<LineSource>::new()));
        let acknowledged = {
            let (told, source) = (told.clone(), Arc::downgrade(&source));
            move || {
                if told.fetch_add(1, Relaxed) == 0 {
                    source.upgrade().unwrap().get().unwrap().raise();
                }
            }
        };
        let resampling = pc.fabric.line(4).unwrap().resampling_source("vfio", acknowledged).unwrap();
        assert!(source.set(resampling).is_ok());
        let vcpu = {
            let pc = pc.clone();
            loom::thread::spawn(move || pc.run())
        };
        source.get().unwrap().raise();
        pulse_other(&pc);
        vcpu.join().unwrap();
        pc.fetch();
        let mut got = pc.got();
        got.sort_unstable();
        assert_eq!((got, told.load(Relaxed)), (vec![VECTORS | 4, VECTORS | 4, VECTORS | 5], 2));
        assert_eq!(source.get().unwrap().level(), Level::Low);
    });
}
