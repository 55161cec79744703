//! Every Prometheus metric of Holdfast: name, type, labels, help and buckets, in one place.
//! Owns no values: who counts what is elsewhere, and `supervisor/src/operator/metrics` writes the text.
//!
//! To add one: add it here (it joins [`ALL`] by itself), give it a source in `control::api::Snapshot`, write
//! it in `metrics::render`; a test there fails as long as a listed metric is not written. Names are never
//! changed.

use std::fmt;

/// What a value means over time, in Prometheus' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows, whatever dies.
    Counter,
    /// A value of now.
    Gauge,
    /// Observations counted in cumulative buckets.
    Histogram,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// One metric family.
#[derive(Debug, PartialEq)]
pub struct Metric {
    /// The name dashboards rely on.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The labels of every sample, in the order in which they are written.
    pub labels: &'static [&'static str],
    /// One sentence for people.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: Metric =
            Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)+

        /// All of them, in the order in which they are written.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    CONNECTIONS_CURRENT: Gauge "websocket_connections_current" ["worker"]
        "Open connections.";
    CONNECTIONS: Counter "websocket_connections_total" ["worker", "status"]
        "Connection attempts by outcome: accepted or rejected.";
    CONNECTIONS_REJECTED: Counter "websocket_connections_rejected_total" ["reason"]
        "Refused connection attempts by reason.";
    CONNECTION_DURATION: Histogram "websocket_connection_duration_seconds" []
        "How long connections were open, observed when they close.";
    CONNECTIONS_CLOSED: Counter "websocket_connections_closed_total" ["reason"]
        "Ended connections by reason.";
    MESSAGES: Counter "websocket_messages_total" ["direction"]
        "WebSocket data messages, received or sent.";
    BYTES: Counter "websocket_bytes_total" ["direction"]
        "Bytes read from and written to clients.";
    CONNECTIONS_LIMIT: Gauge "websocket_connections_limit" ["limit"]
        "The connection limits in force; 0 is no limit.";
    LEVEL: Gauge "holdfast_level" []
        "How full the server is: 0 normal, 1 warning, 2 degraded, 3 full.";
    WAITING_ROOM: Gauge "holdfast_waiting_room" []
        "Clients that wait for a place, since the cap is reached.";
    LEVEL_ENTRIES: Counter "holdfast_level_entries_total" ["level"]
        "How often each level was entered.";
    WORKER_RESTARTS: Counter "holdfast_worker_restarts_total" ["worker", "cause"]
        "Workers replaced, by the cause of the predecessor's end.";
    CONNECTIONS_RESUMED: Counter "holdfast_connections_resumed_total" []
        "Connections that a new worker took over from its predecessor.";
    CONNECTIONS_LOST: Counter "holdfast_connections_lost_total" []
        "Connections closed because their worker died in the middle of their data.";
    RESUME: Histogram "holdfast_resume_seconds" []
        "Time from a worker's end until its successor serves its connections.";
    ADMISSION_WAIT: Histogram "holdfast_admission_wait_seconds" []
        "Time a valid upgrade request waited for the verdict on it.";
    PING_RTT: Histogram "holdfast_ping_rtt_seconds" []
        "Time from a ping to its pong.";
    EVENT_LOOP_LAG: Gauge "holdfast_event_loop_lag_seconds" ["worker"]
        "Longest recent turn of the worker's event loop.";
    ACCEPT_QUEUE: Gauge "holdfast_accept_queue" ["worker"]
        "Clients the kernel has queued for the worker.";
    LISTEN_DROPS: Counter "holdfast_listen_drops_total" []
        "Connection attempts the kernel dropped at listeners of this network namespace (TcpExt ListenDrops).";
    ACCEPT_PAUSES: Counter "holdfast_accept_pauses_total" []
        "Times a worker paused accepting because it had run out of descriptors.";
    ANOMALIES: Counter "holdfast_anomalies_total" []
        "Messages from workers that contradicted the supervisor's count; any is a defect.";
    LINK_DROPPED: Counter "holdfast_link_messages_dropped_total" []
        "Reports of workers that were dropped since the supervisor did not read its links.";
    LINK_SKIPPED: Counter "holdfast_link_messages_skipped_total" []
        "Messages of the supervisor of a kind that a worker's program does not know.";
    LOG_LINES_DROPPED: Counter "holdfast_log_lines_dropped_total" []
        "Lines of the supervisor's log that nobody took.";
    QUEUED_BYTES: Gauge "holdfast_queued_bytes" ["worker"]
        "Output waiting for clients to read it.";
    OPEN_FDS: Gauge "process_open_fds" ["worker"]
        "Open file descriptors.";
    MAX_FDS: Gauge "process_max_fds" ["worker"]
        "Most file descriptors the process may open.";
    RESIDENT_MEMORY: Gauge "process_resident_memory_bytes" ["worker"]
        "Resident memory.";
    BUILD_INFO: Gauge "holdfast_build_info" ["version"]
        "Always 1; the version is in the label.";
}

/// Upper bounds of [`RESUME`], in seconds. Those of the other histograms are in [`crate::counters`], with the
/// counts.
pub const RESUME_BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The rules of Prometheus' linter that depend on the list alone.
    #[test]
    fn names_follow_the_conventions() {
        let mut seen = HashSet::new();
        for metric in ALL {
            let Metric { name, kind, labels, help } = metric;
            assert!(seen.insert(name), "{name} twice");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(
                !name.ends_with("_count") && !name.ends_with("_sum") && !name.ends_with("_bucket"),
                "{name}"
            );
            assert!(*kind != Kind::Histogram || name.ends_with("_seconds"), "{name} has no base unit");
            assert!(help.ends_with('.') && !labels.contains(&"le"), "{name}");
        }
    }

    #[test]
    fn buckets_ascend() {
        assert!(RESUME_BUCKETS.is_sorted_by(|a, b| a < b));
    }
}
