//! The paced drain, for the whole service: how long there is, who may pause it, and when it is over. Whom to
//! tell, and when, is each worker's own business.
//!
//! The supervisor alone keeps the time: workers are told what is left of it, so that one that comes up in the
//! middle goes on where the last one was.

use std::time::Duration;

use holdfast_shared::ipc::message::ToWorker;
use holdfast_shared::reason::CloseReason;

use crate::api::{Answer, DrainProgress, Failure, Report};
use crate::api::{DrainOrder, Step};
use crate::cluster::lifecycle;
use crate::host::notify;
use crate::supervisor::{Stage, Supervisor};

/// The longest that clients who were told are waited for, whatever `timeouts.close` says: whoever stops the
/// service wants it to end.
const LONGEST_GRACE: Duration = Duration::from_secs(5);

/// How often the log and the service manager hear how far it has come.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// How far the drain of one slot has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections that were ever told to go, those that have gone among them.
    pub told: u64,
    /// Connections that are still to be told.
    pub untold: u64,
}

/// A drain under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Drain {
    clock: Clock,
    /// A signal has asked for it: the next one does not ask again.
    signalled: bool,
    /// Closes with reason `drain` that were counted before it began.
    closed_before: u64,
    next_progress: Duration,
}

/// Whether its time runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    /// The last client is told at this moment.
    Running { tell_by: Duration },
    /// Nobody is told; so much time is left when it goes on.
    Paused { left: Duration },
}

/// What a signal to end means in the middle of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It goes on as it is.
    GoOn,
    /// It goes on with the time that was left.
    Resume,
    /// Enough: the end, at once.
    Stop,
}

impl Drain {
    fn new(now: Duration, duration: Duration, closed_before: u64) -> Self {
        let clock = Clock::Running { tell_by: now + duration };
        Self { clock, signalled: false, closed_before, next_progress: now + PROGRESS_INTERVAL }
    }

    /// What is left of its time, whether or not it runs.
    fn left(&self, now: Duration) -> Duration {
        match self.clock {
            Clock::Running { tell_by } => tell_by.saturating_sub(now),
            Clock::Paused { left } => left,
        }
    }

    fn is_paused(&self) -> bool {
        matches!(self.clock, Clock::Paused { .. })
    }

    fn pause(&mut self, now: Duration) {
        self.clock = Clock::Paused { left: self.left(now) };
    }

    /// Goes on, with `duration` instead of what was left if there is one.
    fn resume(&mut self, now: Duration, duration: Option<Duration>) {
        self.clock = Clock::Running { tell_by: now + duration.unwrap_or(self.left(now)) };
    }

    /// The first signal asks for what is going on already: an operator who has begun a drain by hand may then
    /// stop the service the usual way. One that finds the drain paused lets it go on: somebody held it with a
    /// purpose, and nobody should be cut off by less than a signal that finds it running.
    fn on_signal(&mut self, now: Duration) -> Meaning {
        match (self.is_paused(), std::mem::replace(&mut self.signalled, true)) {
            (true, _) => {
                self.resume(now, None);
                Meaning::Resume
            }
            (false, false) => Meaning::GoOn,
            (false, true) => Meaning::Stop,
        }
    }

    /// Have those who were told last had `grace` to go?
    fn is_overdue(&self, now: Duration, grace: Duration) -> bool {
        matches!(self.clock, Clock::Running { tell_by } if now >= tell_by + grace)
    }

    /// When it has to be looked at next.
    pub(crate) fn wakeup(&self, grace: Duration) -> Duration {
        match self.clock {
            Clock::Running { tell_by } => self.next_progress.min(tell_by + grace),
            Clock::Paused { .. } => self.next_progress,
        }
    }

    /// What a worker is told to do.
    pub(crate) fn message(&self, now: Duration) -> ToWorker {
        match self.clock {
            Clock::Running { .. } => ToWorker::Drain { duration: self.left(now) },
            Clock::Paused { .. } => ToWorker::HoldDrain,
        }
    }
}

