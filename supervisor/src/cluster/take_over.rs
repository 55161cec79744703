//! Slots of an earlier supervisor among the others: each goes on with what is remembered of it, its processes,
//! which are not our children, are looked after, and nobody is let in before all have said whom they hold.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use holdfast_shared::id::{Incarnation, SlotId, Ticket};
use holdfast_shared::ipc::link::SupervisorEnd;
use holdfast_shared::ipc::message::{ToWorker, Verdict};
use holdfast_shared::reason::Rejection;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use socket2::Socket;

use super::admission_hold::Held;
use super::lifecycle::{Cause, Event, Lifecycle, State, Worker};
use super::slot::Slot;
use super::steering::Steering;
use super::{ADOPTED_PROCESSES, Cluster, adopted};

/// A slot that was taken over.
#[derive(Debug)]
pub(crate) struct Adopted {
    pub(crate) slot: SlotId,
    pub(crate) worker: Worker,
    pub(crate) keeper: Pid,
    /// Our end of its link, not read beyond its first word.
    pub(crate) link: SupervisorEnd,
    pub(crate) table: OwnedFd,
    /// In the order of `addresses`.
    pub(crate) listeners: Vec<Socket>,
    pub(crate) addresses: Vec<SocketAddr>,
    /// The lock of the run directory's slots, as all of them hold it.
    pub(crate) lock: OwnedFd,
}

impl Cluster {
    /// Gives each adopted slot its place, and notes what became of the others.
    pub(super) fn take_over_slots(&mut self, adopted: Vec<Adopted>) {
        let mut lost: Vec<SlotId> = self.slots.ids().collect();
        for adopted in adopted {
            lost.retain(|&slot| slot != adopted.slot);
            self.take_over(adopted);
        }
        for slot in lost {
            // It died unseen, if it ever lived.
            let moved_away = self.state.slot(slot).moved_away;
            let lost = self.slots[slot].slot_lost_unseen(moved_away);
            if lost > 0 {
                log::error!("slot {slot}: died while there was no supervisor, with {lost} connections");
            }
            self.remember(slot);
        }
        // Slots beyond those there are: what they have counted stays in the totals.
        for number in (self.slots.0.len()..self.state.known()).rev() {
            let Ok(slot) = u16::try_from(number).map(SlotId) else { continue };
            let remembered = self.state.slot(slot);
            let mut slot = Slot::recalled(slot, &remembered);
            slot.slot_lost_unseen(remembered.moved_away);
            self.state.remember(&slot, 0);
            self.retired.push(slot);
        }
        let admitted = self.slots().map(|slot| slot.book.accepted()).sum();
        self.steering = Steering::new(self.listeners.places(), admitted);
    }

    /// Writes down what must outlive this process.
    pub(super) fn remember(&mut self, slot: SlotId) {
        self.state.remember(&self.slots[slot], self.ledger.held_by(slot));
    }

    fn take_over(&mut self, adopted: Adopted) {
        let Adopted { slot, worker, keeper, link, table, .. } = adopted;
        let expected = self.state.slot(slot).expected.max(1);
        let Some(record) = self.slots.get_mut(slot) else { return };
        record.life = Lifecycle::adopted(keeper, worker, self.now);
        record.take_over(worker, expected, link, table);
        record.is_adopted = !adopted::is_child(keeper);
        if record.is_adopted {
            self.adopted_processes.watch(keeper, None, &self.registry, ADOPTED_PROCESSES);
            self.adopted_processes.watch(worker.pid, Some(keeper), &self.registry, ADOPTED_PROCESSES);
        }
        if let Err(error) = self.watch_link(slot) {
            log::error!("slot {slot}: cannot watch its link: {error}");
        }
        self.remember(slot);
        let Worker { pid, incarnation } = worker;
        log::info!("slot {slot}: adopted with worker {incarnation} (pid {pid}) and keeper {keeper}");
    }

