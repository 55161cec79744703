//! How clients are turned away: in a form that scripts in browsers can read, if wanted; and health checks, which are
//! not turned away.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{Ending, RawClient, loopback, upgrade_request};
use holdfast_tests::frame::masked;
use holdfast_tests::holdfast::{Holdfast, Options};
use nix::sys::signal::Signal;

/// Asks to be let in; what comes behind the 101 is a close frame, and nothing after it.
fn closed_with(server: &Holdfast, extra: &str) -> (u16, String) {
    let mut client = RawClient::connect(server.address());
    let response = client.upgrade(extra);
    assert_eq!(response.status, 101, "{response:?}");
    let close = client.close_frame();
    // The client's own close frame is read before the end: no reset.
    client.send(&masked(0x88, &close.0.to_be_bytes())).unwrap();
    client.finish_sending();
    assert_eq!(client.ending(), Ending::Closed(Vec::new()));
    close
}

/// The seconds in "REASON; retry after N s".
fn retry_of(reason: &str, text: &str) -> u32 {
    let rest = text.strip_prefix(reason).and_then(|rest| rest.strip_prefix("; retry after "));
    let seconds = rest.and_then(|rest| rest.strip_suffix(" s"));
    seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn refusals_in_close_frames_are_readable_and_spread_their_retry() {
    // Mistake 9: a bare status line followed by a reset, and a constant Retry-After.
    let config = "workers = 2\nlimits.max_connections = 1\nlimits.retry_after = \"100s\"\n";
    let server = Holdfast::with(config);
    let mut holder = RawClient::connect_from(loopback(0), server.address());
    assert_eq!(holder.upgrade("").status, 101);
    RawClient::connect(server.address()).upgrade("").assert_refusal(503, "max_connections");
    assert_eq!(server.reload(&format!("{config}limits.refusal = \"close\"\n")).status, 200);
    let mut waits = Vec::new();
    for _ in 0..30 {
        let (code, text) = closed_with(&server, "");
        assert_eq!(code, 1013, "{text}");
        waits.push(retry_of("max_connections", &text));
    }
    assert!(waits.iter().all(|wait| (50..=150).contains(wait)), "{waits:?}");
    waits.sort_unstable();
    waits.dedup();
    assert!(waits.len() > 5, "everybody is told to come back at once: {waits:?}");
    let totals = server.wait_until("all have gone", |totals| totals.number("pending_handshakes") == 0);
    assert_eq!(
        (totals.number("accepted_total"), totals.number("rejected_total.max_connections")),
        (1, 31),
        "turned away is not let in"
    );
    // What is no good request is answered in HTTP.
    let mut client = RawClient::connect(server.address());
    client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    client.response().assert_refusal(426, "bad_request");
    let mut check = RawClient::connect(server.address());
    check.send(b"OPTIONS / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(check.response().status, 503);
    server.stop();
}

#[test]
fn every_limit_and_the_drain_refuse_in_close_frames() {
    let server = Holdfast::with(
        "workers = 1\nlimits.max_connections_per_address = 1\nlimits.refusal = \"close\"\ndrain.duration = \"60s\"\n\
         [[routes]]\npath = \"/\"\nprotocol = \"echo\"\nsubprotocols = [\"mqtt\"]\n",
    );
    let mut holder = RawClient::open(server.address());
    // A browser that offers a subprotocol sees the close frame only if the offer is answered.
    let mut client = RawClient::connect(server.address());
    let response = client.upgrade("Sec-WebSocket-Protocol: mqtt\r\n");
    assert_eq!((response.status, response.header("sec-websocket-protocol")), (101, Some("mqtt")));
    let (code, text) = client.close_frame();
    assert_eq!(code, 1013);
    retry_of("max_connections_per_address", &text);
    holder.assert_echoes(b"not touched");
    assert_eq!(server.control().post("/drain").status, 200);
    let (code, text) = server.poll(
        "the worker drains",
        || closed_with(&server, ""),
        |(_, text)| text.starts_with("draining"),
    );
    assert_eq!(code, 1013);
    retry_of("draining", &text);
}

#[test]
fn health_is_answered_when_every_handshake_is_taken() {
    let options = Options::config(
        "workers = 1\nlimits.max_pending_handshakes = 4\ntimeouts.handshake = \"600s\"\nlimits.refusal = \"close\"",
    );
    let server = Holdfast::start(&options.environment("HOLDFAST_LOG", "trace"));
    // Nobody decides about anybody.
    server.signal(Signal::SIGSTOP);
    let mut waiting: Vec<RawClient> = (0..4).map(|_| RawClient::connect(server.address())).collect();
    for client in &mut waiting {
        client.send(&upgrade_request("")).unwrap();
    }
    let parked =
        || server.process().lines().iter().filter(|line| line.ends_with("handshake -> parked")).count();
    server.poll("all requests are read", parked, |parked| *parked == 4);
    for _ in 0..20 {
        let mut check = RawClient::connect(server.address());
        check.send(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        assert_eq!(check.response().status, 200);
    }
    let mut beyond = RawClient::connect(server.address());
    assert_eq!(beyond.upgrade("").status, 101);
    let (code, text) = beyond.close_frame();
    assert_eq!(code, 1013);
    retry_of("pending_handshakes", &text);
    server.signal(Signal::SIGCONT);
    for client in &mut waiting {
        assert_eq!(client.response().status, 101);
        client.assert_echoes(b"let in");
    }
    server.stop();
}
