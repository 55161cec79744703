//! Answers of the control socket as text for people. The words may change; programs use `--json`.

mod channels;
mod connections;
mod rules;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde_json::Value;

use super::{CtlCommand, human};
use crate::api::{
    ByReason, Change, ConfigEntry, DrainProgress, Health, LimitsView, RebalanceReport, ReloadReport, Report,
    RestartReport, Totals, UpgradeReport, UpgradeState, WorkerRow,
};
pub use channels::{channels as channel_list, history, presence, published};
use connections::{closing, connections, limits_changed};
use rules::{bans, explanation};

/// The body of the answer to `command` as text.
///
/// # Errors
/// The body is not the JSON it should be.
pub fn render(command: &CtlCommand, body: &str) -> serde_json::Result<String> {
    Ok(match command {
        CtlCommand::Totals => totals(&serde_json::from_str(body)?),
        CtlCommand::Workers => workers(&serde_json::from_str::<Vec<_>>(body)?),
        CtlCommand::Config => config(&serde_json::from_str::<Vec<_>>(body)?),
        CtlCommand::Connections(_) => connections(&serde_json::from_str::<Vec<_>>(body)?),
        CtlCommand::Explain(_) => explanation(&serde_json::from_str(body)?),
        CtlCommand::Ban(_) | CtlCommand::Unban(_) | CtlCommand::Bans => {
            bans(&serde_json::from_str::<Vec<_>>(body)?)
        }
        CtlCommand::Close(_) => closing(&serde_json::from_str(body)?),
        CtlCommand::Limits(order) if order.is_change() => limits_changed(&serde_json::from_str(body)?),
        CtlCommand::Limits(_) => limits(&serde_json::from_str(body)?),
        CtlCommand::Health => health(&serde_json::from_str(body)?),
        CtlCommand::Metrics => body.to_owned(),
        CtlCommand::Reload => reload(&serde_json::from_str(body)?),
        CtlCommand::Restart { .. } => restart(&serde_json::from_str(body)?),
        CtlCommand::Upgrade { .. } => upgrade(&serde_json::from_str(body)?),
        CtlCommand::Rebalance => rebalance(&serde_json::from_str(body)?),
        CtlCommand::Drain(_) | CtlCommand::Stop => report(&serde_json::from_str(body)?),
    })
}

fn totals(totals: &Totals) -> String {
    let workers = format!("{} of {} ready", totals.workers_ready, totals.workers);
    let silent: Vec<_> = totals.silent_workers.iter().map(u16::to_string).collect();
    let workers = match silent.as_slice() {
        [] => workers,
        silent => format!("{workers}; silent, with figures of their last report: {}", silent.join(", ")),
    };
    pairs([
        (
            "state",
            match &totals.drain {
                Some(drain) => format!("{}: {}", totals.state.name(), drain_progress(drain)),
                None => totals.state.name().to_owned(),
            },
        ),
        ("version", totals.version.clone()),
        ("uptime", human::seconds(totals.uptime_seconds)),
        (
            "connections",
            format!(
                "{} of {} ({}), level {}{}",
                human::count(totals.connections),
                human::count(totals.max_connections),
                human::percent(totals.utilization),
                totals.level.name(),
                match totals.level_cause.as_str() {
                    "" | "connections" => String::new(),
                    cause => format!(" for {cause}"),
                }
            ),
        ),
        ("pending handshakes", human::count(totals.pending_handshakes)),
        ("waiting for a place", human::count(totals.waiting)),
        ("workers", workers),
        ("accepted", human::count(totals.accepted_total)),
        ("rejected", by_reason(&totals.rejected_total)),
        ("closed", by_reason(&totals.closed_total)),
        ("messages", in_and_out(totals.messages_received_total, totals.messages_sent_total, human::count)),
        ("bytes", in_and_out(totals.bytes_received_total, totals.bytes_sent_total, human::bytes)),
        ("worker restarts", human::count(totals.restarts_total)),
        ("connections resumed", human::count(totals.resumed_total)),
        ("connections lost", human::count(totals.lost_total)),
        ("accept pauses", human::count(totals.accept_pauses_total)),
        ("anomalies", human::count(totals.anomalies_total)),
        ("link messages", dropped_messages(totals)),
        ("log lines dropped", human::count(totals.log_lines_dropped_total)),
    ])
}

