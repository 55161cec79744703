//! Everything that is said on a link, one enum for each speaker. Every message travels in an [`Envelope`].
//!
//! Variants are appended, and fields are appended to variants, in such a way that zeros mean "not said". A program
//! skips the kinds that it does not know, and each side says at the start how many kinds it knows. So a newer
//! program can see what an older one would not hear.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::counters::Counters;
use crate::id::{ConnectionId, Incarnation, SlotId, Ticket};
use crate::ipc::codec::{self, Kind, Message};
use crate::level::Level;
use crate::reason::{CloseReason, Rejection};

/// Most tickets, verdicts, releases or holdings in one message; more are split over several.
pub const MAX_BATCH: usize = 1024;

/// A message and the worker it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<M> {
    /// From a slot: which of its workers speaks, or is spoken of by its keeper. To a slot: which of its workers is
    /// meant, or [`Incarnation::ANY`].
    pub incarnation: Incarnation,
    /// What is said.
    pub message: M,
}

/// From a slot to the supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToSupervisor {
    /// By the slot's keeper, about its last worker.
    Keeper(KeeperMessage),
    /// By the slot's worker.
    Worker(WorkerMessage),
}

/// What only a slot's keeper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeeperMessage {
    /// The keeper has made a worker. Not answered.
    Started {
        /// Its process.
        pid: i32,
    },
    /// The keeper's worker is dead; the next one comes after `pause`. Not answered.
    Died {
        /// How it ended.
        cause: DeathCause,
        /// How long it had lived.
        lived: Duration,
        /// How long the keeper waits before the next.
        pause: Duration,
    },
    /// The keeper's worker has left as it was told; the keeper leaves too. Not answered.
    Left,
    /// The keeper's worker has saved what it had in hand and left, as `Restart` asked; the next one comes at
    /// once. Not answered.
    HandedOver,
    /// The keeper cannot execute the program that came with `Restart`, and goes on with the one it is. Comes
    /// behind `HandedOver`. Not answered.
    ProgramRefused {
        /// Why.
        reason: String,
    },
    /// The program that came with `Restart` was given up, and the slot is back with the one before. Not answered.
    WentBack {
        /// Why.
        reason: String,
    },
    /// The first word of every keeper. One that the supervisor did not start was the slot's worker, and has taken
    /// the place of a keeper that died. Not answered.
    Keeper {
        /// The keeper's process.
        pid: i32,
    },
    /// The keeper has no worker, and asks for the way to the hub before it makes one. Answered by `Channels`.
    WantsChannels,
}

