//! What is asked and answered over the control socket: the vocabulary of the supervisor's loop, of the HTTP
//! side and of `holdfast ctl`. Field names are what scripts rely on: add, never rename.
//! Plain data; nothing here talks to anyone. [`request`] carries it to the loop.
//!
//! Structs that are read back take defaults for missing fields, so that `ctl` and a supervisor of another
//! version understand each other.

mod config;
mod connections;
mod drain;
pub mod histogram;
mod limits;
mod query;
mod rebalance;
pub mod request;
mod restart;
mod rules;
mod upgrade;

use std::collections::BTreeMap;

use holdfast_shared::level::Level;
use holdfast_shared::reason::{CloseReason, Rejection};
use serde::{Deserialize, Serialize};

pub use config::{Change, ConfigEntry, ReloadReport};
pub use connections::{CloseOrder, CloseReport, ConnectionRow, ConnectionsQuery, Sort, Whom};
pub use drain::{DrainOrder, Step};
pub use limits::{LimitsOrder, LimitsReport, ShedPlan};
pub use query::Query;
pub use rebalance::{RebalanceReport, RebalancedSlot};
pub use request::{Command, Reply, Request};
pub use restart::{RestartReport, RestartedSlot};
pub use rules::{BanRow, Explanation, RuleRow};
pub use upgrade::{UpgradeReport, UpgradeState, UpgradedSlot};

use histogram::Histogram;

/// A count for each reason. Every known reason is present from the start, so that a series begins at 0 and
/// not at its first event; reasons are strings here because a reader may be older than the writer.
pub type ByReason = BTreeMap<String, u64>;

/// Refusals by reason, from counters indexed by [`Rejection::index`].
#[must_use]
pub fn rejections(counts: &[u64]) -> ByReason {
    let count = |reason: &Rejection| counts.get(reason.index()).copied().unwrap_or(0);
    Rejection::ALL.iter().map(|reason| (reason.name().to_owned(), count(reason))).collect()
}

/// Ended connections by reason, from counters indexed by [`CloseReason::index`].
#[must_use]
pub fn closes(counts: &[u64]) -> ByReason {
    let count = |reason: &CloseReason| counts.get(reason.index()).copied().unwrap_or(0);
    CloseReason::ALL.iter().map(|reason| (reason.name().to_owned(), count(reason))).collect()
}

/// What the loop answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To `Totals`; boxed because it is much larger than the rest.
    Totals(Box<Totals>),
    /// To `Workers`: every slot, in order, silent ones included.
    Workers(Vec<WorkerRow>),
    /// To `Config`: every key, in the order of the documentation.
    Config(Vec<ConfigEntry>),
    /// To `Limits`, when they are asked for.
    Limits(LimitsView),
    /// To `Limits`, when they have changed.
    LimitsChanged(LimitsReport),
    /// To `Connections`.
    Connections(Vec<ConnectionRow>),
    /// To `Explain`.
    Explanation(Box<Explanation>),
    /// To `Bans`, `Ban` and `Unban`: all there are.
    Bans(Vec<BanRow>),
    /// To `Close`, when the first have been told.
    Closing(CloseReport),
    /// To `Health`.
    Health(Health),
    /// To `Metrics`; boxed for the same reason.
    Metrics(Box<Snapshot>),
    /// To `Reload`, when the new config is in force.
    Reload(ReloadReport),
    /// To `Restart`, when all slots have new workers.
    Restart(RestartReport),
    /// To `Upgrade`, when the new program is about to take over.
    UpgradeBegun(Box<UpgradeReport>),
    /// To who asks how far an upgrade is.
    Upgrade(Box<UpgradeReport>),
    /// To `Rebalance`, when slots are even.
    Rebalance(RebalanceReport),
    /// To `Drain` and `Stop`, as soon as they have begun.
    Done(Report),
}