    /// A new worker of an adopted keeper is to be looked after.
    pub(super) fn watch_worker(&mut self, slot: SlotId, worker: Worker) {
        if self.slots[slot].is_adopted {
            let keeper = self.slots[slot].state().keeper();
            self.adopted_processes.watch(worker.pid, keeper, &self.registry, ADOPTED_PROCESSES);
        }
    }

    /// Will the end of this process, of a slot of ours, be told? It is when the process has not ended, or not
    /// been asked for.
    pub(super) fn looks_after(&mut self, slot: SlotId, pid: Pid) -> bool {
        if !self.slots[slot].is_adopted {
            return adopted::is_child(pid);
        }
        if !self.adopted_processes.watches(pid) && self.run_dir.slot_holders().contains(&pid) {
            self.adopted_processes.watch(pid, None, &self.registry, ADOPTED_PROCESSES);
        }
        self.adopted_processes.watches(pid)
    }

    /// Takes note of adopted processes that have ended.
    pub(super) fn reap_adopted(&mut self) {
        for pid in self.adopted_processes.ended() {
            let known = |slot: &Slot| {
                let state = slot.state();
                state.keeper() == Some(pid)
                    // While its keeper lives, a worker's end is the keeper's to tell.
                    || (matches!(state, State::KeeperDown(_))
                        && state.worker().is_some_and(|worker| worker.pid == pid))
            };
            if self.slots().any(known) {
                self.on_reaped(pid, Cause::Unknown);
            }
        }
    }

    /// Kills the worker of an adopted keeper that is dead.
    pub(super) fn kill_adopted(&mut self, slot: SlotId, pid: Pid) {
        if !self.adopted_processes.signal(pid, Signal::SIGKILL) {
            self.step(slot, Event::WorkerReaped { pid });
        }
    }

    /// What the slot had dies whenever it is started. The others become ready without it; if it was adopted and
    /// has not said whom it holds, as many as its table says are counted until it does.
    pub(super) fn go_on_without(&mut self, slot: SlotId) {
        if !self.has_adopted {
            return;
        }
        self.slots[slot].is_given_up = true;
        if !self.admission_hold.awaits(slot) {
            return;
        }
        let connections = self.slots[slot].connections_at_most();
        log::error!(
            "slot {slot}: its workers die before they say whom they hold; counting {connections} connections of \
             unknown addresses until one does"
        );
        self.ledger.charge(slot, connections);
        self.note_reported(slot);
    }

    /// The slot has said whom it holds, or holds nobody any more. With the last of those adopted, clients who
    /// have asked meanwhile get their answers.
    pub(super) fn note_reported(&mut self, slot: SlotId) {
        let Some(held) = self.admission_hold.reported(slot) else { return };
        log::info!("all adopted slots are counted: {} connections", self.ledger.connections());
        // Who left a slot that has not reported yet has not vanished.
        if !self.slots().any(|slot| slot.is_given_up) {
            self.count_vanished(slot);
        }
        for Held { slot, incarnation, tickets } in held {
            self.on_admit(slot, incarnation, tickets);
        }
    }

    /// Keeps tickets until all adopted slots have reported. Those that are too many are refused: a ticket without
    /// an answer would stay with its worker for good.
    pub(super) fn hold(&mut self, slot: SlotId, incarnation: Incarnation, tickets: Vec<(Ticket, IpAddr)>) {
        let Err(Held { tickets, .. }) = self.admission_hold.hold(Held { slot, incarnation, tickets }) else {
            return;
        };
        log::warn!("slot {slot}: too many clients wait to be let in");
        let refused = Verdict::Refused(Rejection::PendingHandshakes);
        let verdicts = tickets.into_iter().map(|(ticket, _)| (ticket, refused)).collect();
        self.tell_worker(slot, incarnation, &ToWorker::Verdicts { verdicts }, &[]);
    }
}
