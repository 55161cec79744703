//! A planned restart: every worker is replaced, and no client can tell, whatever it was in the middle of.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::thread;

use holdfast_tests::client::{RawClient, loopback, upgrade_request};
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::frame::{BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, TEXT, close_payload, masked};
use holdfast_tests::holdfast::{self, Holdfast};
use nix::sys::signal::{Signal, kill};

const WORKERS: u64 = 2;

/// Restarts of all workers while every client is in the middle of something.
const ROUNDS: usize = 4;

/// More than the kernel's buffers of one connection hold.
const SLOW_MESSAGES: usize = 40;
const SLOW_SIZE: usize = 512 * 1024;

/// A client whose bytes come in pieces, with a restart between any two.
struct Mover {
    what: &'static str,
    client: RawClient,
    pieces: Vec<Vec<u8>>,
    /// First bytes and payloads of the frames that it must get.
    expected: Vec<(u8, Vec<u8>)>,
}

impl Mover {
    fn new(what: &'static str, client: RawClient, stream: &[u8], cuts: &[usize]) -> Self {
        let ends = cuts.iter().copied().chain([stream.len()]);
        let pieces: Vec<_> =
            [0].iter().chain(cuts).zip(ends).map(|(&from, to)| stream[from..to].to_vec()).collect();
        assert_eq!(pieces.len(), ROUNDS + 1, "{what}");
        Self { what, client, pieces, expected: Vec::new() }
    }

    /// Cut into pieces of the same length.
    fn even(what: &'static str, client: RawClient, stream: &[u8]) -> Self {
        let cuts: Vec<usize> = (1..=ROUNDS).map(|n| stream.len() * n / (ROUNDS + 1)).collect();
        Self::new(what, client, stream, &cuts)
    }

    fn expecting(mut self, first: u8, payload: &[u8]) -> Self {
        self.expected.push((first, payload.to_vec()));
        self
    }

    fn send(&mut self, round: usize) -> usize {
        let piece = &self.pieces[round];
        self.client.send(piece).unwrap_or_else(|error| panic!("{}: {error}", self.what));
        piece.len()
    }

    fn check(&mut self) {
        for (first, payload) in &self.expected {
            let frame = self.client.frame();
            assert!(frame.first == *first && frame.payload == *payload, "{}: {:#x}", self.what, frame.first);
        }
    }
}

fn pattern(size: usize, seed: usize) -> Vec<u8> {
    (0..size).map(|n| u8::try_from((n * 31 + n / 251 + seed) % 256).unwrap()).collect()
}

/// One client for everything that one can be in the middle of.
fn movers(server: &Holdfast) -> Vec<Mover> {
    let open = || RawClient::open(server.address());
    let long = pattern(70_000, 1);
    let longer = pattern(900_000, 2);
    let text = "κόσμε 🦀 ".repeat(50);
    let (half, other_half) = text.as_bytes().split_at(101);
    let fragments = [
        masked(TEXT, half),
        masked(FIN | PING, b"between"),
        masked(CONTINUATION, b""),
        masked(FIN | CONTINUATION, other_half),
    ]
    .concat();
    let ping = pattern(100, 3);
    vec![
        Mover::new("half a header", open(), &masked(FIN | BINARY, &long), &[1, 4, 9, 13])
            .expecting(FIN | BINARY, &long),
        Mover::even("half a text", open(), &masked(FIN | TEXT, text.as_bytes()))
            .expecting(FIN | TEXT, text.as_bytes()),
        Mover::even("half a long message", open(), &masked(FIN | BINARY, &longer))
            .expecting(FIN | BINARY, &longer),
        Mover::even("half of the fragments", open(), &fragments)
            .expecting(FIN | PONG, b"between")
            .expecting(FIN | TEXT, text.as_bytes()),
        Mover::new("half a ping", open(), &masked(FIN | PING, &ping), &[1, 5, 7, 50])
            .expecting(FIN | PONG, &ping),
        Mover::even("half a close", open(), &masked(FIN | CLOSE, &close_payload(1000, "enough")))
            .expecting(FIN | CLOSE, &close_payload(1000, "")),
        Mover::even("half a handshake", RawClient::connect(server.address()), &upgrade_request("")),
    ]
}

