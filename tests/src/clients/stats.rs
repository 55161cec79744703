//! Where the clients of a group are and what they have seen, counted as they move.

use std::collections::BTreeMap;

use super::connection::{End, Phase};
use super::conversation::Heard;
use super::latencies::Latencies;

/// A group in numbers.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// [`Phase::Waiting`].
    pub waiting: usize,
    /// [`Phase::Connecting`].
    pub connecting: usize,
    /// [`Phase::Upgrading`].
    pub upgrading: usize,
    /// [`Phase::Open`].
    pub open: usize,
    /// [`Phase::Leaving`].
    pub leaving: usize,
    /// [`Phase::Ended`], by how.
    pub ends: BTreeMap<End, usize>,
    /// Messages that came back, every byte as sent; those of a flood: that were taken.
    pub echoes: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Handshakes that were answered with 101, since the beginning.
    pub let_in: u64,
    /// Pings answered.
    pub pings: u64,
    /// From when a message was due until it was back.
    pub latencies: Latencies,
    /// From connecting to the 101.
    pub handshakes: Latencies,
    /// Nanoseconds at the current readiness.
    pub(super) now: u64,
    /// Payload bytes of a message.
    pub(super) message_size: u64,
}

impl Stats {
    fn ended_as(&self, as_wanted: impl Fn(End) -> bool) -> usize {
        self.ends.iter().filter(|(end, _)| as_wanted(**end)).map(|(_, count)| count).sum()
    }

    /// [`End::Failed`].
    #[must_use]
    pub fn failed(&self) -> usize {
        self.ended_as(|end| matches!(end, End::Failed(_)))
    }

    /// [`End::Lost`].
    #[must_use]
    pub fn lost(&self) -> usize {
        self.ended_as(|end| matches!(end, End::Lost(_)))
    }

    /// [`End::Left`].
    #[must_use]
    pub fn left(&self) -> usize {
        self.ended_as(|end| end == End::Left)
    }

    /// Clients refused with `status`.
    #[must_use]
    pub fn refused(&self, status: u16) -> usize {
        self.ended_as(|end| end == End::Refused(status))
    }

    /// Clients closed with `code`.
    #[must_use]
    pub fn closed(&self, code: u16) -> usize {
        self.ended_as(|end| end == End::Closed(code))
    }

    /// Clients the server has not answered yet.
    #[must_use]
    pub fn undecided(&self) -> usize {
        self.waiting + self.connecting + self.upgrading
    }

    /// Clients that are over, however it came.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.ended_as(|_| true)
    }

    /// Starts measuring: forgets messages and latencies, keeps what happened to connections.
    pub fn start_measuring(&mut self) {
        (self.echoes, self.bytes) = (0, 0);
        (self.latencies, self.handshakes) = (Latencies::default(), Latencies::default());
    }

    /// Counts a move.
    pub(super) fn moved(&mut self, from: Phase, to: Phase) {
        *self.at(from) -= 1;
        *self.at(to) += 1;
    }

    /// A client that began to connect at `began` was let in.
    pub(super) fn let_in(&mut self, began: u64) {
        self.let_in += 1;
        self.handshakes.record(self.now.saturating_sub(began), 1);
    }

    /// Messages of a flood were taken.
    pub(super) fn took(&mut self, messages: u64) {
        self.echoes += messages;
        self.bytes += messages * self.message_size;
    }

    fn at(&mut self, phase: Phase) -> &mut usize {
        match phase {
            Phase::Waiting => &mut self.waiting,
            Phase::Connecting => &mut self.connecting,
            Phase::Upgrading => &mut self.upgrading,
            Phase::Open => &mut self.open,
            Phase::Leaving => &mut self.leaving,
            Phase::Ended(end) => self.ends.entry(end).or_default(),
        }
    }
}

impl Heard for Stats {
    fn echoes(&mut self, due: u64, count: u64) {
        self.took(count);
        self.latencies.record(self.now.saturating_sub(due), count);
    }

    fn ping(&mut self) {
        self.pings += 1;
    }
}
