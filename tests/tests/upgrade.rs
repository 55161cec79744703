//! Upgrades: another program takes the place of the running one, and no client can tell; one that is not fit to
//! leaves everything as it was.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use holdfast_tests::PATIENCE;
use holdfast_tests::client::{RawClient, loopback};
use holdfast_tests::clients::{Clients, Group, GroupId, Role};
use holdfast_tests::control::Totals;
use holdfast_tests::holdfast::{Holdfast, Options};
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

const OLD: &str = env!("CARGO_BIN_EXE_holdfast-poison");
const OLD_VERSION: &str = "0.1.0-poison";
const NEXT: &str = env!("CARGO_BIN_EXE_holdfast-next");
const NEXT_VERSION: &str = "0.1.0-next";

const CONFIG: &str = "
    workers = 2
    limits.max_connections = 400
    limits.max_connections_per_address = 0
    timeouts.idle = \"0s\"
    timeouts.ping_interval = \"24h\"
    degraded.notify_clients = false
    degraded.messages_per_second = 0
";

/// A file's bytes and its mode.
type Content = (Vec<u8>, u32);

/// A place for the program, which is replaced as a package manager does it.
struct Installed {
    directory: TempDir,
}

impl Installed {
    fn new() -> Self {
        let installed = Self { directory: tempfile::tempdir().unwrap() };
        installed.put(&fs::read(OLD).unwrap(), 0o755);
        installed
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("holdfast")
    }

    fn start(&self, config: &str) -> Holdfast {
        Holdfast::start(&Options::config(config).program(self.path()))
    }

    fn put(&self, content: &[u8], mode: u32) {
        let [bytes, new] = ["bytes", "new"].map(|name| self.directory.path().join(name));
        fs::write(&bytes, content).unwrap();
        // Not by this process: what another thread starts has its open files for a moment, and a program that
        // somebody may write to is not executed (ETXTBSY).
        let mode = format!("{mode:o}");
        let status = Command::new("install").args(["-m", &mode]).args([&bytes, &new]).status().unwrap();
        assert!(status.success(), "{status}");
        fs::rename(new, self.path()).unwrap();
    }

    fn put_next(&self, behaviour: &str) {
        self.put(&next(behaviour), 0o755);
    }
}

fn next(behaviour: &str) -> Vec<u8> {
    let mut program = fs::read(NEXT).unwrap();
    if !behaviour.is_empty() {
        program.extend_from_slice(format!("behaviour:{behaviour}").as_bytes());
    }
    program
}

