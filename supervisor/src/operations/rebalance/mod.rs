//! Connections moved between slots: one transfer at a time, from a worker to another over a pair of sockets made
//! here. The ledger counts them wherever they are, and whatever dies on the way. Which slot gives to which is
//! decided in `plan`; how two workers do it is `worker/src/moving`.

mod plan;
mod transfer;

use std::time::Duration;

use holdfast_shared::reason::CloseReason;

use crate::api::Reply;
use crate::api::{Answer, Failure, RebalanceReport, RebalancedSlot};
use crate::cluster::lifecycle::State;
use crate::supervisor::{Stage, Supervisor};
use plan::{Place, Step};
use transfer::Transfer;

/// Between two attempts to move what could not be moved.
const PAUSE: Duration = Duration::from_millis(100);

/// How long slots may take to serve again before the others are evened out without them.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is moved now, and what for.
#[derive(Debug, Default)]
pub(crate) struct Moving {
    last_transfer: u64,
    transfer: Option<Transfer>,
    rebalance: Option<Rebalance>,
    /// Not before this is another transfer begun.
    not_before: Duration,
    /// Why slots that retire are not empty yet, as was said last.
    obstacle: String,
}

/// Slots being evened out.
#[derive(Debug)]
struct Rebalance {
    began: Duration,
    moved: u64,
    reply: Option<Reply>,
}

impl Moving {
    /// Are connections on their way?
    pub(crate) fn is_under_way(&self) -> bool {
        self.transfer.is_some() || self.rebalance.is_some()
    }

    /// Is it this transfer that is under way?
    fn is_current(&self, transfer: u64) -> bool {
        self.transfer.as_ref().is_some_and(|current| current.is(transfer))
    }

    /// Is this slot a part of it?
    pub(crate) fn involves(&self, position: usize) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| transfer.involves(position))
    }
}

impl Supervisor {
    /// Makes slots even. Whoever asked is answered when they are.
    pub(crate) fn rebalance(&mut self, reply: Option<Reply>) {
        let refusal = if self.stage.is_ending() {
            Some("the service is shutting down")
        } else if self.stage == Stage::Starting || !self.admission_hold.is_open() {
            Some("the service is starting")
        } else if self.is_replacing() {
            Some("workers are being replaced; wait for the end of that")
        } else if self.moving.rebalance.is_some() {
            Some("another rebalance is under way; wait for its end")
        } else if self.scale.is_retiring() {
            Some("slots are being retired, which moves their connections; wait for the end of that")
        } else {
            None
        };
        match (refusal, reply) {
            (Some(refusal), Some(reply)) => reply.send(Err(Failure::new(409, refusal))),
            (Some(refusal), None) => log::warn!("not rebalancing: {refusal}"),
            (None, reply) => {
                log::info!("rebalancing {} connections", self.ledger.connections());
                self.moving.rebalance = Some(Rebalance { began: self.now, moved: 0, reply });
            }
        }
    }

    /// Are workers being replaced by others, of this program or another? Connections stay where they are then.
    pub(crate) fn is_replacing(&self) -> bool {
        self.restart.is_some() || self.is_upgrading()
    }

    /// Does what can be done now; to be called in every turn.
    pub(crate) fn continue_moves(&mut self) {
        self.watch_transfer();
        if self.stage.is_ending() {
            return self.end_rebalance(Err(Failure::new(409, "the service began to shut down")));
        }
        let may_begin = self.moving.transfer.is_none()
            && !self.is_replacing()
            && self.stage == Stage::Running
            && self.admission_hold.is_open()
            && self.now >= self.moving.not_before;
        if !may_begin {
            return;
        }
        let places = self.places();
        if let Some(step) = plan::next_to_empty(&places) {
            return self.begin_transfer(step);
        }
        let Some(rebalance) = &self.moving.rebalance else { return };
        let all_serve = places.iter().all(|place| place.serves || place.retires);
        if !all_serve && self.now < rebalance.began + PATIENCE {
            return;
        }
        match plan::next_to_even(&places) {
            Some(step) => self.begin_transfer(step),
            None => {
                let moved = rebalance.moved;
                let slot = |seat: &crate::cluster::slot::Slot| RebalancedSlot {
                    slot: seat.id.0,
                    connections: self.ledger.held_by(seat.id),
                };
                let report = RebalanceReport { moved, slots: self.slots.iter().map(slot).collect() };
                log::info!("rebalanced: {moved} connections moved");
                self.end_rebalance(Ok(Answer::Rebalance(report)));
            }
        }
    }

    /// When there is something to do even if nothing happens.
    pub(crate) fn moves_wakeup(&self) -> Option<Duration> {
        (self.moving.is_under_way() || self.scale.is_retiring()).then(|| self.now + PAUSE)
    }

    /// Connections that nobody holds and that nobody has seen end: they were lost between two slots. Counted
    /// with the slot at `position`.
    pub(crate) fn count_vanished(&mut self, position: usize) {
        let all = || self.slots.iter().chain(&self.retired);
        let came: u64 = all().map(|seat| seat.admitted.accepted).sum();
        let went: u64 = all().flat_map(|seat| seat.admitted.closed).sum();
        let vanished = came.saturating_sub(went).saturating_sub(self.ledger.connections());
        if vanished == 0 {
            return;
        }
        let seat = &mut self.slots[position];
        log::error!("slot {}: {vanished} connections were lost on their way to another slot", seat.id);
        seat.base.closed[CloseReason::WorkerLost.index()] += vanished;
        seat.base.lost += vanished;
        seat.admitted.closed[CloseReason::WorkerLost.index()] += vanished;
        self.remember(position);
    }

    /// A transfer is over, with so many moved.
    fn note_moved(&mut self, step: Step, moved: u32, stopped: Option<String>) {
        if let Some(rebalance) = &mut self.moving.rebalance {
            rebalance.moved += u64::from(moved);
        }
        if moved > 0 {
            self.moving.obstacle.clear();
            return;
        }
        self.moving.not_before = self.now + PAUSE;
        let reason = stopped.unwrap_or_else(|| "none of them can be moved now".to_owned());
        let (from, to) = (self.slots.get(step.from), self.slots.get(step.to));
        let (Some(from), Some(to)) = (from, to) else { return };
        let obstacle =
            format!("slot {} keeps connections that slot {} was to have: {reason}", from.id, to.id);
        if self.scale.retires(step.from) {
            if obstacle != self.moving.obstacle {
                log::warn!("{obstacle}; trying again");
                self.moving.obstacle = obstacle;
            }
        } else if self
            .moving
            .rebalance
            .as_ref()
            .is_some_and(|rebalance| self.now >= rebalance.began + PATIENCE)
        {
            self.end_rebalance(Err(Failure::new(503, obstacle)));
        }
    }

    fn end_rebalance(&mut self, answer: Result<Answer, Failure>) {
        let Some(rebalance) = self.moving.rebalance.take() else { return };
        if let Err(failure) = &answer {
            log::warn!("rebalance stopped after {} connections: {failure}", rebalance.moved);
        }
        if let Some(reply) = rebalance.reply {
            reply.send(answer);
        }
    }

    fn places(&self) -> Vec<Place> {
        let place = |(position, seat): (usize, &crate::cluster::slot::Slot)| Place {
            held: self.ledger.held_by(seat.id),
            serves: matches!(seat.machine.state(), State::Ready(_)) && !seat.heartbeat.is_wedged(),
            retires: self.scale.retires(position),
        };
        self.slots.iter().enumerate().map(place).collect()
    }
}
