//! The GSI table: edits are cheap and local, a commit publishes the newest table whole.
//!
//! Whoever needs a route [puts](GsiTable::put) it, lets go of its own lock, and then asks that the table of
//! that moment or a newer one be [published](GsiTable::publish). Of several threads that ask at once, one commits and
//! the others find that theirs is in force. A route that is no longer needed is only
//! [released](GsiTable::release): it is left out of the next commit, which nobody makes for its sake.

use crate::hv::{HvError, Hypervisor, Route};
use crate::msg::Interrupt;
use crate::sync::Mutex;
use std::collections::BTreeMap;

/// A point in the table's history: the edit that a publication must cover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[must_use]
pub(crate) struct Since(u64);

#[derive(Debug, Default)]
pub(crate) struct GsiTable {
    /// Held across the system call: commits follow each other. Taken before `edits`.
    published: Mutex<Published>,
    /// Held for an edit or a copy only.
    edits: Mutex<Edits>,
}

#[derive(Debug, Default)]
struct Published {
    until: Since,
    commits: u64,
}

#[derive(Debug, Default)]
struct Edits {
    newest: Since,
    entries: BTreeMap<u32, Entry>,
}

#[derive(Debug)]
struct Entry {
    interrupt: Interrupt,
    /// The edit that made it what it is.
    since: Since,
    released: bool,
}

impl GsiTable {
    /// Wants `gsi` to stand for `interrupt`. The answer says what must be published before that is so,
    /// which has happened already if the table never changed.
    pub(crate) fn put(&self, gsi: u32, interrupt: Interrupt) -> Since {
        let mut edits = self.edits.lock();
        if let Some(entry) = edits.entries.get_mut(&gsi)
            && entry.interrupt == interrupt
        {
            entry.released = false;
            return entry.since;
        }
        edits.newest.0 += 1;
        let since = edits.newest;
        edits.entries.insert(gsi, Entry { interrupt, since, released: false });
        since
    }

    /// Nobody needs the route of `gsi` any more.
    pub(crate) fn release(&self, gsi: u32) {
        if let Some(entry) = self.edits.lock().entries.get_mut(&gsi) {
            entry.released = true;
        }
    }

    /// Returns when the edit `since` is in force. One commit, or none if another's has covered it. On an error
    /// the table in force is the old one, and the edit will be part of the next commit.
    pub(crate) fn publish(&self, since: Since, hypervisor: &dyn Hypervisor) -> Result<(), HvError> {
        let mut published = self.published.lock();
        if published.until >= since {
            return Ok(());
        }
        let (routes, newest) = self.edits.lock().copy();
        published.commits += 1;
        hypervisor.commit(&routes)?;
        published.until = newest;
        Ok(())
    }

    /// How many commits there were.
    pub(crate) fn commits(&self) -> u64 {
        self.published.lock().commits
    }
}

impl Edits {
    fn copy(&mut self) -> (Vec<Route>, Since) {
        self.entries.retain(|_, entry| !entry.released);
        let routes = self.entries.iter().map(|(&gsi, entry)| Route { gsi, interrupt: entry.interrupt });
        (routes.collect(), self.newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msg::Acceptance;

    /// Remembers the tables it was given; refuses while told to.
    #[derive(Default)]
    struct Tables {
        committed: Mutex<Vec<Vec<u32>>>,
        refuses: Mutex<bool>,
    }

    impl Hypervisor for Tables {
        fn start(&self, _: u32) -> Result<(), HvError> {
            Ok(())
        }

        fn deliver(&self, _: &Interrupt) -> Result<Acceptance, HvError> {
            Ok(Acceptance::Accepted)
        }

        fn commit(&self, routes: &[Route]) -> Result<(), HvError> {
            if *self.refuses.lock() {
                return Err(HvError::TooManyRoutes { routes: routes.len(), most: 0 });
            }
            self.committed.lock().push(routes.iter().map(|route| route.gsi).collect());
            Ok(())
        }
    }

    fn vector(vector: u8) -> Interrupt {
        Interrupt { vector, ..Interrupt::default() }
    }

    #[test]
    fn one_commit_publishes_every_edit_before_it() {
        let (table, hypervisor) = (GsiTable::default(), Tables::default());
        let first = table.put(7, vector(0x31));
        let second = table.put(3, vector(0x32));
        table.publish(second, &hypervisor).unwrap();
        table.publish(first, &hypervisor).unwrap();
        assert_eq!(*hypervisor.committed.lock(), [[3, 7]]);
    }

    #[test]
    fn the_same_route_again_needs_no_commit() {
        let (table, hypervisor) = (GsiTable::default(), Tables::default());
        table.publish(table.put(7, vector(0x31)), &hypervisor).unwrap();
        table.publish(table.put(7, vector(0x31)), &hypervisor).unwrap();
        table.release(7);
        table.publish(table.put(7, vector(0x31)), &hypervisor).unwrap();
        assert_eq!(table.commits(), 1);
    }

    #[test]
    fn a_released_route_goes_with_the_next_commit_and_then_needs_one_to_come_back() {
        let (table, hypervisor) = (GsiTable::default(), Tables::default());
        table.publish(table.put(7, vector(0x31)), &hypervisor).unwrap();
        table.release(7);
        table.publish(table.put(8, vector(0x32)), &hypervisor).unwrap();
        table.publish(table.put(7, vector(0x31)), &hypervisor).unwrap();
        assert_eq!(*hypervisor.committed.lock(), [vec![7], vec![8], vec![7, 8]]);
    }

    #[test]
    fn an_edit_whose_commit_failed_is_part_of_the_next() {
        let (table, hypervisor) = (GsiTable::default(), Tables::default());
        *hypervisor.refuses.lock() = true;
        let since = table.put(7, vector(0x31));
        assert!(table.publish(since, &hypervisor).is_err());
        *hypervisor.refuses.lock() = false;
        table.publish(since, &hypervisor).unwrap();
        assert_eq!(*hypervisor.committed.lock(), [[7]]);
    }
}
