//! The paced drain, for the whole service: how long there is, who may pause it, and when it is over. Whom to
//! tell, and when, is each worker's own business.
//!
//! The supervisor alone keeps the time: workers are told what is left of it, so that one that comes up in the
//! middle goes on where the last one was.

use std::time::Duration;

use holdfast_shared::reason::CloseReason;

use super::{Kind, Operation, Turn};
use crate::api::{Answer, DrainOrder, DrainProgress, Failure, Report, Step};
use crate::cluster::{Cluster, DrainTime, Phase, Slot};
use crate::host::notify;

/// The longest that clients who were told are waited for, whatever `timeouts.close` says: whoever stops the
/// service wants it to end.
const LONGEST_GRACE: Duration = Duration::from_secs(5);

/// How often the log and the service manager hear how far it has come.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// A drain under way. Its time is the cluster's, which tells it to workers that come up meanwhile.
#[derive(Debug)]
pub(super) struct Drain {
    /// A signal has asked for it: the next one does not ask again.
    signalled: bool,
    /// Closes with reason `drain` that were counted before it began.
    closed_before: u64,
    next_progress: Duration,
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

/// The first signal asks for what is going on already: an operator who has begun a drain by hand may then
/// stop the service the usual way. One that finds the drain paused lets it go on: somebody held it with a
/// purpose, and nobody should be cut off by less than a signal that finds it running.
fn meaning(is_paused: bool, was_signalled: bool) -> Meaning {
    match (is_paused, was_signalled) {
        (true, _) => Meaning::Resume,
        (false, false) => Meaning::GoOn,
        (false, true) => Meaning::Stop,
    }
}

/// Carries out an operator's order; asked for twice, it is done once.
pub(super) fn order(
    drain: &mut Option<Drain>,
    cluster: &mut Cluster,
    order: DrainOrder,
) -> Result<Answer, Failure> {
    const DRAINING: &str = "draining: clients are told to go, then the service exits";
    let (step, now) = (order.step(), cluster.now());
    let (drain, time) = match (drain, cluster.phase()) {
        (Some(drain), Phase::Draining(time)) => (drain, time),
        (drain, _) if step == Step::Begin => {
            let drain = drain.insert(Drain::begin(cluster, order.duration, false));
            return Ok(drain.answer(cluster, DRAINING));
        }
        _ => {
            let error = "no drain is under way; POST /drain (holdfast ctl drain) begins one";
            return Err(Failure::new(409, error));
        }
    };
    let (was_paused, is_new) = (time.is_paused(), order.duration.is_some());
    match step {
        Step::Begin if was_paused => {
            let remedy = "POST /drain/resume (holdfast ctl drain --resume) lets it go on";
            Err(Failure::new(409, format!("the drain is paused; {remedy}")))
        }
        Step::Pause if was_paused => Ok(drain.answer(cluster, "paused already")),
        Step::Pause => {
            drain.set_time(cluster, time.paused(now), "drain paused");
            Ok(drain.answer(cluster, "paused: nobody is told to go, nobody is let in"))
        }
        Step::Begin | Step::Resume if !was_paused && !is_new => Ok(drain.answer(cluster, "draining already")),
        Step::Begin | Step::Resume => {
            let what = if was_paused { "drain resumed" } else { "drain has another time" };
            drain.set_time(cluster, time.resumed(now, order.duration), what);
            Ok(drain.answer(cluster, DRAINING))
        }
    }
}

impl Drain {
    /// Begins one, over `duration` or the configured time.
    pub(super) fn begin(cluster: &mut Cluster, duration: Option<Duration>, signalled: bool) -> Self {
        let duration = duration.unwrap_or(cluster.config().drain.duration);
        let closed_before = cluster.slots().map(|slot| slot.closed_for(CloseReason::Drain)).sum();
        log::info!("draining: {} connections are closed over {duration:?}", cluster.connections());
        notify::stopping("draining");
        cluster.begin_ending(Phase::Draining(DrainTime::new(cluster.now(), duration)));
        Self { signalled, closed_before, next_progress: cluster.now() + PROGRESS_INTERVAL }
    }

