//! Memory that a crowd or a burst of messages took goes back when they are over, and nobody who stays
//! notices.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::frame::{BINARY, FIN, promise};
use holdfast_tests::holdfast::{Holdfast, Options, Starting};
use holdfast_tests::process;
use nix::sys::signal::{Signal, kill};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const CONFIG: &str = "workers = 2
    limits.max_connections = 6000
    limits.max_connections_per_address = 0
    limits.max_message_size = \"1MiB\"
    timeouts.idle = \"0s\"";

#[test]
fn a_burst_of_messages_leaves_nothing_behind() {
    const CLIENTS: usize = 2_000;
    const MESSAGE: usize = 128 * 1024;
    /// What two workers read into and write from, 64 KiB each, and have not used in full until then.
    const BUFFERS: u64 = 2 * 2 * 64 * KIB;
    let burst = (CLIENTS * MESSAGE) as u64;
    let server = Holdfast::with(CONFIG);
    let mut clients = Clients::of(&server);
    let few = clients.add(Group::new(50, Role::InParts { size: 1024 }));
    let many = clients.add(Group::new(CLIENTS, Role::InParts { size: MESSAGE }).from((0..10).map(loopback)));
    clients.run_until("all are in", |clients| {
        clients.stats(few).open == 50 && clients.stats(many).open == CLIENTS
    });
    clients.begin_messages(few);
    clients.finish_messages(few);
    clients.run_until("the few are answered", |clients| clients.stats(few).echoes == 50);
    let before = server.data_memory();

    clients.begin_messages(many);
    clients.run_until("the server holds most of every message", |_| {
        server.data_memory() >= before + burst / 10 * 9
    });
    clients.finish_messages(many);
    clients.run_until("all are answered", |clients| clients.stats(many).echoes == CLIENTS as u64);
    let bound = before + before / 10 + BUFFERS;
    clients.run_until("memory is back within a tenth", |_| server.data_memory() <= bound);
    eprintln!("{} KiB before, {} KiB after {} MiB", before / KIB, server.data_memory() / KIB, burst / MIB);

    // Those who stayed still can.
    clients.begin_messages(few);
    clients.finish_messages(few);
    clients.run_until("the few are answered again", |clients| clients.stats(few).echoes == 100);
    assert_eq!((clients.stats(few).open, clients.stats(many).open), (50, CLIENTS));
    server.stop();
}

#[test]
fn a_message_takes_memory_as_its_bytes_come_and_not_as_its_header_says() {
    const CLIENTS: u16 = 2_000;
    const MOST: u64 = KIB;
    let server = Holdfast::with(CONFIG);
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|n| RawClient::open_from(loopback(n % 10), server.address())).collect();
    let before = server.data_memory();
    let received = server.totals().number("bytes_received_total");
    // The byte comes by itself, since a read after the header may be another way.
    let pieces = [&promise(FIN | BINARY, MIB)[..], b"x"];
    let mut sent = 0;
    for piece in pieces {
        for client in &mut clients {
            client.send(piece).unwrap();
        }
        sent += (piece.len() * clients.len()) as u64;
        server.wait_until("all is read", |totals| totals.number("bytes_received_total") == received + sent);
    }
    let taken = server.data_memory().saturating_sub(before) / u64::from(CLIENTS);
    eprintln!("{taken} bytes for each of {CLIENTS} messages of {MIB} bytes of which one has come");
    assert!(taken < MOST, "{taken} bytes each");
    server.stop();
}

