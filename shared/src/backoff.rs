//! How long to wait before starting again what keeps dying. The keeper uses it for workers, the supervisor
//! for keepers. Owns no clock: how long the dead one lived comes in as an argument.

use std::time::Duration;

/// The pauses of one thing that is started again whenever it dies.
///
/// Two deaths in quick succession cost nothing: people kill workers to see them come back, and a client that
/// waits in the accept queue should not notice. From the third on each pause is half as long again as the one
/// before, up to a ceiling, so that a thing that cannot live does not eat the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    quick_deaths: u32,
    pause: Duration,
}

impl Backoff {
    /// Whoever lived this long was healthy: its death is counted as the first.
    pub const HEALTHY: Duration = Duration::from_secs(60);
    /// No pause is longer.
    pub const CEILING: Duration = Duration::from_secs(30);
    const FIRST_PAUSE: Duration = Duration::from_millis(100);
    const FREE_DEATHS: u32 = 2;

    /// Records a death after `lived`; returns the pause before the next start, zero meaning at once.
    pub fn died(&mut self, lived: Duration) -> Duration {
        if lived >= Self::HEALTHY {
            *self = Self::default();
        }
        self.quick_deaths = self.quick_deaths.saturating_add(1);
        if self.quick_deaths > Self::FREE_DEATHS {
            let longer = self.pause + self.pause / 2;
            self.pause = longer.clamp(Self::FIRST_PAUSE, Self::CEILING);
        }
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pauses(backoff: &mut Backoff, deaths: usize) -> Vec<u128> {
        (0..deaths).map(|_| backoff.died(Duration::ZERO).as_millis()).collect()
    }

    #[test]
    fn the_first_deaths_are_free_then_pauses_grow() {
        assert_eq!(pauses(&mut Backoff::default(), 6), [0, 0, 100, 150, 225, 337]);
    }

    #[test]
    fn a_healthy_minute_resets() {
        let mut backoff = Backoff::default();
        pauses(&mut backoff, 10);
        assert_eq!(backoff.died(Backoff::HEALTHY), Duration::ZERO);
        assert_eq!(backoff.quick_deaths, 1);
        assert_eq!(pauses(&mut backoff, 2), [0, 100]);
    }

    #[test]
    fn just_under_a_minute_does_not_reset() {
        let mut backoff = Backoff::default();
        pauses(&mut backoff, 2);
        let lived = Backoff::HEALTHY.saturating_sub(Duration::from_nanos(1));
        assert_eq!(backoff.died(lived), Duration::from_millis(100));
    }

    proptest! {
        #[test]
        fn quick_deaths_never_shorten_the_pause_and_reach_the_ceiling(lives in prop::collection::vec(0_u64..60, 20..60)) {
            let mut backoff = Backoff::default();
            let mut last = Duration::ZERO;
            for lived in lives {
                let pause = backoff.died(Duration::from_secs(lived));
                prop_assert!(pause >= last && pause <= Backoff::CEILING);
                last = pause;
            }
            prop_assert_eq!(last, Backoff::CEILING);
        }
    }
}
