use super::*;
use crate::devices::pci::Function as _;
use crate::devices::virtio::Disk;
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::Fabric;
use irqfabric::hv::Sim;
use irqfabric::line::Line;
use irqfabric::msg::RequesterId;
use std::io::Write;
use std::thread;
use std::time::Duration;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_FEATURES_OK;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const QUEUES: u16 = 2;
const VECTORS: u16 = 3;
const TABLE_ENTRY: u64 = 16;

/// A function in a machine of one simulated CPU, without KVM.
struct Bench {
    sim: Arc<Sim>,
    fabric: Fabric,
    memory: GuestMemoryMmap,
    pin: Line,
    function: Function,
}

impl Bench {
    fn new() -> Self {
        let sim = Arc::new(Sim::new(1));
        sim.vcpus()[0].enable();
        let fabric = Fabric::builder(sim.clone()).ioapic(Ioapic::default()).build().unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let vectors = fabric.msi_vectors(RequesterId::new(0, 1, 0), VECTORS.into());
        let pin = fabric.line(16).unwrap();
        let signals = Arc::new(Signals::new(vectors, SignalBy::Call, QUEUES, pin.source("disk")));
        let disk = disk().with_queues(QUEUES);
        let device = Device::new(disk, memory.clone(), signals.clone()).unwrap();
        let place = Place { bars: [0xe000_0000, 0xe000_4000], pin: 1, line: 16 };
        let function = Function::new(device, signals, msix(VECTORS).unwrap(), place, Doorbells::default());
        Self { sim, fabric, memory, pin, function }
    }

    fn config<const N: usize>(&self, offset: u8) -> [u8; N] {
        let mut data = [0; N];
        self.function.read_config(offset, &mut data);
        data
    }

    fn common<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.function.read_bar(0, offset, &mut data);
        data
    }

    fn set_common(&self, offset: u64, data: &[u8]) {
        self.function.write_bar(0, offset, data);
    }

    /// Where the first capability with this id is, and what its `cfg_type` must be if it is a vendor's.
    fn capability(&self, id: u8, kind: Option<u8>) -> u8 {
        let [mut at] = self.config(0x34);
        while at != 0 {
            let [found, next, _, found_kind] = self.config(at);
            if found == id && kind.is_none_or(|kind| kind == found_kind) {
                return at;
            }
            at = next;
        }
        panic!("there is no capability {id:#x} {kind:?}");
    }

    fn command(&self, command: u16) {
        self.function.write_config(4, &command.to_le_bytes());
    }

    fn enable_msix(&self, control: u16) {
        self.function.write_config(self.capability(capability::MSIX, None) + 2, &control.to_le_bytes());
    }

    /// Vector `index` sends `vector` to CPU 0, unmasked.
    fn program(&self, index: u64, vector: u32) {
        let entry = [0xfee0_0000, 0, vector, 0].map(u32::to_le_bytes);
        self.function.write_bar(VECTORS_BAR, index * TABLE_ENTRY, entry.as_flattened());
    }

    /// As a driver would have it: queue `n` on vector `n + 1`, which sends 0x40 + `n`.
    fn ready() -> Self {
        let bench = Self::new();
        bench.command(command::MEMORY_SPACE | command::BUS_MASTER);
        for queue in 0..QUEUES {
            bench.program(u64::from(queue) + 1, 0x40 + u32::from(queue));
            bench.set_common(22, &queue.to_le_bytes());
            bench.set_common(26, &(queue + 1).to_le_bytes());
        }
        bench.enable_msix(0x8000);
        bench
    }

    fn use_buffers_of(&self, queue: u16) {
        use crate::devices::virtio::interrupt::Interrupt;
        self.function.signals.used(queue);
    }

    fn received(&self) -> Option<u8> {
        let vector = self.sim.vcpus()[0].acknowledge();
        self.sim.vcpus()[0].end_of_interrupt();
        vector
    }
}

/// A disk of 8 sectors, each byte its sector's number.
fn disk() -> Disk {
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
    for sector in 0..8 {
        file.as_file().write_all(&[sector; 512]).unwrap();
    }
    Disk::open(file.as_path(), false, "test").unwrap()
}

#[test]
fn the_capabilities_lead_to_every_structure_that_virtio_asks_for() {
    let bench = Bench::new();
    assert_eq!(bench.config(0), 0x1042_1af4u32.to_le_bytes());
    for kind in [structure::COMMON, structure::NOTIFY, structure::ISR, structure::DEVICE, structure::PCI] {
        let at = bench.capability(capability::VENDOR, Some(kind));
        let [bar, ..] = bench.config::<4>(at + 4);
        assert_eq!(bar, 0);
        let [offset, length] = [8, 12].map(|field| u32::from_le_bytes(bench.config(at + field)));
        assert!(offset + length <= REGISTERS_SIZE);
    }
}

