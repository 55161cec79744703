//! Networks that nobody is let in from, for a time or until they are let in again. Those who are in stay.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// Most networks. More are a sign that they should be named as a larger one.
pub(crate) const MOST: usize = 10_000;

/// The networks, by the length of their prefixes: an address is looked up once for each length there is.
#[derive(Debug, Default)]
pub(crate) struct Bans {
    by_length: BTreeMap<(bool, u8), HashMap<IpAddr, Until>>,
}

/// When a ban ends; `None` is never.
pub(crate) type Until = Option<Duration>;

impl Bans {
    /// Bans `network`, in place of what was said of it before. False when there are too many.
    #[must_use]
    pub(crate) fn ban(&mut self, network: IpNet, until: Until, now: Duration) -> bool {
        let network = network.trunc();
        if self.len() >= MOST {
            self.forget_ended(now);
        }
        if self.len() >= MOST && self.get(network).is_none() {
            return false;
        }
        self.by_length.entry(length(network)).or_default().insert(network.network(), until);
        true
    }

    /// Ends the ban of exactly this network. False when there was none.
    pub(crate) fn unban(&mut self, network: IpNet) -> bool {
        let network = network.trunc();
        let Some(networks) = self.by_length.get_mut(&length(network)) else { return false };
        let was_there = networks.remove(&network.network()).is_some();
        if networks.is_empty() {
            self.by_length.remove(&length(network));
        }
        was_there
    }

    /// The ban of this address that lasts longest, and its network, if there is one at `now`.
    pub(crate) fn of(&self, address: IpAddr, now: Duration) -> Option<(IpNet, Until)> {
        let address = address.to_canonical();
        let of_length = |(&(is_v6, bits), networks): (&(bool, u8), &HashMap<IpAddr, Until>)| {
            let network = IpNet::new(address, bits).ok().filter(|_| address.is_ipv6() == is_v6)?.trunc();
            let until = *networks.get(&network.network())?;
            holds(until, now).then_some((network, until))
        };
        self.by_length.iter().filter_map(of_length).max_by_key(|(_, until)| until.unwrap_or(Duration::MAX))
    }

    /// All that hold at `now`, in order.
    pub(crate) fn all(&self, now: Duration) -> Vec<(IpNet, Until)> {
        let of_length = |(&(_, bits), networks): (&(bool, u8), &HashMap<IpAddr, Until>)| {
            let named =
                |(&address, &until): (&IpAddr, &Until)| Some((IpNet::new(address, bits).ok()?, until));
            networks.iter().filter_map(named).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = self.by_length.iter().flat_map(of_length).collect();
        all.retain(|(_, until)| holds(*until, now));
        all.sort_unstable();
        all
    }

    /// Until when exactly this network is banned, if it is at `now`.
    pub(crate) fn until(&self, network: IpNet, now: Duration) -> Option<Until> {
        self.get(network.trunc()).filter(|until| holds(*until, now))
    }

    fn get(&self, network: IpNet) -> Option<Until> {
        self.by_length.get(&length(network))?.get(&network.network()).copied()
    }

    fn len(&self) -> usize {
        self.by_length.values().map(HashMap::len).sum()
    }

    fn forget_ended(&mut self, now: Duration) {
        self.by_length.retain(|_, networks| {
            networks.retain(|_, until| holds(*until, now));
            !networks.is_empty()
        });
    }
}

fn length(network: IpNet) -> (bool, u8) {
    (network.addr().is_ipv6(), network.prefix_len())
}

fn holds(until: Until, now: Duration) -> bool {
    until.is_none_or(|until| now < until)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_ban_that_lasts_longest_counts_and_ended_ones_do_not() {
        let (mut bans, second) = (Bans::default(), Duration::from_secs(1));
        assert!(bans.ban(network("192.0.2.0/24"), Some(second * 10), second));
        assert!(bans.ban(network("192.0.2.7/32"), Some(second * 20), second));
        assert!(bans.ban(network("2001:db8::/32"), None, second));
        let of = |bans: &Bans, text: &str, at: u32| bans.of(text.parse().unwrap(), second * at);
        assert_eq!(of(&bans, "192.0.2.7", 2), Some((network("192.0.2.7/32"), Some(second * 20))));
        assert_eq!(of(&bans, "::ffff:192.0.2.8", 2), Some((network("192.0.2.0/24"), Some(second * 10))));
        assert_eq!(of(&bans, "192.0.2.8", 10), None);
        assert_eq!(of(&bans, "192.0.3.1", 2), None);
        assert_eq!(of(&bans, "2001:db8::1", 900).map(|(_, until)| until), Some(None));
        assert_eq!(bans.all(second * 15).len(), 2);
        assert!(bans.unban(network("2001:db8::/32")) && !bans.unban(network("2001:db8::/32")));
        assert_eq!(of(&bans, "2001:db8::1", 2), None);
    }

    #[test]
    fn they_are_bounded_and_ended_ones_make_room() {
        let (mut bans, second) = (Bans::default(), Duration::from_secs(1));
        for n in 0..u32::try_from(MOST).unwrap() {
            let until = (n == 0).then_some(second * 5);
            assert!(bans.ban(IpNet::from(IpAddr::from(std::net::Ipv4Addr::from(n))), until, second));
        }
        assert!(!bans.ban(network("10.0.0.0/8"), None, second));
        assert!(bans.ban(network("0.0.0.1/32"), None, second), "it is there already");
        assert!(bans.ban(network("10.0.0.0/8"), None, second * 5), "one has ended");
    }

    proptest! {
        #[test]
        fn an_address_is_banned_if_any_network_has_it(
            networks in prop::collection::vec((any::<u32>(), 0..=32u8), 0..20),
            address in any::<u32>(),
        ) {
            let mut bans = Bans::default();
            let address = IpAddr::from(std::net::Ipv4Addr::from(address));
            let networks: Vec<_> = networks
                .into_iter()
                .map(|(bits, length)| IpNet::new(IpAddr::from(std::net::Ipv4Addr::from(bits)), length).unwrap().trunc())
                .collect();
            for &network in &networks {
                prop_assert!(bans.ban(network, None, Duration::ZERO));
            }
            let expected = networks.iter().any(|network| network.contains(&address));
            prop_assert_eq!(bans.of(address, Duration::ZERO).is_some(), expected);
        }
    }
}