fn dropped_messages(totals: &Totals) -> String {
    let (dropped, skipped) = (totals.link_messages_dropped_total, totals.link_messages_skipped_total);
    format!("{} dropped, {} skipped", human::count(dropped), human::count(skipped))
}

fn workers(rows: &[WorkerRow]) -> String {
    let header = [
        "SLOT",
        "STATE",
        "PID",
        "KEEPER",
        "INCARNATION",
        "WEIGHT",
        "CONNECTIONS",
        "ACCEPTED",
        "REJECTED",
        "RECEIVED",
        "SENT",
        "QUEUED",
        "LAG",
        "ACCEPT QUEUE",
        "DESCRIPTORS",
        "MEMORY",
        "UPTIME",
        "VERSION",
        "LAST DEATH",
    ];
    let mut table = table(header, rows.iter().map(worker));
    for index in (2..header.len() - 2).chain([0]) {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

fn worker(row: &WorkerRow) -> [String; 19] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    [
        row.slot.to_string(),
        if row.silent { format!("{}, silent", row.state) } else { row.state.clone() },
        or_dash(row.pid.map(|pid| pid.to_string())),
        or_dash(row.keeper_pid.map(|pid| pid.to_string())),
        row.incarnation.to_string(),
        or_dash(row.weight.map(|weight| weight.to_string())),
        human::count(row.connections),
        human::count(row.accepted_total),
        human::count(row.rejected_total),
        human::count(row.messages_received_total),
        human::count(row.messages_sent_total),
        human::bytes(row.queued_bytes),
        human::seconds(row.loop_lag_seconds),
        format!("{} of {}", human::count(row.accept_queue), human::count(row.accept_queue_max)),
        format!(
            "{} of {}",
            or_dash(row.open_descriptors.map(human::count)),
            or_dash(row.max_descriptors.map(human::count))
        ),
        or_dash(row.resident_bytes.map(human::bytes)),
        human::seconds(row.uptime_seconds),
        or_dash(Some(row.version.clone()).filter(|version| !version.is_empty())),
        or_dash(row.last_death.clone()),
    ]
}

fn config(entries: &[ConfigEntry]) -> String {
    let rows = entries.iter().map(|entry| [entry.key.clone(), plain(&entry.value), entry.source.clone()]);
    table(["KEY", "VALUE", "SOURCE"], rows).trim_fmt()
}

fn limits(limits: &LimitsView) -> String {
    let unlimited = |value: u64| if value == 0 { "no limit".to_owned() } else { human::count(value) };
    pairs([
        ("level", limits.level.name().to_owned()),
        ("max_connections", human::count(limits.max_connections)),
        ("soft_connections", human::count(limits.soft_connections)),
        ("warning_connections", human::count(limits.warning_connections)),
        ("max_connections_per_address", unlimited(limits.max_connections_per_address)),
        ("max_pending_handshakes", human::count(limits.max_pending_handshakes)),
        ("max_message_size", human::bytes(limits.max_message_size)),
        ("messages_per_second", unlimited(limits.messages_per_second)),
        ("max_queued_output", human::bytes(limits.max_queued_output)),
        ("max_buffered_total per worker", human::bytes(limits.max_buffered_total)),
        ("waiting_room", human::count(limits.waiting_room)),
        ("shed", format!("{}, {} a second", limits.shed, human::count(limits.shed_rate))),
        ("descriptors per worker", human::count(limits.descriptors_per_worker)),
    ])
}

fn health(health: &Health) -> String {
    pairs([
        ("status", health.status.name().to_owned()),
        (
            "connections",
            format!("{} of {}", human::count(health.connections), human::count(health.max_connections)),
        ),
        ("level", health.level.name().to_owned()),
        ("workers", format!("{} of {} ready", health.workers_ready, health.workers)),
    ])
}

fn reload(report: &ReloadReport) -> String {
    if report.changes.is_empty() {
        return "reloaded; nothing has changed".to_owned();
    }
    changes(&report.changes)
}

fn changes(changes: &[Change]) -> String {
    let row =
        |change: &Change| [change.key.clone(), plain(&change.old), plain(&change.new), change.effect.clone()];
    table(["KEY", "OLD", "NEW", "EFFECT"], changes.iter().map(row)).trim_fmt()
}

fn restart(report: &RestartReport) -> String {
    let rows = report.slots.iter().map(|done| {
        let pause = human::seconds(done.pause_ms / 1000.0);
        [done.slot.to_string(), human::count(done.kept.into()), human::count(done.lost.into()), pause]
    });
    table(["SLOT", "KEPT", "LOST", "PAUSE"], rows).trim_fmt()
}

/// How far an upgrade has come, or came.
pub fn upgrade(report: &UpgradeReport) -> String {
    if report.state == UpgradeState::None {
        return "there was no upgrade since the service was started".to_owned();
    }
    let rows = report.slots.iter().map(|slot| {
        let pause = human::seconds(slot.result.pause_ms / 1000.0);
        let result = [human::count(slot.result.kept.into()), human::count(slot.result.lost.into()), pause];
        let [kept, lost, pause] = if slot.done { result } else { ["-", "-", "-"].map(str::to_owned) };
        [slot.result.slot.to_string(), slot.version.clone(), kept, lost, pause]
    });
    let to = if report.to.is_empty() { "another" } else { &report.to };
    let summary = format!(
        "{} -> {to}: {} after {}; {} connections kept, {} lost, longest pause {}",
        report.from,
        report.state.name(),
        human::seconds(report.seconds),
        human::count(report.kept),
        human::count(report.lost),
        human::seconds(report.longest_pause_ms / 1000.0)
    );
    let reason = report.reason.iter().map(|reason| format!("\n{reason}")).collect::<String>();
    format!("{}\n{summary}{reason}", table(["SLOT", "VERSION", "KEPT", "LOST", "PAUSE"], rows).trim_fmt())
}

fn rebalance(report: &RebalanceReport) -> String {
    let rows = report.slots.iter().map(|slot| [slot.slot.to_string(), human::count(slot.connections)]);
    let slots = table(["SLOT", "CONNECTIONS"], rows).trim_fmt();
    format!("{} connections moved\n{slots}", human::count(report.moved))
}

fn report(report: &Report) -> String {
    let open = format!("{} connections open", human::count(report.connections));
    match &report.drain {
        Some(drain) => format!("{} ({open}; {})", report.message, drain_progress(drain)),
        None => format!("{} ({open})", report.message),
    }
}

fn drain_progress(drain: &DrainProgress) -> String {
    let time = human::seconds(drain.seconds_left);
    format!(
        "{} told, {} to be told, {}",
        human::count(drain.told),
        human::count(drain.remaining),
        if drain.paused { format!("paused with {time} left") } else { format!("the last in {time}") }
    )
}

/// The sum and, in brackets, what it is made of.
fn by_reason(counts: &ByReason) -> String {
    let sum = counts.values().copied().fold(0, u64::saturating_add);
    let parts: Vec<_> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{reason} {}", human::count(*count)))
        .collect();
    match parts.as_slice() {
        [] => human::count(sum),
        parts => format!("{} ({})", human::count(sum), parts.join(", ")),
    }
}

fn in_and_out(received: u64, sent: u64, unit: impl Fn(u64) -> String) -> String {
    format!("{} received, {} sent", unit(received), unit(sent))
}

/// A JSON value without the quotes of a string.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn pairs<const N: usize>(rows: [(&str, String); N]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for (name, value) in rows {
        table.add_row([name.to_owned(), value]);
    }
    flush_left(table).trim_fmt()
}

fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    flush_left(table)
}

/// Without borders a padding on the left would only indent the whole table.
fn flush_left(mut table: Table) -> Table {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}
