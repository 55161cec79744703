//! Adopted slots among the others: each gets its seat, with what is remembered of it, and the processes that
//! are not our children are looked after.

use std::collections::BTreeSet;
use std::net::IpAddr;

use holdfast_shared::id::{Incarnation, SlotId, Ticket};
use holdfast_shared::ipc::message::{ToWorker, Verdict};
use holdfast_shared::reason::Rejection;
use mio::Token;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::admission_hold::Held;
use super::adopted;
use crate::cluster::lifecycle::{Cause, Event, Lifecycle, State, Worker};
use crate::cluster::slot::Slot;
use crate::cluster::steering::Steering;
use crate::operations::adoption::Adopted;
use crate::supervisor::Supervisor;

/// When a process ends that is no child of ours.
pub(crate) const ADOPTED_PROCESSES: Token = Token(usize::MAX - 2);

impl Supervisor {
    /// Gives each adopted slot its seat, and notes what became of the others.
    pub(crate) fn take_over_slots(&mut self, adopted: Vec<Adopted>) {
        for (position, seat) in self.slots.iter_mut().enumerate() {
            seat.recall(&self.state.slot(position));
        }
        let mut empty: BTreeSet<usize> = (0..self.slots.len()).collect();
        for adopted in adopted {
            empty.remove(&usize::from(adopted.slot.0));
            self.seat(adopted);
        }
        for position in empty {
            self.note_lost_unseen(position);
        }
        self.recall_retired();
        let admitted = self.slots.iter().map(|seat| seat.admitted.accepted).sum();
        self.steering = Steering::new(self.listeners.places(), admitted);
    }

    /// Writes down what must outlive this process.
    pub(crate) fn remember(&mut self, position: usize) {
        let seat = &self.slots[position];
        self.state.remember(position, seat, self.ledger.held_by(seat.id));
    }

    /// Slots beyond those there are: what they have counted stays in the totals.
    fn recall_retired(&mut self) {
        for position in (self.slots.len()..self.state.known()).rev() {
            let Ok(number) = u16::try_from(position) else { continue };
            let remembered = self.state.slot(position);
            let mut seat = Slot::new(SlotId(number));
            seat.recall(&remembered);
            seat.slot_lost_unseen(remembered.moved_away);
            self.state.remember(position, &seat, 0);
            self.retired.push(seat);
        }
    }

    fn seat(&mut self, adopted: Adopted) {
        let Adopted { slot, worker, keeper, link, table, .. } = adopted;
        let position = usize::from(slot.0);
        let now = self.now;
        let Some(seat) = self.slots.get_mut(position) else { return };
        let expected = self.state.slot(position).expected.max(1);
        seat.machine = Lifecycle::adopted(keeper, worker, now);
        seat.take_over(worker, expected, link, table);
        seat.is_adopted = !adopted::is_child(keeper);
        if seat.is_adopted {
            let registry = self.poll.registry();
            self.adopted_processes.watch(keeper, None, registry, ADOPTED_PROCESSES);
            self.adopted_processes.watch(worker.pid, Some(keeper), registry, ADOPTED_PROCESSES);
        }
        if let Err(error) = self.watch_link(position) {
            log::error!("slot {slot}: cannot watch its link: {error}");
        }
        self.remember(position);
        log::info!(
            "slot {slot}: adopted with worker {} (pid {}) and keeper {keeper}",
            worker.incarnation,
            worker.pid
        );
    }

    /// A slot that nobody brought died unseen, if it ever lived.
    fn note_lost_unseen(&mut self, position: usize) {
        let seat = &mut self.slots[position];
        let lost = seat.slot_lost_unseen(self.state.slot(position).moved_away);
        if lost > 0 {
            log::error!("slot {}: died while there was no supervisor, with {lost} connections", seat.id);
        }
        self.remember(position);
    }