impl Supervisor {
    /// SIGTERM or SIGINT: begins a drain; a second one ends the service at once.
    pub(crate) fn on_end_signal(&mut self) {
        let now = self.now;
        let meaning = match &mut self.stage {
            Stage::Starting | Stage::Running => {
                self.begin_drain(None);
                if let Stage::Draining(drain) = &mut self.stage {
                    drain.signalled = true;
                }
                return;
            }
            Stage::Stopping { .. } => return,
            Stage::Draining(drain) => drain.on_signal(now),
        };
        match meaning {
            Meaning::GoOn => log::info!("the drain goes on; one more signal ends it at once"),
            Meaning::Resume => self.announce_drain("drain resumed by a signal"),
            Meaning::Stop => self.stop(),
        }
    }

    /// An operator's order. Asked for twice, it is done once.
    pub(crate) fn order_drain(&mut self, order: DrainOrder) -> Result<Answer, Failure> {
        let now = self.now;
        let step = order.step();
        let drain = match &mut self.stage {
            Stage::Stopping { .. } => return Err(Failure::new(409, "the service is stopping already")),
            Stage::Starting | Stage::Running if step == Step::Begin => {
                self.begin_drain(order.duration);
                return Ok(self.drain_answer("draining: clients are told to go, then the service exits"));
            }
            Stage::Starting | Stage::Running => {
                return Err(Failure::new(
                    409,
                    "no drain is under way; POST /drain (holdfast ctl drain) begins one",
                ));
            }
            Stage::Draining(drain) => drain,
        };
        let (was_paused, is_new) = (drain.is_paused(), order.duration.is_some());
        match step {
            Step::Begin if was_paused => {
                let remedy = "POST /drain/resume (holdfast ctl drain --resume) lets it go on";
                Err(Failure::new(409, format!("the drain is paused; {remedy}")))
            }
            Step::Pause if was_paused => Ok(self.drain_answer("paused already")),
            Step::Pause => {
                drain.pause(now);
                self.announce_drain("drain paused");
                Ok(self.drain_answer("paused: nobody is told to go, nobody is let in"))
            }
            Step::Begin | Step::Resume if !was_paused && !is_new => Ok(self.drain_answer("draining already")),
            Step::Begin | Step::Resume => {
                drain.resume(now, order.duration);
                self.announce_drain(if was_paused { "drain resumed" } else { "drain has another time" });
                Ok(self.drain_answer("draining: clients are told to go, then the service exits"))
            }
        }
    }

    /// Looks whether the drain is over, and says now and then how far it has come.
    pub(crate) fn watch_drain(&mut self, mut drain: Drain) {
        // Nobody counted is nobody left only once the adopted slots have said whom they hold.
        if !drain.is_paused() && self.admission_hold.is_open() && self.ledger.connections() == 0 {
            log::info!("drained: nobody is left");
            return self.stop();
        }
        if drain.is_overdue(self.now, self.grace()) {
            log::warn!("the drain's time is over: {} clients did not leave", self.ledger.connections());
            return self.stop();
        }
        if self.now >= drain.next_progress {
            drain.next_progress = self.now + PROGRESS_INTERVAL;
            self.stage = Stage::Draining(drain);
            let progress = self.describe_drain();
            log::info!("{progress}");
            // The manager's patience (TimeoutStopSec) runs from STOPPING=1, and a drain may be longer.
            notify::still_stopping(&progress, PROGRESS_INTERVAL * 3);
        }
    }

    /// How long those who were told have to go.
    pub(crate) fn grace(&self) -> Duration {
        self.effective.config.timeouts.close.min(LONGEST_GRACE)
    }

    /// How far the drain has come, if there is one.
    pub(crate) fn drain_progress(&self) -> Option<DrainProgress> {
        let Stage::Draining(drain) = self.stage else { return None };
        let told: u64 = self.slots.iter().map(|seat| seat.draining.told).sum();
        let left = drain.left(self.now).as_secs_f64();
        Some(DrainProgress {
            told: told.saturating_sub(drain.closed_before),
            remaining: self.slots.iter().map(|seat| seat.draining.untold).sum(),
            paused: drain.is_paused(),
            seconds_left: left,
            eta_seconds: (!drain.is_paused()).then_some(left),
        })
    }

