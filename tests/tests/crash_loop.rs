//! A worker that dies as soon as it is started must not be restarted at once, for ever.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::time::Duration;

use holdfast_tests::holdfast::{Options, Starting};

#[test]
fn restarts_of_a_worker_that_dies_at_start_back_off() {
    // Mistake 11: fork at once, for ever.
    let starting = Starting::new(&Options::config("workers = 1").environment("HOLDFAST_TEST_CRASH", "start"));
    let pauses: Vec<Duration> = starting
        .process()
        .wait_for_lines("the next one comes in ", 5)
        .iter()
        .map(|line| pause(line))
        .collect();
    assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]), "the pauses do not grow: {pauses:?}");
    assert!(pauses[4] >= 4 * pauses[0].max(Duration::from_millis(1)), "the pauses hardly grow: {pauses:?}");
    assert!(
        !starting.process().lines().iter().any(|line| line.contains("ready listen=")),
        "ready without a worker"
    );
}

/// The pause a log line ends with, such as "in 150ms" or "in 1.5s".
fn pause(line: &str) -> Duration {
    let (_, pause) = line.rsplit_once(' ').unwrap();
    duration(pause).unwrap_or_else(|| panic!("no pause in {line:?}"))
}

fn duration(word: &str) -> Option<Duration> {
    if let Some(milliseconds) = word.strip_suffix("ms") {
        return milliseconds.parse().ok().map(|value: f64| Duration::from_secs_f64(value / 1000.0));
    }
    word.strip_suffix('s')?.parse().ok().map(Duration::from_secs_f64)
}
