//! A device that is none, behind the same seam as the kernel's: what the guest sees of it, what reaches it, and in what
//! order.

use super::bars::{AddressSpace, Slots};
use super::host::{Kind, Mapped, Physical, Region};
use super::{Function, Place};
use crate::devices::pci::Function as _;
use crate::error::Error;
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{Fabric, IOAPIC_ADDRESS};
use irqfabric::hv::Sim;
use irqfabric::pci::intx::IntxPin;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

const GSI: u32 = 17;
const WINDOW: Range<u64> = 0xe000_0000..0xf000_0000;
/// BAR 0: registers, the MSI-X table, the PBA. BAR 2 is I/O, BAR 5 registers again.
const SIZES: [u64; 6] = [0x4000, 0, 0x20, 0, 0, 0x1000];
const TABLE: u64 = 0x2000;
const PBA: u64 = 0x3000;
/// Its capabilities.
const PM: u8 = 0x40;
const MSI: u8 = 0x50;
const MSIX: u8 = 0x70;
const EXPRESS: u8 = 0x80;
const COMMAND: u8 = 0x04;
const BAR0: u8 = 0x10;

/// What has been done to the device, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Done {
    Wrote(Region, u64, Vec<u8>),
    Enabled(Kind, usize),
    UnmasksBy,
    Disabled(Kind),
    /// At this address, so many bytes.
    Shown(u64, u64),
    Hidden,
}

struct Fake {
    config: [u8; 256],
    done: Mutex<Vec<Done>>,
    events: Mutex<Vec<EventFd>>,
    resample: Mutex<Option<EventFd>>,
}

impl Fake {
    fn new() -> Self {
        let mut config = [0; 256];
        let mut put = |at: u8, bytes: &[u8]| config[usize::from(at)..][..bytes.len()].copy_from_slice(bytes);
        put(0x00, &0x0010_1b36u32.to_le_bytes());
        put(0x06, &0x0010u16.to_le_bytes());
        put(0x08, &0x0108_0203u32.to_le_bytes());
        put(0x0e, &[0x80]);
        put(BAR0, &0x4u32.to_le_bytes());
        put(0x18, &0x1u32.to_le_bytes());
        put(0x30, &0xfffe_0001u32.to_le_bytes());
        put(0x34, &[PM]);
        put(0x3d, &[3]);
        put(PM, &[0x01, MSI, 3, 0, 8, 0]);
        // Four messages, 64-bit addresses, maskable.
        put(MSI, &[0x05, MSIX, 0x84, 0x01]);
        // Three vectors.
        put(MSIX, &[0x11, EXPRESS, 2, 0]);
        put(MSIX + 4, &(TABLE as u32).to_le_bytes());
        put(MSIX + 8, &(PBA as u32).to_le_bytes());
        put(EXPRESS, &[0x10, 0, 2, 0, 0xaa]);
        Self { config, done: Mutex::default(), events: Mutex::default(), resample: Mutex::default() }
    }

    fn note(&self, done: Done) {
        self.done.lock().unwrap().push(done);
    }

    /// What was done since it was last asked.
    fn done(&self) -> Vec<Done> {
        std::mem::take(&mut *self.done.lock().unwrap())
    }

    /// The device has an interrupt.
    fn interrupt(&self, vector: usize) {
        self.events.lock().unwrap()[vector].write(1).unwrap();
    }

    /// Whether VFIO has been told to unmask INTx since it was last asked.
    fn unmasked(&self) -> bool {
        self.resample.lock().unwrap().as_ref().is_some_and(|eventfd| eventfd.read().is_ok())
    }
}

/// A handle: the test keeps another.
struct Handle(Arc<Fake>);

impl Physical for Handle {
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        match region {
            Region::Configuration => data.copy_from_slice(&self.0.config[offset as usize..][..data.len()]),
            Region::Bar(_) => data.fill(offset as u8),
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        self.0.note(Done::Wrote(region, offset, data.into()));
    }

    fn size(&self, bar: u8) -> u64 {
        SIZES[usize::from(bar)]
    }

