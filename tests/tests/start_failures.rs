//! A start that cannot work stops at once, says why and names the remedy.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must panic")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use holdfast_tests::client::RawClient;
use holdfast_tests::holdfast::{Holdfast, Options, Starting, run};

/// Starts, expects a failure with this exit code, and returns the log.
fn fails(options: &Options, code: i32) -> String {
    let starting = Starting::new(options);
    let (status, log) = starting.wait_for_exit();
    assert_eq!(status.code(), Some(code), "{log}");
    assert_eq!(starting.processes(), [], "a failed start leaves processes behind: {log}");
    log
}

fn assert_names(log: &str, words: &[&str]) {
    for word in words {
        assert!(log.contains(word), "{word:?} is not named in:\n{log}");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let options = Options::config("workers = 2").own_addresses().argument("--admin=127.0.0.1:0");
    let log = fails(&options.clone().argument(&format!("--listen={address}")), 1);
    assert_names(&log, &[&address, "listen"]);

    let options = Options::config("workers = 2").own_addresses().argument("--listen=127.0.0.1:0");
    let log = fails(&options.argument(&format!("--admin={address}")), 1);
    assert_names(&log, &[&address, "admin"]);
}

#[test]
fn a_run_directory_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let run_dir = file.join("run");
    let log = fails(&Options::config("workers = 1").run_dir(&run_dir), 1);
    assert_names(&log, &[run_dir.to_str().unwrap(), "run_dir"]);
}

#[test]
fn a_second_supervisor_in_the_same_run_directory_gives_way() {
    let first = Holdfast::with("workers = 1");
    let log = fails(&Options::config("workers = 1").run_dir(first.run_dir()), 1);
    assert_names(&log, &[first.run_dir().to_str().unwrap()]);
    assert_eq!(first.totals().number("workers_ready"), 1);
    let _ = RawClient::open(first.address());
    first.stop();
}

#[test]
fn what_a_dead_supervisor_left_in_the_run_directory_is_no_obstacle() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["control.sock", "supervisor.sock"] {
        drop(UnixListener::bind(directory.path().join(name)).unwrap());
    }
    // No process has a pid of 0.
    fs::write(directory.path().join("holdfast.pid"), "0\n").unwrap();
    let server = Holdfast::start(&Options::config("workers = 1").run_dir(directory.path()));
    let pid = fs::read_to_string(directory.path().join("holdfast.pid")).unwrap();
    assert_eq!(pid.trim(), server.process().pid().to_string());
    server.stop();
}

#[test]
fn a_cap_that_the_descriptor_limit_cannot_carry_stops_the_start_with_the_arithmetic() {
    // Mistake 10: descriptor tables sized from the limit, whatever it is, and no word when it is too small.
    let options = Options::config("workers = 2\nlimits.max_connections = 5000").descriptor_limit(300);
    let log = fails(&options, 1);
    assert_names(&log, &["5000", "300", "2 workers", "LimitNOFILE"]);
}

#[test]
fn without_a_configured_cap_the_largest_reachable_one_is_taken_and_logged() {
    let server = Holdfast::start(&Options::config("workers = 2").descriptor_limit(400));
    let cap = server.totals().number("max_connections");
    assert!((1..=800).contains(&cap), "{cap}");
    let _ = server.process().wait_for_line(&format!("max_connections={cap}"));
    server.stop();

    let server = Holdfast::with("workers = 2");
    let cap = server.totals().number("max_connections");
    assert!((1..=100_000).contains(&cap), "{cap}");
    server.stop();
}

const BAD_CONFIG: &str = "workers = 2
colour = \"red\"
[limits]
max_connections = \"many\"
soft_connections = -1
[timeouts]
idle = 60
ping_intervall = \"30s\"
[security]
path = 7
";

#[test]
fn a_bad_config_is_refused_with_every_error_its_place_and_what_is_allowed() {
    let log = fails(&Options::config(BAD_CONFIG), 2);
    let expected = [
        ("holdfast.toml:2: ", "colour"),
        ("holdfast.toml:4: ", "max_connections"),
        ("holdfast.toml:5: ", "soft_connections"),
        ("holdfast.toml:7: ", "unit"),
        ("holdfast.toml:8: ", "ping_interval"),
        ("holdfast.toml:10: ", "path"),
    ];
    let problems = |text: &str| {
        for (place, word) in expected {
            let line = text
                .lines()
                .find(|line| line.contains(place))
                .unwrap_or_else(|| panic!("no {place} in\n{text}"));
            assert!(line.contains(word), "no {word} in {line:?}");
        }
    };
    problems(&log);

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("holdfast.toml");
    fs::write(&path, BAD_CONFIG).unwrap();
    let (status, _, errors) = run(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(status.code(), Some(2));
    problems(&errors);
}

#[test]
fn limits_that_contradict_each_other_and_listeners_that_collide_are_refused() {
    let text = "[limits]\nmax_connections = 100\nsoft_connections = 200\n";
    let log = fails(&Options::config(text), 2);
    assert_names(&log, &["holdfast.toml:3: ", "soft_connections", "200", "100"]);
    let text = "listen = [\"127.0.0.1:18080\",\n \"127.0.0.1:18080\"]\n";
    let options = Options::config(text).own_addresses().argument("--admin=127.0.0.1:0");
    assert_names(&fails(&options, 2), &["127.0.0.1:18080", "twice"]);
}

#[test]
fn bad_usage_exits_with_2_and_a_good_config_is_said_to_be_good() {
    let (status, _, errors) = run(&["--no-such-flag"]);
    assert_eq!(status.code(), Some(2), "{errors}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("holdfast.toml");
    fs::write(&path, "workers = 3\n[limits]\nmax_connections = 1000\n").unwrap();
    let (status, _, errors) = run(&["check", "--config", path.to_str().unwrap()]);
    assert!(status.success(), "{errors}");
}

#[test]
fn the_environment_wins_over_the_file_and_flags_win_over_both() {
    let options =
        Options::config("workers = 1\nlimits.max_connections = 10\nlimits.max_connections_per_address = 3")
            .environment("MAX_CONNECTIONS", "20")
            .environment("MAX_PER_IP", "4")
            .argument("--max-connections-per-address=5");
    let server = Holdfast::start(&options);
    let config = server.control().get("/config").json();
    let entry = |key: &str| {
        let entries = config.as_array().unwrap();
        let entry = entries
            .iter()
            .find(|entry| entry["key"] == key)
            .unwrap_or_else(|| panic!("no {key} in {config}"));
        (entry["value"].clone(), entry["source"].as_str().unwrap().to_owned())
    };
    assert_eq!(entry("limits.max_connections"), (20.into(), "environment MAX_CONNECTIONS".into()));
    assert_eq!(
        entry("limits.max_connections_per_address"),
        (5.into(), "flag --max-connections-per-address".into())
    );
    assert!(entry("workers").1.ends_with("holdfast.toml:1"), "{:?}", entry("workers"));
    assert_eq!(entry("timeouts.handshake").1, "default");
    server.stop();
}
