//! The log is for whoever reads it: one that nobody reads holds up nobody.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::holdfast::{Holdfast, Options};

#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    // Every step in a connection's life is a line.
    let config = "workers = 2\nlimits.max_connections_per_address = 0";
    let server = Holdfast::start(&Options::config(config).environment("HOLDFAST_LOG", "trace"));
    let mut clients = Clients::of(&server);
    let echo = clients.add(Group::new(20, Role::Echo { in_flight: 1, size: 64 }).from([loopback(0)]));
    clients.run_until("they echo", |clients| clients.stats(echo).echoes > 100);

    server.process().leave_unread(true);
    for _ in 0..4 {
        // Together many times what a pipe holds.
        let guests = clients.add(Group::new(500, Role::Idle).from([loopback(1)]));
        clients.run_until("guests are let in", |clients| clients.stats(guests).open == 500);
        clients.leave(guests, 500);
        clients.run_until("they have left", |clients| clients.stats(guests).left() == 500);
    }
    let echoes = clients.stats(echo).echoes;
    clients.run_until("the others still echo", |clients| clients.stats(echo).echoes > echoes + 1000);
    let report = server.reload(&format!("{config}\nlimits.max_connections = 200"));
    assert_eq!(report.status, 200, "{}", report.text());
    assert_eq!(server.control().post("/restart").status, 200);
    clients.run_until("and with new workers too", |clients| clients.stats(echo).echoes > echoes + 2000);

    server.process().leave_unread(false);
    server.poll(
        "what was dropped is counted",
        || {
            drop(RawClient::open(server.address()));
            server.process().lines()
        },
        |lines| lines.iter().any(|line| line.contains("log lines are missing here")),
    );
    server.wait_until("and shown", |totals| totals.number("log_lines_dropped_total") > 0);
    assert_eq!(clients.stats(echo).ended(), 0);
    server.stop();
}
