//! Connections on their way between two slots, while both serve. One worker gives, the other takes, over a pair
//! of sockets that the supervisor made for them, a batch at a time.
//!
//! ```text
//! taker   Room  -> giver                 there are descriptors for a batch
//! giver   Giving -> supervisor, Counted -> giver
//!                                        whatever happens next, the cap counts them
//! giver   marks the records GIVEN, stops watching, sends Batch
//! taker   writes the records, marked TAKEN, sends Taken
//! taker   clears TAKEN, counts, watches; Took -> supervisor
//! giver   frees its records, closes its copies
//! ```
//!
//! A connection is served by one of the two at any moment. A batch that was sent is the giver's again only when
//! the pair is broken before it has heard `Taken`, and the taker serves nobody before it has said so. Whoever
//! takes over from a worker that died in between lets go of what is marked: the other side has it, or, if the
//! death fell into the moment between the mark and the message, nobody.

mod give;
mod take;

use holdfast_shared::ipc::moving::MAX_CONNECTIONS;

use crate::connection::Key;
use crate::life::event_loop::Worker;
use give::Giving;
use take::Taking;

/// Descriptors that a batch needs: its connections, the memories of their states and of their sessions, and the
/// pair.
const DESCRIPTORS: u32 = MAX_CONNECTIONS + 3;

/// What a worker gives and takes now: one of each at most.
#[derive(Debug, Default)]
pub(crate) struct Moving {
    giving: Option<Giving>,
    taking: Option<Taking>,
}

impl Moving {
    /// Is anything under way?
    pub(crate) fn is_active(&self) -> bool {
        self.giving.is_some() || self.taking.is_some()
    }

    /// Was the supervisor told of connections that are about to go?
    pub(crate) fn is_announced(&self) -> bool {
        self.giving.as_ref().is_some_and(Giving::is_announced)
    }

    /// Does the other side have connections of which it is not settled whose they are?
    pub(crate) fn is_unsettled(&self) -> bool {
        self.giving.as_ref().is_some_and(Giving::is_unsettled)
            || self.taking.as_ref().is_some_and(Taking::is_unsettled)
    }

    /// Descriptors that are kept free for what is to come.
    pub(crate) fn reserved(&self) -> u32 {
        if self.taking.is_some() { DESCRIPTORS } else { 0 }
    }
}

impl Worker {
    /// Does what can be done now; to be called in every turn.
    pub(crate) fn continue_moving(&mut self) {
        self.continue_taking();
        self.continue_giving();
    }

    /// Why connections may neither come nor go now.
    fn cannot_move(&self) -> Option<&'static str> {
        if self.link.is_none() {
            Some("there is no supervisor")
        } else if self.server.drain.is_some() {
            Some("the slot is draining")
        } else if self.hand_over.is_some() {
            Some("the worker is being replaced")
        } else {
            None
        }
    }

    /// Goes on with a connection, of this slot from now on or again.
    fn go_on_here(&mut self, key: Key) {
        if let Err(error) = self.server.register(key) {
            log::error!("cannot watch the connection on descriptor {}: {error}", key.row);
            return self.server.clients.connections.end(key);
        }
        self.server.catch_up_with_drain(key);
    }
}
