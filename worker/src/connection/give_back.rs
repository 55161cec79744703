//! Memory that a crowd or a burst needed and nobody needs any more goes back to the kernel: pages of the
//! table, room for heap state, what the allocator keeps. A little each second, never while serving.

use std::ops::Range;

use holdfast_shared::clock;
use holdfast_shared::sys::memory;

use super::Connections;
use crate::life::event_loop::{SCRATCH_SIZE, Worker};

/// Pages of the table given back in one step. The kernel takes about a microsecond for each.
const PAGES_PER_STEP: usize = 1024;

impl Worker {
    /// One step; to be called about once a second.
    pub(crate) fn give_back_memory(&mut self) {
        self.clear_handshakes();
        self.connections.give_back_pages();
        if self.connections.burst_is_over() {
            self.admission.shrink();
            self.unread.shrink_to_fit();
            self.out.shrink_to(SCRATCH_SIZE);
            // What was freed long before, messages and queues, is most of it.
            let began = clock::now();
            memory::give_back_freed();
            log::debug!(
                "a burst is over; gave back what it took in {:?}",
                clock::now().saturating_sub(began)
            );
        }
    }
}

impl Connections {
    /// The rows in which there may be a connection, from `first` on. Pages without one are passed over:
    /// looking at them would bring them back.
    pub(crate) fn occupied_rows(&self, first: u32) -> impl Iterator<Item = u32> + Clone {
        self.pages.occupied_rows(first)
    }

    fn burst_is_over(&mut self) -> bool {
        let is_over = self.under_way.burst_is_over(self.count_under_way());
        if is_over {
            self.heap_states.shrink_to_fit();
            self.released.shrink_to_fit();
        }
        is_over
    }

    fn give_back_pages(&mut self) {
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
