//! The exposition as a whole, against a golden file; the format's corners are tested in [`super::text`].

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_shared::counters::Counters;
use holdfast_shared::level::Level;
use holdfast_shared::reason::{CloseReason, Rejection};

use super::*;
use crate::api::histogram::Histogram;
use crate::api::{LimitsView, Totals, closes, rejections};

/// To accept a wanted change: `HOLDFAST_BLESS=1 cargo test -p holdfast metrics`, then read the difference.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/operator/metrics/golden.txt");

fn row(slot: u16, alive: bool) -> WorkerRow {
    let wide = u64::from(slot);
    WorkerRow {
        slot,
        connections: 10 + wide,
        accepted_total: 100 + wide,
        rejected_total: 5,
        restarts_total: BTreeMap::from([("SIGKILL".to_owned(), 2), ("status 1".to_owned(), wide)]),
        loop_lag_seconds: 0.00125,
        accept_queue: 3,
        queued_bytes: 4096,
        open_descriptors: alive.then_some(42),
        max_descriptors: alive.then_some(1024),
        resident_bytes: alive.then_some(8_388_608),
        ..WorkerRow::default()
    }
}

fn snapshot() -> Snapshot {
    let mut counters = Counters::default();
    counters.reject(Rejection::MaxConnections);
    for seconds in [1, 30, 4000] {
        counters.close(CloseReason::Client, Duration::from_secs(seconds));
    }
    counters.admission(Duration::from_micros(90));
    counters.admission(Duration::from_millis(2));
    let mut resume = Histogram::new(&metric::RESUME_BUCKETS);
    resume.observe(0.03);
    Snapshot {
        totals: Totals {
            level: Level::Warning,
            rejected_total: rejections(&counters.rejected),
            closed_total: closes(&counters.closed),
            messages_received_total: 1000,
            messages_sent_total: 999,
            bytes_received_total: 64_000,
            bytes_sent_total: 63_000,
            level_entries_total: BTreeMap::from([("warning".to_owned(), 3), ("full".to_owned(), 1)]),
            resumed_total: 20,
            lost_total: 1,
            link_messages_dropped_total: 2,
            link_messages_skipped_total: 3,
            log_lines_dropped_total: 4,
            version: "1.2.3".to_owned(),
            ..Totals::default()
        },
        workers: vec![row(0, true), row(1, false)],
        limits: LimitsView {
            max_connections: 500,
            soft_connections: 400,
            warning_connections: 350,
            max_pending_handshakes: 10_000,
            ..LimitsView::default()
        },
        connection_duration: Histogram::durations(&counters.duration),
        resume,
        admission_wait: Histogram::admission_waits(&counters.admission_wait),
        ping_rtt: Histogram::ping_rtts(&counters.ping_rtt),
        listen_drops: Some(7),
    }
}

#[test]
fn the_exposition_is_as_in_the_golden_file() {
    let text = render(&snapshot());
    if std::env::var_os("HOLDFAST_BLESS").is_some() {
        std::fs::write(GOLDEN, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(GOLDEN).unwrap());
}

#[test]
fn every_listed_metric_is_written_once_and_in_order() {
    let text = render(&snapshot());
    let written: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let listed: Vec<_> =
        metric::ALL.iter().map(|metric| format!("{} {}", metric.name, metric.kind)).collect();
    assert_eq!(written, listed);
}

#[test]
fn what_is_unknown_is_left_out() {
    let text = render(&Snapshot { listen_drops: None, workers: vec![row(1, false)], ..snapshot() });
    assert!(!text.contains("holdfast_listen_drops_total"));
    assert!(!text.contains("process_open_fds"));
    assert!(text.contains("websocket_connections_current{worker=\"1\"} 11\n"));
}
