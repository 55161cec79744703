//! A keeper dies: its worker takes its place, makes a fresh worker, and no client can tell.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::Instant;

use holdfast_tests::PATIENCE;
use holdfast_tests::client::{RawClient, loopback, upgrade_request};
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::frame::{BINARY, FIN, masked};
use holdfast_tests::holdfast::{Holdfast, Options, Starting, pid_of};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CONFIG: &str = "
    workers = 2
    limits.max_connections = 300
    limits.max_connections_per_address = 0
    timeouts.idle = \"0s\"
    timeouts.ping_interval = \"24h\"
";

/// Kills the keeper of `slot`, and waits until the slot is whole again, its worker of before being its keeper.
fn kill_keeper(server: &Holdfast, slot: usize) {
    let before = server.wait_for_workers("a keeper and its worker", |workers| {
        workers[slot].text("state") == "ready" && workers[slot].0["pid"].is_u64()
    });
    kill(pid_of(&before[slot], "keeper_pid"), Signal::SIGKILL).unwrap();
    server.wait_for_workers("the worker keeps the slot, and another one serves it", |workers| {
        let now = &workers[slot];
        now.0["keeper_pid"] == before[slot].0["pid"] && now.text("state") == "ready" && now.0["pid"].is_u64()
    });
}

fn assert_nobody_lost(server: &Holdfast) {
    let totals = server.totals();
    assert_eq!((totals.number("lost_total"), totals.number("anomalies_total")), (0, 0), "{totals:?}");
    assert_eq!((totals.sum("closed_total"), totals.sum("rejected_total")), (0, 0), "{totals:?}");
}

#[test]
fn nobody_is_lost_and_everything_goes_on() {
    let server = Holdfast::with(CONFIG);
    let mut clients = Clients::of(&server);
    let idle = clients.add(Group::new(200, Role::Idle).from((0..4).map(loopback)));
    let echo = clients.add(Group::new(40, Role::Echo { in_flight: 4, size: 3000 }).from([loopback(9)]));
    clients
        .run_until("all are in", |clients| clients.stats(idle).open == 200 && clients.stats(echo).open == 40);
    let long = masked(FIN | BINARY, &[7; 50_000]);
    let mut halves: Vec<RawClient> = (0..8).map(|_| RawClient::open(server.address())).collect();
    let mut greeting = RawClient::connect(server.address());
    greeting.send(&upgrade_request("")[..30]).unwrap();
    for client in &mut halves {
        client.send(&long[..20_000]).unwrap();
    }
    for slot in [0, 1, 1, 0] {
        thread::scope(|scope| {
            let killing = scope.spawn(|| kill_keeper(&server, slot));
            clients.run_until("it is over", |_| killing.is_finished());
        });
        let reached = clients.stats(echo).echoes + 1_000;
        clients.run_until("echoing goes on", |clients| clients.stats(echo).echoes > reached);
    }
    eprintln!("longest stall: {:?}", clients.longest_stall(echo));
    for client in &mut halves {
        client.send(&long[20_000..]).unwrap();
        assert!(client.message() == [7; 50_000], "the bytes have changed");
    }
    greeting.send(&upgrade_request("")[30..]).unwrap();
    assert_eq!(greeting.response().status, 101);
    assert_nobody_lost(&server);
    let totals = server.totals();
    assert_eq!((totals.number("restarts_total"), totals.number("connections")), (4, 249));
    assert!(totals.number("resumed_total") >= 2 * 240, "{totals:?}");

    // The cap, which the dead keepers' slots count against as before.
    let newcomers = clients.add(Group::new(80, Role::Idle).from([loopback(5)]));
    clients.run_until("newcomers have their answers", |clients| clients.stats(newcomers).undecided() == 0);
    assert_eq!((clients.stats(newcomers).open, clients.stats(newcomers).refused(503)), (51, 29));

    clients.leave(echo, 40);
    clients.run_until("the echoing ones leave", |clients| clients.stats(echo).left() == 40);
    for pid in server.worker_pids() {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    server.wait_until("the new keepers have new workers", |totals| {
        totals.number("restarts_total") == 6
            && totals.number("workers_ready") == 2
            && totals.number("connections") == 260
    });
    for client in halves.iter_mut().chain([&mut greeting]) {
        client.assert_echoes(b"and on");
    }
    assert_eq!((clients.stats(idle).open, clients.stats(newcomers).open), (200, 51));
    assert_eq!(server.totals().number("lost_total"), 0);
    server.stop();
}

#[test]
fn a_restart_and_a_drain_go_on() {
    let server = Holdfast::with("workers = 1\ndrain.duration = \"200ms\"\ntimeouts.close = \"60s\"");
    let mut clients: Vec<RawClient> = (0..8).map(|_| RawClient::open(server.address())).collect();
    let worker = server.control().workers().remove(0);
    kill(pid_of(&worker, "pid"), Signal::SIGSTOP).unwrap();
    thread::scope(|scope| {
        let restarting = scope.spawn(|| server.control().post("/restart"));
        let _ = server.process().wait_for_line("restarting the workers of slots 0");
        kill(pid_of(&worker, "keeper_pid"), Signal::SIGKILL).unwrap();
        // A worker that hands over to a keeper about to die takes the slot with it.
        server.wait_for_workers("the keeper is dead", |workers| workers[0].text("state") == "keeper_down");
        kill(pid_of(&worker, "pid"), Signal::SIGCONT).unwrap();
        let answer = restarting.join().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["slots"][0]["kept"], 8, "{}", answer.text());
    });
    for client in &mut clients {
        client.assert_echoes(b"restarted");
    }
    assert_nobody_lost(&server);

    let keeper = pid_of(&server.control().workers()[0], "keeper_pid");
    assert_eq!(server.control().post("/drain").status, 200);
    kill(keeper, Signal::SIGKILL).unwrap();
    for client in &mut clients {
        assert_eq!(client.close_frame().0, 1001);
    }
    drop(clients);
    let (status, log) = server.wait_for_exit();
    assert!(status.success(), "{log}");
    assert_eq!(server.processes(), [], "{log}");
}

