//! Connections moved between workers while they are in use: when the number of workers changes, when they are
//! evened out, and when a worker is killed in the middle of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use holdfast_tests::client::{RawClient, loopback, upgrade_request};
use holdfast_tests::clients::{Clients, Group, GroupId, Role};
use holdfast_tests::control::Totals;
use holdfast_tests::frame::{BINARY, FIN, masked};
use holdfast_tests::holdfast::{self, Holdfast, Options, Starting};
use nix::sys::signal::{Signal, kill};

/// More than the kernel's buffers of one connection hold.
const SLOW_MESSAGES: usize = 30;
const SLOW_SIZE: usize = 512 * 1024;

fn config(workers: usize, cap: usize) -> String {
    format!(
        "workers = {workers}
        limits.max_connections = {cap}
        limits.max_connections_per_address = 0
        limits.max_queued_output = \"64MiB\"
        timeouts.ping_interval = \"24h\"
        timeouts.idle = \"0s\""
    )
}

fn pattern(size: usize, seed: usize) -> Vec<u8> {
    (0..size).map(|n| u8::try_from((n * 31 + n / 251 + seed) % 256).unwrap()).collect()
}

fn counts(workers: &[Totals]) -> Vec<u64> {
    workers.iter().map(|worker| worker.number("connections")).collect()
}

fn are_even(counts: &[u64]) -> bool {
    let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
    most - least <= most / 10
}

/// Counters that may never go back.
fn totals_so_far(totals: &Totals) -> [u64; 5] {
    let number = |name| totals.number(name);
    [
        number("accepted_total"),
        totals.sum("closed_total"),
        number("messages_received_total"),
        number("bytes_sent_total"),
        number("restarts_total"),
    ]
}

/// Waits until there are just these workers, and no process of another.
fn settle(server: &Holdfast, clients: &mut Clients, workers: usize) {
    let mut before = totals_so_far(&server.totals());
    clients.run_until("the workers are as many as wanted", |_| {
        let totals = server.totals();
        let now = totals_so_far(&totals);
        assert!(now.iter().zip(before).all(|(now, before)| *now >= before), "{now:?} after {before:?}");
        before = now;
        let rows = server.control().workers();
        rows.len() == workers && rows.iter().all(|row| row.text("state") == "ready")
    });
    assert_eq!(server.totals().number("workers"), workers as u64);
    server.poll(
        "no other process is left",
        || server.processes().len(),
        |&processes| processes == 1 + 2 * workers,
    );
}

/// Makes it other workers by a reload, and waits for them while the clients go on.
fn scale(server: &Holdfast, clients: &mut Clients, workers: usize, cap: usize) {
    let answer = server.reload(&config(workers, cap));
    assert_eq!(answer.status, 200, "{}", answer.text());
    settle(server, clients, workers);
}

fn check_full(server: &Holdfast, clients: &mut Clients, cap: usize) -> GroupId {
    let open = usize::try_from(server.totals().number("connections")).unwrap();
    let filling = clients.add(Group::new(cap - open + 50, Role::Idle).from((0..4).map(loopback)));
    clients.run_until("all have an answer", |clients| clients.stats(filling).undecided() == 0);
    assert_eq!((clients.stats(filling).open, clients.stats(filling).refused(503)), (cap - open, 50));
    assert_eq!(server.totals().number("connections"), cap as u64);
    filling
}

#[test]
fn two_become_four_and_three_and_one_and_nobody_notices() {
    const CAP: usize = 1_000;
    const IDLE: usize = 600;
    const ECHOING: usize = 60;
    let server = Holdfast::with(&config(2, CAP));
    let mut clients = Clients::of(&server);
    let idle = clients.add(Group::new(IDLE, Role::Idle).from((0..8).map(loopback)));
    let parts = clients.add(Group::new(20, Role::InParts { size: 50_000 }).from([loopback(9)]));
    let echo = clients.add(Group::new(ECHOING, Role::Echo { in_flight: 4, size: 3000 }).from([loopback(10)]));
    clients.run_until("all are in and echo", |clients| {
        clients.stats(idle).open == IDLE
            && clients.stats(parts).open == 20
            && clients.stats(echo).echoes > 1_000
    });
    let mut slow = RawClient::open(server.address());
    for n in 0..SLOW_MESSAGES {
        slow.send(&masked(FIN | BINARY, &pattern(SLOW_SIZE, n))).unwrap();
    }
    let mut read = 0;
    for workers in [4, 3, 1] {
        clients.begin_messages(parts);
        scale(&server, &mut clients, workers, CAP);
        if workers > 2 {
            let rows = server.wait_for_workers("the new ones have filled", |rows| are_even(&counts(rows)));
            assert_eq!(rows.len(), workers);
        }
        let echoes = clients.stats(echo).echoes;
        clients.finish_messages(parts);
        clients.run_until("echoing goes on", |clients| clients.stats(echo).echoes > echoes + 1_000);
        for _ in 0..5 {
            assert!(slow.message() == pattern(SLOW_SIZE, read), "the slow reader's bytes have changed");
            read += 1;
        }
    }
    for n in read..SLOW_MESSAGES {
        assert!(slow.message() == pattern(SLOW_SIZE, n), "the slow reader's bytes have changed");
    }
    clients.run_until("every message is back", |clients| clients.stats(parts).echoes == 3 * 20);
    for (group, count) in [(idle, IDLE), (parts, 20), (echo, ECHOING)] {
        assert_eq!(clients.stats(group).open, count, "{:?}", clients.stats(group));
    }
    let totals = server.totals();
    assert_eq!((totals.sum("closed_total"), totals.number("lost_total")), (0, 0), "{totals:?}");
    assert_eq!(totals.number("connections"), totals.number("accepted_total"));
    check_full(&server, &mut clients, CAP);
    assert_eq!(server.totals().number("anomalies_total"), 0);
    server.stop();
}

