//! The rules of admission, in the order in which they are asked: the one list from which a client is let in or refused, and
//! from which an operator is told why.

use std::net::IpAddr;

use holdfast_shared::reason::Rejection;

use super::Ledger;

/// What one rule says about one more connection of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    /// What it would be refused for.
    pub(crate) reason: Rejection,
    /// The limit; `None` is none.
    pub(crate) limit: Option<u64>,
    /// What counts against it now; up to the limit, if more does not matter to who asks.
    pub(crate) value: u64,
    pub(crate) is_refused: bool,
}

impl Rule {
    /// Refused once `value` has reached the limit.
    fn counted(reason: Rejection, limit: Option<u64>, value: u64) -> Self {
        Self { reason, limit, value, is_refused: limit.is_some_and(|limit| value >= limit) }
    }

    /// Refused if it is so.
    fn fact(reason: Rejection, is_refused: bool) -> Self {
        Self { reason, limit: None, value: u64::from(is_refused), is_refused }
    }
}

/// A rule, asked about an address. Counts as far as `enough`.
type Ask = fn(&Ledger, IpAddr, bool) -> Rule;

/// What concerns the address comes before what concerns everybody: a client at its own limit learns that waiting for
/// others is no use.
const RULES: [Ask; 6] = [draining, banned, connect_rate_per_address, per_address, connect_rate, cap];

impl Ledger {
    /// Why one more connection of `address` may not be opened now.
    #[must_use]
    pub fn refusal(&self, address: IpAddr) -> Option<Rejection> {
        RULES.iter().map(|ask| ask(self, address, false)).find(|rule| rule.is_refused).map(|rule| rule.reason)
    }

    /// What every rule says about one more connection of `address`.
    pub(crate) fn rules(&self, address: IpAddr) -> impl Iterator<Item = Rule> {
        RULES.iter().map(move |ask| ask(self, address, true))
    }
}

fn draining(ledger: &Ledger, _: IpAddr, _: bool) -> Rule {
    Rule::fact(Rejection::Draining, ledger.draining)
}

fn banned(ledger: &Ledger, address: IpAddr, _: bool) -> Rule {
    Rule::fact(Rejection::Banned, ledger.bans.of(address, ledger.now).is_some())
}

fn connect_rate_per_address(ledger: &Ledger, address: IpAddr, whole: bool) -> Rule {
    let limits = &ledger.limits;
    let rate = Some(u64::from(limits.connect_rate_per_address)).filter(|&rate| rate > 0);
    let rate = rate.filter(|_| !ledger.is_exempt(address));
    let is_refused = rate.is_some() && !ledger.rates.address_allows(address, limits.ipv6_prefix, ledger.now);
    let value = if whole { ledger.rates.taken(address, limits.ipv6_prefix, ledger.now).1 } else { 0 };
    Rule { reason: Rejection::ConnectRatePerAddress, limit: rate, value, is_refused }
}

fn per_address(ledger: &Ledger, address: IpAddr, whole: bool) -> Rule {
    let limits = &ledger.limits;
    let limit = Some(u64::from(limits.max_connections_per_address)).filter(|&limit| limit > 0);
    let limit = limit.filter(|_| !ledger.is_exempt(address));
    let enough = if whole { u64::MAX } else { limit.unwrap_or(0) };
    let value = ledger.held.of_bucket(address, limits.ipv6_prefix, enough);
    Rule::counted(Rejection::MaxConnectionsPerAddress, limit, value)
}

fn connect_rate(ledger: &Ledger, address: IpAddr, whole: bool) -> Rule {
    let limits = &ledger.limits;
    let rate = Some(u64::from(limits.connect_rate)).filter(|&rate| rate > 0);
    let value = if whole { ledger.rates.taken(address, limits.ipv6_prefix, ledger.now).0 } else { 0 };
    Rule {
        reason: Rejection::ConnectRate,
        limit: rate,
        value,
        is_refused: !ledger.rates.server_allows(ledger.now),
    }
}

fn cap(ledger: &Ledger, _: IpAddr, _: bool) -> Rule {
    Rule::counted(Rejection::MaxConnections, Some(ledger.limits.max_connections), ledger.connections)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_shared::id::{Incarnation, SlotId};
    use proptest::prelude::*;

    use super::super::{Admission, LedgerLimits};
    use super::*;

    const FIRST: Incarnation = Incarnation(1);

    fn ledger(limits: LedgerLimits) -> Ledger {
        let mut ledger = Ledger::new(limits);
        ledger.resync_begin(SlotId(0), FIRST);
        ledger.resync_finish(SlotId(0), FIRST);
        ledger
    }

    proptest! {
        /// Whatever has happened, what an operator is told is what a client then gets.
        #[test]
        fn an_explanation_is_what_happens(
            limits in (1..8_u64, 0..4_u32, 0..6_u32, 0..4_u32),
            steps in prop::collection::vec((0..6_u8, 0..5_u8, 0..700_u64), 1..80),
        ) {
            let (max_connections, max_connections_per_address, connect_rate, connect_rate_per_address) = limits;
            let mut ledger = ledger(LedgerLimits {
                max_connections,
                max_connections_per_address,
                ipv6_prefix: 64,
                connect_rate,
                connect_rate_per_address,
                exempt: vec!["192.0.2.4/32".parse().unwrap()],
            });
            let mut now = Duration::ZERO;
            let mut open = Vec::new();
            for (what, client, pause) in steps {
                now += Duration::from_millis(pause);
                ledger.set_now(now);
                let address = IpAddr::from([192, 0, 2, client]);
                match what {
                    0 => {
                        if let Some(address) = open.pop() {
                            ledger.release(SlotId(0), FIRST, address);
                        }
                    }
                    1 => {
                        let _ = ledger.bans.ban(address.into(), Some(now + Duration::from_secs(1)), now);
                    }
                    _ => {
                        let told = ledger.rules(address).find(|rule| rule.is_refused).map(|rule| rule.reason);
                        let found = match ledger.admit(SlotId(0), FIRST, address) {
                            Admission::Granted => None,
                            Admission::Refused(reason) => Some(reason),
                            Admission::Stale => panic!("the slot serves"),
                        };
                        prop_assert_eq!(told, found);
                        if found.is_none() {
                            open.push(address);
                        }
                    }
                }
                for rule in ledger.rules(address).filter(|rule| !rule.is_refused) {
                    prop_assert!(rule.limit.is_none_or(|limit| rule.value < limit), "{:?}", rule);
                }
            }
        }
    }
}
