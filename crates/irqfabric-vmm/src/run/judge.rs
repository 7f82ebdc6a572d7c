//! The judge: from the numbers that sources have sent and handlers have seen to what was lost, doubled, misdelivered and
//! delivered while masked.
//!
//! A source has a *slot* for each vCPU and each of its two vectors: the newest number seen there, and how often
//! the handler ran. At each moment it is *bound* to one of them. A move binds another one and ends the old one's epoch: from then on,
//! numbers above the last one sent before belong elsewhere.
//!
//! - *Lost*: at rest, the last number seen anywhere is below the last one sent; legal coalescing cannot do that.
//! - *Doubled*: handlers ran more often than there were signals. A level is served as often as its device asks for it and
//!   cannot be doubled.
//! - *Misdelivered*: a slot whose epoch has ended shows a number that was sent afterwards.
//! - *Masked*: handlers ran while the interrupt was masked, after everything from before had been handled.

use std::collections::BTreeMap;

/// A vCPU and the parity of the vector.
pub type Slot = (usize, u8);

/// What stands in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The newest number.
    pub newest: u64,
    /// How often the handler ran.
    pub entries: u64,
}

/// Where a source was bound, and until which number.
#[derive(Clone, Debug, Default)]
pub struct Epochs {
    bound: Vec<Slot>,
    /// The last number that may be seen in a slot that was bound before. In one that never was: none.
    ended: BTreeMap<Slot, u64>,
    /// What stood in all slots when the mask had taken effect.
    masked_at: BTreeMap<Slot, Seen>,
    misdelivered: u64,
    masked: u64,
}

/// What a source did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The last number, which is how many signals there were.
    pub newest: u64,
    /// What its signals lead to.
    pub entries: Entries,
}

/// How often handlers may run for a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// Once for each signal: it waits for the handler.
    OneEach,
    /// At most once for each signal.
    Coalescing,
    /// As often as the device asks for service.
    Level,
}

/// The verdict on one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// How often handlers ran for it.
    pub received: u64,
    /// Signals never seen.
    pub lost: u64,
    /// Handler entries beyond the signals.
    pub doubled: u64,
    /// Slots that showed what was not theirs.
    pub misdelivered: u64,
    /// Handler entries while it was masked.
    pub masked: u64,
}

impl Epochs {
    /// Bound to its first slot.
    pub fn new(slot: Slot) -> Self {
        Self { bound: vec![slot], ..Self::default() }
    }

    /// A move begins: from now on the source may be seen in `slot` as well, which shows `seen` of earlier epochs.
    pub fn begin(&mut self, slot: Slot, seen: Seen) {
        self.check(slot, seen);
        self.ended.remove(&slot);
        self.bound.push(slot);
    }

    /// The move is over: what is sent after `newest` is not to be seen in `slot` again.
    pub fn end(&mut self, slot: Slot, newest: u64) {
        self.bound.retain(|bound| *bound != slot);
        self.ended.insert(slot, newest);
    }

    /// It is masked and nothing is under way any more: from now on, all slots stay as they are.
    pub fn mask(&mut self, slots: impl IntoIterator<Item = (Slot, Seen)>) {
        self.masked_at = slots.into_iter().collect();
    }

    /// It is about to be unmasked, and still nothing is under way.
    pub fn unmask(&mut self, slots: impl IntoIterator<Item = (Slot, Seen)>) {
        for (slot, seen) in slots {
            let before = self.masked_at.get(&slot).copied().unwrap_or_default();
            let grown = seen.entries.saturating_sub(before.entries);
            self.masked += grown.max(u64::from(seen.newest != before.newest));
        }
    }

    fn check(&mut self, slot: Slot, seen: Seen) {
        let last = self.ended.get(&slot).copied().unwrap_or_default();
        if !self.bound.contains(&slot) && seen.newest > last {
            self.misdelivered += 1;
        }
    }

    /// At rest: the verdict, from every slot there is.
    pub fn judge(mut self, sent: Sent, slots: impl IntoIterator<Item = (Slot, Seen)>) -> Verdict {
        let (mut newest, mut received) = (0, 0);
        for (slot, seen) in slots {
            self.check(slot, seen);
            newest = newest.max(seen.newest);
            received += seen.entries;
        }
        // An edge dropped at a masked pin had no entry: that it was sent again only makes up for it.
        let (least, most) = match sent.entries {
            Entries::OneEach => (sent.newest, sent.newest),
            Entries::Coalescing => (0, sent.newest),
            Entries::Level => (0, u64::MAX),
        };
        Verdict {
            received,
            lost: sent.newest.saturating_sub(newest).max(least.saturating_sub(received)),
            doubled: received.saturating_sub(most),
            misdelivered: self.misdelivered,
            masked: self.masked,
        }
    }
}

