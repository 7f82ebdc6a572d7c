//! Message vectors with eventfds on real KVM: the irqfd as a cache.

use crate::common::kvm::{requested, take, vcpu, vm};
use irqfabric::chip::ioapic::Ioapic;
use irqfabric::fabric::{Fabric, MsiVectors, Program, Promotion, RouteError};
use irqfabric::hv::{Capacity, Counted, HvError, Hypervisor, Kvm, OpaqueTarget, Route};
use irqfabric::msg::{Acceptance, Interrupt, Masking, Message, RequesterId};
use irqfabric::remap::{Cookie, Entries, Fault, Refusal, Remapper, Target, Translation};
use kvm_ioctls::VcpuFd;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// KVM with fewer GSIs, or with an irqfd that does not work.
struct Limited {
    kvm: Kvm,
    gsis: u32,
    attaches: bool,
}

impl Hypervisor for Limited {
    fn start(&self, pins: u32) -> Result<Capacity, HvError> {
        self.kvm.start(pins)?;
        Ok(Capacity { gsis: self.gsis, ..Capacity::default() })
    }

    fn deliver(&self, interrupt: &Interrupt) -> Result<Acceptance, HvError> {
        self.kvm.deliver(interrupt)
    }

    fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
        self.kvm.commit(routes)
    }

    fn attach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        if self.attaches {
            return self.kvm.attach(gsi, eventfd);
        }
        Err(HvError::Missing { capability: "an irqfd that takes its events", remedy: "this needs Linux 5.11" })
    }

    fn detach(&self, gsi: u32, eventfd: &EventFd) -> Result<(), HvError> {
        self.kvm.detach(gsi, eventfd)
    }
}

/// A remapping table: by the low byte of the data, the vector that it stands for.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<BTreeMap<u8, u8>>>);

impl Table {
    fn set(&self, entry: u8, vector: Option<u8>) {
        let mut entries = self.0.lock().unwrap();
        match vector {
            Some(vector) => entries.insert(entry, vector),
            None => entries.remove(&entry),
        };
    }
}

impl Remapper for Table {
    fn translate(&self, message: &Message) -> Result<Translation, Refusal> {
        let entry = message.data as u8;
        let vector =
            *self.0.lock().unwrap().get(&entry).ok_or(Refusal::Blocked(Fault { reason: 0x22, ..Fault::default() }))?;
        let interrupt = Interrupt { vector, ..Interrupt::default() };
        Ok(Translation { target: Target::Interrupt(interrupt), cookie: Some(Cookie(entry.into())) })
    }
}

fn entries(range: std::ops::RangeInclusive<u32>) -> Entries {
    Entries::Range(Cookie(*range.start())..=Cookie(*range.end()))
}

struct Machine {
    fabric: Fabric,
    hypervisor: Arc<Counted<Limited>>,
    vcpu: VcpuFd,
    table: Table,
}

/// At once, and one vector at a time unless a test says otherwise.
const EAGER: Promotion = Promotion::OnDemand { batch: 1, delay: Duration::ZERO };

struct Setup {
    promotion: Promotion,
    gsis: u32,
    attaches: bool,
    remapping: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { promotion: EAGER, gsis: 4096, attaches: true, remapping: false }
    }
}

impl Setup {
    fn build(self) -> Machine {
        let vm = vm();
        let limited = Limited { kvm: Kvm::split(vm.clone()), gsis: self.gsis, attaches: self.attaches };
        let hypervisor = Arc::new(Counted::new(limited));
        let table = Table::default();
        let mut builder = Fabric::builder(hypervisor.clone()).ioapic(Ioapic::default()).promotion(self.promotion);
        if self.remapping {
            builder = builder.remapper(table.clone());
        }
        let fabric = builder.build().unwrap();
        let vcpu = vcpu(&vm, 0);
        Machine { fabric, hypervisor, vcpu, table }
    }
}

impl Machine {
    /// `count` vectors with eventfds, programmed to 0x40 and on.
    fn vectors(&self, count: usize) -> MsiVectors {
        let vectors = self.fabric.msi_vectors(RequesterId(8), count);
        for index in 0..count {
            vectors[index].eventfd().unwrap();
            vectors.program(index, 0xfee0_0000, 0x40 + index as u32).unwrap();
        }
        vectors
    }

