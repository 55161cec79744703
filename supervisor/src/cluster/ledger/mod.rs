//! The cluster-wide cap is enforced here: who holds how many connections, and whether one more may be opened.
//!
//! One ledger sees every admission and every close, so the cap and the per-address limits are exact, without
//! locks or shared counters. What a dead worker held stays counted until the next worker of its slot has
//! reported what it took over, or until the slot's descriptors are really closed: the count may be above the
//! truth for that while, never below.
//!
//! Pure: knows no socket, no clock (it is told the time), no process. Cannot fail and never panics; messages that make no sense
//! change nothing and are counted as anomalies.

mod bans;
mod holdings;
mod in_transit;
mod packed_map;
mod rates;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::reason::Rejection;
use ipnet::IpNet;

pub(crate) use bans::{Bans, MOST as MOST_BANS, Until};
use holdings::Holdings;
use rates::Rates;
pub(crate) use rules::Rule;

/// What the ledger enforces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerLimits {
    /// The most connections over all slots.
    pub max_connections: u64,
    /// The most connections of one address over all slots; 0 means no limit.
    pub max_connections_per_address: u32,
    /// IPv6 addresses that share this many leading bits count as one address; above 128 means 128.
    pub ipv6_prefix: u8,
    /// Connections let in a second over all slots; 0 means no limit.
    pub connect_rate: u32,
    /// Connections of one address let in a second over all slots; 0 means no limit.
    pub connect_rate_per_address: u32,
    /// Addresses without a per-address limit or rate. They count towards the cap like all others.
    pub exempt: Vec<IpNet>,
}

/// The answer to a request for admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// The connection is counted until it is released.
    Granted,
    /// The connection is not counted; the client is told why.
    Refused(Rejection),
    /// Asked by a worker that does not fill the slot: it has died since, or has not announced itself. The
    /// connection is not counted and nobody waits for the answer.
    Stale,
}

/// Who holds how many connections.
#[derive(Debug)]
pub struct Ledger {
    limits: LedgerLimits,
    draining: bool,
    /// The time, as it was last told.
    now: Duration,
    rates: Rates,
    pub(super) bans: Bans,
    held: Holdings,
    accounts: BTreeMap<SlotId, Account>,
    connections: u64,
    /// Those of them that are on their way from one slot to another.
    in_transit: u64,
    anomalies: u64,
}

/// What is known of one slot.
#[derive(Debug, Default)]
struct Account {
    /// The newest worker heard of; messages of older ones are stale.
    newest: Incarnation,
    phase: Phase,
    held: u64,
}

#[derive(Debug, Default)]
enum Phase {
    /// Nobody fills the slot: no worker has reported yet, or the slot was forgotten.
    #[default]
    Vacant,
    /// The newest worker reports what it took over. What its predecessor held is still counted.
    Resuming(Holdings),
    /// The newest worker has reported, admits and releases.
    Serving,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(limits: LedgerLimits) -> Self {
        Self {
            rates: Rates::new(limits.connect_rate, limits.connect_rate_per_address),
            limits,
            draining: false,
            now: Duration::ZERO,
            bans: Bans::default(),
            held: Holdings::default(),
            accounts: BTreeMap::new(),
            connections: 0,
            in_transit: 0,
            anomalies: 0,
        }
    }

    /// It is `now`, for rates and bans.
    pub fn set_now(&mut self, now: Duration) {
        self.now = now;
        self.rates.turn(now);
    }

