//! The paced drain: who goes when, what stops it, and what does not.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use holdfast_tests::client::RawClient;
use holdfast_tests::clients::{Clients, Group, Role};
use holdfast_tests::frame::{CLOSE, FIN, TEXT, masked};
use holdfast_tests::holdfast::{Holdfast, Options, Starting, run};
use nix::sys::signal::{Signal, kill};

/// So long that nothing in a test can come from its end.
const FOREVER: &str = "workers = 2\ndrain.duration = \"1h\"\ntimeouts.close = \"1h\"";

/// A server with `count` open clients that answer nothing by themselves.
fn with_clients(config: &str, count: usize) -> (Holdfast, Vec<RawClient>) {
    let server = Holdfast::with(config);
    let clients = (0..count).map(|_| RawClient::open(server.address())).collect();
    (server, clients)
}

/// Does the server answer this client, rather than say goodbye? It may ping in between.
fn is_open(client: &mut RawClient) -> bool {
    // One that has been told may be gone; what it was told is there to be read.
    let _ = client.send(&masked(FIN | TEXT, b"still there"));
    loop {
        let frame = client.frame();
        match frame.opcode() {
            TEXT => return frame.payload == b"still there",
            CLOSE => return false,
            _ => {}
        }
    }
}

#[test]
fn the_longest_idle_go_first() {
    let (server, mut clients) = with_clients("workers = 1\ntimeouts.close = \"1h\"", 20);
    // Spoken last goes last: the order of speaking, not that of coming, nor that of descriptors. The clock of
    // a record has milliseconds.
    let order: Vec<usize> = (0..20).map(|position| (position * 7) % 20).collect();
    for &position in &order {
        assert!(is_open(&mut clients[position]));
        let uptime = || server.totals().value("uptime_seconds").as_f64().unwrap();
        let before = uptime();
        server.poll("a millisecond passes", uptime, |now| *now > before + 0.002);
    }
    assert_eq!(server.control().post("/drain?duration=6s").status, 200);
    server.wait_until("half are told", |totals| totals.number("drain.told") >= 10);
    server.control().post("/drain/pause");
    let totals = server.wait_until("it is paused", |totals| totals.value("drain.paused") == true);
    let count = usize::try_from(totals.number("drain.told")).unwrap();
    for (rank, &position) in order.iter().enumerate() {
        let is_told = !is_open(&mut clients[position]);
        assert_eq!(is_told, rank < count, "rank {rank} of {count} told");
    }
    server.control().post("/stop");
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
}

#[test]
fn they_go_one_by_one_and_not_as_a_crowd() {
    let server =
        Holdfast::with("workers = 2\ntimeouts.close = \"1h\"\nlimits.max_connections_per_address = 0");
    let mut clients = Clients::new(server.address());
    let idle = clients.add(Group::new(400, Role::Idle));
    clients.run_until("all are in", |clients| clients.stats(idle).open == 400);
    assert_eq!(server.control().post("/drain?duration=4s").status, 200);
    let mut seen = Vec::new();
    clients.run_until("half are told", |clients| {
        let totals = server.totals();
        let (told, left) = (totals.number("drain.told"), totals.number("drain.remaining"));
        assert_eq!(told + left, 400);
        seen.push((told, (4.0 - totals.value("drain.eta_seconds").as_f64().unwrap()) * 100.0));
        clients.stats(idle).ended() >= 200
    });
    clients.run_until("all are told", |clients| clients.stats(idle).ended() == 400);
    // Never ahead of the time; how far behind is the machine's business.
    for (told, due) in &seen {
        assert!(*told as f64 <= due + 3.0, "{told} told when {due} were due");
    }
    assert!(seen.windows(2).all(|pair| pair[0].0 <= pair[1].0), "told is never taken back: {seen:?}");
    assert_eq!(clients.stats(idle).closed(1001), 400);
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
    assert_eq!(server.processes(), []);
}

