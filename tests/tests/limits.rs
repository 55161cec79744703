//! Limits that an operator changes while the service runs: applied everywhere before the answer, refused whole, tried
//! out, and what becomes of those who are too many.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::RawClient;
use holdfast_tests::holdfast::Holdfast;
use serde_json::{Value, json};

const CONFIG: &str = "workers = 2
    [limits]
    max_connections = 100
    max_connections_per_address = 0
    soft_connections = \"80%\"
    shed_rate = 500";

fn patch(server: &Holdfast, target: &str, body: &Value) -> Value {
    let response = server.control().request_with("PATCH", target, body);
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

fn open(server: &Holdfast, count: usize) -> Vec<RawClient> {
    (0..count).map(|_| RawClient::open(server.address())).collect()
}

fn connections(server: &Holdfast) -> u64 {
    server.totals().number("connections")
}

#[test]
fn a_changed_limit_holds_for_all_workers_when_the_answer_comes_and_until_the_next_reload() {
    let server = Holdfast::with(CONFIG);
    let mut clients = open(&server, 4);
    let report = patch(&server, "/limits", &json!({"max_connections": 4, "max_message_size": "1KiB"}));
    assert_eq!(report["changes"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(report["level"], "full");
    assert_eq!(RawClient::connect(server.address()).upgrade("").status, 503);
    for client in &mut clients {
        client.assert_echoes(&[b'x'; 1000]);
    }
    clients[0].send(&[0x82, 0xfe, 0x08, 0x00, 0, 0, 0, 0]).unwrap();
    assert_eq!(clients[0].close_frame().0, 1009);

    let config = server.control().get("/config").json();
    let entry =
        config.as_array().unwrap().iter().find(|entry| entry["key"] == "limits.max_connections").unwrap();
    assert_eq!((entry["value"].as_u64(), entry["source"].as_str()), (Some(4), Some("operator")));
    assert_eq!(server.reload(CONFIG).status, 200);
    assert_eq!(server.control().get("/limits").json()["max_connections"], 100);
    assert_eq!(RawClient::connect(server.address()).upgrade("").status, 101);
    server.stop();
}

#[test]
fn what_is_no_limit_or_out_of_range_changes_nothing_and_says_why() {
    let server = Holdfast::with(CONFIG);
    let before = server.control().get("/config").json();
    for (body, status, why) in [
        (json!({}), 400, "empty"),
        (json!([1]), 400, "not understood"),
        (json!({"max_connections": 0}), 422, "operator: limits.max_connections"),
        (json!({"max_connections": 50, "max_conections": 5}), 422, "did you mean"),
        (json!({"max_connections": 10, "soft_connections": 20}), 422, "limits.soft_connections"),
        (json!({"drain.duration": "1s"}), 422, "not a limit"),
        (json!({"max_connections": 100_000_000}), 422, "not reachable"),
        (json!({"max_connections": null}), 422, "null"),
        (json!({"simulate": "mild"}), 422, "no level"),
    ] {
        let response = server.control().request_with("PATCH", "/limits", &body);
        assert!(response.status == status && response.text().contains(why), "{body}: {}", response.text());
    }
    assert_eq!(server.control().get("/config").json(), before);
    assert_eq!(server.control().request_with("GET", "/limits", &json!({"max_connections": 5})).status, 400);
    server.stop();
}

#[test]
fn lowering_the_cap_refuses_newcomers_and_touches_nobody() {
    let server = Holdfast::with(CONFIG);
    let mut clients = open(&server, 10);
    let report = patch(&server, "/limits", &json!({"max_connections": 5}));
    assert!(report.get("shed").is_none(), "{report}");
    assert_eq!(RawClient::connect(server.address()).upgrade("").status, 503);
    for client in &mut clients {
        client.assert_echoes(b"still here");
    }
    // One below the count is not yet one below the cap.
    clients.truncate(5);
    server.wait_until("five have left", |totals| totals.number("connections") == 5);
    assert_eq!(RawClient::connect(server.address()).upgrade("").status, 503);
    clients.truncate(4);
    server.wait_until("one more has left", |totals| totals.number("connections") == 4);
    RawClient::open(server.address()).assert_echoes(b"welcome");
    server.stop();
}

#[test]
fn the_idlest_are_shed_with_1013_down_to_the_cap_and_a_dry_run_says_who() {
    let server = Holdfast::with(CONFIG);
    let mut clients = open(&server, 40);
    // Times are in milliseconds: until 25 are less idle than the others, as the server sees it.
    let idlest = || server.control().get("/connections?sort=idle&limit=15").json();
    clients[..25].iter_mut().for_each(|client| client.assert_echoes(b"active"));
    while idlest().as_array().unwrap().iter().any(|row| row["messages_received"] != 0) {
        clients[..25].iter_mut().for_each(|client| client.assert_echoes(b"active"));
    }
    let plan = patch(&server, "/limits?dry_run=true", &json!({"max_connections": 25, "shed": "idlest"}));
    assert_eq!((plan["dry_run"].as_bool(), plan["shed"]["connections"].as_u64()), (Some(true), Some(15)));
    let first = plan["shed"]["first"].as_array().unwrap();
    assert!(first.len() == 15 && first.iter().all(|row| row["messages_received"] == 0), "{plan}");
    assert_eq!(connections(&server), 40);
    assert_eq!(server.control().get("/limits").json()["max_connections"], 100);

    let (done, text) = server.ctl(&["limits", "max_connections=25", "shed=idlest"]);
    assert!(done && text.contains("15 connections are closed, the idlest first"), "{text}");
    server.wait_until("15 have left", |totals| totals.number("connections") == 25);
    for client in &mut clients[25..] {
        let (code, reason) = client.close_frame();
        assert!(code == 1013 && reason.contains("retry after"), "{code} {reason}");
    }
    for client in &mut clients[..25] {
        client.assert_echoes(b"still here");
    }
    let totals = server.totals();
    assert_eq!((totals.number("closed_total.shed"), totals.number("connections")), (15, 25));
    server.stop();
}

#[test]
fn a_simulated_level_does_what_the_level_does_until_it_is_ended() {
    let server = Holdfast::with(&format!(
        "degraded.notify_clients = true\ndegraded.max_message_size = \"1KiB\"\n{CONFIG}"
    ));
    let mut before = RawClient::open(server.address());
    let report = patch(&server, "/limits", &json!({"simulate": "degraded"}));
    assert_eq!(report["level"], "degraded");
    let totals = server.totals();
    assert_eq!((totals.text("level"), totals.text("level_cause")), ("degraded", "simulation"));
    let mut during = RawClient::open(server.address());
    let notice: Value = serde_json::from_slice(&during.message()).unwrap();
    assert_eq!((notice["type"].as_str(), notice["level"].as_str()), (Some("system"), Some("degraded")));
    assert_eq!(notice["limitations"]["max_message_size"], 1024);
    before.assert_echoes(&[b'x'; 1024]);
    before.send(&[0x82, 0xfe, 0x04, 0x01, 0, 0, 0, 0]).unwrap();
    assert_eq!(before.close_frame().0, 1009);

    assert_eq!(patch(&server, "/limits", &json!({"simulate": "normal"}))["level"], "normal");
    during.assert_echoes(&[b'x'; 2000]);
    RawClient::open(server.address()).assert_echoes(b"no notice");
    assert_eq!(server.totals().number("level_entries_total.degraded"), 1);
    server.stop();
}
