//! Is a worker that lives also awake? Workers report every second; one that says nothing is first spared new
//! clients, then ended, so that the next one takes over its connections. Pure: time and words go in, what is
//! to be done comes out; `watchdog` does it.
//!
//! Silence is measured in time that the supervisor has been awake for itself. While it was stopped, or the
//! whole machine was, nobody could have been heard.

use std::time::Duration;

/// How long a worker may say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until it gets no new clients.
    pub steer_away: Duration,
    /// Until it is ended.
    pub abort: Duration,
}

impl Patience {
    /// With one that serves. It reports every second: two reports in a row do not come late by chance, and
    /// until it speaks again others can serve newcomers as well. Being ended costs a client its connection,
    /// so that takes longer than any turn of a worker that still works through its events, on a busy
    /// machine too.
    pub const SERVING: Self = Self { steer_away: Duration::from_secs(3), abort: Duration::from_secs(10) };
    /// With one that has not said `Ready`: it looks through a table of any size, and has no clients to
    /// spare.
    pub const STARTING: Self = Self { steer_away: Duration::from_secs(10), abort: Duration::from_secs(30) };
    /// With one that was told to die: so long it may write its core.
    pub const DYING: Duration = Duration::from_secs(5);
}

/// What is known of a worker's wakefulness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Heartbeat {
    /// There is no worker that could say anything.
    #[default]
    Absent,
    /// It has been heard of lately.
    Awake {
        /// For how long it has said nothing.
        silence: Duration,
    },
    /// It should have been heard of, and gets no new clients until it is.
    Wedged {
        /// For how long it has said nothing.
        silence: Duration,
    },
    /// It was told to die of SIGABRT, and whatever it still says does not change that.
    Aborted {
        /// For how long it has been dying.
        since: Duration,
    },
    /// It was killed. Nothing more can be done; the kernel ends it when it can.
    Killed,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// There is no worker, or another one.
    Gone,
    /// The worker said something.
    Heard,
    /// There is a worker, and the supervisor was awake for this long since it last said so.
    Passed(Duration),
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// To be logged: it gets no new clients, having said nothing for this long.
    SteerAway(Duration),
    /// To be logged: it speaks again, having said nothing for this long.
    Welcome(Duration),
    /// Send SIGABRT, then SIGCONT, for it may be stopped: it has said nothing for this long.
    Abort(Duration),
    /// Send SIGKILL.
    Kill,
}

impl Heartbeat {
    /// Takes in one event; says what to do about it.
    #[must_use]
    pub fn step(self, event: Event, patience: Patience) -> (Self, Option<Action>) {
        match (self, event) {
            (_, Event::Gone) => (Self::Absent, None),
            (Self::Absent | Self::Awake { .. }, Event::Heard) => {
                (Self::Awake { silence: Duration::ZERO }, None)
            }
            (Self::Wedged { silence }, Event::Heard) => {
                (Self::Awake { silence: Duration::ZERO }, Some(Action::Welcome(silence)))
            }
            (Self::Aborted { .. } | Self::Killed, Event::Heard) => (self, None),
            (Self::Absent, Event::Passed(_)) => (Self::Awake { silence: Duration::ZERO }, None),
            (Self::Awake { silence }, Event::Passed(time)) => match silence + time {
                silence if silence >= patience.steer_away => {
                    (Self::Wedged { silence }, Some(Action::SteerAway(silence)))
                }
                silence => (Self::Awake { silence }, None),
            },
            (Self::Wedged { silence }, Event::Passed(time)) => match silence + time {
                silence if silence >= patience.abort => {
                    (Self::Aborted { since: Duration::ZERO }, Some(Action::Abort(silence)))
                }
                silence => (Self::Wedged { silence }, None),
            },
            (Self::Aborted { since }, Event::Passed(time)) => match since + time {
                since if since >= Patience::DYING => (Self::Killed, Some(Action::Kill)),
                since => (Self::Aborted { since }, None),
            },
            (Self::Killed, Event::Passed(_)) => (self, None),
        }
    }