    fn mappable(&self, bar: u8) -> Vec<Range<u64>> {
        std::iter::once(0..SIZES[0]).filter(|_| bar == 0).collect()
    }

    fn map(&self, _: u8, part: Range<u64>) -> Result<Mapped, String> {
        Ok(Mapped::anonymous(part.end - part.start))
    }

    fn interrupts(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Intx => 1,
            Kind::Msi => 4,
            Kind::Msix => 3,
        }
    }

    fn enable(&self, kind: Kind, events: &[&EventFd]) -> Result<(), String> {
        *self.0.events.lock().unwrap() = events.iter().map(|eventfd| eventfd.try_clone().unwrap()).collect();
        self.0.note(Done::Enabled(kind, events.len()));
        Ok(())
    }

    fn unmask_by(&self, resample: &EventFd) -> Result<(), String> {
        *self.0.resample.lock().unwrap() = Some(resample.try_clone().unwrap());
        self.0.note(Done::UnmasksBy);
        Ok(())
    }

    fn disable(&self, kind: Kind) {
        self.0.note(Done::Disabled(kind));
    }
}

/// What refuses an address that is taken, as KVM does.
struct Guest {
    device: Arc<Fake>,
    taken: u64,
}

impl AddressSpace for Guest {
    fn show(&self, _: u32, address: u64, memory: &Mapped) -> Result<(), String> {
        if address == self.taken {
            return Err("File exists".into());
        }
        self.device.note(Done::Shown(address, memory.length()));
        Ok(())
    }

    fn hide(&self, _: u32) {
        self.device.note(Done::Hidden);
    }
}

struct Machine {
    sim: Arc<Sim>,
    fabric: Fabric,
    device: Arc<Fake>,
    function: Function,
}

impl Machine {
    fn try_new(fake: Fake, only_pin: bool) -> Result<Self, Error> {
        let sim = Arc::new(Sim::new(1));
        let fabric = Fabric::builder(sim.clone()).ioapic(Ioapic::default()).build().unwrap();
        sim.vcpus()[0].enable();
        let device = Arc::new(fake);
        let mut next = WINDOW.start;
        let mut bar = |size: u64| {
            let start = next.next_multiple_of(size);
            next = start + size;
            Some(start as u32)
        };
        let place = Place { slot: 1, pin: IntxPin::A, gsi: GSI, only_pin, window: WINDOW, bar: &mut bar };
        let guest = Arc::new(Guest { device: device.clone(), taken: 0xe800_0000 });
        let (address, handle) = ("00:04.0".parse().unwrap(), Handle(device.clone()));
        let function = Function::new(address, handle, place, &fabric, guest, &Slots::from(16))?;
        Ok(Self { sim, fabric, device, function })
    }

    fn new(only_pin: bool) -> Self {
        let machine = Self::try_new(Fake::new(), only_pin).unwrap();
        let done = machine.device.done();
        let pin = [Done::Enabled(Kind::Intx, 1), Done::UnmasksBy];
        assert!(done.ends_with(&pin), "a function begins with its pin: {done:?}");
        machine
    }

    fn read(&self, offset: u8) -> u32 {
        let mut data = [0; 4];
        self.function.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u8, value: u32) {
        self.function.write_config(offset, &value.to_le_bytes());
    }

    fn write_word(&self, offset: u8, value: u16) {
        self.function.write_config(offset, &value.to_le_bytes());
    }

    /// Ids of the capabilities, as a guest finds them.
    fn capabilities(&self) -> Vec<u8> {
        let next = |at: u32| Some(at & 0xfc).filter(|at| *at != 0);
        let list = std::iter::successors(next(self.read(0x34)), |at| next(self.read(*at as u8) >> 8));
        list.map(|at| self.read(at as u8) as u8).collect()
    }

    fn program_msix(&self, vector: u64, data: u32) {
        for (offset, value) in [(0, 0xfee0_0000u32), (4, 0), (8, data), (12, 0)] {
            self.function.write_bar(0, TABLE + vector * 16 + offset, &value.to_le_bytes());
        }
    }

