//! Leaving with grace: clients are told one by one, the idlest first, each at a moment of its own within the
//! time there is, so that they do not come to the other servers as one crowd. Those who still come are told
//! that this one is going. When it is over the supervisor says, for it alone knows of all workers: until
//! then this one stays and answers.

mod pace;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::{Phase, Record};

use super::server::Server;
use crate::connection::Key;
use pace::Pace;

/// Of those who have spoken since they were put in order, at most so many are put in order again before one is
/// told: among clients who all speak the order means little, and looking for the idlest must not cost more
/// than telling them.
const SECOND_LOOKS: u32 = 16;

/// A drain under way.
#[derive(Debug)]
pub(crate) enum Drain {
    /// Nobody is let in, and nobody told to go.
    Held,
    /// Clients are told, one by one.
    Telling {
        /// When the next ones are due.
        pace: Pace,
        /// Who is still to be told, by when they were last active.
        idlest: BinaryHeap<Reverse<Candidate>>,
    },
    /// Everybody is told in this turn, and nobody waited for.
    Leaving,
}

/// An open connection, as it was when it was last looked at. The longest idle is the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate {
    active_ms: u64,
    row: u32,
    serial: u32,
}

impl Drain {
    /// When there is something to do next, if not before the supervisor says so.
    pub(crate) fn next_step(&self) -> Option<Duration> {
        match self {
            Self::Held => None,
            Self::Telling { pace, idlest } => (!idlest.is_empty()).then(|| pace.next_moment()),
            Self::Leaving => Some(Duration::ZERO),
        }
    }
}

impl Server {
    /// Tells all who are open within `duration` from now. Called again, it gives those who are left another
    /// time.
    pub(crate) fn begin_drain(&mut self, duration: Duration) {
        let connections = &self.clients.connections;
        let open = |row: u32| candidate(row, connections.table.records().get(row as usize)?);
        let idlest: BinaryHeap<_> = connections.occupied_rows(0).filter_map(open).map(Reverse).collect();
        log::info!("draining {} connections over {duration:?}", idlest.len());
        let count = u32::try_from(idlest.len()).unwrap_or(u32::MAX);
        self.drain =
            Some(Drain::Telling { pace: Pace::new(self.now, duration, count, fastrand::f64()), idlest });
    }

    /// Lets nobody in and tells nobody until the supervisor says how long there is.
    pub(crate) fn hold_drain(&mut self) {
        self.drain = Some(Drain::Held);
    }

    /// Tells everybody now, and leaves.
    pub(crate) fn leave(&mut self) {
        self.drain = Some(Drain::Leaving);
    }

    /// Tells those who are due. True when everybody has been told, and the worker is to leave.
    pub(crate) fn continue_drain(&mut self) -> bool {
        let due = match &mut self.drain {
            None | Some(Drain::Held) => return false,
            Some(Drain::Telling { pace, .. }) => pace.take_due(self.now, fastrand::f64),
            Some(Drain::Leaving) => {
                let rows: Vec<u32> = self.clients.connections.occupied_rows(0).collect();
                for row in rows {
                    if let Some(key) = self.clients.connections.key_at(row) {
                        self.clients.tell_to_go(key);
                    }
                }
                return true;
            }
        };
        for _ in 0..due {
            let Some(key) = self.next_to_go() else { break };
            self.clients.tell_to_go(key);
        }
        false
    }

    /// How far the drain has come, while there is one: how many were told and have not gone, and how many are
    /// still to be told.
    pub(crate) fn drain_progress(&self) -> Option<(u32, u32)> {
        self.drain.as_ref()?;
        let (mut told, mut untold) = (0, 0);
        let records = self.clients.connections.table.records();
        for record in self.clients.connections.occupied_rows(0).filter_map(|row| records.get(row as usize)) {
            match record.phase() {
                Phase::Open => untold += 1,
                Phase::Closing | Phase::Lingering
                    if usize::from(record.ending) == CloseReason::Drain.index() =>
                {
                    told += 1;
                }
                _ => {}
            }
        }
        Some((told, untold))
    }

    /// Takes the idlest of those who are still open out of the order.
    fn next_to_go(&mut self) -> Option<Key> {
        let Some(Drain::Telling { idlest, .. }) = &mut self.drain else { return None };
        let mut second_looks = SECOND_LOOKS;
        while let Some(Reverse(seen)) = idlest.pop() {
            let key = Key { row: seen.row, serial: seen.serial };
            let Some(now) = self.clients.connections.get(key).and_then(|record| candidate(key.row, record))
            else {
                continue;
            };
            if now == seen || second_looks == 0 {
                return Some(key);
            }
            second_looks -= 1;
            idlest.push(Reverse(now));
        }
        None
    }

    /// A connection came from another slot, or is here again: whoever was to be told without it is told now.
    pub(crate) fn catch_up_with_drain(&mut self, key: Key) {
        if matches!(self.drain, Some(Drain::Telling { .. } | Drain::Leaving)) {
            self.clients.tell_to_go(key);
        }
    }
}

/// `None` for those who are not open: they have been told, or are on their way in or out.
fn candidate(row: u32, record: &Record) -> Option<Candidate> {
    (record.phase() == Phase::Open).then_some(Candidate {
        active_ms: record.active_ms,
        row,
        serial: record.serial,
    })
}
