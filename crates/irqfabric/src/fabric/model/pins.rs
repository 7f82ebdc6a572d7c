//! The parked route of an IOAPIC's level pin.

use super::*;

pub(super) const LEVEL: u32 = 1 << 15;

/// The guest writes one half of pin 0's entry, its other CPUs looking on: the registers are indirect.
pub(super) fn entry(machine: &Machine, index: u32, value: u32) {
    let _ioapic_lock = machine.ioapic_lock.lock();
    machine.fabric.mmio_write(IOAPIC_ADDRESS, &index.to_le_bytes());
    machine.fabric.mmio_write(IOAPIC_ADDRESS + 0x10, &value.to_le_bytes());
}

fn raise(machine: &Machine) {
    machine.source.raise();
}

fn lower_raise(machine: &Machine) {
    machine.source.lower();
    machine.source.raise();
}

fn move_pin(machine: &Machine) {
    entry(machine, 0x10, LEVEL | u32::from(OTHER));
    machine.kernel.log(Seen::Old(original(ENTRY)));
}

/// The message is another, what it asks for is not: these bits mean nothing here.
fn rewrite_pin_alike(machine: &Machine) {
    entry(machine, 0x11, 0x7f << 17);
}

pub(super) fn mask_pin(machine: &Machine) {
    entry(machine, 0x10, LEVEL | 1 << 16 | u32::from(ENTRY));
    machine.kernel.log(Seen::Masked(0));
}

pub(super) fn mask_unmask_pin(machine: &Machine) {
    mask_pin(machine);
    machine.kernel.log(Seen::Unmasking(0));
    entry(machine, 0x10, LEVEL | u32::from(ENTRY));
}

fn edge_and_back(machine: &Machine) {
    entry(machine, 0x10, u32::from(ENTRY));
    entry(machine, 0x10, LEVEL | u32::from(ENTRY));
}

fn invalidate_pin(machine: &Machine) {
    machine.change(ENTRY, Some(changed(ENTRY)));
    machine.fabric.invalidate(&Entries::All);
    machine.kernel.log(Seen::Old(original(ENTRY)));
}

pub(super) fn end_of_interrupt(machine: &Machine) {
    machine.fabric.end_of_interrupt(ENTRY);
}

fn unparked(_: &Machine) {}

/// The route is parked already.
fn parked(machine: &Machine) {
    machine.source.raise();
    machine.source.lower();
    end_of_interrupt(machine);
}

fn delivered(machine: &Machine) {
    machine.source.raise();
}

fn pin(begin: Act, threads: &'static [Act]) {
    let preemptions = if threads.len() > 2 { PREEMPTIONS } else { PREEMPTIONS_OF_PINS };
    explore(Some(preemptions), move |variant| {
        let machine = Arc::new(Machine::new(variant));
        entry(&machine, 0x10, LEVEL | u32::from(ENTRY));
        begin(&machine);
        let spawn = |&act: &Act| {
            let machine = machine.clone();
            loom::thread::spawn(move || act(&machine))
        };
        let threads: Vec<_> = threads.iter().map(spawn).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        machine.judge_pin();
    });
}

impl Machine {
    /// A level that stands, on a pin that may send, is in service; a level has no count, so nothing is doubled, but
    /// in between no delivery was of anything old, or masked. That its route was parked is seen at each delivery.
    fn judge_pin(&self) {
        let log = self.kernel.state().log.clone();
        let (_, _, chip) = self.fabric.ioapics().next().unwrap();
        let bits = chip.pins[0].entry;
        let (in_service, masked) = (bits & 1 << 14 != 0, bits & 1 << 16 != 0);
        assert!(in_service || masked, "lost: {log:x?}");
        let (mut old, mut masked) = (Vec::new(), false);
        for seen in &log {
            match *seen {
                Seen::Delivered(what) => {
                    assert!(!old.contains(&what), "stale: {log:x?}");
                    assert!(!masked, "delivered while masked: {log:x?}");
                }
                Seen::Old(what) => old.push(what),
                Seen::Masked(_) => masked = true,
                Seen::Unmasking(_) => masked = false,
                Seen::Signalled(_) | Seen::Swallowed => unreachable!("no eventfd fires"),
                Seen::Faulted => unreachable!("every entry is present"),
                Seen::Ending | Seen::Told(_) => unreachable!("nobody resamples"),
            }
        }
    }
}

macro_rules! pin_models {
    ($($name:ident: $begin:ident, $($act:ident)|+;)*) => {
        $(
            #[test]
            fn $name() {
                pin($begin, &[$($act),+]);
            }
        )*
    };
}

pin_models! {
    raise_and_move: unparked, raise | move_pin;
    raise_and_move_parked: parked, raise | move_pin;
    raise_and_rewrite_alike: unparked, raise | rewrite_pin_alike;
    raise_and_mask: unparked, raise | mask_pin;
    raise_and_mask_unmask: unparked, raise | mask_unmask_pin;
    raise_and_mask_unmask_parked: parked, raise | mask_unmask_pin;
    raise_and_edge_and_back: unparked, raise | edge_and_back;
    raise_and_invalidate: unparked, raise | invalidate_pin;
    raise_and_invalidate_parked: parked, raise | invalidate_pin;
    end_of_interrupt_and_lower_raise: delivered, end_of_interrupt | lower_raise;
    end_of_interrupt_and_edge_and_back: delivered, end_of_interrupt | edge_and_back;
    raise_rewrite_alike_and_mask_unmask: unparked, raise | rewrite_pin_alike | mask_unmask_pin;
    raise_move_and_invalidate: unparked, raise | move_pin | invalidate_pin;
    end_of_interrupt_raise_and_mask_unmask: delivered, end_of_interrupt | lower_raise | mask_unmask_pin;
}
