//! Where the clients of a group are, counted as they move.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not begun.
    Waiting,
    /// TCP's handshake is under way.
    Connecting,
    /// Connected, and without an answer from the server.
    Upgrading,
    /// In: the server said 101.
    Open,
    /// It has sent its close frame and waits for the server's.
    Leaving,
    /// Over.
    Ended(End),
}

/// How a client ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// No connection, or one that ended before a complete answer.
    Failed,
    /// A complete HTTP response other than 101.
    Refused(u16),
    /// It wanted to go, and went.
    Left,
    /// The server sent a close frame with this code (1005: without one).
    Closed(u16),
    /// The server ended an open connection without a close frame.
    Lost,
}

/// A group in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// [`End::Failed`].
    pub failed: usize,
    /// [`End::Refused`], by status.
    pub refused: BTreeMap<u16, usize>,
    /// [`End::Left`].
    pub left: usize,
    /// [`End::Closed`], by code.
    pub closed: BTreeMap<u16, usize>,
    /// [`End::Lost`].
    pub lost: usize,
    /// Messages that came back, every byte as sent.
    pub echoes: u64,
    /// Longest wait for an echo that has ended.
    pub longest_stall: Duration,
}

impl Stats {
    /// Clients refused with `status`.
    #[must_use]
    pub fn refused(&self, status: u16) -> usize {
        self.refused.get(&status).copied().unwrap_or_default()
    }

    /// Clients closed with `code`.
    #[must_use]
    pub fn closed(&self, code: u16) -> usize {
        self.closed.get(&code).copied().unwrap_or_default()
    }

    /// Clients the server has not answered yet.
    #[must_use]
    pub fn undecided(&self) -> usize {
        self.waiting + self.connecting + self.upgrading
    }

    /// Clients that are over, however it came.
    #[must_use]
    pub fn ended(&self) -> usize {
        let maps = self.refused.values().sum::<usize>() + self.closed.values().sum::<usize>();
        self.failed + self.left + self.lost + maps
    }

    /// The numbers for another process.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "undecided": self.undecided(),
            "connected": self.upgrading + self.open + self.leaving,
            "open": self.open,
            "failed": self.failed,
            "refused": self.refused,
            "closed": self.closed,
            "lost": self.lost,
            "ended": self.ended(),
        })
    }

    /// Counts a move.
    pub(super) fn moved(&mut self, from: Phase, to: Phase) {
        *self.at(from) -= 1;
        *self.at(to) += 1;
    }

    fn at(&mut self, phase: Phase) -> &mut usize {
        match phase {
            Phase::Waiting => &mut self.waiting,
            Phase::Connecting => &mut self.connecting,
            Phase::Upgrading => &mut self.upgrading,
            Phase::Open => &mut self.open,
            Phase::Leaving => &mut self.leaving,
            Phase::Ended(End::Failed) => &mut self.failed,
            Phase::Ended(End::Refused(status)) => self.refused.entry(status).or_default(),
            Phase::Ended(End::Left) => &mut self.left,
            Phase::Ended(End::Closed(code)) => self.closed.entry(code).or_default(),
            Phase::Ended(End::Lost) => &mut self.lost,
        }
    }
}
