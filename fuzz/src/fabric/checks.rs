//! What must hold after every step.

use super::world::World;
use irqfabric::chip::pic::Pic;
use irqfabric::line::Level;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;

impl World {
    pub(super) fn check(&mut self) {
        assert_eq!(self.model.seen, [], "nobody asked for it");
        assert!(self.machine.0.seen.lock().unwrap().is_empty(), "something comes late");
        let (_, _, chip) = self.fabric.ioapics().next().expect("one");
        for (pin, found) in chip.pins.iter().enumerate() {
            assert_eq!(found.entry, self.model.entries[pin], "entry {pin}");
            assert_eq!(found.level == Level::High, self.model.levels[pin], "pin {pin}");
            assert!(!found.edge, "an edge waits though it could be delivered at once");
        }
        for (source, told) in self.told.iter().enumerate() {
            assert_eq!(told.load(Relaxed), self.model.told[source], "source {source} is told once");
            assert_eq!(self.sources[source].level() == Level::High, self.model.raised[source], "source {source}");
        }
        for (vector, followed) in self.model.vectors.iter().enumerate() {
            assert_eq!(self.vectors[vector / 2].pending(vector % 2), followed.pending, "pending bit {vector}");
        }
        let snapshot = self.fabric.pic().expect("a PIC");
        let pic = Pic::restore(&snapshot.chip);
        assert_eq!(pic.output() == Level::High, self.model.pic.intr());
        assert_eq!(pic.in_service(), self.model.pic.in_service());
        assert_eq!(snapshot.pending.len(), self.model.externals.len());
        self.check_faults();
        self.check_requested();
    }

    /// Each blocked message is recorded once, and nothing else is.
    fn check_faults(&mut self) {
        assert_eq!(self.fabric.stats().blocked, self.model.blocked);
        let (_, _, state) = self.fabric.vtd().expect("a unit");
        let records = state.records.iter().map(|&[low, high]| u128::from(high) << 64 | u128::from(low));
        let records: Vec<u128> = records.filter(|record| record >> 127 != 0).collect();
        let overflow = state.status & 1 != 0;
        self.model.faults.dedup();
        for record in &self.model.faults {
            assert!(overflow || records.contains(record), "fault {record:#x} is not recorded");
        }
        for record in &records {
            assert!(self.model.faults.contains(record), "fault {record:#x} of no message");
        }
        // What was cleared is forgotten.
        self.model.faults.retain(|record| records.contains(record));
    }

    /// The local APICs have requested what was delivered to them.
    fn check_requested(&mut self) {
        for (cpu, requested) in self.machine.0.sim.vcpus().iter().zip(&mut self.model.irr) {
            let irr = cpu.with_lapic(|lapic| lapic.save().irr);
            let found: BTreeSet<u8> =
                (0..=255).filter(|&vector: &u8| irr[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0).collect();
            assert!(found.is_superset(requested), "a vector that was accepted is not requested");
            // Those that arbitration has brought.
            *requested = found;
        }
    }
}