    /// How many were let in before now nobody knows: rates count as used up.
    pub fn exhaust_rates(&mut self) {
        self.rates.empty(self.now);
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> &LedgerLimits {
        &self.limits
    }

    /// Puts new limits in force for admissions from now on. Nobody is dropped: below a lowered limit it takes
    /// closes to get, until then newcomers are refused. A changed prefix length regroups what is held
    /// already.
    pub fn set_limits(&mut self, limits: LedgerLimits) {
        self.rates.set(limits.connect_rate, limits.connect_rate_per_address);
        self.limits = limits;
    }

    /// While draining, everybody is refused.
    pub fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// Counts one more connection of `address` in `slot`, if the limits allow it.
    ///
    /// A worker that has not finished its report may ask already; such a connection is counted on top of its
    /// predecessor's and must not appear in the report.
    pub fn admit(&mut self, slot: SlotId, incarnation: Incarnation, address: IpAddr) -> Admission {
        let refusal = self.refusal(address);
        let account = self.accounts.get_mut(&slot).filter(|account| account.newest == incarnation);
        let Some(account) = account.filter(|account| !matches!(account.phase, Phase::Vacant)) else {
            return Admission::Stale;
        };
        if let Some(reason) = refusal {
            return Admission::Refused(reason);
        }
        if let Phase::Resuming(report) = &mut account.phase {
            report.add(slot, address, 1);
        }
        account.held += 1;
        self.connections += 1;
        self.held.add(slot, address, 1);
        let is_exempt = self.is_exempt(address);
        self.rates.take(address, self.limits.ipv6_prefix, is_exempt, self.now);
        Admission::Granted
    }

    /// Gives back one connection. Ignored from a worker that no longer fills the slot: its successor's report
    /// accounts for the close. An unknown connection is an anomaly.
    ///
    /// From a worker that is still reporting, it takes back a connection already reported; the count follows
    /// when the report is finished.
    ///
    /// Returns whether the connection was counted until now.
    pub fn release(&mut self, slot: SlotId, incarnation: Incarnation, address: IpAddr) -> bool {
        let Some(account) = self.accounts.get_mut(&slot) else {
            self.note_anomaly();
            return false;
        };
        if account.newest > incarnation {
            return false;
        }
        let known = account.newest == incarnation
            && match &mut account.phase {
                Phase::Vacant => return false,
                Phase::Resuming(report) => report.remove(slot, address),
                Phase::Serving if self.held.remove(slot, address) => {
                    account.held = account.held.saturating_sub(1);
                    self.connections = self.connections.saturating_sub(1);
                    true
                }
                Phase::Serving => false,
            };
        if !known {
            self.note_anomaly();
        }
        known
    }

    /// A new worker fills `slot` and is about to report what it took over. Until it has finished, what its
    /// predecessor held stays counted. A report that an earlier worker left unfinished is dropped.
    ///
    /// `incarnation` must be higher than any the slot had, also before [`forget`](Self::forget).
    pub fn resync_begin(&mut self, slot: SlotId, incarnation: Incarnation) {
        let account = self.accounts.entry(slot).or_default();
        if incarnation > account.newest {
            account.newest = incarnation;
            account.phase = Phase::Resuming(Holdings::default());
        } else {
            self.note_anomaly();
        }
    }

    /// The new worker of `slot` took over `count` connections of `address`. Counts of one address add up.
    pub fn resync_add(&mut self, slot: SlotId, incarnation: Incarnation, address: IpAddr, count: u32) {
        match self.accounts.get_mut(&slot) {
            Some(Account { newest, phase: Phase::Resuming(report), .. }) if *newest == incarnation => {
                report.add(slot, address, count);
            }
            _ => self.note_anomaly(),
        }
    }

    /// The report is complete: from now on `slot` holds what its worker reported, and what it was admitted
    /// since.
    pub fn resync_finish(&mut self, slot: SlotId, incarnation: Incarnation) {
        let Some(account) = self.accounts.get_mut(&slot).filter(|account| account.newest == incarnation)
        else {
            return self.note_anomaly();
        };
        match std::mem::replace(&mut account.phase, Phase::Serving) {
            Phase::Resuming(report) => {
                let held = report.total();
                self.connections = self.connections.saturating_sub(account.held).saturating_add(held);
                account.held = held;
                self.held.replace(slot, &report);
            }
            other => {
                account.phase = other;
                self.note_anomaly();
            }
        }
    }

    /// `slot` holds `connections`, as far as anybody but its worker can say: whose they are is not known, so they
    /// count towards the cap alone. Until its worker's report is complete, which replaces them; so this must not
    /// be said of a slot whose worker has reported.
    pub fn charge(&mut self, slot: SlotId, connections: u64) {
        let count = u32::try_from(connections).unwrap_or(u32::MAX);
        // The address that no client has.
        self.held.add(slot, Ipv4Addr::UNSPECIFIED.into(), count);
        self.accounts.entry(slot).or_default().held += u64::from(count);
        self.connections += u64::from(count);
    }

    /// The descriptors of `slot` are all closed: nothing is held there any more. Returns how many connections
    /// that gives back; a second call gives back none.
    pub fn forget(&mut self, slot: SlotId) -> u64 {
        let Some(account) = self.accounts.get_mut(&slot) else { return 0 };
        account.phase = Phase::Vacant;
        let returned = std::mem::take(&mut account.held);
        self.connections = self.connections.saturating_sub(returned);
        if returned > 0 {
            self.held.replace(slot, &Holdings::default());
        }
        returned
    }

    /// All connections counted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections
    }

    /// The connections counted in `slot`.
    #[must_use]
    pub fn held_by(&self, slot: SlotId) -> u64 {
        self.accounts.get(&slot).map_or(0, |account| account.held)
    }

    /// The connections counted for `address` over all slots, an IPv6 address standing for its prefix.
    #[cfg(test)]
    fn held_by_address(&self, address: IpAddr) -> u64 {
        self.held.of_bucket(address, self.limits.ipv6_prefix, u64::MAX)
    }

    /// Whether `address` has no per-address limit.
    #[must_use]
    pub fn is_exempt(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.limits.exempt.iter().any(|network| network.contains(&address))
    }

    /// How many messages made no sense. Anything but zero is a bug in a worker or in the link.
    #[must_use]
    pub fn anomalies(&self) -> u64 {
        self.anomalies
    }

    fn note_anomaly(&mut self) {
        self.anomalies = self.anomalies.saturating_add(1);
    }
}
