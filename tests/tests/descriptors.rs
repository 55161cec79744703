//! A worker that runs out of descriptors pauses accepting, says so, spins not, and resumes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::process::Command;
use std::time::{Duration, Instant};

use holdfast_tests::client::RawClient;
use holdfast_tests::holdfast::Holdfast;
use holdfast_tests::process;
use nix::unistd::Pid;

/// USER_HZ: what /proc counts processor time in, on every architecture we run on.
const TICKS_PER_SECOND: u64 = 100;

/// How the worker says that it cannot accept.
const PAUSED: &str = "accepting pauses";

/// Lets two seconds pass and checks what the worker did with them.
fn assert_it_rests(server: &Holdfast, worker: Pid) {
    let observed = Duration::from_secs(2);
    let (before, end) = (process::cpu_ticks(worker), Instant::now() + observed);
    while Instant::now() < end {
        server.process().pause(end - Instant::now(), "time to pass");
    }
    let used = process::cpu_ticks(worker) - before;
    assert!(used < TICKS_PER_SECOND * observed.as_secs() / 4, "{used} ticks in {observed:?}: it spins");
    let lines = server.process().lines().iter().filter(|line| line.contains(PAUSED)).count();
    assert_eq!(lines, 1, "logged once a minute");
    assert!(server.totals().number("accept_pauses_total") > 0);
}

#[test]
fn accepting_pauses_when_the_kernel_gives_no_more_descriptors_and_resumes() {
    let server = Holdfast::with("workers = 1\ntimeouts.handshake = \"600s\"");
    let worker = server.worker_pids()[0];
    let mut inside = RawClient::open(server.address());
    let limit = process::open_descriptors(worker) + 20;
    let lowered =
        Command::new("prlimit").args([format!("--pid={worker}"), format!("--nofile={limit}:")]).status();
    assert!(lowered.unwrap().success());

    let silent: Vec<RawClient> = (0..60).map(|_| RawClient::connect(server.address())).collect();
    let line = server.process().wait_for_line(PAUSED);
    assert!(line.contains("LimitNOFILE"), "{line}");
    assert_it_rests(&server, worker);
    assert!(process::open_descriptors(worker) <= limit);

    inside.assert_echoes(b"served all the while");
    drop(silent);
    let _ = RawClient::open(server.address());
    server.stop();
}
