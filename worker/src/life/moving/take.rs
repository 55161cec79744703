//! The taker's side of a move: offers room, puts what comes into the table, says that it has it, and serves it
//! from then on. Whatever is wrong with a batch, the answer is to hang up: then it is the giver's again.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{Ordering, compiler_fence};

use holdfast_shared::format::Format;
use holdfast_shared::id::SlotId;
use holdfast_shared::ipc::link::LinkError;
use holdfast_shared::ipc::message::WorkerMessage;
use holdfast_shared::ipc::moving::{self, MAX_CONNECTIONS, TakerEnd, ToGiver, ToTaker};
use holdfast_shared::session::{Owner, SessionError, Sessions};
use holdfast_shared::table::{Record, TABLE_FORMAT};

use super::DESCRIPTORS;
use crate::connection::Key;
use crate::connection::saved::{ReadError, Reader};
use crate::life::event_loop::Worker;
use crate::serve::Watched;

/// Connections being taken from another slot.
#[derive(Debug)]
pub(super) struct Taking {
    transfer: u64,
    from: SlotId,
    pair: TakerEnd,
    /// In the table, and `Taken` is not sent yet.
    unconfirmed: Vec<Key>,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum Objection {
    #[error("{0}")]
    Unable(&'static str),
    #[error("records of layout version {0}; this binary has {TABLE_FORMAT}")]
    Layout(u32),
    #[error("{records} bytes of records with {descriptors} descriptors")]
    Shape { records: usize, descriptors: usize },
    #[error("the connection table has no row for one of them")]
    NoRow,
    #[error(transparent)]
    States(#[from] ReadError),
    #[error("{0}")]
    Sessions(#[from] SessionError),
    #[error("one of them cannot go on with what was saved for it")]
    State,
}

impl Taking {
    pub(super) fn is_unsettled(&self) -> bool {
        !self.unconfirmed.is_empty()
    }
}

impl Worker {
    /// The supervisor wants connections of another slot to come here.
    pub(crate) fn begin_taking(&mut self, transfer: u64, from: SlotId, pair: OwnedFd) {
        // Whatever came before is over, or the supervisor would not have begun another.
        if let Some(before) = self.moving.taking.take() {
            self.end_taking(before, Giver::MayLive);
        }
        let taking = Taking { transfer, from, pair: TakerEnd::new(pair), unconfirmed: Vec::new() };
        if let Err(error) = self.server.watch(taking.pair.as_raw_fd(), Watched::Pair) {
            log::error!("cannot watch the socket from slot {from}: {error}");
            return self.end_taking(taking, Giver::MayLive);
        }
        self.moving.taking = Some(taking);
        self.offer_room();
    }

    pub(super) fn continue_taking(&mut self) {
        while let Some(taking) = &mut self.moving.taking {
            let received = taking.pair.flush().and_then(|()| {
                // Without a copy that waits to be sent, the giver has been told.
                if taking.unconfirmed.is_empty() || taking.pair.has_queued() {
                    taking.pair.receive_with()
                } else {
                    Ok(None)
                }
            });
            match received {
                Ok(Some((batch, descriptors))) => {
                    let ToTaker::Batch { layout, records, has_halves } = batch.message;
                    match self.take_batch(layout, &records, has_halves, descriptors) {
                        Ok(keys) => self.confirm(keys),
                        Err(objection) => self.refuse_batch(&objection),
                    }
                }
                Ok(None) if self.settle_confirmed() => self.offer_room(),
                Ok(None) => return,
                Err(LinkError::Closed) => return self.stop_taking(Giver::IsGone),
                Err(error) => {
                    log::error!("{error}; no more connections are taken");
                    return self.stop_taking(Giver::MayLive);
                }
            }
        }
    }

    fn offer_room(&mut self) {
        let has_room = !self.server.clients.connections.is_full(self.server.own_descriptors + DESCRIPTORS);
        let may = self.cannot_move().is_none();
        let Some(taking) = &mut self.moving.taking else { return };
        let word = if has_room && may { ToGiver::Room } else { ToGiver::Full };
        // If it cannot be said, reading says why.
        let _ = taking.pair.send(self.incarnation, &word);
    }

    fn take_batch(
        &mut self,
        layout: (u32, u32),
        records: &[u8],
        has_halves: bool,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Vec<Key>, Objection> {
        if let Some(reason) = self.cannot_move() {
            return Err(Objection::Unable(reason));
        }
        let theirs = Format { version: layout.0, reads_since: layout.1, ..TABLE_FORMAT };
        if !TABLE_FORMAT.fits(&theirs) {
            return Err(Objection::Layout(theirs.version));
        }
        let states = if has_halves { descriptors.pop() } else { None };
        let bytes = records.len();
        let records = moving::records(records);
        // Behind those of the connections.
        let has_sessions = records.as_ref().is_some_and(|records| descriptors.len() == records.len() + 1);
        let sessions = if has_sessions { descriptors.pop() } else { None };
        let records = records.filter(|records| {
            records.len() == descriptors.len()
                && records.len() <= MAX_CONNECTIONS as usize
                && states.is_some() == has_halves
        });
        let Some(records) = records else {
            return Err(Objection::Shape { records: bytes, descriptors: descriptors.len() });
        };
        let sessions = match sessions.map(|memory| Sessions::open(memory.as_fd())).transpose() {
            Ok(sessions) => sessions,
            Err(error) => return Err(Objection::Sessions(error.into())),
        };
        let mut keys = Vec::with_capacity(records.len());
        let result = self.put_into_table(&records, descriptors, states, sessions.as_ref(), &mut keys);
        if let Err(objection) = result {
            for key in keys {
                self.server.clients.connections.send_back(key);
            }
            return Err(objection);
        }
        Ok(keys)
    }

    fn put_into_table(
        &mut self,
        records: &[Record],
        descriptors: Vec<OwnedFd>,
        states: Option<OwnedFd>,
        sessions: Option<&Sessions>,
        keys: &mut Vec<Key>,
    ) -> Result<(), Objection> {
        for ((place, record), descriptor) in (0..).zip(records).zip(descriptors) {
            let key = self.server.clients.connections.arrive(descriptor, record).ok_or(Objection::NoRow)?;
            keys.push(key);
            if record.session != 0 {
                let owner = Owner { row: place, serial: record.serial };
                let session = sessions.and_then(|sessions| sessions.get(record.session, owner));
                self.server.clients.connections.set_session(key, session.ok_or(Objection::State)?)?;
            }
        }
        let Some(states) = states else { return Ok(()) };
        let mut reader = Reader::new(states.as_fd())?;
        while let Some(state) = reader.next_state()? {
            let place = state.row as usize;
            let is_of = records.get(place).is_some_and(|record| record.serial == state.serial);
            let key = keys.get(place).copied().filter(|_| is_of).ok_or(Objection::State)?;
            self.server.clients.connections.put_in(key, &state).ok_or(Objection::State)?;
        }
        Ok(())
    }

    /// Tells the giver that these are here.
    fn confirm(&mut self, keys: Vec<Key>) {
        let Some(taking) = &mut self.moving.taking else { return };
        taking.unconfirmed = keys;
        // Whoever is told must find them in the table.
        compiler_fence(Ordering::SeqCst);
        // A giver that is gone has not been told, and whoever comes after it lets go of them all the same.
        let _ = taking.pair.send(self.incarnation, &ToGiver::Taken);
    }

    /// Makes those ours of which the giver was told. Says whether there were any.
    fn settle_confirmed(&mut self) -> bool {
        let Some(taking) = &mut self.moving.taking else { return false };
        if taking.unconfirmed.is_empty() || taking.pair.has_queued() {
            return false;
        }
        let (keys, transfer) = (std::mem::take(&mut taking.unconfirmed), taking.transfer);
        self.commit_arrival(transfer, &keys);
        true
    }

    fn commit_arrival(&mut self, transfer: u64, keys: &[Key]) {
        compiler_fence(Ordering::SeqCst);
        for &key in keys {
            self.server.clients.connections.commit_arrival(key);
        }
        let address = |&key: &Key| Some(self.server.clients.connections.get(key)?.address());
        let addresses: Vec<IpAddr> = keys.iter().filter_map(address).collect();
        // Before any of them can end: a close must find them counted here.
        self.tell(WorkerMessage::Took { transfer, addresses });
        for &key in keys {
            self.server.clients.resume(key);
            self.go_on_here(key);
        }
    }

    fn refuse_batch(&mut self, objection: &Objection) {
        log::warn!("connections of another slot are not taken: {objection}");
        self.stop_taking(Giver::MayLive);
    }

    fn stop_taking(&mut self, giver: Giver) {
        if let Some(taking) = self.moving.taking.take() {
            self.end_taking(taking, giver);
        }
    }

    /// It is over. Hanging up is what tells the giver.
    fn end_taking(&mut self, taking: Taking, giver: Giver) {
        let Taking { transfer, from, pair, unconfirmed } = taking;
        log::debug!("no more connections come from slot {from}");
        self.server.unwatch(pair.as_raw_fd());
        drop(pair);
        match giver {
            Giver::IsGone if !unconfirmed.is_empty() => self.commit_arrival(transfer, &unconfirmed),
            Giver::IsGone | Giver::MayLive => {
                for key in unconfirmed {
                    self.server.clients.connections.send_back(key);
                }
            }
        }
        self.tell(WorkerMessage::TakeEnded { transfer });
    }
}

/// Whose a batch is of which the giver has not been told, when a transfer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Giver {
    /// Ours: one that lives does not hang up on a batch it has sent, and whoever comes after it lets go.
    IsGone,
    /// The giver's, once we hang up.
    MayLive,
}