/// What only a slot's worker says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum WorkerMessage {
    /// A slot whose supervisor is gone gives itself to the next, as the first message of a new link. With it
    /// come, by descriptor: the table's memory, the lock of the slots, and the listening sockets in the order of
    /// their addresses. `Hello` follows. Not answered.
    Adopt {
        /// The place it fills.
        slot: SlotId,
        /// Its process.
        pid: i32,
        /// The process that keeps the slot.
        keeper: i32,
    },
    /// The worker is there and has begun to look through the table. Answered by `Configure`.
    Hello {
        /// Its process.
        pid: i32,
        /// Its program's version, as the program calls itself.
        version: String,
        /// How many kinds of [`ToWorker`] it knows.
        knows: u32,
    },
    /// A part of what the worker took over: admitted connections, by client address. Not answered.
    Holdings {
        /// Addresses and how many connections each has.
        addresses: Vec<(IpAddr, u32)>,
    },
    /// All holdings were named, everything else is closed, and clients are being served. Not answered.
    Ready {
        /// Connections taken over.
        resumed: u32,
        /// Connections that had to be closed since their stream state died with the last worker.
        lost: u32,
        /// How long taking over took.
        took: Duration,
        /// What the slot has counted: closes that the last worker did not live to tell of are among it.
        counters: Box<Counters>,
    },
    /// Clients with valid requests ask to be let in: all of one turn of the loop. Answered by `Verdicts`.
    Admit {
        /// Who asks.
        tickets: Vec<(Ticket, IpAddr)>,
    },
    /// Admitted connections whose descriptors are closed now: all of one turn of the loop. Not answered.
    Release {
        /// One entry for each connection.
        closed: Vec<(IpAddr, CloseReason)>,
    },
    /// What the worker counts; every second, and when asked.
    Report {
        /// The request it answers, if it was asked for.
        request: Option<u64>,
        /// The counts.
        report: Box<Report>,
    },
    /// The settings of this generation are in force.
    Applied {
        /// The generation, as in `Configure`.
        generation: u64,
    },
    /// How far a drain has come; before every report while there is one. Not answered.
    Draining {
        /// Connections that were told to go and have not gone.
        told: u32,
        /// Connections that are still to be told.
        untold: u32,
    },
    /// The worker was asked to hand over and stays: nothing has changed. Answers `Restart`.
    RestartRefused {
        /// Why.
        reason: String,
    },
    /// Established connections are about to go to another slot. Answered by `Counted`; until then they stay.
    Giving {
        /// As in `Give`.
        transfer: u64,
        /// One entry for each connection.
        addresses: Vec<IpAddr>,
    },
    /// Connections that were to go, or were sent and not taken, are this slot's after all. Not answered.
    Kept {
        /// As in `Give`.
        transfer: u64,
        /// One entry for each connection.
        addresses: Vec<IpAddr>,
    },
    /// Connections of another slot are this one's now. Not answered.
    Took {
        /// As in `Take`.
        transfer: u64,
        /// One entry for each connection.
        addresses: Vec<IpAddr>,
    },
    /// No more connections are given, and none is on its way. Answers `Give`.
    GiveEnded {
        /// As in `Give`.
        transfer: u64,
        /// How many went.
        moved: u32,
        /// Why it was fewer than there were, if it was.
        stopped: Option<String>,
    },
    /// No more connections will come. Answers `Take`.
    TakeEnded {
        /// As in `Take`.
        transfer: u64,
    },
    /// Connections were named to be closed, and so many of them told; the others had gone, or are not as they were said
    /// to be. Answers `Close`.
    Told {
        /// As in `Close`.
        order: u64,
        /// How many were named.
        named: u32,
        /// How many were told.
        told: u32,
    },
    /// Clients that asked to be let in have left. Each ticket that has no verdict yet gets one all the same.
    Withdraw {
        /// Theirs, at most [`MAX_BATCH`].
        tickets: Vec<Ticket>,
    },
}

