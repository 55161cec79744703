//! The metrics: the promised names, the same figures as the totals, and counters that never go backwards.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{RawClient, upgrade_request, websocket};
use holdfast_tests::exposition::Exposition;
use holdfast_tests::holdfast::Holdfast;
use nix::sys::signal::{Signal, kill};
use tungstenite::Message;

const COUNTERS: [&str; 11] = [
    "websocket_connections_total",
    "websocket_connections_rejected_total",
    "websocket_connections_closed_total",
    "websocket_messages_total",
    "websocket_bytes_total",
    "holdfast_connections_resumed_total",
    "holdfast_connections_lost_total",
    "holdfast_listen_drops_total",
    "holdfast_link_messages_dropped_total",
    "holdfast_link_messages_skipped_total",
    "holdfast_log_lines_dropped_total",
];
const GAUGES: [&str; 10] = [
    "websocket_connections_current",
    "websocket_connections_limit",
    "holdfast_level",
    "holdfast_event_loop_lag_seconds",
    "holdfast_accept_queue",
    "holdfast_queued_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_resident_memory_bytes",
    "holdfast_build_info",
];
const HISTOGRAMS: [&str; 4] = [
    "websocket_connection_duration_seconds",
    "holdfast_resume_seconds",
    "holdfast_admission_wait_seconds",
    "holdfast_ping_rtt_seconds",
];

fn scrape(server: &Holdfast) -> Exposition {
    let mut client = RawClient::connect(server.admin());
    client.send(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let response = client.response();
    assert_eq!(response.status, 200);
    assert!(
        response.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"),
        "{response:?}"
    );
    Exposition::parse(&response.text())
}

#[test]
fn the_metrics_say_what_the_totals_say() {
    let server = Holdfast::with("workers = 2\nlimits.max_connections = 7");
    let mut inside: Vec<RawClient> = (0..7).map(|_| RawClient::open(server.address())).collect();
    for _ in 0..5 {
        assert_eq!(RawClient::connect(server.address()).upgrade("").status, 503);
    }
    inside.pop();
    for client in &mut inside {
        client.assert_echoes(b"12345");
    }
    let totals = server.wait_until("all is counted", |totals| {
        totals.number("connections") == 6
            && totals.number("rejected_total.max_connections") == 5
            && totals.number("messages_sent_total") == 6
    });
    let metrics = scrape(&server);
    for (names, kind) in [(&COUNTERS[..], "counter"), (&GAUGES, "gauge"), (&HISTOGRAMS, "histogram")] {
        for name in names {
            assert_eq!(metrics.kind(name), Some(kind), "{name}");
        }
    }
    let number = |name: &str| totals.number(name) as f64;
    assert!((metrics.sum("websocket_connections_current", &[]) - 6.0).abs() < f64::EPSILON);
    let same = [
        (metrics.sum("websocket_connections_current", &[]), number("connections")),
        (metrics.sum("websocket_connections_total", &["status=\"accepted\""]), number("accepted_total")),
        (
            metrics.sum("websocket_connections_total", &["status=\"rejected\""]),
            totals.sum("rejected_total") as f64,
        ),
        (
            metrics.sum("websocket_connections_rejected_total", &["reason=\"max_connections\""]),
            number("rejected_total.max_connections"),
        ),
        (
            metrics.sum("websocket_connections_closed_total", &["reason=\"client\""]),
            number("closed_total.client"),
        ),
        (
            metrics.sum("websocket_messages_total", &["direction=\"received\""]),
            number("messages_received_total"),
        ),
        (metrics.sum("websocket_messages_total", &["direction=\"sent\""]), number("messages_sent_total")),
        (metrics.sum("websocket_connections_limit", &["limit=\"max\""]), number("max_connections")),
        (metrics.sum("websocket_connection_duration_seconds_count", &[]), totals.sum("closed_total") as f64),
    ];
    for (n, (metric, total)) in same.into_iter().enumerate() {
        assert!((metric - total).abs() < f64::EPSILON, "figure {n}: {metric} is not {total}");
    }
    assert_eq!(metrics.count("websocket_connections_current"), 2, "one series for each worker");
    server.stop();
}

#[test]
fn counters_never_go_backwards_whatever_dies() {
    let server = Holdfast::with("workers = 2\nlimits.max_connections_per_address = 0");
    let mut before = scrape(&server);
    for round in 0..6 {
        let mut clients: Vec<_> = (0..10).map(|_| websocket(server.address())).collect();
        for client in &mut clients {
            client.send(Message::text("counted")).unwrap();
            assert_eq!(client.read().unwrap(), Message::text("counted"));
        }
        let _ = RawClient::connect(server.address()).send(&upgrade_request("Content-Length: 9\r\n"));
        let workers = server
            .wait_for_workers("a full set", |workers| workers.iter().all(|worker| worker.0["pid"].is_u64()));
        let name = if round % 3 == 2 { "keeper_pid" } else { "pid" };
        kill(holdfast_tests::holdfast::pid_of(&workers[round % 2], name), Signal::SIGKILL).unwrap();
        let restarts = u64::try_from(round).unwrap() + 1;
        server.wait_until("it is replaced", |totals| {
            let now = scrape(&server);
            for (series, value) in before.counters() {
                let after = now.counters().find(|(name, _)| *name == series);
                let after = after.unwrap_or_else(|| panic!("{series} has gone")).1;
                assert!(after >= value, "{series} went from {value} to {after}");
            }
            before = now;
            totals.number("workers_ready") == 2 && totals.number("restarts_total") == restarts
        });
    }
    assert!((before.sum("holdfast_worker_restarts_total", &[]) - 6.0).abs() < f64::EPSILON);
    server.stop();
}
