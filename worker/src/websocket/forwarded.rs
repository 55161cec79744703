//! The header `Forwarded` (RFC 7239): which address each proxy says it was connected from. Believes nobody.

use std::net::IpAddr;

use super::client_address::parse_entry;

/// What the hops in one line say, in order; `None` from one that names no address: it hides it (`_hidden`, `unknown`),
/// says nothing of it, or is not well-formed. A line whose quotes do not match says nothing at all.
pub(super) fn hops(line: &[u8]) -> Vec<Option<IpAddr>> {
    match split(line, b',') {
        // RFC 9110, section 5.6.1: empty list elements count for nothing.
        Some(elements) => {
            elements.iter().filter(|element| !element.is_empty()).map(|hop| hop_of(hop)).collect()
        }
        None => vec![None],
    }
}

fn hop_of(element: &[u8]) -> Option<IpAddr> {
    let mut named = None;
    for pair in split(element, b';')? {
        if pair.is_empty() {
            continue;
        }
        let at = pair.iter().position(|&byte| byte == b'=')?;
        if pair[..at].eq_ignore_ascii_case(b"for") {
            // Which of two would it be?
            if named.is_some() {
                return None;
            }
            named = Some(&pair[at + 1..]);
        }
    }
    parse_entry(&unquoted(named?)?)
}

/// The parts of `text` between separators that are not quoted, without the white space around them. `None` when the
/// last quote does not end.
fn split(text: &[u8], separator: u8) -> Option<Vec<&[u8]>> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ if byte == separator && !is_quoted => {
                parts.push(text[start..at].trim_ascii());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim_ascii());
    (!is_quoted).then_some(parts)
}

/// The value of a token or of a quoted string (RFC 9110, section 5.6.4).
fn unquoted(value: &[u8]) -> Option<Vec<u8>> {
    let Some(rest) = value.strip_prefix(b"\"") else {
        return (!value.contains(&b'"')).then(|| value.to_vec());
    };
    let mut bytes = rest.strip_suffix(b"\"")?.iter();
    let mut text = Vec::new();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => text.push(*bytes.next()?),
            b'"' => return None,
            _ => text.push(byte),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hops_are_named_in_many_ways() {
        for (line, expected) in [
            ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
            ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
            ("proto=https ; FOR=192.0.2.43:80", "192.0.2.43"),
            ("for=192.0.2.43, for=198.51.100.17", "192.0.2.43 198.51.100.17"),
            ("for=\"192.0.2.43:_port\"", "192.0.2.43"),
            ("for=\"192.0.2.\\43\"", "192.0.2.43"),
            ("for=[2001:db8::1]", "2001:db8::1"),
            ("host=\"a,for=1.1.1.1;\\\"\";for=192.0.2.1", "192.0.2.1"),
            (", for=192.0.2.1,,", "192.0.2.1"),
            ("for=_hidden, for=_SEVKISEK", "- -"),
            ("for=unknown", "-"),
            ("by=203.0.113.43", "-"),
            ("for", "-"),
            ("for=", "-"),
            ("for =192.0.2.1", "-"),
            ("for=192.0.2.1;for=192.0.2.2", "-"),
            ("for=\"192.0.2.1\"x", "-"),
            ("for=19\"2\".0.2.1", "-"),
            ("for=192.0.2.1, host=\"open", "-"),
            ("for=\"192.0.2.1\\\"", "-"),
            ("for=192.0.2.1\u{fc}", "-"),
            ("", ""),
        ] {
            let said: Vec<_> = hops(line.as_bytes())
                .into_iter()
                .map(|hop| hop.map_or("-".to_owned(), |address| address.to_string()))
                .collect();
            assert_eq!(said.join(" "), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in "([a-z]{0,3}=?[\"\\\\;, 0-9.:\\[\\]_]{0,4}){0,8}") {
            hops(line.as_bytes());
        }

        #[test]
        fn addresses_are_read_back(addresses in prop::collection::vec(any::<IpAddr>(), 1..5)) {
            let quoted = addresses.iter().map(|address| match address {
                IpAddr::V4(v4) => format!("for={v4}"),
                IpAddr::V6(v6) => format!("proto=http;for=\"[{v6}]:1\""),
            });
            let line = quoted.collect::<Vec<_>>().join(", ");
            prop_assert_eq!(hops(line.as_bytes()), addresses.into_iter().map(Some).collect::<Vec<_>>());
        }
    }
}
