//! Requests, rule by rule, and the property that they may arrive in pieces of any size.

use std::net::{IpAddr, Ipv4Addr};

use holdfast_shared::reason::Rejection;
use holdfast_worker::websocket::client_address::ProxyPolicy;
use holdfast_worker::websocket::handshake::{
    self, HandshakePolicy, Progress, Upgrade, asks_for_head, write_switching,
};
use holdfast_worker::websocket::refusal::{Refusal, Status};
use ipnet::IpNet;
use proptest::prelude::*;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// The example of RFC 6455, section 1.2, as a line each.
const REQUEST: [&str; 6] = [
    "GET /chat HTTP/1.1",
    "Host: server.example.com",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
];
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn anything() -> HandshakePolicy {
    HandshakePolicy { path: "/".to_owned(), ..HandshakePolicy::default() }
}

fn head(lines: &[&str]) -> Vec<u8> {
    (lines.join("\r\n") + "\r\n\r\n").into_bytes()
}

/// The example, with every line that starts with `old` replaced by `new`; no line if `new` is empty.
fn request_with(old: &str, new: &str) -> Vec<u8> {
    let lines = REQUEST.map(|line| if line.starts_with(old) { new } else { line });
    head(&lines.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>())
}

/// The example, with `line` added.
fn request_and(line: &str) -> Vec<u8> {
    head(&[&REQUEST[..], &[line]].concat())
}

/// The first answer to `bytes` when they arrive in pieces of the given sizes, over and over; all at once
/// without any.
fn read(bytes: &[u8], sizes: &[usize], policy: &HandshakePolicy) -> Progress {
    let (mut have, mut sizes) = (0, sizes.iter().cycle());
    while have < bytes.len() {
        have += sizes.next().map_or(bytes.len(), |size| (*size).clamp(1, bytes.len() - have));
        let progress = handshake::read(&bytes[..have], PEER, policy);
        if progress != Progress::Incomplete {
            return progress;
        }
    }
    Progress::Incomplete
}

fn refusal(bytes: &[u8], policy: &HandshakePolicy) -> Refusal {
    let progress = read(bytes, &[], policy);
    assert_eq!(progress, read(bytes, &[1], policy), "byte by byte");
    match progress {
        Progress::Refused(refusal) => refusal,
        other => panic!("{other:?}: {}", bytes.escape_ascii()),
    }
}

fn assert_status(bytes: &[u8], status: Status) {
    assert_eq!(refusal(bytes, &anything()).status, status, "{}", bytes.escape_ascii());
}

fn assert_upgrade(bytes: &[u8], policy: &HandshakePolicy) -> Upgrade {
    match read(bytes, &[], policy) {
        Progress::Upgrade(upgrade) => upgrade,
        other => panic!("{other:?}: {}", bytes.escape_ascii()),
    }
}

#[test]
fn the_example_of_the_rfc_is_accepted() {
    let request = head(&REQUEST);
    let upgrade = assert_upgrade(&request, &anything());
    let expected = Upgrade {
        head: 0..request.len(),
        accept: ACCEPT.to_owned(),
        address: PEER,
        is_ignored_proxy: false,
        path: "/chat".to_owned(),
        subprotocols: Vec::new(),
    };
    assert_eq!(upgrade, expected);
    let mut out = Vec::new();
    write_switching(&mut out, "Sun, 06 Nov 1994 08:49:37 GMT", &upgrade.accept, "");
    let expected = head(&[
        "HTTP/1.1 101 Switching Protocols",
        "Date: Sun, 06 Nov 1994 08:49:37 GMT",
        "Upgrade: websocket",
        "Connection: Upgrade",
        &format!("Sec-WebSocket-Accept: {ACCEPT}"),
    ]);
    assert_eq!(out, expected);
    out.clear();
    write_switching(&mut out, "now", ACCEPT, "mqtt");
    assert!(out.ends_with(b"=\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"), "{}", out.escape_ascii());
}