#[test]
fn a_pause_keeps_everybody_and_lets_nobody_in() {
    let (server, mut clients) = with_clients(FOREVER, 20);
    assert_eq!(server.control().post("/drain").status, 200);
    let paused = server.control().post("/drain/pause");
    assert_eq!(paused.status, 200, "{}", paused.text());
    assert_eq!(paused.json()["drain"]["paused"], true);
    let before = server.totals();
    assert_eq!(before.text("state"), "draining");
    assert!(before.value("drain").get("eta_seconds").is_none(), "nobody knows when a paused drain ends");
    let (told, left) = (before.number("drain.told"), before.number("drain.remaining"));
    assert_eq!(told + left, 20);
    let served = clients.iter_mut().map(is_open).filter(|open| *open).count();
    assert_eq!(served as u64, left);
    let mut newcomer = RawClient::connect(server.address());
    newcomer.upgrade("").assert_refusal(503, "draining");
    assert_eq!(server.control().post("/drain/pause").status, 200, "asked for twice, done once");
    assert_eq!(server.totals().number("drain.told"), told);

    let resumed = server.control().post("/drain/resume?duration=0s");
    assert_eq!(resumed.status, 200, "{}", resumed.text());
    drop(clients);
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
}

#[test]
fn health_says_so_at_once_everywhere() {
    let (server, clients) = with_clients(FOREVER, 1);
    assert_eq!(server.control().post("/drain").status, 200);
    assert_eq!(server.control().get("/health").status, 503);
    assert_eq!(health(server.admin()), 503);
    // The workers have the order when they have answered a question that came after it. The kernel spreads
    // visitors over both.
    assert_eq!(server.totals().text("state"), "draining");
    for _ in 0..20 {
        assert_eq!(health(server.address()), 503);
    }
    // A worker that comes up in the middle is no better.
    let before = server.worker_pids();
    for pid in &before {
        kill(*pid, Signal::SIGKILL).unwrap();
    }
    for _ in 0..20 {
        assert_eq!(health(server.address()), 503);
    }
    server.signal(Signal::SIGTERM);
    server.signal(Signal::SIGTERM);
    drop(clients);
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
}

fn health(address: std::net::SocketAddr) -> u16 {
    let mut visitor = RawClient::connect(address);
    visitor.send(b"GET /health HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    visitor.response().status
}

#[test]
fn a_worker_that_dies_in_the_middle_goes_on_with_what_is_left() {
    let (server, clients) = with_clients("workers = 1\ntimeouts.close = \"1h\"", 100);
    server.control().post("/drain?duration=4s");
    server.wait_until("some are told", |totals| totals.number("drain.told") >= 20);
    let [before] = server.worker_pids()[..] else { panic!("one worker") };
    kill(before, Signal::SIGKILL).unwrap();
    let after = server.wait_until("the next one goes on", |totals| {
        totals.number("restarts_total") == 1
            && totals.number("resumed_total") > 0
            && totals.value("silent_workers").as_array().unwrap().is_empty()
    });
    assert!(after.value("drain.eta_seconds").as_f64().unwrap() <= 4.0, "it began anew: {after:?}");
    let codes: Vec<u16> = clients.into_iter().map(|mut client| client.close_frame().0).collect();
    assert_eq!(codes, [1001; 100]);
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
}

#[test]
fn a_worker_that_dies_in_a_pause_stays_paused() {
    let (server, mut clients) =
        with_clients("workers = 1\ntimeouts.close = \"1h\"\ndrain.duration = \"1h\"", 20);
    server.control().post("/drain");
    server.control().post("/drain/pause");
    let left = server.totals().number("drain.remaining");
    let [before] = server.worker_pids()[..] else { panic!("one worker") };
    kill(before, Signal::SIGKILL).unwrap();
    let totals = server.wait_until("the next one is asked", |totals| {
        totals.number("restarts_total") == 1
            && totals.value("silent_workers").as_array().unwrap().is_empty()
            && totals.number("resumed_total") > 0
    });
    assert_eq!(totals.value("drain.paused"), true);
    assert_eq!(totals.number("drain.remaining"), left);
    assert_eq!(clients.iter_mut().map(is_open).filter(|open| *open).count() as u64, left);
    server.control().post("/stop");
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
}

#[test]
fn a_signal_in_a_pause_lets_it_go_on_and_one_more_ends_it() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (server, clients) = with_clients(FOREVER, 10);
        server.control().post("/drain");
        server.control().post("/drain/pause");
        server.signal(signal);
        server.wait_until("it goes on", |totals| totals.value("drain.paused") == false);
        assert!(server.totals().value("drain.eta_seconds").as_f64().unwrap() > 3000.0);
        server.signal(signal);
        assert_eq!(server.process().wait_for_exit().code(), Some(0), "{signal}");
        assert_eq!(server.processes(), []);
        drop(clients);
    }
}

