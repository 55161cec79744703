//! Making slots even: one transfer after the other, from the fullest to the emptiest, until there is nothing to
//! gain. Which slot gives to which is decided in `plan`, for slots that retire as well.

mod plan;

use std::time::Duration;

use super::{Kind, Operation, Turn};
use crate::api::{Answer, Failure, RebalanceReport, Reply};
use crate::cluster::{Cluster, News, Slot};
pub(super) use plan::{Place, Step, next_to_empty};

/// Between two attempts to move what could not be moved.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// How long slots may take to serve again before the others are evened out without them.
const PATIENCE: Duration = Duration::from_secs(10);

/// Slots being made even.
#[derive(Debug)]
pub(super) struct Rebalance {
    began: Duration,
    moved: u64,
    /// Not before this is another transfer begun.
    not_before: Duration,
    reply: Option<Reply>,
}

impl Rebalance {
    pub(super) fn begin(cluster: &Cluster, reply: Option<Reply>) -> Self {
        log::info!("rebalancing {} connections", cluster.connections());
        Self { began: cluster.now(), moved: 0, not_before: Duration::ZERO, reply }
    }

    fn is_late(&self, cluster: &Cluster) -> bool {
        cluster.now() >= self.began + PATIENCE
    }

    fn end(&mut self, answer: Result<Answer, Failure>) -> bool {
        match &answer {
            Ok(_) => log::info!("rebalanced: {} connections moved", self.moved),
            Err(failure) => log::warn!("rebalance stopped after {} connections: {failure}", self.moved),
        }
        if let Some(reply) = self.reply.take() {
            reply.send(answer);
        }
        true
    }
}

impl Operation for Rebalance {
    fn kind(&self) -> Option<Kind> {
        Some(Kind::Rebalance)
    }

    fn deadline(&self, cluster: &Cluster) -> Option<Duration> {
        Some(cluster.now() + PAUSE)
    }

    fn turn(&mut self, cluster: &mut Cluster, turn: Turn<'_>) -> bool {
        for news in turn.news {
            let News::Moved { from, moved, .. } = news else { continue };
            self.moved += u64::from(*moved);
            if *moved == 0 {
                self.not_before = cluster.now() + PAUSE;
                let retires = cluster.slot(*from).is_some_and(Slot::retires);
                if !retires && self.is_late(cluster) {
                    return self.end(Err(Failure::new(503, obstacle(news))));
                }
            }
        }
        if turn.running.is_ending() {
            return self.end(Err(Failure::new(409, "the service began to shut down")));
        }
        if turn.running.admits(Kind::Move).is_err() || cluster.now() < self.not_before {
            return false;
        }
        let places = places(cluster);
        let all_serve = places.iter().all(|place| place.serves || place.retires);
        if next_to_empty(&places).is_some() || (!all_serve && !self.is_late(cluster)) {
            return false;
        }
        if let Some(step) = plan::next_to_even(&places) {
            begin_transfer(cluster, &step);
            return false;
        }
        self.end(Ok(Answer::Rebalance(RebalanceReport { moved: self.moved, slots: cluster.shares() })))
    }
}

/// What every slot is like now.
pub(super) fn places(cluster: &Cluster) -> Vec<Place> {
    let place = |slot: &Slot| Place {
        id: slot.id(),
        held: cluster.held_by(slot.id()),
        serves: slot.is_awake(),
        retires: slot.retires(),
    };
    cluster.slots().map(place).collect()
}

pub(super) fn begin_transfer(cluster: &mut Cluster, step: &Step) {
    cluster.begin_transfer(step.from, step.to, step.count);
}

/// Why nothing was moved.
pub(super) fn obstacle(moved: &News) -> String {
    let News::Moved { from, to, stopped, .. } = moved else { return String::new() };
    let reason = stopped.as_deref().unwrap_or("none of them can be moved now");
    format!("slot {from} keeps connections that slot {to} was to have: {reason}")
}
