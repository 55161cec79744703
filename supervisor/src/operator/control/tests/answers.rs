//! Every request and what it gets.

use super::*;
use crate::api::{CloseOrder, LimitsOrder};
use crate::operator::control::server::BOUNDS;
use crate::operator::ctl::{CtlError, ask};

#[test]
fn every_command_is_answered_on_one_connection() {
    let rig = Rig::answering();
    let mut client = rig.client();
    let totals = client.ask("GET", "/totals");
    assert_eq!(totals.status, 200);
    assert!(totals.head.contains("content-type: application/json"), "{}", totals.head);
    let totals: serde_json::Value = serde_json::from_str(&totals.body).unwrap();
    assert_eq!((&totals["connections"], &totals["silent_workers"][0]), (&7.into(), &3.into()));
    assert_eq!((&totals["state"], &totals["level"]), (&"running".into(), &"normal".into()));

    let workers: serde_json::Value = serde_json::from_str(&client.ask("GET", "/workers").body).unwrap();
    assert_eq!((&workers[0]["pid"], &workers[0]["keeper_pid"]), (&9.into(), &serde_json::Value::Null));
    assert!(client.ask("GET", "/config").body.contains(r#""key":"workers""#));
    assert!(client.ask("GET", "/limits").body.contains(r#""max_connections":500"#));
    let drain = client.ask("POST", "/drain");
    assert_eq!((drain.status, drain.body.as_str()), (200, r#"{"message":"draining","connections":7}"#));
    assert_eq!(client.ask("POST", "/stop").status, 200);
}

#[test]
fn a_refused_reload_has_every_error() {
    let rig = Rig::answering();
    let reply = rig.client().ask("POST", "/reload");
    assert_eq!(reply.status, 422);
    assert_eq!(reply.error(), "holdfast.toml:3: one\nholdfast.toml:4: two");
}

#[test]
fn one_slot_or_all_are_restarted_and_nothing_else_is_guessed() {
    let rig = Rig::answering();
    let mut client = rig.client();
    assert!(client.ask("POST", "/restart").body.contains(r#""slot":1,"kept":12"#));
    assert!(client.ask("POST", "/restart?slot=7").body.contains(r#""slot":7,"kept":12"#));
    for query in ["slot=", "slot=-1", "slot=65536", "slots=1", "slot=1&slot=2"] {
        let reply = client.ask("POST", &format!("/restart?{query}"));
        assert_eq!(reply.status, 400, "{query}");
        assert!(reply.error().starts_with("/restart?slot"), "{}", reply.error());
    }
    let (text, _) = ask(rig.dir.path(), false, &Command::Restart { slot: Some(9) }).unwrap();
    let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["9", "12", "0", "0.0ms"]);
}

#[test]
fn an_upgrade_is_accepted_and_its_progress_is_another_question() {
    let rig = Rig::answering();
    let mut client = rig.client();
    assert_eq!(client.ask("POST", "/upgrade").status, 202);
    let progress = client.ask("GET", "/upgrade");
    assert_eq!(progress.status, 200);
    assert!(progress.body.starts_with(r#"{"state":"done""#), "{}", progress.body);
}

#[test]
fn a_rebalance_says_how_many_moved() {
    let rig = Rig::answering();
    assert!(rig.client().ask("POST", "/rebalance").body.contains(r#""moved":60"#));
    let (text, _) = ask(rig.dir.path(), false, &Command::Rebalance).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["60", "connections", "moved", "SLOT", "CONNECTIONS", "3", "40"]);
}

#[test]
fn health_is_503_when_clients_should_go_elsewhere() {
    let rig = Rig::answering();
    let reply = rig.client().ask("GET", "/health");
    assert_eq!(reply.status, 503);
    assert!(reply.body.starts_with(r#"{"status":"full""#), "{}", reply.body);

    let rig = Rig::new(QUEUE, Deadlines::default()).with_loop(|_| Ok(Answer::Health(Health::default())));
    let reply = rig.client().ask("GET", "/health");
    assert_eq!(reply.status, 200);
    assert!(reply.body.starts_with(r#"{"status":"ok""#), "{}", reply.body);
}

#[test]
fn metrics_are_prometheus_text() {
    let rig = Rig::answering();
    let reply = rig.client().ask("GET", "/metrics");
    assert!(reply.head.contains("content-type: text/plain; version=0.0.4"), "{}", reply.head);
    assert!(reply.body.contains("\nholdfast_level 0\n"), "{}", reply.body);
}

#[test]
fn an_unknown_path_gets_the_list_of_paths() {
    let rig = Rig::answering();
    let reply = rig.client().ask("GET", "/total?x=1");
    assert_eq!(reply.status, 404);
    for command in Command::ALL {
        assert!(
            reply.error().contains(&format!("{} {}", command.method(), command.path())),
            "{}",
            reply.error()
        );
    }
}

#[test]
fn a_wrong_method_is_told_the_right_one() {
    let rig = Rig::answering();
    let mut client = rig.client();
    for command in Command::ALL {
        let wrong = "PUT";
        let reply = client.ask(wrong, command.path());
        assert_eq!(reply.status, 405, "{command:?}");
        let allow = reply.head.lines().find_map(|line| line.strip_prefix("allow: ")).unwrap();
        assert!(allow.split(',').any(|method| method == command.method().to_lowercase()), "{allow}");
        assert_eq!(reply.error(), format!("{} does not take {wrong}", command.path()));
    }
}

#[test]
fn a_loop_that_does_not_answer_is_504() {
    let deadlines = Deadlines { answer: Some(Duration::from_millis(20)), ..Deadlines::default() };
    let rig = Rig::new(QUEUE, deadlines);
    let reply = rig.client().ask("GET", "/totals");
    assert_eq!(reply.status, 504);
    assert!(reply.error().contains("20ms"), "{}", reply.error());
    assert!(rig.take().reply.is_abandoned(), "the loop can see that nobody waits any more");
}

#[test]
fn a_loop_with_too_much_to_do_is_503_at_once() {
    let rig = Rig::new(1, Deadlines::default());
    let mut first = rig.client();
    first.send(b"GET /totals HTTP/1.1\r\n\r\n");
    while rig.inbox.as_ref().unwrap().1.is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(rig.client().ask("GET", "/totals").status, 503);
    rig.take().reply.send(canned(Command::Totals));
    assert_eq!(first.reply().status, 200);
}

#[test]
fn a_request_the_loop_drops_is_500() {
    let rig = Rig::new(QUEUE, Deadlines::default());
    let mut client = rig.client();
    client.send(b"POST /drain HTTP/1.1\r\n\r\n");
    drop(rig.take());
    assert_eq!(client.reply().status, 500);
}

#[test]
fn ctl_understands_every_answer() {
    let rig = Rig::answering();
    // Those that say nothing are refused.
    let empty = [Command::Reload, Command::Close(CloseOrder::MANY), Command::Limits(LimitsOrder::CHANGE)];
    for command in Command::ALL.iter().filter(|command| !empty.contains(command)) {
        let (table, health) = ask(rig.dir.path(), false, command).unwrap();
        let (json, _) = ask(rig.dir.path(), true, command).unwrap();
        assert_eq!(health == HealthStatus::Full, *command == Command::Health);
        assert_eq!(table == json, *command == Command::Metrics, "{command:?}\n{table}\n{json}");
        assert_eq!(json, rig.client().ask(command.method(), &command.target()).body);
    }
    let limits = LimitsOrder::CHANGE.with_body(br#"{"max_connections": 5}"#).unwrap();
    let (text, _) = ask(rig.dir.path(), false, &Command::Limits(limits)).unwrap();
    assert_eq!(text, "no limit changes\nlevel normal");
    for json in [false, true] {
        let error = ask(rig.dir.path(), json, &Command::Reload).unwrap_err();
        assert!(matches!(error, CtlError::Refused { status: 422, .. }), "{error:?}");
        assert_eq!(error.to_string(), "holdfast.toml:3: one\nholdfast.toml:4: two");
    }
}

#[test]
fn ctl_says_why_it_was_turned_away() {
    let rig = Rig::new(QUEUE, Deadlines::default());
    let _waiting: Vec<_> = (0..BOUNDS.connections).map(|_| rig.waiting_client()).collect();
    let error = ask(rig.dir.path(), false, &Command::Totals).unwrap_err();
    assert_eq!(error.to_string(), "too many connections; try again");
}