/// `holdfast ctl ... upgrade`: how it ended, and what it said.
fn ctl_upgrade(run_dir: &Path) -> (bool, String, String) {
    let output = Command::new(NEXT).args(["ctl", "upgrade", "--run-dir"]).arg(run_dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

fn progress(server: &Holdfast) -> Totals {
    Totals(server.control().get("/upgrade").json())
}

fn versions(server: &Holdfast) -> Vec<String> {
    let workers = server.control().workers();
    std::iter::once(server.totals().text("version").to_owned())
        .chain(workers.iter().map(|worker| worker.text("version").to_owned()))
        .collect()
}

/// Idle and echoing clients.
fn crowd(server: &Holdfast, idle: usize, echoing: usize) -> (Clients, GroupId, GroupId) {
    let mut clients = Clients::of(server);
    let idle_ones = clients.add(Group::new(idle, Role::Idle).from((0..4).map(loopback)));
    let echo = clients.add(Group::new(echoing, Role::Echo { in_flight: 4, size: 700 }).from([loopback(9)]));
    clients.run_until("all are in", |clients| {
        clients.stats(idle_ones).open == idle && clients.stats(echo).open == echoing
    });
    (clients, idle_ones, echo)
}

fn goes_on_echoing(clients: &mut Clients, echo: GroupId) {
    let reached = clients.stats(echo).echoes + 2_000;
    clients.run_until("echoing goes on", |clients| clients.stats(echo).echoes > reached);
}

/// Upgrades by `holdfast ctl`, while the clients are kept going.
fn upgrade_under(clients: &mut Clients, server: &Holdfast) -> (bool, String, String) {
    thread::scope(|scope| {
        let upgrading = scope.spawn(|| ctl_upgrade(server.run_dir()));
        clients.run_until("the upgrade is over", |_| upgrading.is_finished());
        upgrading.join().unwrap()
    })
}

#[test]
fn nobody_notices_and_everything_is_new() {
    let installed = Installed::new();
    let server = installed.start(CONFIG);
    let (mut clients, idle, echo) = crowd(&server, 300, 60);
    assert_eq!(versions(&server), [OLD_VERSION; 3]);
    assert_eq!(progress(&server).text("state"), "none");
    let before = server.totals();

    installed.put_next("");
    let (success, said, complaint) = upgrade_under(&mut clients, &server);
    assert!(success, "{said}{complaint}");
    for words in [&format!("{OLD_VERSION} -> {NEXT_VERSION}: done"), "360 connections kept, 0 lost", "2 of 2"]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    goes_on_echoing(&mut clients, echo);
    assert_eq!(versions(&server), [NEXT_VERSION; 3]);
    let report = progress(&server);
    assert_eq!((report.text("state"), report.number("kept"), report.number("lost")), ("done", 360, 0));
    assert!(report.0["takeover_ms"].as_f64().unwrap() > 0.0, "{report:?}");
    eprintln!("{said}longest stall of an echoing client: {:?}", clients.longest_stall(echo));

    let after = server.totals();
    for (name, expected) in
        [("connections", 360), ("lost_total", 0), ("anomalies_total", 0), ("accepted_total", 360)]
    {
        assert_eq!(after.number(name), expected, "{name}");
    }
    assert!(after.number("messages_received_total") >= before.number("messages_received_total"));
    assert!(after.0["uptime_seconds"].as_f64() >= before.0["uptime_seconds"].as_f64());
    assert_eq!((after.sum("closed_total"), after.sum("rejected_total")), (0, 0), "{after:?}");

    // The cap is exact.
    let more = clients.add(Group::new(60, Role::Idle).from([loopback(5)]));
    clients.run_until("newcomers have their answers", |clients| clients.stats(more).undecided() == 0);
    assert_eq!((clients.stats(more).open, clients.stats(more).refused(503)), (40, 20));

    // A worker of the new program that dies is replaced by another.
    kill(server.worker_pids()[0], Signal::SIGKILL).unwrap();
    server.wait_for_workers("it is replaced", |workers| workers[0].text("state") == "ready");
    goes_on_echoing(&mut clients, echo);
    assert_eq!(clients.stats(idle).open, 300, "{:?}", clients.stats(idle));

    // And once more, to the same version, by signal.
    let restarts = server.totals().number("restarts_total");
    server.signal(Signal::SIGUSR2);
    clients.run_until("it is done", |_| {
        // While one supervisor follows the other there may be nobody to say.
        let answer = server.control().get("/totals");
        assert!(matches!(answer.status, 200 | 503), "{}", answer.text());
        answer.status == 200
            && answer.json()["restarts_total"] == restarts + 2
            && progress(&server).text("state") == "done"
    });
    assert_eq!(progress(&server).text("from"), NEXT_VERSION);
    goes_on_echoing(&mut clients, echo);
    assert_eq!(clients.stats(idle).open, 300, "{:?}", clients.stats(idle));
    server.stop();
}

#[test]
fn what_is_not_fit_is_refused_with_a_reason_and_nothing_changes() {
    let installed = Installed::new();
    let server = installed.start(CONFIG);
    let (mut clients, idle, echo) = crowd(&server, 40, 10);
    let pids = server.worker_pids();
    let program = |behaviour: &str| Some((next(behaviour), 0o755));
    let cases: [(Option<Content>, u16, &str); 9] = [
        (program("refuses"), 422, "refuses to start here (exit status 2): this program wants a full moon"),
        (
            program("layout"),
            409,
            "connection table: the new program has version 99, which fits to versions since 99, this one has",
        ),
        (program("bad-answer"), 422, "its answer to `holdfast probe` was \"hello\""),
        (program("crashes"), 422, "crashed when it was asked (SIGABRT)"),
        (program("hangs"), 504, "did not answer `holdfast probe` within 10s"),
        (Some((next(""), 0o644)), 422, "is not executable"),
        (Some((b"#!/bin/sh\nexit 0\n".to_vec(), 0o755)), 422, "is not a program"),
        (Some((next("")[..64].to_vec(), 0o755)), 422, "cannot run"),
        (None, 422, "No such file or directory"),
    ];
    for (content, status, reason) in cases {
        match content {
            Some((content, mode)) => installed.put(&content, mode),
            None => fs::remove_file(installed.path()).unwrap(),
        }
        let answer = thread::scope(|scope| {
            let asking = scope.spawn(|| server.control().post("/upgrade"));
            clients.run_until("there is an answer", |_| asking.is_finished());
            asking.join().unwrap()
        });
        let error = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer.status, status, "{reason}: {error}");
        assert!(error.contains(reason) && error.contains(installed.path().to_str().unwrap()), "{error}");
        let line = server.process().wait_for_line(reason);
        assert!(line.contains("upgrade refused, nothing has changed"), "{line}");
        let report = progress(&server);
        assert_eq!((report.text("state"), report.text("reason")), ("failed", error.as_str()));
        goes_on_echoing(&mut clients, echo);
    }
    let (success, _, complaint) = ctl_upgrade(server.run_dir());
    assert!(!success && complaint.contains("No such file"), "{complaint}");
    assert_eq!(server.worker_pids(), pids);
    assert_eq!(versions(&server), [OLD_VERSION; 3]);
    assert_eq!((clients.stats(idle).open, clients.stats(echo).open), (40, 10));

    // A configuration that would not start.
    installed.put_next("");
    server.write_config("workers = 2\nlimits.max_connections = \"many\"");
    let answer = server.control().post("/upgrade");
    assert_eq!(answer.status, 422);
    assert!(answer.text().contains("limits.max_connections"), "{}", answer.text());
    server.write_config(CONFIG);
    assert_eq!(server.totals().number("restarts_total"), 0);
    server.stop();
}

#[test]
fn workers_that_crash_at_start_go_back_and_the_upgrade_is_said_to_have_failed() {
    let installed = Installed::new();
    let server = installed.start(CONFIG);
    let (mut clients, idle, echo) = crowd(&server, 100, 20);
    installed.put_next("worker-crashes");
    let (success, said, complaint) = upgrade_under(&mut clients, &server);
    assert!(!success, "{said}");
    assert!(complaint.contains("upgrade failed: slot 0 goes on with the program it had"), "{complaint}");
    server.wait_for_workers("both serve", |workers| {
        workers.iter().all(|worker| worker.text("state") == "ready")
    });
    assert_eq!(versions(&server), [NEXT_VERSION, OLD_VERSION, OLD_VERSION]);
    goes_on_echoing(&mut clients, echo);
    assert_eq!((clients.stats(idle).open, clients.stats(echo).open), (100, 20));
    assert_eq!(server.totals().number("lost_total"), 0);

    // What went back can follow later.
    installed.put_next("");
    let (success, said, complaint) = upgrade_under(&mut clients, &server);
    assert!(success, "{said}{complaint}");
    assert_eq!(versions(&server), [NEXT_VERSION; 3]);
    goes_on_echoing(&mut clients, echo);
    assert_eq!((clients.stats(idle).open, clients.stats(echo).open), (100, 20));
    server.stop();
}

#[test]
fn a_supervisor_that_cannot_take_over_lets_the_old_one_come_back() {
    let installed = Installed::new();
    let server = installed.start(CONFIG);
    let mut clients: Vec<RawClient> = (0..6).map(|_| RawClient::open(server.address())).collect();
    let worker = server.worker_pids()[1];
    installed.put_next("");
    kill(worker, Signal::SIGSTOP).unwrap();
    server.signal(Signal::SIGUSR2);
    let _ = server.process().wait_for_line("going back to version");
    kill(worker, Signal::SIGCONT).unwrap();
    let _ = server.process().wait_for_lines("ready listen=", 2);
    assert_eq!(versions(&server), [OLD_VERSION; 3]);
    let report = progress(&server);
    assert_eq!((report.text("state"), report.text("to")), ("failed", NEXT_VERSION));
    assert!(report.text("reason").contains(&worker.to_string()), "{report:?}");
    assert_eq!(server.totals().number("connections"), 6);
    for client in &mut clients {
        client.assert_echoes(b"as before");
    }
    server.stop();
}

#[test]
fn an_upgrade_has_to_wait_for_its_turn_and_ends_with_the_service() {
    let installed = Installed::new();
    let server = installed.start("workers = 2\ndrain.duration = \"60s\"\ntimeouts.close = \"60s\"");
    let _client = RawClient::open(server.address());
    installed.put_next("hangs");
    thread::scope(|scope| {
        let first = scope.spawn(|| server.control().post("/upgrade"));
        let _ = server.process().wait_for_line("upgrading: looking at");
        for path in ["/upgrade", "/restart"] {
            let second = server.control().post(path);
            assert_eq!(second.status, 409, "{}", second.text());
            assert!(second.text().contains("upgrade is under way"), "{}", second.text());
        }
        assert_eq!(progress(&server).text("state"), "asking");
        assert_eq!(server.control().post("/drain").status, 200);
        let first = first.join().unwrap();
        assert_eq!(first.status, 409, "{}", first.text());
        assert!(first.text().contains("began to shut down"), "{}", first.text());
    });
    let third = server.control().post("/upgrade");
    assert_eq!(third.status, 409);
    assert!(third.text().contains("shutting down"), "{}", third.text());
    assert_eq!(server.control().post("/stop").status, 200);
    let (status, log) = server.wait_for_exit();
    assert!(status.success(), "{log}");
    assert_eq!(server.processes(), [], "{log}");
}

#[test]
fn those_who_ask_meanwhile_wait_and_are_answered() {
    const NEWCOMERS: usize = 200;
    let installed = Installed::new();
    let server = installed.start(CONFIG);
    let mut clients = Clients::of(&server);
    installed.put_next("");
    for round in 0..3 {
        let done = round + 1;
        server.signal(Signal::SIGUSR2);
        let group = clients.add(Group::new(NEWCOMERS / 2, Role::Idle).from((0..4).map(loopback)));
        // Over the control socket and the admin address, nobody is turned away for being early.
        clients.run_until("it is done", |_| {
            let mut admin = RawClient::connect(server.admin());
            admin.send(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
            assert!(matches!(admin.response().status, 200 | 503));
            let answer = server.control().get("/upgrade");
            assert!(matches!(answer.status, 200 | 503), "{}", answer.text());
            server.process().lines().iter().filter(|line| line.contains("upgrade done:")).count() == done
        });
        clients.run_until("all are in", |clients| clients.stats(group).open == NEWCOMERS / 2);
        clients.leave(group, NEWCOMERS / 2);
        clients.run_until("all are out", |clients| clients.stats(group).left() == NEWCOMERS / 2);
    }
    server.wait_until("nobody is counted", |totals| totals.number("connections") == 0);
    assert_eq!(server.totals().number("anomalies_total"), 0);
    server.stop();
}

#[test]
fn a_stop_that_comes_while_the_supervisor_is_replaced_is_not_lost() {
    let installed = Installed::new();
    installed.put_next("");
    for _ in 0..3 {
        let server = installed.start("workers = 2");
        let mut client = RawClient::open(server.address());
        server.signal(Signal::SIGUSR2);
        let _ = server.process().wait_for_line("is version");
        server.signal(Signal::SIGTERM);
        assert_eq!(client.close_frame().0, 1001);
        drop(client);
        let (status, log) = server.wait_for_exit();
        assert_eq!(status.code(), Some(0), "{log}");
        assert_eq!(server.processes(), [], "{log}");
    }
}

#[test]
fn the_service_manager_sees_a_reload() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let installed = Installed::new();
    let options = Options::config(CONFIG).program(installed.path());
    let server = Holdfast::start(&options.environment("NOTIFY_SOCKET", path.to_str().unwrap()));
    let pid = server.process().pid();
    assert!(hear().contains("READY=1"));
    installed.put_next("");
    server.signal(Signal::SIGUSR2);
    let reloading = hear();
    assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert!(hear().contains("READY=1"));
    assert!(!reloading.contains("MAINPID"), "the process is the same: {reloading}");
    let pid_file = fs::read_to_string(server.run_dir().join("holdfast.pid")).unwrap();
    assert_eq!(pid_file.trim(), pid.to_string());
    server.stop();
}
