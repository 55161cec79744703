//! Leaving with grace: all connections are closed, spread evenly over a time, so that their clients do not
//! come to the other servers as one crowd. Those who still come are told that this one is going.

use std::time::Duration;

use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::Phase;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::event_loop::{Flow, Worker};

/// How often a drain makes a step.
const STEP: Duration = Duration::from_millis(50);

/// The longest that clients who were told are waited for, whatever `timeouts.close` says: whoever stops the
/// service wants it to end.
const LONGEST_FAREWELL: Duration = Duration::from_secs(5);

/// A drain under way.
#[derive(Debug)]
pub(crate) struct Drain {
    next_step: Duration,
    began: Duration,
    /// When the last connection has been told.
    told_by: Duration,
    /// When those who do not leave are left behind.
    ends: Duration,
    /// The row after the last one told.
    cursor: u32,
    /// How many were told.
    told: u32,
}

impl Drain {
    /// A drain that begins now and has told everybody within `duration`.
    pub(crate) fn new(now: Duration, duration: Duration, close_timeout: Duration) -> Self {
        let told_by = now + duration;
        let ends = told_by + close_timeout.min(LONGEST_FAREWELL);
        Self { next_step: now, began: now, told_by, ends, cursor: 0, told: 0 }
    }

    /// Everybody is told at once, and nobody waited for.
    pub(crate) fn abrupt(now: Duration) -> Self {
        Self { next_step: now, began: now, told_by: now, ends: now, cursor: 0, told: 0 }
    }

    /// When there is something to do next.
    pub(crate) fn next_step(&self) -> Duration {
        self.next_step
    }

    /// How many of `remaining` are to be told in the step at `now`, so that as much of all is told as of the
    /// time has passed.
    fn share(&self, now: Duration, remaining: u32) -> u32 {
        let (passed, duration) = (now.saturating_sub(self.began), self.told_by.saturating_sub(self.began));
        if passed >= duration {
            return remaining;
        }
        let all = u128::from(self.told) + u128::from(remaining);
        let due = all * passed.as_millis() / duration.as_millis().max(1);
        u32::try_from(due).unwrap_or(u32::MAX).saturating_sub(self.told).min(remaining)
    }
}

impl Worker {
    /// Makes the step that is due, if any. Says when nobody is left.
    pub(crate) fn continue_drain(&mut self) -> Flow {
        let Some(drain) = &mut self.drain else { return Flow::Continue };
        if self.now < drain.next_step {
            return Flow::Continue;
        }
        drain.next_step = self.now + STEP;
        let rows = self.connections.occupied_rows(drain.cursor);
        let is_open = |row: &u32| {
            self.connections
                .table
                .records()
                .get(*row as usize)
                .is_some_and(|record| record.phase() == Phase::Open)
        };
        let remaining = u32::try_from(rows.clone().filter(is_open).count()).unwrap_or(u32::MAX);
        let share = drain.share(self.now, remaining);
        let told: Vec<u32> = rows.filter(is_open).take(share as usize).collect();
        let nobody_left =
            remaining == 0 && self.connections.admitted() == 0 && self.connections.pending() == 0;
        let is_over = nobody_left || self.now >= drain.ends;
        if let Some(last) = told.last() {
            drain.cursor = last + 1;
        }
        drain.told += share;
        for row in told {
            if let Some(key) = self.connections.key_at(row) {
                self.connections.set_busy(key);
                self.connections.begin_close(
                    key,
                    CloseCode::Away,
                    "Server is shutting down",
                    CloseReason::Drain,
                );
                self.connections.settle(key);
            }
        }
        if is_over { Flow::Leave } else { Flow::Continue }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_is_told_in_time_and_evenly() {
        for all in [1, 20, 601, 1000, 123_457] {
            let mut drain = Drain::new(Duration::ZERO, Duration::from_secs(5), Duration::from_secs(1));
            let (mut now, mut remaining, mut largest) = (Duration::ZERO, all, 0);
            while now <= drain.told_by {
                let share = drain.share(now, remaining);
                if now < drain.told_by / 2 {
                    assert!(
                        drain.told + share <= all / 2 + 1,
                        "half of {all} were told before half of the time"
                    );
                }
                largest = largest.max(share);
                drain.told += share;
                remaining -= share;
                now += STEP;
            }
            assert_eq!(remaining, 0, "of {all}");
            assert!(largest <= all.div_ceil(100) + 1, "one step told {largest} of {all} in 100 steps");
        }
    }

    #[test]
    fn no_time_means_at_once() {
        let drain = Drain::new(Duration::from_secs(7), Duration::ZERO, Duration::ZERO);
        assert_eq!(drain.share(Duration::from_secs(7), 12345), 12345);
    }
}
