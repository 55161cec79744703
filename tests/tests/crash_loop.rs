//! A worker that dies as soon as it is started must not be restarted at once, for ever.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::time::Duration;

use holdfast_tests::client::RawClient;
use holdfast_tests::holdfast::{Holdfast, Options, Starting, kill_slot, pid_of};
use nix::sys::signal::{Signal, kill};

/// How the keeper and the supervisor say that there is a pause before the next start.
const PAUSE: &str = "the next one comes in ";

#[test]
fn workers_that_die_again_and_again_come_back_after_growing_pauses() {
    // Mistake 11: fork at once, for ever.
    let server = Holdfast::with("workers = 1");
    let mut client = RawClient::open(server.address());
    for deaths in 0..7 {
        let workers = server.wait_for_workers("the next worker", |workers| workers[0].0["pid"].is_u64());
        kill(pid_of(&workers[0], "pid"), Signal::SIGKILL).unwrap();
        server.wait_until("its death is known", |totals| totals.number("restarts_total") == deaths + 1);
    }
    let pauses: Vec<Duration> =
        server.process().wait_for_lines(PAUSE, 5).iter().map(|line| pause(line)).collect();
    assert!(pauses.is_sorted() && pauses[4] >= 4 * pauses[0], "the pauses hardly grow: {pauses:?}");
    client.assert_echoes(b"kept through seven workers");
    server.stop();
}

#[test]
fn slots_that_die_again_and_again_come_back_after_growing_pauses() {
    let server = Holdfast::with("workers = 1");
    let mut last = 0;
    for _ in 0..6 {
        let workers = server.wait_for_workers("the next keeper", |workers| {
            let worker = &workers[0].0;
            worker["pid"].is_u64() && worker["keeper_pid"].as_u64().is_some_and(|pid| pid != last)
        });
        last = workers[0].number("keeper_pid");
        kill_slot(&workers[0]);
    }
    let lines = server.process().wait_for_lines("keeper died", 6);
    let pauses: Vec<Duration> = lines
        .iter()
        .filter(|line| line.contains(PAUSE))
        .map(|line| pause(line))
        .filter(|pause| !pause.is_zero())
        .collect();
    assert!(
        pauses.is_sorted() && pauses.len() == 4 && pauses[3] > 2 * pauses[0],
        "the pauses hardly grow: {pauses:?}"
    );
    server.wait_until("the slot is back", |totals| totals.number("workers_ready") == 1);
    let _ = RawClient::open(server.address());
    server.stop();
}

#[test]
fn a_start_whose_workers_all_die_is_given_up_with_the_reason() {
    let starting = Starting::new(&Options::config("workers = 2").environment("HOLDFAST_TEST_CRASH", "start"));
    let (status, log) = starting.wait_for_exit();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("could not start") && !log.contains("ready listen="), "{log}");
    let deaths = log.lines().filter(|line| line.contains("died of SIGABRT")).count();
    assert!((1..=10).contains(&deaths), "{deaths} workers were spent on it: {log}");
    assert_eq!(starting.processes(), [], "{log}");
}

/// The pause a log line ends with, such as "in 150ms" or "in 1.5s".
fn pause(line: &str) -> Duration {
    let (_, pause) = line.rsplit_once(' ').unwrap();
    duration(pause).unwrap_or_else(|| panic!("no pause in {line:?}"))
}

fn duration(word: &str) -> Option<Duration> {
    if word.ends_with("ns") {
        return Some(Duration::ZERO);
    }
    if let Some(milliseconds) = word.strip_suffix("ms") {
        return milliseconds.parse().ok().map(|value: f64| Duration::from_secs_f64(value / 1000.0));
    }
    word.strip_suffix('s')?.parse().ok().map(Duration::from_secs_f64)
}