/// Restarts all workers in one of the ways there are, and waits until they are back.
fn restart(server: &Holdfast, round: usize) {
    let restarts = server.totals().number("restarts_total");
    let run_dir = server.run_dir().to_str().unwrap();
    let ctl = |arguments: &[&str]| {
        let (status, output, error) = holdfast::run(&[&["ctl", "--run-dir", run_dir], arguments].concat());
        assert!(status.success(), "{output}{error}");
    };
    match round % 3 {
        0 => ctl(&["restart"]),
        1 => server.signal(Signal::SIGUSR1),
        _ => {
            ctl(&["restart", "1"]);
            ctl(&["restart", "0"]);
        }
    }
    server.wait_until("all workers are new and ready", |totals| {
        totals.number("restarts_total") == restarts + WORKERS && totals.number("workers_ready") == WORKERS
    });
}

#[test]
fn whatever_a_client_is_in_the_middle_of_goes_on() {
    let server = Holdfast::with(
        "workers = 2
        limits.max_queued_output = \"64MiB\"
        timeouts.handshake = \"60s\"
        timeouts.ping_interval = \"24h\"",
    );
    let mut movers = movers(&server);
    let mut idle = RawClient::open(server.address());
    let mut slow = RawClient::open(server.address());
    // All but the half handshake have upgraded.
    let mut sent = upgrade_request("").len() * (movers.len() + 1);
    for n in 0..SLOW_MESSAGES {
        let message = masked(FIN | BINARY, &pattern(SLOW_SIZE, n));
        sent += message.len();
        slow.send(&message).unwrap();
    }
    for round in 0..ROUNDS {
        sent += movers.iter_mut().map(|mover| mover.send(round)).sum::<usize>();
        server.wait_until("all is read", |totals| totals.number("bytes_received_total") == sent as u64);
        server.wait_for_workers("output is queued", |workers| {
            workers.iter().map(|worker| worker.number("queued_bytes")).sum::<u64>() > 0
        });
        restart(&server, round);
        assert!(slow.message() == pattern(SLOW_SIZE, round), "the slow reader's bytes have changed");
    }
    for mover in &mut movers {
        mover.send(ROUNDS);
    }
    let (mut handshake, frames) = (movers.pop().unwrap(), movers);
    for mut mover in frames {
        mover.check();
    }
    assert_eq!(handshake.client.response().status, 101);
    for n in ROUNDS..SLOW_MESSAGES {
        assert!(slow.message() == pattern(SLOW_SIZE, n), "the slow reader's bytes have changed");
    }
    // What was saved was taken up once: a worker that dies leaves nothing of it to the next.
    for pid in server.worker_pids() {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    for client in [&mut idle, &mut slow, &mut handshake.client] {
        client.assert_echoes(b"and on");
    }
    let totals = server.totals();
    assert_eq!((totals.number("lost_total"), totals.number("anomalies_total")), (0, 0));
    assert_eq!(totals.number("closed_total.worker_lost"), 0);
    server.stop();
}

#[test]
fn thousands_stay_and_hundreds_echo_on() {
    const IDLE: usize = 2_000;
    const ECHOING: usize = 100;
    const NEW: usize = 200;
    let server = Holdfast::with(
        "workers = 2
        limits.max_connections = 4000
        limits.max_connections_per_address = 0
        timeouts.idle = \"0s\"",
    );
    let mut clients = Clients::of(&server);
    let idle = clients.add(Group::new(IDLE, Role::Idle).from((0..8).map(loopback)));
    clients.run_until("the idle ones are in", |clients| clients.stats(idle).open == IDLE);
    let echo = clients.add(Group::new(ECHOING, Role::Echo { in_flight: 4, size: 3000 }).from([loopback(9)]));
    clients.run_until("the others echo", |clients| clients.stats(echo).echoes > 2_000);
    let mut newcomers = Vec::new();
    for round in 0..3 {
        newcomers.push(clients.add(Group::new(NEW, Role::Idle).from([loopback(10)])));
        thread::scope(|scope| {
            let restarting = scope.spawn(|| restart(&server, round));
            clients.run_until("the restart is over", |_| restarting.is_finished());
        });
        let echoes = clients.stats(echo).echoes;
        clients.run_until("echoing goes on", |clients| clients.stats(echo).echoes > echoes + 2_000);
    }
    for group in newcomers {
        clients.run_until("who came meanwhile is in", |clients| clients.stats(group).open == NEW);
    }
    eprintln!("longest stall: {:?}", clients.longest_stall(echo));
    assert_eq!(clients.stats(idle).open, IDLE, "{:?}", clients.stats(idle));
    assert_eq!(clients.stats(echo).open, ECHOING, "{:?}", clients.stats(echo));
    let totals = server.totals();
    assert_eq!(totals.number("connections"), (IDLE + ECHOING + 3 * NEW) as u64);
    assert_eq!((totals.number("lost_total"), totals.number("anomalies_total")), (0, 0));
    assert_eq!((totals.sum("closed_total"), totals.sum("rejected_total")), (0, 0), "{totals:?}");
    assert!(totals.number("resumed_total") >= 3 * (IDLE + ECHOING) as u64);
    server.stop();
}

#[test]
fn a_worker_that_dies_before_it_can_hand_over_has_a_successor_who_does() {
    let server = Holdfast::with("workers = 1");
    let mut client = RawClient::open(server.address());
    let restarts = server.totals().number("restarts_total");

    let pid = server.worker_pids()[0];
    kill(pid, Signal::SIGSTOP).unwrap();
    thread::scope(|scope| {
        let restarting = scope.spawn(|| server.control().post("/restart"));
        let _ = server.process().wait_for_line("restarting the workers of slots 0");
        kill(pid, Signal::SIGKILL).unwrap();
        let answer = restarting.join().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let slots = answer.json()["slots"].as_array().unwrap().clone();
        assert_eq!((&slots[0]["kept"], &slots[0]["lost"]), (&1.into(), &0.into()), "{slots:?}");
    });
    // One took over from the dead, the next from that one.
    assert_eq!(server.totals().number("restarts_total"), restarts + 2);
    client.assert_echoes(b"still here");
    server.stop();
}

#[test]
fn what_cannot_be_restarted_is_refused_with_a_reason() {
    let server = Holdfast::with("workers = 2\ndrain.duration = \"60s\"\ntimeouts.close = \"60s\"");
    let mut client = RawClient::open(server.address());
    let error = |answer: &holdfast_tests::http::Response| answer.json()["error"].as_str().unwrap().to_owned();

    let unknown = server.control().post("/restart?slot=7");
    assert_eq!((unknown.status, error(&unknown)), (404, "there is no slot 7, only 0, 1".to_owned()));

    // A worker that does not get to it keeps the restart going for as long as it takes to ask for another.
    let pid = server.worker_pids()[0];
    kill(pid, Signal::SIGSTOP).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| server.control().post("/restart"));
        let _ = server.process().wait_for_line("restarting the workers of slots 0, 1");
        let second = server.control().post("/restart?slot=1");
        assert_eq!(second.status, 409, "{}", second.text());
        assert!(error(&second).contains("another restart is under way"), "{}", second.text());
        kill(pid, Signal::SIGCONT).unwrap();
        let first = first.join().unwrap();
        assert_eq!(first.status, 200, "{}", first.text());
        let slots = first.json()["slots"].as_array().unwrap().clone();
        assert_eq!(slots.iter().map(|slot| slot["slot"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(slots.iter().map(|slot| slot["kept"].as_u64().unwrap()).sum::<u64>(), 1);
        assert_eq!(slots.iter().map(|slot| slot["lost"].as_u64().unwrap()).sum::<u64>(), 0);
        assert!(slots.iter().all(|slot| slot["pause_ms"].as_f64().unwrap() > 0.0), "{slots:?}");
    });
    client.assert_echoes(b"still here");

    assert_eq!(server.control().post("/drain").status, 200);
    let draining = server.control().post("/restart");
    assert_eq!((draining.status, error(&draining)), (409, "the service is shutting down".to_owned()));
    assert_eq!(server.control().post("/stop").status, 200);
    let (status, _) = server.wait_for_exit();
    assert!(status.success());
}
