//! `publish_rate`: each channel has a second's worth of publications, which fills up again as time goes by.

use std::collections::HashMap;
use std::time::Duration;

/// Channels with a rate that were published to of late.
#[derive(Debug, Default)]
pub(super) struct Rates(HashMap<u32, Bucket>);

#[derive(Debug)]
struct Bucket {
    /// Publications that may be made now, in millionths.
    millionths: u64,
    filled: Duration,
}

const MILLION: u64 = 1_000_000;

impl Rates {
    /// May one more be made, at `rate` in a second? Counts it if so.
    pub(super) fn take(&mut self, channel: u32, rate: u32, now: Duration) -> bool {
        if rate == 0 {
            return true;
        }
        let most = u64::from(rate) * MILLION;
        let bucket = self.0.entry(channel).or_insert(Bucket { millionths: most, filled: now });
        let elapsed = now.saturating_sub(bucket.filled).min(Duration::from_secs(1));
        let gained = u64::from(rate) * u64::try_from(elapsed.as_micros()).unwrap_or(MILLION);
        bucket.millionths = (bucket.millionths + gained).min(most);
        bucket.filled = now;
        let is_allowed = bucket.millionths >= MILLION;
        if is_allowed {
            bucket.millionths -= MILLION;
        }
        is_allowed
    }

    /// Forgets those that are full again.
    pub(super) fn forget_old(&mut self, now: Duration) {
        self.0.retain(|_, bucket| now.saturating_sub(bucket.filled) < Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_as_many_as_the_rate_says() {
        let mut rates = Rates::default();
        let at = Duration::from_millis;
        let taken = |rates: &mut Rates, time| (0..100).filter(|_| rates.take(1, 10, time)).count();
        assert_eq!(taken(&mut rates, at(0)), 10);
        assert_eq!(taken(&mut rates, at(500)), 5);
        assert_eq!(taken(&mut rates, at(9000)), 10);
        rates.forget_old(at(20_000));
        assert!(rates.0.is_empty() && rates.take(1, 0, at(0)));
    }
}
