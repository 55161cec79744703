//! A snapshot of the supervisor as Prometheus text. Counts nothing and reads nothing: the loop fills the
//! snapshot, `holdfast_shared::metric` lists the names, `text` knows the format.

mod text;

use holdfast_shared::metric::{self, Metric};

use crate::api::{Snapshot, WorkerRow};
use text::{Exposition, Value};

/// Media type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every metric, in the order of [`metric::ALL`]. A value that could not be had is left out, never made up.
#[must_use]
pub fn render(snapshot: &Snapshot) -> String {
    let mut out = Exposition::default();
    connections(&mut out, snapshot);
    limits(&mut out, snapshot);
    restarts(&mut out, snapshot);
    health(&mut out, snapshot);
    processes(&mut out, snapshot);
    out.finish()
}

fn connections(out: &mut Exposition, snapshot: &Snapshot) {
    let totals = &snapshot.totals;
    per_worker(out, &metric::CONNECTIONS_CURRENT, snapshot, |row| row.connections);
    let mut family = out.family(&metric::CONNECTIONS);
    for row in &snapshot.workers {
        let slot = row.slot.to_string();
        family.sample(&[&slot, "accepted"], row.accepted_total);
        family.sample(&[&slot, "rejected"], row.rejected_total);
    }
    let mut family = out.family(&metric::CONNECTIONS_REJECTED);
    for (reason, count) in &totals.rejected_total {
        family.sample(&[reason], *count);
    }
    out.family(&metric::CONNECTION_DURATION).histogram(&snapshot.connection_duration);
    let mut family = out.family(&metric::CONNECTIONS_CLOSED);
    for (reason, count) in &totals.closed_total {
        family.sample(&[reason], *count);
    }
    let mut family = out.family(&metric::MESSAGES);
    family.sample(&["received"], totals.messages_received_total);
    family.sample(&["sent"], totals.messages_sent_total);
    let mut family = out.family(&metric::BYTES);
    family.sample(&["received"], totals.bytes_received_total);
    family.sample(&["sent"], totals.bytes_sent_total);
}

fn limits(out: &mut Exposition, snapshot: &Snapshot) {
    let limits = &snapshot.limits;
    let mut family = out.family(&metric::CONNECTIONS_LIMIT);
    family.sample(&["max"], limits.max_connections);
    family.sample(&["soft"], limits.soft_connections);
    family.sample(&["warning"], limits.warning_connections);
    family.sample(&["per_address"], limits.max_connections_per_address);
    family.sample(&["pending_handshakes"], limits.max_pending_handshakes);
    out.family(&metric::LEVEL).sample(&[], snapshot.totals.level as u64);
    out.family(&metric::WAITING_ROOM).sample(&[], snapshot.totals.waiting);
    let mut family = out.family(&metric::LEVEL_ENTRIES);
    for (level, count) in &snapshot.totals.level_entries_total {
        family.sample(&[level], *count);
    }
}

fn restarts(out: &mut Exposition, snapshot: &Snapshot) {
    let mut family = out.family(&metric::WORKER_RESTARTS);
    for row in &snapshot.workers {
        for (cause, count) in &row.restarts_total {
            family.sample(&[&row.slot.to_string(), cause], *count);
        }
    }
    out.family(&metric::CONNECTIONS_RESUMED).sample(&[], snapshot.totals.resumed_total);
    out.family(&metric::CONNECTIONS_LOST).sample(&[], snapshot.totals.lost_total);
    out.family(&metric::RESUME).histogram(&snapshot.resume);
    out.family(&metric::ADMISSION_WAIT).histogram(&snapshot.admission_wait);
    out.family(&metric::PING_RTT).histogram(&snapshot.ping_rtt);
}

fn health(out: &mut Exposition, snapshot: &Snapshot) {
    per_worker(out, &metric::EVENT_LOOP_LAG, snapshot, |row| row.loop_lag_seconds);
    per_worker(out, &metric::ACCEPT_QUEUE, snapshot, |row| row.accept_queue);
    if let Some(drops) = snapshot.listen_drops {
        out.family(&metric::LISTEN_DROPS).sample(&[], drops);
    }
    out.family(&metric::ACCEPT_PAUSES).sample(&[], snapshot.totals.accept_pauses_total);
    out.family(&metric::ANOMALIES).sample(&[], snapshot.totals.anomalies_total);
    out.family(&metric::LINK_DROPPED).sample(&[], snapshot.totals.link_messages_dropped_total);
    out.family(&metric::LINK_SKIPPED).sample(&[], snapshot.totals.link_messages_skipped_total);
    out.family(&metric::LOG_LINES_DROPPED).sample(&[], snapshot.totals.log_lines_dropped_total);
    per_worker(out, &metric::QUEUED_BYTES, snapshot, |row| row.queued_bytes);
}

fn processes(out: &mut Exposition, snapshot: &Snapshot) {
    per_process(out, &metric::OPEN_FDS, snapshot, |row| row.open_descriptors);
    per_process(out, &metric::MAX_FDS, snapshot, |row| row.max_descriptors);
    per_process(out, &metric::RESIDENT_MEMORY, snapshot, |row| row.resident_bytes);
    out.family(&metric::BUILD_INFO).sample(&[&snapshot.totals.version], 1);
}

fn per_worker<V: Into<Value>>(
    out: &mut Exposition,
    metric: &'static Metric,
    snapshot: &Snapshot,
    value: impl Fn(&WorkerRow) -> V,
) {
    let mut family = out.family(metric);
    for row in &snapshot.workers {
        family.sample(&[&row.slot.to_string()], value(row));
    }
}

/// Like [`per_worker`], for what a slot without a living worker does not have.
fn per_process(
    out: &mut Exposition,
    metric: &'static Metric,
    snapshot: &Snapshot,
    value: impl Fn(&WorkerRow) -> Option<u64>,
) {
    let mut family = out.family(metric);
    for row in &snapshot.workers {
        if let Some(value) = value(row) {
            family.sample(&[&row.slot.to_string()], value);
        }
    }
}

#[cfg(test)]
mod tests;
