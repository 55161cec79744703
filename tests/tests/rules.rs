//! Who is let in, and why not: rates, bans, and the explanation of both, over all workers and over deaths.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::time::{Duration, Instant};

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::holdfast::{self, Holdfast, Options};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

/// One attempt: its status and the reason in its body, if it was refused.
fn attempt(server: &Holdfast, n: u16) -> (RawClient, u16, String) {
    let mut client = RawClient::connect_from(loopback(n), server.address());
    let response = client.upgrade("");
    let reason = if response.status == 101 {
        String::new()
    } else {
        response.json()["error"].as_str().unwrap().to_owned()
    };
    (client, response.status, reason)
}

fn explain(server: &Holdfast, n: u16) -> Value {
    let response = server.control().get(&format!("/explain?address={}", loopback(n)));
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

#[test]
fn rates_are_for_all_workers_together_and_never_more_than_a_second_s_worth_ahead() {
    let server = Holdfast::with(
        "workers = 4
        [limits]
        max_connections_per_address = 0
        connect_rate = 40
        connect_rate_per_address = 10",
    );
    let began = Instant::now();
    let mut clients = Vec::new();
    let mut refused = [0; 2];
    for turn in 0..200 {
        let (client, status, reason) = attempt(&server, turn % 8);
        match (status, reason.as_str()) {
            (101, _) => clients.push(client),
            (429, "connect_rate") => refused[0] += 1,
            (429, "connect_rate_per_address") => refused[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    let most = 40.0 + 40.0 * began.elapsed().as_secs_f64();
    assert!(clients.len() as f64 <= most && clients.len() >= 40, "{} of at most {most}", clients.len());
    assert!(refused[0] > 0, "{refused:?}");
    let totals = server.totals();
    assert_eq!(totals.number("rejected_total.connect_rate"), refused[0]);
    assert_eq!(totals.number("rejected_total.connect_rate_per_address"), refused[1]);
    server.stop();
}

#[test]
fn a_rate_per_address_leaves_others_alone() {
    let server = Holdfast::with(
        "workers = 2
        [limits]
        max_connections_per_address = 0
        connect_rate_per_address = 1",
    );
    let (first, status, _) = attempt(&server, 1);
    assert_eq!(status, 101);
    let asked = Instant::now();
    let (_, status, reason) = attempt(&server, 1);
    // On a machine that slept for a second in between it may be let in.
    if asked.elapsed() < Duration::from_millis(500) {
        assert_eq!((status, reason.as_str()), (429, "connect_rate_per_address"));
    }
    assert_eq!(attempt(&server, 2).1, 101);
    drop(first);
    server.stop();
}

#[test]
fn who_is_banned_gets_403_and_who_is_in_stays_over_the_deaths_of_worker_and_supervisor() {
    let server = Holdfast::with("workers = 2");
    let (mut inside, ..) = attempt(&server, 1);
    let address = loopback(1).to_string();
    let (done, text) = server.ctl(&["ban", &address]);
    assert!(done && text.contains(&format!("{address}/32")), "{text}");
    assert_eq!(server.control().post("/ban?address=2001:db8::/32&for=1h").status, 200);
    let refused = |server: &Holdfast| {
        let (_, status, reason) = attempt(server, 1);
        (status, reason)
    };
    assert_eq!(refused(&server), (403, "banned".to_owned()));
    assert_eq!(attempt(&server, 2).1, 101);
    inside.assert_echoes(b"still in");

    for worker in server.control().workers() {
        kill(holdfast::pid_of(&worker, "pid"), Signal::SIGKILL).unwrap();
    }
    server.wait_for_workers("they are replaced", |workers| {
        workers.iter().all(|worker| worker.text("state") == "ready" && worker.number("incarnation") > 1)
    });
    assert_eq!(refused(&server), (403, "banned".to_owned()));
    inside.assert_echoes(b"still in");

    server.process().signal(Signal::SIGKILL);
    let _ = server.process().wait_for_exit();
    let first = server;
    let server = Holdfast::start(&Options::config("workers = 2").run_dir(first.run_dir()));
    assert_eq!(refused(&server), (403, "banned".to_owned()));
    inside.assert_echoes(b"still in");

    let bans = server.control().get("/bans").json();
    let bans: Vec<_> =
        bans.as_array().unwrap().iter().map(|ban| ban["network"].as_str().unwrap().to_owned()).collect();
    assert_eq!(bans, [format!("{address}/32"), "2001:db8::/32".to_owned()]);
    let (done, text) = server.ctl(&["unban", &address]);
    assert!(done && !text.contains(&address), "{text}");
    assert_eq!(attempt(&server, 1).1, 101);
    let (done, text) = server.ctl(&["unban", &address]);
    assert!(!done && text.contains("is not banned"), "{text}");
    for bad in ["/ban", "/ban?address=x", "/ban?address=::1&for=0s", "/unban", "/ban?address=::1&until=9"] {
        assert_eq!(server.control().post(bad).status, 400, "{bad}");
    }
    server.stop();
    assert_eq!(first.processes(), [], "processes left behind");
}

#[test]
fn a_ban_for_a_time_ends_by_itself() {
    let server = Holdfast::with("workers = 1");
    let target = format!("/ban?address={}&for=300ms", loopback(1));
    assert_eq!(server.control().post(&target).status, 200);
    server.poll("it has ended", || attempt(&server, 1).1, |status| *status == 101);
    assert_eq!(server.control().get("/bans").json(), Value::Array(Vec::new()));
    server.stop();
}

#[test]
fn every_rule_is_explained_and_the_verdict_is_what_the_client_then_gets() {
    let server = Holdfast::with(&format!(
        "workers = 2
        [limits]
        max_connections = 5
        max_connections_per_address = 2
        exempt_addresses = [\"{}\"]",
        loopback(9)
    ));
    let mut clients = Vec::new();
    let rule = |explanation: &Value, name: &str| {
        let rules = explanation["rules"].as_array().unwrap();
        rules.iter().find(|rule| rule["rule"] == name).unwrap().clone()
    };
    assert_eq!(explain(&server, 1)["verdict"], "admitted");
    for _ in 0..2 {
        clients.push(attempt(&server, 1));
    }
    let at_its_limit = explain(&server, 1);
    assert_eq!(at_its_limit["verdict"], "max_connections_per_address");
    let cap = rule(&at_its_limit, "max_connections_per_address");
    assert_eq!(
        (cap["limit"].as_u64(), cap["value"].as_u64(), cap["verdict"].as_str()),
        (Some(2), Some(2), Some("refused"))
    );
    assert_eq!(rule(&at_its_limit, "max_connections")["value"], 2);
    assert_eq!(attempt(&server, 1).2, "max_connections_per_address");
    for _ in 0..3 {
        clients.push(attempt(&server, 9));
    }
    let exempt = explain(&server, 9);
    assert_eq!(
        (exempt["exempt"].as_bool(), exempt["verdict"].as_str()),
        (Some(true), Some("max_connections"))
    );
    assert_eq!(rule(&exempt, "max_connections_per_address")["value"], 3);
    assert_eq!(attempt(&server, 9).2, "max_connections");
    let (done, text) = server.ctl(&["explain", &loopback(2).to_string()]);
    assert!(done && text.contains("would be refused: max_connections"), "{text}");
    assert_eq!(server.control().get("/explain").status, 400);
    assert_eq!(server.control().get("/explain?address=here").status, 400);
    server.stop();
}
