//! A worker that lives but does nothing any more is steered away from, ended, and followed by another that
//! goes on with its connections.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::RawClient;
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::control::Totals;
use holdfast_tests::frame::{FIN, PING, PONG, TEXT, masked};
use holdfast_tests::holdfast::{Holdfast, Options, pid_of};
use nix::sys::signal::{Signal, kill};

/// A server whose application never returns from "wedge".
fn start(config: &str) -> Holdfast {
    Holdfast::start(&Options::config(config).program(env!("CARGO_BIN_EXE_holdfast-poison")))
}

/// The slot of the newest client of `server`, the only one that came meanwhile.
fn slot_of_newest(server: &Holdfast, before: &[Totals]) -> usize {
    let workers =
        server.wait_for_workers("the newcomer is counted", |workers| accepted(workers) > accepted(before));
    let gained =
        |slot: &usize| workers[*slot].number("accepted_total") > before[*slot].number("accepted_total");
    (0..workers.len()).find(gained).unwrap()
}

fn accepted(workers: &[Totals]) -> u64 {
    workers.iter().map(|worker| worker.number("accepted_total")).sum()
}

#[test]
fn a_stopped_worker_gets_no_clients_and_all_it_had_go_on_with_the_next() {
    let server = start("workers = 2\nbalance = \"least-connections\"\ntimeouts.idle = \"0s\"");
    let mut clients: Vec<RawClient> = (0..20).map(|_| RawClient::open(server.address())).collect();
    let workers = server.control().workers();
    let slot = usize::from(workers[1].number("connections") > 0);
    let stopped = pid_of(&workers[slot], "pid");
    kill(stopped, Signal::SIGSTOP).unwrap();

    let wedged =
        server.wait_for_workers("it is seen to be wedged", |workers| workers[slot].text("state") == "wedged");
    assert_eq!(wedged[slot].number("weight"), 0);
    assert_eq!(server.totals().number("workers_ready"), 1);
    // All of these come to the other one, while that is so.
    let mut newcomers: Vec<RawClient> = (0..10).map(|_| RawClient::open(server.address())).collect();

    let next = server.wait_for_workers("another worker has taken over", |workers| {
        workers[slot].text("state") == "ready" && pid_of(&workers[slot], "pid") != stopped
    });
    assert_eq!(next[slot].text("last_death"), "wedged");
    assert_eq!(next[slot].number("restarts_total.wedged"), 1);
    let metrics = server.control().get("/metrics").text();
    let series = format!("holdfast_worker_restarts_total{{worker=\"{slot}\",cause=\"wedged\"}} 1");
    assert!(metrics.contains(&series), "{metrics}");
    for client in clients.iter_mut().chain(&mut newcomers) {
        client.assert_echoes(b"as if nothing had happened");
    }
    assert_eq!(server.totals().number("lost_total"), 0);
    server.stop();
}

#[test]
fn the_client_whose_message_is_never_done_with_is_closed_with_1011_and_no_other() {
    let server = start("workers = 2\ntimeouts.idle = \"0s\"");
    let mut clients = Clients::of(&server);
    let crowd = clients.add(Group::new(60, Role::Idle));
    clients.run_until("the crowd is in", |clients| clients.stats(crowd).open == 60);
    let before = server.control().workers();
    let mut culprit = RawClient::open(server.address());
    let slot = slot_of_newest(&server, &before);
    culprit.send(&masked(FIN | TEXT, b"wedge")).unwrap();
    assert_eq!(culprit.close_frame().0, 1011);
    let workers =
        server.wait_for_workers("the slot is back", |workers| workers[slot].text("state") == "ready");
    assert_eq!(workers[slot].text("last_death"), "wedged");
    let totals = server.wait_until("the loss is counted", |totals| totals.number("connections") == 60);
    assert_eq!((totals.number("lost_total"), totals.number("closed_total.worker_lost")), (1, 1));
    assert_eq!(clients.stats(crowd).open, 60);
    server.stop();
}

#[test]
fn a_worker_that_wedges_while_draining_does_not_hold_up_the_end() {
    let server = start("workers = 1\ndrain.duration = \"15s\"\ntimeouts.idle = \"0s\"");
    let mut bystanders: Vec<RawClient> = (0..5).map(|_| RawClient::open(server.address())).collect();
    let mut culprit = RawClient::open(server.address());
    culprit.send(&masked(FIN | TEXT, b"wedge")).unwrap();
    assert_eq!(server.control().post("/drain").status, 200);
    assert_eq!(culprit.close_frame().0, 1011);
    server.wait_for_workers("the next one drains", |workers| {
        workers[0].number("incarnation") == 2 && workers[0].text("state") == "draining"
    });
    for client in &mut bystanders {
        assert_eq!(client.close_frame().0, 1001);
    }
    drop((bystanders, culprit));
    let status = server.process().wait_for_exit();
    assert!(status.success(), "{status}");
}

#[test]
fn a_supervisor_that_was_stopped_itself_blames_nobody() {
    // Longer than any worker may say nothing.
    let server = start("workers = 2\ntimeouts.idle = \"0s\"\ntimeouts.ping_interval = \"12s\"");
    let mut client = RawClient::open(server.address());
    let workers = server.worker_pids();
    // The first ping may come at any time, the next one an interval later.
    assert_eq!(client.frame().opcode(), PING);
    server.signal(Signal::SIGSTOP);
    client.send(&masked(FIN | PONG, b"")).unwrap();
    assert_eq!(client.frame().opcode(), PING);
    server.signal(Signal::SIGCONT);
    assert_eq!(server.worker_pids(), workers);
    client.send(&masked(FIN | PONG, b"")).unwrap();
    assert_eq!(client.frame().opcode(), PING);
    assert_eq!(server.worker_pids(), workers);
    let lines = server.process().lines();
    assert!(!lines.iter().any(|line| line.contains("has said nothing")), "{lines:#?}");
    server.stop();
}