#[test]
fn who_waits_in_the_queue_of_a_slot_that_retires_is_let_in() {
    const CLIENTS: usize = 60;
    for balance in ["kernel", "least-connections"] {
        let text = |workers| format!("{}\nbalance = \"{balance}\"", config(workers, 500));
        let server = Holdfast::with(&text(2));
        // While it stands still its queue fills.
        let pid = server.worker_pids()[1];
        kill(pid, Signal::SIGSTOP).unwrap();
        let mut clients: Vec<RawClient> =
            (0..CLIENTS).map(|_| RawClient::connect(server.address())).collect();
        server.wait_for_workers("some are queued", |rows| rows[1].number("accept_queue") > 0);
        thread::scope(|scope| {
            let reload = scope.spawn(|| server.reload(&text(1)));
            let _ = server.process().wait_for_line("slot 1 retires");
            kill(pid, Signal::SIGCONT).unwrap();
            assert_eq!(reload.join().unwrap().status, 200);
        });
        for client in &mut clients {
            client.send(&upgrade_request("")).unwrap();
        }
        for client in &mut clients {
            assert_eq!(client.response().status, 101);
        }
        settle(&server, &mut Clients::of(&server), 1);
        for client in &mut clients {
            client.assert_echoes(b"still here");
        }
        // Nobody is sent where nobody listens.
        let newcomers: Vec<RawClient> = (0..20).map(|_| RawClient::open(server.address())).collect();
        assert_eq!(server.totals().number("connections"), (CLIENTS + newcomers.len()) as u64);
        server.stop();
    }
}

#[test]
fn a_slot_that_was_filled_alone_is_evened_out_on_request() {
    const CLIENTS: usize = 400;
    let server = Holdfast::with(&format!("{}\nbalance = \"source-address\"", config(3, 1_000)));
    let mut clients = Clients::of(&server);
    // One address is one slot's.
    let group = clients.add(Group::new(CLIENTS - 20, Role::Idle).from([loopback(1)]));
    let echo = clients.add(Group::new(20, Role::Echo { in_flight: 4, size: 100 }).from([loopback(1)]));
    clients.run_until("all are in", |clients| {
        clients.stats(group).open == CLIENTS - 20 && clients.stats(echo).echoes > 100
    });
    let before = counts(&server.control().workers());
    assert!(before.contains(&(CLIENTS as u64)), "{before:?}");
    let run_dir = server.run_dir().to_str().unwrap();
    thread::scope(|scope| {
        let asked = scope.spawn(|| holdfast::run(&["ctl", "--run-dir", run_dir, "--json", "rebalance"]));
        clients.run_until("it is done", |_| asked.is_finished());
        let (status, output, error) = asked.join().unwrap();
        assert!(status.success(), "{output}{error}");
        let report: serde_json::Value = serde_json::from_str(&output).unwrap();
        assert!(report["moved"].as_u64().unwrap() >= CLIENTS as u64 / 2, "{report}");
    });
    let after = counts(&server.control().workers());
    assert!(are_even(&after), "{after:?}");
    let echoes = clients.stats(echo).echoes;
    clients.run_until("echoing goes on", |clients| clients.stats(echo).echoes > echoes + 500);
    assert_eq!((clients.stats(group).open, clients.stats(echo).open), (CLIENTS - 20, 20));
    let totals = server.totals();
    assert_eq!((totals.sum("closed_total"), totals.number("anomalies_total")), (0, 0), "{totals:?}");

    assert_eq!(server.control().post("/drain?duration=60s").status, 200);
    assert_eq!(server.control().post("/rebalance").status, 409);
    assert_eq!(server.control().post("/stop").status, 200);
    assert!(server.wait_for_exit().0.success());
}