#[test]
fn each_queue_sends_the_vector_that_the_driver_chose_for_it() {
    let bench = Bench::ready();
    for queue in [1, 0, 1] {
        bench.use_buffers_of(queue);
        assert_eq!(bench.received(), Some(0x40 + queue as u8));
    }
    assert_eq!(bench.common(ISR), [0], "with MSI-X the register says nothing of queues");
}

#[test]
fn a_vector_that_the_function_has_not_got_reads_back_as_none() {
    let bench = Bench::ready();
    bench.set_common(22, &0u16.to_le_bytes());
    bench.set_common(26, &VECTORS.to_le_bytes());
    assert_eq!(bench.common(26), signals::NO_VECTOR.to_le_bytes());
    bench.use_buffers_of(0);
    assert_eq!(bench.received(), None);
}

#[test]
fn without_bus_master_nothing_is_sent() {
    let bench = Bench::ready();
    bench.command(command::MEMORY_SPACE);
    bench.use_buffers_of(0);
    bench.command(command::MEMORY_SPACE | command::BUS_MASTER);
    assert_eq!(bench.received(), None, "nor kept for later");
    bench.use_buffers_of(0);
    assert_eq!(bench.received(), Some(0x40));
}

#[test]
fn what_comes_while_the_function_is_masked_is_pending_and_sent_afterwards() {
    let bench = Bench::ready();
    let pba = msix(VECTORS).unwrap().bar_size(VECTORS_BAR) / 2;
    let pending = || {
        let mut data = [0; 8];
        bench.function.read_bar(VECTORS_BAR, pba, &mut data);
        data[0]
    };
    bench.enable_msix(0xc000);
    bench.use_buffers_of(1);
    assert_eq!((bench.received(), pending()), (None, 0b100));
    bench.enable_msix(0x8000);
    assert_eq!((bench.received(), pending()), (Some(0x41), 0));
}

#[test]
fn a_masked_vector_is_programmed_anew_before_what_waited_is_sent() {
    let bench = Bench::ready();
    let mask = |masked: u32| bench.function.write_bar(VECTORS_BAR, TABLE_ENTRY + 12, &masked.to_le_bytes());
    mask(1);
    bench.use_buffers_of(0);
    bench.function.write_bar(VECTORS_BAR, TABLE_ENTRY + 8, &0x55u32.to_le_bytes());
    assert_eq!(bench.received(), None);
    mask(0);
    assert_eq!(bench.received(), Some(0x55));
}

#[test]
fn without_msix_the_pin_is_high_until_the_isr_register_is_read() {
    let bench = Bench::new();
    bench.command(command::MEMORY_SPACE);
    bench.use_buffers_of(1);
    assert_eq!(bench.pin.level(), irqfabric::line::Level::High);
    assert_eq!(u16::from_le_bytes(bench.config(6)) & STATUS_INTERRUPT, STATUS_INTERRUPT);
    bench.command(command::MEMORY_SPACE | command::INTERRUPT_DISABLE);
    assert_eq!(bench.pin.level(), irqfabric::line::Level::Low);
    bench.command(command::MEMORY_SPACE);
    assert_eq!((bench.common(ISR), bench.pin.level()), ([1], irqfabric::line::Level::Low));
    assert_eq!(bench.common(ISR), [0]);
    assert_eq!(bench.fabric.stats().lines[0].sources[0].raised, 2);
}

#[test]
fn the_driver_finds_as_many_queues_as_there_are_and_features_as_they_are_selected() {
    let bench = Bench::new();
    assert_eq!(bench.common(18), QUEUES.to_le_bytes());
    for (queue, size) in [(0, 256), (1, 256), (QUEUES, 0), (0xffff, 0)] {
        bench.set_common(22, &queue.to_le_bytes());
        assert_eq!(bench.common(24), u16::to_le_bytes(size));
    }
    bench.set_common(0, &1u32.to_le_bytes());
    assert_eq!(bench.common(4), 1u32.to_le_bytes(), "VIRTIO_F_VERSION_1");
    bench.set_common(0, &2u32.to_le_bytes());
    assert_eq!(bench.common(4), [0; 4]);
    let mut config = [0; 40];
    bench.function.read_bar(0, DEVICE, &mut config);
    assert_eq!((config[0], config[34]), (8, QUEUES as u8));
}