    fn fire(&self, vectors: &MsiVectors, index: usize) {
        vectors[index].eventfd().unwrap().write(1).unwrap();
    }

    /// Waits for a vector, which must be the only one.
    fn arrives(&self, vector: u8) {
        assert_eq!(eventually(|| Some(take(&self.vcpu)).filter(|taken| !taken.is_empty())), [vector]);
    }

    /// Nothing comes, also after a while.
    fn stays_quiet(&self) {
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(take(&self.vcpu), [0; 0]);
    }

    /// Fires a cold vector until it is hot.
    fn heat(&self, vectors: &MsiVectors, index: usize) {
        let before = self.fabric.stats().promotions;
        for _ in 0..2 {
            self.fire(vectors, index);
            self.arrives(0x40 + index as u8);
        }
        eventually(|| (self.fabric.stats().promotions > before).then_some(()));
    }
}

fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "it never happened");
        std::thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn a_cold_eventfd_is_delivered_from_userspace_and_promoted_at_its_second_event() {
    let machine = Setup::default().build();
    let vectors = machine.vectors(1);
    machine.fire(&vectors, 0);
    machine.arrives(0x40);
    assert_eq!((machine.hypervisor.calls().commits, machine.fabric.stats().promotions), (0, 0));
    machine.fire(&vectors, 0);
    machine.arrives(0x40);
    eventually(|| (machine.fabric.stats().promotions == 1).then_some(()));
    let calls = machine.hypervisor.calls();
    assert_eq!((calls.commits, calls.attaches, calls.detaches), (1, 1, 0));
}

#[test]
fn the_fabric_is_not_on_the_path_of_a_hot_eventfd() {
    let machine = Setup::default().build();
    let vectors = machine.vectors(1);
    machine.heat(&vectors, 0);
    let (wakeups, calls) = (machine.fabric.stats().wakeups, machine.hypervisor.calls());
    for _ in 0..1000 {
        machine.fire(&vectors, 0);
        machine.arrives(0x40);
    }
    assert_eq!((machine.fabric.stats().wakeups, machine.hypervisor.calls()), (wakeups, calls));
}

#[test]
fn an_event_while_masked_is_pending_and_delivered_by_unmasking() {
    for hot in [false, true] {
        let machine = Setup::default().build();
        let vectors = machine.vectors(1);
        if hot {
            machine.heat(&vectors, 0);
        }
        vectors.set_masking([0], Masking::Masked).unwrap();
        assert!(!vectors.pending(0));
        machine.fire(&vectors, 0);
        machine.stays_quiet();
        assert!(vectors.pending(0));
        vectors.set_masking([0], Masking::Unmasked).unwrap();
        assert!(!vectors.pending(0));
        machine.arrives(0x40);
        machine.stays_quiet();
    }
}

#[test]
fn a_pending_bit_is_seen_before_the_dispatcher_had_its_turn() {
    let machine = Setup::default().build();
    let vectors = machine.vectors(1);
    vectors.set_masking([0], Masking::Masked).unwrap();
    for _ in 0..1000 {
        machine.fire(&vectors, 0);
        assert!(vectors.pending(0));
        vectors.set_masking([0], Masking::Unmasked).unwrap();
        machine.arrives(0x40);
        vectors.set_masking([0], Masking::Masked).unwrap();
        assert!(!vectors.pending(0));
    }
}

#[test]
fn detaching_and_attaching_neither_loses_nor_doubles() {
    let machine = Setup::default().build();
    let vectors = machine.vectors(1);
    machine.heat(&vectors, 0);
    for _ in 0..200 {
        vectors.set_masking([0], Masking::Masked).unwrap();
        machine.fire(&vectors, 0);
        vectors.set_masking([0], Masking::Unmasked).unwrap();
        machine.arrives(0x40);
        machine.fire(&vectors, 0);
        machine.arrives(0x40);
        vectors.set_masking([0], Masking::Masked).unwrap();
        assert!(!vectors.pending(0), "a ghost of an event that was delivered");
        vectors.set_masking([0], Masking::Unmasked).unwrap();
        assert_eq!(take(&machine.vcpu), [0; 0]);
    }
}

