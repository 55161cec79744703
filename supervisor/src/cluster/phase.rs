//! Where the whole service is in its life, and what is left of a drain's time. Decides nothing.

use std::time::Duration;

use holdfast_shared::ipc::message::ToWorker;

/// Where the whole service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not every slot has served yet, or was given up.
    Starting,
    /// All slots have served.
    Running,
    /// Nobody is let in, clients are told to go, one by one.
    Draining(DrainTime),
    /// Workers tell their clients and leave.
    Stopping,
}

impl Phase {
    pub(crate) fn is_ending(self) -> bool {
        matches!(self, Self::Draining(_) | Self::Stopping)
    }

    /// What a worker is told that is to finish.
    pub(super) fn last_order(self, now: Duration) -> ToWorker {
        match self {
            Self::Draining(time) => time.message(now),
            Self::Starting | Self::Running | Self::Stopping => ToWorker::Leave,
        }
    }
}

/// The time of a drain, whether or not it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DrainTime {
    /// The last client is told at this moment.
    Running { tell_by: Duration },
    /// Nobody is told; so much time is left when it goes on.
    Paused { left: Duration },
}

impl DrainTime {
    pub(crate) fn new(now: Duration, duration: Duration) -> Self {
        Self::Running { tell_by: now + duration }
    }

    /// What is left of it.
    pub(crate) fn left(self, now: Duration) -> Duration {
        match self {
            Self::Running { tell_by } => tell_by.saturating_sub(now),
            Self::Paused { left } => left,
        }
    }

    pub(crate) fn is_paused(self) -> bool {
        matches!(self, Self::Paused { .. })
    }

    pub(crate) fn paused(self, now: Duration) -> Self {
        Self::Paused { left: self.left(now) }
    }

    /// Going on, with `duration` instead of what was left if there is one.
    pub(crate) fn resumed(self, now: Duration, duration: Option<Duration>) -> Self {
        Self::new(now, duration.unwrap_or(self.left(now)))
    }

    /// When those who were told last have had `grace` to go.
    pub(crate) fn is_over_at(self, grace: Duration) -> Option<Duration> {
        match self {
            Self::Running { tell_by } => Some(tell_by + grace),
            Self::Paused { .. } => None,
        }
    }

    /// What a worker is told to do.
    fn message(self, now: Duration) -> ToWorker {
        match self {
            Self::Running { .. } => ToWorker::Drain { duration: self.left(now) },
            Self::Paused { .. } => ToWorker::HoldDrain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: Duration = Duration::from_secs(100);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn drain() -> DrainTime {
        DrainTime::new(BEGAN, seconds(30))
    }

    #[test]
    fn a_worker_that_comes_in_the_middle_gets_what_is_left() {
        assert_eq!(drain().message(BEGAN + seconds(10)), ToWorker::Drain { duration: seconds(20) });
        assert_eq!(drain().message(BEGAN + seconds(31)), ToWorker::Drain { duration: Duration::ZERO });
    }

    #[test]
    fn a_pause_takes_no_time() {
        let paused = drain().paused(BEGAN + seconds(10)).paused(BEGAN + seconds(15));
        assert_eq!(paused.message(BEGAN + seconds(900)), ToWorker::HoldDrain);
        assert_eq!(paused.is_over_at(seconds(5)), None);
        let resumed = paused.resumed(BEGAN + seconds(1000), None);
        assert_eq!(resumed.left(BEGAN + seconds(1005)), seconds(15));
        assert_eq!(resumed.is_over_at(seconds(5)), Some(BEGAN + seconds(1025)));
    }

    #[test]
    fn another_time_holds_from_now_on() {
        let longer = drain().resumed(BEGAN + seconds(10), Some(seconds(60)));
        assert_eq!(longer.left(BEGAN + seconds(10)), seconds(60));
        let shorter = longer.paused(BEGAN + seconds(20)).resumed(BEGAN + seconds(30), Some(seconds(1)));
        assert_eq!(shorter.left(BEGAN + seconds(30)), seconds(1));
    }
}