#[test]
fn the_first_signal_leaves_a_drain_begun_by_hand_alone() {
    let (server, clients) = with_clients(FOREVER, 10);
    server.control().post("/drain");
    server.signal(Signal::SIGTERM);
    let _ = server.process().wait_for_line("the drain goes on");
    assert!(server.totals().number("drain.remaining") > 0);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
    drop(clients);
}

#[test]
fn every_order_has_an_answer() {
    let (server, clients) = with_clients(FOREVER, 10);
    let status = |target: &str| server.control().post(target).status;
    assert_eq!((status("/drain/pause"), status("/drain/resume")), (409, 409), "there is no drain");
    for bad in ["/drain?duration=soon", "/drain?duration=30", "/drain?x=1", "/drain/pause?duration=1s"] {
        let answer = server.control().post(bad);
        assert_eq!(answer.status, 400, "{bad}: {}", answer.text());
        let says_where = answer.json()["error"].as_str().unwrap().starts_with(bad.split('=').next().unwrap());
        assert!(says_where, "{bad}: {}", answer.text());
    }
    assert_eq!(server.totals().text("state"), "running", "a refused order changes nothing");
    assert!(server.totals().0.get("drain").is_none());

    let ctl = |arguments: &[&str]| {
        let run_dir = server.run_dir().to_str().unwrap();
        run(&[&["ctl", "--run-dir", run_dir, "drain"], arguments].concat())
    };
    let (_, said, _) = ctl(&["--duration", "2h"]);
    assert!(said.contains("told") && said.contains("to be told"), "{said}");
    assert!(server.totals().value("drain.eta_seconds").as_f64().unwrap() > 3601.0);
    assert_eq!(status("/drain"), 200, "asked for twice, done once");
    assert!(server.totals().value("drain.eta_seconds").as_f64().unwrap() > 3601.0, "it began anew");
    assert_eq!(status("/drain/resume"), 200, "it goes on already");
    assert!(ctl(&["--pause"]).1.contains("paused"));
    let (code, _, complaint) = ctl(&[]);
    assert_eq!(code.code(), Some(1), "to begin a paused drain is a misunderstanding");
    assert!(complaint.contains("--resume"), "{complaint}");
    assert_eq!(server.totals().value("drain.paused"), true);
    assert!(ctl(&["--resume", "--duration", "3h"]).0.success());
    assert!(server.totals().value("drain.eta_seconds").as_f64().unwrap() > 7201.0);
    assert_eq!(ctl(&["--duration", "soon"]).0.code(), Some(2));
    assert_eq!(status("/stop"), 200);
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
    drop(clients);
}

#[test]
fn nobody_there_means_the_end_at_once() {
    let server = Holdfast::start(&Options::config(FOREVER));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.process().wait_for_exit().code(), Some(0));
    assert_eq!(server.processes(), []);
}

#[test]
fn a_drain_ends_with_the_next_supervisor_and_not_before() {
    let (first, mut clients) = with_clients(FOREVER, 4);
    assert_eq!(first.control().post("/drain").status, 200);
    first.wait_until("the workers drain", |totals| totals.number("drain.remaining") == 4);
    first.process().signal(Signal::SIGKILL);
    let _ = first.process().wait_for_exit();
    RawClient::connect(first.address()).upgrade("").assert_refusal(503, "draining");

    let second = Starting::new(&Options::config(FOREVER).run_dir(first.run_dir())).ready();
    let totals = second.totals();
    assert_eq!((totals.text("state"), totals.number("connections")), ("running", 4));
    clients.push(RawClient::open(second.address()));
    assert_eq!(second.control().post("/restart").status, 200, "a worker that drains would refuse");
    for client in &mut clients {
        assert!(is_open(client));
    }
    second.control().post("/stop");
    assert_eq!(second.process().wait_for_exit().code(), Some(0));
}
