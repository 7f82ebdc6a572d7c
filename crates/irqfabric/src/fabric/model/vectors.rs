//! Message vectors: cold, hot, masked, promoted, evicted, reprogrammed, invalidated, dropped.
//!
//! When the threads are done the dispatcher turns until nothing is ready, and the vectors are unmasked, cooled down and dropped;
//! [`Machine::finish`] says what must hold.

use super::*;

impl Machine {
    /// Turns of the dispatcher until nothing is ready.
    fn drain(&self) {
        for _ in 0..4 {
            let ready = self.kernel.state().ready();
            ready.into_iter().for_each(|index| self.turn(index));
        }
        // Not with the lock held: what unwinds needs it.
        let ready = self.kernel.state().ready();
        assert!(ready.is_empty(), "the dispatcher would spin: {ready:?}");
    }

    /// The threads are done. What must hold at the end of every execution.
    pub(super) fn finish(&self) {
        self.drain();
        self.kernel.settle();
        self.judge();
        if self.vector(0).state().masking == Masking::Masked {
            self.set_masking(Masking::Unmasked);
            self.drain();
            self.kernel.settle();
            self.judge();
        }
        self.nothing_is_lost();
        // A count that was delivered and left in an eventfd shows as a ghost once it is cold.
        for index in 0..self.vectors.len() {
            self.vector(index).detach(Event::Evict);
        }
        self.drain();
        self.judge();
    }

    fn blocked(&self) -> usize {
        self.core().counters.blocked.load(Relaxed) as usize
    }

    /// At every moment: no event was swallowed, none doubled, nothing old used, nothing delivered while masked.
    fn judge(&self) {
        let log = self.kernel.state().log.clone();
        let mut old = Vec::new();
        let (mut signalled, mut delivered, mut faulted) = ([0; 2], [0; 2], 0);
        let mut masked = [false; 2];
        for seen in &log {
            match *seen {
                Seen::Signalled(index) => signalled[index] += 1,
                Seen::Delivered(what) => {
                    let index = usize::from(what & 0xf);
                    delivered[index] += 1;
                    assert!(!old.contains(&what), "stale: {log:x?}");
                    assert!(!masked[index], "delivered while masked: {log:x?}");
                    assert!(delivered[index] <= signalled[index], "doubled: {log:x?}");
                }
                // A fault is a message that was sent: one for each, and none before.
                Seen::Faulted => {
                    faulted += 1;
                    assert!(faulted <= signalled.iter().sum::<usize>(), "a fault of nothing: {log:x?}");
                }
                Seen::Swallowed => panic!("swallowed by an irqfd without a route: {log:x?}"),
                Seen::Old(what) => old.push(what),
                Seen::Masked(index) => masked[index] = true,
                Seen::Unmasking(index) => masked[index] = false,
                Seen::Ending | Seen::Told(_) => unreachable!("no line is raised"),
            }
        }
        assert_eq!(faulted, self.blocked(), "each fault is recorded: {log:x?}");
        let total: usize = delivered.iter().sum::<usize>() + faulted;
        assert!(total <= signalled.iter().sum(), "doubled, as a fault: {log:x?}");
    }

    /// Every vector was delivered, or blocked, after its last signal.
    fn nothing_is_lost(&self) {
        let log = self.kernel.state().log.clone();
        let blocked = self.blocked();
        for index in 0..self.vectors.len() {
            let of_vector = |seen: &&Seen| match **seen {
                Seen::Signalled(of) => of == index,
                Seen::Delivered(what) => usize::from(what & 0xf) == index,
                _ => false,
            };
            let last = log.iter().rfind(of_vector);
            let lost = matches!(last, Some(Seen::Signalled(_))) && blocked == 0;
            assert!(!lost, "lost: {log:x?}");
        }
    }
}

/// The vectors are gone: so are their irqfds and GSIs.
fn nothing_leaks(kernel: &Kernel, core: &Core) {
    let irqfds = kernel.state().irqfds();
    assert_eq!(irqfds, 0, "an irqfd leaks");
    let gsis: Vec<_> = std::iter::from_fn(|| core.table.allocate()).collect();
    assert_eq!(gsis.len(), GSIS as usize, "a GSI leaks");
}

// What threads do.

fn write(machine: &Machine) {
    machine.write(0);
}

/// The device is in this process.
fn signal(machine: &Machine) {
    machine.kernel.log(Seen::Signalled(0));
    machine.vectors[0].signal();
}

fn turn(machine: &Machine) {
    machine.turn(0);
}

fn promote(machine: &Machine) {
    machine.promote(0);
}

/// Takes the only GSI from the first vector, if that has it.
fn promote_other(machine: &Machine) {
    machine.promote(1);
}

fn evict(machine: &Machine) {
    machine.vector(0).detach(Event::Evict);
}

