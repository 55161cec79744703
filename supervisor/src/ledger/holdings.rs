//! Who holds how many connections from which address: the store under the ledger. Counts; refuses nothing.
//!
//! Full addresses are kept, not buckets of them, so that a changed IPv6 prefix length counts what is already
//! held exactly. The addresses of a bucket are neighbours in a sorted map; a bucket is counted by walking
//! them.
//!
//! Memory, for connections from distinct addresses: a leaf of std's B-tree has room for 11 entries and is at
//! least half full (6 of them plus one in the parent when addresses come in ascending order, the worst case).
//! An IPv6 entry is 18 + 4 bytes, so a leaf is 272 bytes with the allocator's header and a seventh of it,
//! with its share of the inner nodes, is at most 48 bytes per connection; an IPv4 entry is 6 + 4 bytes and at
//! most 27.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use holdfast_shared::id::SlotId;

/// Connections per address and slot. IPv4 written as IPv6 (`::ffff:192.0.2.1`) counts as IPv4.
#[derive(Debug, Clone, Default)]
pub(super) struct Holdings {
    v4: BTreeMap<(Ipv4Addr, SlotId), u32>,
    v6: BTreeMap<(Ipv6Addr, SlotId), u32>,
}

impl Holdings {
    /// Adds `count` connections.
    pub(super) fn add(&mut self, slot: SlotId, address: IpAddr, count: u32) {
        if count == 0 {
            return;
        }
        let held = match address.to_canonical() {
            IpAddr::V4(address) => self.v4.entry((address, slot)).or_default(),
            IpAddr::V6(address) => self.v6.entry((address, slot)).or_default(),
        };
        *held = held.saturating_add(count);
    }

    /// Takes one connection away; `false` if there is none.
    #[must_use]
    pub(super) fn remove(&mut self, slot: SlotId, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => remove_one(&mut self.v4, &(address, slot)),
            IpAddr::V6(address) => remove_one(&mut self.v6, &(address, slot)),
        }
    }

    /// The connections of `address`'s bucket over all slots. Stops counting at `enough`, so a limit is
    /// checked in at most as many steps as the limit.
    pub(super) fn of_bucket(&self, address: IpAddr, ipv6_prefix: u8, enough: u64) -> u64 {
        match address.to_canonical() {
            IpAddr::V4(address) => count(&self.v4, address..=address, enough),
            IpAddr::V6(address) => count(&self.v6, bucket(address, ipv6_prefix), enough),
        }
    }

    /// Replaces everything `slot` holds by what `reported` says. Walks the whole store: for deaths of
    /// workers, not for connections.
    pub(super) fn replace(&mut self, slot: SlotId, mut reported: Self) {
        self.v4.retain(|key, _| key.1 != slot);
        self.v6.retain(|key, _| key.1 != slot);
        self.v4.append(&mut reported.v4);
        self.v6.append(&mut reported.v6);
    }

    /// All connections.
    pub(super) fn total(&self) -> u64 {
        self.v4.values().chain(self.v6.values()).map(|&held| u64::from(held)).sum()
    }
}

fn remove_one<K: Ord>(held: &mut BTreeMap<K, u32>, key: &K) -> bool {
    match held.get_mut(key) {
        None => return false,
        Some(count) if *count > 1 => *count -= 1,
        Some(_) => drop(held.remove(key)),
    }
    true
}

fn count<A: Ord>(held: &BTreeMap<(A, SlotId), u32>, addresses: RangeInclusive<A>, enough: u64) -> u64 {
    let (first, last) = addresses.into_inner();
    let mut total = 0;
    for held in held.range((first, SlotId(u16::MIN))..=(last, SlotId(u16::MAX))).map(|entry| entry.1) {
        total += u64::from(*held);
        if total >= enough {
            break;
        }
    }
    total
}

/// The first and last address that share the first `prefix` bits of `address`.
fn bucket(address: Ipv6Addr, prefix: u8) -> RangeInclusive<Ipv6Addr> {
    let rest = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let bits = u128::from(address);
    Ipv6Addr::from(bits & !rest)..=Ipv6Addr::from(bits | rest)
}
