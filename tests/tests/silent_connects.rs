//! Connections that send nothing are bounded apart from the cap, and real clients still get in.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::clients::{Clients, Group, Kind, Role};
use holdfast_tests::holdfast::Holdfast;
use holdfast_tests::load::processes::ClientProcesses;
use holdfast_tests::load::wire::{Order, Plan};

const PROGRAM: &str = env!("CARGO_BIN_EXE_holdfast-load");
const EACH: usize = 10_000;

#[test]
fn twenty_thousand_silent_connects_do_not_keep_real_clients_out() {
    let server = Holdfast::with(
        "workers = 2
        limits.max_connections = 1000
        limits.max_connections_per_address = 0
        limits.max_pending_handshakes = 1000
        timeouts.handshake = \"5s\"
        timeouts.idle = \"0s\"",
    );
    let mut early = RawClient::open(server.address());
    // More than one process may have descriptors.
    let plan = |n: u16| Plan {
        server: server.address(),
        request: String::new(),
        sources: (n * 20..(n + 1) * 20).map(|n| Some(loopback(n))).collect(),
        clients: EACH,
        role: Role::Silent,
        kind: Kind::Binary,
        raw: false,
        rate: None,
        connecting: 1_000,
    };
    let mut silent = ClientProcesses::start(Path::new(PROGRAM), &[plan(0), plan(1)]).unwrap();
    silent.order(Order::Connect).unwrap();
    let mut served = 0;
    let news = Duration::from_millis(1);
    while !silent.listen(Instant::now() + news, |progress| progress.undecided == Some(0), |_| {}).unwrap() {
        let totals = server.totals();
        assert!(totals.number("pending_handshakes") <= 1000, "more than the budget: {totals:?}");
        let mut client = RawClient::connect_from(loopback(100), server.address());
        assert_eq!(client.upgrade("").status, 101, "a real client is kept out after {served} others");
        client.assert_echoes(b"real");
        served += 1;
    }
    eprintln!("{served} real clients were served meanwhile");
    early.assert_echoes(b"still here");
    let totals =
        server.wait_until("all are counted", |totals| totals.sum("rejected_total") == 2 * EACH as u64);
    let (budget, deadline) = (
        totals.number("rejected_total.pending_handshakes"),
        totals.number("rejected_total.handshake_timeout"),
    );
    assert_eq!(budget + deadline, 2 * EACH as u64, "{totals:?}");
    assert!(budget > 0 && deadline > 0, "{totals:?}");
    server.stop();
}

#[test]
fn refused_clients_that_do_not_go_do_not_keep_real_clients_out() {
    let server = Holdfast::with(
        "workers = 1\nlimits.max_connections = 50\nlimits.max_pending_handshakes = 10\ntimeouts.close = \"600s\"",
    );
    // Each gets its 400 and stays; a refusal that the client does not take is no reason to turn away others.
    let stubborn: Vec<RawClient> = (0..100)
        .map(|_| {
            let mut client = RawClient::connect(server.address());
            client.send(b"POST / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
            client
        })
        .collect();
    server.wait_until("all are refused", |totals| totals.sum("rejected_total") == 100);
    let one = RawClient::open(server.address());
    let mut clients = Clients::of(&server);
    let burst = clients.add(Group::new(10, Role::Idle).at_once());
    clients.run_until("the burst has its answers", |clients| clients.stats(burst).undecided() == 0);
    assert_eq!(
        clients.stats(burst).open,
        10,
        "{:?} {:?}",
        clients.stats(burst),
        clients.refusals(burst).next()
    );
    drop((stubborn, one));
    server.stop();
}