/// From the supervisor to a slot's worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The settings in the memory that comes with this, by descriptor, hold from now on. Answered by `Applied`.
    Configure {
        /// Counts up with each change.
        generation: u64,
        /// How many kinds of [`WorkerMessage`] the supervisor knows.
        knows: u32,
    },
    /// Answers to `Admit`, for the worker that asked.
    Verdicts {
        /// The tickets and their verdicts.
        verdicts: Vec<(Ticket, Verdict)>,
    },
    /// Report now. Answered by `Report` with the same number.
    ReportNow {
        /// Any number.
        request: u64,
    },
    /// Whether the cluster is full or going away, as /health on the public port shows it. Not answered.
    State {
        /// The cap is reached.
        full: bool,
        /// What the server is like for its clients.
        level: Level,
    },
    /// Let nobody in any more and tell all clients to go, spread over `duration`; said again, it holds for
    /// those who are left. `Leave` follows when all have gone. Answered by `Draining`, with every report.
    Drain {
        /// By when the last client is told.
        duration: Duration,
    },
    /// Tell all clients, and leave without waiting for them. Answered by leaving.
    Leave,
    /// Let nobody in any more, and tell nobody to go until `Drain` says how long there is. Answered by
    /// `Draining`, with every report.
    HoldDrain,
    /// Save what is in hand and leave, for the next worker to go on with. With it may come, by descriptor, the
    /// program that the slot is to go on with. Answered by the keeper's `HandedOver`, or by `RestartRefused`.
    /// For one worker: the one that was asked may be dead.
    Restart,
    /// For one worker: give established connections to another slot, over the socket that comes with this.
    /// Answered by `GiveEnded`, after any number of `Giving`.
    Give {
        /// Which transfer this is.
        transfer: u64,
        /// Who gets them.
        to: SlotId,
        /// How many at most.
        count: u32,
    },
    /// For one worker: take connections of another slot, over the socket that comes with this. Answered by
    /// `TakeEnded`, after any number of `Took`.
    Take {
        /// Which transfer this is.
        transfer: u64,
        /// Whose they are.
        from: SlotId,
    },
    /// The connections named last in `Giving` are counted wherever they may be: they may go.
    Counted {
        /// As in `Give`.
        transfer: u64,
    },
    /// Tell these connections to go, at most [`MAX_BATCH`]. Answered by `Told`.
    Close {
        /// Any number.
        order: u64,
        /// Which.
        targets: Vec<CloseTarget>,
        /// The close code they get.
        code: u16,
        /// The text they get with it.
        text: String,
        /// What to count them as.
        reason: CloseReason,
    },
    /// For the keeper: the way to the hub. With it come, by descriptor: the channel memory, which cannot be written by this
    /// descriptor, the slot's up-ring, what wakes its worker, and what wakes the hub.
    Channels,
}

/// A connection that is to be closed, if it is still the one that was found in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseTarget {
    /// Its row.
    pub row: u32,
    /// Its name.
    pub id: ConnectionId,
    /// Only if its client has sent nothing since this moment; 0 if that does not matter.
    pub idle_since_ms: u64,
}

impl Message for ToSupervisor {
    fn kind(tags: &[u8]) -> Option<Kind> {
        let (speaker, tags) = codec::tag(tags)?;
        let known = match speaker {
            0 => codec::kinds::<KeeperMessage>(),
            1 => codec::kinds::<WorkerMessage>(),
            _ => &[],
        };
        Some(Kind { speaker, index: codec::tag(tags)?.0, known })
    }

    fn may_be_lost(&self) -> bool {
        matches!(self, Self::Worker(WorkerMessage::Report { .. } | WorkerMessage::Draining { .. }))
    }
}

impl Message for ToWorker {
    fn kind(tags: &[u8]) -> Option<Kind> {
        codec::only_kind::<Self>(tags)
    }

    fn may_be_lost(&self) -> bool {
        matches!(self, Self::ReportNow { .. })
    }
}

impl From<KeeperMessage> for ToSupervisor {
    fn from(message: KeeperMessage) -> Self {
        Self::Keeper(message)
    }
}

impl From<WorkerMessage> for ToSupervisor {
    fn from(message: WorkerMessage) -> Self {
        Self::Worker(message)
    }
}

/// The supervisor's answer to one ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Let in, and counted until released.
    Granted,
    /// Turned away.
    Refused(Rejection),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeathCause {
    /// It left with this status.
    Exit(i32),
    /// This signal ended it.
    Signal(i32),
}

impl fmt::Display for DeathCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exit(status) => write!(f, "exit status {status}"),
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(number) {
                Ok(signal) => f.write_str(signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
        }
    }
}

/// What a worker counts, at one moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Admitted connections whose descriptors are open.
    pub connections: u32,
    /// Unfinished handshakes.
    pub pending_handshakes: u32,
    /// Bytes waiting for clients to read them.
    pub queued_bytes: u64,
    /// The longest turn of the event loop since the last report.
    pub loop_lag: Duration,
    /// Descriptors open in the slot's table.
    pub open_descriptors: u32,
    /// The slot's counters, over all its workers.
    pub counters: Counters,
}
