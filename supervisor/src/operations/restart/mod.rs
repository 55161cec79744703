//! Planned restarts: workers are replaced one after the other, each by one that takes over all it had. A slot
//! that is not back in time stops the roll: what is wrong with one worker may be wrong with the next. Which is
//! next is decided in `rolling`; here workers are asked, and whoever wanted it is answered.

mod rolling;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use holdfast_shared::id::SlotId;
use holdfast_shared::ipc::message::ToWorker;

use crate::api::Reply;
use crate::api::{Answer, Failure, RestartReport, RestartedSlot};
use crate::cluster::lifecycle::State;
use crate::supervisor::Supervisor;
pub(crate) use rolling::Event;
use rolling::{Action, Rolling};

/// A roll and whoever waits for its end.
#[derive(Debug)]
pub(crate) struct Restart {
    roll: Rolling,
    /// The program that the slots go on with, if it is another one.
    program: Option<OwnedFd>,
    reply: Option<Reply>,
}

impl Restart {
    /// When there is something to do even if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.roll.deadline()
    }

    /// The slots that have new workers so far.
    pub(crate) fn done(&self) -> &[RestartedSlot] {
        self.roll.done()
    }
}

impl Supervisor {
    /// Replaces the workers of all slots, or of one, one after the other. Whoever asked is answered at the
    /// end.
    pub(crate) fn restart(&mut self, slot: Option<u16>, reply: Option<Reply>) {
        if self.is_upgrading() {
            return refuse(reply, Failure::new(409, "an upgrade is under way; wait for its end"));
        }
        self.restart_with(slot, None, reply);
    }

    /// As `restart`, by workers and keepers of `program`. A slot that cannot go on with it goes on with the one
    /// it has, and stops the roll.
    pub(crate) fn restart_with(&mut self, slot: Option<u16>, program: Option<OwnedFd>, reply: Option<Reply>) {
        match self.slots_to_restart(slot) {
            Ok(slots) => {
                let list = slots.iter().map(SlotId::to_string).collect::<Vec<_>>().join(", ");
                log::info!("restarting the workers of slots {list}");
                let (roll, first) = Rolling::new(slots);
                self.restart = Some(Restart { roll, program, reply });
                self.carry_out(Some(first));
            }
            Err(failure) if program.is_some() => self.note_rolled(Vec::new(), Some(failure)),
            Err(failure) => refuse(reply, failure),
        }
    }

    /// Lets time pass for a restart under way, if there is one.
    pub(crate) fn continue_restart(&mut self) {
        self.on_restart(if self.stage.is_ending() { Event::Ending } else { Event::Tick });
    }

    /// Something happened that a restart under way may have waited for.
    pub(crate) fn on_restart(&mut self, event: Event) {
        let now = self.now;
        let action = self.restart.as_mut().and_then(|restart| restart.roll.step(event, now));
        self.carry_out(action);
    }

    /// Does what the roll asks for, until it waits.
    fn carry_out(&mut self, mut action: Option<Action>) {
        while let Some(todo) = action {
            action = match todo {
                Action::Ask(slot) => {
                    let event = self.ask_to_hand_over(slot);
                    let now = self.now;
                    self.restart.as_mut().and_then(|restart| restart.roll.step(event, now))
                }
                Action::Finish(report) => {
                    self.end_restart(Ok(report));
                    None
                }
                Action::Stop(failure) => {
                    self.end_restart(Err(failure));
                    None
                }
            };
        }
    }

    fn ask_to_hand_over(&mut self, slot: SlotId) -> Event {
        let Some(position) = self.slots.iter().position(|seat| seat.id == slot) else {
            return Event::NotReady { state: "gone" };
        };
        let state = self.slots[position].machine.state();
        match (state, state.worker()) {
            (State::Ready(_), Some(worker)) => {
                // Taken while it is lent, for `tell_worker` may change anything else.
                let program = self.restart.as_mut().and_then(|restart| restart.program.take());
                let program_or_none = program.as_ref().map(AsFd::as_fd);
                self.tell_worker(
                    position,
                    worker.incarnation,
                    &ToWorker::Restart,
                    program_or_none.as_slice(),
                );
                if let Some(restart) = &mut self.restart {
                    restart.program = program;
                }
                Event::Asked { incarnation: worker.incarnation }
            }
            _ => Event::NotReady { state: state.name() },
        }
    }

    /// Tells whoever waits. With another program, that is the upgrade it belongs to.
    fn end_restart(&mut self, outcome: Result<RestartReport, Failure>) {
        let Some(Restart { roll, program, reply }) = self.restart.take() else { return };
        let outcome = match (outcome, program) {
            (Ok(report), Some(_)) => return self.note_rolled(report.slots, None),
            (Err(failure), Some(_)) => return self.note_rolled(roll.done().to_vec(), Some(failure)),
            (Ok(report), None) => {
                log::info!("restart done: {}", describe(&report));
                Ok(Answer::Restart(report))
            }
            (Err(failure), None) => {
                log::error!("restart stopped: {failure}");
                Err(Failure::new(failure.status, format!("restart stopped: {failure}")))
            }
        };
        if let Some(reply) = reply {
            reply.send(outcome);
        }
    }

    /// Which slots are to be restarted, if they can be.
    fn slots_to_restart(&self, slot: Option<u16>) -> Result<Vec<SlotId>, Failure> {
        if self.stage.is_ending() {
            return Err(Failure::new(409, "the service is shutting down"));
        }
        if self.restart.is_some() {
            return Err(Failure::new(409, "another restart is under way; wait for its end"));
        }
        if self.moving.is_under_way() {
            return Err(Failure::new(
                409,
                "connections are being moved between slots; wait for the end of that",
            ));
        }
        let is_wanted = |id: SlotId| slot.is_none_or(|slot| id.0 == slot);
        let wanted: Vec<_> = self.slots.iter().filter(|seat| is_wanted(seat.id)).collect();
        if wanted.is_empty() {
            let slots = self.slots.iter().map(|seat| seat.id.to_string()).collect::<Vec<_>>().join(", ");
            let slot = slot.unwrap_or_default();
            return Err(Failure::new(404, format!("there is no slot {slot}, only {slots}")));
        }
        for seat in &wanted {
            let state = seat.machine.state();
            if !matches!(state, State::Ready(_)) {
                let (slot, state) = (seat.id, state.name());
                let error = format!("slot {slot} is {state}; only workers that are ready can hand over");
                return Err(Failure::new(409, error));
            }
        }
        Ok(wanted.into_iter().map(|seat| seat.id).collect())
    }
}

fn refuse(reply: Option<Reply>, failure: Failure) {
    log::warn!("not restarting: {failure}");
    if let Some(reply) = reply {
        reply.send(Err(failure));
    }
}

fn describe(report: &RestartReport) -> String {
    let one = |done: &RestartedSlot| {
        let RestartedSlot { slot, kept, lost, pause_ms } = done;
        format!("slot {slot}: {kept} connections kept, {lost} lost, pause {pause_ms:.1} ms")
    };
    report.slots.iter().map(one).collect::<Vec<_>>().join("; ")
}