    fn eventually(&self, vector: u8) {
        let until = Instant::now() + Duration::from_secs(5);
        while self.sim.vcpus()[0].acknowledge() != Some(vector) {
            assert!(Instant::now() < until, "no interrupt {vector:#x}");
            std::thread::yield_now();
        }
    }

    fn end_of_interrupt(&self) {
        let effect = self.sim.vcpus()[0].with_lapic(|lapic| lapic.write(0xb0, &[0; 4]));
        if let Some(vector) = effect.and_then(|effect| self.sim.perform(0, effect)) {
            self.fabric.end_of_interrupt(vector);
        }
    }
}

const MEMORY_AND_MASTER: u16 = 0b110;

#[test]
fn the_guest_sees_the_device_as_one_function_whose_pin_and_bars_are_ours() {
    let machine = Machine::new(false);
    assert_eq!((machine.read(0), machine.read(8)), (0x0010_1b36, 0x0108_0203));
    assert_eq!(machine.read(0x0c) >> 16 & 0xff, 0, "the other functions stay on the host");
    assert_eq!((machine.read(0x30), machine.read(0x3c)), (0, 0x0100 | GSI), "no ROM; pin A");
    for (bar, size) in [(0x10, 0x4000u32), (0x14, 0), (0x18, 0), (0x1c, 0), (0x20, 0), (0x24, 0x1000)] {
        machine.write(bar, u32::MAX);
        let expected = if size == 0 { 0 } else { size.wrapping_neg() };
        assert_eq!(machine.read(bar), expected, "register {bar:#x}: 32-bit memory, or nothing");
    }
    assert_eq!(machine.device.done(), [], "the device keeps its own BARs");
}

#[test]
fn the_list_of_capabilities_leaves_out_what_would_hide_the_function_and_what_was_not_wanted() {
    assert_eq!(Machine::new(false).capabilities(), [0x05, 0x11, 0x10]);
    let machine = Machine::new(true);
    assert_eq!(machine.capabilities(), [0x10]);
    assert_eq!(machine.read(MSIX), 0);
    machine.device.done();
    machine.write(MSIX, 0x8000_0000);
    machine.write(PM + 4, 3);
    assert_eq!(machine.device.done(), [], "nor can it be written");
}

#[test]
fn a_broken_list_of_capabilities_ends_and_what_does_not_fit_is_refused() {
    let mut fake = Fake::new();
    fake.config[usize::from(EXPRESS) + 1] = EXPRESS;
    Machine::try_new(fake, false).unwrap();
    let mut fake = Fake::new();
    fake.config[usize::from(PM) + 1] = 0xf8;
    fake.config[0xf8..0xfc].copy_from_slice(&[0x05, 0, 0x84, 0x01]);
    let refusal = Machine::try_new(fake, false).err().unwrap().to_string();
    assert_eq!(refusal, "VFIO device 0000:00:04.0: its MSI capability goes beyond configuration space");
    let mut fake = Fake::new();
    fake.config[usize::from(MSI) + 2] = 0x0e;
    assert!(Machine::try_new(fake, false).err().unwrap().to_string().contains("its MSI capability"));
}

#[test]
fn what_is_the_devices_own_reaches_it_and_nothing_else() {
    let machine = Machine::new(false);
    machine.write(EXPRESS + 8, 0x1234_5678);
    machine.write(MSI + 4, 0xfee0_0000);
    machine.write_word(0x3c, 5);
    let own = Done::Wrote(Region::Configuration, u64::from(EXPRESS) + 8, 0x1234_5678u32.to_le_bytes().into());
    assert_eq!(machine.device.done(), [own]);
    // The pointer to the next capability is ours, the register behind it the device's.
    machine.write(EXPRESS, 0xffff_ffff);
    let around = [(0, vec![0xff]), (2, vec![0xff; 2])];
    let around = around.map(|(at, data)| Done::Wrote(Region::Configuration, u64::from(EXPRESS) + at, data));
    assert_eq!(machine.device.done(), around);
}