    /// Is there a worker that does not do its work?
    #[must_use]
    pub fn is_wedged(self) -> bool {
        matches!(self, Self::Wedged { .. }) || self.is_ending()
    }

    /// Is it being ended for that? Then that is what it will have died of.
    #[must_use]
    pub fn is_ending(self) -> bool {
        matches!(self, Self::Aborted { .. } | Self::Killed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What is done, and after how many seconds, when a worker never says a word.
    fn silent(patience: Patience) -> Vec<(u64, Action)> {
        let mut heartbeat = Heartbeat::default();
        let mut done = Vec::new();
        for seconds in 0..100 {
            let (next, action) = heartbeat.step(Event::Passed(SECOND), patience);
            heartbeat = next;
            done.extend(action.map(|action| (seconds, action)));
        }
        done
    }

    #[test]
    fn a_silent_worker_is_steered_away_from_then_aborted_then_killed_each_once() {
        let seconds = Duration::from_secs;
        let serving =
            [(3, Action::SteerAway(seconds(3))), (10, Action::Abort(seconds(10))), (15, Action::Kill)];
        assert_eq!(silent(Patience::SERVING), serving);
        let starting =
            [(10, Action::SteerAway(seconds(10))), (30, Action::Abort(seconds(30))), (35, Action::Kill)];
        assert_eq!(silent(Patience::STARTING), starting);
    }

    #[test]
    fn one_that_speaks_again_is_welcome_until_it_was_told_to_die() {
        let wedged = Heartbeat::Wedged { silence: 4 * SECOND };
        let awake = Heartbeat::Awake { silence: Duration::ZERO };
        let welcome = Some(Action::Welcome(4 * SECOND));
        assert_eq!(wedged.step(Event::Heard, Patience::SERVING), (awake, welcome));
        for ending in [Heartbeat::Aborted { since: SECOND }, Heartbeat::Killed] {
            assert_eq!(ending.step(Event::Heard, Patience::SERVING), (ending, None));
            assert_eq!(ending.step(Event::Gone, Patience::SERVING), (Heartbeat::Absent, None));
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            1 => Just(Event::Gone),
            3 => Just(Event::Heard),
            10 => (0..=1000_u64).prop_map(|millis| Event::Passed(Duration::from_millis(millis))),
        ]
    }

    proptest! {
        #[test]
        fn nobody_is_ended_who_spoke_in_time(
            events in prop::collection::vec((event(), any::<bool>()), 0..300),
        ) {
            let mut heartbeat = Heartbeat::default();
            // Time since the worker came or was last heard of, and what was done since it came.
            let (mut silence, mut aborted, mut killed) = (Duration::ZERO, false, false);
            for (event, is_serving) in events {
                let patience = if is_serving { Patience::SERVING } else { Patience::STARTING };
                let (next, action) = heartbeat.step(event, patience);
                match event {
                    Event::Gone => (silence, aborted, killed) = (Duration::ZERO, false, false),
                    Event::Heard => silence = Duration::ZERO,
                    Event::Passed(time) => silence += time,
                }
                match action {
                    Some(Action::Abort(claimed)) => {
                        prop_assert!(!aborted && claimed <= silence && claimed >= Patience::SERVING.abort);
                        prop_assert!(heartbeat.is_wedged(), "it was steered away from first");
                        aborted = true;
                    }
                    Some(Action::Kill) => {
                        prop_assert!(aborted && !killed);
                        killed = true;
                    }
                    Some(Action::SteerAway(claimed)) => {
                        prop_assert!(!aborted && claimed <= silence && claimed >= Patience::SERVING.steer_away);
                    }
                    Some(Action::Welcome(_)) => prop_assert!(!aborted && event == Event::Heard),
                    None => {}
                }
                prop_assert_eq!(next.is_ending(), aborted);
                heartbeat = next;
            }
        }
    }
}
