//! Which slot is restarted next, and when to give up: a pure state machine. It asks nobody and answers nobody.

use std::collections::VecDeque;
use std::time::Duration;

use holdfast_shared::id::{Incarnation, SlotId};

use crate::api::{Failure, RestartReport, RestartedSlot};

/// How long a slot may take from being asked until its next worker serves.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a rolling restart is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// This slot is to be asked.
    Asking(SlotId),
    /// This slot's worker was asked; a later one is awaited.
    Waiting { slot: SlotId, asked: Incarnation },
    /// This slot's worker died before it could do what it was asked; the next one is awaited, to be asked in its
    /// turn: it is not what was wanted, for it runs the program that the slot had.
    WorkerLost { slot: SlotId, died: Incarnation },
    /// There is nothing left to do, or it was stopped.
    Over,
}

/// What happened to a rolling restart.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// The slot's worker, which was ready, was asked to hand over.
    Asked { incarnation: Incarnation },
    /// The slot has no worker that could be asked.
    NotReady {
        /// The slot's state.
        state: &'static str,
    },
    /// A worker died, and had not handed over.
    Died { slot: SlotId, incarnation: Incarnation },
    /// A slot, any slot, has a worker that serves.
    Ready {
        incarnation: Incarnation,
        /// Its slot, and what it took over.
        result: RestartedSlot,
    },
    /// A worker stays.
    Refused { slot: SlotId, incarnation: Incarnation, reason: String },
    /// A slot goes on with the program it had, though it was given another.
    KeptProgram { slot: SlotId, reason: String },
    /// A turn of the supervisor's loop.
    Tick,
    /// The service is shutting down.
    Ending,
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Ask the slot's worker to hand over; answer with `Asked` or `NotReady`.
    Ask(SlotId),
    /// All are restarted: say so.
    Finish(RestartReport),
    /// It is over before its end: say so.
    Stop(Failure),
}

/// Some slots being restarted.
#[derive(Debug)]
pub(crate) struct Rolling {
    stage: Stage,
    /// When the slot in progress has to be back, once it was asked, however often it is asked again.
    deadline: Option<Duration>,
    /// Connections of the slot in progress that ended with workers which died before they could hand over.
    lost: u32,
    /// Those after the one in progress.
    to_do: VecDeque<SlotId>,
    done: Vec<RestartedSlot>,
}

impl Rolling {
    /// A rolling restart over `slots`, and its first action.
    pub(crate) fn new(slots: impl IntoIterator<Item = SlotId>) -> (Self, Action) {
        let to_do = slots.into_iter().collect();
        let mut rolling = Self { stage: Stage::Over, deadline: None, lost: 0, to_do, done: Vec::new() };
        let first = rolling.next();
        (rolling, first)
    }

    /// The slots that are restarted, until it has finished.
    pub(crate) fn done(&self) -> &[RestartedSlot] {
        &self.done
    }

    /// When a tick will do something even if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Takes in one event; says what is to be done, if anything.
    pub(crate) fn step(&mut self, event: Event, now: Duration) -> Option<Action> {
        match (self.stage, event) {
            (Stage::Over, _) => None,
            (Stage::Asking(slot), Event::Asked { incarnation }) => {
                self.stage = Stage::Waiting { slot, asked: incarnation };
                self.deadline.get_or_insert(now + PATIENCE);
                None
            }
            (Stage::Asking(slot), Event::NotReady { state }) => {
                Some(self.stop(409, slot, &format!("is {state}")))
            }
            (Stage::Waiting { slot, asked }, Event::Died { slot: died_in, incarnation })
                if died_in == slot && incarnation == asked =>
            {
                self.stage = Stage::WorkerLost { slot, died: incarnation };
                None
            }
            (Stage::WorkerLost { slot, died }, Event::Ready { incarnation, result })
                if result.slot == slot.0 && incarnation > died =>
            {
                self.lost = self.lost.saturating_add(result.lost);
                self.stage = Stage::Asking(slot);
                Some(Action::Ask(slot))
            }
            (Stage::Waiting { slot, asked }, Event::Ready { incarnation, result })
                if result.slot == slot.0 && incarnation > asked =>
            {
                self.done.push(RestartedSlot { lost: self.lost.saturating_add(result.lost), ..result });
                Some(self.next())
            }
            (Stage::Waiting { slot, asked }, Event::Refused { slot: refusing, incarnation, reason })
                if refusing == slot && incarnation == asked =>
            {
                Some(self.stop(503, slot, &format!("goes on with the worker it has: {reason}")))
            }
            (Stage::Waiting { slot, .. }, Event::KeptProgram { slot: keeping, reason })
                if keeping == slot =>
            {
                Some(self.stop(503, slot, &format!("goes on with the program it had: {reason}")))
            }
            (Stage::Waiting { slot, .. } | Stage::WorkerLost { slot, .. }, Event::Tick)
                if self.deadline.is_some_and(|deadline| now >= deadline) =>
            {
                Some(self.stop(504, slot, &format!("was not back within {PATIENCE:?}; the log says why")))
            }
            (
                Stage::Asking(slot) | Stage::Waiting { slot, .. } | Stage::WorkerLost { slot, .. },
                Event::Ending,
            ) => Some(self.stop(409, slot, "was in progress when the service began to shut down")),
            (Stage::Asking(_) | Stage::Waiting { .. } | Stage::WorkerLost { .. }, _) => None,
        }
    }