#[test]
fn a_bar_is_memory_exactly_while_the_device_answers_to_it() {
    let machine = Machine::new(false);
    let command = |value: u16| Done::Wrote(Region::Configuration, COMMAND.into(), value.to_le_bytes().into());
    machine.write_word(COMMAND, MEMORY_AND_MASTER);
    assert_eq!(machine.device.done(), [command(6), Done::Shown(0xe000_0000, TABLE)], "without the table's page");
    machine.write_word(COMMAND, MEMORY_AND_MASTER);
    assert_eq!(machine.device.done(), [command(6)]);
    machine.write(BAR0, 0xe010_0000);
    assert_eq!(machine.device.done(), [Done::Hidden, Done::Shown(0xe010_0000, TABLE)]);
    machine.write_word(COMMAND, 0);
    assert_eq!(machine.device.done(), [Done::Hidden, command(0)], "first hidden, then off");
}

#[test]
fn a_bar_that_the_guest_puts_outside_the_window_or_onto_something_else_is_not_mapped() {
    let machine = Machine::new(false);
    machine.write_word(COMMAND, MEMORY_AND_MASTER);
    machine.device.done();
    for address in [0x0010_0000, 0xdfff_c000, 0xfec0_0000u32] {
        machine.write(BAR0, address);
        assert!(!machine.device.done().iter().any(|done| matches!(done, Done::Shown(..))), "{address:#x}");
    }
    machine.write(BAR0, 0xe800_0000);
    assert_eq!(machine.device.done(), [], "KVM has refused it");
    let mut data = [0; 4];
    machine.function.read_bar(0, 0x10, &mut data);
    assert_eq!(data, [0x10; 4], "and it is reached all the same");
}

