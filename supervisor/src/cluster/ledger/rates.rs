//! How fast connections may come: one rate for the whole server, one for each address. Over any time of t seconds at most
//! `rate * t` are let in, and one second's worth on top.
//!
//! A bucket is one moment: when it will be full again (the generic cell rate algorithm, ITU-T I.371). One that is full need
//! not be kept, and each is full after at most a second.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use holdfast_shared::address::AddressKey;

/// More than the time in which an empty bucket becomes full: a second, and what rounding adds.
const TURN: Duration = Duration::from_secs(2);

/// A rate.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// From one token to the next; `None` is no limit.
    interval: Option<Duration>,
    /// In which an empty bucket becomes full.
    burst: Duration,
}

impl Rate {
    /// So many a second; 0 is no limit.
    fn new(per_second: u32) -> Self {
        // Rounded up: never faster than said.
        let interval =
            (per_second > 0).then(|| Duration::from_nanos(1_000_000_000_u64.div_ceil(per_second.into())));
        Self { interval, burst: interval.unwrap_or_default() * per_second }
    }

    /// May one be taken now, of a bucket that is full at `full`?
    fn allows(self, full: Duration, now: Duration) -> bool {
        self.interval.is_none_or(|interval| full.max(now) + interval <= now + self.burst)
    }

    /// How many were taken and are not made up for.
    fn taken(self, full: Duration, now: Duration) -> u64 {
        let Some(interval) = self.interval else { return 0 };
        let missing = full.saturating_sub(now).as_nanos().div_ceil(interval.as_nanos());
        u64::try_from(missing).unwrap_or(u64::MAX)
    }
}

/// The buckets. Time is what its methods are told; it does not go back.
#[derive(Debug)]
pub(super) struct Rates {
    server: Rate,
    address: Rate,
    /// When the server's bucket is full.
    server_full: Duration,
    /// When those are full that are not in the maps.
    others_full: Duration,
    /// When those of addresses are full that were used in this turn and in the last; what is in neither is full.
    current: HashMap<AddressKey, Duration>,
    last: HashMap<AddressKey, Duration>,
    turned: Duration,
}

impl Rates {
    /// Full buckets.
    pub(super) fn new(server: u32, address: u32) -> Self {
        Self {
            server: Rate::new(server),
            address: Rate::new(address),
            server_full: Duration::ZERO,
            others_full: Duration::ZERO,
            current: HashMap::new(),
            last: HashMap::new(),
            turned: Duration::ZERO,
        }
    }

    /// Other rates hold from now on; what was taken stays taken.
    pub(super) fn set(&mut self, server: u32, address: u32) {
        (self.server, self.address) = (Rate::new(server), Rate::new(address));
        if self.address.interval.is_none() {
            (self.current, self.last) = (HashMap::new(), HashMap::new());
        }
    }

    /// Nobody knows what was taken before `now`: all buckets are empty.
    pub(super) fn empty(&mut self, now: Duration) {
        (self.server_full, self.others_full) = (now + self.server.burst, now + self.address.burst);
    }

    /// May the server take one more now?
    pub(super) fn server_allows(&self, now: Duration) -> bool {
        self.server.allows(self.server_full, now)
    }

    /// May `address` have one more now?
    pub(super) fn address_allows(&self, address: IpAddr, ipv6_prefix: u8, now: Duration) -> bool {
        self.address.interval.is_none() || self.address.allows(self.full(address, ipv6_prefix), now)
    }

    /// What the server, and `address`, took in the last second.
    pub(super) fn taken(&self, address: IpAddr, ipv6_prefix: u8, now: Duration) -> (u64, u64) {
        let of_address = self.address.taken(self.full(address, ipv6_prefix), now);
        (self.server.taken(self.server_full, now), of_address)
    }

    /// One is taken, of the server's and, unless it is `exempt`, of the address's.
    pub(super) fn take(&mut self, address: IpAddr, ipv6_prefix: u8, exempt: bool, now: Duration) {
        if let Some(interval) = self.server.interval {
            self.server_full = self.server_full.max(now) + interval;
        }
        if let Some(interval) = self.address.interval.filter(|_| !exempt) {
            self.turn(now);
            let full = self.full(address, ipv6_prefix).max(now) + interval;
            self.current.insert(AddressKey::new(address, ipv6_prefix), full);
        }
    }

    fn full(&self, address: IpAddr, ipv6_prefix: u8) -> Duration {
        let bucket = AddressKey::new(address, ipv6_prefix);
        let known = self.current.get(&bucket).or_else(|| self.last.get(&bucket));
        known.copied().unwrap_or(self.others_full)
    }

