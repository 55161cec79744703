//! The supervisor dies: nobody who is in notices, whoever comes waits, and the next supervisor takes all of it
//! over.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::control::Totals;
use holdfast_tests::frame::{FIN, TEXT, masked};
use holdfast_tests::holdfast::{Holdfast, Options, Starting, kill_slot, pid_of};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use nix::unistd::Pid;

const CONFIG: &str = "
    workers = 2
    limits.max_connections = 300
    limits.max_connections_per_address = 0
    timeouts.idle = \"0s\"
    timeouts.ping_interval = \"24h\"
";

/// Totals that never go backwards.
const GROWING: [&str; 7] = [
    "restarts_total",
    "resumed_total",
    "lost_total",
    "messages_received_total",
    "messages_sent_total",
    "bytes_received_total",
    "bytes_sent_total",
];

/// Kills the supervisor alone, and waits until it is gone.
fn kill_supervisor(server: &Starting) {
    server.process().signal(Signal::SIGKILL);
    let status = server.process().wait_for_exit();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
}

fn successor(first: &Starting, config: &str) -> Starting {
    Starting::new(&Options::config(config).run_dir(first.run_dir()))
}

fn assert_not_backwards(before: &Totals, after: &Totals) {
    for name in GROWING {
        assert!(after.number(name) >= before.number(name), "{name}: {before:?} -> {after:?}");
    }
    for name in ["closed_total", "rejected_total"] {
        assert!(after.sum(name) >= before.sum(name), "{name}: {before:?} -> {after:?}");
    }
    assert!(after.number("accepted_total") >= before.number("accepted_total"), "{before:?} -> {after:?}");
}

/// Ends the last supervisor, and checks that nothing is left of any.
fn stop_all(last: Holdfast, earlier: &[&Starting]) {
    last.stop();
    for server in earlier {
        assert_eq!(server.processes(), [], "processes left behind");
    }
}

#[test]
fn nobody_is_lost_the_cap_stays_exact_and_totals_go_on() {
    let first = Holdfast::with(CONFIG);
    let mut clients = Clients::new(first.address());
    let idle = clients.add(Group::new(250, Role::Idle).from((0..4).map(loopback)));
    let echo = clients.add(Group::new(50, Role::Echo { in_flight: 1, size: 512 }).from([loopback(0)]));
    clients.run_until("the server is full", |clients| {
        clients.stats(idle).open + clients.stats(echo).open == 300
    });
    let victim = first.worker_pids()[1];
    kill(victim, Signal::SIGKILL).unwrap();
    first.wait_until("a restart is counted", |totals| totals.number("restarts_total") == 1);
    let lost = lost_of_fifty(&mut clients, echo);
    let before = first.wait_until("all have reported", |totals| {
        totals.number("connections") == 300 - u64::try_from(lost).unwrap()
            && totals.number("workers_ready") == 2
    });
    let missing = lost;
    let fill = clients.add(Group::new(missing, Role::Idle).from([loopback(1)]));
    clients.run_until("it is full again", |clients| clients.stats(fill).open == missing);

    kill_supervisor(&first);
    let reached = clients.stats(echo).echoes + 5_000;
    let newcomer = clients.add(Group::new(1, Role::Idle));
    clients.run_until("echoing goes on without a supervisor", |clients| clients.stats(echo).echoes > reached);
    assert_eq!(clients.stats(newcomer).undecided(), 1, "nobody can have been let in or refused");

    let second = successor(&first, CONFIG).ready();
    assert_eq!(second.address(), first.address());
    clients
        .run_until("the one that waited has its answer", |clients| clients.stats(newcomer).undecided() == 0);
    assert_eq!(clients.stats(newcomer).refused(503), 1, "{:?}", clients.stats(newcomer));
    let after = second.wait_until("all are counted", |totals| totals.number("connections") == 300);
    let levels: Vec<String> =
        second.process().lines().into_iter().filter(|line| line.contains(" level ")).collect();
    assert_eq!((after.text("level"), &levels[..]), ("full", &[][..]), "it was full all the time");
    assert_not_backwards(&before, &after);
    assert!(after.0["uptime_seconds"].as_f64() >= before.0["uptime_seconds"].as_f64());

    clients.leave(idle, 10);
    clients.run_until("ten leave", |clients| clients.stats(idle).left() == 10);
    second.wait_until("ten places are free", |totals| totals.number("connections") == 290);
    let next = clients.add(Group::new(30, Role::Idle).from([loopback(2)]));
    clients.run_until("newcomers have their answers", |clients| clients.stats(next).undecided() == 0);
    assert_eq!((clients.stats(next).open, clients.stats(next).refused(503)), (10, 20));

    let worker = second.worker_pids()[0];
    kill(worker, Signal::SIGKILL).unwrap();
    let total = after.number("restarts_total") + 1;
    second.wait_until("a worker dies and comes back under its adoptive supervisor", |totals| {
        totals.number("restarts_total") == total && totals.number("workers_ready") == 2
    });
    let reached = clients.stats(echo).echoes + 5_000;
    clients.run_until("echoing goes on", |clients| clients.stats(echo).echoes > reached);
    assert_eq!(clients.stats(idle).open, 240, "{:?}", clients.stats(idle));
    stop_all(second, &[&first]);
}

