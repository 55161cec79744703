//! How many slots there are, changed while they serve. New ones join the groups of listeners and fill up. Those
//! that are too many, always the highest, retire: they get no new clients, let in who was on the way, pass their
//! connections to the others, and leave when they are empty. Not a client of theirs notices.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_shared::id::SlotId;

use super::rebalance::{PAUSE, begin_transfer, next_to_empty, obstacle, places};
use super::{Kind, Operation, Turn};
use crate::cluster::lifecycle::State;
use crate::cluster::{Cluster, News, Phase, Slot};

/// How long a slot that gets no new clients waits for those whose first packet has reached it: their handshake
/// takes a round trip, or, if an answer to it got lost, the second after which the kernel sends another.
const LAST_CALL: Duration = Duration::from_millis(1500);

/// Slots on their way in and out.
#[derive(Debug, Default)]
pub(super) struct Resize {
    retiring: BTreeMap<SlotId, Retirement>,
    /// New slots are to be filled from the others as soon as all serve.
    fill: bool,
    /// Not before this is another transfer begun.
    not_before: Duration,
    /// Why slots that retire are not empty yet, as was said last.
    obstacle: String,
}

#[derive(Debug)]
struct Retirement {
    since: Duration,
    /// It is empty, and was told to leave.
    is_leaving: bool,
}

impl Resize {
    /// From now on so many slots are wanted; there are listeners for all of them.
    pub(super) fn begin(&mut self, cluster: &mut Cluster, wanted: u16) {
        self.fill |= cluster.want(wanted);
    }

    /// Are there new slots, and do all serve, so that they can be filled? Said once.
    pub(super) fn wants_rebalance(&mut self, cluster: &Cluster) -> bool {
        let all_serve = || cluster.slots().all(|slot| matches!(slot.state(), State::Ready(_)));
        let is_time = self.fill && cluster.phase() == Phase::Running && cluster.is_counted() && all_serve();
        self.fill &= !is_time;
        is_time
    }

    fn begin_retirements(&mut self, cluster: &mut Cluster) {
        let wanted = SlotId(cluster.wanted());
        // One that is wanted again stays, unless it has been told to leave.
        for (slot, _) in self.retiring.extract_if(..wanted, |_, retirement| !retirement.is_leaving) {
            cluster.set_retiring(slot, false);
        }
        let new: Vec<SlotId> = cluster
            .slots()
            .map(Slot::id)
            .filter(|&slot| slot >= wanted && !self.retiring.contains_key(&slot))
            .collect();
        for slot in new {
            log::info!("slot {slot} retires with {} connections", cluster.held_by(slot));
            cluster.set_retiring(slot, true);
            self.retiring.insert(slot, Retirement { since: cluster.now(), is_leaving: false });
        }
    }

    fn let_the_empty_leave(&mut self, cluster: &mut Cluster) {
        for (&slot, retirement) in &mut self.retiring {
            let is_time = !retirement.is_leaving && cluster.now() >= retirement.since + LAST_CALL;
            if is_time && !cluster.is_moving_at(slot) && cluster.is_deserted(slot) {
                retirement.is_leaving = true;
                cluster.let_leave(slot);
            }
        }
    }

    /// Closes the slots that have left, the last first.
    fn close_the_left(&mut self, cluster: &mut Cluster) {
        let has_left =
            |slot| cluster.slot(slot).is_some_and(|slot: &Slot| matches!(slot.state(), State::Left));
        let left: Vec<SlotId> = self.retiring.keys().copied().filter(|&slot| has_left(slot)).collect();
        for slot in left.into_iter().rev() {
            if cluster.close_left(slot) {
                self.retiring.remove(&slot);
            }
        }
    }

    fn note(&mut self, cluster: &Cluster, news: &News) {
        let News::Moved { from, moved, .. } = news else { return };
        if *moved > 0 {
            self.obstacle.clear();
            return;
        }
        self.not_before = cluster.now() + PAUSE;
        let obstacle = obstacle(news);
        if self.retiring.contains_key(from) && obstacle != self.obstacle {
            log::warn!("{obstacle}; trying again");
            self.obstacle = obstacle;
        }
    }
}

impl Operation for Resize {
    fn kind(&self) -> Option<Kind> {
        (!self.retiring.is_empty()).then_some(Kind::Resize)
    }

    fn deadline(&self, cluster: &Cluster) -> Option<Duration> {
        self.kind().map(|_| cluster.now() + PAUSE)
    }

    /// Never over: how many slots are wanted is always to be seen to.
    fn turn(&mut self, cluster: &mut Cluster, turn: Turn<'_>) -> bool {
        turn.news.iter().for_each(|news| self.note(cluster, news));
        if turn.running.admits(Kind::Resize).is_err() {
            return false;
        }
        if turn.running.admits(Kind::Move).is_ok()
            && cluster.now() >= self.not_before
            && let Some(step) = next_to_empty(&places(cluster))
        {
            begin_transfer(cluster, &step);
        }
        self.begin_retirements(cluster);
        if !turn.running.has(Kind::Restart) && !turn.running.has(Kind::Upgrade) {
            self.let_the_empty_leave(cluster);
        }
        self.close_the_left(cluster);
        false
    }
}