/// Kills one of the two workers at a random moment of a move between them, again and again.
#[test]
fn whoever_is_killed_in_the_middle_of_it_nobody_is_served_twice_and_all_are_counted() {
    const ROUNDS: usize = 8;
    const CAP: usize = 900;
    const IDLE: usize = 700;
    const ECHOING: usize = 40;
    let seed = std::env::var("HOLDFAST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    eprintln!("HOLDFAST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let text = format!("{}\nbalance = \"source-address\"", config(2, CAP));
    let server = Holdfast::with(&text);
    let mut clients = Clients::of(&server);
    let idle = clients.add(Group::new(IDLE, Role::Idle).from([loopback(1)]));
    let echo = clients.add(Group::new(ECHOING, Role::Echo { in_flight: 4, size: 2000 }).from([loopback(1)]));
    clients.run_until("all are in", |clients| {
        clients.stats(idle).open == IDLE && clients.stats(echo).echoes > 100
    });
    assert_eq!(server.control().post("/rebalance").status, 200);
    for _ in 0..ROUNDS {
        clients.run_until("both have their share", |_| are_even(&counts(&server.control().workers())));
        let restarts = server.totals().number("restarts_total");
        let victim = server.worker_pids()[random.usize(0..2)];
        server.write_config(&text.replace("workers = 2", "workers = 1"));
        server.signal(Signal::SIGHUP);
        let moment = Instant::now() + Duration::from_micros(random.u64(0..8_000));
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        kill(victim, Signal::SIGKILL).unwrap();
        clients.run_until("it is replaced", |_| server.totals().number("restarts_total") > restarts);
        settle(&server, &mut clients, 1);
        assert_eq!(server.reload(&text).status, 200);
        settle(&server, &mut clients, 2);
    }
    let open = clients.stats(idle).open + clients.stats(echo).open;
    let lost = IDLE + ECHOING - open;
    let lines = server.process().lines();
    let cut = |line: &&String| {
        ["gave connections away", "is gone or refuses"].iter().any(|what| line.contains(what))
    };
    eprintln!("{} moves were cut:", lines.iter().filter(cut).count());
    lines.iter().filter(|line| line.contains("between two slots")).for_each(|line| eprintln!("{line}"));
    eprintln!("{lost} of {} connections lost in {ROUNDS} rounds", IDLE + ECHOING);
    // Only those in the middle of something, or one batch between two slots in a round.
    assert!(lost <= ROUNDS * (64 + ECHOING), "{lost}");
    let totals =
        server.wait_until("the count is the truth", |totals| totals.number("connections") == open as u64);
    let gone = totals.sum("closed_total");
    assert_eq!(totals.number("accepted_total") - gone, open as u64, "{totals:?}");
    assert_eq!((gone, totals.number("anomalies_total")), (lost as u64, 0), "{totals:?}");
    check_full(&server, &mut clients, CAP);
    server.stop();
}

/// Kills the supervisor at a random moment of a move: the next one finds every connection once.
#[test]
fn a_supervisor_that_dies_in_the_middle_of_it_leaves_every_connection_with_one_worker() {
    const CAP: usize = 900;
    const CLIENTS: usize = 740;
    let text = format!("{}\nbalance = \"source-address\"", config(2, CAP));
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..3 {
        let first = Holdfast::with(&text);
        let mut clients = Clients::new(first.address());
        let echo =
            clients.add(Group::new(CLIENTS, Role::Echo { in_flight: 1, size: 100 }).from([loopback(1)]));
        clients.run_until("all are in", |clients| clients.stats(echo).open == CLIENTS);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Nobody answers when the supervisor dies first.
                let _ = first
                    .control()
                    .connect()
                    .write_all(b"POST /rebalance HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
            });
            let moment = Instant::now() + Duration::from_micros(random.u64(500..15_000));
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            first.signal(Signal::SIGKILL);
        });
        let _ = first.wait_for_exit();
        let second = Starting::new(&Options::config(&text).run_dir(first.run_dir())).ready();
        let totals = second.wait_until("both have reported", |totals| totals.number("workers_ready") == 2);
        eprintln!("{:?}", counts(&second.control().workers()));
        assert_eq!(totals.number("connections"), CLIENTS as u64, "{totals:?}");
        let echoes = clients.stats(echo).echoes;
        clients.run_until("all echo on", |clients| clients.stats(echo).echoes > echoes + 3 * CLIENTS as u64);
        assert_eq!(second.control().post("/rebalance").status, 200);
        clients.run_until("they are even", |_| are_even(&counts(&second.control().workers())));
        assert_eq!(clients.stats(echo).open, CLIENTS);
        check_full(&second, &mut clients, CAP);
        let totals = second.totals();
        assert_eq!((totals.sum("closed_total"), totals.number("anomalies_total")), (0, 0), "{totals:?}");
        second.stop();
        assert_eq!(first.processes(), [], "processes left behind");
    }
}