/// How many echoing clients a killed worker was busy with.
fn lost_of_fifty(clients: &mut Clients, echo: holdfast_tests::clients::GroupId) -> usize {
    let reached = clients.stats(echo).echoes + 2_000;
    clients.run_until("echoing goes on", |clients| clients.stats(echo).echoes > reached);
    50 - clients.stats(echo).open
}

#[test]
fn a_worker_killed_while_there_is_no_supervisor_keeps_its_clients() {
    let first = Holdfast::with(CONFIG);
    let mut clients: Vec<RawClient> = (0..8).map(|_| RawClient::open(first.address())).collect();
    let workers = first.worker_pids();
    kill_supervisor(&first);
    for worker in workers {
        kill(worker, Signal::SIGKILL).unwrap();
    }
    for client in &mut clients {
        client.assert_echoes(b"served by a worker that never had a supervisor");
    }
    let second = successor(&first, CONFIG).ready();
    let totals = second.totals();
    assert_eq!((totals.number("connections"), totals.number("restarts_total")), (8, 2));
    for client in &mut clients {
        client.assert_echoes(b"and by one that has");
    }
    stop_all(second, &[&first]);
}

#[test]
fn without_a_next_supervisor_handshakes_get_503_in_time_and_the_others_live() {
    let server = Holdfast::with("workers = 1\ntimeouts.handshake = \"1s\"");
    let mut inside = RawClient::open(server.address());
    kill_supervisor(&server);
    for _ in 0..2 {
        let answer = RawClient::connect(server.address()).upgrade("");
        answer.assert_refusal(503, "handshake_timeout");
        assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
    }
    fs::remove_dir_all(server.run_dir()).unwrap();
    RawClient::connect(server.address()).upgrade("").assert_refusal(503, "handshake_timeout");
    inside.assert_echoes(b"still here");
}

#[test]
fn two_supervisors_in_a_row_and_one_that_dies_while_it_adopts() {
    let first = Holdfast::with(CONFIG);
    let mut clients: Vec<RawClient> = (0..6).map(|_| RawClient::open(first.address())).collect();
    let worker = first.worker_pids()[0];
    kill_supervisor(&first);
    kill(worker, Signal::SIGSTOP).unwrap();
    let second = successor(&first, CONFIG);
    let _ = second.process().wait_for_line("adopting: slots");
    kill_supervisor(&second);
    kill(worker, Signal::SIGCONT).unwrap();
    let third = successor(&first, CONFIG).ready();
    assert_eq!(third.totals().number("connections"), 6);
    kill_supervisor(&third);
    let fourth = successor(&first, CONFIG).ready();
    assert_eq!(fourth.totals().number("connections"), 6);
    for client in &mut clients {
        client.assert_echoes(b"the fourth");
    }
    let mut late = RawClient::open(fourth.address());
    late.assert_echoes(b"me too");
    stop_all(fourth, &[&first, &second, &third]);
}

