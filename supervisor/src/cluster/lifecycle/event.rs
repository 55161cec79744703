//! The words between a slot and the supervisor: what happened, and what to do about it.

use std::fmt;
use std::time::Duration;

use holdfast_shared::id::Incarnation;
use holdfast_shared::ipc::message::DeathCause;
use nix::unistd::Pid;

/// A worker and the place it has in its slot's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    pub pid: Pid,
    /// Its number within the slot.
    pub incarnation: Incarnation,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// It exited with this status.
    Exit(i32),
    /// This signal killed it.
    Signal(i32),
    /// It was ended because it said nothing any more.
    Wedged,
    /// It never ran: the kernel refused to make it.
    NotSpawned,
    /// Nobody told us.
    Unknown,
}

/// What happened to a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A turn of the supervisor's loop; the only thing that makes time pass.
    Tick,
    /// The keeper asked for by [`Action::SpawnKeeper`] runs.
    Spawned { keeper: Pid },
    /// The keeper asked for by [`Action::SpawnKeeper`] could not be made.
    SpawnFailed,
    /// From the keeper, on the link: it has cloned a worker. May come after that worker's `Ready`.
    WorkerStarted(Worker),
    /// From the worker, on the link: it has resumed its connections and serves.
    Ready(Worker),
    /// From the keeper, on the link: its worker died, or could not be cloned.
    WorkerDied {
        cause: Cause,
        /// The keeper waits this long before it clones the next.
        pause: Duration,
    },
    /// From the keeper, on the link: its worker has left on purpose. The keeper exits as well if it has
    /// finished, and makes the next one if it has handed over.
    WorkerLeft,
    /// From the keeper, on the link, and its first word: it was the slot's worker, and has taken the place of a
    /// keeper that died. Its process has not been reaped.
    WorkerKeeps { keeper: Pid },
    /// The link was read to its end: neither keeper nor worker has it open.
    LinkClosed,
    /// The keeper was reaped.
    KeeperReaped {
        /// How it ended.
        cause: Cause,
    },
    /// A worker whose keeper is dead was reaped, or turned out not to be our child: its keeper had reaped it.
    WorkerReaped { pid: Pid },
    /// The slot shall finish what it has and then end.
    Drain,
    /// The slot shall end at once.
    Stop,
}

/// What the supervisor has to do, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a keeper with a new link; answer with [`Event::Spawned`] or [`Event::SpawnFailed`].
    SpawnKeeper,
    /// Send SIGKILL to the keeper. It is our child and not reaped yet, so the pid is still its own.
    KillKeeper(Pid),
    /// The worker's keeper is reaped, so the worker is our child, or was reaped by its keeper and the pid may
    /// be anybody's. Ask `waitpid` (WNOHANG) first: still running, send SIGKILL and report when it is
    /// reaped; reaped now or not our child, report [`Event::WorkerReaped`] at once.
    KillWorker(Pid),
    /// Tell the worker to drain.
    DrainWorker,
    /// The slot's descriptors are all closed: give its holdings back. Comes exactly once per spawned keeper.
    ForgetHoldings,
    /// To be logged and counted: the slot serves.
    BecameReady(Worker),
    /// To be logged and counted: a worker died.
    WorkerLost {
        cause: Cause,
        /// The keeper starts the next after this long.
        pause: Duration,
    },
    /// To be logged and counted: a keeper died, and its worker keeps the slot now. All connections live.
    KeeperReplaced {
        /// The process that was the worker.
        keeper: Pid,
    },
    /// To be logged and counted: a keeper died, and the slot's connections with it.
    KeeperLost {
        cause: Cause,
        /// The next keeper is spawned after this long.
        pause: Duration,
    },
    /// The slot has never served and [`Lifecycle::START_ATTEMPTS`](super::Lifecycle::START_ATTEMPTS) attempts have
    /// failed. Comes once; the slot goes on trying unless it is stopped.
    StartFailed {
        /// How the last attempt ended.
        cause: Cause,
    },
    /// To be logged as an error: this cannot happen in this state, and changed nothing.
    Unexpected(Event),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exit(status) => DeathCause::Exit(status).fmt(f),
            Self::Signal(signal) => DeathCause::Signal(signal).fmt(f),
            Self::Wedged => f.write_str("wedged"),
            Self::NotSpawned => f.write_str("could not be started"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}