#[test]
fn what_follows_the_head_is_left_alone() {
    let request = head(&REQUEST);
    for rest in [&b"\x81\x80\0\0\0\0"[..], b"\r\n", &request] {
        let upgrade = assert_upgrade(&[&request, rest].concat(), &anything());
        assert_eq!(upgrade.head, 0..request.len());
    }
}

#[test]
fn requests_may_be_written_differently() {
    for request in [
        request_with("Upgrade", "UPGRADE:\t WebSocket \t"),
        request_with("Upgrade", "upgrade: h2c, websocket"),
        request_with("Connection", "Connection: keep-alive, upgrade"),
        request_with("Connection", "Connection: keep-alive\r\nConnection: Upgrade"),
        request_with("GET", "GET /chat?room=1&x=%20 HTTP/1.1"),
        request_with("GET", "GET http://server.example.com/chat HTTP/1.1"),
        request_with("GET", "GET http://server.example.com?q HTTP/1.1"),
        request_and("Content-Length: 0"),
        request_and("Origin: https://anywhere.example"),
        request_and("X-Name: J\u{fc}rgen"),
        request_with("Host", "Host: [2001:db8::1]:8080"),
        request_with("Host", "Host:"),
        [b"\r\n", &head(&REQUEST)[..]].concat(),
    ] {
        assert_eq!(assert_upgrade(&request, &anything()).accept, ACCEPT);
    }
}

#[test]
fn requests_that_are_no_handshake_are_told_what_is_expected() {
    for request in [
        head(&["GET / HTTP/1.1", "Host: h"]),
        head(&["GET / HTTP/1.0"]),
        request_with("Upgrade", ""),
        request_with("Upgrade", "Upgrade: h2c"),
        request_with("Upgrade", "Upgrade: websockets"),
        request_with("Connection", ""),
        request_with("Connection", "Connection: keep-alive"),
        request_with("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"),
        request_with("Sec-WebSocket-Version", ""),
    ] {
        assert_status(&request, Status::UpgradeRequired);
    }
    for method in ["POST", "get", "CONNECT"] {
        let line = format!("{method} /chat HTTP/1.1");
        assert_status(&request_with("GET", &line), Status::MethodNotAllowed);
        assert_status(&head(&[&line, "Host: h", "Content-Length: 3"]), Status::MethodNotAllowed);
    }
    assert_status(&head(&["HEAD / HTTP/1.1", "Host: h"]), Status::UpgradeRequired);
}

#[test]
fn a_key_with_bits_to_spare_is_taken_as_it_is() {
    let key = b"dGhlIHNhbXBsZSBub25jZR==";
    let request = request_with("Sec-WebSocket-Key", &format!("Sec-WebSocket-Key: {}", key.escape_ascii()));
    let accept = assert_upgrade(&request, &anything()).accept;
    assert_eq!(accept, tungstenite::handshake::derive_accept_key(key));
}

#[test]
fn refused_head_requests_get_no_body() {
    assert!(refusal(&request_with("GET", "HEAD / HTTP/1.1"), &anything()).head_only);
    assert!(refusal(&head(&["HEAD /health HTTP/1.1"]), &anything()).head_only);
    assert!(refusal(&head(&["\r\nHEAD / HTTP/1.1"]), &anything()).head_only);
    assert!(refusal(format!("HEAD /{}", "x".repeat(20_000)).as_bytes(), &anything()).head_only);
    assert!(!refusal(&head(&["GET /health HTTP/1.1"]), &anything()).head_only);
}