#[test]
fn a_changed_configuration_takes_effect_and_what_cannot_is_said() {
    let first = Holdfast::with("workers = 1\nlimits.max_connections = 10");
    let mut client = RawClient::open(first.address());
    kill_supervisor(&first);
    let options =
        Options::config("workers = 2\nlimits.max_connections = 2\nlimits.max_message_size = \"1KiB\"")
            .own_addresses()
            .argument("--listen=127.0.0.1:1")
            .argument("--admin=127.0.0.1:0")
            .run_dir(first.run_dir());
    let second = Holdfast::start(&options);
    assert_eq!(second.address(), first.address());
    let warning = second.process().wait_for_line("takes effect with the next clean start");
    assert!(warning.contains("127.0.0.1:1") && warning.contains(&first.address().to_string()), "{warning}");
    let workers = second.control().workers();
    assert_eq!(workers.len(), 2);
    client.assert_echoes(b"short");
    client.send(&masked(FIN | TEXT, &[b'x'; 2000])).unwrap();
    assert_eq!(client.close_frame().0, 1009);
    drop(client);
    second.wait_until("it has left", |totals| totals.number("connections") == 0);
    let mut crowd: Vec<RawClient> = (0..2).map(|_| RawClient::open(second.address())).collect();
    RawClient::connect(second.address()).upgrade("").assert_refusal(503, "max_connections");

    kill_supervisor(&second);
    let third = successor(&first, "workers = 1\nlimits.max_connections = 5").ready();
    third.wait_for_workers("the slot that is too many retires", |workers| workers.len() == 1);
    for client in &mut crowd {
        client.assert_echoes(b"moved");
    }
    assert_eq!(third.totals().number("connections"), 2);
    stop_all(third, &[&first, &second]);
}

#[test]
fn a_slot_that_died_with_nobody_watching_is_started_anew_and_steering_still_finds_the_right_one() {
    let config = "workers = 4\nbalance = \"least-connections\"\nlimits.max_connections = 2000\n\
                  limits.max_connections_per_address = 0\ntimeouts.idle = \"0s\"";
    let first = Holdfast::with(config);
    let mut clients = Clients::new(first.address());
    let crowd = clients.add(Group::new(400, Role::Idle).from((0..4).map(loopback)));
    clients.run_until("all are in", |clients| clients.stats(crowd).open == 400);
    let workers = first.wait_for_workers("all have reported", |workers| connections(workers, 0..4) == 400);
    let died = workers[1].number("connections");
    kill_supervisor(&first);
    kill_slot(&workers[1]);
    let gone = usize::try_from(died).unwrap();
    clients.run_until("its clients are cut off", |clients| clients.stats(crowd).ended() == gone);

    let second = successor(&first, config).ready();
    let after = second.totals();
    assert_eq!(after.number("connections"), 400 - died);
    assert_eq!(after.number("lost_total"), died);
    assert_eq!(after.number("closed_total.worker_lost"), died);
    assert_eq!(after.number("accepted_total"), 400);
    // The empty slot gets all that is missing: a place mistaken for another would fill up somebody else.
    let newcomers = clients.add(Group::new(gone, Role::Idle).from((0..4).map(loopback)));
    clients.run_until("newcomers are in", |clients| clients.stats(newcomers).open == gone);
    let spread = second.wait_for_workers("all are counted", |workers| connections(workers, 0..4) == 400);
    let counts: Vec<u64> = spread.iter().map(|worker| worker.number("connections")).collect();
    eprintln!("{counts:?} after slot 1 with {died} had died");
    assert!(counts[1] * 10 >= died * 8, "{counts:?}");
    stop_all(second, &[&first]);
}

fn connections(workers: &[Totals], slots: std::ops::Range<usize>) -> u64 {
    workers[slots].iter().map(|worker| worker.number("connections")).sum()
}

/// Connects to the reconnect socket, which must be there.
fn stranger(run_dir: &Path) -> OwnedFd {
    let stranger = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
    connect(stranger.as_raw_fd(), &UnixAddr::new(&run_dir.join("supervisor.sock")).unwrap()).unwrap();
    stranger
}

fn say(stranger: &OwnedFd, bytes: &[u8], descriptors: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(stranger.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None).unwrap();
}

/// A message of a worker, as the wire has it: magic, version, since which it is read, incarnation, speaker, kind.
fn by_worker(version: u8, kind: u32, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"hf".to_vec();
    bytes.extend_from_slice(&[version, version]);
    for number in [7, 1, kind] {
        bytes.extend_from_slice(&u32::to_le_bytes(number));
    }
    bytes.extend(fields.concat());
    bytes
}

/// The version of this program's messages: the golden bytes say it.
fn link_version() -> u8 {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/tests/golden/worker_adopt");
    fs::read(golden).unwrap()[2]
}

/// A slot's offer: slot, pid, keeper.
fn offer(version: u8, slot: u16, pid: u32, keeper: u32) -> Vec<u8> {
    by_worker(version, 0, &[&slot.to_le_bytes(), &pid.to_le_bytes(), &keeper.to_le_bytes()])
}