impl Verdict {
    /// Nothing was lost, doubled, misdelivered or delivered while masked.
    pub fn is_clean(self) -> bool {
        let Self { received: _, lost, doubled, misdelivered, masked } = self;
        lost + doubled + misdelivered + masked == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: Slot = (0, 0);
    const AWAY: Slot = (1, 0);

    fn seen(newest: u64, entries: u64) -> Seen {
        Seen { newest, entries }
    }

    fn sent(newest: u64, entries: Entries) -> Sent {
        Sent { newest, entries }
    }

    #[test]
    fn one_entry_for_each_signal_is_clean() {
        let verdict = Epochs::new(HOME).judge(sent(9, Entries::OneEach), [(HOME, seen(9, 9)), (AWAY, seen(0, 0))]);
        assert_eq!(verdict, Verdict { received: 9, ..Verdict::default() });
    }

    #[test]
    fn coalescing_is_no_loss() {
        let verdict = Epochs::new(HOME).judge(sent(9, Entries::Coalescing), [(HOME, seen(9, 3))]);
        assert!(verdict.is_clean());
    }

    #[test]
    fn a_number_that_nobody_has_seen_at_rest_is_lost() {
        for entries in [Entries::OneEach, Entries::Coalescing, Entries::Level] {
            let verdict = Epochs::new(HOME).judge(sent(9, entries), [(HOME, seen(8, 8))]);
            assert_eq!(verdict.lost, 1, "{entries:?}");
        }
    }

    #[test]
    fn a_number_that_was_only_overtaken_is_lost_where_the_source_waits() {
        let verdict = Epochs::new(HOME).judge(sent(9, Entries::OneEach), [(HOME, seen(9, 8))]);
        assert_eq!(verdict.lost, 1);
    }

    #[test]
    fn an_entry_beyond_the_signals_is_doubled() {
        for entries in [Entries::OneEach, Entries::Coalescing] {
            let verdict = Epochs::new(HOME).judge(sent(9, entries), [(HOME, seen(9, 10))]);
            assert_eq!(verdict.doubled, 1, "{entries:?}");
        }
    }

    #[test]
    fn a_level_served_again_is_not_doubled() {
        assert!(Epochs::new(HOME).judge(sent(9, Entries::Level), [(HOME, seen(9, 12))]).is_clean());
    }

    #[test]
    fn what_was_sent_before_a_move_may_be_seen_on_either_side_of_it() {
        let mut epochs = Epochs::new(HOME);
        epochs.begin(AWAY, seen(0, 0));
        epochs.end(HOME, 5);
        let slots = [(HOME, seen(5, 5)), (AWAY, seen(9, 4))];
        assert!(epochs.judge(sent(9, Entries::OneEach), slots).is_clean());
    }

    #[test]
    fn what_was_sent_after_a_move_and_seen_on_its_old_side_is_misdelivered() {
        let mut epochs = Epochs::new(HOME);
        epochs.begin(AWAY, seen(0, 0));
        epochs.end(HOME, 5);
        let slots = [(HOME, seen(6, 6)), (AWAY, seen(9, 3))];
        assert_eq!(epochs.judge(sent(9, Entries::OneEach), slots).misdelivered, 1);
    }

    #[test]
    fn a_slot_that_was_never_bound_may_show_nothing() {
        let verdict = Epochs::new(HOME).judge(sent(2, Entries::OneEach), [(HOME, seen(2, 1)), (AWAY, seen(1, 1))]);
        assert_eq!(verdict.misdelivered, 1);
    }

    #[test]
    fn what_waits_for_the_unmask_is_clean() {
        let mut epochs = Epochs::new(HOME);
        epochs.mask([(HOME, seen(4, 4)), (AWAY, seen(0, 0))]);
        epochs.unmask([(HOME, seen(4, 4)), (AWAY, seen(0, 0))]);
        let slots = [(HOME, seen(5, 5)), (AWAY, seen(0, 0))];
        assert!(epochs.judge(sent(5, Entries::OneEach), slots).is_clean());
    }

    #[test]
    fn what_is_seen_behind_a_mask_was_delivered_while_masked() {
        for entries in [Entries::OneEach, Entries::Coalescing, Entries::Level] {
            let mut epochs = Epochs::new(HOME);
            epochs.mask([(HOME, seen(4, 4))]);
            epochs.unmask([(HOME, seen(6, 6))]);
            let verdict = epochs.judge(sent(6, entries), [(HOME, seen(6, 6))]);
            assert_eq!(verdict, Verdict { received: 6, masked: 2, ..Verdict::default() }, "{entries:?}");
        }
    }

    #[test]
    fn an_entry_that_shows_nothing_new_counts_behind_a_mask_wherever_it_is() {
        let mut epochs = Epochs::new(HOME);
        epochs.mask([(HOME, seen(4, 3)), (AWAY, seen(0, 0))]);
        epochs.unmask([(HOME, seen(4, 4)), (AWAY, seen(4, 1))]);
        let slots = [(HOME, seen(4, 4)), (AWAY, seen(4, 1))];
        assert_eq!(epochs.judge(sent(9, Entries::Coalescing), slots).masked, 2);
    }

    #[test]
    fn each_mask_is_judged_by_itself() {
        let mut epochs = Epochs::new(HOME);
        for number in 1..=3 {
            epochs.mask([(HOME, seen(number, number))]);
            epochs.unmask([(HOME, seen(number, number))]);
        }
        assert!(epochs.judge(sent(3, Entries::OneEach), [(HOME, seen(3, 3))]).is_clean());
    }

    #[test]
    fn coming_back_does_not_hide_what_was_misdelivered_meanwhile() {
        let mut epochs = Epochs::new(HOME);
        epochs.begin(AWAY, seen(0, 0));
        epochs.end(HOME, 5);
        epochs.begin(HOME, seen(7, 7));
        epochs.end(AWAY, 8);
        let slots = [(HOME, seen(9, 8)), (AWAY, seen(6, 1))];
        assert_eq!(epochs.judge(sent(9, Entries::OneEach), slots).misdelivered, 1);
    }
}