    fn next(&mut self) -> Action {
        (self.deadline, self.lost) = (None, 0);
        match self.to_do.pop_front() {
            Some(slot) => {
                self.stage = Stage::Asking(slot);
                Action::Ask(slot)
            }
            None => {
                self.stage = Stage::Over;
                Action::Finish(RestartReport { slots: std::mem::take(&mut self.done) })
            }
        }
    }

    fn stop(&mut self, status: u16, slot: SlotId, what: &str) -> Action {
        (self.stage, self.deadline) = (Stage::Over, None);
        let list = |slots: Vec<String>| if slots.is_empty() { "none".to_owned() } else { slots.join(", ") };
        let done = list(self.done.iter().map(|done| done.slot.to_string()).collect());
        let left = list(self.to_do.iter().map(SlotId::to_string).collect());
        let error = format!("slot {slot} {what}; slots restarted before it: {done}; not restarted: {left}");
        Action::Stop(Failure::new(status, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn ready(slot: u16, incarnation: u32) -> Event {
        let result = RestartedSlot { slot, kept: 5, ..RestartedSlot::default() };
        Event::Ready { incarnation: Incarnation(incarnation), result }
    }

    fn asked(incarnation: u32) -> Event {
        Event::Asked { incarnation: Incarnation(incarnation) }
    }

    fn refused(slot: u16, incarnation: u32) -> Event {
        let (slot, incarnation) = (SlotId(slot), Incarnation(incarnation));
        Event::Refused { slot, incarnation, reason: "no memory".to_owned() }
    }

    fn died(slot: u16, incarnation: u32) -> Event {
        Event::Died { slot: SlotId(slot), incarnation: Incarnation(incarnation) }
    }

    fn failure(action: Option<Action>) -> (u16, String) {
        match action {
            Some(Action::Stop(failure)) => (failure.status, failure.error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_next_slot_is_asked_when_the_one_before_it_is_back() {
        let (mut rolling, first) = Rolling::new([SlotId(0), SlotId(1)]);
        assert_eq!(first, Action::Ask(SlotId(0)));
        assert_eq!(rolling.step(asked(3), NOW), None);
        // Old news, and news of others.
        for event in [ready(0, 3), ready(1, 9), refused(1, 3), refused(0, 2), Event::Tick] {
            assert_eq!(rolling.step(event, NOW), None);
        }
        assert_eq!(rolling.step(ready(0, 4), NOW), Some(Action::Ask(SlotId(1))));
        assert_eq!(rolling.step(asked(9), NOW), None);
        let Some(Action::Finish(report)) = rolling.step(ready(1, 10), NOW) else { panic!("not finished") };
        assert_eq!(
            report.slots.iter().map(|done| (done.slot, done.kept)).collect::<Vec<_>>(),
            [(0, 5), (1, 5)]
        );
        assert_eq!(rolling.step(Event::Ending, NOW), None);
    }

    #[test]
    fn who_dies_before_handing_over_has_a_successor_who_is_asked_in_turn() {
        let (mut rolling, _) = Rolling::new([SlotId(0), SlotId(1)]);
        let _ = rolling.step(asked(3), NOW);
        // Old news, and news of others.
        assert_eq!(rolling.step(died(0, 2), NOW), None);
        assert_eq!(rolling.step(died(1, 3), NOW), None);
        assert_eq!(rolling.step(died(0, 3), NOW), None);
        let lossy = RestartedSlot { slot: 0, kept: 4, lost: 1, ..RestartedSlot::default() };
        let ready_4 = Event::Ready { incarnation: Incarnation(4), result: lossy };
        assert_eq!(rolling.step(ready_4, NOW), Some(Action::Ask(SlotId(0))));
        let later = NOW + Duration::from_secs(1);
        assert_eq!(rolling.step(asked(4), later), None);
        assert_eq!(rolling.deadline(), Some(NOW + PATIENCE));
        assert_eq!(rolling.step(ready(0, 5), later), Some(Action::Ask(SlotId(1))));
        assert_eq!(rolling.done(), [RestartedSlot { slot: 0, kept: 5, lost: 1, ..RestartedSlot::default() }]);
        // The next slot starts with nothing against it.
        assert_eq!(rolling.step(asked(1), later), None);
        assert_eq!(rolling.deadline(), Some(later + PATIENCE));
    }

    #[test]
    fn a_worker_may_say_any_number_of_losses() {
        let (mut rolling, _) = Rolling::new([SlotId(0)]);
        let absurd = RestartedSlot { slot: 0, lost: u32::MAX, ..RestartedSlot::default() };
        for incarnation in [1, 2] {
            let _ = rolling.step(asked(incarnation), NOW);
            let _ = rolling.step(died(0, incarnation), NOW);
            let ready = Event::Ready { incarnation: Incarnation(incarnation + 1), result: absurd.clone() };
            assert_eq!(rolling.step(ready, NOW), Some(Action::Ask(SlotId(0))));
        }
        let _ = rolling.step(asked(3), NOW);
        let ready = Event::Ready { incarnation: Incarnation(4), result: absurd.clone() };
        assert_eq!(rolling.step(ready, NOW), Some(Action::Finish(RestartReport { slots: vec![absurd] })));
    }

    #[test]
    fn workers_that_die_whenever_they_are_asked_stop_the_restart_in_time() {
        let (mut rolling, _) = Rolling::new([SlotId(0)]);
        for incarnation in 1..100 {
            let _ = rolling.step(asked(incarnation), NOW);
            let _ = rolling.step(died(0, incarnation), NOW);
            assert_eq!(rolling.step(ready(0, incarnation + 1), NOW), Some(Action::Ask(SlotId(0))));
        }
        let _ = rolling.step(asked(100), NOW);
        let _ = rolling.step(died(0, 100), NOW);
        assert_eq!(failure(rolling.step(Event::Tick, NOW + PATIENCE)).0, 504);
    }

    #[test]
    fn a_slot_that_is_not_back_in_time_stops_the_restart_and_is_named() {
        let (mut rolling, _) = Rolling::new([SlotId(0), SlotId(1), SlotId(2)]);
        let _ = rolling.step(asked(1), NOW);
        let _ = rolling.step(ready(0, 2), NOW);
        let _ = rolling.step(asked(1), NOW);
        assert_eq!(rolling.deadline(), Some(NOW + PATIENCE));
        assert_eq!(rolling.step(Event::Tick, NOW + PATIENCE - Duration::from_millis(1)), None);
        let (status, error) = failure(rolling.step(Event::Tick, NOW + PATIENCE));
        assert_eq!(status, 504);
        assert!(error.contains("slot 1 was not back within 10s"), "{error}");
        assert!(error.ends_with("slots restarted before it: 0; not restarted: 2"), "{error}");
        assert_eq!(rolling.step(ready(1, 2), NOW + PATIENCE), None);
    }

    #[test]
    fn refusals_and_the_end_of_the_service_stop_the_restart() {
        let kept = Event::KeptProgram { slot: SlotId(4), reason: "exit status 1".to_owned() };
        for (event, status, words) in [
            (refused(4, 1), 503, "goes on with the worker it has: no memory"),
            (kept, 503, "goes on with the program it had: exit status 1"),
            (Event::Ending, 409, "shut down"),
        ] {
            let (mut rolling, _) = Rolling::new([SlotId(4)]);
            let _ = rolling.step(asked(1), NOW);
            let (found, error) = failure(rolling.step(event, NOW));
            assert_eq!(found, status);
            assert!(error.contains("slot 4") && error.contains(words), "{error}");
            assert_eq!(rolling.deadline(), None);
        }
        let (mut rolling, _) = Rolling::new([SlotId(4)]);
        let (status, error) = failure(rolling.step(Event::NotReady { state: "backing_off" }, NOW));
        assert_eq!(status, 409);
        assert!(error.contains("slot 4 is backing_off"), "{error}");
    }
}
