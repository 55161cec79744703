//! Which address a client counts under: its own, or the one that trusted proxies vouch for.
//! Decides nothing about limits, and believes nobody who is not trusted.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// The address of the client at the other end of `peer`'s connection.
///
/// `forwarded_for` are the request's X-Forwarded-For lines, in order. Each proxy appends the address it was
/// connected from, so the list is read from its end: an entry is as true as the hop that wrote it, and every
/// hop up to the first untrusted address is ours. Anything to the left of that address was written by a
/// stranger. So:
/// - an untrusted `peer` is the client, whatever its headers say;
/// - otherwise the right-most entry that is not itself a trusted proxy is;
/// - if all entries are trusted, the left-most is: a client inside our own network;
/// - an entry that is not an address ends the walk at the address to its right: a hop we trust could not say
///   where it was connected from, so that hop is the last place we know.
pub fn client_address<'a>(
    peer: IpAddr,
    trusted: &[IpNet],
    forwarded_for: impl DoubleEndedIterator<Item = &'a [u8]>,
) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let mut client = peer.to_canonical();
    for entry in forwarded_for.rev().flat_map(|line| line.rsplit(|byte| *byte == b',')) {
        if !is_trusted(client) {
            break;
        }
        let entry = entry.trim_ascii();
        // RFC 9110, section 5.6.1: empty list elements count for nothing.
        if entry.is_empty() {
            continue;
        }
        match parse_entry(entry) {
            Some(address) => client = address.to_canonical(),
            None => break,
        }
    }
    client
}

/// An address as proxies write them: alone, in brackets, or with a port.
fn parse_entry(entry: &[u8]) -> Option<IpAddr> {
    let entry = str::from_utf8(entry).ok()?;
    if let Ok(address) = entry.parse::<IpAddr>() {
        return Some(address);
    }
    if let Ok(address) = entry.parse::<SocketAddr>() {
        return Some(address.ip());
    }
    entry.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, trusted: &[&str], lines: &[&str]) -> String {
        let trusted: Vec<IpNet> = trusted.iter().map(|network| network.parse().unwrap()).collect();
        client_address(peer.parse().unwrap(), &trusted, lines.iter().map(|line| line.as_bytes())).to_string()
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_claims() {
        assert_eq!(client("198.51.100.1", &[], &["203.0.113.9"]), "198.51.100.1");
        assert_eq!(client("198.51.100.1", &["10.0.0.0/8"], &["203.0.113.9"]), "198.51.100.1");
        assert_eq!(client("10.0.0.1", &["10.0.0.0/8"], &[]), "10.0.0.1");
    }

    #[test]
    fn left_most_forwarded_for_is_not_believed() {
        let trusted = ["10.0.0.0/8", "2001:db8:ff::/48"];
        for (lines, expected) in [
            (&["203.0.113.9"][..], "203.0.113.9"),
            (&["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
            (&["1.1.1.1, 203.0.113.9, 10.2.3.4"], "203.0.113.9"),
            (&["1.1.1.1", "203.0.113.9", "10.2.3.4"], "203.0.113.9"),
            (&["1.1.1.1, 2.2.2.2", "203.0.113.9,2001:db8:ff::1"], "203.0.113.9"),
            (&["10.9.9.9, 10.2.3.4"], "10.9.9.9"),
            (&["203.0.113.9, , "], "203.0.113.9"),
            (&["", ""], "10.0.0.1"),
        ] {
            assert_eq!(client("10.0.0.1", &trusted, lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn entries_come_in_many_forms() {
        for (entry, expected) in [
            ("203.0.113.9:4711", "203.0.113.9"),
            ("  203.0.113.9\t", "203.0.113.9"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
        ] {
            assert_eq!(client("10.0.0.1", &["10.0.0.0/8"], &[entry]), expected, "{entry:?}");
        }
    }

    #[test]
    fn what_is_not_an_address_ends_the_walk() {
        for entry in
            ["unknown", "_hidden", "203.0.113", "203.0.113.9:x", "[203.0.113.9]", "fe80::1%eth0", "\u{fc}"]
        {
            let line = format!("203.0.113.7, {entry}, 10.2.3.4");
            assert_eq!(client("10.0.0.1", &["10.0.0.0/8"], &[&line]), "10.2.3.4", "{entry:?}");
        }
    }

    #[test]
    fn mapped_peers_match_ipv4_networks() {
        assert_eq!(client("::ffff:10.0.0.1", &["10.0.0.0/8"], &["203.0.113.9"]), "203.0.113.9");
        assert_eq!(client("::ffff:198.51.100.1", &["10.0.0.0/8"], &["203.0.113.9"]), "198.51.100.1");
    }
}
