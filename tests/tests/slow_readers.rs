//! Clients that send and never read cost what the config says, and no more.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::frame::{FIN, TEXT, masked};
use holdfast_tests::holdfast::Holdfast;

const CLIENTS: usize = 5_000;
const MESSAGE: usize = 64 * 1024;
const WORKERS: u64 = 2;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What waits for a connection at most: half of `limits.max_queued_output`, and the answer that goes beyond that.
const QUEUED: u64 = 32 * KIB + MESSAGE as u64;

/// What `limits.max_message_size` allows per connection: half a message that has come in.
const HALF_MESSAGE: u64 = 64 * KIB;

/// A supervisor, and a keeper and a worker per slot, each with its code, heap and scratch buffers.
const PROCESSES: u64 = (1 + 2 * WORKERS) * 16 * MIB;

/// So many clients send and never read, until all of them are closed. The server never takes more memory than `bound`, and
/// the others are served.
fn flood(server: &Holdfast, slow_readers: usize, bound: u64) {
    let mut clients = Clients::of(server);
    let bystanders = clients.add(Group::new(20, Role::Echo { in_flight: 1, size: 64 }));
    clients.run_until("the bystanders echo", |clients| clients.stats(bystanders).echoes > 100);
    let slow =
        clients.add(Group::new(slow_readers, Role::Flood { size: MESSAGE }).from((0..10).map(loopback)));
    let mut peak = 0;
    let mut turns = 0_u32;
    clients.run_until("all slow readers are closed", |clients| {
        turns += 1;
        if turns.is_multiple_of(16) {
            peak = peak.max(server.memory());
            assert!(peak <= bound, "{} MiB of at most {} MiB", peak / MIB, bound / MIB);
        }
        clients.stats(slow).ended() == slow_readers
    });
    eprintln!("peak {} MiB, bound {} MiB", peak / MIB, bound / MIB);
    let echoes = clients.stats(bystanders).echoes;
    clients.run_until("the bystanders go on", |clients| clients.stats(bystanders).echoes > echoes + 1000);
    clients.leave(bystanders, 20);
    clients.run_until("the bystanders have left", |clients| clients.stats(bystanders).left() == 20);
    let totals = server.wait_until("all are gone", |totals| totals.number("connections") == 0);
    assert_eq!(totals.number("closed_total.slow_reader"), slow_readers as u64, "{totals:?}");
    assert_eq!((totals.number("closed_total.client"), totals.number("restarts_total")), (20, 0));
}

#[test]
fn memory_stays_under_the_bound_that_the_config_sets() {
    let server = Holdfast::with(
        "workers = 2
        limits.max_connections = 6000
        limits.max_connections_per_address = 0
        limits.max_message_size = \"64KiB\"
        limits.max_queued_output = \"64KiB\"
        timeouts.stalled = \"2s\"
        timeouts.close = \"1s\"
        timeouts.idle = \"0s\"",
    );
    // A record of at most 256 bytes, and the heap state.
    let bound = PROCESSES + CLIENTS as u64 * (QUEUED + HALF_MESSAGE + 256);
    flood(&server, CLIENTS, bound);
    server.stop();
}

/// However many are slow: a worker keeps no more for all of them than its budget, and the others are served.
#[test]
fn memory_stays_under_the_budget_of_a_worker_however_many_are_slow() {
    const SLOW: usize = 2_000;
    const BUDGET: u64 = 32 * MIB;
    let server = Holdfast::with(
        "workers = 1
        limits.max_connections = 6000
        limits.max_connections_per_address = 0
        limits.max_queued_output = \"1MiB\"
        limits.max_buffered_total = \"32MiB\"
        timeouts.stalled = \"2s\"
        timeouts.close = \"1s\"
        timeouts.idle = \"0s\"",
    );
    // Buffers that were in use a moment ago are not with the kernel yet, hence as much again.
    let bound = 3 * 16 * MIB + 2 * BUDGET;
    flood(&server, SLOW, bound);
    let said = |line: &String| line.contains("with the largest backlogs");
    assert!(server.process().lines().iter().any(said), "the budget was never reached");
    server.stop();
}

#[test]
fn a_slow_reader_is_told_1013() {
    let server = Holdfast::with("workers = 1\ntimeouts.stalled = \"500ms\"\ntimeouts.close = \"30s\"");
    let mut client = RawClient::open(server.address());
    // The kernel's buffers take some megabytes before anything queues in the server. Once it has waited long enough, it
    // takes in bytes, so that it can close without a reset, and no more messages.
    let sender = client.keep_sending(masked(FIN | TEXT, &[b'x'; 32 * 1024]));
    let mut before = (0, 0);
    server.wait_until("it is found out", |totals| {
        let now = (totals.number("messages_received_total"), totals.number("bytes_received_total"));
        let found_out = now.0 > 0 && now.0 == before.0 && now.1 > before.1;
        before = now;
        found_out
    });
    assert_eq!(client.close_frame().0, 1013);
    client.finish_sending();
    sender.join().unwrap();
    drop(client);
    server.wait_until("it is counted", |totals| totals.number("closed_total.slow_reader") == 1);
    server.stop();
}
