//! The control socket: what it answers, to whom, and that no client of it disturbs anything.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::time::Duration;

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::control::read_response;
use holdfast_tests::holdfast::{Holdfast, run};
use nix::sys::signal::{Signal, kill};

/// What interface.md promises of /totals and /workers.
const TOTALS: [&str; 18] = [
    "connections",
    "max_connections",
    "utilization",
    "level",
    "state",
    "workers",
    "workers_ready",
    "accepted_total",
    "rejected_total",
    "closed_total",
    "restarts_total",
    "lost_total",
    "messages_received_total",
    "messages_sent_total",
    "pending_handshakes",
    "uptime_seconds",
    "version",
    "silent_workers",
];
const WORKER: [&str; 13] = [
    "slot",
    "pid",
    "keeper_pid",
    "incarnation",
    "state",
    "connections",
    "accepted_total",
    "messages_received_total",
    "loop_lag_seconds",
    "accept_queue",
    "accept_queue_max",
    "uptime_seconds",
    "version",
];
const REJECTIONS: [&str; 9] = [
    "max_connections",
    "max_connections_per_address",
    "connect_rate",
    "connect_rate_per_address",
    "pending_handshakes",
    "origin",
    "bad_request",
    "handshake_timeout",
    "draining",
];
const CLOSES: [&str; 15] = [
    "client",
    "idle_timeout",
    "ping_timeout",
    "message_too_big",
    "message_rate",
    "protocol_error",
    "invalid_utf8",
    "slow_reader",
    "admin",
    "drain",
    "worker_lost",
    "shed",
    "error",
    "application",
    "message_timeout",
];

#[test]
fn every_promised_name_is_there() {
    let server = Holdfast::with("workers = 3\nlimits.max_connections = 100");
    let totals = server.totals();
    for name in TOTALS {
        let _ = totals.value(name);
    }
    for reason in REJECTIONS {
        assert_eq!(totals.number(&format!("rejected_total.{reason}")), 0);
    }
    for reason in CLOSES {
        assert_eq!(totals.number(&format!("closed_total.{reason}")), 0);
    }
    assert_eq!((totals.text("level"), totals.text("state")), ("normal", "running"));
    assert_eq!((totals.number("workers"), totals.number("workers_ready")), (3, 3));
    let workers = server.control().workers();
    assert_eq!(workers.iter().map(|worker| worker.number("slot")).collect::<Vec<u64>>(), [0, 1, 2]);
    for name in WORKER {
        let _ = workers[0].value(name);
    }
    assert_eq!(server.control().get("/health").status, 200);
    assert_eq!(server.control().get("/limits").json()["max_connections"], 100);
    assert_eq!(server.control().get("/no-such-thing").status, 404);
    assert_eq!(server.control().post("/totals").status, 405);
    server.stop();
}

#[test]
fn totals_are_one_consistent_picture_under_load() {
    // Mistake 5: totals reset before the replies arrive, and a slow worker silently missing.
    let server =
        Holdfast::with("workers = 4\nlimits.max_connections = 300\nlimits.max_connections_per_address = 0");
    let mut clients = Clients::of(&server);
    let (mut accepted, mut messages) = (0, 0);
    for round in 0..20 {
        let guests = clients.add(Group::new(100, Role::Idle).from([loopback(0)]));
        let talkers = clients.add(Group::new(20, Role::Echo { in_flight: 1, size: 64 }).from([loopback(1)]));
        clients.run_until("all are in", |clients| {
            let totals = server.totals();
            let inside = totals.number("accepted_total") - totals.sum("closed_total");
            assert_eq!(totals.number("connections"), inside, "old and new counts are mixed: {totals:?}");
            assert!(totals.number("accepted_total") >= accepted, "accepted_total went back: {totals:?}");
            assert!(
                totals.number("messages_sent_total") >= messages,
                "messages_sent_total went back: {totals:?}"
            );
            accepted = totals.number("accepted_total");
            messages = totals.number("messages_sent_total");
            clients.stats(guests).open == 100
                && clients.stats(talkers).open == 20
                && clients.stats(talkers).echoes > 100
        });
        if round % 2 == 0 {
            clients.leave(guests, 100);
            clients.leave(talkers, 20);
            clients.run_until("all have left", |clients| {
                clients.stats(guests).left() == 100 && clients.stats(talkers).left() == 20
            });
        } else {
            clients.vanish(guests, 100);
            clients.vanish(talkers, 20);
        }
        server.wait_until("all are counted out", |totals| totals.number("connections") == 0);
    }
    let totals = server.totals();
    assert_eq!((totals.number("accepted_total"), totals.sum("closed_total")), (20 * 120, 20 * 120));
    assert_eq!(totals.number("anomalies_total"), 0);
    server.stop();
}

#[test]
fn a_worker_that_does_not_answer_is_named_and_its_connections_stay_counted() {
    let server = Holdfast::with("workers = 2\nlimits.max_connections_per_address = 0");
    let mut clients = Clients::of(&server);
    let crowd = clients.add(Group::new(40, Role::Idle));
    clients.run_until("all are in", |clients| clients.stats(crowd).open == 40);
    let worker = server.worker_pids()[1];
    kill(worker, Signal::SIGSTOP).unwrap();
    let totals = server.wait_until("the silent one is named", |totals| {
        totals.value("silent_workers").as_array().is_some_and(|silent| !silent.is_empty())
    });
    assert_eq!(totals.value("silent_workers"), &serde_json::json!([1]));
    assert_eq!(totals.number("connections"), 40);
    assert_eq!(server.control().workers().len(), 2, "a silent worker is left out");
    kill(worker, Signal::SIGCONT).unwrap();
    server.wait_until("it is heard again", |totals| {
        totals.value("silent_workers").as_array().is_some_and(Vec::is_empty)
    });
    server.stop();
}

