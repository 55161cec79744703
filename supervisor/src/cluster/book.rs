//! The book of one slot: what it has counted over all its workers and keepers. Pure.
//!
//! Two hands count. The workers count in their table, and say now and then what it holds. The supervisor counts
//! admissions and ends as the ledger sees them, so that admitted less ended is at every moment what is open.
//! When a worker has taken over, and when a table is lost, the table is right: the supervisor's figures are
//! made equal to it there, and nowhere else.

use holdfast_shared::counters::Counters;
use holdfast_shared::reason::CloseReason;

/// Ends by [`CloseReason`].
pub(super) type Ends = [u64; 32];

/// What one slot has counted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Book {
    /// Under earlier keepers, whose tables are gone, and what no table could count.
    base: Counters,
    /// In the present table, when that was last reported.
    table: Counters,
    /// Connections let in, as the ledger saw it.
    accepted: u64,
    /// Connections ended, as the ledger saw it.
    closed: Ends,
}

impl Book {
    /// As it was written down; see the accessors of the same names.
    pub(super) fn new(base: Counters, table: Counters, accepted: u64, closed: Ends) -> Self {
        Self { base, table, accepted, closed }
    }

    pub(super) fn base(&self) -> Counters {
        self.base
    }

    pub(super) fn table(&self) -> Counters {
        self.table
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    pub(super) fn closed(&self) -> Ends {
        self.closed
    }

    /// Those let in that have not ended: open here, or moved to other slots. Those that came from other slots are
    /// missing, so it may be below zero.
    pub(super) fn open(&self) -> i64 {
        let ended = self.closed.iter().sum::<u64>();
        i64::try_from(self.accepted).unwrap_or(i64::MAX).saturating_sub_unsigned(ended)
    }

    /// All that was counted by workers.
    pub(super) fn counters(&self) -> Counters {
        let mut counters = self.base;
        counters.add(&self.table);
        counters
    }

    /// So many were let in.
    pub(super) fn admit(&mut self, count: u64) {
        self.accepted += count;
    }

    /// One has ended.
    pub(super) fn close(&mut self, reason: CloseReason) {
        self.closed[reason.index()] += 1;
    }

    /// A worker says what its table holds.
    pub(super) fn report(&mut self, table: &Counters) {
        self.table = *table;
    }

    /// A worker has taken over, and says what its table holds.
    pub(super) fn taken_over(&mut self, table: &Counters) {
        self.table = *table;
        self.reconcile();
    }

    /// The table is gone. It held these counters, and connections that `ended` with it; `lost` of them were
    /// established.
    pub(super) fn table_lost(&mut self, held: &Counters, ended: &Ends, lost: u64) {
        self.base.add(held);
        self.table = Counters::default();
        self.base.lost += lost;
        for (count, ended) in self.base.closed.iter_mut().zip(ended) {
            *count += ended;
        }
        self.reconcile();
    }

    /// The table is gone, and nobody could read it: the supervisor's own figures stand, and so many connections
    /// ended with it.
    pub(super) fn table_lost_unread(&mut self, lost: u64) {
        self.base = Counters { accepted: self.accepted, closed: self.closed, ..self.counters() };
        self.table = Counters::default();
        self.vanished(lost);
    }

    /// So many have ended where no worker could count it.
    pub(super) fn vanished(&mut self, count: u64) {
        self.base.closed[CloseReason::WorkerLost.index()] += count;
        self.base.lost += count;
        self.closed[CloseReason::WorkerLost.index()] += count;
    }

    /// Makes up for what the last worker did not live to tell of: ends with their reasons, and clients that had been
    /// let in and never heard of it.
    fn reconcile(&mut self) {
        let counted = self.counters();
        self.closed = counted.closed;
        // More than were let in only when what an earlier supervisor wrote down is lost.
        self.accepted = self.accepted.max(counted.accepted);
        let unheard = self.accepted.saturating_sub(counted.accepted);
        self.base.accepted += unheard;
        self.base.closed[CloseReason::WorkerLost.index()] += unheard;
        self.closed[CloseReason::WorkerLost.index()] += unheard;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        /// A client is let in; the worker hears of it, or does not live to.
        Admit {
            heard: bool,
        },
        /// A client leaves; the supervisor hears of it, or the worker does not live to say so.
        Leave {
            heard: bool,
        },
        Report,
        /// The worker is replaced.
        Worker,
        /// Keeper and worker die, and the table is read, or is not there any more.
        Slot {
            readable: bool,
        },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => prop::bool::weighted(0.9).prop_map(|heard| Step::Admit { heard }),
            8 => prop::bool::weighted(0.9).prop_map(|heard| Step::Leave { heard }),
            2 => Just(Step::Report),
            2 => Just(Step::Worker),
            1 => any::<bool>().prop_map(|readable| Step::Slot { readable }),
        ];
        prop::collection::vec(step, 0..200)
    }

    fn ends(reason: CloseReason, count: u64) -> Ends {
        let mut ends = Ends::default();
        ends[reason.index()] = count;
        ends
    }

    proptest! {
        #[test]
        fn nothing_goes_backwards_and_accepted_is_open_and_closed(steps in steps()) {
            let (mut book, mut table, mut open) = (Book::default(), Counters::default(), 0_u64);
            for step in steps {
                let before = book;
                match step {
                    Step::Admit { heard } => {
                        book.admit(1);
                        if heard {
                            table.accepted += 1;
                            open += 1;
                        }
                    }
                    Step::Leave { heard } if open > 0 => {
                        open -= 1;
                        table.closed[CloseReason::Client.index()] += 1;
                        if heard {
                            book.close(CloseReason::Client);
                        }
                    }
                    Step::Leave { .. } => {}
                    Step::Report => book.report(&table),
                    Step::Worker => {
                        book.taken_over(&table);
                        prop_assert_eq!(book.open(), i64::try_from(open).unwrap());
                    }
                    Step::Slot { readable: true } => {
                        book.table_lost(&table, &ends(CloseReason::WorkerLost, open), open);
                        (table, open) = (Counters::default(), 0);
                        prop_assert_eq!(book.open(), 0);
                    }
                    Step::Slot { readable: false } => {
                        let known = u64::try_from(book.open()).unwrap();
                        book.table_lost_unread(known);
                        prop_assert_eq!((book.open(), book.counters().accepted), (0, book.accepted()));
                        (table, open) = (Counters::default(), 0);
                    }
                }
                prop_assert!(book.accepted() >= before.accepted());
                let closed = book.closed().iter().zip(before.closed()).all(|(now, before)| *now >= before);
                prop_assert!(closed, "{step:?}: {before:?} {book:?}");
                prop_assert!(book.counters().accepted >= before.counters().accepted);
            }
        }
    }
}
