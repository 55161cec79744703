//! Memory that a crowd or a burst needed and nobody needs any more goes back to the kernel: pages of the
//! table, room for heap state. A little each second, never while serving.

use std::ops::Range;

use super::Connections;

/// Pages of the table given back in one step. The kernel takes about a microsecond for each.
const PAGES_PER_STEP: usize = 1024;

impl Connections {
    /// The rows in which there may be a connection, from `first` on. Pages without one are passed over:
    /// looking at them would bring them back.
    pub(crate) fn occupied_rows(&self, first: u32) -> impl Iterator<Item = u32> + Clone {
        self.pages.occupied_rows(first)
    }

    pub(super) fn burst_is_over(&mut self) -> bool {
        let is_over = self.under_way.burst_is_over(self.count_under_way());
        if is_over {
            self.heap_states.shrink_to_fit();
            self.released.shrink_to_fit();
            self.ended.shrink_to_fit();
        }
        is_over
    }

    pub(super) fn give_back_pages(&mut self) {
        self.report_budget();
        for run in self.pages.take_unneeded(PAGES_PER_STEP) {
            // They cost what they cost until they are used again.
            if let Err(error) = self.table.discard(run.clone())
                && !std::mem::replace(&mut self.pages_refused, true)
            {
                let Range { start, end } = run;
                log::warn!("cannot give back the memory of rows {start} to {end}: {error}; not said again");
            }
        }
        if let Err(error) = self.give_back_sessions()
            && !std::mem::replace(&mut self.pages_refused, true)
        {
            log::warn!("cannot give back the memory of sessions: {error}; not said again");
        }
        // Only now: the next worker takes pages below for touched and gives back those it finds empty.
        let header = self.table.header_mut();
        header.rows_used = header.rows_used.min(self.pages.end());
    }
}