fn mask(machine: &Machine) {
    machine.set_masking(Masking::Masked);
}

fn unmask(machine: &Machine) {
    machine.set_masking(Masking::Unmasked);
}

fn mask_unmask(machine: &Machine) {
    mask(machine);
    unmask(machine);
}

fn pending(machine: &Machine) {
    machine.vectors.pending(0);
}

fn program_to(machine: &Machine, entry: u8) {
    machine.vectors.program(0, WINDOW, entry.into()).unwrap();
}

fn program(machine: &Machine) {
    program_to(machine, OTHER);
    machine.kernel.log(Seen::Old(original(ENTRY)));
    machine.kernel.log(Seen::Old(changed(ENTRY)));
}

/// As [`program`], to yet another entry; for beside it.
fn program_third(machine: &Machine) {
    program_to(machine, 0x60);
    machine.kernel.log(Seen::Old(original(ENTRY)));
}

/// To another entry that says the same as [`OTHER`].
fn program_alias(machine: &Machine) {
    machine.change(0x60, Some(original(OTHER)));
    program_third(machine);
}

fn invalidate_same(machine: &Machine) {
    machine.invalidate(ENTRY);
}

fn invalidate_changed(machine: &Machine) {
    machine.change(ENTRY, Some(changed(ENTRY)));
    machine.invalidate(ENTRY);
    machine.kernel.log(Seen::Old(original(ENTRY)));
}

fn invalidate_blocked(machine: &Machine) {
    machine.change(ENTRY, None);
    machine.invalidate(ENTRY);
    machine.kernel.log(Seen::Old(original(ENTRY)));
}

// How a vector begins.

fn cold(_: &Machine) {}

fn warm(machine: &Machine) {
    machine.warm(0);
}

fn hot(machine: &Machine) {
    machine.hot(0);
}

fn hot_then_masked(machine: &Machine) {
    machine.hot(0);
    mask(machine);
}

fn cold_masked(machine: &Machine) {
    machine.warm(0);
    mask(machine);
}

/// It fired while it was masked: pending, and the dispatcher looks away.
fn muted(machine: &Machine) {
    cold_masked(machine);
    machine.warm(0);
    machine.write(0);
}

fn hot_and_other_warm(machine: &Machine) {
    machine.hot(0);
    machine.warm(1);
}

fn hot_and_no_table_accepted(machine: &Machine) {
    machine.hot(0);
    machine.kernel.state().refuses_tables = true;
}

fn hot_then_masked_and_no_irqfd_accepted(machine: &Machine) {
    hot_then_masked(machine);
    machine.kernel.state().refuses_irqfds = true;
}

fn vectors(begin: Act, threads: &'static [Act]) {
    let preemptions = (threads.len() > 2).then_some(PREEMPTIONS);
    explore(preemptions, move |variant| {
        let machine = Arc::new(Machine::new(variant));
        begin(&machine);
        let spawn = |&act: &Act| {
            let machine = machine.clone();
            loom::thread::spawn(move || act(&machine))
        };
        let threads: Vec<_> = threads.iter().map(spawn).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        machine.finish();
        let Machine { kernel, fabric, vectors, .. } = Arc::into_inner(machine).unwrap();
        drop(vectors);
        nothing_leaks(&kernel, &fabric.0.core);
    });
}

macro_rules! models {
    ($($name:ident: $begin:ident, $($act:ident)|+;)*) => {
        $(
            #[test]
            fn $name() {
                vectors($begin, &[$($act),+]);
            }
        )*
    };
}

