//! A worker dies: its clients stay, except the few whose stream was in flight, and those who queue are
//! served.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::control::Totals;
use holdfast_tests::frame::{BINARY, FIN, PING, PONG, masked};
use holdfast_tests::holdfast::{Holdfast, kill_slot, pid_of};
use holdfast_tests::kernel;
use nix::sys::signal::{Signal, kill};

const IDLE: usize = 10_000;
const ECHOING: usize = 200;

#[test]
fn no_idle_client_is_lost_when_every_worker_is_killed_in_turn() {
    let server = Holdfast::with(
        "workers = 4\nlimits.max_connections = 11000\nlimits.max_connections_per_address = 0\ntimeouts.idle = \"0s\"",
    );
    let mut clients = Clients::of(&server);
    let idle = clients.add(Group::new(IDLE, Role::Idle).from((0..20).map(loopback)));
    clients.run_until("the idle ones are in", |clients| clients.stats(idle).open == IDLE);
    let echo = clients.add(Group::new(ECHOING, Role::Echo { in_flight: 1, size: 512 }).from([loopback(0)]));
    clients.run_until("the others echo", |clients| clients.stats(echo).echoes > 10_000);
    eprintln!("longest stall before: {:?}", clients.longest_stall(echo));

    for (slot, worker) in server.control().workers().iter().enumerate() {
        let lost_before = clients.stats(echo).closed(1012);
        kill(pid_of(worker, "pid"), Signal::SIGKILL).unwrap();
        let echoes = clients.stats(echo).echoes;
        let queued = clients.add(Group::new(50, Role::Idle).from([loopback(1)]));
        clients.run_until("newcomers are served", |clients| clients.stats(queued).open == 50);
        clients.run_until("echoing goes on", |clients| clients.stats(echo).echoes > echoes + 10_000);
        eprintln!("slot {slot}: {} closed with 1012", clients.stats(echo).closed(1012) - lost_before);
    }
    eprintln!("longest stall: {:?}", clients.longest_stall(echo));

    assert_eq!(clients.stats(idle).open, IDLE, "idle clients were lost: {:?}", clients.stats(idle));
    let echoing = clients.stats(echo);
    let lost = echoing.closed(1012);
    assert_eq!(echoing.open + lost, ECHOING, "clients vanished without a word: {echoing:?}");
    assert!(lost <= 4 * MID_EVENT, "{lost} of {ECHOING} were mid-event");
    let lost = u64::try_from(lost).unwrap();
    let totals = server.wait_until("all are counted", |totals| {
        totals.number("restarts_total") == 4 && totals.number("connections") == 10_400 - lost
    });
    assert_eq!(totals.number("lost_total"), lost);
    assert_eq!(totals.number("closed_total.worker_lost"), lost);
    assert_eq!(totals.sum("closed_total"), lost);
    server.stop();
}

/// At most this many clients of a worker can be in the middle of an event when it dies: the one being
/// processed, and those whose echo has been gathered and not yet written in the same turn.
const MID_EVENT: usize = 16;

#[test]
fn whoever_queues_on_a_dead_workers_listener_is_served_by_the_next() {
    let server = Holdfast::with("workers = 2");
    let worker = server.worker_pids()[0];
    kill(worker, Signal::SIGSTOP).unwrap();
    let mut clients = Clients::of(&server);
    let crowd = clients.add(Group::new(60, Role::Idle));
    clients.run_until("the other worker has served its share", |clients| {
        let stats = clients.stats(crowd);
        let queued = kernel::accept_queue(server.address().port());
        stats.connecting + stats.waiting == 0
            && queued > 0
            && usize::try_from(queued).unwrap() == stats.upgrading
    });
    let queued = clients.stats(crowd).upgrading;
    eprintln!("{queued} of 60 queue on the stopped worker's listener");
    kill(worker, Signal::SIGKILL).unwrap();
    clients.run_until("all are in", |clients| clients.stats(crowd).open == 60);
    assert_eq!(clients.stats(crowd).failed(), 0);
    server.wait_until("the death is counted", |totals| totals.number("restarts_total") == 1);
    server.stop();
}

#[test]
fn a_crash_by_any_signal_keeps_the_clients_and_their_half_messages_are_closed_with_1012() {
    for signal in [Signal::SIGSEGV, Signal::SIGABRT, Signal::SIGKILL] {
        let server = Holdfast::with("workers = 1\ntimeouts.ping_interval = \"24h\"");
        let mut quiet = RawClient::open(server.address());
        let mut half_way = RawClient::open(server.address());
        half_way.send(&masked(BINARY, b"the first half")).unwrap();
        // The pong says that the half message has been read.
        half_way.send(&masked(FIN | PING, b"")).unwrap();
        assert_eq!(half_way.frame().opcode(), PONG);

        kill(server.worker_pids()[0], signal).unwrap();
        assert_eq!(half_way.close_frame().0, 1012);
        quiet.assert_echoes(b"as if nothing had happened");
        let totals = server.wait_until("the loss is counted", |totals| {
            totals.number("lost_total") == 1
                && totals.number("restarts_total") == 1
                && totals.number("connections") == 1
        });
        assert_eq!(totals.number("closed_total.worker_lost"), 1);
        server.stop();
    }
}

#[test]
fn a_dead_slots_connections_are_given_back_exactly_once_and_its_slot_is_rebuilt() {
    let server =
        Holdfast::with("workers = 4\nlimits.max_connections = 200\nlimits.max_connections_per_address = 0");
    let mut clients = Clients::of(&server);
    let crowd = clients.add(Group::new(200, Role::Idle).from((0..4).map(loopback)));
    clients.run_until("the server is full", |clients| clients.stats(crowd).open == 200);
    let workers = server.wait_for_workers("all have reported", |workers| {
        workers.iter().map(|worker| worker.number("connections")).sum::<u64>() == 200
    });
    let victim = workers.iter().max_by_key(|worker| worker.number("connections")).unwrap();
    let (slot, held) = (victim.number("slot"), victim.number("connections"));
    let held_here = usize::try_from(held).unwrap();

    kill_slot(victim);
    clients.run_until("its clients are cut off", |clients| clients.stats(crowd).ended() == held_here);
    server.wait_for_workers("the slot is rebuilt", |workers| {
        workers.iter().any(|worker| {
            worker.number("slot") == slot && worker.number("keeper_pid") != victim.number("keeper_pid")
        })
    });
    let totals =
        server.wait_until("its holdings are given back", |totals| totals.number("connections") == 200 - held);
    assert_eq!(totals.number("lost_total"), held);
    assert_eq!(totals.number("closed_total.worker_lost"), held);

    let answered = |workers: &[Totals]| {
        let worker = workers.iter().find(|worker| worker.number("slot") == slot).unwrap();
        worker.number("accepted_total") + worker.number("rejected_total")
    };
    let rebuilt = server.wait_for_workers("the rebuilt slot serves", |workers| {
        workers.iter().all(|worker| worker.text("state") == "ready" && worker.0["pid"].is_u64())
    });
    let answered_before = answered(&rebuilt);
    let next = clients.add(Group::new(200, Role::Idle).from((0..4).map(loopback)));
    clients.run_until("newcomers have their answers", |clients| clients.stats(next).undecided() == 0);
    assert_eq!(clients.stats(next).open, held_here, "{:?}", clients.stats(next));
    assert_eq!(clients.stats(next).refused(503), 200 - held_here);
    server.wait_for_workers("newcomers queue for the rebuilt slot and are answered by it", |workers| {
        answered(workers) > answered_before
    });
    server.stop();
}
