//! A short run of the chaos test, another one each time; `holdfast-chaos` runs it for as long as one likes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::time::Duration;

use holdfast_tests::chaos::{Plan, run};

#[test]
fn nothing_is_lost_that_need_not_be() {
    let seed = fastrand::u64(..=u64::from(u32::MAX));
    eprintln!("seed {seed}");
    let plan = Plan {
        program: None,
        next: env!("CARGO_BIN_EXE_holdfast-next").into(),
        seed,
        duration: Duration::from_secs(20),
        clients: 300,
        workers: 3,
    };
    let summary = run(&plan);
    eprintln!("{summary}");
    assert!(summary.steps() > 0 && summary.echoes() > 0, "{summary}");
}
