//! The end: everybody is told, then the server leaves with exit code 0 and nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::RawClient;
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::frame::{FIN, TEXT, masked};
use holdfast_tests::holdfast::Holdfast;
use nix::sys::signal::Signal;

#[test]
fn sigterm_and_sigint_drain_with_1001_and_exit_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let server = Holdfast::with("workers = 2\ndrain.duration = \"2s\"");
        let mut clients = Clients::new(server.address());
        let idle = clients.add(Group::new(60, Role::Idle));
        let echo = clients.add(Group::new(10, Role::Echo { in_flight: 1, size: 100 }));
        clients.run_until("all are in", |clients| {
            clients.stats(idle).open == 60 && clients.stats(echo).echoes > 100
        });
        server.signal(signal);
        clients.run_until("all are told", |clients| {
            clients.stats(idle).ended() == 60 && clients.stats(echo).ended() == 10
        });
        assert_eq!(
            (clients.stats(idle).closed(1001), clients.stats(echo).closed(1001)),
            (60, 10),
            "{signal}"
        );
        let status = server.process().wait_for_exit();
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
        assert_eq!(server.processes(), [], "{signal}");
        assert!(!server.control().path().exists(), "the control socket is left behind");
    }
}

#[test]
fn while_draining_open_connections_are_served_and_nobody_gets_in() {
    let server = Holdfast::with("workers = 2\ndrain.duration = \"600s\"");
    let mut clients: Vec<RawClient> = (0..20).map(|_| RawClient::open(server.address())).collect();
    server.signal(Signal::SIGTERM);
    let totals = server.wait_until("it drains", |totals| totals.text("state") == "draining");
    assert!(totals.number("connections") > 0);
    assert_eq!(server.control().get("/health").status, 503);
    let served = clients.iter_mut().filter_map(|client| {
        client.send(&masked(FIN | TEXT, b"still served")).ok()?;
        (client.frame().payload == b"still served").then_some(())
    });
    assert!(served.count() >= 15, "a paced drain of ten minutes closed most at once");
    server.signal(Signal::SIGTERM);
    let _ = server.process().wait_for_exit();
    assert_eq!(server.processes(), [], "the second SIGTERM ends it at once, and everything with it");
}

#[test]
fn drain_and_stop_over_the_control_socket() {
    let server = Holdfast::with("workers = 2\ndrain.duration = \"1s\"");
    let mut client = RawClient::open(server.address());
    assert_eq!(server.control().post("/drain").status, 200);
    assert_eq!(client.close_frame().0, 1001);
    drop(client);
    assert_eq!(server.process().wait_for_exit().code(), Some(0));

    let server = Holdfast::with("workers = 2\ndrain.duration = \"600s\"");
    let mut client = RawClient::open(server.address());
    assert_eq!(server.control().post("/stop").status, 200);
    assert_eq!(client.close_frame().0, 1001);
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
    assert_eq!(server.processes(), []);
}

#[test]
fn clients_that_ignore_the_close_do_not_keep_the_server() {
    let server = Holdfast::with("workers = 2\ndrain.duration = \"1s\"\ntimeouts.close = \"1s\"");
    let stubborn: Vec<RawClient> = (0..10).map(|_| RawClient::open(server.address())).collect();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
    drop(stubborn);
}
