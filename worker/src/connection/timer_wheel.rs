//! A hashed timer wheel (Varghese and Lauck, scheme 5) with one timer per connection. Arm, cancel and expire
//! are O(1) and allocate nothing: the list links live in the connections' own records. Owns no clock and
//! decides nothing; the caller says what time it is and what an expired timer means.
//!
//! Meant for lazy timers: activity on a connection moves its deadlines in the record and never touches the
//! wheel. When the timer fires, the owner compares the clock with the earliest true deadline and re-arms if
//! that is still ahead. That is also why a deadline beyond the horizon may fire early.
//!
//! All times are milliseconds on one monotonic clock.

use std::time::Duration;

/// The place of one record in the wheel, stored in the record. All zeros mean "not armed", so a fresh record
/// needs no preparation; links that a dead worker left behind must be reset to that before the first use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimerLink {
    /// The record behind this one in its bucket; [`TimerLink::NONE`] at the end.
    pub next: u32,
    /// The record before this one in its bucket; [`TimerLink::NONE`] at the head.
    pub previous: u32,
    /// The number of the bucket plus one; zero while not armed.
    pub place: u16,
}

impl TimerLink {
    /// The index of no record.
    pub const NONE: u32 = u32::MAX;
    /// The link of a record whose timer is not armed.
    pub const UNARMED: Self = Self { next: 0, previous: 0, place: 0 };

    /// Whether the timer is in the wheel.
    #[must_use]
    pub fn is_armed(self) -> bool {
        self.place != 0
    }
}

/// Where the links live. A record's index must stay its own while its timer is armed.
pub trait Links {
    /// The link of record `index`.
    fn link(&self, index: u32) -> TimerLink;
    /// Stores the link of record `index`.
    fn set_link(&mut self, index: u32, link: TimerLink);
}

/// How long a tick lasts, in milliseconds: the precision of every timer.
pub const TICK: u64 = 64;

const BUCKETS: u16 = 1024;
const WORDS: usize = BUCKETS as usize / 64;

/// The heads of the lists, one per tick of the next 65 seconds.
#[derive(Debug)]
pub struct TimerWheel {
    /// The first record of each bucket. Deadlines are clamped to one turn of the wheel, so a bucket never
    /// mixes ticks and expires as a whole.
    heads: Box<[u32; BUCKETS as usize]>,
    /// One bit per bucket: whether it has a record.
    occupied: [u64; WORDS],
    /// The first tick that has not been expired completely; nothing is armed before it.
    cursor: u64,
    armed: usize,
}

impl TimerWheel {
    /// A deadline may lie this far ahead, in milliseconds, and still fire on time; later ones fire early.
    #[cfg(test)]
    pub const HORIZON: u64 = (BUCKETS as u64 - 1) * TICK;

