//! How many messages a second one connection may send: a bucket that holds one second's worth of them. Pure. What is
//! remembered are four bytes of the record, so that an idle connection costs no more, and the next worker goes on with them.
//!
//! It is counted in thousandths of a message: at N messages a second, N thousandths come back each millisecond, and nothing
//! is ever rounded.

const MESSAGE: i64 = 1000;

/// The bucket of one connection, for the time of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MessageRate {
    /// Thousandths of a message that were taken and have not come back. Below zero, more than a second's worth is there.
    taken: i64,
    most: i64,
}

impl MessageRate {
    /// The bucket from which `taken` was missing `elapsed_ms` ago. `None` without a limit.
    pub(super) fn new(taken: i32, elapsed_ms: u64, per_second: u32) -> Option<Self> {
        let returned = i64::try_from(elapsed_ms.saturating_mul(per_second.into())).unwrap_or(i64::MAX);
        let taken = i64::from(taken);
        // It does not run over. What is there beyond a second's worth stays until it is used.
        let taken = taken.saturating_sub(returned).max(taken.min(0));
        (per_second > 0).then_some(Self { taken, most: i64::from(per_second) * MESSAGE })
    }

    /// Takes a message; false when it comes too soon.
    #[inline]
    pub(super) fn take(&mut self) -> bool {
        let taken = self.taken + MESSAGE;
        let is_allowed = taken <= self.most;
        if is_allowed {
            self.taken = taken;
        }
        is_allowed
    }

    /// What is to be remembered.
    pub(super) fn taken(self) -> i32 {
        narrow(self.taken)
    }
}

/// The client was not read for so long. What it sent meanwhile comes at once, and is no more than it might have sent.
pub(super) fn after_pause(taken: i32, unread_ms: u64, per_second: u32) -> i32 {
    let allowed = i64::try_from(unread_ms.saturating_mul(per_second.into())).unwrap_or(i64::MAX);
    narrow(i64::from(taken).saturating_sub(allowed))
}

/// The limit is another now: whoever had used half of the one before has used half of this one.
pub(super) fn after_change(taken: i32, before: u32, per_second: u32) -> i32 {
    match before {
        0 => 0,
        before => narrow(i64::from(taken) * i64::from(per_second) / i64::from(before)),
    }
}

fn narrow(taken: i64) -> i32 {
    i32::try_from(taken).unwrap_or(if taken < 0 { i32::MIN } else { i32::MAX })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lets messages through that come so many milliseconds after each other, in reads that end as `cuts` say: how many.
    fn let_through(gaps_ms: &[u64], cuts: &[bool], per_second: u32) -> Vec<bool> {
        let (mut taken, mut elapsed_ms, mut cuts) = (0, 0, cuts.iter().cycle());
        let mut rate = MessageRate::new(0, 0, per_second).unwrap();
        gaps_ms
            .iter()
            .map(|&gap_ms| {
                // Time passes between reads alone; a record may be written down and read again between any two.
                elapsed_ms += gap_ms;
                if gap_ms > 0 || *cuts.next().unwrap() {
                    taken = rate.taken();
                    rate = MessageRate::new(taken, std::mem::take(&mut elapsed_ms), per_second).unwrap();
                }
                rate.take()
            })
            .collect()
    }

    proptest! {
        #[test]
        fn it_is_exact_however_messages_come(
            gaps_ms in prop::collection::vec(prop_oneof![4 => Just(0u64), 2 => 0..30u64, 1 => 0..3_000u64], 1..400),
            cuts in prop::collection::vec(any::<bool>(), 1..9),
            per_second in prop_oneof![1..20u32, Just(1_000_000)],
        ) {
            let through = let_through(&gaps_ms, &cuts, per_second);
            // In any span of time, no more than a second's worth and what comes back in that span.
            let mut times: Vec<u64> = Vec::new();
            let mut now_ms = 0;
            for (gap_ms, is_through) in gaps_ms.iter().zip(&through) {
                now_ms += gap_ms;
                let most = |since: u64| u64::from(per_second) * 1000 + (now_ms - since) * u64::from(per_second);
                let fits = times.iter().rev().zip(2..).all(|(&since, count)| count * 1000 <= most(since));
                prop_assert_eq!(*is_through, fits, "at {} ms", now_ms);
                if *is_through {
                    times.push(now_ms);
                }
            }
        }
    }

    #[test]
    fn a_second_of_messages_may_come_at_once_and_then_one_each_part_of_a_second() {
        let mut rate = MessageRate::new(0, 0, 3).unwrap();
        assert_eq!([(); 4].map(|()| rate.take()), [true, true, true, false]);
        let later = |ms| MessageRate::new(rate.taken(), ms, 3).unwrap().take();
        assert_eq!((later(333), later(334)), (false, true));
        assert_eq!(MessageRate::new(0, 0, 0), None, "no limit");
    }

    #[test]
    fn who_was_not_read_may_send_what_it_might_have_sent() {
        let mut rate = MessageRate::new(after_pause(0, 2_000, 3), 50_000, 3).unwrap();
        assert_eq!((0..20).filter(|_| rate.take()).count(), 3 + 6);
    }

    #[test]
    fn a_lower_limit_closes_nobody_who_kept_the_one_before() {
        let mut rate = MessageRate::new(after_change(900_000, 1000, 10), 0, 10).unwrap();
        assert!(rate.take() && !rate.take());
        assert_eq!(after_change(5, 0, 10), 0);
        assert_eq!(after_change(i32::MIN, 1, u32::MAX), i32::MIN);
    }
}