#[test]
fn what_an_eventfd_held_when_it_was_attached_is_delivered_and_leaves_no_ghost() {
    let machine = Setup::default().build();
    let vectors = machine.vectors(1);
    machine.heat(&vectors, 0);
    for _ in 0..50 {
        vectors.set_masking([0], Masking::Masked).unwrap();
        let before = vectors[0].stats().signalled;
        machine.fire(&vectors, 0);
        eventually(|| (vectors[0].stats().signalled > before).then_some(()));
        // The dispatcher looks away by now: this one stays.
        machine.fire(&vectors, 0);
        vectors.set_masking([0], Masking::Unmasked).unwrap();
        // Detaching waits for what the kernel injects.
        vectors.set_masking([0], Masking::Masked).unwrap();
        assert!(!vectors.pending(0), "a ghost of an event that was delivered");
        assert_eq!(take(&machine.vcpu), [0x40]);
        vectors.set_masking([0], Masking::Unmasked).unwrap();
        assert_eq!(take(&machine.vcpu), [0; 0]);
    }
}

#[test]
fn masking_and_unmasking_a_hot_vector_commits_nothing() {
    let machine = Setup::default().build();
    let vectors = machine.vectors(1);
    machine.heat(&vectors, 0);
    let before = machine.hypervisor.calls();
    for _ in 0..10 {
        vectors.set_masking([0], Masking::Masked).unwrap();
        vectors.set_masking([0], Masking::Unmasked).unwrap();
    }
    let after = machine.hypervisor.calls();
    assert_eq!(after.commits, before.commits);
    assert_eq!((after.attaches - before.attaches, after.detaches - before.detaches), (10, 10));
}

#[test]
fn a_hot_vector_that_is_reprogrammed_delivers_its_new_message_only() {
    let machine = Setup::default().build();
    let vectors = machine.vectors(1);
    machine.heat(&vectors, 0);
    for step in 0..200u32 {
        let vector = 0x50 + (step % 100) as u8;
        vectors.program(0, 0xfee0_0000, vector.into()).unwrap();
        machine.fire(&vectors, 0);
        machine.arrives(vector);
    }
}

#[test]
fn a_vector_that_is_reprogrammed_while_masked_delivers_its_new_message_only() {
    let machine = Setup::default().build();
    let vectors = machine.vectors(1);
    machine.heat(&vectors, 0);
    vectors.set_masking([0], Masking::Masked).unwrap();
    machine.fire(&vectors, 0);
    vectors.program(0, 0xfee0_0000, 0x77).unwrap();
    vectors.set_masking([0], Masking::Unmasked).unwrap();
    machine.arrives(0x77);
    machine.fire(&vectors, 0);
    machine.arrives(0x77);
}

#[test]
fn a_function_that_is_off_sends_nothing_and_forgets() {
    for hot in [false, true] {
        let machine = Setup::default().build();
        let vectors = machine.vectors(1);
        if hot {
            machine.heat(&vectors, 0);
        }
        vectors.set_masking([0], Masking::Disabled).unwrap();
        machine.fire(&vectors, 0);
        vectors[0].signal();
        machine.stays_quiet();
        vectors.set_masking([0], Masking::Unmasked).unwrap();
        machine.stays_quiet();
        assert!(machine.fabric.stats().dropped >= 2);
        machine.fire(&vectors, 0);
        machine.arrives(0x40);
    }
}

#[test]
fn a_vector_that_was_never_programmed_sends_nothing_and_wakes_nobody_twice() {
    let machine = Setup::default().build();
    let vectors = machine.fabric.msi_vectors(RequesterId(8), 1);
    for _ in 0..100 {
        vectors[0].eventfd().unwrap().write(1).unwrap();
        std::thread::sleep(Duration::from_micros(50));
    }
    machine.stays_quiet();
    assert!(machine.fabric.stats().wakeups <= 3, "{:?}", machine.fabric.stats());
    vectors.program(0, 0xfee0_0000, 0x40).unwrap();
    machine.stays_quiet();
    machine.fire(&vectors, 0);
    machine.arrives(0x40);
}

#[test]
fn an_in_process_vector_that_is_masked_is_pending_until_it_is_unmasked() {
    let machine = Setup::default().build();
    let vectors = machine.fabric.msi_vectors(RequesterId(8), 1);
    vectors.set_masking([0], Masking::Masked).unwrap();
    vectors[0].signal();
    assert!(vectors.pending(0));
    vectors.program(0, 0xfee0_0000, 0x61).unwrap();
    machine.stays_quiet();
    vectors.set_masking([0], Masking::Unmasked).unwrap();
    machine.arrives(0x61);
}

