//! When each of so many is due within a time. Pure: knows no clock and no connection.
//!
//! The time is cut into as many equal parts as there are clients, and each is due at a random moment of its
//! own part. So the rate is even to within one client however long one looks, and yet no two clients, and no
//! two workers, keep step.

use std::time::Duration;

/// A plan for so many within a time.
#[derive(Debug)]
pub(crate) struct Pace {
    began: Duration,
    duration: Duration,
    count: u32,
    given: u32,
    next_moment: Duration,
}

impl Pace {
    /// `count` are due between `now` and `duration` later. `random`, from 0 to below 1, is where in its part of
    /// the time the first one's moment is.
    pub(crate) fn new(now: Duration, duration: Duration, count: u32, random: f64) -> Self {
        let mut pace = Self { began: now, duration, count, given: 0, next_moment: now };
        pace.next_moment = pace.moment(0, random);
        pace
    }

    /// When [`Pace::take_due`] may have something to give next.
    pub(crate) fn next_moment(&self) -> Duration {
        self.next_moment
    }

    /// How many more are due at `now`. `random` gives the same for those who come after.
    pub(crate) fn take_due(&mut self, now: Duration, mut random: impl FnMut() -> f64) -> u32 {
        let before = self.given;
        while self.given < self.count && self.next_moment <= now {
            self.given += 1;
            self.next_moment = self.moment(self.given, random());
        }
        self.given - before
    }

    fn moment(&self, position: u32, random: f64) -> Duration {
        let part = (f64::from(position) + random) / f64::from(self.count.max(1));
        self.began + self.duration.mul_f64(part.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEGAN: Duration = Duration::from_secs(1000);

    /// The moments at which each one is told by a loop that wakes when it is due, and not before `lag` later.
    fn play(duration: Duration, count: u32, lag: Duration, seed: u64) -> Vec<Duration> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut pace = Pace::new(BEGAN, duration, count, random.f64());
        let (mut now, mut told) = (BEGAN, Vec::new());
        while told.len() < count as usize {
            let due = pace.take_due(now, || random.f64());
            told.extend((0..due).map(|_| now - BEGAN));
            now = now.max(pace.next_moment()) + lag;
        }
        told
    }

    proptest! {
        #[test]
        fn the_share_told_is_the_share_of_the_time_that_has_passed(
            count in 1u32..2000, milliseconds in 1u64..600_000, seed: u64
        ) {
            let duration = Duration::from_millis(milliseconds);
            let told = play(duration, count, Duration::ZERO, seed);
            prop_assert!(told.is_sorted());
            for (position, moment) in told.iter().enumerate() {
                let share = moment.as_secs_f64() / duration.as_secs_f64() * f64::from(count);
                let position = u32::try_from(position).unwrap();
                prop_assert!((f64::from(position) - 0.01..=f64::from(position) + 1.01).contains(&share));
            }
        }

        #[test]
        fn a_loop_that_wakes_late_makes_up_for_it(count in 1u32..2000, lag in 1u64..3000, seed: u64) {
            let (duration, lag) = (Duration::from_secs(30), Duration::from_millis(lag));
            let told = play(duration, count, lag, seed);
            prop_assert!(*told.last().unwrap() <= duration + lag);
        }

        #[test]
        fn those_left_over_by_a_pause_take_the_time_that_was_left(
            count in 2u32..2000, paused_at in 0.0f64..1.0, seed: u64
        ) {
            let duration = Duration::from_secs(30);
            let mut random = fastrand::Rng::with_seed(seed);
            let mut pace = Pace::new(BEGAN, duration, count, random.f64());
            let told = pace.take_due(BEGAN + duration.mul_f64(paused_at), || random.f64());
            let rest = play(duration.mul_f64(1.0 - paused_at), count - told, Duration::ZERO, seed);
            prop_assert_eq!(rest.len(), (count - told) as usize);
            prop_assert!(rest.iter().all(|moment| *moment <= duration.mul_f64(1.0 - paused_at)));
        }
    }

    #[test]
    fn two_workers_do_not_keep_step() {
        let (one, other) = (
            play(Duration::from_secs(30), 100, Duration::ZERO, 1),
            play(Duration::from_secs(30), 100, Duration::ZERO, 2),
        );
        let together = one.iter().filter(|moment| other.contains(moment)).count();
        assert!(together < 5, "{together} of 100 at the same moment");
        let gaps: Vec<_> = one.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let even = Duration::from_millis(300);
        assert!(gaps.iter().filter(|gap| gap.abs_diff(even) < even / 10).count() < 50, "{gaps:?}");
    }

    #[test]
    fn no_time_means_at_once() {
        assert_eq!(Pace::new(BEGAN, Duration::ZERO, 12_345, 0.5).take_due(BEGAN, || 0.5), 12_345);
    }
}
