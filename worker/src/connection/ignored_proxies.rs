//! Says so in the log, now and then, when an address that hits its limit seems to be a proxy that is not trusted: all
//! of its clients then count as one.

use std::net::IpAddr;

/// Addresses that are remembered.
const MOST: usize = 16;

/// Between two warnings of a worker.
const QUIET_MS: u64 = 10 * 60 * 1000;

/// Addresses that send a forwarding header without being believed, the latest last.
#[derive(Debug, Default)]
pub(super) struct IgnoredProxies {
    addresses: Vec<IpAddr>,
    quiet_until_ms: u64,
}

impl IgnoredProxies {
    /// Such a header came from this address.
    pub(super) fn note(&mut self, address: IpAddr) {
        if self.addresses.contains(&address) {
            return;
        }
        if self.addresses.len() == MOST {
            self.addresses.remove(0);
        }
        self.addresses.push(address);
    }

    /// This address has as many connections as it may.
    pub(super) fn on_limit(&mut self, address: IpAddr, now_ms: u64) {
        if self.is_due(address, now_ms) {
            log::warn!(
                "{address} is at limits.max_connections_per_address, and says in X-Forwarded-For or Forwarded that its connections come from \
                 elsewhere. That is not believed, so all of them count as one client's. If it is a proxy of yours, put it into proxy.trusted"
            );
        }
    }

    fn is_due(&mut self, address: IpAddr, now_ms: u64) -> bool {
        let is_due = now_ms >= self.quiet_until_ms && self.addresses.contains(&address);
        if is_due {
            self.quiet_until_ms = now_ms + QUIET_MS;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn one_warning_is_said_for_many_refusals() {
        let mut proxies = IgnoredProxies::default();
        assert!(!proxies.is_due(address(1), 1000), "it sends no such header");
        proxies.note(address(1));
        assert!(!proxies.is_due(address(2), 1000));
        assert!(proxies.is_due(address(1), 1000));
        assert!(!proxies.is_due(address(1), 1001));
        assert!(proxies.is_due(address(1), 1000 + QUIET_MS));
    }

    #[test]
    fn strangers_make_it_no_longer() {
        let mut proxies = IgnoredProxies::default();
        for n in 0..200 {
            proxies.note(address(n));
            proxies.note(address(n));
        }
        assert_eq!(proxies.addresses.len(), MOST);
        assert!(proxies.is_due(address(199), 0) && !proxies.addresses.contains(&address(0)));
    }
}