    fn begin_drain(&mut self, duration: Option<Duration>) {
        let duration = duration.unwrap_or(self.effective.config.drain.duration);
        self.stage = Stage::Draining(Drain::new(self.now, duration, self.drained_so_far()));
        self.ledger.set_draining(true);
        log::info!("draining: {} connections are closed over {duration:?}", self.ledger.connections());
        notify::stopping("draining");
        for position in 0..self.slots.len() {
            // Until the workers say so themselves.
            let held = self.ledger.held_by(self.slots[position].id);
            self.slots[position].note_drain(0, u32::try_from(held).unwrap_or(u32::MAX));
            self.step(position, lifecycle::Event::Drain);
        }
    }

    /// Tells workers, log and service manager that the drain has changed.
    fn announce_drain(&mut self, what: &str) {
        let Stage::Draining(drain) = self.stage else { return };
        log::info!("{what}; {}", self.describe_drain());
        notify::still_stopping(&self.describe_drain(), PROGRESS_INTERVAL * 3);
        self.tell_all(&drain.message(self.now));
    }

    fn describe_drain(&self) -> String {
        let Some(progress) = self.drain_progress() else { return String::new() };
        let DrainProgress { told, remaining, paused, seconds_left, .. } = progress;
        let time = if paused { "left when it goes on" } else { "left" };
        let state = if paused { "drain paused" } else { "draining" };
        format!("{state}: {told} told, {remaining} to be told, {seconds_left:.0} s {time}")
    }

    fn drain_answer(&self, message: &str) -> Answer {
        let connections = self.ledger.connections();
        Answer::Done(Report { message: message.to_owned(), connections, drain: self.drain_progress() })
    }

    fn drained_so_far(&self) -> u64 {
        let of_slot = |seat: &crate::cluster::slot::Slot| seat.admitted.closed[CloseReason::Drain.index()];
        self.slots.iter().map(of_slot).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: Duration = Duration::from_secs(100);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn drain() -> Drain {
        Drain::new(BEGAN, seconds(30), 0)
    }

    #[test]
    fn a_worker_that_comes_in_the_middle_gets_what_is_left() {
        assert_eq!(drain().message(BEGAN + seconds(10)), ToWorker::Drain { duration: seconds(20) });
        assert_eq!(drain().message(BEGAN + seconds(31)), ToWorker::Drain { duration: Duration::ZERO });
    }

    #[test]
    fn a_pause_takes_no_time() {
        let mut drain = drain();
        drain.pause(BEGAN + seconds(10));
        drain.pause(BEGAN + seconds(15));
        assert_eq!(drain.message(BEGAN + seconds(900)), ToWorker::HoldDrain);
        assert!(!drain.is_overdue(BEGAN + seconds(900), seconds(5)));
        drain.resume(BEGAN + seconds(1000), None);
        assert_eq!(drain.left(BEGAN + seconds(1005)), seconds(15));
        assert!(!drain.is_overdue(BEGAN + seconds(1024), seconds(5)));
        assert!(drain.is_overdue(BEGAN + seconds(1025), seconds(5)));
    }

    #[test]
    fn another_time_holds_from_now_on() {
        let mut drain = drain();
        drain.resume(BEGAN + seconds(10), Some(seconds(60)));
        assert_eq!(drain.left(BEGAN + seconds(10)), seconds(60));
        drain.pause(BEGAN + seconds(20));
        drain.resume(BEGAN + seconds(30), Some(seconds(1)));
        assert_eq!(drain.left(BEGAN + seconds(30)), seconds(1));
    }

    #[test]
    fn the_second_signal_ends_it_unless_it_finds_it_paused() {
        let mut drain = drain();
        assert_eq!(drain.on_signal(BEGAN), Meaning::GoOn, "begun by hand, then stopped the usual way");
        drain.pause(BEGAN);
        assert_eq!(drain.on_signal(BEGAN + seconds(9)), Meaning::Resume);
        assert_eq!(drain.left(BEGAN + seconds(9)), seconds(30));
        assert_eq!(drain.on_signal(BEGAN + seconds(9)), Meaning::Stop);
    }
}