    /// Forgets those that are full: what has not been used for a turn is.
    pub(super) fn turn(&mut self, now: Duration) {
        if now >= self.turned + TURN {
            self.last = std::mem::take(&mut self.current);
            if now >= self.turned + TURN * 2 {
                self.last = HashMap::new();
            }
            self.turned = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn try_take(rates: &mut Rates, address: IpAddr, now: Duration) -> bool {
        let allows = rates.server_allows(now) && rates.address_allows(address, 64, now);
        if allows {
            rates.take(address, 64, false, now);
        }
        allows
    }

    #[test]
    fn a_second_s_worth_may_come_at_once_and_then_one_by_one() {
        let mut rates = Rates::new(10, 0);
        let at = Duration::from_millis;
        assert_eq!((0..50).filter(|_| try_take(&mut rates, ADDRESS, at(500))).count(), 10);
        assert_eq!(rates.taken(ADDRESS, 64, at(500)), (10, 0));
        assert!(!try_take(&mut rates, ADDRESS, at(599)));
        assert!(try_take(&mut rates, ADDRESS, at(600)));
        assert!(!try_take(&mut rates, ADDRESS, at(600)));
        assert_eq!((0..50).filter(|_| try_take(&mut rates, ADDRESS, at(9_000))).count(), 10);
    }

    #[test]
    fn addresses_have_buckets_of_their_own_and_those_of_a_prefix_share_one() {
        let mut rates = Rates::new(0, 1);
        let now = Duration::from_secs(7);
        let six = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(try_take(&mut rates, ADDRESS, now) && !try_take(&mut rates, ADDRESS, now));
        assert!(!try_take(&mut rates, six("::ffff:192.0.2.1"), now));
        assert!(
            try_take(&mut rates, six("2001:db8::1"), now) && !try_take(&mut rates, six("2001:db8::2"), now)
        );
        assert!(try_take(&mut rates, six("2001:db8:0:1::1"), now));
        rates.take(ADDRESS, 64, true, now);
        assert!(try_take(&mut rates, ADDRESS, now + Duration::from_secs(1)));
    }

    #[test]
    fn when_nobody_knows_what_was_taken_nothing_is_left() {
        let mut rates = Rates::new(5, 5);
        let now = Duration::from_secs(100);
        rates.empty(now);
        assert!(!try_take(&mut rates, ADDRESS, now));
        assert!(try_take(&mut rates, ADDRESS, now + Duration::from_millis(200)));
        assert!(!try_take(&mut rates, ADDRESS, now + Duration::from_millis(200)));
    }

    #[test]
    fn a_crowd_of_addresses_is_forgotten() {
        let mut rates = Rates::new(0, 100);
        for step in 0..100_000_u32 {
            let now = Duration::from_millis(u64::from(step) / 10);
            assert!(try_take(&mut rates, IpAddr::from(std::net::Ipv4Addr::from(step)), now));
        }
        assert!(rates.current.len() + rates.last.len() <= 40_000);
    }

    proptest! {
        #[test]
        fn no_time_has_more_than_its_share_and_a_second_s_worth(
            rate in 1..50_u32,
            steps in prop::collection::vec((0..400_u64, 0..4_u8, any::<bool>()), 1..400),
        ) {
            let mut rates = Rates::new(0, rate);
            let (mut now, mut let_in) = (Duration::ZERO, Vec::new());
            for (pause, client, change) in steps {
                now += Duration::from_millis(pause);
                if change {
                    // Other rates and back: nothing is given twice.
                    rates.set(7, rate);
                    rates.set(0, rate);
                }
                let address = IpAddr::from([192, 0, 2, client]);
                if try_take(&mut rates, address, now) {
                    let_in.push((now, client));
                }
            }
            for (first, &(begin, client)) in let_in.iter().enumerate() {
                let mut count = 0_u128;
                for &(end, _) in let_in[first..].iter().filter(|(_, other)| *other == client) {
                    count += 1;
                    let most = u128::from(rate) * (end - begin).as_nanos() / 1_000_000_000 + u128::from(rate);
                    prop_assert!(count <= most, "{count} in {:?}", end - begin);
                }
            }
        }

        #[test]
        fn who_keeps_to_the_rate_is_never_refused(rate in 1..1_000_u32) {
            let mut rates = Rates::new(rate, rate);
            let interval = Duration::from_nanos(1_000_000_000_u64.div_ceil(rate.into()));
            for step in 0..3_000 {
                prop_assert!(try_take(&mut rates, ADDRESS, interval * step));
            }
        }
    }
}