#[test]
fn the_socket_is_for_its_owner_only() {
    let server = Holdfast::with("workers = 1");
    let metadata = std::fs::metadata(server.control().path()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    server.stop();
}

#[test]
fn bad_and_slow_clients_disturb_nothing() {
    let server = Holdfast::with("workers = 1");
    let mut websocket = RawClient::open(server.address());
    let mut slow = server.control().connect();
    slow.write_all(b"GET /tot").unwrap();
    let mut never_reads = server.control().connect();
    // It asks for far more than the socket's buffers hold, and takes none of it.
    never_reads.set_nonblocking(true).unwrap();
    while never_reads.write_all(&b"GET /config HTTP/1.1\r\nHost: h\r\n\r\n".repeat(100)).is_ok() {}
    let idle: Vec<_> = (0..50).map(|_| server.control().connect()).collect();

    let mut garbage = server.control().connect();
    let _ = garbage.write_all(&[0xff; 4096]);
    // An error answer or a close: both end it.
    let _ = garbage.read_to_end(&mut Vec::new());

    let mut endless = server.control().connect();
    let _ = endless.write_all(b"GET /totals HTTP/1.1\r\nHost: h\r\n");
    let line = format!("X-Filler: {}\r\n", "x".repeat(1012)).into_bytes();
    let taken = (0..10 * 1024).take_while(|_| endless.write_all(&line).is_ok()).count();
    assert!(taken < 10 * 1024, "10 MiB of headers were read");

    assert_eq!(server.totals().number("connections"), 1);
    websocket.assert_echoes(b"undisturbed");
    slow.write_all(b"als HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    assert_eq!(read_response(&mut slow).status, 200, "a slow request is answered all the same");
    drop(idle);
    server.stop();
}

#[test]
fn the_admin_address_reads_and_does_nothing_else() {
    let server = Holdfast::with("workers = 1");
    let ask = |method: &str, target: &str| {
        let mut client = RawClient::connect(server.admin());
        client
            .send(format!("{method} {target} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").as_bytes())
            .unwrap();
        client.response().status
    };
    assert_eq!((ask("GET", "/health"), ask("GET", "/metrics")), (200, 200));
    for target in ["/stop", "/drain", "/reload"] {
        assert!(matches!(ask("POST", target), 403..=405), "{target}");
    }
    assert_eq!(server.totals().text("state"), "running");
    server.stop();
}

#[test]
fn a_reader_that_hangs_delays_no_admission_while_the_supervisor_makes_way() {
    let server = Holdfast::with("workers = 2\nlimits.max_connections_per_address = 0");
    let mut slow = TcpStream::connect(server.admin()).unwrap();
    slow.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    // Until the server takes no more, since nobody reads its answers.
    while slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").is_ok() {}
    let run_dir = server.run_dir().to_str().unwrap().to_owned();
    let upgrade = std::thread::spawn(move || run(&["ctl", "--run-dir", &run_dir, "upgrade"]));
    let _ = server.process().wait_for_line("is version");
    // The line that every supervisor begins with.
    let is_next_there =
        || server.process().lines().iter().filter(|line| line.contains(" descriptors each")).count() > 1;
    let mut admitted = 0;
    while !is_next_there() {
        drop(RawClient::open(server.address()));
        admitted += u32::from(!is_next_there());
    }
    assert!(admitted > 0, "nobody was let in while the old supervisor waited for its reader");
    let (status, _, complaint) = upgrade.join().unwrap();
    assert!(status.success(), "{complaint}");
    server.stop();
}

#[test]
fn ctl_asks_the_same_questions() {
    let server = Holdfast::with("workers = 2\nlimits.max_connections = 100");
    let _client = RawClient::open(server.address());
    let run_dir = server.run_dir().to_str().unwrap().to_owned();
    let ctl = |what: &[&str]| {
        let (status, output, errors) = run(&[&["ctl", "--run-dir", &run_dir][..], what].concat());
        assert!(status.success(), "ctl {what:?}: {status}: {errors}");
        output
    };
    server.wait_until("the client is counted", |totals| totals.number("connections") == 1);
    let totals: serde_json::Value = serde_json::from_str(&ctl(&["--json", "totals"])).unwrap();
    assert_eq!((totals["connections"].as_u64(), totals["max_connections"].as_u64()), (Some(1), Some(100)));
    let workers: serde_json::Value = serde_json::from_str(&ctl(&["--json", "workers"])).unwrap();
    assert_eq!(workers.as_array().unwrap().len(), 2);
    for question in ["totals", "workers", "config", "limits", "health", "metrics", "reload"] {
        assert!(!ctl(&[question]).trim().is_empty(), "ctl {question} says nothing");
    }
    ctl(&["stop"]);
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
    let (status, _, errors) = run(&["ctl", "--run-dir", &run_dir, "totals"]);
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains(&run_dir), "{errors}");
}
