//! The states of a slot, and what each knows. Decides nothing.

use std::time::Duration;

use nix::unistd::Pid;

use super::event::{Cause, Worker};

/// How long a worker may take from its keeper's end to being the keeper. It saves all it has in hand meanwhile.
const SUCCESSOR_PATIENCE: Duration = Duration::from_secs(10);

/// Where a slot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing has run yet; the next tick asks for a keeper.
    Empty,
    /// A keeper was asked for and is not there yet.
    Spawning,
    /// The keeper runs; none of its workers has said `Ready` yet.
    Starting(Life),
    /// The worker serves.
    Ready(Life),
    /// The worker died; its keeper waits out a pause, or has cloned one that has not said `Ready` yet.
    WorkerDown(Life),
    /// The worker finishes what it has; nothing is started again once the keeper ends.
    Draining(Life),
    /// The keeper is dead or dying. Its worker takes its place; or not everything that holds the slot's descriptors
    /// is known to be gone.
    KeeperDown(Remains),
    /// Keepers died again and again; the next one has to wait.
    BackingOff {
        /// When the next keeper is asked for.
        until: Duration,
    },
    /// Nothing runs and nothing will.
    Left,
}

/// A keeper that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub keeper: Pid,
    /// When it was spawned.
    pub since: Duration,
    /// The worker it has now, as far as we heard.
    pub worker: Option<Worker>,
}

/// What may still hold the descriptors of a keeper that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remains {
    /// The keeper, until it is reaped.
    pub keeper: Option<Pid>,
    /// The last worker we heard of, until it is reaped.
    pub worker: Option<Worker>,
    /// Until when the worker may take the keeper's place; `None` when nobody is to live on.
    pub successor_until: Option<Duration>,
    /// Whether the link may still bring messages.
    pub link_open: bool,
    /// How long the keeper lived.
    pub lived: Duration,
    /// How the keeper ended, once it is reaped.
    pub cause: Option<Cause>,
}

impl State {
    /// The word users see.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Spawning => "spawning",
            Self::Starting(_) => "starting",
            Self::Ready(_) => "ready",
            Self::WorkerDown(_) => "worker_down",
            Self::Draining(_) => "draining",
            Self::KeeperDown(_) => "keeper_down",
            Self::BackingOff { .. } => "backing_off",
            Self::Left => "left",
        }
    }

    /// The keeper, while it is our child.
    #[must_use]
    pub fn keeper(&self) -> Option<Pid> {
        match self {
            Self::Starting(life) | Self::Ready(life) | Self::WorkerDown(life) | Self::Draining(life) => {
                Some(life.keeper)
            }
            Self::KeeperDown(remains) => remains.keeper,
            Self::Empty | Self::Spawning | Self::BackingOff { .. } | Self::Left => None,
        }
    }

    /// The worker, as far as we heard.
    #[must_use]
    pub fn worker(&self) -> Option<Worker> {
        match self {
            Self::Starting(life) | Self::Ready(life) | Self::WorkerDown(life) | Self::Draining(life) => {
                life.worker
            }
            Self::KeeperDown(remains) => remains.worker,
            Self::Empty | Self::Spawning | Self::BackingOff { .. } | Self::Left => None,
        }
    }
}

impl Life {
    /// Whether news of `worker` fit: it is the one we know, or we know of none.
    pub(super) fn may_be(&self, worker: Worker) -> bool {
        self.worker.is_none_or(|known| known == worker)
    }

    /// Whether process `pid` can have been the worker.
    pub(super) fn may_have_successor(&self, pid: Pid) -> bool {
        self.worker.is_none_or(|worker| worker.pid == pid)
    }

    /// What is left when it ends, for the worker to take over.
    pub(super) fn inheritance(self, now: Duration) -> Remains {
        Remains { successor_until: Some(now + SUCCESSOR_PATIENCE), ..self.remains(now) }
    }

    /// What is left when all of it is to end.
    pub(super) fn remains(self, now: Duration) -> Remains {
        let lived = now.saturating_sub(self.since);
        let keeper = Some(self.keeper);
        Remains { keeper, worker: self.worker, successor_until: None, link_open: true, lived, cause: None }
    }
}

impl Remains {
    /// The worker, if there is nobody left whose child it may be and it is to end.
    pub(super) fn abandoned(&self) -> Option<Worker> {
        self.worker.filter(|_| self.keeper.is_none() && self.successor_until.is_none())
    }

    /// Whether process `pid` can have been the worker.
    pub(super) fn may_have_successor(&self, pid: Pid) -> bool {
        self.link_open && self.worker.is_none_or(|worker| worker.pid == pid)
    }

    pub(super) fn may_bring(&self, worker: Worker) -> bool {
        self.link_open && self.worker.is_none_or(|known| known == worker)
    }
}
