//! Single connections, and what becomes of them, as text for people.

use super::super::human;
use super::{changes, table};
use crate::api::{CloseReport, ConnectionRow, LimitsReport};

/// A list of connections.
pub(super) fn connections(rows: &[ConnectionRow]) -> String {
    let row = |row: &ConnectionRow| {
        [
            row.id.clone(),
            row.slot.to_string(),
            row.address.clone(),
            human::seconds(row.age_seconds),
            human::seconds(row.idle_seconds),
            human::count(row.messages_received),
            human::bytes(row.queued_bytes),
            row.phase.clone(),
        ]
    };
    table(["ID", "SLOT", "ADDRESS", "AGE", "IDLE", "MESSAGES", "QUEUED", "PHASE"], rows.iter().map(row))
        .trim_fmt()
}

/// How far closing has come.
pub(super) fn closing(report: &CloseReport) -> String {
    let told =
        format!("{} of {} connections told to go", human::count(report.told), human::count(report.found));
    if report.remaining == 0 {
        return told;
    }
    format!("{told}, the last of the others in {}", human::seconds(report.seconds_left))
}

/// What became of a change of limits, or would.
pub(super) fn limits_changed(report: &LimitsReport) -> String {
    let mut lines = vec![match (report.changes.is_empty(), report.dry_run) {
        (true, _) => "no limit changes".to_owned(),
        (false, false) => changes(&report.changes),
        (false, true) => format!("would change:\n{}", changes(&report.changes)),
    }];
    lines.push(format!("level {}", report.level.name()));
    if let Some(shed) = &report.shed {
        let verb = if report.dry_run { "would be closed" } else { "are closed" };
        lines.push(format!(
            "{} connections {verb}, the idlest first, {} a second, the last after {}",
            human::count(shed.connections),
            human::count(shed.rate.into()),
            human::seconds(shed.seconds)
        ));
        if !shed.first.is_empty() {
            lines.push(connections(&shed.first));
        }
    }
    lines.join("\n")
}