#[test]
fn one_commit_serves_all_candidates() {
    let machine =
        Setup { promotion: Promotion::OnDemand { batch: 64, delay: Duration::MAX }, ..Setup::default() }.build();
    let vectors = machine.vectors(64);
    for _ in 0..2 {
        for index in 0..64 {
            machine.fire(&vectors, index);
            machine.arrives(0x40 + index as u8);
        }
    }
    eventually(|| (machine.fabric.stats().promotions == 64).then_some(()));
    assert_eq!(machine.hypervisor.calls().commits, 1);
}

#[test]
fn four_thousand_vectors_that_fire_twice_cost_sixteen_commits_at_the_most() {
    let machine =
        Setup { promotion: Promotion::OnDemand { batch: 256, delay: Duration::MAX }, ..Setup::default() }.build();
    raise_descriptor_limit();
    let vectors = machine.fabric.msi_vectors(RequesterId(8), 4000);
    for index in 0..4000 {
        vectors[index].eventfd().unwrap();
        vectors.program(index, 0xfee0_0000, 0x40).unwrap();
    }
    for round in 1..=2 {
        for index in 0..4000 {
            machine.fire(&vectors, index);
        }
        // Each was seen before the next round, or two events of one vector might be read as one.
        eventually(|| vectors.iter().all(|vector| vector.stats().signalled >= round).then_some(()));
    }
    eventually(|| (machine.fabric.stats().promotions >= 15 * 256).then_some(()));
    assert!(machine.hypervisor.calls().commits <= 16, "{:?}", machine.hypervisor.calls());
}

