//! What programs that speak plain HTTP to the public port rely on: health checks in all their forms, a date, and an
//! answer for who sends a request and no more.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{Ending, RawClient, upgrade_request};
use holdfast_tests::holdfast::Holdfast;
use holdfast_tests::http::Response;

/// All that `request` gets, from a client that then says no more at once.
fn everything(server: &Holdfast, request: &[u8]) -> Vec<u8> {
    let mut client = RawClient::connect(server.address());
    client.send(request).unwrap();
    client.finish_sending();
    match client.ending() {
        Ending::Closed(bytes) => bytes,
        Ending::Reset(bytes) => panic!("a reset after {:?}", String::from_utf8_lossy(&bytes)),
    }
}

fn answer(server: &Holdfast, request: &[u8]) -> Response {
    let bytes = everything(server, request);
    let (response, length) = Response::parse(&bytes).expect("a complete response");
    assert_eq!(length, bytes.len(), "something follows the response");
    let date = response.header("date").expect("a Date");
    assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
    response
}

/// Until the worker has heard of it.
fn wait_for_health(server: &Holdfast, word: &str) {
    let status = || answer(server, HEALTH_CHECKS[0].as_bytes()).json()["status"].clone();
    server.poll("the health check follows", status, |status| *status == word);
}

const HEALTH_CHECKS: [&str; 5] = [
    "GET /health HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /health HTTP/1.0\r\n\r\n",
    // HAProxy's `option httpchk`, alone and with a version.
    "OPTIONS / HTTP/1.0\r\n\r\n",
    "OPTIONS / HTTP/1.1\r\nHost: h\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
];

#[test]
fn health_checks_of_every_form_follow_full_and_drain() {
    let server = Holdfast::with(
        "workers = 1\nlimits.max_connections = 1\ndrain.duration = \"60s\"\ntimeouts.close = \"60s\"",
    );
    for check in HEALTH_CHECKS {
        let response = answer(&server, check.as_bytes());
        assert_eq!((response.status, response.json()["status"].as_str()), (200, Some("ok")), "{check}");
        assert_eq!(response.header("allow"), Some("GET, HEAD, OPTIONS"), "{check}");
    }
    let _holder = RawClient::open(server.address());
    wait_for_health(&server, "full");
    for check in HEALTH_CHECKS {
        let response = answer(&server, check.as_bytes());
        assert_eq!((response.status, response.json()["status"].as_str()), (503, Some("full")), "{check}");
    }
    assert_eq!(server.control().post("/drain").status, 200);
    wait_for_health(&server, "draining");
    for check in HEALTH_CHECKS {
        let response = answer(&server, check.as_bytes());
        assert_eq!((response.status, response.json()["status"].as_str()), (503, Some("draining")), "{check}");
    }
    assert_eq!(server.totals().sum("rejected_total"), 0, "a health check is no refused client");
}

/// The response to a HEAD request: its body is not there whatever Content-Length says.
#[test]
fn head_gets_no_body_whatever_is_wrong() {
    let server = Holdfast::with("workers = 1\ntimeouts.handshake = \"200ms\"");
    for (request, status) in [
        ("HEAD /health HTTP/1.1\r\nHost: h\r\n\r\n", "200"),
        ("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", "426"),
        ("HEAD / HTTP/1.1\r\n\r\n", "400"),
        ("\r\nHEAD / HTTP/1.1\r\n\r\n", "400"),
        ("HEAD / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", "400"),
    ] {
        let text = String::from_utf8(everything(&server, request.as_bytes())).unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {text}");
        assert!(text.ends_with("\r\n\r\n") && text.contains("\r\nDate: "), "{request}: {text}");
    }
    let mut slow = RawClient::connect(server.address());
    slow.send(b"HEAD / HTTP/1.1\r\nHost:").unwrap();
    let Ending::Closed(bytes) = slow.ending() else { panic!("a reset") };
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("HTTP/1.1 408 ") && text.ends_with("\r\n\r\n"), "{text}");
    server.stop();
}

#[test]
fn a_request_followed_by_the_end_of_sending_is_answered() {
    let server = Holdfast::with("workers = 2\nlimits.max_connections = 10");
    for _ in 0..30 {
        let bytes = everything(&server, &upgrade_request(""));
        let (response, length) = Response::parse(&bytes).expect("a complete response");
        assert_eq!((response.status, length), (101, bytes.len()));
    }
    // Each was let in and has left.
    let totals = server.wait_until("all have left", |totals| totals.number("connections") == 0);
    assert_eq!(
        (totals.number("accepted_total"), totals.number("closed_total.client"), totals.sum("rejected_total")),
        (30, 30, 0)
    );
    let _holders: Vec<_> = (0..10).map(|_| RawClient::open(server.address())).collect();
    for _ in 0..10 {
        let response = answer(&server, &upgrade_request(""));
        response.assert_refusal(503, "max_connections");
    }
    server.stop();
}

#[test]
fn another_spelling_of_a_path_passes_no_path_rule() {
    let server = Holdfast::with("workers = 1\nsecurity.path = \"/chat\"");
    let ask = |target: &str| {
        let request = String::from_utf8(upgrade_request("")).unwrap();
        let mut client = RawClient::connect(server.address());
        client.send(request.replacen("GET /", &format!("GET {target}"), 1).as_bytes()).unwrap();
        client.response().status
    };
    for target in ["/chat", "//chat", "/x/../chat", "/%63hat", "/chat/%2e/room", "http://h/./chat"] {
        assert_eq!(ask(target), 101, "{target}");
    }
    for target in
        ["/chat/../admin", "/chat/%2e%2e/admin", "/chat/.%2E/admin", "/chat//../../chat/../x", "/%2fchat"]
    {
        assert_eq!(ask(target), 404, "{target}");
    }
    assert_eq!(ask("/chat/%zz"), 400);
    server.stop();
}