/// A request that was not carried out; nothing has changed. The body is `{"error": ...}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// The HTTP status, 4xx or 5xx.
    #[serde(skip)]
    pub status: u16,
    /// What went wrong, where, and what to do; several lines where there are several errors.
    pub error: String,
}

impl Failure {
    /// A failure with an HTTP `status`.
    pub fn new(status: u16, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }
}

/// What the service is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Admitting clients, limits permitting.
    #[default]
    Running,
    /// Admitting nobody; open connections are being closed or waited for.
    Draining,
}

impl ServiceState {
    /// The word users see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Draining => "draining",
        }
    }
}

/// The whole server in figures, all of one instant.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Admitted and not yet closed.
    pub connections: u64,
    /// The cluster-wide cap.
    pub max_connections: u64,
    /// `connections / max_connections`, 0 to 1.
    pub utilization: f64,
    /// How full the server is.
    pub level: Level,
    /// What makes it so: connections, memory, memory_stalls, descriptors or simulation.
    pub level_cause: String,
    /// How often each level was entered.
    pub level_entries_total: BTreeMap<String, u64>,
    /// What the service is doing.
    pub state: ServiceState,
    /// How far the drain has come; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainProgress>,
    /// Slots wanted.
    pub workers: u64,
    /// Slots whose worker has said Hello and lives.
    pub workers_ready: u64,
    /// Slots whose worker did not answer in time: their figures here are those of their last report.
    pub silent_workers: Vec<u16>,
    /// Connections admitted.
    pub accepted_total: u64,
    /// Connection attempts refused, by reason.
    pub rejected_total: ByReason,
    /// Connections ended, by reason.
    pub closed_total: ByReason,
    /// Workers replaced.
    pub restarts_total: u64,
    /// Connections taken over by a new worker.
    pub resumed_total: u64,
    /// Connections closed because their worker died in the middle of their data.
    pub lost_total: u64,
    /// Messages from workers that contradicted the supervisor's count; any is a defect.
    pub anomalies_total: u64,
    /// Times a worker had to pause accepting because descriptors ran out.
    pub accept_pauses_total: u64,
    /// Reports of workers that were dropped since the supervisor did not read.
    pub link_messages_dropped_total: u64,
    /// Messages of the supervisor of a kind that a worker does not know.
    pub link_messages_skipped_total: u64,
    /// Lines of the supervisor's log that nobody took.
    pub log_lines_dropped_total: u64,
    /// Data messages from clients.
    pub messages_received_total: u64,
    /// Data messages to clients.
    pub messages_sent_total: u64,
    /// Bytes from clients, framing included.
    pub bytes_received_total: u64,
    /// Bytes to clients, framing included.
    pub bytes_sent_total: u64,
    /// Clients whose handshake is not finished.
    pub pending_handshakes: u64,
    /// Those of them that wait for a place, since the cap is reached.
    pub waiting: u64,
    /// Seconds since the supervisor started.
    pub uptime_seconds: f64,
    /// The supervisor's version.
    pub version: String,
}

/// One slot and its worker. Values that need a living process are absent without one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerRow {
    /// The slot.
    pub slot: u16,
    /// The worker's process.
    pub pid: Option<u32>,
    /// Its keeper's process.
    pub keeper_pid: Option<u32>,
    /// How many workers the slot has had, this one included.
    pub incarnation: u32,
    /// The slot's state, such as starting, ready, wedged, retiring, draining, backing_off.
    pub state: String,
    /// The part of new clients it is sent, in thousandths; absent if the kernel's hash decides.
    pub weight: Option<u16>,
    /// The worker did not answer in time: its figures are those of its last report.
    pub silent: bool,
    /// How the last worker of this slot ended, if one has.
    pub last_death: Option<String>,
    /// Workers replaced in this slot, by the cause of the predecessor's end.
    pub restarts_total: BTreeMap<String, u64>,
    /// Open connections.
    pub connections: u64,
    /// Connections admitted.
    pub accepted_total: u64,
    /// Connection attempts refused.
    pub rejected_total: u64,
    /// Data messages from clients.
    pub messages_received_total: u64,
    /// Data messages to clients.
    pub messages_sent_total: u64,
    /// Output waiting for clients to read it.
    pub queued_bytes: u64,
    /// Longest recent turn of the event loop.
    pub loop_lag_seconds: f64,
    /// Clients the kernel has queued on the slot's listeners.
    pub accept_queue: u64,
    /// How many it may queue.
    pub accept_queue_max: u64,
    /// Open descriptors of the worker.
    pub open_descriptors: Option<u64>,
    /// Most descriptors the worker may open.
    pub max_descriptors: Option<u64>,
    /// Resident memory of the worker.
    pub resident_bytes: Option<u64>,
    /// Seconds since the worker started.
    pub uptime_seconds: f64,
    /// The worker's version.
    pub version: String,
}

