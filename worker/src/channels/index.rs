//! Which connections are subscribed to which channel, by row. It is on the worker's heap and found again by looking at the
//! records, so it may be lost at any moment; and it may name rows that are subscribed no more: whoever goes through a
//! channel looks at each record, and lets go of those.

use std::collections::HashMap;

/// The subscribers of all channels.
#[derive(Debug, Default)]
pub(crate) struct Index(HashMap<u32, Subscribers>);

/// Those of one channel.
#[derive(Debug, Default)]
pub(crate) struct Subscribers {
    /// In no order. What was added last is last.
    rows: Vec<u32>,
    /// How many of them are subscribed.
    live: u32,
}

impl Index {
    /// The connection at `row` is subscribed from now on.
    pub(crate) fn add(&mut self, channel: u32, row: u32) {
        let subscribers = self.0.entry(channel).or_default();
        subscribers.rows.push(row);
        subscribers.live += 1;
        if subscribers.rows.len() > 64 + 2 * subscribers.live as usize {
            subscribers.rows.sort_unstable();
            subscribers.rows.dedup();
        }
    }

    /// One connection is subscribed no more.
    pub(crate) fn remove(&mut self, channel: u32) {
        let Some(subscribers) = self.0.get_mut(&channel) else { return };
        subscribers.live = subscribers.live.saturating_sub(1);
        if subscribers.live == 0 {
            self.0.remove(&channel);
        }
    }

    /// Is anybody subscribed?
    #[inline]
    pub(crate) fn has(&self, channel: u32) -> bool {
        self.0.contains_key(&channel)
    }

    /// The rows to go through, from the last to the first: what is added meanwhile comes behind them. They are to be put back.
    pub(crate) fn take_rows(&mut self, channel: u32) -> Option<Vec<u32>> {
        Some(std::mem::take(&mut self.0.get_mut(&channel)?.rows))
    }

    /// Puts back what was taken, less those who are subscribed no more.
    pub(crate) fn put_rows(&mut self, channel: u32, mut rows: Vec<u32>) {
        if let Some(subscribers) = self.0.get_mut(&channel) {
            rows.append(&mut subscribers.rows);
            subscribers.rows = rows;
        }
    }

    /// Gives memory back that a crowd needed.
    pub(crate) fn shrink(&mut self) {
        for subscribers in self.0.values_mut().filter(|all| all.rows.capacity() > 2 * all.rows.len() + 8) {
            subscribers.rows.shrink_to_fit();
        }
        self.0.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_come_and_go_do_not_pile_up() {
        let mut index = Index::default();
        index.add(7, 1);
        for round in 0..10_000 {
            index.add(7, 2 + round % 3);
            index.remove(7);
        }
        let rows = index.take_rows(7).unwrap();
        assert!(rows.len() < 100);
        index.add(7, 9);
        index.put_rows(7, rows);
        assert_eq!(index.0[&7].rows.last(), Some(&9));
        index.remove(7);
        assert_eq!(index.0[&7].live, 1);
        index.remove(7);
        assert!(!index.has(7) && index.take_rows(7).is_none());
        // One that was not there changes nothing.
        index.remove(7);
    }
}
