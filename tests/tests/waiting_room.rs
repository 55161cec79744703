//! The waiting room: at the cap clients wait for a place, first come, first served over all workers, and not for ever.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::RawClient;
use holdfast_tests::holdfast::{self, Holdfast};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

fn config(room: u32, timeout: &str) -> String {
    format!(
        "workers = 2
        [limits]
        max_connections = 4
        max_connections_per_address = 0
        waiting_room = {room}
        waiting_room_timeout = \"{timeout}\""
    )
}

/// A client that has asked to be let in, and waits as one of so many.
fn wait(server: &Holdfast, waiting: u64) -> RawClient {
    let mut client = RawClient::connect(server.address());
    client.send(&holdfast_tests::client::upgrade_request("")).unwrap();
    server.wait_until("it waits", |totals| totals.number("waiting") == waiting);
    client
}

fn full(server: &Holdfast) -> Vec<RawClient> {
    (0..4).map(|_| RawClient::open(server.address())).collect()
}

#[test]
fn places_go_to_those_who_have_waited_longest_and_never_beyond_the_cap() {
    let server = Holdfast::with(&config(10, "1h"));
    let mut inside = full(&server);
    let mut waiting: Vec<RawClient> = (1..=6).map(|n| wait(&server, n)).collect();
    for left in (0..6).rev() {
        drop(inside.remove(0));
        let totals = server.wait_until("one comes in", |totals| totals.number("waiting") == left);
        assert_eq!(totals.number("connections"), 4);
        let mut next = waiting.remove(0);
        assert_eq!(next.response().status, 101);
        next.assert_echoes(b"in at last");
        inside.push(next);
    }
    let totals = server.totals();
    assert_eq!((totals.number("accepted_total"), totals.sum("rejected_total")), (10, 0));
    server.stop();
}

#[test]
fn a_full_room_refuses_at_once_and_who_has_waited_long_enough_is_refused() {
    let server = Holdfast::with(&config(2, "1h"));
    let _inside = full(&server);
    let mut waiting: Vec<RawClient> = (1..=2).map(|n| wait(&server, n)).collect();
    let response = RawClient::connect(server.address()).upgrade("");
    assert_eq!(response.status, 503);
    assert_eq!(server.control().get("/explain?address=127.0.0.1").json()["verdict"], "max_connections");
    let shorter = server.control().request_with("PATCH", "/limits", &json!({"waiting_room_timeout": "10ms"}));
    assert_eq!(shorter.status, 200, "{}", shorter.text());
    for client in &mut waiting {
        client.response().assert_refusal(503, "max_connections");
    }
    assert_eq!(server.totals().number("rejected_total.max_connections"), 3);
    server.stop();
}

#[test]
fn who_leaves_the_queue_frees_the_place_in_it() {
    let server = Holdfast::with(&config(2, "1h"));
    let mut inside = full(&server);
    let first = wait(&server, 1);
    let mut second = wait(&server, 2);
    drop(first);
    server.wait_until("it has left the queue", |totals| totals.number("waiting") == 1);
    let mut third = wait(&server, 2);
    inside.truncate(3);
    assert_eq!(second.response().status, 101);
    inside.truncate(2);
    assert_eq!(third.response().status, 101);
    let totals = server.totals();
    assert_eq!((totals.number("connections"), totals.number("anomalies_total")), (4, 0));
    server.stop();
}

#[test]
fn a_smaller_room_refuses_those_who_came_last_and_a_higher_cap_lets_the_first_in() {
    let server = Holdfast::with(&config(4, "1h"));
    let _inside = full(&server);
    let mut waiting: Vec<RawClient> = (1..=4).map(|n| wait(&server, n)).collect();
    let change = |body| {
        let response = server.control().request_with("PATCH", "/limits", &body);
        assert_eq!(response.status, 200, "{}", response.text());
    };
    change(json!({"waiting_room": 2}));
    assert_eq!(waiting.pop().unwrap().response().status, 503);
    assert_eq!(waiting.pop().unwrap().response().status, 503);
    change(json!({"max_connections": 5}));
    let mut first = waiting.remove(0);
    assert_eq!(first.response().status, 101);
    assert_eq!(server.totals().number("waiting"), 1);
    change(json!({"waiting_room": 0}));
    assert_eq!(waiting.remove(0).response().status, 503);
    assert_eq!(RawClient::connect(server.address()).upgrade("").status, 503);
    server.stop();
}

#[test]
fn who_waits_when_a_worker_dies_waits_on_and_a_drain_refuses_all() {
    let server = Holdfast::with(&config(10, "1h"));
    let mut inside = full(&server);
    let mut waiting: Vec<RawClient> = (1..=6).map(|n| wait(&server, n)).collect();
    for worker in server.control().workers() {
        kill(holdfast::pid_of(&worker, "pid"), Signal::SIGKILL).unwrap();
    }
    server.wait_for_workers("they are replaced", |workers| {
        workers.iter().all(|worker| worker.text("state") == "ready" && worker.number("incarnation") == 2)
    });
    server.wait_until("all wait again", |totals| totals.number("waiting") == 6);
    inside.truncate(2);
    let totals = server.wait_until("two come in", |totals| totals.number("waiting") == 4);
    assert_eq!(totals.number("connections"), 4);
    assert_eq!(server.control().post("/drain?duration=1h").status, 200);
    let statuses: Vec<u16> = waiting.iter_mut().map(|client| client.response().status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 101).count(), 2, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 4, "{statuses:?}");
    server.control().post("/stop");
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
}
