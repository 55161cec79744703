//! Asking the supervisor to let clients in: tickets out, verdicts back. Decides nothing: the ledger does.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use holdfast_shared::id::Ticket;
use holdfast_shared::ipc::message::{MAX_BATCH, Verdict};

use crate::connection::Key;

/// Tickets that may be with the supervisor at a time.
const MAX_UNANSWERED: usize = 16 * MAX_BATCH;

/// One client that waits for its verdict.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    key: Key,
    address: IpAddr,
    asked: Duration,
    /// The supervisor was told that it has left.
    withdrawn: bool,
}

/// What a verdict means for this worker.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The client waits for it.
    Deliver {
        /// The client.
        key: Key,
        /// How long it waited.
        waited: Duration,
    },
    /// It was let in and has left meanwhile: its place is to be given back.
    GiveBack(IpAddr),
    /// Nothing to do.
    Void,
}

/// All tickets without a verdict.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    waiting: HashMap<Ticket, Waiting>,
    unsent: Vec<(Ticket, IpAddr)>,
    last_ticket: u64,
}

impl Admission {
    /// Asks for `key`, with the others of this turn.
    pub(crate) fn ask(&mut self, key: Key, address: IpAddr, now: Duration) {
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.waiting.insert(ticket, Waiting { key, address, asked: now, withdrawn: false });
        self.unsent.push((ticket, address));
    }

    /// Tickets to be sent in one message, at most `MAX_BATCH`; to be called until empty, while the link takes
    /// messages.
    pub(crate) fn take_batch(&mut self) -> Vec<(Ticket, IpAddr)> {
        self.unsent.drain(..self.unsent.len().min(MAX_BATCH)).collect()
    }

    /// Is there a ticket to send? Not while the supervisor has many to answer: it may be gone for a while,
    /// and those whose clients leave meanwhile could not be forgotten any more.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty() && self.waiting.len() - self.unsent.len() < MAX_UNANSWERED
    }

    /// Is the supervisor to answer any?
    pub(crate) fn is_unanswered(&self) -> bool {
        self.waiting.len() > self.unsent.len()
    }

    /// Forgets the tickets that have not been sent and whose clients have left, once there are many.
    pub(crate) fn trim(&mut self, is_waiting: impl Fn(Key) -> bool) {
        if self.unsent.len() > MAX_UNANSWERED {
            self.drop_unsent(is_waiting);
        }
    }

    fn drop_unsent(&mut self, is_waiting: impl Fn(Key) -> bool) {
        let waiting = &mut self.waiting;
        self.unsent.retain(|(ticket, _)| {
            let stays = waiting.get(ticket).is_some_and(|waiting| is_waiting(waiting.key));
            if !stays {
                waiting.remove(ticket);
            }
            stays
        });
    }

    /// The tickets of clients that have left since the last call, and that are with the supervisor: it may keep places for
    /// them. They stay known until their verdicts come.
    pub(crate) fn take_withdrawn(&mut self, is_waiting: impl Fn(Key) -> bool) -> Vec<Ticket> {
        self.drop_unsent(&is_waiting);
        let waiting = self.waiting.iter_mut();
        let left = waiting.filter(|(_, waiting)| !waiting.withdrawn && !is_waiting(waiting.key));
        left.map(|(ticket, waiting)| {
            waiting.withdrawn = true;
            *ticket
        })
        .collect()
    }

    /// Gives up the room that many tickets took and few need.
    pub(crate) fn shrink(&mut self) {
        self.waiting.shrink_to_fit();
        self.unsent.shrink_to_fit();
    }

    /// A verdict came. `is_waiting` tells whether the connection still waits for one.
    pub(crate) fn verdict(
        &mut self,
        ticket: Ticket,
        verdict: Verdict,
        now: Duration,
        is_waiting: impl Fn(Key) -> bool,
    ) -> Outcome {
        let Some(waiting) = self.waiting.remove(&ticket) else { return Outcome::Void };
        let waited = now.saturating_sub(waiting.asked);
        match verdict {
            _ if is_waiting(waiting.key) => Outcome::Deliver { key: waiting.key, waited },
            Verdict::Granted => Outcome::GiveBack(waiting.address),
            Verdict::Refused(_) => Outcome::Void,
        }
    }
}
