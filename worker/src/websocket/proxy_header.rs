//! The header that a proxy writes in front of everything else, to say where its client is: PROXY protocol, versions 1
//! and 2 (HAProxy's proxy-protocol.txt). Reads it and believes nothing: whose header counts is for `handshake`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What begins version 1, a line of text.
const LINE_START: &[u8] = b"PROXY ";

/// The longest line, its end included.
const LONGEST_LINE: usize = 107;

/// What begins version 2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family, length.
const FIXED: usize = 16;

/// The longest header of version 2, as long as the longest request head. Its own limit, 65,551 bytes, leaves room for what is said
/// about the client besides its address, and nobody here reads that.
const LONGEST: usize = 16 * 1024;

/// What the first bytes of a connection have come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProxyHeader {
    /// They are none.
    Absent,
    /// They may become one.
    Undecided,
    /// They are one, of which more must come.
    Incomplete,
    /// They are one that cannot be right.
    Bad(&'static str),
    /// They are one.
    Complete {
        /// Its bytes.
        length: usize,
        /// Where the client is. `None` when the proxy speaks for itself, as in a health check, or for a client
        /// that has no IP address.
        source: Option<IpAddr>,
    },
}

/// Reads the beginning of a connection.
pub(super) fn read(bytes: &[u8]) -> ProxyHeader {
    let begins = |start: &[u8]| bytes.iter().zip(start).all(|(byte, expected)| byte == expected);
    match bytes {
        [] => ProxyHeader::Undecided,
        _ if bytes.starts_with(LINE_START) => read_line(bytes),
        _ if bytes.starts_with(SIGNATURE) => read_binary(bytes),
        _ if begins(LINE_START) || begins(SIGNATURE) => ProxyHeader::Undecided,
        _ => ProxyHeader::Absent,
    }
}

fn read_line(bytes: &[u8]) -> ProxyHeader {
    let window = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = window.iter().position(|&byte| byte == b'\n') else {
        return match window.len() < LONGEST_LINE {
            true => ProxyHeader::Incomplete,
            false => ProxyHeader::Bad("The PROXY line is longer than 107 bytes"),
        };
    };
    let line = window[LINE_START.len()..end].strip_suffix(b"\r").and_then(|line| str::from_utf8(line).ok());
    match line.and_then(source_of_line) {
        Some(source) => ProxyHeader::Complete { length: end + 1, source },
        None => ProxyHeader::Bad("The PROXY line is not valid"),
    }
}

/// The source address in what follows `PROXY `, if that is valid.
fn source_of_line(line: &str) -> Option<Option<IpAddr>> {
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        // Whatever else is on the line is to be ignored.
        return Some(None);
    }
    let [source, destination] = [words.next()?, words.next()?];
    let [source, _]: [IpAddr; 2] = match family {
        "TCP4" => [source.parse::<Ipv4Addr>().ok()?.into(), destination.parse::<Ipv4Addr>().ok()?.into()],
        "TCP6" => [source.parse::<Ipv6Addr>().ok()?.into(), destination.parse::<Ipv6Addr>().ok()?.into()],
        _ => return None,
    };
    // `parse` takes a plus sign.
    let is_port = |port: &str| !port.starts_with('+') && port.parse::<u16>().is_ok();
    let mut is_port = || words.next().is_some_and(is_port);
    let is_whole = is_port() && is_port() && words.next().is_none();
    is_whole.then_some(Some(source))
}

