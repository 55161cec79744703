//! The giver's side of a move: chooses connections, has them counted, sends them, and lets go of them when the
//! taker has them.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, compiler_fence};

use holdfast_shared::clock;
use holdfast_shared::id::SlotId;
use holdfast_shared::ipc::link::LinkError;
use holdfast_shared::ipc::message::WorkerMessage;
use holdfast_shared::ipc::moving::{GiverEnd, MAX_CONNECTIONS, ToGiver, ToTaker};
use holdfast_shared::session::SessionError;
use holdfast_shared::sys::descriptor;
use holdfast_shared::table::Record;

use crate::connection::saved::{WriteError, Writer};
use crate::connection::{Key, descriptor_of};
use crate::life::event_loop::Worker;
use crate::serve::Watched;

/// Connections being given to another slot.
#[derive(Debug)]
pub(super) struct Giving {
    transfer: u64,
    to: SlotId,
    pair: GiverEnd,
    /// How many more are wanted.
    left: u32,
    moved: u32,
    /// Where to go on looking for some.
    next_row: u32,
    stage: Stage,
}

/// How far the next batch is.
#[derive(Debug)]
enum Stage {
    /// The taker has yet to say that it has room.
    AwaitingRoom,
    /// The supervisor has yet to count these. They are served meanwhile, and may end.
    Announced(Vec<Named>),
    /// The taker has yet to say that it has these.
    Sent(Vec<Named>),
}

/// A connection, and what the supervisor knows of it.
type Named = (Key, IpAddr);

