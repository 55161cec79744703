//! Live upgrades between this program and others, there and back: earlier commits, and the current tree with
//! something added to each format. Run by `tests/compatibility.sh`, which builds them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use holdfast_tests::client::loopback;
use holdfast_tests::clients::{Clients, Group, GroupId, Role};
use holdfast_tests::holdfast::{Holdfast, Options, binary};

const CONFIG: &str = "
    workers = 2
    limits.max_connections = 400
    limits.max_connections_per_address = 0
    timeouts.idle = \"0s\"
    timeouts.ping_interval = \"24h\"
";

const IDLE: usize = 100;
const ECHOING: usize = 40;
const HALF_A_FRAME: usize = 20;

/// Clients of each kind.
struct Crowd {
    clients: Clients,
    idle: GroupId,
    echo: GroupId,
    half: GroupId,
}

impl Crowd {
    fn of(server: &Holdfast) -> Self {
        let mut clients = Clients::of(server);
        let idle = clients.add(Group::new(IDLE, Role::Idle).from((0..4).map(loopback)));
        let role = Role::Echo { in_flight: 4, size: 700 };
        let echo = clients.add(Group::new(ECHOING, role).from([loopback(8)]));
        let role = Role::InParts { size: 5000 };
        let half = clients.add(Group::new(HALF_A_FRAME, role).from([loopback(9)]));
        let mut crowd = Self { clients, idle, echo, half };
        crowd.clients.run_until("all are in", |clients| {
            [(idle, IDLE), (echo, ECHOING), (half, HALF_A_FRAME)]
                .iter()
                .all(|&(group, count)| clients.stats(group).open == count)
        });
        crowd
    }

    fn open(&self) -> [usize; 3] {
        [self.idle, self.echo, self.half].map(|group| self.clients.stats(group).open)
    }

    /// Upgrades to the program at `to`, with half a message on the wire of some; the longest pause of the others.
    fn upgrade(&mut self, server: &Holdfast, to: &Path) -> Duration {
        let echoed = self.clients.stats(self.half).echoes + HALF_A_FRAME as u64;
        self.clients.take_longest_stall(self.echo);
        self.clients.begin_messages(self.half);
        let output = thread::scope(|scope| {
            let ctl =
                || Command::new(to).args(["ctl", "upgrade", "--run-dir"]).arg(server.run_dir()).output();
            let upgrading = scope.spawn(ctl);
            self.clients.run_until("the upgrade is over", |_| upgrading.is_finished());
            upgrading.join().unwrap().unwrap()
        });
        assert!(output.status.success(), "{output:?}");
        self.clients.finish_messages(self.half);
        let goes_on = self.clients.stats(self.echo).echoes + 1_000;
        let (echo, half) = (self.echo, self.half);
        self.clients.run_until("messages come back", |clients| {
            clients.stats(echo).echoes > goes_on && clients.stats(half).echoes >= echoed
        });
        self.clients.take_longest_stall(self.echo)
    }
}

/// Puts `program` at `path` as a package manager does, not by this process: a program that somebody may write to is
/// not executed (ETXTBSY).
fn put(program: &Path, path: &Path) {
    let new = path.with_extension("new");
    assert!(Command::new("install").arg(program).arg(&new).status().unwrap().success());
    fs::rename(new, path).unwrap();
}

fn there_and_back(name: &str, other: &Path) {
    // Built before there are clients: they answer no ping meanwhile.
    let ours = binary();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("holdfast");
    put(other, &path);
    let server = Holdfast::start(&Options::config(CONFIG).program(&path));
    let mut crowd = Crowd::of(&server);
    let mut programs = [(name, other), ("this tree", ours)];
    // Back to where it began, and once more: what the older program has not kept must not mislead the newer.
    for _ in 0..3 {
        let [(from, _), (to, program)] = programs;
        put(program, &path);
        let pause = crowd.upgrade(&server, program);
        let open = crowd.open();
        let lost = IDLE + ECHOING + HALF_A_FRAME - open.iter().sum::<usize>();
        let [idle, echoing, half] = open;
        eprintln!("{from:<12} {to:<12} {idle:>5} {echoing:>8} {half:>13} {lost:>5} {pause:>14.1?}");
        assert_eq!(lost, 0);
        programs.reverse();
    }
    let totals = server.totals();
    let figures = ["connections", "accepted_total"].map(|name| totals.number(name));
    assert_eq!(figures, [160; 2], "{totals:?}");
    assert_eq!((totals.number("lost_total"), totals.number("anomalies_total")), (0, 0), "{totals:?}");
    server.stop();
}

#[test]
#[ignore = "needs other programs: run tests/compatibility.sh"]
fn upgrades_there_and_back_lose_nobody() {
    let place =
        PathBuf::from(std::env::var_os("HOLDFAST_COMPATIBILITY").expect("run tests/compatibility.sh"));
    let commits = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/compatibility/commits")).unwrap();
    let commits =
        commits.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(' ').next());
    eprintln!(
        "{:<12} {:<12} {:>5} {:>8} {:>13} {:>5} {:>14}",
        "from", "to", "idle", "echoing", "half a frame", "lost", "longest pause"
    );
    for commit in commits.filter(|commit| !commit.is_empty()) {
        there_and_back(&commit[..commit.len().min(10)], &place.join(commit));
    }
    there_and_back("grown", &place.join("grown"));
}