fn raise_descriptor_limit() {
    let output = std::process::Command::new("prlimit")
        .args(["--nofile=20000:", "--pid", &std::process::id().to_string()])
        .output()
        .expect("prlimit raises the soft limit of open files");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn ten_thousand_vectors_with_eventfds_all_arrive_though_there_are_fewer_routes() {
    const COUNT: usize = 10_000;
    // As many at once as there are guest vectors: one outstanding for each.
    const AT_ONCE: usize = 200;
    let machine = Setup { promotion: Promotion::default(), ..Setup::default() }.build();
    raise_descriptor_limit();
    let vectors = machine.fabric.msi_vectors(RequesterId(8), COUNT);
    let guest_vector = |index: usize| (0x20 + index % AT_ONCE) as u8;
    for (index, vector) in vectors.iter().enumerate() {
        vector.eventfd().unwrap();
        vectors.program(index, 0xfee0_0000, guest_vector(index).into()).unwrap();
    }
    // A step that has no factor in common with the number of groups visits them all, in no order of theirs.
    let groups = COUNT / AT_ONCE;
    for round in 0..4 {
        for group in (0..groups).map(|turn| (turn * 17 + round) % groups) {
            let mut missing: BTreeSet<_> = (0..AT_ONCE).map(guest_vector).collect();
            (0..AT_ONCE).for_each(|index| machine.fire(&vectors, group * AT_ONCE + index));
            eventually(|| {
                for vector in requested(&machine.vcpu) {
                    missing.remove(&vector);
                }
                missing.is_empty().then_some(())
            });
            take(&machine.vcpu);
        }
    }
    eventually(|| (machine.fabric.stats().promotions == 4096 - 24).then_some(()));
    let stats = machine.fabric.stats();
    assert!(stats.evictions == 0 && stats.shortages > 0, "none fired often enough to take another's: {stats:?}");
}

#[test]
fn creating_and_dropping_vectors_leaves_the_table_as_it_was() {
    let machine = Setup { promotion: Promotion::Prefill, ..Setup::default() }.build();
    let keep = machine.vectors(1);
    for _ in 0..10_000 {
        let vectors = machine.vectors(1);
        assert_eq!(machine.fabric.stats().shortages, 0);
        drop(vectors);
    }
    assert_eq!(machine.fabric.stats().promotions, 10_001);
    machine.fire(&keep, 0);
    machine.arrives(0x40);
}

#[test]
fn prefill_attaches_when_the_guest_has_programmed_the_vector() {
    let machine = Setup { promotion: Promotion::Prefill, ..Setup::default() }.build();
    let vectors = machine.vectors(1);
    assert_eq!(machine.fabric.stats().promotions, 1);
    machine.fire(&vectors, 0);
    machine.arrives(0x40);
    assert_eq!(machine.fabric.stats().wakeups, 0);
}

#[test]
fn prefill_attaches_when_the_device_asks_for_the_eventfd_of_a_vector_that_is_programmed_already() {
    let machine = Setup { promotion: Promotion::Prefill, ..Setup::default() }.build();
    let vectors = machine.fabric.msi_vectors(RequesterId::new(0, 1, 0), 1);
    vectors.program(0, 0xfee0_0000, 0x40).unwrap();
    vectors[0].eventfd().unwrap();
    assert_eq!(machine.fabric.stats().promotions, 1);
    machine.fire(&vectors, 0);
    machine.arrives(0x40);
    assert_eq!(machine.fabric.stats().wakeups, 0);
}

#[test]
fn a_vector_that_is_never_promoted_is_delivered_all_the_same() {
    let machine = Setup { promotion: Promotion::Never, ..Setup::default() }.build();
    let vectors = machine.vectors(1);
    for _ in 0..100 {
        machine.fire(&vectors, 0);
        machine.arrives(0x40);
    }
    assert_eq!((machine.fabric.stats().promotions, machine.hypervisor.calls().commits), (0, 0));
}

#[test]
fn more_vectors_than_routes_evict_each_other_and_all_are_delivered() {
    let machine = Setup { gsis: 24 + 2, ..Setup::default() }.build();
    let vectors = machine.vectors(4);
    machine.heat(&vectors, 0);
    machine.heat(&vectors, 1);
    // A promotion waits a hundred times as long as the last commit took: on a busy host that is many rounds.
    let began = Instant::now();
    while machine.fabric.stats().evictions < 2 {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", machine.fabric.stats());
        for index in 0..4 {
            machine.fire(&vectors, index);
            machine.arrives(0x40 + index as u8);
        }
    }
}

#[test]
fn a_kernel_whose_irqfd_does_not_take_its_events_is_not_used() {
    let machine = Setup { attaches: false, ..Setup::default() }.build();
    let vectors = machine.vectors(1);
    for _ in 0..10 {
        machine.fire(&vectors, 0);
        machine.arrives(0x40);
        machine.stays_quiet();
    }
    let stats = machine.fabric.stats();
    assert!(stats.promotions == 0 && stats.shortages > 0, "{stats:?}");
    assert_eq!(machine.hypervisor.calls().commits, 1, "it is not tried again and again");
}

#[test]
fn without_descriptors_a_vector_is_signalled_in_process_and_the_shortage_counted() {
    let output = std::process::Command::new("prlimit")
        .arg("--nofile=64")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "on_kvm::vectors::with_sixty_four_descriptors"])
        .output()
        .expect("prlimit lowers the limit of open files");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn with_sixty_four_descriptors() {
    let machine = Setup::default().build();
    let vectors = machine.fabric.msi_vectors(RequesterId(8), 64);
    let without = (0..64).find(|&index| vectors[index].eventfd().is_err()).expect("there are 64 descriptors");
    vectors.program(without, 0xfee0_0000, 0x40).unwrap();
    vectors[without].signal();
    machine.arrives(0x40);
    assert_eq!(machine.fabric.stats().shortages, 1);
}

#[test]
fn the_vmms_own_entries_are_committed_with_ours() {
    let machine = Setup::default().build();
    // A plain KVM_IRQ_ROUTING_MSI of the VMM's own, since the others need what not every host has.
    let msi = OpaqueTarget { kind: 2, flags: 0, data: [0xfee0_0000, 0, 0x66, 0, 0, 0, 0, 0] };
    let route = machine.fabric.opaque_route(msi).unwrap();
    let eventfd = EventFd::new(0).unwrap();
    machine.hypervisor.attach(route.gsi(), &eventfd).unwrap();
    eventfd.write(1).unwrap();
    machine.arrives(0x66);
    let vectors = machine.vectors(1);
    machine.heat(&vectors, 0);
    machine.fire(&vectors, 0);
    machine.arrives(0x40);
    eventfd.write(1).unwrap();
    machine.arrives(0x66);
    let full = Setup { gsis: 24, ..Setup::default() }.build();
    assert!(matches!(full.fabric.opaque_route(msi), Err(RouteError::NoGsi)));
}