#[test]
fn keepers_may_die_while_there_is_no_supervisor_and_under_the_next_one() {
    let first = Holdfast::with(CONFIG);
    let mut clients: Vec<RawClient> = (0..8).map(|_| RawClient::open(first.address())).collect();
    let workers = first.control().workers();
    first.process().signal(Signal::SIGKILL);
    assert_eq!(first.process().wait_for_exit().signal(), Some(Signal::SIGKILL as i32));
    for worker in &workers {
        kill(pid_of(worker, "keeper_pid"), Signal::SIGKILL).unwrap();
    }
    // Two keepers that were workers, and their workers.
    let pids = |name: &str| workers.iter().map(|worker| pid_of(worker, name)).collect::<Vec<_>>();
    let (old, successors, deadline) = (pids("keeper_pid"), pids("pid"), Instant::now() + PATIENCE);
    let is_over = |now: &[Pid]| {
        now.len() == 4
            && successors.iter().all(|pid| now.contains(pid))
            && !old.iter().any(|pid| now.contains(pid))
    };
    while !is_over(&first.processes()) {
        assert!(Instant::now() < deadline, "{:?} after {old:?} and {successors:?}", first.processes());
        clients[0].assert_echoes(b"while keepers change");
    }
    for client in &mut clients {
        client.assert_echoes(b"nobody keeps, nobody supervises");
    }
    let second = Starting::new(&Options::config(CONFIG).run_dir(first.run_dir())).ready();
    let adopted = second.control().workers();
    for (before, after) in workers.iter().zip(&adopted) {
        assert_eq!(after.0["keeper_pid"], before.0["pid"], "{after:?}");
    }
    for round in 0..4 {
        kill_keeper(&second, round % 2);
        for client in &mut clients {
            client.assert_echoes(b"kept");
        }
    }
    assert_nobody_lost(&second);
    for pid in second.worker_pids() {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    for client in &mut clients {
        client.assert_echoes(b"and on");
    }
    second.stop();
    assert_eq!(first.processes(), [], "processes left behind");
}