#[test]
fn features_that_were_not_offered_are_not_agreed_upon() {
    let agree = |low: u32, high: u32| {
        let bench = Bench::new();
        for (select, features) in [(0u32, low), (1, high)] {
            bench.set_common(8, &select.to_le_bytes());
            bench.set_common(12, &features.to_le_bytes());
        }
        bench.set_common(20, &[3 | VIRTIO_CONFIG_S_FEATURES_OK as u8]);
        let [status] = bench.common(20);
        u32::from(status) & VIRTIO_CONFIG_S_FEATURES_OK != 0
    };
    assert!(agree(0, 1));
    assert!(!agree(0, 0), "not VERSION_1");
    assert!(!agree(1 << 31, 1), "not offered");
}

#[test]
fn a_request_in_the_second_queue_is_done_and_answered_by_its_vector() {
    const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];
    let bench = Bench::ready();
    bench.set_common(8, &1u32.to_le_bytes());
    bench.set_common(12, &1u32.to_le_bytes());
    bench.set_common(20, &[0xb]);
    bench.set_common(22, &1u16.to_le_bytes());
    for (ring, offset) in RINGS.into_iter().zip([32, 40, 48]) {
        bench.set_common(offset, &(ring as u32).to_le_bytes());
    }
    bench.set_common(28, &1u16.to_le_bytes());
    bench.set_common(20, &[0xf]);
    // Read sector 5 to 0x6000, its status to 0x7000.
    let memory = &bench.memory;
    memory.write_obj(5u64, GuestAddress(0x5008)).unwrap();
    memory.write_obj(0xffu8, GuestAddress(0x7000)).unwrap();
    let chain = [(0x5000u64, 16u32, 1u16, 1u16), (0x6000, 512, 3, 2), (0x7000, 1, 2, 0)];
    for ((address, length, flags, next), at) in chain.into_iter().zip((RINGS[0]..).step_by(16)) {
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }
    memory.write_obj(1u16, GuestAddress(RINGS[1] + 2)).unwrap();
    bench.function.write_bar(0, NOTIFY + NOTIFY_STEP, &1u16.to_le_bytes());
    for _ in 0..5_000 {
        if let Some(vector) = bench.received() {
            assert_eq!(vector, 0x41);
            assert_eq!(memory.read_obj::<u8>(GuestAddress(0x7000)).unwrap(), 0);
            assert_eq!(memory.read_obj::<u64>(GuestAddress(0x6000)).unwrap(), 0x0505_0505_0505_0505);
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("no interrupt within 5 s");
}

#[test]
fn a_reset_forgets_the_vectors_and_the_selectors() {
    let bench = Bench::ready();
    bench.set_common(20, &[0]);
    assert_eq!((bench.common(22), bench.common(26)), ([0; 2], signals::NO_VECTOR.to_le_bytes()));
    bench.use_buffers_of(0);
    assert_eq!(bench.received(), None);
}

#[test]
fn the_configuration_window_reaches_the_bars() {
    let bench = Bench::ready();
    let at = bench.capability(capability::VENDOR, Some(structure::PCI));
    let point = |bar: u8, offset: u32, length: u32| {
        bench.function.write_config(at + 4, &[bar]);
        bench.function.write_config(at + 8, &offset.to_le_bytes());
        bench.function.write_config(at + 12, &length.to_le_bytes());
    };
    point(0, 18, 2);
    assert_eq!(bench.config(at + 16), [QUEUES as u8, 0]);
    point(0, 22, 2);
    bench.function.write_config(at + 16, &1u16.to_le_bytes());
    assert_eq!(bench.common(22), 1u16.to_le_bytes());
    point(VECTORS_BAR, 2 * TABLE_ENTRY as u32 + 8, 4);
    assert_eq!(bench.config(at + 16), 0x41u32.to_le_bytes());
    for (bar, offset, length) in [(0, 1, 4), (9, 0, 4), (0, u32::MAX, 1), (0, 0, 0), (0, 0, u32::MAX)] {
        point(bar, offset, length);
        bench.function.write_config(at + 16, &[0xff; 4]);
        let _ = bench.config::<4>(at + 16);
    }
}

#[test]
fn nonsense_of_any_size_at_any_offset_breaks_nothing() {
    let bench = Bench::ready();
    let mut data = [0xa5; 16];
    for length in [0, 1, 2, 3, 4, 7, 8, 9, 16] {
        let data = &mut data[..length];
        for offset in (0..u64::from(REGISTERS_SIZE)).step_by(7).chain(0..64).chain([u64::MAX - 8, u64::MAX]) {
            for bar in 0..7 {
                bench.function.read_bar(bar, offset, data);
                data.fill(0xa5);
                bench.function.write_bar(bar, offset, data);
            }
        }
        for offset in 0..=255u8 {
            bench.function.write_config(offset, data);
            bench.function.read_config(offset, data);
        }
    }
}
