//! How long to wait before starting again what keeps dying. The keeper uses it for workers, the supervisor
//! for keepers. Owns no clock: how long the dead one lived comes in as an argument.

use std::time::Duration;

/// The pauses of one thing that is started again whenever it dies.
///
/// Two deaths in quick succession cost nothing: people kill workers to see them come back, and a client that
/// waits in the accept queue should not notice. From the third on starts are kept apart, each time half as
/// long again as before, up to a ceiling, so that a thing that cannot live does not eat the machine. What
/// lived for longer than that, and is killed now and then, comes back at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    quick_deaths: u32,
    apart: Duration,
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
            let longer = self.apart + self.apart / 2;
            self.apart = longer.clamp(Self::FIRST_PAUSE, Self::CEILING);
        }
        self.apart.saturating_sub(lived)
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
    fn what_lived_longer_than_the_pause_comes_back_at_once() {
        let mut backoff = Backoff::default();
        for _ in 0..8 {
            assert_eq!(backoff.died(Duration::from_secs(3)), Duration::ZERO);
        }
        assert_eq!(backoff.died(Duration::from_millis(100)).as_millis(), 1039);
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
        assert_eq!(backoff.died(lived), Duration::ZERO);
        assert_eq!(pauses(&mut backoff, 1), [150], "it was the third death");
    }

    proptest! {
        #[test]
        fn quick_deaths_keep_starts_ever_further_apart_up_to_the_ceiling(lives in prop::collection::vec(0_u64..60, 20..60)) {
            let mut backoff = Backoff::default();
            let mut last = Duration::ZERO;
            for lived in lives.into_iter().map(Duration::from_secs) {
                let pause = backoff.died(lived);
                prop_assert!(pause.is_zero() || lived + pause >= last && lived + pause <= Backoff::CEILING);
                last = if pause.is_zero() { last } else { lived + pause };
            }
            prop_assert_eq!(backoff.died(Duration::ZERO), Backoff::CEILING);
        }
    }
}
