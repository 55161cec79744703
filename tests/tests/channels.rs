//! What is said outlives who says it: channels through the death of workers, of the hub and of the supervisor.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::fs;

use holdfast_tests::channels::{Subscriber, api, hub_pid, publish};
use holdfast_tests::client::RawClient;
use holdfast_tests::holdfast::{Holdfast, Options, pid_of};
use holdfast_tests::process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const CONFIG: &str = "
workers = 4
limits.max_connections_per_address = 0
timeouts.ping_interval = \"0s\"
[[routes]]
path = \"/\"
protocol = \"echo\"
[[routes]]
path = \"/ws\"
protocol = \"channels\"
[[channels.rules]]
match = \"public:*\"
history = 10000
presence = true
client_publish = true
";

fn kill_hub(server: &Holdfast) {
    let pid = hub_pid(server);
    kill(pid, Signal::SIGKILL).unwrap();
    server.poll("the hub has ended", || process::is_running(pid), |running| !running);
}

fn subscribers(server: &Holdfast, channel: &str) -> Option<u64> {
    let response = api(server.run_dir(), "GET", &format!("/api/channels/{channel}"), None).ok()?;
    response.json()["subscribers"].as_u64()
}

#[test]
fn every_publication_comes_once_and_in_order_whoever_is_killed() {
    const CHANNELS: usize = 20;
    const EACH: usize = 20;
    const ROUNDS: u64 = 40;
    let seed = std::env::var("HOLDFAST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    eprintln!("HOLDFAST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let server = Holdfast::with(CONFIG);
    let channel = |number: usize| format!("public:{number}");
    let mut all: Vec<Subscriber> = (0..CHANNELS * EACH)
        .map(|number| Subscriber::new(server.address(), &channel(number % CHANNELS)))
        .collect();
    for round in 1..=ROUNDS {
        for number in 0..CHANNELS {
            let key = format!("{number}-{round}");
            let answer = publish(&server, &channel(number), &json!({ "number": round }), &key);
            assert_eq!(answer["offset"], round, "once, however often it was asked for");
            match random.u8(..) {
                0..4 => {
                    let workers = server.control().workers();
                    let alive: Vec<_> =
                        workers.iter().filter(|worker| !worker.value("pid").is_null()).collect();
                    if let Some(worker) = random.choice(alive) {
                        // It may have handed over meanwhile, and be gone.
                        let _ = kill(pid_of(worker, "pid"), Signal::SIGKILL);
                    }
                }
                4..6 => kill_hub(&server),
                6..8 => server.signal(Signal::SIGUSR1),
                _ => {}
            }
        }
        if round % 20 == 0 {
            for subscriber in &mut all {
                subscriber.read_to(round);
            }
        }
    }
    let returns: u32 = all.iter().map(|subscriber| subscriber.returns).sum();
    eprintln!("{returns} were closed and came back");
    // A connection is lost only with the write that its worker died in.
    assert!(u64::from(returns) <= server.totals().number("restarts_total"));
    let expected = Some(EACH as u64);
    server.poll("all are counted", || subscribers(&server, "public:0"), |found| *found == expected);
    server.stop();
}

#[test]
fn the_hub_outlives_its_supervisor_and_clients_both() {
    let run_dir = tempfile::tempdir().unwrap();
    let options = Options::config(CONFIG).run_dir(run_dir.path());
    let first = Holdfast::start(&options);
    let mut subscriber = Subscriber::new(first.address(), "public:a");
    let hub = hub_pid(&first);
    let _ = publish(&first, "public:a", &json!({ "number": 1 }), "1");
    first.signal(Signal::SIGKILL);
    let address = first.address();
    let second = Holdfast::start(
        &Options::config(&format!("listen = \"{address}\"\n{CONFIG}"))
            .own_addresses()
            .run_dir(run_dir.path()),
    );
    let answer = publish(&second, "public:a", &json!({ "number": 2 }), "2");
    assert_eq!((answer["offset"].as_u64(), answer["subscribers"].as_u64()), (Some(2), Some(1)));
    subscriber.read_to(2);
    assert_eq!(subscriber.returns, 0);
    assert!(process::is_running(hub), "the same one serves on");
    // One that is killed now is followed by another all the same, though it is no child of this supervisor.
    kill(hub, Signal::SIGKILL).unwrap();
    assert_ne!(hub_pid(&second), hub);
    let _ = publish(&second, "public:a", &json!({ "number": 3 }), "3");
    subscriber.read_to(3);
    second.stop();
}

#[test]
fn no_worker_can_write_what_clients_are_sent() {
    let server = Holdfast::with(CONFIG);
    let mut subscriber = Subscriber::new(server.address(), "public:a");
    for worker in server.control().workers() {
        for pid in [pid_of(&worker, "pid"), pid_of(&worker, "keeper_pid")] {
            let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
            let of_channels: Vec<&str> =
                maps.lines().filter(|line| line.contains("holdfast-channels")).collect();
            assert!(
                !of_channels.is_empty() && of_channels.iter().all(|line| line.contains(" r--s ")),
                "{maps}"
            );
            assert!(!has_descriptor(pid), "process {pid}");
        }
    }
    let _ = publish(&server, "public:a", &json!({ "number": 1 }), "1");
    subscriber.read_to(1);
    server.stop();
}

fn has_descriptor(pid: Pid) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets.any(|target| target.to_string_lossy().contains("holdfast-channels"))
}

#[test]
fn a_server_without_channels_has_no_hub() {
    let server = Holdfast::with("workers = 1");
    let mut client = RawClient::open(server.address());
    client.assert_echoes(b"hi");
    let names = server
        .processes()
        .into_iter()
        .map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default());
    assert!(names.into_iter().all(|name| name.trim() != "holdfast-hub"));
    assert!(!server.run_dir().join("api.sock").exists());
    // A reload brings them, and those who are in do not notice.
    let response = server.reload(&CONFIG.replace("workers = 4", "workers = 1"));
    assert_eq!(response.status, 200, "{}", response.text());
    let hub = hub_pid(&server);
    let _ = publish(&server, "public:a", &json!({ "number": 1 }), "1");
    server.wait_until("the worker has the way to the hub", |totals| totals.number("restarts_total") == 1);
    let mut subscriber = Subscriber::new(server.address(), "public:a");
    let _ = publish(&server, "public:a", &json!({ "number": 2 }), "2");
    subscriber.read_to(2);
    client.assert_echoes(b"still here");
    assert!(process::is_running(hub));
    server.stop();
}
