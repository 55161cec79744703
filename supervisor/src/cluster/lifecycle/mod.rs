//! One slot as the supervisor sees it: is its keeper alive, is its worker serving, what is to be done next.
//!
//! A pure state machine: events and the time go in, actions come out. It spawns, kills and reaps nothing
//! itself, and it never restarts a worker: the keeper does that, the slot only hears of it.
//!
//! The descriptors of a slot are shared by its keeper and its worker, so they are closed when *both* are
//! gone. A worker whose keeper dies takes its place, and says so; only when it does not, the slot is lost. End of file on the link is not proof enough: a dying process closes its descriptors one by one, the
//! link among the first. Only when it is reaped are all closed. Hence three facts are waited for before a
//! slot's holdings are given back: the link is closed (no worker that we never heard of lives on), the keeper
//! is reaped, and the last worker we heard of is reaped.

mod event;
mod state;
#[cfg(test)]
mod tests;

use std::time::Duration;

use holdfast_shared::backoff::Backoff;

use nix::unistd::Pid;

pub use event::{Action, Cause, Event, Worker};
pub use state::{Life, Remains, State};

/// One slot.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    state: State,
    /// Whether a keeper that ended is to be followed by another.
    wanted: bool,
    has_served: bool,
    failed_starts: u32,
    backoff: Backoff,
}

impl Default for Lifecycle {
    fn default() -> Self {
        let backoff = Backoff::default();
        Self { state: State::Empty, wanted: true, has_served: false, failed_starts: 0, backoff }
    }
}

impl Lifecycle {
    /// A slot that fails this often before its first `Ready` ever is reported by [`Action::StartFailed`].
    pub const START_ATTEMPTS: u32 = 3;

    /// A slot that an earlier supervisor has started: its processes run, its worker has yet to say `Ready` to
    /// us.
    #[must_use]
    pub fn adopted(keeper: Pid, worker: Worker, now: Duration) -> Self {
        let state = State::Starting(Life { keeper, since: now, worker: Some(worker) });
        Self { state, has_served: true, ..Self::default() }
    }

    /// Where the slot stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// When a tick will do something even if nothing else happens.
    #[must_use]
    pub fn wakeup(&self) -> Option<Duration> {
        match self.state {
            State::Empty => Some(Duration::ZERO),
            State::BackingOff { until } => Some(until),
            State::KeeperDown(remains) => remains.successor_until,
            _ => None,
        }
    }