/// The limits in force.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsView {
    /// The cluster-wide cap.
    pub max_connections: u64,
    /// Degraded above.
    pub soft_connections: u64,
    /// Warning above.
    pub warning_connections: u64,
    /// Connections one address may hold; 0 = no limit.
    pub max_connections_per_address: u64,
    /// Unfinished handshakes.
    pub max_pending_handshakes: u64,
    /// Longest message, in bytes.
    pub max_message_size: u64,
    /// Messages of one connection in a second; 0 = no limit.
    pub messages_per_second: u64,
    /// Unread output per connection, in bytes.
    pub max_queued_output: u64,
    /// Queued output and half messages of one worker, in bytes.
    pub max_buffered_total: u64,
    /// Clients that may wait for a place when the cap is reached.
    pub waiting_room: u64,
    /// Who is closed when the cap is lowered below the count: none or idlest.
    pub shed: String,
    /// Closes in a second, of those shed and of those an operator names.
    pub shed_rate: u64,
    /// How full the server is.
    pub level: Level,
    /// Most descriptors one worker may open.
    pub descriptors_per_worker: u64,
}

/// Whether a load balancer should send clients here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Yes: 200.
    #[default]
    Ok,
    /// No, it is shutting down: 503.
    Draining,
    /// Not now, every slot is taken: 503.
    Full,
}

impl HealthStatus {
    /// The word users see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Draining => "draining",
            Self::Full => "full",
        }
    }
}

/// The answer to a health check.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Whether to send clients here.
    pub status: HealthStatus,
    /// Admitted and not yet closed.
    pub connections: u64,
    /// The cluster-wide cap.
    pub max_connections: u64,
    /// How full the server is.
    pub level: Level,
    /// Slots wanted.
    pub workers: u64,
    /// Slots whose worker has said Hello and lives.
    pub workers_ready: u64,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// One sentence for people.
    pub message: String,
    /// Connections open when it began.
    pub connections: u64,
    /// How far the drain has come, if it was about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainProgress>,
}

/// How far a drain has come.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DrainProgress {
    /// Connections that were told to go, those that have gone among them.
    pub told: u64,
    /// Connections that are still to be told.
    pub remaining: u64,
    /// Nobody is told until it is resumed.
    pub paused: bool,
    /// What is left of its time, whether or not it is paused.
    pub seconds_left: f64,
    /// Seconds until the last one is told; absent while nobody knows, since it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
}

/// Everything `/metrics` shows, all of one instant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// The whole server.
    pub totals: Totals,
    /// Every slot.
    pub workers: Vec<WorkerRow>,
    /// The limits in force.
    pub limits: LimitsView,
    /// How long connections were open, in seconds.
    pub connection_duration: Histogram,
    /// Time from a worker's end until its successor served, in seconds.
    pub resume: Histogram,
    /// Time upgrade requests waited for a verdict, in seconds.
    pub admission_wait: Histogram,
    /// Time from a ping to its pong, in seconds.
    pub ping_rtt: Histogram,
    /// TcpExt ListenDrops of /proc/net/netstat, if it could be read.
    pub listen_drops: Option<u64>,
}
