//! Slots in motion: feeds the state machines and does what they ask for. What is to be done is decided in
//! `slot`; here are the processes and links it is done with.

use std::os::fd::AsFd;

use holdfast_shared::ipc::message::ToWorker;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cluster::lifecycle::{Action, Cause, Event, Lifecycle, State, Worker};
use crate::host::spawn::{Order, spawn_keeper};
use crate::supervisor::{Stage, Supervisor, SupervisorError};

impl Supervisor {
    /// One event for one slot, and all that follows from it.
    pub(crate) fn step(&mut self, position: usize, event: Event) {
        let actions = self.slots[position].machine.step(event, self.now);
        for action in actions {
            self.act(position, action);
        }
    }

    /// Collects every child that has ended: keepers, and workers whose keeper died before them, which are
    /// ours since we are their subreaper.
    pub(crate) fn reap(&mut self) {
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

    pub(crate) fn on_reaped(&mut self, pid: Pid, cause: Cause) {
        if self.note_candidate_end(pid, cause) {
            return;
        }
        let is_worker = |state: State| {
            state.keeper() != Some(pid) && state.worker().is_some_and(|worker| worker.pid == pid)
        };
        let knows = |state: State| state.keeper() == Some(pid) || is_worker(state);
        let Some(position) = self.slots.iter().position(|seat| knows(seat.machine.state())) else {
            return log::debug!("child {pid} ended ({cause}); nobody here knows it");
        };
        // What it said last is on the link still, and comes first: another may be the keeper by now. The link's
        // end comes after, for the answer to that alone would be to kill the keeper, whose number may be
        // somebody else's by now.
        let end = self.read_link(position);
        let state = self.slots[position].machine.state();
        if is_worker(state) {
            self.step(position, Event::WorkerReaped { pid });
        } else if knows(state) {
            self.step(position, Event::KeeperReaped { cause });
        }
        self.note_link_end(position, end);
    }

    /// A keeper says that it is there. One that we did not start was the slot's worker, `heir`.
    pub(crate) fn on_keeper(&mut self, position: usize, heir: Worker) {
        if self.slots[position].machine.state().keeper() == Some(heir.pid) {
            return;
        }
        self.on_worker(position, heir);
        if self.looks_after(position, heir.pid) {
            self.step(position, Event::WorkerKeeps { keeper: heir.pid });
        } else if self.slots[position].machine.state().worker() == Some(heir) {
            // It has ended since.
            self.step(position, Event::WorkerReaped { pid: heir.pid });
        }
    }

    fn act(&mut self, position: usize, action: Action) {
        let slot = self.slots[position].id;
        match action {
            Action::SpawnKeeper => self.spawn(position),
            Action::KillKeeper(pid) => self.signal(position, pid, Signal::SIGKILL),
            Action::KillWorker(pid) => self.kill_abandoned(position, pid),
            Action::DrainWorker => {
                let message = match self.stage {
                    Stage::Draining(drain) => drain.message(self.now),
                    Stage::Starting | Stage::Running | Stage::Stopping { .. } => ToWorker::Leave,
                };
                self.tell(position, &message);
            }
            Action::ForgetHoldings => {
                let lost = self.slots[position].slot_lost();
                let returned = self.ledger.forget(slot);
                log::debug!("slot {slot}: {returned} holdings given back, {lost} connections died with it");
                self.remember(position);
                self.note_reported(position);
            }
            Action::BecameReady(worker) => {
                log::info!("slot {slot}: worker {} (pid {}) is ready", worker.incarnation, worker.pid);
            }
            Action::WorkerLost { cause, pause } => {
                let cause = if self.slots[position].heartbeat.is_ending() { Cause::Wedged } else { cause };
                self.slots[position].worker_died(cause, self.now);
                self.remember(position);
                log::debug!("slot {slot}: worker died of {cause}, the next one comes in {pause:?}");
                if !pause.is_zero() {
                    self.go_on_without(position);
                }
            }
            Action::KeeperReplaced { keeper } => {
                self.slots[position].keeper_replaced(self.now);
                self.remember(position);
                log::warn!(
                    "slot {slot}: keeper died; its worker {keeper} keeps the slot now, with all connections"
                );
            }
            Action::KeeperLost { cause, pause } => {
                self.slots[position].worker_died(cause, self.now);
                self.remember(position);
                log::error!(
                    "slot {slot}: keeper died of {cause}, and the slot's connections with it; the next one comes in {pause:?}"
                );
                if !pause.is_zero() {
                    self.go_on_without(position);
                }
            }
            // Clients are in: going on without this slot is better than ending them with it.
            Action::StartFailed { cause } if self.has_adopted || self.stage != Stage::Starting => {
                log::error!("slot {slot} does not start ({cause}); going on without it, and trying again");
                self.slots[position].is_given_up = true;
            }
            Action::StartFailed { cause } => {
                self.failure =
                    Some(SupervisorError::Start { slot, attempts: Lifecycle::START_ATTEMPTS, cause });
                self.abort();
            }
            Action::Unexpected(event) => {
                log::error!(
                    "slot {slot}: {event:?} cannot happen in {:?}",
                    self.slots[position].machine.state()
                );
            }
        }
    }

    fn spawn(&mut self, position: usize) {
        let order = Order {
            slot: self.slots[position].id,
            last: self.slots[position].worker.incarnation,
            rows: self.capacity.rows,
            settings: self.settings.as_fd(),
            listeners: self.listeners.of_slot(position).collect(),
            lock: self.run_dir.slots_lock(),
            rendezvous: self.run_dir.rendezvous(),
        };
        let event = match spawn_keeper(&order) {
            Ok(spawned) => {
                let keeper = spawned.keeper;
                self.slots[position].occupy(spawned);
                if let Err(error) = self.watch_link(position) {
                    log::error!("slot {}: cannot watch its link: {error}", self.slots[position].id);
                }
                Event::Spawned { keeper }
            }
            Err(error) => {
                log::error!("slot {}: {error}", self.slots[position].id);
                Event::SpawnFailed
            }
        };
        self.step(position, event);
    }

    /// Sends a signal to one of a slot's processes. Children of ours keep their numbers until they are reaped;
    /// of others only a pidfd is known not to be somebody else's.
    pub(crate) fn signal(&self, position: usize, pid: Pid, signal: Signal) {
        if self.slots[position].is_adopted {
            self.adopted_processes.signal(pid, signal);
        } else {
            send(pid, signal);
        }
    }

    /// A worker without its keeper. Its pid may be anybody's by now unless it is our child.
    fn kill_abandoned(&mut self, position: usize, pid: Pid) {
        if self.slots[position].is_adopted {
            return self.kill_adopted(position, pid);
        }
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => send(pid, Signal::SIGKILL),
            Ok(_) | Err(_) => self.step(position, Event::WorkerReaped { pid }),
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