/// Why a transfer is over.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error("done")]
    Done,
    #[error("slot {0} has no descriptors left for more connections")]
    Full(SlotId),
    #[error("{0}")]
    Unable(&'static str),
    #[error("the worker of slot {0} is gone or refuses")]
    HungUp(SlotId),
    #[error("cannot watch the socket between the slots: {0}")]
    Watch(#[source] io::Error),
    #[error(transparent)]
    Save(#[from] WriteError),
    #[error("the batch's sessions cannot be copied: {0}")]
    Sessions(#[from] SessionError),
    #[error("the batch cannot be sent: {0}")]
    Send(#[source] LinkError),
}

impl Giving {
    pub(super) fn is_unsettled(&self) -> bool {
        matches!(self.stage, Stage::Sent(_))
    }

    pub(super) fn is_announced(&self) -> bool {
        matches!(self.stage, Stage::Announced(_))
    }
}

impl Worker {
    /// The supervisor wants `count` connections to go to another slot.
    pub(crate) fn begin_giving(&mut self, transfer: u64, to: SlotId, count: u32, pair: OwnedFd) {
        let pair = GiverEnd::new(pair);
        let watched = self.server.watch(pair.as_raw_fd(), Watched::Pair);
        let stage = Stage::AwaitingRoom;
        let giving = Giving { transfer, to, pair, left: count, moved: 0, next_row: 0, stage };
        match watched {
            Ok(()) if self.moving.giving.is_none() => self.moving.giving = Some(giving),
            Ok(()) => self.end_giving(giving, &Stop::Unable("another transfer is under way")),
            Err(error) => self.end_giving(giving, &Stop::Watch(error)),
        }
    }

    /// The supervisor has counted the connections that were named last.
    pub(crate) fn on_counted(&mut self, transfer: u64) {
        let Some(mut giving) = self.moving.giving.take() else { return };
        let mut result = Ok(());
        if giving.transfer == transfer
            && let Stage::Announced(keys) = std::mem::replace(&mut giving.stage, Stage::AwaitingRoom)
        {
            result = self.send_batch(&mut giving, keys);
        }
        self.note_giving(giving, result);
    }

    pub(super) fn continue_giving(&mut self) {
        let Some(mut giving) = self.moving.giving.take() else { return };
        let result = self.hear_taker(&mut giving);
        self.note_giving(giving, result);
    }

    fn note_giving(&mut self, giving: Giving, result: Result<(), Stop>) {
        match result {
            Ok(()) => self.moving.giving = Some(giving),
            Err(stop) => self.end_giving(giving, &stop),
        }
    }

    fn hear_taker(&mut self, giving: &mut Giving) -> Result<(), Stop> {
        loop {
            // What was sent is the taker's to answer, whatever happens here.
            if !giving.is_unsettled()
                && let Some(reason) = self.cannot_move()
            {
                return Err(Stop::Unable(reason));
            }
            match giving.pair.flush().and_then(|()| giving.pair.receive()) {
                Ok(Some(word)) => self.on_word(giving, word.message)?,
                Ok(None) => return Ok(()),
                Err(LinkError::Closed) => return Err(Stop::HungUp(giving.to)),
                Err(error) => log::error!("{error}; the message is ignored"),
            }
        }
    }

    fn on_word(&mut self, giving: &mut Giving, word: ToGiver) -> Result<(), Stop> {
        match (std::mem::replace(&mut giving.stage, Stage::AwaitingRoom), word) {
            (Stage::AwaitingRoom, ToGiver::Room) => self.choose_batch(giving),
            (Stage::AwaitingRoom, ToGiver::Full) => Err(Stop::Full(giving.to)),
            (Stage::Sent(keys), ToGiver::Taken) => {
                for &(key, _) in &keys {
                    self.server.clients.connections.give_away(key);
                }
                self.server.lift_accept_pause();
                giving.note_moved(keys.len());
                Ok(())
            }
            (stage, word) => {
                log::error!("slot {} says {word:?} where nothing was asked; ignored", giving.to);
                giving.stage = stage;
                Ok(())
            }
        }
    }

    /// Chooses a batch and tells the supervisor.
    fn choose_batch(&mut self, giving: &mut Giving) -> Result<(), Stop> {
        let wanted = giving.left.min(MAX_CONNECTIONS);
        let keys = self.server.clients.connections.movable(giving.next_row, wanted as usize);
        let Some(last) = keys.last() else { return Err(Stop::Done) };
        if !self.link_has_room() {
            return Err(Stop::Unable("the supervisor does not read"));
        }
        giving.next_row = last.row + 1;
        let named = keys
            .into_iter()
            .filter_map(|key| Some((key, self.server.clients.connections.get(key)?.address())));
        let batch: Vec<Named> = named.collect();
        let (transfer, addresses) = (giving.transfer, addresses(&batch));
        self.tell(WorkerMessage::Giving { transfer, addresses });
        giving.stage = Stage::Announced(batch);
        Ok(())
    }

    /// Sends those of a batch that can still go.
    fn send_batch(&mut self, giving: &mut Giving, batch: Vec<Named>) -> Result<(), Stop> {
        if let Some(reason) = self.cannot_move() {
            giving.stage = Stage::Announced(batch);
            return Err(Stop::Unable(reason));
        }
        let (going, staying): (Vec<Named>, Vec<Named>) =
            batch.into_iter().partition(|&(key, _)| self.server.clients.leave(key));
        self.keep(giving.transfer, &staying);
        if going.is_empty() {
            // The room that was offered is still there.
            return self.choose_batch(giving);
        }
        let packed = self.pack(&going);
        let Ok((message, attached)) = packed else {
            for &(key, _) in &going {
                self.server.clients.resume(key);
            }
            giving.stage = Stage::Announced(going);
            return packed.map(|_| ());
        };
        for &(key, _) in &going {
            self.server.unwatch(descriptor_of(key));
        }
        // A worker that dies between the mark and the message loses them: nothing else comes in between.
        for &(key, _) in &going {
            self.server.clients.connections.set_given(key);
        }
        // Marked before anybody else can have them.
        compiler_fence(Ordering::SeqCst);
        let clients = going.iter().map(|&(key, _)| descriptor_of(key));
        let all: Vec<RawFd> = clients.chain(attached.iter().map(AsRawFd::as_raw_fd)).collect();
        giving.stage = Stage::Sent(going);
        descriptor::with_all(all, |all| giving.pair.send_with(self.incarnation, &message, all))
            .unwrap_or_else(|source| Err(LinkError::Send { source }))
            .map_err(Stop::Send)
    }

    /// The message for a batch, and the memory that goes with it: of its sessions, then of its states.
    fn pack(&self, batch: &[Named]) -> Result<(ToTaker, Vec<OwnedFd>), Stop> {
        let states = self.save_batch(batch)?;
        let connections = &self.server.clients.connections;
        let mut records: Vec<Record> =
            batch.iter().filter_map(|&(key, _)| connections.get(key).copied()).collect();
        let sessions = connections.copy_sessions(batch.iter().map(|&(key, _)| key), &mut records)?;
        let message = ToTaker::batch(records.iter(), states.is_some());
        Ok((message, sessions.into_iter().chain(states).collect()))
    }

    /// The states of a batch, numbered by their place in it; `None` if there are none.
    fn save_batch(&self, batch: &[Named]) -> Result<Option<OwnedFd>, WriteError> {
        let has_state = |&(key, _): &Named| {
            self.server.clients.connections.get(key).is_some_and(|record| record.heap_state != 0)
        };
        if !batch.iter().any(has_state) {
            return Ok(None);
        }
        let mut writer = Writer::new()?;
        for (place, &(key, _)) in (0..).zip(batch) {
            self.server.clients.connections.save_heap_state(key, place, &mut writer)?;
        }
        writer.finish(clock::now()).map(Some)
    }

    /// It is over. Nothing of it is on its way: what was sent and not answered comes back, for the taker has
    /// hung up, or it was never sent.
    fn end_giving(&mut self, giving: Giving, stop: &Stop) {
        let Giving { transfer, to, pair, moved, stage, .. } = giving;
        self.server.unwatch(pair.as_raw_fd());
        drop(pair);
        match stage {
            Stage::AwaitingRoom => {}
            Stage::Announced(batch) => self.keep(transfer, &batch),
            Stage::Sent(batch) => {
                // Named before they can end: a close must find them counted here.
                self.keep(transfer, &batch);
                for (key, _) in batch {
                    self.server.clients.take_back(key);
                    self.go_on_here(key);
                }
            }
        }
        let stopped = (!matches!(stop, Stop::Done)).then(|| stop.to_string());
        let level = if matches!(stop, Stop::HungUp(_)) { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "{moved} connections went to slot {to}: {stop}");
        self.tell(WorkerMessage::GiveEnded { transfer, moved, stopped });
    }

    fn keep(&mut self, transfer: u64, batch: &[Named]) {
        if !batch.is_empty() {
            let addresses = addresses(batch);
            self.tell(WorkerMessage::Kept { transfer, addresses });
        }
    }
}

impl Giving {
    fn note_moved(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.moved = self.moved.saturating_add(count);
        self.left = self.left.saturating_sub(count);
    }
}

fn addresses(batch: &[Named]) -> Vec<IpAddr> {
    batch.iter().map(|&(_, address)| address).collect()
}
