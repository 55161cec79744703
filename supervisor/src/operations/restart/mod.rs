//! Rolling restarts: workers are replaced one after the other, each by one that takes over all it had. A slot
//! that is not back in time stops the restart: what is wrong with one worker may be wrong with the next. Which is
//! next is decided in `rolling`; here workers are asked, and whoever wanted it is answered.

mod rolling;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use holdfast_shared::id::SlotId;

use super::{Kind, Operation, Turn, refuse};
use crate::api::{Answer, Failure, Reply, RestartReport, RestartedSlot};
use crate::cluster::lifecycle::State;
use crate::cluster::{Cluster, News, Slot};
use rolling::{Action, Event, Rolling};

/// Slots whose workers are being replaced, by others of this program or of another.
#[derive(Debug)]
pub(super) struct Replacement {
    rolling: Rolling,
    /// The program that the slots go on with, if it is another one. A slot that cannot goes on with the one it has,
    /// which ends the restart.
    program: Option<OwnedFd>,
    outcome: Option<Result<RestartReport, Failure>>,
}

impl Replacement {
    /// Begins with the first of `slots`.
    pub(super) fn begin(cluster: &mut Cluster, slots: Vec<SlotId>, program: Option<OwnedFd>) -> Self {
        let list = slots.iter().map(SlotId::to_string).collect::<Vec<_>>().join(", ");
        log::info!("restarting the workers of slots {list}");
        let (rolling, first) = Rolling::new(slots);
        let mut replacement = Self { rolling, program, outcome: None };
        replacement.carry_out(cluster, Some(first));
        replacement
    }

    /// When there is something to do even if nothing happens.
    pub(super) fn deadline(&self, now: Duration) -> Option<Duration> {
        self.outcome.as_ref().map(|_| now).or_else(|| self.rolling.deadline())
    }

    /// The slots that have new workers so far.
    pub(super) fn done(&self) -> &[RestartedSlot] {
        self.rolling.done()
    }

    /// Goes on; returns how it ended, when it has.
    pub(super) fn turn(
        &mut self,
        cluster: &mut Cluster,
        turn: Turn<'_>,
    ) -> Option<Result<RestartReport, Failure>> {
        let time = if turn.running.is_ending() { Event::Ending } else { Event::Tick };
        for event in turn.news.iter().filter_map(event).chain([time]) {
            let action = self.rolling.step(event, cluster.now());
            self.carry_out(cluster, action);
        }
        self.outcome.take()
    }

    /// Does what is asked for, until it waits.
    fn carry_out(&mut self, cluster: &mut Cluster, mut action: Option<Action>) {
        while let Some(todo) = action.take() {
            match todo {
                Action::Ask(slot) => {
                    let program = self.program.as_ref().map(AsFd::as_fd);
                    let event = match cluster.ask_to_hand_over(slot, program) {
                        Ok(incarnation) => Event::Asked { incarnation },
                        Err(state) => Event::NotReady { state },
                    };
                    action = self.rolling.step(event, cluster.now());
                }
                Action::Finish(report) => self.outcome = Some(Ok(report)),
                Action::Stop(failure) => self.outcome = Some(Err(failure)),
            }
        }
    }
}

/// What news mean to a restart, if anything.
fn event(news: &News) -> Option<Event> {
    Some(match news.clone() {
        News::Died { slot, incarnation } => Event::Died { slot, incarnation },
        News::Stays { slot, incarnation, reason } => Event::Refused { slot, incarnation, reason },
        News::KeptProgram { slot, reason } => Event::KeptProgram { slot, reason },
        News::Ready { incarnation, result } => Event::Ready { incarnation, result },
        News::Moved { .. } | News::ChildEnded { .. } | News::Told { .. } | News::StartFailed { .. } => {
            return None;
        }
    })
}

/// A restart that somebody has asked for.
#[derive(Debug)]
pub(super) struct Restart {
    replacement: Replacement,
    reply: Option<Reply>,
}

impl Restart {
    /// Begins one, of all slots or of one.
    pub(super) fn begin(cluster: &mut Cluster, slot: Option<u16>, reply: Option<Reply>) -> Option<Self> {
        match slots(cluster, slot) {
            Ok(slots) => Some(Self { replacement: Replacement::begin(cluster, slots, None), reply }),
            Err(failure) => {
                refuse(Kind::Restart, reply, failure);
                None
            }
        }
    }
}

impl Operation for Restart {
    fn kind(&self) -> Option<Kind> {
        Some(Kind::Restart)
    }

    fn deadline(&self, cluster: &Cluster) -> Option<Duration> {
        self.replacement.deadline(cluster.now())
    }

    fn turn(&mut self, cluster: &mut Cluster, turn: Turn<'_>) -> bool {
        let Some(outcome) = self.replacement.turn(cluster, turn) else { return false };
        let answer = match outcome {
            Ok(report) => {
                log::info!("restart done: {}", describe(&report));
                Ok(Answer::Restart(report))
            }
            Err(failure) => {
                log::error!("restart stopped: {failure}");
                Err(Failure::new(failure.status, format!("restart stopped: {failure}")))
            }
        };
        if let Some(reply) = self.reply.take() {
            reply.send(answer);
        }
        true
    }
}

/// Which slots are to be restarted, all or one, if they can be.
pub(super) fn slots(cluster: &Cluster, slot: Option<u16>) -> Result<Vec<SlotId>, Failure> {
    let is_wanted = |id: SlotId| slot.is_none_or(|slot| id.0 == slot);
    let wanted: Vec<&Slot> = cluster.slots().filter(|slot| is_wanted(slot.id())).collect();
    if wanted.is_empty() {
        let slots = cluster.slots().map(|slot| slot.id().to_string()).collect::<Vec<_>>().join(", ");
        let slot = slot.unwrap_or_default();
        return Err(Failure::new(404, format!("there is no slot {slot}, only {slots}")));
    }
    if let Some(slot) = wanted.iter().find(|slot| !matches!(slot.state(), State::Ready(_))) {
        let (slot, state) = (slot.id(), slot.state().name());
        let error = format!("slot {slot} is {state}; only workers that are ready can hand over");
        return Err(Failure::new(409, error));
    }
    Ok(wanted.into_iter().map(Slot::id).collect())
}

fn describe(report: &RestartReport) -> String {
    let one = |done: &RestartedSlot| {
        let RestartedSlot { slot, kept, lost, pause_ms } = done;
        format!("slot {slot}: {kept} connections kept, {lost} lost, pause {pause_ms:.1} ms")
    };
    report.slots.iter().map(one).collect::<Vec<_>>().join("; ")
}
