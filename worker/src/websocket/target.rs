//! What a request is for: the path in its target (RFC 9112, section 3.2), and what may stand for a host (RFC 3986,
//! section 3.2.2). Decides about no path.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use holdfast_shared::path::normalise;

/// The path in a target in origin form or absolute form, normalised and without the query; or what is wrong with
/// the target.
pub(super) fn path_of(target: &str) -> Result<Cow<'_, str>, &'static str> {
    let from_path = if target.starts_with('/') {
        target
    } else {
        let (scheme, rest) = target.split_once("://").ok_or(NO_TARGET)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(NO_TARGET);
        }
        let (authority, from_path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() || !is_host(authority.as_bytes()) {
            return Err("The URL in the request has no valid host");
        }
        if from_path.starts_with('/') { from_path } else { "/" }
    };
    let path = from_path.split('?').next().unwrap_or_default();
    normalise(path).ok_or("The path has a percent sign that begins no escape")
}

const NO_TARGET: &str = "The request target is neither a path nor a URL";

/// Whether this is a host with or without a port. Nothing at all is one too: the grammar has it.
pub(super) fn is_host(host: &[u8]) -> bool {
    let (name, port) = match host.iter().rposition(|&byte| byte == b':') {
        // A colon within brackets is the address's own.
        Some(at) if !host[at..].contains(&b']') => (&host[..at], &host[at + 1..]),
        _ => (host, &b""[..]),
    };
    let is_port = port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    let is_name = match name.strip_prefix(b"[") {
        Some(address) => address.strip_suffix(b"]").is_some_and(is_ip_literal),
        None => is_registered_name(name),
    };
    is_port && is_name
}

/// IPv6 alone: of the future kinds that the grammar makes room for there is none.
fn is_ip_literal(literal: &[u8]) -> bool {
    str::from_utf8(literal).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

fn is_registered_name(mut name: &[u8]) -> bool {
    loop {
        name = match name {
            [] => return true,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if is_unreserved(*byte) || is_sub_delimiter(*byte) => rest,
            _ => return false,
        }
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn is_sub_delimiter(byte: u8) -> bool {
    b"!$&'()*+,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_with_or_without_a_port() {
        for host in [
            "example.org",
            "example.org:8080",
            "example.org:",
            "a_b.example",
            "127.0.0.1:80",
            "[2001:db8::1]",
            "[2001:db8::1]:443",
            "caf%C3%A9.example",
            "",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "a b",
            "a/b",
            "user@host",
            "http://host",
            "host:port",
            "host:123456",
            "2001:db8::1",
            "[2001:db8::1",
            "[2001:db8::1]x",
            "[127.0.0.1]",
            "[fe80::1%eth0]",
            "[v1.a]",
            "%zz",
            "caf\u{e9}",
            "a\"b",
            "host:80:80",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn paths_come_from_either_form_of_target() {
        for (target, path) in [
            ("/chat?room=1", Ok("/chat")),
            ("/chat/../admin?x=/chat", Ok("/admin")),
            ("http://h/chat", Ok("/chat")),
            ("HTTPS://h:1/a/..", Ok("/")),
            ("http://h?q", Ok("/")),
            ("http://h", Ok("/")),
            ("http:///x", Err("The URL in the request has no valid host")),
            ("http://a@b/x", Err("The URL in the request has no valid host")),
            ("ftp://h/", Err(NO_TARGET)),
            ("chat", Err(NO_TARGET)),
            ("*", Err(NO_TARGET)),
            ("/%", Err("The path has a percent sign that begins no escape")),
        ] {
            assert_eq!(path_of(target).as_deref(), path.as_ref().map(|path| *path), "{target}");
        }
    }
}