models! {
    write_and_turn: cold, write | turn;
    write_and_promote: warm, write | promote;
    write_and_mask_unmask_hot: hot, write | mask_unmask;
    write_and_mask_unmask_cold: warm, write | mask_unmask;
    write_and_mask_hot: hot, write | mask;
    write_and_unmask_muted: muted, write | unmask;
    write_and_unmask_without_irqfds: hot_then_masked_and_no_irqfd_accepted, write | unmask;
    write_and_evict: hot, write | evict;
    write_and_another_vector_takes_the_gsi: hot_and_other_warm, write | promote_other;
    write_and_program_hot: hot, write | program;
    write_and_program_without_tables: hot_and_no_table_accepted, write | program;
    write_and_invalidate_same: hot, write | invalidate_same;
    write_and_invalidate_changed: hot, write | invalidate_changed;
    write_and_invalidate_blocked: hot, write | invalidate_blocked;
    signal_and_invalidate_changed: cold, signal | invalidate_changed;
    signal_and_invalidate_changed_warm: warm, signal | invalidate_changed;
    signal_and_invalidate_blocked: cold, signal | invalidate_blocked;
    signal_and_program: cold, signal | program;
    signal_and_mask: cold, signal | mask;
    promote_and_promote: warm, promote | promote;
    promote_and_program: warm, promote | program;
    promote_and_unmask: cold_masked, promote | unmask;
    promote_and_invalidate_changed: warm, promote | invalidate_changed;
    promote_and_invalidate_blocked: warm, promote | invalidate_blocked;
    invalidate_and_mask_unmask_hot: hot, invalidate_changed | mask_unmask;
    invalidate_blocked_and_mask_unmask_hot: hot, invalidate_blocked | mask_unmask;
    invalidate_and_unmask: hot_then_masked, invalidate_changed | unmask;
    program_and_mask_unmask_hot: hot, program | mask_unmask;
    pending_and_write_masked: hot_then_masked, pending | write;

    write_promote_and_mask: warm, write | promote | mask;
    write_promote_and_program: warm, write | promote | program;
    write_promote_and_evict: warm, write | promote | evict;
    write_promote_and_invalidate: warm, write | promote | invalidate_changed;
    write_turn_and_mask: warm, write | turn | mask;
    write_turn_and_promote: warm, write | turn | promote;
    write_turn_and_unmask: muted, write | turn | unmask;
    write_turn_and_mask_unmask: warm, write | turn | mask_unmask;
    write_mask_unmask_and_invalidate: hot, write | mask_unmask | invalidate_changed;
    write_mask_unmask_and_evict: hot, write | mask_unmask | evict;
    write_pending_and_unmask: hot_then_masked, write | pending | unmask;
    write_program_and_promote_other: hot_and_other_warm, write | program | promote_other;
    write_program_and_program: hot, write | program | program_third;
    write_program_and_program_to_the_same: hot, write | program | program_alias;
    write_program_and_invalidate_changed: hot, write | program | invalidate_changed;
    write_program_and_invalidate_blocked: hot, write | program | invalidate_blocked;
    write_invalidate_and_invalidate_changed: hot, write | invalidate_changed | invalidate_changed;
    write_invalidate_and_invalidate_blocked: hot, write | invalidate_blocked | invalidate_blocked;
    signal_program_and_mask: cold, signal | program | mask;
    signal_program_and_invalidate: warm, signal | program | invalidate_changed;
    signal_and_write_and_mask_unmask: hot, signal | write | mask_unmask;
    promote_unmask_and_turn: muted, promote | unmask | turn;
}

/// The device keeps its descriptor: its events reach nobody.
#[test]
fn drop_and_write() {
    dropping(|machine| {
        let eventfd = machine.vectors[0].eventfd().unwrap().try_clone().unwrap();
        vec![Box::new(move || eventfd.write(1).unwrap())]
    });
}

#[test]
fn drop_promote_and_write() {
    dropping(|machine| {
        let eventfd = machine.vectors[0].eventfd().unwrap().try_clone().unwrap();
        let (vector, core) = (machine.vector(0).clone(), machine.core().clone());
        // As the dispatcher does: it holds the vector while it is at it.
        vec![Box::new(move || eventfd.write(1).unwrap()), Box::new(move || promotion::promote(&core, &[vector]))]
    });
}

#[test]
fn drop_invalidate_and_write() {
    dropping(|machine| {
        let eventfd = machine.vectors[0].eventfd().unwrap().try_clone().unwrap();
        let (fabric, irtes, kernel) = (machine.fabric.clone(), machine.irtes.clone(), machine.kernel.clone());
        let invalidate = move || {
            irtes.lock().remove(&ENTRY);
            fabric.invalidate(&Entries::All);
            kernel.log(Seen::Old(original(ENTRY)));
        };
        vec![Box::new(move || eventfd.write(1).unwrap()), Box::new(invalidate)]
    });
}

type Beside = Vec<Box<dyn FnOnce() + Send>>;

/// The vectors are dropped while they are hot, beside other threads. Nothing is delivered twice, or after all are gone.
fn dropping(beside: fn(&Machine) -> Beside) {
    explore(Some(PREEMPTIONS), move |variant| {
        let machine = Machine::new(variant);
        machine.hot(0);
        let eventfd = machine.vectors[0].eventfd().unwrap().try_clone().unwrap();
        let threads: Vec<_> = beside(&machine).into_iter().map(loom::thread::spawn).collect();
        let Machine { kernel, fabric, vectors, irtes, source, ioapic_lock } = machine;
        drop(vectors);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let delivered = || kernel.state().log.iter().filter(|seen| matches!(seen, Seen::Delivered(_))).count();
        let before = delivered();
        eventfd.write(1).unwrap();
        assert_eq!(delivered(), before);
        let vectors = fabric.msi_vectors(RequesterId(8), 2);
        let rest = Machine { kernel, fabric, vectors, irtes, source, ioapic_lock };
        rest.judge();
        nothing_leaks(&rest.kernel, &rest.fabric.0.core);
    });
}
