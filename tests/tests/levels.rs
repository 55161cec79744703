//! How full the server is, seen from outside: each edge is entered at its count and left a margin below.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::RawClient;
use holdfast_tests::frame::{FIN, TEXT, masked};
use holdfast_tests::holdfast::{Holdfast, Options, Starting};
use serde_json::Value;

/// The status of GET /health on the public port, on the admin address and on the control socket.
fn health(server: &Holdfast) -> [u16; 3] {
    let over_tcp = |address| {
        let mut client = RawClient::connect(address);
        client.send(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        client.response().status
    };
    [over_tcp(server.address()), over_tcp(server.admin()), server.control().get("/health").status]
}

#[test]
fn levels_follow_the_count_with_hysteresis_and_full_is_unhealthy() {
    let server = Holdfast::with(
        "workers = 2
        [limits]
        max_connections = 20
        soft_connections = 16
        warning_connections = 12
        hysteresis = 2
        max_connections_per_address = 0",
    );
    let mut clients: Vec<RawClient> = Vec::new();
    for (count, level) in
        [(11, "normal"), (12, "warning"), (15, "warning"), (16, "degraded"), (19, "degraded")]
    {
        clients.resize_with(count, || RawClient::open(server.address()));
        assert_eq!(server.totals().text("level"), level, "at {count}, coming up");
    }
    assert_eq!(health(&server), [200; 3]);
    clients.push(RawClient::open(server.address()));
    assert_eq!(server.totals().text("level"), "full");
    server.poll("the workers know", || health(&server), |statuses| *statuses == [503; 3]);
    for (count, level) in
        [(19, "full"), (18, "degraded"), (15, "degraded"), (14, "warning"), (11, "warning"), (10, "normal")]
    {
        clients.truncate(count);
        let connections = u64::try_from(count).unwrap();
        let totals =
            server.wait_until("they have left", |totals| totals.number("connections") == connections);
        assert_eq!(totals.text("level"), level, "at {count}, going down");
    }
    server.poll("the workers know", || health(&server), |statuses| *statuses == [200; 3]);
    for level in ["warning", "degraded", "full"] {
        let lines = server.process().lines();
        assert!(lines.iter().any(|line| line.contains(level)), "the log does not mention {level}");
    }
    server.stop();
}

#[test]
fn a_shortage_of_memory_degrades_and_is_named() {
    // Any machine has more than one in a hundred of its memory in use.
    let config = |degraded: &str| format!("workers = 1\n[degraded]\n{degraded}\n");
    let server = Holdfast::with(&config("memory = \"0%\""));
    assert_eq!(server.reload(&config("memory = \"1%\"")).status, 200);
    let totals = server.wait_until("degraded", |totals| totals.text("level") == "degraded");
    assert_eq!(totals.text("level_cause"), "memory");
    let lines = server.process().lines();
    assert!(lines.iter().any(|line| line.contains("degraded.memory = 1 %")), "{lines:?}");
    assert_eq!(server.reload(&config("memory = \"0%\"")).status, 200);
    server.wait_until("normal", |totals| totals.text("level") == "normal");
    server.stop();
}

#[test]
fn a_shortage_of_descriptors_degrades_and_is_named() {
    let config = "workers = 1
        [limits]
        max_connections = 150
        max_connections_per_address = 0
        max_pending_handshakes = 100
        [degraded]
        descriptors = \"20%\"";
    let server = Starting::new(&Options::config(config).descriptor_limit(500)).ready();
    let clients: Vec<RawClient> = (0..100).map(|_| RawClient::open(server.address())).collect();
    let totals = server.wait_until("degraded", |totals| totals.text("level") == "degraded");
    assert_eq!(totals.text("level_cause"), "descriptors");
    drop(clients);
    server.wait_until("normal", |totals| totals.text("level") == "normal");
    server.stop();
}

#[test]
fn a_count_that_walks_around_an_edge_enters_the_level_once_and_its_limits_follow_on_live_clients() {
    let server = Holdfast::with(
        "degraded.notify_clients = true
        degraded.max_message_size = \"1KiB\"
        workers = 2
        [limits]
        max_connections = 100
        soft_connections = 80
        warning_connections = 70
        hysteresis = 5
        max_connections_per_address = 0",
    );
    let long = vec![b'x'; 2000];
    let mut first = RawClient::open(server.address());
    first.assert_echoes(&long);
    let mut others: Vec<RawClient> = (0..78).map(|_| RawClient::open(server.address())).collect();
    let mut walk = fastrand::Rng::with_seed(7);
    for _ in 0..60 {
        let count = walk.usize(75..=83);
        others.resize_with(count, || RawClient::open(server.address()));
        let connections = u64::try_from(count + 1).unwrap();
        server.wait_until("they are in, or have left", |totals| totals.number("connections") == connections);
        first.assert_echoes(b"through all of it");
    }
    others.resize_with(85, || RawClient::open(server.address()));
    let notice: Value = serde_json::from_slice(&others[84].message()).unwrap();
    assert_eq!((notice["type"].as_str(), notice["level"].as_str()), (Some("system"), Some("degraded")));
    let totals = server.totals();
    assert_eq!((totals.text("level"), totals.number("level_entries_total.degraded")), ("degraded", 1));

    others.truncate(10);
    server.wait_until("normal again", |totals| totals.text("level") == "normal");
    server.poll("the worker knows", || probe(&server, &long), |echoes| *echoes);
    first.assert_echoes(&long);
    assert_eq!(server.totals().number("level_entries_total.degraded"), 1);
    server.stop();
}

/// Does a new client have a long message echoed?
fn probe(server: &Holdfast, message: &[u8]) -> bool {
    let mut client = RawClient::open(server.address());
    client.send(&masked(FIN | TEXT, message)).unwrap();
    client.frame().opcode() == TEXT
}