    /// An empty wheel that starts at `now`.
    #[must_use]
    pub fn new(now: u64) -> Self {
        let heads = Box::new([TimerLink::NONE; BUCKETS as usize]);
        Self { heads, occupied: [0; WORDS], cursor: now / TICK, armed: 0 }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.armed
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// Arms the timer of record `index`, or moves it if it is armed. It fires at the first tick at or after
    /// `deadline`; a deadline in the past fires at the next [`pop_expired`](Self::pop_expired), one beyond
    /// the [horizon](Self::HORIZON) at the horizon.
    pub fn arm(&mut self, links: &mut impl Links, index: u32, deadline: u64) {
        self.cancel(links, index);
        let latest = self.cursor.saturating_add(u64::from(BUCKETS) - 1);
        let bucket = bucket_of(deadline.div_ceil(TICK).clamp(self.cursor, latest));
        let head = &mut self.heads[usize::from(bucket)];
        let next = std::mem::replace(head, index);
        links.set_link(index, TimerLink { next, previous: TimerLink::NONE, place: bucket + 1 });
        if next != TimerLink::NONE {
            let follower = links.link(next);
            links.set_link(next, TimerLink { previous: index, ..follower });
        }
        self.mark(bucket);
        self.armed += 1;
    }

    /// Disarms the timer of record `index`; nothing happens if it is not armed. Must precede the end of the
    /// record.
    pub fn cancel(&mut self, links: &mut impl Links, index: u32) {
        let link = links.link(index);
        if !link.is_armed() {
            return;
        }
        if link.next != TimerLink::NONE {
            let follower = links.link(link.next);
            links.set_link(link.next, TimerLink { previous: link.previous, ..follower });
        }
        if link.previous == TimerLink::NONE {
            let bucket = bucket_of(u64::from(link.place - 1));
            self.heads[usize::from(bucket)] = link.next;
            self.mark(bucket);
        } else {
            let leader = links.link(link.previous);
            links.set_link(link.previous, TimerLink { next: link.next, ..leader });
        }
        links.set_link(index, TimerLink::UNARMED);
        self.armed = self.armed.saturating_sub(1);
    }

    /// Takes one timer whose tick has come out of the wheel and returns its record, earliest tick first;
    /// `None` when none is left. One at a time, so that the caller can bound its work and may arm or
    /// cancel in between.
    pub fn pop_expired(&mut self, links: &mut impl Links, now: u64) -> Option<u32> {
        let now = now / TICK;
        match self.next_occupied() {
            Some(tick) if tick <= now => {
                self.cursor = tick;
                let index = self.heads[usize::from(bucket_of(tick))];
                self.cancel(links, index);
                Some(index)
            }
            _ => {
                self.cursor = self.cursor.max(now.saturating_add(1));
                None
            }
        }
    }

    /// How long the caller may sleep before a timer expires; `None` when none is armed.
    #[must_use]
    pub fn next_wakeup(&self, now: u64) -> Option<Duration> {
        let due = self.next_occupied()?.saturating_mul(TICK);
        Some(Duration::from_millis(due.saturating_sub(now)))
    }

    /// The earliest tick with a timer, found in at most one pass over the bits.
    fn next_occupied(&self) -> Option<u64> {
        let start = bucket_of(self.cursor);
        let (word, bit) = (usize::from(start / 64), start % 64);
        // The word of the cursor comes twice: its upper bits are the nearest ticks, its lower bits the
        // farthest.
        let upper = self.occupied[word] & (u64::MAX << bit);
        let others = (1..WORDS).map(|step| (word + step) % WORDS).map(|word| (word, self.occupied[word]));
        let lower = (word, self.occupied[word] & !(u64::MAX << bit));
        let (word, bits) =
            std::iter::once((word, upper)).chain(others).chain([lower]).find(|found| found.1 != 0)?;
        let bucket = word as u64 * 64 + u64::from(bits.trailing_zeros());
        let ahead = (bucket + u64::from(BUCKETS) - u64::from(start)) % u64::from(BUCKETS);
        Some(self.cursor.saturating_add(ahead))
    }

    /// Sets the bit of `bucket` to whether it has a record.
    fn mark(&mut self, bucket: u16) {
        let bit = 1 << (bucket % 64);
        let word = &mut self.occupied[usize::from(bucket / 64)];
        if self.heads[usize::from(bucket)] == TimerLink::NONE { *word &= !bit } else { *word |= bit }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the remainder is below BUCKETS")]
fn bucket_of(tick: u64) -> u16 {
    (tick % u64::from(BUCKETS)) as u16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    struct Store(Vec<TimerLink>);

    impl Links for Store {
        fn link(&self, index: u32) -> TimerLink {
            self.0[index as usize]
        }
        fn set_link(&mut self, index: u32, link: TimerLink) {
            self.0[index as usize] = link;
        }
    }

    fn fixture(now: u64) -> (TimerWheel, Store) {
        (TimerWheel::new(now), Store(vec![TimerLink::default(); 64]))
    }

    fn drain(wheel: &mut TimerWheel, store: &mut Store, now: u64) -> Vec<u32> {
        std::iter::from_fn(|| wheel.pop_expired(store, now)).collect()
    }

    #[test]
    fn fires_at_the_tick_not_before_and_once() {
        let (mut wheel, mut store) = fixture(0);
        wheel.arm(&mut store, 7, 65);
        assert_eq!(wheel.next_wakeup(0), Some(Duration::from_millis(128)));
        assert!(drain(&mut wheel, &mut store, 127).is_empty());
        assert_eq!(drain(&mut wheel, &mut store, 128), [7]);
        assert!(drain(&mut wheel, &mut store, 128).is_empty());
        assert_eq!(wheel.next_wakeup(128), None);
        assert!(!store.link(7).is_armed() && wheel.is_empty());
    }

    #[test]
    fn a_deadline_beyond_the_horizon_fires_early() {
        let (mut wheel, mut store) = fixture(0);
        wheel.arm(&mut store, 1, u64::MAX);
        assert!(drain(&mut wheel, &mut store, TimerWheel::HORIZON - 1).is_empty());
        assert_eq!(drain(&mut wheel, &mut store, TimerWheel::HORIZON), [1]);
    }

    #[test]
    fn a_long_stall_expires_everything_in_order_of_ticks() {
        let (mut wheel, mut store) = fixture(1_000_000);
        for (index, after) in [(1, 3_000), (2, 60_000), (3, 1_000)] {
            wheel.arm(&mut store, index, 1_000_000 + after);
        }
        assert_eq!(drain(&mut wheel, &mut store, 9_000_000), [3, 1, 2]);
        wheel.arm(&mut store, 4, 9_000_001);
        assert_eq!(drain(&mut wheel, &mut store, 9_000_100), [4]);
    }

    #[test]
    fn an_old_deadline_fires_within_a_tick() {
        let (mut wheel, mut store) = fixture(10_000);
        assert!(drain(&mut wheel, &mut store, 10_000).is_empty());
        wheel.arm(&mut store, 5, 3);
        let pause = wheel.next_wakeup(10_000).unwrap();
        assert!(pause <= Duration::from_millis(TICK));
        assert_eq!(drain(&mut wheel, &mut store, 10_000 + TICK), [5]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arm(u32, u64),
        Cancel(u32),
        /// Time passes, then at most so many expired timers are taken.
        Pass(u64, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let delay =
            prop_oneof![0..200_u64, 0..5_000_u64, TimerWheel::HORIZON - 200..TimerWheel::HORIZON + 100_000];
        let pass = prop_oneof![4 => 0..100_u64, 2 => 0..5_000_u64, 1 => 0..200_000_u64];
        prop_oneof![
            4 => (0..64_u32, delay).prop_map(|(index, delay)| Step::Arm(index, delay)),
            1 => (0..64_u32).prop_map(Step::Cancel),
            3 => (pass, 0..80_usize).prop_map(|(pass, most)| Step::Pass(pass, most)),
        ]
    }

    /// What the wheel should do, slowly: every armed timer with its tick, its true deadline and
    /// whether that lies beyond the horizon.
    struct Model {
        armed: BTreeMap<u32, (u64, u64, bool)>,
        now: u64,
        cursor: u64,
    }

    impl Model {
        fn arm(&mut self, index: u32, deadline: u64) {
            let horizon = self.cursor + TimerWheel::HORIZON / TICK;
            let tick = deadline.div_ceil(TICK);
            self.armed.insert(index, (tick.clamp(self.cursor, horizon), deadline, tick > horizon));
        }

        fn first_tick(&self) -> Option<u64> {
            self.armed.values().map(|timer| timer.0).min()
        }

        fn next_wakeup(&self) -> Option<Duration> {
            self.first_tick().map(|tick| Duration::from_millis((tick * TICK).saturating_sub(self.now)))
        }

        /// Checks that `index` may fire now, before all others.
        fn fired(&mut self, index: u32) {
            let first = self.first_tick();
            let (tick, deadline, clamped) = self.armed.remove(&index).expect("an armed timer");
            assert_eq!(Some(tick), first, "an earlier timer is still armed");
            // Only a timer that the horizon clamped may precede its deadline.
            assert!(tick * TICK <= self.now && (deadline <= self.now || clamped), "fired early");
            self.cursor = tick;
        }

        fn drained(&mut self) {
            self.cursor = self.now / TICK + 1;
            assert!(self.first_tick().is_none_or(|tick| tick >= self.cursor), "left behind");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_map(start in 0_u64..1 << 45, steps in prop::collection::vec(step(), 1..300)) {
            let (mut wheel, mut store) = fixture(start);
            let mut model = Model { armed: BTreeMap::new(), now: start, cursor: start / TICK };
            for step in steps {
                match step {
                    Step::Arm(index, delay) => {
                        wheel.arm(&mut store, index, model.now + delay);
                        model.arm(index, model.now + delay);
                    }
                    Step::Cancel(index) => {
                        wheel.cancel(&mut store, index);
                        model.armed.remove(&index);
                    }
                    Step::Pass(pass, most) => {
                        model.now += pass;
                        for _ in 0..most {
                            match wheel.pop_expired(&mut store, model.now) {
                                Some(index) => model.fired(index),
                                None => {
                                    model.drained();
                                    break;
                                }
                            }
                        }
                    }
                }
                prop_assert_eq!(wheel.len(), model.armed.len());
                prop_assert_eq!(wheel.next_wakeup(model.now), model.next_wakeup());
                for index in 0..64 {
                    prop_assert_eq!(store.link(index).is_armed(), model.armed.contains_key(&index));
                }
            }
        }

        #[test]
        fn never_early_and_at_most_a_tick_late(start in 0_u64..1 << 45, delay in 0..=TimerWheel::HORIZON - TICK, stride in 1..TICK) {
            let (mut wheel, mut store) = fixture(start);
            prop_assert_eq!(wheel.pop_expired(&mut store, start), None);
            wheel.arm(&mut store, 0, start + delay);
            let mut now = start;
            while wheel.pop_expired(&mut store, now).is_none() {
                // Close to the deadline every millisecond is looked at.
                now += if now + stride < start + delay { stride } else { 1 };
            }
            prop_assert!(now >= start + delay && now <= start + delay + TICK, "{} late", now - start - delay);
        }
    }
}
