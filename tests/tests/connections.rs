//! Single connections at an operator's hand: lists over all workers, and their end, one by one or by network.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::collections::BTreeSet;

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::holdfast::Holdfast;
use serde_json::Value;

const CONFIG: &str = "workers = 2
    [limits]
    max_connections = 200
    max_connections_per_address = 0
    shed_rate = 1000";

fn list(server: &Holdfast, query: &str) -> Vec<Value> {
    let response = server.control().get(&format!("/connections{query}"));
    assert_eq!(response.status, 200, "{}", response.text());
    response.json().as_array().unwrap().clone()
}

fn ids(rows: &[Value]) -> BTreeSet<String> {
    rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn lists_show_the_connections_of_all_workers_filtered_sorted_and_cut() {
    let server = Holdfast::with(CONFIG);
    let mut clients: Vec<RawClient> = (0..40)
        .map(|n| {
            let mut client = RawClient::connect_from(loopback(n % 4), server.address());
            assert_eq!(client.upgrade("").status, 101);
            client
        })
        .collect();
    let all = list(&server, "?sort=age");
    assert_eq!(all.len(), 40);
    assert_eq!(all.iter().map(|row| row["slot"].as_u64()).collect::<BTreeSet<_>>().len(), 2);
    assert!(all.iter().all(|row| row["phase"] == "open" && row["queued_bytes"] == 0), "{all:?}");
    assert!(all.is_sorted_by(|a, b| a["age_seconds"].as_f64() >= b["age_seconds"].as_f64()));

    let one = loopback(1).to_string();
    let of_one = list(&server, &format!("?address={one}"));
    assert_eq!(of_one.len(), 10);
    assert!(of_one.iter().all(|row| row["address"] == one.as_str()));

    clients[7].assert_echoes(b"not idle");
    let idle = list(&server, "?sort=idle");
    let last = idle.last().unwrap();
    assert_eq!(
        (last["messages_received"].as_u64(), last["address"].as_str()),
        (Some(1), Some(loopback(3).to_string().as_str()))
    );
    assert_eq!(ids(&list(&server, "?sort=idle&limit=5")), ids(&idle[..5]));

    let (done, text) = server.ctl(&["connections", "--sort", "idle", "--limit", "3"]);
    assert!(done && text.lines().count() == 4 && text.starts_with("ID"), "{text}");
    for bad in ["?sort=size", "?limit=0", "?address=x", "?color=red"] {
        assert_eq!(server.control().get(&format!("/connections{bad}")).status, 400, "{bad}");
    }
    server.stop();
}

#[test]
fn one_connection_is_closed_with_the_code_and_reason_it_is_given() {
    let server = Holdfast::with(CONFIG);
    let mut clients: Vec<RawClient> = (0..3)
        .map(|n| {
            let mut client = RawClient::connect_from(loopback(n), server.address());
            assert_eq!(client.upgrade("").status, 101);
            client
        })
        .collect();
    let second = list(&server, &format!("?address={}", loopback(1)));
    let id = second[0]["id"].as_str().unwrap();
    let response =
        server.control().request("DELETE", &format!("/connections/{id}?code=4321&reason=not%20welcome"));
    assert_eq!((response.status, response.json()["told"].as_u64()), (200, Some(1)), "{}", response.text());
    assert_eq!(clients[1].close_frame(), (4321, "not welcome".to_owned()));
    server.wait_until("it has left", |totals| totals.number("connections") == 2);
    assert_eq!(server.totals().number("closed_total.admin"), 1);
    clients[0].assert_echoes(b"here");
    clients[2].assert_echoes(b"here");

    let gone = server.control().request("DELETE", &format!("/connections/{id}"));
    assert_eq!(gone.status, 404, "{}", gone.text());
    assert_eq!(server.control().request("DELETE", "/connections/x").status, 400);
    assert_eq!(server.control().request("DELETE", "/connections").status, 400);
    let (done, text) = server.ctl(&["close", "1", "--address", "::1"]);
    assert!(!done && text.contains("cannot be used with"), "{text}");
    server.stop();
}

#[test]
fn all_connections_of_a_network_are_closed_and_no_others() {
    let server = Holdfast::with(CONFIG);
    let mut clients: Vec<(u16, RawClient)> = (0..60)
        .map(|n| {
            let mut client = RawClient::connect_from(loopback(n % 3), server.address());
            assert_eq!(client.upgrade("").status, 101);
            (n % 3, client)
        })
        .collect();
    let network = format!("{}/32", loopback(1));
    let (done, text) = server.ctl(&["close", "--address", &network, "--reason", "moved"]);
    assert!(done && text.contains("of 20 connections told to go"), "{text}");
    server.wait_until("they have left", |totals| totals.number("connections") == 40);
    assert_eq!(server.totals().number("closed_total.admin"), 20);
    for (of, client) in &mut clients {
        if *of == 1 {
            assert_eq!(client.close_frame(), (1008, "moved".to_owned()));
        } else {
            client.assert_echoes(b"still here");
        }
    }
    server.stop();
}

#[test]
fn a_list_survives_workers_that_die_while_it_is_made() {
    let server = Holdfast::with(CONFIG);
    let clients: Vec<RawClient> = (0..20).map(|_| RawClient::open(server.address())).collect();
    let before = ids(&list(&server, "?limit=100"));
    for pid in server.worker_pids() {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        assert_eq!(ids(&list(&server, "?limit=100")), before);
    }
    drop(clients);
    server.wait_until("they have left", |totals| totals.number("connections") == 0);
    server.stop();
}
