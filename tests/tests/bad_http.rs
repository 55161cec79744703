//! Requests that are no upgrade: each gets the fitting answer, complete and readable, and leaves nothing
//! behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{Ending, RawClient, upgrade_request};
use holdfast_tests::holdfast::Holdfast;
use holdfast_tests::http::Response;

/// A request, its name, and the statuses that fit it; none at all: closing without a word fits too.
struct Case {
    name: &'static str,
    request: Vec<u8>,
    fitting: &'static [u16],
    may_just_close: bool,
}

fn case(name: &'static str, request: impl Into<Vec<u8>>, fitting: &'static [u16]) -> Case {
    Case { name, request: request.into(), fitting, may_just_close: false }
}

fn noise(name: &'static str, request: impl Into<Vec<u8>>) -> Case {
    Case { name, request: request.into(), fitting: &[400, 431], may_just_close: true }
}

/// The upgrade request with one piece of text replaced.
fn altered(from: &str, to: &str) -> String {
    let request = String::from_utf8(upgrade_request("")).unwrap();
    assert!(request.contains(from));
    request.replacen(from, to, 1)
}

fn with(extra: &str) -> Vec<u8> {
    upgrade_request(extra)
}

const KEY_LINE: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const TLS_CLIENT_HELLO: &[u8] =
    b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03\x0d\x0a\x20abcdefghijklmnopqrstuvwxyz\x00\x00";

