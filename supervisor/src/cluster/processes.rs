//! Slots in motion: feeds the state machines and does what they ask for. What is to be done is decided in
//! `lifecycle`; here are the processes and links it is done with.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use holdfast_shared::id::SlotId;
use mio::unix::SourceFd;
use mio::{Interest, Token};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::lifecycle::{Action, Cause, Event, State, Worker};
use super::slot::KEEPER_DIED;
use super::{Cluster, News, Phase};
use crate::host::spawn::{Order, spawn_keeper};

impl Cluster {
    /// One event for one slot, and all that follows from it.
    pub(super) fn step(&mut self, slot: SlotId, event: Event) {
        let actions = self.slots[slot].life.step(event, self.now);
        for action in actions {
            self.act(slot, action);
        }
    }

    /// Collects every child that has ended: keepers, and workers whose keeper died before them, which are
    /// ours since we are their subreaper.
    pub(super) fn reap(&mut self) {
        self.reap_adopted();
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => {
                    if let (Some(pid), Some(cause)) = (status.pid(), cause_of(status)) {
                        self.on_reaped(pid, cause);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    log::error!("cannot wait for children: {error}");
                    return;
                }
            }
        }
    }

    pub(super) fn on_reaped(&mut self, pid: Pid, cause: Cause) {
        let is_worker = |state: State| {
            state.keeper() != Some(pid) && state.worker().is_some_and(|worker| worker.pid == pid)
        };
        let knows = |state: State| state.keeper() == Some(pid) || is_worker(state);
        let Some(slot) = self.slots().find(|slot| knows(slot.state())).map(|slot| slot.id) else {
            log::debug!("child {pid} ended ({cause}); it is no slot's");
            return self.news.push(News::ChildEnded { pid, cause });
        };
        // What it said last is on the link still, and comes first: another may be the keeper by now. The link's
        // end comes after, for the answer to that alone would be to kill the keeper, whose number may be
        // somebody else's by now.
        let end = self.read_link(slot);
        let state = self.slots[slot].state();
        if is_worker(state) {
            self.step(slot, Event::WorkerReaped { pid });
        } else if knows(state) {
            self.step(slot, Event::KeeperReaped { cause });
        }
        self.note_link_end(slot, end);
    }

    /// A keeper says that it is there. One that we did not start was the slot's worker.
    pub(super) fn on_keeper(&mut self, slot: SlotId, keeper: Worker) {
        if self.slots[slot].state().keeper() == Some(keeper.pid) {
            return;
        }
        self.on_worker(slot, keeper);
        if self.looks_after(slot, keeper.pid) {
            self.step(slot, Event::WorkerKeeps { keeper: keeper.pid });
        } else if self.slots[slot].state().worker() == Some(keeper) {
            // It has ended since.
            self.step(slot, Event::WorkerReaped { pid: keeper.pid });
        }
    }

    fn act(&mut self, slot: SlotId, action: Action) {
        match action {
            Action::SpawnKeeper => self.spawn(slot),
            Action::KillKeeper(pid) => self.signal(slot, pid, Signal::SIGKILL),
            Action::KillWorker(pid) => self.kill_abandoned(slot, pid),
            Action::DrainWorker => {
                self.tell(slot, &self.phase.last_order(self.now));
            }
            Action::ForgetHoldings => {
                self.lose_way(slot);
                let returned = self.ledger.forget(slot);
                let lost = self.slots[slot].slot_lost(returned);
                log::debug!("slot {slot}: {returned} holdings given back, {lost} connections died with it");
                self.remember(slot);
                self.note_reported(slot);
            }
            Action::BecameReady(worker) => {
                log::info!("slot {slot}: worker {} (pid {}) is ready", worker.incarnation, worker.pid);
            }
            Action::WorkerLost { cause, pause } => {
                let cause = if self.slots[slot].heartbeat.is_ending() { Cause::Wedged } else { cause };
                self.slots[slot].on_worker_death(cause, self.now);
                self.remember(slot);
                log::debug!("slot {slot}: worker died of {cause}, the next one comes in {pause:?}");
                if !pause.is_zero() {
                    self.go_on_without(slot);
                }
            }
            Action::KeeperReplaced { keeper } => {
                self.slots[slot].on_worker_end(KEEPER_DIED, self.now);
                self.remember(slot);
                log::warn!(
                    "slot {slot}: keeper died; its worker {keeper} keeps the slot now, with all connections"
                );
            }
            Action::KeeperLost { cause, pause } => {
                self.slots[slot].on_worker_death(cause, self.now);
                self.remember(slot);
                log::error!(
                    "slot {slot}: keeper died of {cause}, and the slot's connections with it; the next one comes in {pause:?}"
                );
                if !pause.is_zero() {
                    self.go_on_without(slot);
                }
            }
            // Clients are in: going on without this slot is better than ending them with it.
            Action::StartFailed { cause } if self.has_adopted || self.phase != Phase::Starting => {
                log::error!("slot {slot} does not start ({cause}); going on without it, and trying again");
                self.slots[slot].is_given_up = true;
            }
            Action::StartFailed { cause } => self.news.push(News::StartFailed { slot, cause }),
            Action::Unexpected(event) => {
                log::error!("slot {slot}: {event:?} cannot happen in {:?}", self.slots[slot].state());
            }
        }
    }

    fn spawn(&mut self, slot: SlotId) {
        let order = Order {
            slot,
            last: self.slots[slot].worker.incarnation,
            rows: self.capacity.rows,
            settings: self.settings.as_fd(),
            listeners: self.listeners.of_slot(slot).collect(),
            lock: self.run_dir.slots_lock(),
            reconnect_socket: self.run_dir.reconnect_socket(),
        };
        let event = match spawn_keeper(&order) {
            Ok(spawned) => {
                let keeper = spawned.keeper;
                self.slots[slot].occupy(spawned);
                if let Err(error) = self.watch_link(slot) {
                    log::error!("slot {slot}: cannot watch its link: {error}");
                }
                Event::Spawned { keeper }
            }
            Err(error) => {
                log::error!("slot {slot}: {error}");
                Event::SpawnFailed
            }
        };
        self.step(slot, event);
    }

    /// Watches a slot's link.
    pub(super) fn watch_link(&self, slot: SlotId) -> io::Result<()> {
        let Some(link) = &self.slots[slot].link else { return Ok(()) };
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut SourceFd(&link.as_raw_fd()), Token(slot.0.into()), interest)
    }

    /// Sends a signal to one of a slot's processes. Children of ours keep their numbers until they are reaped;
    /// of others only a pidfd is known not to be somebody else's.
    pub(super) fn signal(&self, slot: SlotId, pid: Pid, signal: Signal) {
        if self.slots[slot].is_adopted {
            self.adopted_processes.signal(pid, signal);
        } else {
            send(pid, signal);
        }
    }

    /// A worker without its keeper. Its pid may be anybody's by now unless it is our child.
    fn kill_abandoned(&mut self, slot: SlotId, pid: Pid) {
        if self.slots[slot].is_adopted {
            return self.kill_adopted(slot, pid);
        }
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => send(pid, Signal::SIGKILL),
            Ok(_) | Err(_) => self.step(slot, Event::WorkerReaped { pid }),
        }
    }
}

fn send(pid: Pid, signal: Signal) {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => log::error!("cannot send {signal} to process {pid}: {error}"),
    }
}

fn cause_of(status: WaitStatus) -> Option<Cause> {
    match status {
        WaitStatus::Exited(_, status) => Some(Cause::Exit(status)),
        WaitStatus::Signaled(_, signal, _) => Some(Cause::Signal(signal as i32)),
        _ => None,
    }
}
