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

use super::gate::Held;
use super::{Adopted, stepchildren};
use crate::seat::Seat;
use crate::slot::{Cause, Event, Slot, State, Worker};
use crate::steering::Steering;
use crate::supervisor::Supervisor;

/// When a process ends that is no child of ours.
pub(crate) const STEPCHILDREN: Token = Token(usize::MAX - 2);

impl Supervisor {
    /// Gives each adopted slot its seat, and notes what became of the others.
    pub(crate) fn fill_seats(&mut self, adopted: Vec<Adopted>) {
        for (position, seat) in self.seats.iter_mut().enumerate() {
            seat.recall(&self.state.slot(position));
        }
        let mut empty: BTreeSet<usize> = (0..self.seats.len()).collect();
        for adopted in adopted {
            empty.remove(&usize::from(adopted.slot.0));
            self.seat(adopted);
        }
        for position in empty {
            self.seat_empty(position);
        }
        self.recall_retired();
        let admitted = self.seats.iter().map(|seat| seat.admitted.accepted).sum();
        self.steering = Steering::new(self.listeners.places(), admitted);
    }

    /// Writes down what must outlive this process.
    pub(crate) fn remember(&mut self, position: usize) {
        let seat = &self.seats[position];
        self.state.remember(position, seat, self.ledger.held_by(seat.id));
    }

    /// Slots beyond those there are: what they have counted stays in the totals.
    fn recall_retired(&mut self) {
        for position in (self.seats.len()..self.state.known()).rev() {
            let Ok(number) = u16::try_from(position) else { continue };
            let remembered = self.state.slot(position);
            let mut seat = Seat::new(SlotId(number));
            seat.recall(&remembered);
            seat.bury_unseen(remembered.moved_away);
            self.state.remember(position, &seat, 0);
            self.retired.push(seat);
        }
    }

    fn seat(&mut self, adopted: Adopted) {
        let Adopted { slot, worker, keeper, link, table, .. } = adopted;
        let position = usize::from(slot.0);
        let now = self.now;
        let Some(seat) = self.seats.get_mut(position) else { return };
        let expected = self.state.slot(position).expected.max(1);
        seat.machine = Slot::adopted(keeper, worker, now);
        seat.take_over(worker, expected, link, table);
        seat.is_stepchild = !stepchildren::is_child(keeper);
        if seat.is_stepchild {
            let registry = self.poll.registry();
            self.stepchildren.watch(keeper, None, registry, STEPCHILDREN);
            self.stepchildren.watch(worker.pid, Some(keeper), registry, STEPCHILDREN);
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
    fn seat_empty(&mut self, position: usize) {
        let seat = &mut self.seats[position];
        let lost = seat.bury_unseen(self.state.slot(position).moved_away);
        if lost > 0 {
            log::error!("slot {}: died while there was no supervisor, with {lost} connections", seat.id);
        }
        self.remember(position);
    }

    /// A new worker of an adopted keeper is to be looked after.
    pub(crate) fn watch_worker(&mut self, position: usize, worker: Worker) {
        let seat = &self.seats[position];
        if seat.is_stepchild {
            let keeper = seat.machine.state().keeper();
            self.stepchildren.watch(worker.pid, keeper, self.poll.registry(), STEPCHILDREN);
        }
    }

    /// Will the end of this process, of a slot of ours, be told? It is when the process has not ended, or not
    /// been asked for.
    pub(crate) fn looks_after(&mut self, position: usize, pid: Pid) -> bool {
        if !self.seats[position].is_stepchild {
            return stepchildren::is_child(pid);
        }
        if !self.stepchildren.watches(pid) && self.run_dir.slot_holders().contains(&pid) {
            self.stepchildren.watch(pid, None, self.poll.registry(), STEPCHILDREN);
        }
        self.stepchildren.watches(pid)
    }

    /// Takes note of adopted processes that have ended.
    pub(crate) fn reap_stepchildren(&mut self) {
        let ended = self.stepchildren.ended();
        for pid in ended {
            let known = |seat: &Seat| {
                let state = seat.machine.state();
                state.keeper() == Some(pid)
                    // While its keeper lives, a worker's end is the keeper's to tell.
                    || (matches!(state, State::KeeperDown(_))
                        && state.worker().is_some_and(|worker| worker.pid == pid))
            };
            if self.seats.iter().any(known) {
                self.on_reaped(pid, Cause::Unknown);
            }
        }
    }

    /// Kills the worker of an adopted keeper that is dead.
    pub(crate) fn kill_stepchild(&mut self, position: usize, pid: Pid) {
        if !self.stepchildren.signal(pid, Signal::SIGKILL) {
            self.step(position, Event::OrphanReaped { pid });
        }
    }

    /// What the slot had dies whenever it is started. The others become ready without it; if it was adopted and
    /// has not said whom it holds, as many as its table says are counted until it does.
    pub(crate) fn go_on_without(&mut self, position: usize) {
        if !self.has_adopted {
            return;
        }
        let seat = &mut self.seats[position];
        seat.is_given_up = true;
        if !self.gate.awaits(position) {
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
        let Some(held) = self.gate.reported(position) else { return };
        log::info!("all adopted slots are counted: {} connections", self.ledger.connections());
        // Who left a slot that has not reported yet has not vanished.
        if !self.seats.iter().any(|seat| seat.is_given_up) {
            self.count_vanished(position);
        }
        for Held { position, incarnation, tickets } in held {
            self.on_admit(position, incarnation, tickets);
        }
    }

    /// Keeps tickets until all adopted slots have reported. Those that are too many are refused: a ticket without
    /// an answer would stay with its worker for good.
    pub(crate) fn hold(&mut self, position: usize, incarnation: Incarnation, tickets: Vec<(Ticket, IpAddr)>) {
        let Err(Held { tickets, .. }) = self.gate.hold(Held { position, incarnation, tickets }) else {
            return;
        };
        log::warn!("slot {}: too many clients wait to be let in", self.seats[position].id);
        let refused = Verdict::Refused(Rejection::PendingHandshakes);
        let verdicts = tickets.into_iter().map(|(ticket, _)| (ticket, refused)).collect();
        self.tell(position, &ToWorker::Verdicts { incarnation, verdicts });
    }
}