#[test]
fn bad_handshakes_are_refused() {
    for request in [
        request_with("GET", "GET /chat HTTP/1.0"),
        request_with("GET", "GET chat HTTP/1.1"),
        request_with("GET", "GET * HTTP/1.1"),
        request_with("GET", "GET ftp://server.example.com/ HTTP/1.1"),
        request_with("Host", ""),
        request_and("Host: server.example.com"),
        request_with("Host", "Host: a b"),
        request_with("Host", "Host: user@server.example.com"),
        request_with("Host", "Host: server.example.com:http"),
        request_with("GET", "GET http:///chat HTTP/1.1"),
        request_with("GET", "GET /chat/% HTTP/1.1"),
        request_with("GET", "HEAD /chat HTTP/1.1"),
        request_and("host: other.example.com"),
        request_and("Origin: a\r\nOrigin: b"),
        request_and("Sec-WebSocket-Protocol: a b"),
        request_and("Content-Length: 5"),
        request_and("Content-Length: 0, 5"),
        request_and("Content-Length: -"),
        request_and("Content-Length: 0\r\nContent-Length: 1"),
        request_and("Transfer-Encoding: chunked"),
        request_and("Sec-WebSocket-Version: 8"),
        request_and("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        request_with("Sec-WebSocket-Key", ""),
        request_with("Sec-WebSocket-Key", "Sec-WebSocket-Key:"),
        request_with("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"),
        request_with("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=!"),
        request_with("Sec-WebSocket-Key", "Sec-WebSocket-Key: c2hvcnQ="),
        request_with("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZSE="),
    ] {
        assert_status(&request, Status::BadRequest);
        assert_eq!(refusal(&request, &anything()).rejection, Rejection::BadRequest);
    }
}

#[test]
fn heads_that_are_too_big_are_refused() {
    assert_status(&request_and(&format!("X: {}", "x".repeat(64 * 1024))), Status::HeadersTooLarge);
    assert_status(&request_and(&["X: y"; 96].join("\r\n")), Status::HeadersTooLarge);
    assert_eq!(assert_upgrade(&request_and(&["X: y"; 95].join("\r\n")), &anything()).accept, ACCEPT);
    let target = format!("GET /{} HTTP/1.1", "x".repeat(64 * 1024));
    assert_status(&request_with("GET", &target), Status::TargetTooLong);
}

#[test]
fn other_protocols_are_refused_by_their_first_bytes() {
    for bytes in [&b"\x16\x03\x01"[..], b"PRI * HTTP/2", b"SSH-2.0-OpenSSH\r", b"\0", b"GET /\r"] {
        assert_status(bytes, Status::BadRequest);
    }
}

#[test]
fn lines_end_with_cr_lf_and_nothing_is_folded() {
    for bytes in [
        &b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"[..],
        b"\nGET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\n\n",
        b"GET / HTTP/1.1\r\nHost: h\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \0\r\n\r\n",
        b"GET /\xc3 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1 \r\n\r\n",
    ] {
        assert_status(bytes, Status::BadRequest);
    }
}

#[test]
fn health_is_asked_with_or_without_host() {
    for (request, head_only) in [
        (head(&["GET /health HTTP/1.1", "Host: h"]), false),
        (head(&["GET /health?verbose HTTP/1.1", "Host: h", "Connection: Upgrade"]), false),
        (head(&["GET /health HTTP/1.0"]), false),
        (head(&["HEAD /health HTTP/1.0"]), true),
        (head(&["GET /x/../%68ealth HTTP/1.0"]), false),
        (head(&["OPTIONS / HTTP/1.0"]), false),
        (head(&["OPTIONS * HTTP/1.1", "Host: h"]), false),
        (head(&["OPTIONS /any HTTP/1.1", "Host: h", "Upgrade: websocket"]), false),
    ] {
        let elsewhere = HandshakePolicy { path: "/ws".to_owned(), ..anything() };
        assert_eq!(read(&request, &[], &elsewhere), Progress::Health { head_only, length: request.len() });
    }
    assert_status(&head(&["GET /health HTTP/1.1"]), Status::BadRequest);
    assert_status(&head(&["GET /healthy HTTP/1.0"]), Status::UpgradeRequired);
    assert_status(&head(&["POST /health HTTP/1.0"]), Status::MethodNotAllowed);
    assert_eq!(assert_upgrade(&request_with("GET", "GET /health HTTP/1.1"), &anything()).accept, ACCEPT);
}

#[test]
fn paths_are_allowed_by_whole_segments() {
    for (allowed, path, admitted) in [
        ("/", "/", true),
        ("/", "/any/where", true),
        ("/ws", "/ws", true),
        ("/ws", "/ws?token=1", true),
        ("/ws", "/ws/", true),
        ("/ws", "/ws/room", true),
        ("/ws/", "/ws", true),
        ("/ws", "/wsx", false),
        ("/ws", "/", false),
        ("/ws", "/other?/ws", false),
        ("/ws", "/WS", false),
        ("/ws", "//ws/./x", true),
        ("/ws", "/other/../ws", true),
        ("/ws", "/%77s", true),
        ("/ws", "/ws/../other", false),
        ("/ws", "/ws/%2e%2e/other", false),
        ("/ws", "/%2fws", false),
    ] {
        let policy = HandshakePolicy { path: allowed.to_owned(), ..anything() };
        let request = request_with("GET", &format!("GET {path} HTTP/1.1"));
        if admitted {
            assert_upgrade(&request, &policy);
        } else {
            assert_eq!(refusal(&request, &policy).status, Status::NotFound, "{path} under {allowed}");
        }
    }
}

#[test]
fn origins_are_compared_whole() {
    let allowed = ["https://app.example.com", "http://localhost:3000", "https://other.example:443"];
    let policy = HandshakePolicy { allowed_origins: allowed.map(str::to_owned).to_vec(), ..anything() };
    for origin in [
        "https://app.example.com",
        "HTTPS://App.Example.Com",
        "https://app.example.com:443",
        "http://localhost:3000",
        "https://other.example",
    ] {
        assert_upgrade(&request_and(&format!("Origin: {origin}")), &policy);
    }
    for origin in [
        "",
        "null",
        "http://app.example.com",
        "https://app.example.com.evil.example",
        "https://evil.example/https://app.example.com",
        "https://app.example.com:8443",
        "http://localhost",
        "http://localhost:443",
    ] {
        let refusal = refusal(&request_and(&format!("Origin: {origin}")), &policy);
        assert_eq!((refusal.status, refusal.rejection), (Status::Forbidden, Rejection::Origin), "{origin}");
    }
    // Not from a web page.
    assert_upgrade(&head(&REQUEST), &policy);
}

#[test]
fn the_client_address_comes_from_trusted_proxies_only() {
    let request = request_and("X-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 203.0.113.9, 198.51.100.6");
    assert_eq!(assert_upgrade(&request, &anything()).address, PEER);
    let upgrade = assert_upgrade(&request, &behind_a_proxy(false));
    assert_eq!(upgrade.address, IpAddr::from([203, 0, 113, 9]));
    assert!(!upgrade.is_ignored_proxy);
}

/// The peer and 198.51.100.6 are trusted.
fn behind_a_proxy(has_proxy_header: bool) -> HandshakePolicy {
    let trusted = IpNet::from(PEER).supernet().into_iter().collect();
    HandshakePolicy {
        proxies: ProxyPolicy { trusted, has_proxy_header, reads_forwarded: false },
        ..anything()
    }
}

const LINE: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.1 56324 443\r\n";
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\xc0\0\x02\x01\xdc\x04\x01\xbb";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

#[test]
fn a_trusted_proxy_says_where_its_client_is_in_a_proxy_header() {
    let request = head(&REQUEST);
    for (header, address) in
        [(LINE, IpAddr::from([203, 0, 113, 9])), (BINARY, IpAddr::from([203, 0, 113, 9])), (LOCAL, PEER)]
    {
        let bytes = [header, &request, b"frames"].concat();
        let upgrade = assert_upgrade(&bytes, &behind_a_proxy(true));
        assert_eq!((upgrade.address, upgrade.head), (address, header.len()..header.len() + request.len()));
        assert_eq!(upgrade.accept, ACCEPT);
    }
    // What comes behind counts as said by that client: it is not trusted, unless it is a proxy too.
    let request = request_and("X-Forwarded-For: 10.1.1.1");
    let upgrade = assert_upgrade(&[LINE, &request].concat(), &behind_a_proxy(true));
    assert_eq!((upgrade.address, upgrade.is_ignored_proxy), (IpAddr::from([203, 0, 113, 9]), true));
    let line = b"PROXY TCP4 198.51.100.6 192.0.2.1 56324 443\r\n";
    let upgrade = assert_upgrade(&[line, &request[..]].concat(), &behind_a_proxy(true));
    assert_eq!((upgrade.address, upgrade.is_ignored_proxy), (IpAddr::from([10, 1, 1, 1]), false));
}

#[test]
fn a_proxy_header_is_for_trusted_proxies_and_for_them_it_is_needed() {
    let request = head(&REQUEST);
    let stranger = HandshakePolicy {
        proxies: ProxyPolicy { has_proxy_header: true, ..ProxyPolicy::default() },
        ..anything()
    };
    for header in [LINE, BINARY, LOCAL] {
        let bytes = [header, &request].concat();
        assert_eq!(refusal(&bytes, &stranger).status, Status::BadRequest);
        assert_eq!(refusal(&bytes, &behind_a_proxy(false)).status, Status::BadRequest);
    }
    assert_eq!(assert_upgrade(&request, &stranger).address, PEER);
    let missing = refusal(&request, &behind_a_proxy(true));
    assert_eq!((missing.status, missing.rejection), (Status::BadRequest, Rejection::BadRequest));
    let bad = b"PROXY TCP4 1.2.3.4\r\n";
    let bad = refusal(&[bad, &request[..]].concat(), &behind_a_proxy(true));
    assert_eq!(bad.rejection, Rejection::BadRequest);
    // Health checks come from the proxy itself, with the header or without.
    for header in [&b""[..], LOCAL, LINE] {
        let check = [header, b"OPTIONS / HTTP/1.0\r\n\r\n"].concat();
        assert!(matches!(read(&check, &[1], &behind_a_proxy(true)), Progress::Health { .. }));
    }
    assert!(refusal(&[BINARY, b"HEAD / HTTP/1.1\r\n\r\n"].concat(), &behind_a_proxy(true)).head_only);
    assert!(asks_for_head(&[BINARY, b"HEAD / HT"].concat()));
}

/// Requests of the kind above, most of them a little wrong.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        4 => prop::sample::select(&REQUEST[1..]).prop_map(str::to_owned),
        1 => "[A-Za-z-]{1,12}: ?[ -~]{0,30}",
        1 => Just("Content-Length: 2".to_owned()),
        1 => Just("Origin: null".to_owned()),
        1 => "[\\x00-\\x7f]{0,20}",
    ];
    let first = prop_oneof![
        6 => Just(REQUEST[0].to_owned()),
        1 => Just("HEAD /health HTTP/1.0".to_owned()),
        1 => "[A-Z]{1,6} [!-~]{1,20} HTTP/1\\.[01]",
    ];
    let body = prop_oneof![
        1 => Just(REQUEST[1..].iter().map(|line| (*line).to_owned()).collect()),
        1 => prop::collection::vec(line, 0..10),
    ];
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2);
    (first, body, edits, prop::collection::vec(any::<u8>(), 0..8)).prop_map(|(first, body, edits, rest)| {
        let mut bytes = ([vec![first], body].concat().join("\r\n") + "\r\n\r\n").into_bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        [bytes, rest].concat()
    })
}

proptest! {
    #[test]
    fn requests_may_arrive_in_any_pieces(
        bytes in request(),
        sizes in prop::collection::vec(1usize..60, 1..6),
    ) {
        let whole = read(&bytes, &[], &anything());
        prop_assert_eq!(&read(&bytes, &[1], &anything()), &whole);
        prop_assert_eq!(&read(&bytes, &sizes, &anything()), &whole);
        let proxied = [LINE, &bytes].concat();
        let whole = read(&proxied, &[], &behind_a_proxy(true));
        prop_assert_eq!(&read(&proxied, &[1], &behind_a_proxy(true)), &whole);
        prop_assert_eq!(&read(&proxied, &sizes, &behind_a_proxy(true)), &whole);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let progress = read(&bytes, &[1], &anything());
        prop_assert_eq!(progress, read(&bytes, &[], &anything()));
    }
}