#[test]
fn the_table_is_the_fabrics_and_the_rest_of_its_bar_the_devices() {
    let machine = Machine::new(false);
    machine.program_msix(1, 0x41);
    let mut entry = [0; 16];
    machine.function.read_bar(0, TABLE + 16, &mut entry);
    assert_eq!(&entry[8..], &[0x41, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(machine.device.done(), []);
    machine.function.write_bar(0, 0x1000, &[7; 4]);
    machine.function.write_bar(5, TABLE, &[7; 4]);
    let wrote = |bar, offset| Done::Wrote(Region::Bar(bar), offset, vec![7; 4]);
    assert_eq!(machine.device.done(), [wrote(0, 0x1000), wrote(5, TABLE)]);
}

#[test]
fn enabling_msix_takes_the_pin_away_and_masking_is_nothing_to_vfio() {
    let machine = Machine::new(false);
    machine.write_word(COMMAND, MEMORY_AND_MASTER);
    machine.program_msix(2, 0x52);
    machine.device.done();
    machine.write_word(MSIX + 2, 0x8000);
    assert_eq!(machine.device.done(), [Done::Disabled(Kind::Intx), Done::Enabled(Kind::Msix, 3)]);
    machine.device.interrupt(2);
    machine.eventually(0x52);
    machine.end_of_interrupt();

    // The function's mask, then the vector's: an interrupt behind it waits in the PBA.
    machine.write_word(MSIX + 2, 0xc000);
    machine.write_word(MSIX + 2, 0x8000);
    machine.function.write_bar(0, TABLE + 2 * 16 + 12, &1u32.to_le_bytes());
    machine.device.interrupt(2);
    let mut pending = [0; 8];
    machine.function.read_bar(0, PBA, &mut pending);
    assert_eq!((pending[0], machine.sim.vcpus()[0].acknowledge()), (1 << 2, None));
    machine.function.write_bar(0, TABLE + 2 * 16 + 12, &0u32.to_le_bytes());
    machine.eventually(0x52);
    assert_eq!(machine.device.done(), [], "VFIO has heard of none of it");

    machine.write_word(MSIX + 2, 0);
    let back = [Done::Disabled(Kind::Msix), Done::Enabled(Kind::Intx, 1), Done::UnmasksBy];
    assert_eq!(machine.device.done(), back);
}

#[test]
fn vfio_is_given_as_many_msi_vectors_as_the_guest_has_allotted() {
    let machine = Machine::new(false);
    machine.write_word(COMMAND, MEMORY_AND_MASTER);
    machine.write(MSI + 4, 0xfee0_0000);
    machine.write_word(MSI + 12, 0x60);
    machine.device.done();
    machine.write_word(MSI + 2, 0x0001);
    assert_eq!(machine.device.done(), [Done::Disabled(Kind::Intx), Done::Enabled(Kind::Msi, 1)]);
    machine.device.interrupt(0);
    machine.eventually(0x60);
    machine.end_of_interrupt();
    machine.write_word(MSI + 2, 0x0011);
    assert_eq!(machine.device.done(), [Done::Disabled(Kind::Msi), Done::Enabled(Kind::Msi, 2)]);
    machine.device.interrupt(1);
    machine.eventually(0x61);
}

#[test]
fn a_function_that_may_not_master_the_bus_sends_nothing() {
    let machine = Machine::new(false);
    machine.program_msix(0, 0x50);
    machine.write_word(MSIX + 2, 0x8000);
    machine.function.vectors()[0].signal();
    assert_eq!(machine.sim.vcpus()[0].acknowledge(), None);
    machine.write_word(COMMAND, MEMORY_AND_MASTER);
    machine.device.interrupt(0);
    machine.eventually(0x50);
}

#[test]
fn the_pin_is_a_level_that_vfio_unmasks_at_the_end_of_the_interrupt() {
    let machine = Machine::new(true);
    // Vector 0x31, level, to APIC id 0.
    for (index, value) in [(0x10 + 2 * GSI + 1, 0), (0x10 + 2 * GSI, 0x8031u32)] {
        machine.fabric.mmio_write(IOAPIC_ADDRESS, &index.to_le_bytes());
        machine.fabric.mmio_write(IOAPIC_ADDRESS + 0x10, &value.to_le_bytes());
    }
    for _ in 0..3 {
        machine.device.interrupt(0);
        machine.eventually(0x31);
        assert!(!machine.device.unmasked());
        machine.end_of_interrupt();
        assert!(machine.device.unmasked());
    }
    machine.device.done();
    machine.write_word(COMMAND, 1 << 10);
    let disabled = Done::Wrote(Region::Configuration, COMMAND.into(), vec![0, 4]);
    assert_eq!(machine.device.done(), [disabled], "Interrupt Disable is the device's own");
}

#[test]
fn whatever_the_guest_writes_vfio_has_one_kind_at_a_time_and_memory_is_inside_the_window() {
    let mut random = fastrand::Rng::with_seed(1);
    let machine = Machine::new(false);
    let (mut enabled, mut shown) = (Some(Kind::Intx), None);
    for _ in 0..20_000 {
        let length = random.usize(1..=4);
        // Mostly registers that mean something, mostly values that make a difference.
        let place = [COMMAND, BAR0, 0x24, MSI, MSI + 12, MSI + 16, MSIX, EXPRESS, random.u8(..)];
        let offset = place[random.usize(..place.len())] & !3 | random.u8(..=4 - length as u8);
        let mut data = [random.u8(..), random.u8(..), random.u8(..), 0xe0 | random.u8(..)];
        match random.u8(..4) {
            0 => machine.function.read_config(offset, &mut data[..length]),
            1 => machine.function.read_bar(0, TABLE - 8 + random.u64(..0x2000), &mut data),
            2 => machine.function.write_bar(0, TABLE - 8 + random.u64(..0x2000), &data),
            _ => machine.function.write_config(offset, &data[..length]),
        }
        for done in machine.device.done() {
            match done {
                Done::Enabled(kind, count) => {
                    assert_eq!(enabled.replace(kind), None, "{kind:?} while another kind is enabled");
                    assert!(count <= 4);
                }
                Done::Disabled(kind) => assert_eq!(enabled.take(), Some(kind)),
                Done::Shown(address, size) => {
                    assert_eq!(shown.replace(address), None);
                    assert!(WINDOW.start <= address && address + size <= WINDOW.end, "{address:#x}");
                }
                Done::Hidden => assert!(shown.take().is_some()),
                Done::UnmasksBy | Done::Wrote(..) => {}
            }
        }
    }
    assert!(machine.read(0) == 0x0010_1b36);
}
