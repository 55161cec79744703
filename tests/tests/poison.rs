//! A message that kills its worker costs its sender the connection, and nobody else anything.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{Ending, RawClient, upgrade_request};
use holdfast_tests::frame::{CONTINUATION, FIN, PING, PONG, TEXT, masked};
use holdfast_tests::holdfast::{Holdfast, Options};
use nix::sys::signal::{Signal, kill};

/// A server whose application dies of "poison" and "panic".
fn start(config: &str) -> Holdfast {
    Holdfast::start(&options(config))
}

fn options(config: &str) -> Options {
    Options::config(config).program(env!("CARGO_BIN_EXE_holdfast-poison"))
}

fn text(message: &[u8]) -> Vec<u8> {
    masked(FIN | TEXT, message)
}

fn assert_echoes(clients: &mut [RawClient], message: &[u8]) {
    for client in clients {
        client.send(&text(message)).unwrap();
        assert_eq!(client.message(), message);
    }
}

/// The way to end a server whose log says that something panicked.
fn end(server: &Holdfast) {
    server.signal(Signal::SIGTERM);
    let status = server.process().wait_for_exit();
    assert!(status.success(), "{status}");
}

#[test]
fn a_server_is_named_by_the_version_of_its_program() {
    let server = start("workers = 2");
    let version = concat!(env!("CARGO_PKG_VERSION"), "-poison");
    assert_eq!(server.totals().text("version"), version);
    for worker in server.control().workers() {
        assert_eq!(worker.text("version"), version);
    }
    let metrics = server.control().get("/metrics").text();
    assert!(metrics.contains(&format!("holdfast_build_info{{version=\"{version}\"}} 1")), "{metrics}");
    assert_echoes(&mut [RawClient::open(server.address())], b"anything else");
    server.stop();
}

#[test]
fn poison_closes_its_senders_connection_and_no_other_three_times_in_a_row() {
    for poison in [&b"poison"[..], b"panic"] {
        let server = start("workers = 1\ntimeouts.idle = \"0s\"");
        let mut bystanders: Vec<RawClient> = (0..20).map(|_| RawClient::open(server.address())).collect();
        for death in 1..=3 {
            let mut culprit = RawClient::open(server.address());
            culprit.send(&text(poison)).unwrap();
            assert_eq!(culprit.close_frame().0, 1011);
            assert_echoes(&mut bystanders, b"unharmed");
            server.wait_until("the loss is counted", |totals| {
                totals.number("lost_total") == death
                    && totals.number("restarts_total") == death
                    && totals.number("connections") == 20
            });
        }
        assert_eq!(server.control().workers()[0].number("restarts_total.SIGABRT"), 3);
        end(&server);
    }
}

#[test]
fn poison_in_pieces_or_glued_to_the_request_is_poison_too() {
    let server = start("workers = 1\ntimeouts.idle = \"0s\"");
    let mut bystanders: Vec<RawClient> = (0..5).map(|_| RawClient::open(server.address())).collect();

    let mut fragments = RawClient::open(server.address());
    fragments.send(&masked(TEXT, b"poi")).unwrap();
    // The pong says that the first half has been read, and waits on the worker's heap.
    fragments.send(&masked(FIN | PING, b"")).unwrap();
    assert_eq!(fragments.frame().opcode(), PONG);
    fragments.send(&masked(FIN | CONTINUATION, b"son")).unwrap();
    assert_eq!(fragments.close_frame().0, 1011);
    assert_echoes(&mut bystanders, b"after the first");

    let mut glued = RawClient::connect(server.address());
    glued.send(&[upgrade_request(""), text(b"poison")].concat()).unwrap();
    assert_eq!(glued.response().status, 101);
    assert_eq!(glued.close_frame().0, 1011);
    assert_echoes(&mut bystanders, b"after the second");

    let totals = server.wait_until("both are counted", |totals| {
        totals.number("lost_total") == 2 && totals.number("connections") == 5
    });
    assert_eq!(totals.number("anomalies_total"), 0);
    server.stop();
}

#[test]
fn clients_outlive_a_row_of_deaths_that_makes_the_keeper_wait() {
    const CULPRITS: usize = 8;
    let server = start("workers = 1\ntimeouts.idle = \"0s\"");
    let mut bystanders: Vec<RawClient> = (0..20).map(|_| RawClient::open(server.address())).collect();
    let mut culprits: Vec<RawClient> = (0..CULPRITS).map(|_| RawClient::open(server.address())).collect();
    // While the worker is stopped the poison gathers; each of its followers takes one dose.
    let worker = server.worker_pids()[0];
    kill(worker, Signal::SIGSTOP).unwrap();
    for culprit in &mut culprits {
        culprit.send(&text(b"poison")).unwrap();
    }
    for client in &mut bystanders {
        client.send(&text(b"sent before the first death")).unwrap();
    }
    kill(worker, Signal::SIGCONT).unwrap();

    for culprit in &mut culprits {
        assert_eq!(culprit.close_frame().0, 1011);
    }
    let pauses = server.process().wait_for_lines("the next one comes in ", CULPRITS - 2);
    assert!(pauses.last().unwrap().contains("died of SIGABRT"), "{pauses:#?}");
    for client in &mut bystanders {
        assert_eq!(client.message(), b"sent before the first death");
    }
    assert_echoes(&mut bystanders, b"kept by the keeper");
    assert_echoes(&mut [RawClient::open(server.address())], b"new");
    let totals = server.wait_until("all are counted", |totals| {
        totals.number("lost_total") == 8 && totals.number("connections") == 20
    });
    assert_eq!((totals.number("restarts_total"), totals.number("anomalies_total")), (8, 0));
    server.stop();
}

#[test]
fn a_connection_that_kills_the_next_worker_too_is_closed_without_a_word() {
    let crash_when_told =
        options("workers = 1\ntimeouts.idle = \"0s\"").environment("HOLDFAST_TEST_CRASH", "close");
    let server = Holdfast::start(&crash_when_told);
    let mut bystanders: Vec<RawClient> = (0..20).map(|_| RawClient::open(server.address())).collect();
    let mut culprit = RawClient::open(server.address());
    culprit.send(&text(b"poison")).unwrap();
    assert_eq!(culprit.ending(), Ending::Closed(Vec::new()));
    assert_echoes(&mut bystanders, b"unharmed");
    let totals = server.wait_until("the loss is counted", |totals| {
        totals.number("restarts_total") == 2 && totals.number("connections") == 20
    });
    assert_eq!((totals.number("lost_total"), totals.number("closed_total.worker_lost")), (1, 1));
    server.stop();
}
