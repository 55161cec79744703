//! Who holds how many connections from which address: the store under the ledger. Counts; refuses nothing.
//!
//! Full addresses are kept, not buckets of them, so that a changed IPv6 prefix length counts what is already
//! held exactly. The addresses of a bucket are neighbours in a sorted map; a bucket is counted by walking
//! them.
//!
//! Memory, for connections from distinct addresses: an address, a slot and a count are 22 bytes for IPv6 and
//! 10 for IPv4; the map adds a tenth.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use holdfast_shared::id::SlotId;

use super::packed_map::PackedMap;

const V4_KEY: usize = 4 + SLOT;
const V6_KEY: usize = 16 + SLOT;
const SLOT: usize = size_of::<u16>();

/// Connections per address and slot. IPv4 written as IPv6 (`::ffff:192.0.2.1`) counts as IPv4.
#[derive(Debug, Clone, Default)]
pub(super) struct Holdings {
    v4: PackedMap<V4_KEY>,
    v6: PackedMap<V6_KEY>,
}

impl Holdings {
    /// Adds `count` connections.
    pub(super) fn add(&mut self, slot: SlotId, address: IpAddr, count: u32) {
        if count == 0 {
            return;
        }
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.add(key(address.octets(), slot), count),
            IpAddr::V6(address) => self.v6.add(key(address.octets(), slot), count),
        }
    }

    /// Takes one connection away; `false` if there is none.
    #[must_use]
    pub(super) fn remove(&mut self, slot: SlotId, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.remove_one(&key(address.octets(), slot)),
            IpAddr::V6(address) => self.v6.remove_one(&key(address.octets(), slot)),
        }
    }

    /// The connections of `address`'s bucket over all slots. Stops counting at `enough`, so a limit is
    /// checked in at most as many steps as the limit.
    pub(super) fn of_bucket(&self, address: IpAddr, ipv6_prefix: u8, enough: u64) -> u64 {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.sum(all_slots(address..=address, Ipv4Addr::octets), enough),
            IpAddr::V6(address) => {
                self.v6.sum(all_slots(bucket(address, ipv6_prefix), Ipv6Addr::octets), enough)
            }
        }
    }

    /// Replaces everything `slot` holds by what `reported` says. Walks the whole store: for deaths of
    /// workers, not for connections.
    pub(super) fn replace(&mut self, slot: SlotId, reported: &Self) {
        self.v4.retain(|key| slot_of(key) != slot);
        self.v6.retain(|key| slot_of(key) != slot);
        reported.v4.iter().for_each(|(key, count)| self.v4.add(key, count));
        reported.v6.iter().for_each(|(key, count)| self.v6.add(key, count));
    }

    /// All connections.
    pub(super) fn total(&self) -> u64 {
        let counts = self.v4.iter().map(|entry| entry.1).chain(self.v6.iter().map(|entry| entry.1));
        counts.map(u64::from).sum()
    }
}

/// The address, then the slot: the slots of one address are neighbours, and so are the addresses of a prefix.
fn key<const ADDRESS: usize, const KEY: usize>(address: [u8; ADDRESS], slot: SlotId) -> [u8; KEY] {
    const { assert!(KEY == ADDRESS + SLOT) };
    let mut key = [0; KEY];
    let (front, back) = key.split_at_mut(ADDRESS);
    front.copy_from_slice(&address);
    back.copy_from_slice(&slot.0.to_be_bytes());
    key
}

fn slot_of<const KEY: usize>(key: &[u8; KEY]) -> SlotId {
    SlotId(key.last_chunk().map_or(0, |slot| u16::from_be_bytes(*slot)))
}

fn all_slots<A: Copy, const ADDRESS: usize, const KEY: usize>(
    addresses: RangeInclusive<A>,
    octets: impl Fn(&A) -> [u8; ADDRESS],
) -> RangeInclusive<[u8; KEY]> {
    let (first, last) = addresses.into_inner();
    key(octets(&first), SlotId(u16::MIN))..=key(octets(&last), SlotId(u16::MAX))
}

/// The first and last address that share the first `prefix` bits of `address`.
fn bucket(address: Ipv6Addr, prefix: u8) -> RangeInclusive<Ipv6Addr> {
    let rest = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    let bits = u128::from(address);
    Ipv6Addr::from(bits & !rest)..=Ipv6Addr::from(bits | rest)
}