    /// A new worker of an adopted keeper is to be looked after.
    pub(crate) fn watch_worker(&mut self, position: usize, worker: Worker) {
        let seat = &self.slots[position];
        if seat.is_adopted {
            let keeper = seat.machine.state().keeper();
            self.adopted_processes.watch(worker.pid, keeper, self.poll.registry(), ADOPTED_PROCESSES);
        }
    }

    /// Handoff the end of this process, of a slot of ours, be told? It is when the process has not ended, or not
    /// been asked for.
    pub(crate) fn looks_after(&mut self, position: usize, pid: Pid) -> bool {
        if !self.slots[position].is_adopted {
            return adopted::is_child(pid);
        }
        if !self.adopted_processes.watches(pid) && self.run_dir.slot_holders().contains(&pid) {
            self.adopted_processes.watch(pid, None, self.poll.registry(), ADOPTED_PROCESSES);
        }
        self.adopted_processes.watches(pid)
    }

    /// Takes note of adopted processes that have ended.
    pub(crate) fn reap_adopted(&mut self) {
        let ended = self.adopted_processes.ended();
        for pid in ended {
            let known = |seat: &Slot| {
                let state = seat.machine.state();
                state.keeper() == Some(pid)
                    // While its keeper lives, a worker's end is the keeper's to tell.
                    || (matches!(state, State::KeeperDown(_))
                        && state.worker().is_some_and(|worker| worker.pid == pid))
            };
            if self.slots.iter().any(known) {
                self.on_reaped(pid, Cause::Unknown);
            }
        }
    }

    /// Kills the worker of an adopted keeper that is dead.
    pub(crate) fn kill_adopted(&mut self, position: usize, pid: Pid) {
        if !self.adopted_processes.signal(pid, Signal::SIGKILL) {
            self.step(position, Event::WorkerReaped { pid });
        }
    }

    /// What the slot had dies whenever it is started. The others become ready without it; if it was adopted and
    /// has not said whom it holds, as many as its table says are counted until it does.
    pub(crate) fn go_on_without(&mut self, position: usize) {
        if !self.has_adopted {
            return;
        }
        let seat = &mut self.slots[position];
        seat.is_given_up = true;
        if !self.admission_hold.awaits(position) {
            return;
        }
        let (slot, connections) = (seat.id, seat.connections_at_most());
        log::error!(
            "slot {slot}: its workers die before they say whom they hold; counting {connections} connections of \
             unknown addresses until one does"
        );
        self.ledger.charge(slot, connections);
        self.note_reported(position);
    }

    /// The slot has said whom it holds, or holds nobody any more. With the last of those adopted, clients who
    /// have asked meanwhile get their answers.
    pub(crate) fn note_reported(&mut self, position: usize) {
        let Some(held) = self.admission_hold.reported(position) else { return };
        log::info!("all adopted slots are counted: {} connections", self.ledger.connections());
        // Who left a slot that has not reported yet has not vanished.
        if !self.slots.iter().any(|seat| seat.is_given_up) {
            self.count_vanished(position);
        }
        for Held { position, incarnation, tickets } in held {
            self.on_admit(position, incarnation, tickets);
        }
    }

    /// Keeps tickets until all adopted slots have reported. Those that are too many are refused: a ticket without
    /// an answer would stay with its worker for good.
    pub(crate) fn hold(&mut self, position: usize, incarnation: Incarnation, tickets: Vec<(Ticket, IpAddr)>) {
        let Err(Held { tickets, .. }) = self.admission_hold.hold(Held { position, incarnation, tickets })
        else {
            return;
        };
        log::warn!("slot {}: too many clients wait to be let in", self.slots[position].id);
        let refused = Verdict::Refused(Rejection::PendingHandshakes);
        let verdicts = tickets.into_iter().map(|(ticket, _)| (ticket, refused)).collect();
        self.tell_worker(position, incarnation, &ToWorker::Verdicts { verdicts }, &[]);
    }
}
