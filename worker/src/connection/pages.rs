//! Which pages of the connection table hold connections, and which only hold memory. The table itself cannot
//! be asked: looking at a record brings its page back. Touches no table; says what to give back.
//!
//! A page that has just become empty is kept for a while, for the next client gets the lowest descriptor
//! that is free: one that has just been closed.

use std::ops::Range;

use holdfast_shared::table::ROWS_PER_PAGE;

/// One page of the table.
#[derive(Debug, Clone, Copy, Default)]
struct Page {
    /// Its connections.
    live: u16,
    memory: Memory,
}

/// Whether a page costs memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Memory {
    /// It may: a record of it was touched, perhaps by an earlier worker.
    #[default]
    Held,
    /// It may, and it was empty when last looked at and has been ever since.
    Unneeded,
    /// It was given back.
    GivenBack,
}

/// All pages in which there was a connection, or may have been.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pages: Vec<Page>,
}

impl Pages {
    /// Those of a table whose rows below `rows_used` an earlier worker may have touched. None has a
    /// connection as far as is known yet.
    pub(super) fn new(rows_used: u32) -> Self {
        Self { pages: vec![Page::default(); page_of(rows_used.next_multiple_of(ROWS_PER_PAGE))] }
    }

    /// There is a connection at `row` now.
    pub(super) fn add(&mut self, row: u32) {
        let page = page_of(row);
        if page >= self.pages.len() {
            // Pages in between were never touched; to give them back once is cheap.
            self.pages.resize(page + 1, Page::default());
        }
        self.pages[page].live += 1;
        self.pages[page].memory = Memory::Held;
    }

    /// The connection at `row` has ended.
    pub(super) fn remove(&mut self, row: u32) {
        if let Some(page) = self.pages.get_mut(page_of(row)) {
            page.live = page.live.saturating_sub(1);
        }
    }

    /// No connection is at this row or beyond, and no memory that has yet to be given back.
    pub(super) fn end(&self) -> u32 {
        let last = self.pages.iter().rposition(|page| page.live > 0 || page.memory != Memory::GivenBack);
        last.map_or(0, |last| row_of(last + 1))
    }

    /// The rows of pages that have connections, from `first` on.
    pub(super) fn occupied_rows(&self, first: u32) -> impl Iterator<Item = u32> + Clone {
        let occupied = (0..self.pages.len()).skip(page_of(first)).filter(|&page| self.pages[page].live > 0);
        occupied.flat_map(|page| row_of(page)..row_of(page + 1)).filter(move |&row| row >= first)
    }

    /// Runs of rows that have had no connection since the last call, in at most `most` pages: they are to be
    /// given back now, and are taken for it.
    pub(super) fn take_unneeded(&mut self, most: usize) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        let mut taken = 0;
        for (index, page) in self.pages.iter_mut().enumerate().filter(|(_, page)| page.live == 0) {
            match page.memory {
                Memory::Held => page.memory = Memory::Unneeded,
                Memory::Unneeded if taken < most => {
                    page.memory = Memory::GivenBack;
                    taken += 1;
                    match runs.last_mut() {
                        Some(run) if run.end == row_of(index) => run.end = row_of(index + 1),
                        _ => runs.push(row_of(index)..row_of(index + 1)),
                    }
                }
                Memory::Unneeded | Memory::GivenBack => {}
            }
        }
        runs
    }
}

fn page_of(row: u32) -> usize {
    (row / ROWS_PER_PAGE) as usize
}

fn row_of(page: usize) -> u32 {
    u32::try_from(page).unwrap_or(u32::MAX).saturating_mul(ROWS_PER_PAGE)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn rows(first_page: usize, end_page: usize) -> Range<u32> {
        row_of(first_page)..row_of(end_page)
    }

    #[test]
    fn a_page_is_given_back_once_it_was_empty_for_a_whole_turn() {
        let mut pages = Pages::default();
        pages.add(0);
        pages.add(ROWS_PER_PAGE);
        pages.remove(ROWS_PER_PAGE);
        assert_eq!(pages.take_unneeded(9), []);
        pages.add(ROWS_PER_PAGE + 1);
        pages.remove(ROWS_PER_PAGE + 1);
        assert_eq!(pages.take_unneeded(9), [], "it was used in between");
        assert_eq!(pages.take_unneeded(9), vec![rows(1, 2)]);
        assert_eq!(pages.take_unneeded(9), [], "it was given back already");
        assert_eq!(pages.end(), ROWS_PER_PAGE);
    }

    #[test]
    fn what_an_earlier_worker_left_is_given_back_in_steps() {
        let mut pages = Pages::new(5 * ROWS_PER_PAGE - 3);
        pages.add(2 * ROWS_PER_PAGE);
        assert_eq!(pages.take_unneeded(2), []);
        assert_eq!(pages.take_unneeded(2), vec![rows(0, 2)]);
        assert_eq!(pages.take_unneeded(2), vec![rows(3, 5)]);
        assert_eq!(pages.take_unneeded(2), []);
    }

    proptest! {
        #[test]
        fn no_row_with_a_connection_is_passed_over_or_given_back(
            steps in prop::collection::vec(prop::option::weighted(0.9, 0..300_u32), 0..400),
            first in 0..300_u32,
        ) {
            let (mut pages, mut live) = (Pages::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Some(row) if live.insert(row) => pages.add(row),
                    Some(row) => {
                        live.remove(&row);
                        pages.remove(row);
                    }
                    None => {
                        for run in pages.take_unneeded(3) {
                            prop_assert_eq!(live.range(run).next(), None);
                        }
                    }
                }
            }
            let occupied: BTreeSet<u32> = pages.occupied_rows(first).collect();
            prop_assert!(live.range(first..).all(|row| occupied.contains(row)));
            prop_assert!(occupied.range(..first).next().is_none());
            prop_assert!(live.last().is_none_or(|&last| last < pages.end()));
        }
    }
}
