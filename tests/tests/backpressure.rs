//! A client that sends faster than it reads is slowed down, and loses nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::thread::JoinHandle;

use holdfast_tests::client::{Ending, RawClient};
use holdfast_tests::frame::{BINARY, FIN, PING, masked};
use holdfast_tests::holdfast::Holdfast;

const MIB: usize = 1 << 20;

/// A supervisor, a keeper and a worker, each with its code and heap. What the kernel keeps is not in these.
const PROCESSES: u64 = 3 * 16 * (MIB as u64);

fn payload(size: usize, seed: usize) -> Vec<u8> {
    (0..size).map(|n| u8::try_from((n * 31 + n / 251 + seed) % 256).unwrap()).collect()
}

/// Sends `count` messages of `size` bytes from another thread.
fn send(client: &RawClient, count: usize, size: usize) -> JoinHandle<()> {
    client.send_all((0..count).map(move |n| masked(FIN | BINARY, &payload(size, n))))
}

/// Reads that many back. Pings are not answered: another thread may be in the middle of a frame.
fn check(client: &mut RawClient, count: usize, size: usize) {
    let mut n = 0;
    while n < count {
        let frame = client.frame();
        match frame.opcode() {
            PING => {}
            BINARY => {
                assert!(frame.payload == payload(size, n), "message {n} has changed");
                n += 1;
            }
            _ => panic!("{:?} instead of message {n}", frame.opcode()),
        }
    }
}

/// Waits until the server takes nothing more of what is still being sent.
fn wait_until_it_is_not_read(server: &Holdfast, senders: &[&JoinHandle<()>]) {
    let (mut before, mut unchanged) = (0, 0);
    server.wait_until("the server reads no more", |totals| {
        let received = totals.number("bytes_received_total");
        unchanged = if received == before { unchanged + 1 } else { 0 };
        before = received;
        received > 0 && unchanged > 20
    });
    assert!(senders.iter().all(|sender| !sender.is_finished()), "it has taken everything");
}

#[test]
fn a_client_that_reads_only_later_gets_all_of_a_hundred_megabytes_back() {
    const MESSAGES: usize = 100;
    let server = Holdfast::with("workers = 1");
    let mut client = RawClient::open(server.address());
    let mut other = RawClient::open(server.address());
    let sender = send(&client, MESSAGES, MIB);
    wait_until_it_is_not_read(&server, &[&sender]);
    let memory = server.memory();
    assert!(memory < PROCESSES, "{} MiB", memory / MIB as u64);
    other.assert_echoes(b"the others are served");
    check(&mut client, MESSAGES, MIB);
    sender.join().unwrap();
    client.assert_echoes(b"and it goes on");
    let totals = server.totals();
    assert_eq!((totals.sum("closed_total"), totals.number("connections")), (0, 2), "{totals:?}");
    server.stop();
}

#[test]
fn an_answer_larger_than_the_bound_reaches_a_client_that_reads() {
    const SIZE: usize = 16 * MIB;
    let server = Holdfast::with(
        "workers = 1\nlimits.max_queued_output = \"1KiB\"\nlimits.max_message_size = \"16MiB\"",
    );
    let mut client = RawClient::open(server.address());
    let sender = send(&client, 4, SIZE);
    check(&mut client, 4, SIZE);
    sender.join().unwrap();
    client.assert_echoes(b"and it goes on");
    server.stop();
}

#[test]
fn a_client_that_is_not_read_is_closed_neither_as_dead_nor_as_idle() {
    let server = Holdfast::with(
        "workers = 1
        timeouts.ping_interval = \"200ms\"
        timeouts.pong = \"300ms\"
        timeouts.idle = \"5s\"
        timeouts.stalled = \"0s\"",
    );
    let mut client = RawClient::open(server.address());
    let sender = send(&client, 40, MIB);
    wait_until_it_is_not_read(&server, &[&sender]);
    // Others live through both timeouts meanwhile.
    let mut idle = RawClient::open(server.address());
    assert_eq!(idle.close_frame().0, 1000);
    let mut dead = RawClient::open(server.address());
    while dead.frame().opcode() == PING {}
    check(&mut client, 40, MIB);
    sender.join().unwrap();
    client.assert_echoes(b"and it goes on");
    server.stop();
}

#[test]
fn clients_that_are_not_read_go_on_in_the_next_worker_and_in_another_slot() {
    const CLIENTS: usize = 6;
    const MESSAGES: usize = 40;
    let server = Holdfast::with("workers = 2");
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| RawClient::open(server.address())).collect();
    let senders: Vec<_> = clients.iter().map(|client| send(client, MESSAGES, MIB)).collect();
    wait_until_it_is_not_read(&server, &senders.iter().collect::<Vec<_>>());
    assert_eq!(server.control().post("/restart").status, 200);
    server.wait_until("all workers are new and ready", |totals| {
        totals.number("restarts_total") == 2 && totals.number("workers_ready") == 2
    });
    assert_eq!(server.reload("workers = 1").status, 200);
    server.wait_for_workers("one is left", |workers| workers.len() == 1);
    for client in &mut clients {
        check(client, MESSAGES, MIB);
        client.assert_echoes(b"and it goes on");
    }
    let totals = server.totals();
    assert_eq!((totals.sum("closed_total"), totals.number("lost_total")), (0, 0), "{totals:?}");
    for sender in senders {
        sender.join().unwrap();
    }
    server.stop();
}

#[test]
fn a_client_that_sends_no_more_gets_what_is_queued_for_it() {
    const MESSAGES: usize = 8;
    let server = Holdfast::with(
        "workers = 1
        limits.max_message_size = \"4MiB\"
        limits.max_queued_output = \"64MiB\"
        timeouts.close = \"60s\"",
    );
    let mut client = RawClient::open(server.address());
    send(&client, MESSAGES, 4 * MIB).join().unwrap();
    client.finish_sending();
    check(&mut client, MESSAGES, 4 * MIB);
    assert_eq!(client.ending(), Ending::Closed(Vec::new()));
    server.wait_until("it is gone", |totals| totals.number("closed_total.client") == 1);
    server.stop();
}
