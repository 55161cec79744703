//! Client addresses as the limits see them: one bucket per IPv4 address, one per IPv6 prefix.
//! Decides nothing about limits; `ledger` does.

use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// An address reduced to what a per-address limit counts: IPv4 whole, IPv6 cut to a prefix.
/// IPv4 is kept in its IPv6-mapped form, so that `1.2.3.4` and `::ffff:1.2.3.4` share a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AddressKey([u8; 16]);

impl AddressKey {
    /// The bucket of `address`, IPv6 being counted per `/ipv6_prefix` (values above 128 mean 128).
    #[must_use]
    pub fn new(address: IpAddr, ipv6_prefix: u8) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(ipv6_prefix.min(128))).unwrap_or(0);
                Self((u128::from(v6) & mask).to_be_bytes())
            }
        }
    }

    /// The bucket as an address: the IPv4 address, or the first address of the IPv6 prefix.
    #[must_use]
    pub fn address(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self.0)).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str, prefix: u8) -> AddressKey {
        AddressKey::new(text.parse().unwrap(), prefix)
    }

    #[test]
    fn ipv6_is_counted_per_prefix() {
        assert_eq!(key("2001:db8:0:1::1", 64), key("2001:db8:0:1:ffff::2", 64));
        assert_ne!(key("2001:db8:0:1::1", 64), key("2001:db8:0:2::1", 64));
        assert_ne!(key("2001:db8::1", 128), key("2001:db8::2", 128));
        assert_eq!(key("2001:db8::1", 0), key("::", 0));
    }

    #[test]
    fn ipv4_is_whole_however_written() {
        assert_eq!(key("192.0.2.1", 64), key("::ffff:192.0.2.1", 0));
        assert_ne!(key("192.0.2.1", 64), key("192.0.2.2", 64));
        assert_eq!(key("192.0.2.1", 64).address(), "192.0.2.1".parse::<IpAddr>().unwrap());
    }
}
