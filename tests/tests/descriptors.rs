//! A worker that runs out of descriptors pauses accepting, says so, spins not, and resumes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::time::Duration;

use holdfast_tests::client::RawClient;
use holdfast_tests::herd::{Group, Herd, Role};
use holdfast_tests::holdfast::{Holdfast, Options};
use holdfast_tests::process;

/// USER_HZ: what /proc counts processor time in, on every architecture we run on.
const TICKS_PER_SECOND: u64 = 100;

#[test]
fn accepting_pauses_and_resumes() {
    let server = Holdfast::start(
        &Options::config("workers = 1\nlimits.max_connections = 100\ntimeouts.handshake = \"600s\"")
            .descriptor_limit(300),
    );
    let worker = server.worker_pids()[0];
    let mut inside = RawClient::open(server.address());
    let mut herd = Herd::of(&server);
    let silent = herd.add(Group::new(400, Role::Silent));
    herd.run_until("all are connected", |herd| {
        herd.stats(silent).upgrading + herd.stats(silent).ended() == 400
    });
    let _ = server.process().wait_for_line("accepting pauses");
    assert!(process::open_descriptors(worker) <= 300);

    let before = process::cpu_ticks(worker);
    let observed = Duration::from_secs(2);
    let end = std::time::Instant::now() + observed;
    while std::time::Instant::now() < end {
        herd.turn(Duration::from_millis(50));
    }
    let used = process::cpu_ticks(worker) - before;
    assert!(used < TICKS_PER_SECOND * observed.as_secs() / 2, "{used} ticks in {observed:?}: it spins");
    let mentions = server.process().lines().iter().filter(|line| line.contains("accepting pauses")).count();
    assert!(mentions == 1, "{mentions} log lines in two seconds");

    inside.send(&holdfast_tests::frame::masked(0x81, b"served all the while")).unwrap();
    assert_eq!(inside.frame().payload, b"served all the while");
    drop(herd);
    let _ = RawClient::open(server.address());
    server.stop();
}