#[test]
fn an_invalidation_touches_what_it_covers_and_nothing_that_comes_out_the_same() {
    let machine = Setup { remapping: true, ..Setup::default() }.build();
    for entry in 0..4 {
        machine.table.set(0x40 + entry, Some(0x40 + entry));
    }
    let vectors = machine.vectors(4);
    (0..4).for_each(|index| machine.heat(&vectors, index));
    let before = machine.hypervisor.calls();
    machine.fabric.invalidate(&Entries::All);
    assert_eq!(machine.hypervisor.calls(), before, "all the same");

    machine.table.set(0x41, Some(0x91));
    machine.table.set(0x42, Some(0x92));
    machine.fabric.invalidate(&entries(0x42..=0x60));
    machine.fire(&vectors, 1);
    machine.arrives(0x41);
    machine.fire(&vectors, 2);
    machine.arrives(0x92);
    let after = machine.hypervisor.calls();
    let touched = (after.commits - before.commits) + (after.detaches - before.detaches);
    assert_eq!(touched, 1, "one vector, changed in place or detached");
    machine.fabric.invalidate(&entries(0x41..=0x41));
    machine.fire(&vectors, 1);
    machine.arrives(0x91);
}

#[test]
fn a_blocked_vector_is_refused_each_time_it_fires_and_never_before() {
    let machine = Setup { remapping: true, ..Setup::default() }.build();
    machine.table.set(0x40, Some(0x40));
    let vectors = machine.vectors(1);
    machine.heat(&vectors, 0);
    machine.table.set(0x40, None);
    machine.fabric.invalidate(&entries(0x40..=0x40));
    machine.stays_quiet();
    assert_eq!(machine.fabric.stats().blocked, 0);
    for fired in 1..=3 {
        machine.fire(&vectors, 0);
        eventually(|| (machine.fabric.stats().blocked == fired).then_some(()));
    }
    machine.stays_quiet();
    // It becomes present, without an invalidation.
    machine.table.set(0x40, Some(0x40));
    machine.fire(&vectors, 0);
    machine.arrives(0x40);
}

#[test]
fn an_in_process_vector_follows_its_entry() {
    let machine = Setup { remapping: true, ..Setup::default() }.build();
    machine.table.set(0x40, Some(0x70));
    let vectors = machine.fabric.msi_vectors(RequesterId(8), 1);
    vectors.program(0, 0xfee0_0000, 0x40).unwrap();
    vectors[0].signal();
    machine.arrives(0x70);
    machine.table.set(0x40, Some(0x71));
    machine.fabric.invalidate(&entries(0..=0xffff));
    vectors[0].signal();
    machine.arrives(0x71);
}

#[test]
fn a_saved_vector_that_was_pending_fires_after_it_was_restored_and_unmasked() {
    let machine = Setup::default().build();
    let vectors = machine.vectors(3);
    vectors.set_masking([0, 1], Masking::Masked).unwrap();
    machine.fire(&vectors, 0);
    let saved = vectors.save();
    assert_eq!(saved.iter().map(|state| state.pending).collect::<Vec<_>>(), [true, false, false]);

    let other = Setup::default().build();
    let restored = other.fabric.msi_vectors(RequesterId(8), 3);
    restored.restore(&saved).unwrap();
    other.stays_quiet();
    assert_eq!(restored.save(), saved);
    restored.set_masking([0, 1], Masking::Unmasked).unwrap();
    other.arrives(0x40);
    restored[2].signal();
    other.arrives(0x42);
    assert!(other.fabric.msi_vectors(RequesterId(8), 2).restore(&saved).is_err());
}

#[test]
fn an_index_beyond_the_last_vector_changes_nothing() {
    let machine = Setup::default().build();
    let vectors = machine.vectors(2);
    let programs = [0, 2].map(|index| Program { index, address: 0xfee0_0000, data: 0x99 });
    assert_eq!(vectors.program_all(&programs).unwrap_err().to_string(), "vector 2 of 2: the last is 1");
    assert!(vectors.set_masking([0, 7], Masking::Masked).is_err());
    machine.fire(&vectors, 0);
    machine.arrives(0x40);
}