    /// A signal to end has come. Says whether it is to be the end at once.
    pub(super) fn on_signal(&mut self, cluster: &mut Cluster) -> bool {
        let Phase::Draining(time) = cluster.phase() else { return false };
        let meaning = meaning(time.is_paused(), std::mem::replace(&mut self.signalled, true));
        match meaning {
            Meaning::GoOn => log::info!("the drain goes on; one more signal ends it at once"),
            Meaning::Resume => {
                self.set_time(cluster, time.resumed(cluster.now(), None), "drain resumed by a signal");
            }
            Meaning::Stop => {}
        }
        meaning == Meaning::Stop
    }

    /// How far it has come.
    pub(super) fn progress(&self, cluster: &Cluster) -> Option<DrainProgress> {
        let Phase::Draining(time) = cluster.phase() else { return None };
        let drains = || cluster.slots().map(Slot::draining);
        let left = time.left(cluster.now()).as_secs_f64();
        Some(DrainProgress {
            told: drains().map(|drain| drain.told).sum::<u64>().saturating_sub(self.closed_before),
            remaining: drains().map(|drain| drain.untold).sum(),
            paused: time.is_paused(),
            seconds_left: left,
            eta_seconds: (!time.is_paused()).then_some(left),
        })
    }

    /// Tells workers, log and service manager that the time is another one.
    fn set_time(&self, cluster: &mut Cluster, time: DrainTime, what: &str) {
        cluster.set_drain_time(time);
        let progress = self.describe(cluster);
        log::info!("{what}; {progress}");
        notify::still_stopping(&progress, PROGRESS_INTERVAL * 3);
    }

    fn describe(&self, cluster: &Cluster) -> String {
        let Some(progress) = self.progress(cluster) else { return String::new() };
        let DrainProgress { told, remaining, paused, seconds_left, .. } = progress;
        let time = if paused { "left when it goes on" } else { "left" };
        let state = if paused { "drain paused" } else { "draining" };
        format!("{state}: {told} told, {remaining} to be told, {seconds_left:.0} s {time}")
    }

    fn answer(&self, cluster: &Cluster, message: &str) -> Answer {
        let (connections, drain) = (cluster.connections(), self.progress(cluster));
        Answer::Done(Report { message: message.to_owned(), connections, drain })
    }
}

/// When those who were told last have had their time to go.
fn is_over_at(cluster: &Cluster) -> Option<Duration> {
    let Phase::Draining(time) = cluster.phase() else { return None };
    time.is_over_at(cluster.config().timeouts.close.min(LONGEST_GRACE))
}

impl Operation for Drain {
    fn kind(&self) -> Option<Kind> {
        Some(Kind::Drain)
    }

    fn deadline(&self, cluster: &Cluster) -> Option<Duration> {
        Some(is_over_at(cluster).map_or(self.next_progress, |over| over.min(self.next_progress)))
    }

    fn turn(&mut self, cluster: &mut Cluster, _: Turn<'_>) -> bool {
        let is_paused = matches!(cluster.phase(), Phase::Draining(time) if time.is_paused());
        // Nobody counted is nobody left only once the adopted slots have said whom they hold.
        if !is_paused && cluster.is_counted() && cluster.connections() == 0 {
            log::info!("drained: nobody is left");
            return true;
        }
        if is_over_at(cluster).is_some_and(|over| cluster.now() >= over) {
            log::warn!("the drain's time is over: {} clients did not leave", cluster.connections());
            return true;
        }
        if cluster.now() >= self.next_progress {
            self.next_progress = cluster.now() + PROGRESS_INTERVAL;
            let progress = self.describe(cluster);
            log::info!("{progress}");
            // The manager's patience (TimeoutStopSec) runs from STOPPING=1, and a drain may be longer.
            notify::still_stopping(&progress, PROGRESS_INTERVAL * 3);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_signal_ends_it_unless_it_finds_it_paused() {
        assert_eq!(meaning(false, false), Meaning::GoOn, "begun by hand, then stopped the usual way");
        assert_eq!(meaning(true, true), Meaning::Resume);
        assert_eq!(meaning(true, false), Meaning::Resume);
        assert_eq!(meaning(false, true), Meaning::Stop);
    }
}