#[test]
fn half_messages_stay_within_the_budget_however_many_there_are() {
    const CLIENTS: usize = 2_000;
    const BUDGET: u64 = 32 * MIB;
    // As much again for what the allocator keeps, and a supervisor, a keeper and a worker.
    const BOUND: u64 = 2 * BUDGET + 3 * 16 * MIB;
    let server = Holdfast::with(
        "workers = 1
        limits.max_connections_per_address = 0
        limits.max_buffered_total = \"32MiB\"
        timeouts.idle = \"0s\"
        timeouts.close = \"1s\"",
    );
    let mut clients = Clients::of(&server);
    let size = 1024 * 1024;
    let halves = clients.add(Group::new(CLIENTS, Role::InParts { size }));
    let few = clients.add(Group::new(20, Role::Echo { in_flight: 1, size: 64 }));
    clients.run_until("all are in", |clients| clients.stats(halves).open == CLIENTS);
    clients.begin_messages(halves);
    let room = usize::try_from(BUDGET).unwrap() / size;
    clients.run_until("so many are closed that the others have room", |clients| {
        let memory = server.memory();
        assert!(memory < BOUND, "{} MiB of at most {} MiB", memory / MIB, BOUND / MIB);
        clients.stats(halves).open <= room
    });
    let echoes = clients.stats(few).echoes;
    clients.run_until("the others are served", |clients| clients.stats(few).echoes > echoes + 1_000);
    let gone = server.wait_until("they are counted", |totals| {
        totals.number("closed_total.slow_reader") == totals.sum("closed_total")
            && totals.number("connections") == (clients.stats(halves).open + 20) as u64
    });
    assert!(gone.number("closed_total.slow_reader") >= (CLIENTS - room) as u64, "{gone:?}");
    server.stop();
}

#[test]
fn the_table_takes_memory_for_those_who_are_there() {
    const CLIENTS: usize = 4_000;
    const STAY: usize = 40;
    const RECORD: u64 = 128;
    const PAGE: u64 = 4 * KIB;
    let server = Holdfast::with(CONFIG);
    let mut clients = Clients::new(server.address());
    let crowd = clients.add(Group::new(CLIENTS, Role::Idle).from((0..10).map(loopback)));
    clients.run_until("all are in", |clients| clients.stats(crowd).open == CLIENTS);
    let peak = tables(&server);
    assert!(peak >= CLIENTS as u64 * RECORD, "{peak} bytes for {CLIENTS} clients");

    // The first to come leave first: who stays has the highest descriptors.
    clients.leave(crowd, CLIENTS - STAY);
    clients.run_until("most have left", |clients| clients.stats(crowd).open == STAY);
    // At worst, each of those who stay keeps a page; two workers have a header each.
    let bound = (STAY as u64 + 2) * PAGE;
    assert!(bound < peak / 2);
    clients.run_until("the table is as small as its clients are few", |_| tables(&server) <= bound);

    // The next worker looks at every record, also at those that are not there.
    kill(server.worker_pids()[0], Signal::SIGKILL).unwrap();
    server.wait_until("there is a new worker", |totals| totals.number("restarts_total") == 1);
    server.wait_for_workers("it is ready", |workers| {
        workers.iter().all(|worker| worker.text("state") == "ready")
    });
    clients.run_until("the table is small again", |_| tables(&server) <= bound);
    assert_eq!(clients.stats(crowd).open, STAY);

    // Meeting the next supervisor names everybody who is there, and looks at nobody else.
    let first = server;
    first.process().signal(Signal::SIGKILL);
    let _ = first.process().wait_for_exit();
    let server = Starting::new(&Options::config(CONFIG).run_dir(first.run_dir())).ready();
    assert_eq!(server.totals().number("connections"), STAY as u64);
    clients.run_until("the table has stayed small", |_| tables(&server) <= bound);

    let newcomers = clients.add(Group::new(CLIENTS / 2, Role::Idle).from((0..10).map(loopback)));
    clients.run_until("others come", |clients| clients.stats(newcomers).open == CLIENTS / 2);
    clients.leave(crowd, STAY);
    clients.leave(newcomers, CLIENTS / 2);
    clients.run_until("the headers are left", |_| tables(&server) <= 2 * PAGE);
    let totals = server.totals();
    assert_eq!((totals.number("connections"), totals.number("lost_total")), (0, 0), "{totals:?}");
    server.stop();
}

/// Bytes that all connection tables take up.
fn tables(server: &Holdfast) -> u64 {
    server.worker_pids().into_iter().map(|pid| process::memfd_bytes(pid, "holdfast-table")).sum()
}
