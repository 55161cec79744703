//! A reload changes everything it was asked to, or nothing; and nobody's connection either way.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::frame::{FIN, TEXT, masked};
use holdfast_tests::holdfast::{Holdfast, Options};
use nix::sys::signal::Signal;

const BEFORE: &str = "workers = 2
[limits]
max_connections = 50
max_connections_per_address = 0
[timeouts]
idle = \"0s\"
";

fn with_cap(cap: u32) -> String {
    BEFORE.replace("max_connections = 50", &format!("max_connections = {cap}"))
}

fn cap(server: &Holdfast) -> u64 {
    server.control().get("/limits").json()["max_connections"].as_u64().unwrap()
}

#[test]
fn a_good_file_changes_limits_live_and_touches_nobody() {
    let server = Holdfast::with(BEFORE);
    let pids = server.worker_pids();
    let mut clients = Clients::of(&server);
    let echo = clients.add(Group::new(20, Role::Echo { in_flight: 2, size: 300 }).from([loopback(0)]));
    let idle = clients.add(Group::new(30, Role::Idle).from([loopback(1)]));
    clients.run_until("the server is full", |clients| {
        clients.stats(idle).open == 30 && clients.stats(echo).open == 20
    });
    assert_eq!(RawClient::connect(server.address()).upgrade("").status, 503);

    server.write_config(&with_cap(52));
    server.signal(Signal::SIGHUP);
    server.wait_until("the new cap holds", |totals| totals.number("max_connections") == 52);
    let more: Vec<RawClient> = (0..2).map(|_| RawClient::open(server.address())).collect();
    assert_eq!(RawClient::connect(server.address()).upgrade("").status, 503);

    // Lowered below the count: nobody is dropped, and nobody gets in until enough have left.
    let report = server.reload(&with_cap(40));
    assert_eq!(report.status, 200, "{}", report.text());
    let change = &report.json()["changes"][0];
    assert_eq!(
        (change["key"].as_str(), change["effect"].as_str()),
        (Some("limits.max_connections"), Some("applied"))
    );
    assert_eq!((change["old"].as_u64(), change["new"].as_u64()), (Some(52), Some(40)));
    assert_eq!(server.totals().number("connections"), 52);
    assert_eq!(RawClient::connect(server.address()).upgrade("").status, 503);
    drop(more);
    clients.leave(idle, 11);
    clients.run_until("thirteen have left", |clients| clients.stats(idle).left() == 11);
    server.wait_until("they are counted out", |totals| totals.number("connections") == 39);
    let mut last = RawClient::open(server.address());
    assert_eq!(RawClient::connect(server.address()).upgrade("").status, 503);

    let echoes = clients.stats(echo).echoes;
    clients.run_until("echoing goes on", |clients| clients.stats(echo).echoes > echoes + 1000);
    assert_eq!((clients.stats(echo).open, clients.stats(idle).open), (20, 19));
    last.assert_echoes(b"in");
    assert_eq!(server.worker_pids(), pids, "a reload restarts nobody");
    server.stop();
}

#[test]
fn limits_of_frames_and_timers_reach_the_workers() {
    let server = Holdfast::with(BEFORE);
    let mut client = RawClient::open(server.address());
    let report = server.reload(&format!("{BEFORE}[security]\npath = \"/only\"\n").replace(
        "max_connections_per_address = 0",
        "max_connections_per_address = 1\nmax_message_size = \"100B\"",
    ));
    assert_eq!(report.status, 200, "{}", report.text());
    assert_eq!(report.json()["changes"].as_array().unwrap().len(), 3, "{}", report.text());
    assert_eq!(RawClient::connect(server.address()).upgrade("").status, 404);
    client.send(&masked(FIN | TEXT, &[b'x'; 101])).unwrap();
    assert_eq!(client.close_frame().0, 1009);
    server.stop();
}

#[test]
fn a_bad_file_changes_nothing_and_the_error_names_the_line() {
    let server = Holdfast::with(BEFORE);
    let mut client = RawClient::open(server.address());
    let before = server.control().get("/config").json();
    let bad = with_cap(70).replace("idle = \"0s\"", "idle = \"soon\"\nidol = 3");

    let report = server.reload(&bad);
    assert!((400..500).contains(&report.status), "{}", report.status);
    let error = report.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("holdfast.toml:6: ") && error.contains("holdfast.toml:7: "), "{error}");
    server.signal(Signal::SIGHUP);
    let line = server.process().wait_for_line("holdfast.toml:6: ");
    assert!(line.contains("idle"), "{line}");

    assert_eq!(cap(&server), 50);
    assert_eq!(server.control().get("/config").json(), before);
    client.assert_echoes(b"untouched");
    // The next good file is taken.
    assert_eq!(server.reload(&with_cap(70)).status, 200);
    assert_eq!(cap(&server), 70);
    server.stop();
}