#[test]
fn strangers_at_the_reconnect_socket_are_named_and_change_nothing() {
    let first = Holdfast::with(CONFIG);
    let mut client = RawClient::open(first.address());
    let worker = first.worker_pids()[0];
    kill_supervisor(&first);
    kill(worker, Signal::SIGSTOP).unwrap();
    let second = successor(&first, CONFIG);
    let log = second.process().clone();
    let _ = log.wait_for_line("adopting: slots");

    let (pid, keeper) = (std::process::id(), u32::try_from(nix::unistd::getppid().as_raw()).unwrap());
    let null = File::open("/dev/null").unwrap();
    let null = null.as_raw_fd();
    let known = link_version();
    let offer = |slot, pid, keeper| offer(known, slot, pid, keeper);
    let greeting = |length: u64| by_worker(known, 1, &[&[0; 4], &length.to_le_bytes(), &[0; 4]]);
    let cases: [(&str, Vec<u8>, &[RawFd]); 9] = [
        ("not a Holdfast message", b"garbage".to_vec(), &[]),
        ("a message of version 99", by_worker(99, 0, &[]), &[]),
        ("cannot be decoded", greeting(u64::MAX), &[]),
        ("says it is process 1", offer(0, 1, keeper), &[null, null, null]),
        ("says that its keeper is 7", offer(0, pid, 7), &[null, null, null]),
        ("brings slot 60000", offer(60_000, pid, keeper), &[null, null, null]),
        ("brings slot 0 with 0 descriptors", offer(0, pid, keeper), &[]),
        ("a table that can be cut short", offer(0, pid, keeper), &[null, null, null]),
        ("speaks as if it were known", greeting(0), &[]),
    ];
    let mut open = Vec::new();
    for (expected, bytes, descriptors) in &cases {
        let stranger = stranger(first.run_dir());
        say(&stranger, bytes, descriptors);
        let line = log.wait_for_line(expected);
        assert!(line.contains(&format!("process {pid} ")), "{line}");
        open.push(stranger);
    }
    let silent: Vec<OwnedFd> = (0..100).map_while(|_| try_stranger(first.run_dir())).collect();
    let _ = log.wait_for_line("says nothing");
    kill(worker, Signal::SIGCONT).unwrap();

    let second = second.ready();
    assert_eq!(second.totals().number("connections"), 1);
    assert!(!first.run_dir().join("supervisor.sock").exists());
    client.assert_echoes(b"what was that?");
    drop((silent, open));
    stop_all(second, &[&first]);
}

fn try_stranger(run_dir: &Path) -> Option<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK;
    let stranger = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    let address = UnixAddr::new(&run_dir.join("supervisor.sock")).unwrap();
    connect(stranger.as_raw_fd(), &address).ok().map(|()| stranger)
}

#[test]
fn who_holds_slots_and_does_not_come_is_named_and_the_others_go_on() {
    let first = Holdfast::with(CONFIG);
    let mut clients: Vec<RawClient> = (0..4).map(|_| RawClient::open(first.address())).collect();
    let worker = first.worker_pids()[1];
    kill_supervisor(&first);
    kill(worker, Signal::SIGSTOP).unwrap();
    let (status, log) = successor(&first, CONFIG).wait_for_exit();
    assert_eq!(status.code(), Some(1), "{log}");
    for word in [&worker.to_string()[..], "kill -CONT", first.run_dir().to_str().unwrap()] {
        assert!(log.contains(word), "{word:?} is not named in:\n{log}");
    }
    kill(worker, Signal::SIGCONT).unwrap();
    let second = successor(&first, CONFIG).ready();
    assert_eq!(second.totals().number("connections"), 4);
    for client in &mut clients {
        client.assert_echoes(b"nothing was changed");
    }
    stop_all(second, &[&first]);
}

#[test]
fn a_stop_that_comes_during_adoption_ends_all_of_it() {
    let first = Holdfast::with(CONFIG);
    let mut client = RawClient::open(first.address());
    let worker = first.worker_pids()[0];
    kill_supervisor(&first);
    kill(worker, Signal::SIGSTOP).unwrap();
    let second = successor(&first, CONFIG);
    let _ = second.process().wait_for_line("adopting: slots");
    second.process().signal(Signal::SIGTERM);
    kill(worker, Signal::SIGCONT).unwrap();
    assert_eq!(client.close_frame().0, 1001);
    let (status, log) = second.wait_for_exit();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(first.processes(), [], "{log}");
}

