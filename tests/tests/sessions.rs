//! What an application keeps for its clients outlives everything that may happen to the server: each client finds
//! its counter and its nickname exactly, and can still be reached by name.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::path::PathBuf;
use std::process::Command;

use holdfast_tests::client::{RawClient, loopback, upgrade_request};
use holdfast_tests::frame::{FIN, TEXT, masked};
use holdfast_tests::holdfast::{Holdfast, Options, Starting, pid_of};
use nix::sys::signal::{Signal, kill};

const PROGRAM: &str = env!("CARGO_BIN_EXE_holdfast-memory");

const CLIENTS: u16 = 60;

fn config(workers: usize) -> Options {
    Options::config(&text(workers)).program(PROGRAM)
}

fn text(workers: usize) -> String {
    format!(
        "workers = {workers}
        limits.max_connections = 300
        limits.max_connections_per_address = 0
        timeouts.idle = \"0s\"
        timeouts.ping_interval = \"24h\"
        [[routes]]
        path = \"/\"
        protocol = \"memory\""
    )
}

struct Client {
    connection: RawClient,
    count: u64,
    nickname: String,
}

impl Client {
    /// The `n`-th of them. Nicknames are of all lengths, up to some pages.
    fn new(server: &Holdfast, n: u16) -> Self {
        let mut connection = RawClient::connect_from(loopback(n), server.address());
        connection.send(&upgrade_request("")).unwrap();
        assert_eq!(connection.response().status, 101);
        let nickname = format!("n{n}{}", "x".repeat(usize::from(n * n * 3)));
        let mut client = Self { connection, count: 0, nickname };
        let answer = client.ask(&format!("nick {}", client.nickname));
        assert_eq!(answer, format!("0 {}", client.nickname));
        client
    }

    fn say(&mut self, text: &str) {
        self.connection.send(&masked(FIN | TEXT, text.as_bytes())).unwrap();
    }

    fn hear(&mut self) -> String {
        String::from_utf8(self.connection.message()).unwrap()
    }

    fn ask(&mut self, text: &str) -> String {
        self.say(text);
        self.hear()
    }

    fn count(&mut self) {
        self.count += 1;
        let expected = format!("{} {}", self.count, self.nickname);
        assert!(self.ask("count") == expected, "{} has lost its session", &expected[..expected.len().min(9)]);
    }
}

/// Everybody counts on from where they were. Returns how many could write to their neighbour, which only those of
/// one worker can.
fn check(clients: &mut [Client]) -> usize {
    for client in &mut *clients {
        client.count();
    }
    let mut sent = 0;
    for n in 0..clients.len() {
        let to = (n + 1) % clients.len();
        let name = clients[to].nickname.clone();
        if clients[n].ask(&format!("to {name} hello")) == "sent" {
            let expected = format!("{}: hello", clients[n].nickname);
            assert!(clients[to].hear() == expected);
            sent += 1;
        }
    }
    sent
}

/// Waits until all workers are ready, none of them one of `before`.
fn wait_for_others(server: &Holdfast, before: &[nix::unistd::Pid]) {
    server.wait_for_workers("other workers serve", |workers| {
        workers.iter().all(|worker| {
            worker.text("state") == "ready"
                && worker.0["pid"].is_u64()
                && !before.contains(&pid_of(worker, "pid"))
        })
    });
}

fn kill_workers(server: &Holdfast) {
    let before = server.worker_pids();
    for &pid in &before {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    wait_for_others(server, &before);
}

fn kill_keepers(server: &Holdfast) {
    let before = server.worker_pids();
    for worker in server.control().workers() {
        kill(pid_of(&worker, "keeper_pid"), Signal::SIGKILL).unwrap();
    }
    wait_for_others(server, &before);
}

fn restart(server: &Holdfast) {
    let before = server.worker_pids();
    let answer = server.control().post("/restart");
    assert_eq!(answer.status, 200, "{}", answer.text());
    wait_for_others(server, &before);
}

fn scale(server: &Holdfast, workers: usize) {
    let answer = server.reload(&text(workers));
    assert_eq!(answer.status, 200, "{}", answer.text());
    server.wait_for_workers("the workers share the clients", |rows| {
        rows.len() == workers
            && rows.iter().all(|row| {
                row.text("state") == "ready"
                    && row.number("connections") >= u64::from(CLIENTS) / (2 * workers as u64)
            })
    });
}

fn upgrade(server: &Holdfast) {
    let before = server.worker_pids();
    let mut command = Command::new(PathBuf::from(PROGRAM));
    let output = command.args(["ctl", "upgrade", "--run-dir"]).arg(server.run_dir()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_for_others(server, &before);
}

#[test]
fn counters_and_nicknames_outlive_everything() {
    let first = Holdfast::start(&config(2));
    let mut clients: Vec<Client> = (0..CLIENTS).map(|n| Client::new(&first, n)).collect();
    assert!(check(&mut clients) > 0);

    kill_workers(&first);
    check(&mut clients);
    kill_keepers(&first);
    check(&mut clients);
    kill_workers(&first);
    check(&mut clients);
    restart(&first);
    check(&mut clients);
    for workers in [4, 3, 1] {
        scale(&first, workers);
        check(&mut clients);
        kill_workers(&first);
        check(&mut clients);
    }
    assert_eq!(check(&mut clients), clients.len(), "one worker reaches everybody");
    upgrade(&first);
    assert_eq!(check(&mut clients), clients.len());
    scale(&first, 2);
    check(&mut clients);
    let totals = first.totals();
    let lost = (totals.number("lost_total"), totals.sum("closed_total"));
    assert_eq!(lost, (0, 0), "{totals:?}");

    first.process().signal(Signal::SIGKILL);
    let _ = first.process().wait_for_exit();
    check(&mut clients);
    let second = Starting::new(&config(2).run_dir(first.run_dir())).ready();
    kill_workers(&second);
    check(&mut clients);
    assert_eq!(second.totals().number("connections"), u64::from(CLIENTS));
    drop(clients);
    second.stop();
    assert_eq!(first.processes(), [], "processes left behind");
}