    /// Takes in one event at `now`, a monotonic time since any fixed moment; says what to do.
    #[must_use]
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        self.state = match self.state {
            State::Empty | State::BackingOff { .. } | State::Left => self.idle(event, now, &mut actions),
            State::Spawning => self.spawning(event, now, &mut actions),
            State::Starting(life) | State::Ready(life) | State::WorkerDown(life) | State::Draining(life) => {
                self.running(life, event, now, &mut actions)
            }
            State::KeeperDown(remains) => self.keeper_down(remains, event, now, &mut actions),
        };
        actions
    }

    fn idle(&mut self, event: Event, now: Duration, actions: &mut Vec<Action>) -> State {
        let due = self.wakeup().is_some_and(|at| now >= at);
        match event {
            Event::Tick if due => spawn(actions),
            Event::Tick => self.state,
            Event::Drain | Event::Stop => {
                self.wanted = false;
                State::Left
            }
            Event::Spawned { .. }
            | Event::SpawnFailed
            | Event::WorkerStarted(_)
            | Event::Ready(_)
            | Event::WorkerDied { .. }
            | Event::WorkerLeft
            | Event::WorkerKeeps { .. }
            | Event::LinkClosed
            | Event::KeeperReaped { .. }
            | Event::WorkerReaped { .. } => self.unexpected(event, actions),
        }
    }

    fn spawning(&mut self, event: Event, now: Duration, actions: &mut Vec<Action>) -> State {
        match event {
            Event::Spawned { keeper } => {
                let life = Life { keeper, since: now, worker: None };
                if self.wanted { State::Starting(life) } else { kill(life, now, actions) }
            }
            Event::SpawnFailed => self.ended(Cause::NotSpawned, Duration::ZERO, now, actions),
            Event::Tick => self.state,
            Event::Drain | Event::Stop => {
                self.wanted = false;
                self.state
            }
            Event::WorkerStarted(_)
            | Event::Ready(_)
            | Event::WorkerDied { .. }
            | Event::WorkerLeft
            | Event::WorkerKeeps { .. }
            | Event::LinkClosed
            | Event::KeeperReaped { .. }
            | Event::WorkerReaped { .. } => self.unexpected(event, actions),
        }
    }

    fn running(&mut self, life: Life, event: Event, now: Duration, actions: &mut Vec<Action>) -> State {
        let is_ready = matches!(self.state, State::Ready(_));
        let is_draining = matches!(self.state, State::Draining(_));
        match event {
            Event::WorkerStarted(worker) if life.may_be(worker) => self.with_worker(life, Some(worker)),
            Event::Ready(worker) if is_draining && life.may_be(worker) => {
                actions.push(Action::DrainWorker);
                self.with_worker(life, Some(worker))
            }
            Event::Ready(worker) if !is_ready && life.may_be(worker) => {
                self.has_served = true;
                actions.push(Action::BecameReady(worker));
                State::Ready(Life { worker: Some(worker), ..life })
            }
            Event::WorkerDied { cause, pause } => {
                actions.push(Action::WorkerLost { cause, pause });
                self.note_failed_start(cause, actions);
                self.with_worker(life, None)
            }
            Event::WorkerLeft if life.worker.is_some() => self.with_worker(life, None),
            Event::WorkerKeeps { keeper } if life.may_have_successor(keeper) => {
                actions.push(Action::KeeperReplaced { keeper });
                self.with_worker(Life { keeper, since: now, worker: None }, None)
            }
            Event::Drain if is_draining => self.state,
            Event::Drain => {
                self.wanted = false;
                actions.extend(is_ready.then_some(Action::DrainWorker));
                State::Draining(life)
            }
            Event::Stop => {
                self.wanted = false;
                kill(life, now, actions)
            }
            // Harmless if the keeper is exiting, which is the rule; it must not live on without its link.
            Event::LinkClosed => match kill(life, now, actions) {
                State::KeeperDown(remains) => State::KeeperDown(Remains { link_open: false, ..remains }),
                other => other,
            },
            Event::KeeperReaped { .. } => self.keeper_down(life.inheritance(now), event, now, actions),
            // Workers become ours only when their keeper is dead, but it may be reaped after them.
            Event::WorkerReaped { pid } if life.worker.is_some_and(|worker| worker.pid == pid) => {
                State::KeeperDown(Remains { worker: None, ..life.inheritance(now) })
            }
            Event::Tick => self.state,
            Event::Spawned { .. }
            | Event::SpawnFailed
            | Event::WorkerStarted(_)
            | Event::Ready(_)
            | Event::WorkerLeft
            | Event::WorkerKeeps { .. }
            | Event::WorkerReaped { .. } => self.unexpected(event, actions),
        }
    }

    fn keeper_down(
        &mut self,
        mut remains: Remains,
        event: Event,
        now: Duration,
        actions: &mut Vec<Action>,
    ) -> State {
        match event {
            // Sent before the death, read after it.
            Event::WorkerStarted(worker) | Event::Ready(worker) if remains.may_bring(worker) => {
                let known = remains.worker.replace(worker).is_some();
                actions.extend(
                    remains.abandoned().filter(|_| !known).map(|worker| Action::KillWorker(worker.pid)),
                );
            }
            Event::WorkerDied { cause, pause } if remains.link_open => {
                actions.push(Action::WorkerLost { cause, pause });
                remains.worker = None;
            }
            Event::WorkerLeft if remains.link_open => remains.worker = None,
            Event::WorkerKeeps { keeper } if remains.may_have_successor(keeper) => {
                if remains.successor_until.is_some() {
                    actions.push(Action::KeeperReplaced { keeper });
                    return self.inherited(Life { keeper, since: now, worker: None });
                }
                actions.push(Action::KillKeeper(keeper));
                (remains.keeper, remains.worker) = (Some(keeper), None);
            }
            // Nobody is left to take the keeper's place.
            Event::LinkClosed if remains.link_open => {
                (remains.link_open, remains.successor_until) = (false, None);
                actions.extend(remains.abandoned().map(|worker| Action::KillWorker(worker.pid)));
            }
            Event::KeeperReaped { cause } if remains.keeper.is_some() => {
                remains.keeper = None;
                remains.cause = Some(cause);
                actions.extend(remains.abandoned().map(|worker| Action::KillWorker(worker.pid)));
            }
            // Another one's news are old: its keeper said on the link that it was dead.
            Event::WorkerReaped { pid } => {
                remains.worker = remains.worker.filter(|worker| worker.pid != pid);
            }
            Event::Drain => self.wanted = false,
            Event::Stop => {
                self.wanted = false;
                remains.successor_until = None;
                actions.extend(remains.keeper.map(Action::KillKeeper));
                actions.extend(remains.abandoned().map(|worker| Action::KillWorker(worker.pid)));
            }
            Event::Tick if remains.successor_until.is_some_and(|until| now >= until) => {
                remains.successor_until = None;
                actions.extend(remains.abandoned().map(|worker| Action::KillWorker(worker.pid)));
            }
            Event::Tick => {}
            Event::Spawned { .. }
            | Event::SpawnFailed
            | Event::WorkerStarted(_)
            | Event::Ready(_)
            | Event::WorkerDied { .. }
            | Event::WorkerLeft
            | Event::WorkerKeeps { .. }
            | Event::LinkClosed
            | Event::KeeperReaped { .. } => return self.unexpected(event, actions),
        }
        match remains {
            Remains { keeper: None, worker: None, link_open: false, lived, cause: Some(cause), .. } => {
                actions.push(Action::ForgetHoldings);
                self.ended(cause, lived, now, actions)
            }
            _ => State::KeeperDown(remains),
        }
    }

    /// The worker has become the keeper; the next worker is still to come.
    fn inherited(&self, life: Life) -> State {
        match (self.wanted, self.has_served) {
            (false, _) => State::Draining(life),
            (true, false) => State::Starting(life),
            (true, true) => State::WorkerDown(life),
        }
    }

    /// A keeper and all it had are gone, or it never came to be.
    fn ended(&mut self, cause: Cause, lived: Duration, now: Duration, actions: &mut Vec<Action>) -> State {
        if !self.wanted {
            return State::Left;
        }
        let pause = self.backoff.died(lived);
        actions.push(Action::KeeperLost { cause, pause });
        self.note_failed_start(cause, actions);
        if pause.is_zero() { spawn(actions) } else { State::BackingOff { until: now + pause } }
    }

    fn note_failed_start(&mut self, cause: Cause, actions: &mut Vec<Action>) {
        if self.has_served || !self.wanted {
            return;
        }
        self.failed_starts = self.failed_starts.saturating_add(1);
        if self.failed_starts == Self::START_ATTEMPTS {
            actions.push(Action::StartFailed { cause });
        }
    }

    /// The state of a running keeper whose worker is now `worker`.
    fn with_worker(&self, life: Life, worker: Option<Worker>) -> State {
        let life = Life { worker, ..life };
        match self.state {
            State::Starting(_) => State::Starting(life),
            State::Draining(_) => State::Draining(life),
            State::Ready(_) if worker.is_some() => State::Ready(life),
            _ => State::WorkerDown(life),
        }
    }

    fn unexpected(&self, event: Event, actions: &mut Vec<Action>) -> State {
        actions.push(Action::Unexpected(event));
        self.state
    }
}

fn spawn(actions: &mut Vec<Action>) -> State {
    actions.push(Action::SpawnKeeper);
    State::Spawning
}

fn kill(life: Life, now: Duration, actions: &mut Vec<Action>) -> State {
    actions.push(Action::KillKeeper(life.keeper));
    State::KeeperDown(life.remains(now))
}