#[test]
fn an_adopted_keeper_is_looked_after_as_if_it_were_our_own() {
    let first = Holdfast::with(CONFIG);
    kill_supervisor(&first);
    let second = successor(&first, CONFIG).ready();
    let victim = second.control().workers().remove(0);
    kill(pid_of(&victim, "keeper_pid"), Signal::SIGKILL).unwrap();
    second.wait_for_workers("the slot has another keeper", |workers| {
        workers[0].0["keeper_pid"].as_u64().is_some_and(|pid| pid != victim.number("keeper_pid"))
            && workers[0].text("state") == "ready"
    });
    let mut clients: Vec<RawClient> = (0..8).map(|_| RawClient::open(second.address())).collect();
    for client in &mut clients {
        client.assert_echoes(b"served");
    }
    stop_all(second, &[&first]);
}

#[test]
fn a_new_slot_that_does_not_start_does_not_keep_the_others_from_being_served() {
    let first = Holdfast::with("workers = 1");
    let mut client = RawClient::open(first.address());
    kill_supervisor(&first);
    let options = Options::config("workers = 2\nbalance = \"least-connections\"");
    let options = options.run_dir(first.run_dir()).environment("HOLDFAST_TEST_CRASH", "start");
    let second = Starting::new(&options).ready();
    let _ = second.process().wait_for_line("slot 1 does not start");
    assert_eq!(second.totals().number("workers_ready"), 1);
    client.assert_echoes(b"still here");
    RawClient::open(second.address()).assert_echoes(b"and me");
    stop_all(second, &[&first]);
}

/// Lets a process have so many descriptors, it and all it will make.
fn limit_descriptors(pid: Pid, limit: &str) {
    let limit = format!("--nofile={limit}");
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status().unwrap();
    assert!(status.success(), "prlimit: {status}");
}

#[test]
fn an_adopted_slot_whose_workers_die_at_every_start_keeps_nobody_out() {
    let config = "workers = 2\nlimits.max_connections = 10\nlimits.max_connections_per_address = 0";
    let first = Holdfast::start(&Options::config(config).environment("HOLDFAST_TEST_CRASH", "register"));
    let mut clients: Vec<RawClient> = (0..4).map(|_| RawClient::open(first.address())).collect();
    let workers = first.wait_for_workers("all are counted", |workers| {
        workers.iter().map(|worker| worker.number("connections")).sum::<u64>() == 4
    });
    let keeper = pid_of(&workers[1], "keeper_pid");
    // Both workers die of introducing themselves, and those that follow in slot 1 cannot open anything.
    limit_descriptors(keeper, "3:");
    kill_supervisor(&first);
    let second = successor(&first, config).ready();
    let charged =
        second.wait_until("the other slot has reported", |totals| totals.number("workers_ready") == 1);
    assert_eq!(charged.number("connections"), 4 + 2, "never below the truth");

    limit_descriptors(keeper, "1024:");
    second.wait_until("the slot is back", |totals| {
        totals.number("workers_ready") == 2 && totals.number("connections") == 4
    });
    for client in &mut clients {
        client.assert_echoes(b"still here");
    }
    RawClient::open(second.address()).assert_echoes(b"and me");
    stop_all(second, &[&first]);
}

#[test]
fn without_what_the_last_supervisor_remembered_totals_still_add_up() {
    let first = Holdfast::with(CONFIG);
    let mut clients: Vec<RawClient> = (0..5).map(|_| RawClient::open(first.address())).collect();
    clients.truncate(3);
    first.wait_until("two have left", |totals| totals.sum("closed_total") == 2);
    kill_supervisor(&first);
    fs::remove_file(first.run_dir().join("state")).unwrap();
    let second = successor(&first, CONFIG).ready();
    let totals = second.totals();
    let names = ["accepted_total", "connections"].map(|name| totals.number(name));
    assert_eq!((names, totals.sum("closed_total")), ([5, 3], 2));
    stop_all(second, &[&first]);
}

#[test]
fn after_a_clean_end_totals_begin_anew() {
    let first = Holdfast::with("workers = 1");
    drop(RawClient::open(first.address()));
    first.wait_until("it has come and gone", |totals| totals.sum("closed_total") == 1);
    first.signal(Signal::SIGTERM);
    assert!(first.process().wait_for_exit().success());
    assert!(!first.run_dir().join("state").exists());
    let second = successor(&first, "workers = 1").ready();
    assert_eq!(second.totals().number("accepted_total"), 0);
    second.stop();
}