#[test]
fn a_key_that_cannot_change_live_is_named_and_keeps_its_value() {
    let at = |address: &str, text: &str| format!("listen = \"{address}\"\n{text}");
    let options = Options::config(&at("127.0.0.1:0", BEFORE)).own_addresses().argument("--admin=127.0.0.1:0");
    let server = Holdfast::start(&options);
    let report = server.reload(&at("127.0.0.1:1", &with_cap(60)));
    assert_eq!(report.status, 200, "{}", report.text());
    let report = report.json();
    let effect = |key: &str| {
        let changes = report["changes"].as_array().unwrap();
        let change = changes
            .iter()
            .find(|change| change["key"] == key)
            .unwrap_or_else(|| panic!("no {key} in {report}"));
        change["effect"].as_str().unwrap().to_owned()
    };
    assert_eq!(effect("limits.max_connections"), "applied");
    assert_eq!(effect("listen"), "needs restart");
    assert_eq!((server.worker_pids().len(), cap(&server)), (2, 60));
    server.stop();
}

#[test]
fn a_cap_that_the_descriptors_cannot_carry_is_refused_and_nothing_changes() {
    let server = Holdfast::start(&Options::config(BEFORE).descriptor_limit(300));
    let report = server.reload(&with_cap(100_000));
    assert!((400..500).contains(&report.status), "{} {}", report.status, report.text());
    assert!(report.json()["error"].as_str().unwrap().contains("100000"), "{}", report.text());
    assert_eq!(cap(&server), 50);
    server.stop();
}

#[test]
fn a_worker_started_after_a_reload_has_the_new_limits() {
    let server = Holdfast::with(&BEFORE.replace("workers = 2", "workers = 1"));
    let reloaded = BEFORE
        .replace("workers = 2", "workers = 1")
        .replace("[timeouts]", "max_message_size = \"100B\"\n[timeouts]");
    assert_eq!(server.reload(&reloaded).status, 200);
    nix::sys::signal::kill(server.worker_pids()[0], Signal::SIGKILL).unwrap();
    server.wait_until("it is replaced", |totals| {
        totals.number("restarts_total") == 1 && totals.number("workers_ready") == 1
    });
    let mut client = RawClient::open(server.address());
    client.send(&masked(FIN | TEXT, &[b'x'; 101])).unwrap();
    assert_eq!(client.close_frame().0, 1009);
    server.stop();
}

/// As many allowed origins as no message could carry.
fn with_origins(count: u32) -> String {
    let origins: Vec<String> =
        (0..count).map(|site| format!("\"https://site-{site}.example.org\"")).collect();
    format!("{BEFORE}[security]\nallowed_origins = [{}]\n", origins.join(", "))
}

fn status_from(server: &Holdfast, site: u32) -> u16 {
    let origin = format!("Origin: https://site-{site}.example.org\r\n");
    RawClient::connect(server.address()).upgrade(&origin).status
}

#[test]
fn thousands_of_settings_work_at_start_reload_death_and_upgrade_and_millions_are_refused() {
    let server = Holdfast::with(&with_origins(3_000));
    assert_eq!((status_from(&server, 2_999), status_from(&server, 3_000)), (101, 403));
    let report = server.reload(&with_origins(3_001));
    assert_eq!(report.status, 200, "{}", report.text());
    assert_eq!((status_from(&server, 3_000), status_from(&server, 3_001)), (101, 403));

    let before = server.worker_pids();
    nix::sys::signal::kill(before[0], Signal::SIGKILL).unwrap();
    server.wait_for_workers("the dead one is followed", |workers| {
        workers.iter().all(|worker| worker.text("state") == "ready") && server.worker_pids()[0] != before[0]
    });
    server.signal(Signal::SIGUSR2);
    // While one program becomes the other, nobody answers.
    let ask = || server.control().try_request("GET", "/upgrade").filter(|answer| answer.status == 200);
    server.poll("it is upgraded", ask, |answer| {
        answer.as_ref().is_some_and(|answer| answer.json()["state"] == "done")
    });
    for _ in 0..8 {
        assert_eq!((status_from(&server, 3_000), status_from(&server, 3_001)), (101, 403));
    }

    let report = server.reload(&with_origins(600_000));
    assert_eq!(report.status, 422);
    assert!(report.text().contains("at most 16777216"), "{}", report.text());
    assert_eq!((status_from(&server, 3_000), status_from(&server, 3_001)), (101, 403));
}