fn read_binary(bytes: &[u8]) -> ProxyHeader {
    let is_proxied = match bytes.get(SIGNATURE.len()) {
        None => return ProxyHeader::Incomplete,
        // The proxy speaks for itself.
        Some(0x20) => false,
        Some(0x21) => true,
        Some(_) => return ProxyHeader::Bad("The PROXY header has an unknown version or command"),
    };
    let Some(&family) = bytes.get(SIGNATURE.len() + 1) else { return ProxyHeader::Incomplete };
    // Families: none, IPv4, IPv6, UNIX; transports: none, stream, datagram.
    if family >> 4 > 3 || family & 0xf > 2 {
        return ProxyHeader::Bad("The PROXY header has an unknown family or transport");
    }
    let Some(&[high, low]) = bytes.get(SIGNATURE.len() + 2..FIXED) else { return ProxyHeader::Incomplete };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST {
        return ProxyHeader::Bad("The PROXY header is longer than 16 KiB");
    }
    // Two addresses and two ports. Only streams of IP come to this port, so what is said of others is not read.
    let needed = match family {
        0x11 if is_proxied => FIXED + 12,
        0x21 if is_proxied => FIXED + 36,
        _ => FIXED,
    };
    if length < needed {
        return ProxyHeader::Bad("The PROXY header is too short for its addresses");
    }
    let Some(addresses) = bytes.get(FIXED..length) else { return ProxyHeader::Incomplete };
    let source = match family {
        0x11 if is_proxied => addresses.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        0x21 if is_proxied => addresses.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    };
    ProxyHeader::Complete { length, source }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binary(version_and_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[version_and_command, family], &length, body].concat()
    }

    fn complete(length: usize, source: Option<&str>) -> ProxyHeader {
        ProxyHeader::Complete { length, source: source.map(|source| source.parse().unwrap()) }
    }

    #[test]
    fn lines_of_version_1() {
        for (line, source) in [
            ("PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n", Some("203.0.113.9")),
            ("PROXY TCP6 2001:db8::9 2001:db8::1 1 65535\r\n", Some("2001:db8::9")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
        ] {
            let bytes = [line.as_bytes(), b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(read(&bytes), complete(line.len(), source), "{line}");
        }
        for line in [
            "PROXY TCP4 203.0.113.9 192.0.2.1 56324\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 56324 443 1\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 65536 443\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 +1 443\r\n",
            "PROXY TCP4  203.0.113.9 192.0.2.1 1 443\r\n",
            "PROXY TCP4 2001:db8::9 2001:db8::1 1 2\r\n",
            "PROXY TCP6 203.0.113.9 192.0.2.1 1 2\r\n",
            "PROXY UDP4 203.0.113.9 192.0.2.1 1 2\r\n",
            "PROXY TCP4 203.0.113.9 192.0.2.1 1 2\n",
            "PROXY \r\n",
            "PROXY tcp4 203.0.113.9 192.0.2.1 1 2\r\n",
        ] {
            assert_eq!(read(line.as_bytes()), ProxyHeader::Bad("The PROXY line is not valid"), "{line}");
        }
        let long = format!("PROXY UNKNOWN {}", "x".repeat(100));
        assert!(matches!(read(long.as_bytes()), ProxyHeader::Bad(_)));
        assert_eq!(read(&long.as_bytes()[..106]), ProxyHeader::Incomplete);
    }

    #[test]
    fn headers_of_version_2() {
        let v4 = [203, 0, 113, 9, 192, 0, 2, 1, 220, 4, 1, 187];
        let v6 = [&"2001:db8::9".parse::<Ipv6Addr>().unwrap().octets()[..], &[0; 20]].concat();
        let fields = [&v4[..], &[0x04, 0, 3, 1, 2, 3]].concat();
        for (header, source) in [
            (binary(0x21, 0x11, &v4), Some("203.0.113.9")),
            (binary(0x21, 0x11, &fields), Some("203.0.113.9")),
            (binary(0x21, 0x21, &v6), Some("2001:db8::9")),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x20, 0x11, &v4), None),
            (binary(0x20, 0x11, &[]), None),
            (binary(0x21, 0x00, &[1, 2, 3]), None),
            (binary(0x21, 0x31, &[0; 216]), None),
            (binary(0x21, 0x12, &v4), None),
        ] {
            let bytes = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(read(&bytes), complete(header.len(), source), "{header:?}");
        }
        for header in [
            binary(0x11, 0x11, &v4),
            binary(0x22, 0x11, &v4),
            binary(0x21, 0x41, &v4),
            binary(0x21, 0x13, &v4),
            binary(0x21, 0x11, &v4[..11]),
            binary(0x21, 0x21, &v4),
            binary(0x21, 0x11, &[0; 16_369]),
        ] {
            assert!(matches!(read(&header), ProxyHeader::Bad(_)), "{header:?}");
        }
    }

    #[test]
    fn other_beginnings_are_none() {
        for bytes in
            [&b"GET /"[..], b"POST", b"PRI *", b"\x16\x03", b"\r\nGET", b"\r\n\r\n\0\r\nQUIT\r", b"PROXY\t"]
        {
            assert_eq!(read(bytes), ProxyHeader::Absent, "{}", bytes.escape_ascii());
        }
        for bytes in [&b""[..], b"P", b"PROXY", b"\r", b"\r\n", b"\r\n\r\n\0\r\nQUIT"] {
            assert_eq!(read(bytes), ProxyHeader::Undecided, "{}", bytes.escape_ascii());
        }
    }

    /// What is known first of bytes that come one by one.
    fn one_by_one(bytes: &[u8]) -> ProxyHeader {
        let is_known =
            |header: &ProxyHeader| !matches!(header, ProxyHeader::Undecided | ProxyHeader::Incomplete);
        let mut heard = (1..=bytes.len()).map(|length| read(&bytes[..length]));
        heard.clone().find(is_known).or(heard.next_back()).unwrap_or(ProxyHeader::Undecided)
    }

    fn header() -> impl Strategy<Value = Vec<u8>> {
        let line = any::<([u8; 4], [u8; 4], u16, u16)>().prop_map(|(source, destination, from, to)| {
            let [source, destination] = [source, destination].map(Ipv4Addr::from);
            format!("PROXY TCP4 {source} {destination} {from} {to}\r\n").into_bytes()
        });
        let command = prop::sample::select(&[0x20_u8, 0x21, 0x22, 0x31][..]);
        let family = prop::sample::select(&[0x00_u8, 0x11, 0x21, 0x31, 0x14][..]);
        let body = prop::collection::vec(any::<u8>(), 0..60);
        let header =
            (command, family, body).prop_map(|(command, family, body)| binary(command, family, &body));
        prop_oneof![line, header, prop::collection::vec(any::<u8>(), 0..40)]
    }

    proptest! {
        #[test]
        fn a_line_says_what_was_put_in(source: Ipv6Addr, from: u16) {
            let line = format!("PROXY TCP6 {source} ::1 {from} 80\r\n");
            prop_assert_eq!(read(line.as_bytes()), complete(line.len(), Some(&source.to_string())));
        }

        #[test]
        fn a_header_may_come_in_any_pieces(header in header(), rest in prop::collection::vec(any::<u8>(), 0..20)) {
            let bytes = [header, rest].concat();
            prop_assert_eq!(one_by_one(&bytes), read(&bytes));
        }

        #[test]
        fn any_bytes_after_a_beginning_are_survived(
            start in prop::sample::select(&[LINE_START, SIGNATURE][..]),
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [start, &rest].concat();
            prop_assert_eq!(one_by_one(&bytes), read(&bytes));
        }
    }
}
