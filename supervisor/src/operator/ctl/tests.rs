//! What people and scripts see, without a server; `control::tests` has the exchange with a real one.

use std::os::unix::net::UnixListener;

use super::*;

fn response(status: u16, body: &str) -> Response {
    Response { status, body: body.to_owned() }
}

fn failure(error: &str) -> Verdict {
    Verdict::Failure(error.to_owned())
}

#[test]
fn failures_are_told_from_answers() {
    assert_eq!(judge(&CtlCommand::Totals, &response(200, "{}")), Verdict::Answer);
    assert_eq!(judge(&CtlCommand::Totals, &response(503, r#"{"error":"busy"}"#)), failure("busy"));
    assert_eq!(judge(&CtlCommand::Reload, &response(422, r#"{"error":"a\nb"}"#)), failure("a\nb"));
    assert_eq!(judge(&CtlCommand::Totals, &response(431, "")), failure("the supervisor answered 431"));
}

#[test]
fn an_unhealthy_answer_is_an_answer_and_a_busy_supervisor_is_not() {
    let draining = response(503, r#"{"status":"draining","connections":3}"#);
    assert_eq!(judge(&CtlCommand::Health, &draining), Verdict::Health(HealthStatus::Draining));
    assert_eq!(judge(&CtlCommand::Health, &response(503, r#"{"error":"busy"}"#)), failure("busy"));
    assert_eq!(judge(&CtlCommand::Health, &response(200, "{}")), Verdict::Health(HealthStatus::Ok));
}

#[test]
fn nobody_there_is_explained_with_the_path_and_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let missing =
        run(dir.path(), false, &CtlRequest::Supervisor(CtlCommand::Totals)).unwrap_err().to_string();
    assert!(missing.contains("control.sock") && missing.contains("--run-dir"), "{missing}");

    drop(UnixListener::bind(socket_path(dir.path())).unwrap());
    let stale = run(dir.path(), false, &CtlRequest::Supervisor(CtlCommand::Totals)).unwrap_err().to_string();
    assert!(stale.contains("control.sock") && stale.contains("start holdfast again"), "{stale}");
}

#[test]
fn totals_name_the_silent_workers() {
    let body = r#"{"connections":1234,"max_connections":100000,"utilization":0.01234,"level":"normal",
        "state":"running","workers":4,"workers_ready":3,"silent_workers":[2],"accepted_total":9,
        "rejected_total":{"max_connections":2,"origin":0},"uptime_seconds":61.5,"version":"0.1.0"}"#;
    let text = tables::render(&CtlCommand::Totals, body).unwrap();
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(line("connections "), "1,234 of 100,000 (1.2 %), level normal");
    assert_eq!(line("workers "), "3 of 4 ready; silent, with figures of their last report: 2");
    assert_eq!(line("rejected "), "2 (max_connections 2)");
    assert_eq!(line("uptime "), "1m 1s");
}

#[test]
fn workers_are_a_table() {
    let body = r#"[{"slot":0,"pid":7,"state":"ready","connections":1500},{"slot":1,"state":"backing_off"}]"#;
    let text = tables::render(&CtlCommand::Workers, body).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains("SLOT  STATE"), "{text}");
    assert!(lines[1].contains("ready") && lines[1].contains("1,500"), "{text}");
    assert!(lines[2].contains("backing_off") && lines[2].contains(" - "), "{text}");
}

#[test]
fn a_reload_lists_what_changed_and_what_became_of_it() {
    let body = r#"{"changes":[{"key":"limits.max_connections","old":5,"new":6,"effect":"applied"},
        {"key":"listen","old":"0.0.0.0:1","new":["0.0.0.0:2"],"effect":"needs upgrade"}]}"#;
    let text = tables::render(&CtlCommand::Reload, body).unwrap();
    let rows: Vec<Vec<_>> = text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["limits.max_connections", "5", "6", "applied"]);
    assert_eq!(rows[1], ["listen", "0.0.0.0:1", "[\"0.0.0.0:2\"]", "needs", "upgrade"]);
    assert_eq!(tables::render(&CtlCommand::Reload, "{}").unwrap(), "reloaded; nothing has changed");
}

#[test]
fn config_shows_where_values_come_from() {
    let body = r#"[{"key":"workers","value":4,"source":"environment WORKERS"},{"key":"run_dir","value":"/r","source":"default"}]"#;
    let text = tables::render(&CtlCommand::Config, body).unwrap();
    assert_eq!(text, "KEY      VALUE  SOURCE\nworkers  4      environment WORKERS\nrun_dir  /r     default");
}
