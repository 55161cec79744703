//! Which address a client counts under: its own, or the one that trusted proxies vouch for.
//! Decides nothing about limits, and believes nobody who is not trusted.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::forwarded;
use super::headers::Headers;

/// Who is believed about where clients are, and how it is said.
#[derive(Debug, Clone, Default)]
pub struct ProxyPolicy {
    /// Proxies that are believed.
    pub trusted: Vec<IpNet>,
    /// They say it in `Forwarded`, and not in `X-Forwarded-For`.
    pub reads_forwarded: bool,
    /// They say it in a PROXY header in front of the request.
    pub has_proxy_header: bool,
}

impl ProxyPolicy {
    /// Must a connection from `peer` begin with a PROXY header?
    pub(super) fn expects_proxy_header(&self, peer: IpAddr) -> bool {
        self.has_proxy_header && self.is_trusted(peer)
    }

    /// The address of the client at the other end of `peer`'s connection.
    pub(super) fn client_address(&self, peer: IpAddr, headers: &Headers<'_>) -> IpAddr {
        if self.reads_forwarded {
            let lines = headers.all("forwarded").rev();
            self.walk(peer, lines.flat_map(|line| forwarded::hops(line).into_iter().rev()))
        } else {
            let entries =
                headers.all("x-forwarded-for").rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
            // RFC 9110, section 5.6.1: empty list elements count for nothing.
            let entries = entries.map(<[u8]>::trim_ascii).filter(|entry| !entry.is_empty());
            self.walk(peer, entries.map(parse_entry))
        }
    }

    /// Does `peer` say where its clients are without being believed?
    pub(super) fn is_ignored(&self, peer: IpAddr, headers: &Headers<'_>) -> bool {
        let says = |name| headers.all(name).next().is_some();
        (says("x-forwarded-for") || says("forwarded")) && !self.is_trusted(peer)
    }

    /// Each proxy appends the address it was connected from, so `hops` are what they say from the last one on: an
    /// entry is as true as the hop that wrote it, and every hop up to the first untrusted address is ours. Whatever is beyond
    /// that address was written by a stranger. So:
    /// - an untrusted `peer` is the client, whatever its headers say;
    /// - otherwise the right-most entry that is not itself a trusted proxy is;
    /// - if all entries are trusted, the left-most is: a client inside our own network;
    /// - an entry that is not an address ends the walk at the address to its right: a hop we trust could not or
    ///   would not say where it was connected from, so that hop is the last place we know. nginx's real-IP module does the same; to
    ///   skip the entry would be to believe what a stranger wrote.
    fn walk(&self, peer: IpAddr, hops: impl Iterator<Item = Option<IpAddr>>) -> IpAddr {
        let mut client = peer.to_canonical();
        let mut hops = hops;
        while self.is_trusted(client)
            && let Some(Some(address)) = hops.next()
        {
            client = address.to_canonical();
        }
        client
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted.iter().any(|network| network.contains(&address))
    }
}

/// An address as proxies write them: alone, in brackets, or with a port, which may be hidden (RFC 7239, section 6).
pub(super) fn parse_entry(entry: impl AsRef<[u8]>) -> Option<IpAddr> {
    let entry = str::from_utf8(entry.as_ref()).ok()?;
    let entry = match entry.rsplit_once(":_") {
        Some((entry, port))
            if port.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) =>
        {
            entry
        }
        _ => entry,
    };
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
    use httparse::Header;

    use super::*;

    fn policy(trusted: &[&str]) -> ProxyPolicy {
        let trusted = trusted.iter().map(|network| network.parse().unwrap()).collect();
        ProxyPolicy { trusted, ..ProxyPolicy::default() }
    }

    fn ask(policy: &ProxyPolicy, peer: &str, name: &str, lines: &[&str]) -> String {
        let headers: Vec<_> = lines.iter().map(|line| Header { name, value: line.as_bytes() }).collect();
        policy.client_address(peer.parse().unwrap(), &Headers(&headers)).to_string()
    }

    fn client(peer: &str, trusted: &[&str], lines: &[&str]) -> String {
        ask(&policy(trusted), peer, "X-Forwarded-For", lines)
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

    #[test]
    fn only_the_configured_header_is_read() {
        let x_forwarded_for = policy(&["10.0.0.0/8"]);
        let forwarded = ProxyPolicy { reads_forwarded: true, ..policy(&["10.0.0.0/8"]) };
        for (policy, name, line, expected) in [
            (&x_forwarded_for, "Forwarded", "for=203.0.113.9", "10.0.0.1"),
            (&forwarded, "X-Forwarded-For", "203.0.113.9", "10.0.0.1"),
            (&forwarded, "FORWARDED", "for=203.0.113.9", "203.0.113.9"),
            (&forwarded, "forwarded", "for=1.1.1.1, for=203.0.113.9, for=10.2.3.4", "203.0.113.9"),
            (&forwarded, "forwarded", "for=203.0.113.9, for=_hidden, for=10.2.3.4", "10.2.3.4"),
            (&forwarded, "forwarded", "for=unknown", "10.0.0.1"),
        ] {
            assert_eq!(ask(policy, "10.0.0.1", name, &[line]), expected, "{name}: {line}");
        }
        let lines = ["for=1.1.1.1", "for=203.0.113.9", "for=\"10.2.3.4:80\";proto=https"];
        assert_eq!(ask(&forwarded, "10.0.0.1", "Forwarded", &lines), "203.0.113.9");
        assert_eq!(ask(&forwarded, "198.51.100.1", "Forwarded", &lines), "198.51.100.1");
    }
}