fn cases() -> Vec<Case> {
    let many_headers: String = (0..101).map(|n| format!("X-Header-{n}: {n}\r\n")).collect();
    let long_line = format!("X-Long: {}\r\n", "x".repeat(64 * 1024));
    let body = [upgrade_request("Content-Length: 5\r\n"), b"hello".to_vec()].concat();
    vec![
        case("no Upgrade", "GET / HTTP/1.1\r\nHost: h\r\n\r\n", &[426]),
        case("another Upgrade", altered("Upgrade: websocket", "Upgrade: h2c"), &[426]),
        case(
            "Connection without upgrade",
            altered("Connection: Upgrade", "Connection: keep-alive"),
            &[400, 426],
        ),
        case("wrong version", altered("Version: 13", "Version: 8"), &[426]),
        case("no version", altered("Sec-WebSocket-Version: 13\r\n", ""), &[400, 426]),
        case("no key", altered(KEY_LINE, ""), &[400]),
        case("two keys", with(KEY_LINE), &[400]),
        case(
            "a key that is not base64",
            altered("dGhlIHNhbXBsZSBub25jZQ==", "!!!!IHNhbXBsZSBub25jZQ=="),
            &[400],
        ),
        case("a key that is too short", altered("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), &[400]),
        case("POST", altered("GET", "POST"), &[405]),
        case("an unknown method", altered("GET", "BREW"), &[405]),
        case("a body", body, &[400]),
        case("a chunked body", with("Transfer-Encoding: chunked\r\n"), &[400]),
        case("101 headers", with(&many_headers), &[431]),
        case("a line of 64 KiB", with(&long_line), &[431]),
        case("a target of 64 KiB", altered("GET /", &format!("GET /{}", "x".repeat(64 * 1024))), &[414]),
        case("HTTP/1.0", altered("HTTP/1.1", "HTTP/1.0"), &[400, 426]),
        case("HTTP/2.0", altered("HTTP/1.1", "HTTP/2.0"), &[400]),
        case("no Host", altered("Host: holdfast.test\r\n", ""), &[400]),
        case("two Hosts", with("Host: other.test\r\n"), &[400]),
        case("a Host that is none", altered("Host: holdfast.test", "Host: hold fast"), &[400]),
        case("a space before the colon", with("X-Space : 1\r\n"), &[400]),
        case("a folded line", with("X-Folded: 1\r\n 2\r\n"), &[400]),
        case("a bare CR in a value", with("X-Split: 1\rX-Other: 2\r\n"), &[400]),
        case("a NUL in a value", with("X-Nul: \0\r\n"), &[400]),
        case("a header without a name", with(": nameless\r\n"), &[400]),
        noise("non-ASCII before the method", "\u{ff}\u{fe}GET / HTTP/1.1\r\n\r\n"),
        noise("a TLS ClientHello", TLS_CLIENT_HELLO),
        noise(
            "random bytes",
            (0..4096).map(|n: u32| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect::<Vec<u8>>(),
        ),
        noise("the HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ]
}

fn check(case: &Case, client: &mut RawClient) -> Result<(), String> {
    // A server that has refused a long request half-way may have closed before the rest is sent.
    let _ = client.send(&case.request);
    client.finish_sending();
    let bytes = match client.ending() {
        Ending::Closed(bytes) => bytes,
        Ending::Reset(bytes) => return Err(format!("a reset after {} bytes", bytes.len())),
    };
    if bytes.is_empty() && case.may_just_close {
        return Ok(());
    }
    let Some((response, length)) = Response::parse(&bytes) else {
        return Err(format!("not a complete response: {:?}", String::from_utf8_lossy(&bytes)));
    };
    if length != bytes.len() {
        return Err(format!("{} bytes after the response", bytes.len() - length));
    }
    if !case.fitting.contains(&response.status) {
        return Err(format!("status {} instead of {:?}: {}", response.status, case.fitting, response.text()));
    }
    response.assert_refusal(response.status, "bad_request");
    if response.status == 426 {
        assert_eq!(
            response.header("upgrade").map(str::to_ascii_lowercase).as_deref(),
            Some("websocket"),
            "{response:?}"
        );
        assert_eq!(response.header("sec-websocket-version"), Some("13"), "{response:?}");
    }
    if response.status == 405 {
        assert_eq!(response.header("allow"), Some("GET, HEAD, OPTIONS"), "{response:?}");
    }
    Ok(())
}

#[test]
fn every_bad_request_gets_the_fitting_answer_and_a_count() {
    let server = Holdfast::with("workers = 2");
    let cases = cases();
    let mut failures = Vec::new();
    for case in &cases {
        let mut client = RawClient::connect(server.address());
        if let Err(why) = check(case, &mut client) {
            failures.push(format!("{}: {why}", case.name));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    let all = u64::try_from(cases.len()).unwrap();
    let totals = server.wait_until("all are counted", |totals| totals.sum("rejected_total") == all);
    assert_eq!(totals.number("rejected_total.bad_request"), all);
    assert_eq!((totals.number("connections"), totals.number("pending_handshakes")), (0, 0));
    let _ = RawClient::open(server.address());
    server.stop();
}

#[test]
fn refusals_are_complete_and_readable_and_spread_their_retry() {
    // Mistake 9: a bare status line followed by a reset, and a constant Retry-After.
    let server = Holdfast::with("workers = 2\nlimits.max_connections = 1\nlimits.retry_after = \"100s\"");
    let _holder = RawClient::open(server.address());
    let mut waits = Vec::new();
    for _ in 0..30 {
        let mut client = RawClient::connect(server.address());
        // The client has more to say than the server wants to read: the refusal must be readable all the
        // same.
        let mut request = upgrade_request("");
        request.extend_from_slice(&[0; 16 * 1024]);
        client.send(&request).unwrap();
        let response = client.response();
        response.assert_refusal(503, "max_connections");
        waits.push(response.header("retry-after").unwrap().parse::<u32>().unwrap());
    }
    assert!(waits.iter().all(|wait| (50..=150).contains(wait)), "{waits:?}");
    waits.sort_unstable();
    waits.dedup();
    assert!(waits.len() > 5, "everybody is told to come back at once: {waits:?}");
    server.stop();
}

#[test]
fn only_the_configured_path_and_origins_are_upgraded() {
    let server = Holdfast::with(
        "workers = 1\nsecurity.path = \"/chat\"\nsecurity.allowed_origins = [\"https://good.test\"]",
    );
    let ask = |target: &str, extra: &str| {
        let mut client = RawClient::connect(server.address());
        let request = String::from_utf8(upgrade_request(extra)).unwrap();
        client.send(request.replacen("GET /", &format!("GET {target}"), 1).as_bytes()).unwrap();
        client.response()
    };
    assert_eq!(ask("/chat", "Origin: https://good.test\r\n").status, 101);
    assert_eq!(ask("/chat/room?x=1", "Origin: https://good.test\r\n").status, 101);
    assert_eq!(ask("/chatter", "Origin: https://good.test\r\n").status, 404);
    assert_eq!(ask("/", "Origin: https://good.test\r\n").status, 404);
    ask("/chat", "Origin: https://evil.test\r\n").assert_refusal(403, "origin");
    ask("/chat", "Origin: https://good.test.evil.test\r\n").assert_refusal(403, "origin");
    server.wait_until("both are counted", |totals| totals.number("rejected_total.origin") == 2);
    server.stop();
}

#[test]
fn health_is_answered_on_the_public_port() {
    let server = Holdfast::with("workers = 1");
    let mut client = RawClient::connect(server.address());
    client.send(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let response = client.response();
    assert_eq!((response.status, response.json()["status"].as_str()), (200, Some("ok")));
    assert_eq!(server.totals().sum("rejected_total"), 0, "a health check is no refused client");
    server.stop();
}
