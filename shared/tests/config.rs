//! The configuration as its users meet it: what is taken, what is refused and in which words, who wins.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_shared::config::{
    Config, Effect, Effective, FlagValue, Inputs, MaxConnections, Portion, Source, Value, Workers, changes,
    load, load_text, reload,
};

fn inputs(environment: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> Inputs {
    Inputs {
        file: Some(PathBuf::from("h.toml")),
        environment: environment
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect(),
        flags: flags
            .iter()
            .map(|(key, value, flag)| FlagValue {
                key: (*key).to_owned(),
                value: Value::parse(value),
                flag: (*flag).to_owned(),
            })
            .collect(),
        ..Inputs::default()
    }
}

fn read(text: &str) -> Effective {
    load_text(text, &inputs(&[], &[])).unwrap()
}

fn errors(text: &str, inputs: &Inputs) -> Vec<String> {
    match load_text(text, inputs) {
        Ok(effective) => panic!("taken: {:?}", effective.config),
        Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
    }
}

/// Bad files and every line of the complaint.
const BAD_FILES: &[(&str, &[&str])] = &[
    // Keys
    ("workerz = 4", &["h.toml:1: workerz: unknown key; did you mean workers?"]),
    (
        "max_connections = 4\n[limit]\nhysteresis = \"5%\"",
        &[
            "h.toml:1: max_connections: unknown key; did you mean limits.max_connections?",
            "h.toml:2: limit: unknown key; did you mean limits?",
        ],
    ),
    (
        "[drain]\nduration = \"1s\"\nworkers = 3\nfrobnicate = []",
        &[
            "h.toml:3: drain.workers: unknown key; did you mean workers?",
            "h.toml:4: drain.frobnicate: unknown key",
        ],
    ),
    (
        "\"limits.ipv6_prefix\" = 64",
        &["h.toml:1: \"limits.ipv6_prefix\": unknown key; did you mean limits.ipv6_prefix?"],
    ),
    ("limits = 5", &["h.toml:1: limits: 5 is not a section; allowed: [limits] and its keys"]),
    (
        "[workers]\ncount = 5",
        &[
            "h.toml:1: workers: a section is not a whole number; allowed: \"auto\" or a whole number from 1 to 1024",
        ],
    ),
    // Types and ranges
    (
        "workers = true\nbacklog = \"many\"\napp = \"echo\"\nrun_dir = 7\nbalance = \"random\"",
        &[
            "h.toml:1: workers: true is not a whole number; allowed: \"auto\" or a whole number from 1 to 1024",
            "h.toml:2: backlog: \"many\" is not a whole number; allowed: a whole number from 1 to 2147483647",
            "h.toml:3: app: this key is gone; allowed: [[routes]] with the keys path and protocol, such as path = \"/\" and protocol = \"echo\"",
            "h.toml:4: run_dir: 7 is not a directory; allowed: a directory of at most 91 bytes, or \"\" for the usual places",
            "h.toml:5: balance: \"random\" is not a way to balance; allowed: \"kernel\", \"least-connections\" or \"source-address\"",
        ],
    ),
    (
        "workers = 0\nbacklog = 99999999999999999999\n[limits]\nipv6_prefix = 129\nmax_connections = \"all\"\nmax_connections_per_address = -1",
        &[
            "h.toml:1: workers: 0 is out of range; allowed: \"auto\" or a whole number from 1 to 1024",
            "h.toml:2: backlog: a number of more than 64 bits is not a whole number; allowed: a whole number from 1 to 2147483647",
            "h.toml:4: limits.ipv6_prefix: 129 is out of range; allowed: a whole number from 1 to 128",
            "h.toml:5: limits.max_connections: \"all\" is not a whole number; allowed: \"auto\" or a whole number from 1 to 100000000",
            "h.toml:6: limits.max_connections_per_address: -1 is out of range; allowed: a whole number from 0 to 100000000, where 0 is no limit",
        ],
    ),
    // Durations
    (
        "[timeouts]\nhandshake = 10\npong = \"30\"\nidle = \"1 parsec\"\nclose = \"0s\"\nping_interval = \"1ms\"",
        &[
            "h.toml:2: timeouts.handshake: 10 has no unit; allowed: a duration with its unit, such as \"30s\" or \"500ms\", from 10ms to 1day",
            "h.toml:3: timeouts.pong: \"30\" has no unit; allowed: a duration with its unit, such as \"30s\" or \"500ms\", from 10ms to 1day",
            "h.toml:4: timeouts.idle: \"1 parsec\" is not a duration; allowed: a duration with its unit, such as \"30s\" or \"500ms\", from 100ms to 1day, or \"0s\" for never",
            "h.toml:5: timeouts.close: \"0s\" is out of range; allowed: a duration with its unit, such as \"30s\" or \"500ms\", from 10ms to 1day",
            "h.toml:6: timeouts.ping_interval: \"1ms\" is out of range; allowed: a duration with its unit, such as \"30s\" or \"500ms\", from 100ms to 1day, or \"0s\" for never",
        ],
    ),
    // Sizes
    (
        "[limits]\nmax_message_size = \"1MB\"\nmax_queued_output = \"1GiB1\"",
        &[
            "h.toml:2: limits.max_message_size: \"1MB\" is not a size; allowed: bytes, or a size such as \"64KiB\" or \"1MiB\" (units B, KiB, MiB, GiB), from 1B to 1GiB",
            "h.toml:3: limits.max_queued_output: \"1GiB1\" is not a size; allowed: bytes, or a size such as \"64KiB\" or \"1MiB\" (units B, KiB, MiB, GiB), from 1KiB to 1GiB",
        ],
    ),
    (
        "[limits]\nmax_buffered_total = \"some\"",
        &[
            "h.toml:2: limits.max_buffered_total: \"some\" is not a size; allowed: \"auto\" or bytes, or a size such as \"64KiB\" or \"1MiB\" (units B, KiB, MiB, GiB), from 1MiB to 1048576GiB",
        ],
    ),
    (
        "[limits]\nmax_message_size = \"2GiB\"\nmax_queued_output = \"17179869184GiB\"",
        &[
            "h.toml:2: limits.max_message_size: \"2GiB\" is out of range; allowed: bytes, or a size such as \"64KiB\" or \"1MiB\" (units B, KiB, MiB, GiB), from 1B to 1GiB",
            "h.toml:3: limits.max_queued_output: \"17179869184GiB\" is out of range; allowed: bytes, or a size such as \"64KiB\" or \"1MiB\" (units B, KiB, MiB, GiB), from 1KiB to 1GiB",
        ],
    ),
    // Portions, and limits beside each other
    (
        "[limits]\nsoft_connections = \"0%\"\nwarning_connections = \"7.5%\"\nhysteresis = \"101%\"",
        &[
            "h.toml:2: limits.soft_connections: \"0%\" is not a whole percentage in range; allowed: \"1%\" to \"100%\" of max_connections, or a number of connections",
            "h.toml:3: limits.warning_connections: \"7.5%\" is not a whole percentage in range; allowed: \"1%\" to \"100%\" of max_connections, or a number of connections",
            "h.toml:4: limits.hysteresis: \"101%\" is not a whole percentage in range; allowed: \"0%\" to \"100%\" of max_connections, or a number of connections",
        ],
    ),
    (
        "[limits]\nmax_connections = 1000\nsoft_connections = 2000\nwarning_connections = 3000\nhysteresis = 4000",
        &[
            "h.toml:3: limits.soft_connections: 2000 connections are above limits.max_connections = 1000 (h.toml:2); allowed: at most 1000, or raise limits.max_connections",
            "h.toml:4: limits.warning_connections: 3000 connections are above limits.soft_connections = 2000 (h.toml:3); allowed: at most 2000, or raise limits.soft_connections",
            "h.toml:5: limits.hysteresis: 4000 connections are above limits.warning_connections = 3000 (h.toml:4); allowed: at most 3000, or raise limits.warning_connections",
        ],
    ),
    (
        "limits = { max_connections = 100, warning_connections = 90 }",
        &[
            "h.toml:1: limits.warning_connections: 90 connections are above limits.soft_connections = 80 (default); allowed: at most 80, or raise limits.soft_connections",
        ],
    ),
    (
        "[limits]\nsoft_connections = 100001",
        &[
            "h.toml:2: limits.soft_connections: 100001 connections are above limits.max_connections = \"auto\", at most 100000 (default); allowed: at most 100000, or raise limits.max_connections",
        ],
    ),
    // Addresses
    (
        "listen = [\n  \"127.0.0.1:80\",\n  \"localhost:80\",\n  8080,\n]",
        &[
            "h.toml:3: listen: \"localhost:80\" is not an address with a port; allowed: ADDRESS:PORT, such as \"0.0.0.0:8080\" or \"[::]:8080\"",
            "h.toml:4: listen: 8080 is not an address with a port; allowed: ADDRESS:PORT, such as \"0.0.0.0:8080\" or \"[::]:8080\"",
        ],
    ),
    (
        "listen = []",
        &[
            "h.toml:1: listen: no address; allowed: one or a list of ADDRESS:PORT, such as \"0.0.0.0:8080\" or \"[::]:8080\"",
        ],
    ),
    (
        "listen = [\"[::1]:80\", \"[0:0:0:0:0:0:0:1]:80\"]",
        &[
            "h.toml:1: listen: [::1]:80 is given twice; allowed: each address and port once, where 0.0.0.0 and [::] stand for every address of their family",
        ],
    ),
    (
        "\nlisten = [\"127.0.0.1:80\", \"0.0.0.0:80\"]",
        &[
            "h.toml:2: listen: 0.0.0.0:80 overlaps with 127.0.0.1:80; allowed: each address and port once, where 0.0.0.0 and [::] stand for every address of their family",
        ],
    ),
    (
        "[admin]\nlisten = \"127.0.0.1:8080\"",
        &[
            "h.toml:2: admin.listen: 127.0.0.1:8080 overlaps with 0.0.0.0:8080; allowed: each address and port once, where 0.0.0.0 and [::] stand for every address of their family",
        ],
    ),
    (
        "listen = \"0.0.0.0:8404\"",
        &[
            "h.toml:1: admin.listen: 127.0.0.1:8404 overlaps with 0.0.0.0:8404; allowed: each address and port once, where 0.0.0.0 and [::] stand for every address of their family",
        ],
    ),
    (
        "[proxy]\ntrusted = [\"10.0.0.1/8\",\n\"10.0.0.0/33\"]\n[limits]\nexempt_addresses = \"everyone\"",
        &[
            "h.toml:2: proxy.trusted: \"10.0.0.1/8\" has address bits beyond its prefix; allowed: \"10.0.0.0/8\", or \"10.0.0.1\" for the one address",
            "h.toml:3: proxy.trusted: \"10.0.0.0/33\" is not a network; allowed: an address or a CIDR, such as \"10.0.0.0/8\" or \"2001:db8::/32\"",
            "h.toml:5: limits.exempt_addresses: \"everyone\" is not a network; allowed: an address or a CIDR, such as \"10.0.0.0/8\" or \"2001:db8::/32\"",
        ],
    ),
    // Routes
    (
        "[[routes]]\npath = \"chat\"\nprotocol = \"echo\"\n[[routes]]\npath = \"/x\"\nprotocol = 5\n[[routes]]\nprotocol = \"echo\"\n[[routes]]\npath = \"/\"\nprotocol = \"echo\"\ncolour = \"red\"",
        &[
            "h.toml:2: routes.path: \"chat\" is not a request path; allowed: a path that starts with \"/\", as it stands in the request: no spaces, no query",
            "h.toml:6: routes.protocol: 5 is not a protocol; allowed: its name",
            "h.toml:7: routes: path is missing; allowed: one or more [[routes]], each with a path and a protocol",
            "h.toml:9: routes: colour is not a key of a route; allowed: path, protocol, subprotocols, subprotocol_required",
        ],
    ),
    (
        "[[routes]]\npath = \"/\"\nprotocol = \"echo\"\n\n[[routes]]\npath = \"/chat\"\nprotocol = \"irc\"",
        &["h.toml:7: routes.protocol: \"irc\" is not a protocol of this program; allowed: \"echo\""],
    ),
    (
        "[[routes]]\npath = \"/chat\"\nprotocol = \"echo\"\n[[routes]]\nprotocol = \"echo\"\npath = \"/chat/\"",
        &["h.toml:6: routes.path: \"/chat\" has a route already; allowed: each path once"],
    ),
    (
        "routes = []",
        &["h.toml:1: routes: no route; allowed: one or more [[routes]], each with a path and a protocol"],
    ),
    (
        "routes = \"/\"",
        &[
            "h.toml:1: routes: \"/\" is not a route; allowed: one or more [[routes]], each with a path and a protocol",
        ],
    ),
    (
        "[routes]\npath = \"/\"\nprotocol = \"echo\"",
        &[
            "h.toml:1: routes: a section is not a route; allowed: one or more [[routes]], each with a path and a protocol",
        ],
    ),
    // Requests
    (
        "[security]\npath = \"chat\"\nallowed_origins = [\"https://example.org/\", \"example.org\"]",
        &[
            "h.toml:2: security.path: \"chat\" is not a request path; allowed: a path that starts with \"/\", as it stands in the request: no spaces, no query",
            "h.toml:3: security.allowed_origins: \"https://example.org/\" is not an origin; allowed: SCHEME://HOST or SCHEME://HOST:PORT without a path, such as \"https://example.org\", or \"null\"",
            "h.toml:3: security.allowed_origins: \"example.org\" is not an origin; allowed: SCHEME://HOST or SCHEME://HOST:PORT without a path, such as \"https://example.org\", or \"null\"",
        ],
    ),
];

#[test]
fn bad_files_are_refused_with_every_error_at_its_line() {
    for (text, expected) in BAD_FILES {
        assert_eq!(errors(text, &inputs(&[], &[])), *expected, "for\n{text}");
    }
}

#[test]
fn what_is_not_toml_is_named_by_line() {
    for (text, line) in [
        ("workers = 1\nbacklog = = 2\n", 2),
        ("workers = 1\nworkers = 2\n", 2),
        ("\n\nlisten = \"unfinished\nworkers = 3\n", 3),
        ("[limits\n", 1),
        ("workers", 1),
    ] {
        let errors = errors(text, &inputs(&[], &[]));
        assert!(errors[0].starts_with(&format!("h.toml:{line}: not TOML: ")), "{errors:?} for\n{text}");
    }
}

#[test]
fn each_line_that_is_not_toml_is_named_once() {
    let errors = errors("workers = 1\nbacklog = = 2\n[limits\nfoo\n", &inputs(&[], &[]));
    let lines: Vec<_> = errors.iter().map(|error| error.split(": not TOML: ").next()).collect();
    assert_eq!(lines, [Some("h.toml:2"), Some("h.toml:3"), Some("h.toml:4")]);
}

#[test]
fn errors_of_all_layers_come_together_in_order() {
    let inputs = inputs(
        &[("PORT", "http"), ("MAX_CONNECTIONS", "-5"), ("MAX_PER_IP", ""), ("HOME", "/nowhere")],
        &[("workers", "no", "--workers"), ("limits.retry", "\"1s\"", "--set limits.retry")],
    );
    assert_eq!(
        errors("[limits]\nipv6_prefix = 0\nsoft_connections = 1", &inputs),
        [
            "h.toml:2: limits.ipv6_prefix: 0 is out of range; allowed: a whole number from 1 to 128",
            "environment MAX_CONNECTIONS: limits.max_connections: -5 is out of range; allowed: \"auto\" or a whole number from 1 to 100000000",
            "environment PORT: listen: \"http\" is not a whole number; allowed: a whole number from 0 to 65535",
            "flag --set limits.retry: limits.retry: unknown key; did you mean limits.retry_after?",
            "flag --workers: workers: \"no\" is not a whole number; allowed: \"auto\" or a whole number from 1 to 1024",
        ]
    );
}

#[test]
fn a_bad_value_is_an_error_even_where_another_layer_wins() {
    let inputs = inputs(&[], &[("workers", "2", "--workers")]);
    assert_eq!(errors("workers = -1", &inputs).len(), 1);
}

#[test]
fn a_limit_is_not_compared_with_one_that_nobody_could_read() {
    let errors = errors("[limits]\nmax_connections = \"10M\"\nsoft_connections = 5000000", &inputs(&[], &[]));
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn a_missing_file_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("absent.toml");
    let error = load(&Inputs { file: Some(path.clone()), ..Inputs::default() }).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: cannot read the configuration: ", path.display())), "{error}");
    assert!(
        error.ends_with("name a readable file with --config, or leave it out for the defaults"),
        "{error}"
    );
}

#[test]
fn without_anything_the_defaults_hold() {
    let effective = load(&Inputs::default()).unwrap();
    assert_eq!(effective.config, Config::default());
    assert!(effective.entries().iter().all(|entry| entry.source == Source::Default));
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let file = "workers = 1\nbacklog = 1\n[limits]\nmax_connections = 1000";
    let inputs = inputs(
        &[("WORKERS", "2"), ("MAX_CONNECTIONS", "auto"), ("MAX_PER_IP", "0")],
        &[
            ("workers", "3", "--workers"),
            ("workers", "4", "--set workers"),
            ("timeouts.idle", "0s", "--set timeouts.idle"),
        ],
    );
    let effective = load_text(file, &inputs).unwrap();
    assert_eq!(effective.config.workers, Workers::Count(4));
    assert_eq!(effective.config.backlog, 1);
    assert_eq!(effective.config.limits.max_connections, MaxConnections::Auto);
    assert_eq!(effective.config.limits.max_connections_per_address, None);
    assert_eq!(effective.config.timeouts.idle, None);
    let source = |key: &str| effective.source(key).to_string();
    assert_eq!(source("workers"), "flag --set workers");
    assert_eq!(source("backlog"), "h.toml:2");
    assert_eq!(source("limits.max_connections"), "environment MAX_CONNECTIONS");
    assert_eq!(source("limits.max_connections_per_address"), "environment MAX_PER_IP");
    assert_eq!(source("timeouts.pong"), "default");
}

#[test]
fn port_changes_the_port_of_the_first_address_and_no_more() {
    let listen = |file: &str, flags: &[(&str, &str, &str)]| {
        let effective = load_text(file, &inputs(&[("PORT", "9000")], flags)).unwrap();
        let addresses: Vec<_> = effective.config.listen.iter().map(ToString::to_string).collect();
        (addresses.join(" "), effective.source("listen").to_string())
    };
    assert_eq!(listen("", &[]), ("0.0.0.0:9000".into(), "environment PORT".into()));
    assert_eq!(
        listen("listen = [\"[::1]:80\", \"127.0.0.1:80\"]", &[]),
        ("[::1]:9000 127.0.0.1:80".into(), "environment PORT".into())
    );
    assert_eq!(
        listen("", &[("listen", "127.0.0.1:70", "--listen")]),
        ("127.0.0.1:70".into(), "flag --listen".into())
    );
}

#[test]
fn values_have_every_documented_spelling() {
    let config = read(
        r#"
        listen = ["127.0.0.1:0", "127.0.0.1:0", "[::]:80", "0.0.0.0:80"]
        limits.max_connections = 10_000
        limits.soft_connections = 9000
        limits.warning_connections = "80%"
        limits.hysteresis = 0
        limits.max_connections_per_address = 5
        limits.exempt_addresses = "192.0.2.7"
        limits.max_message_size = 65536
        limits.max_queued_output = "64 KiB"
        timeouts.idle = "0s"
        timeouts.ping_interval = "1m 30s"
        timeouts.close = "500ms"
        security.allowed_origins = ["HTTPS://Example.org:443", "http://[::1]:3000", "null"]
        security.path = "/chat/"
        admin.listen = ""
        drain.duration = "0s"
        "#,
    )
    .config;
    assert_eq!(config.listen.len(), 4);
    let limits = &config.limits;
    assert_eq!(limits.max_connections, MaxConnections::Count(10_000));
    assert_eq!(limits.soft_connections, Portion::Count(9000));
    assert_eq!(limits.warning_connections, Portion::Percent(80));
    assert_eq!(limits.hysteresis, Portion::Count(0));
    assert_eq!(limits.max_connections_per_address, NonZeroU32::new(5));
    assert_eq!(limits.exempt_addresses[0].to_string(), "192.0.2.7/32");
    assert_eq!((limits.max_message_size, limits.max_queued_output), (65_536, 65_536));
    assert_eq!((config.timeouts.idle, config.timeouts.ping_interval), (None, Some(Duration::from_secs(90))));
    assert_eq!(config.timeouts.close, Duration::from_millis(500));
    assert_eq!(config.security.allowed_origins, ["https://example.org", "http://[::1]:3000", "null"]);
    assert_eq!(config.security.path, "/chat");
    assert_eq!(config.admin.listen, None);
    assert_eq!(config.drain.duration, Duration::ZERO);
}

#[test]
fn routes_come_from_the_file_or_a_flag_and_else_lead_to_the_first_protocol_of_the_program() {
    let text =
        "[[routes]]\npath = \"/a/\"\nprotocol = \"one\"\n[[routes]]\npath = \"/b\"\nprotocol = \"two\"";
    let inputs = Inputs { protocols: vec!["one", "two"], ..inputs(&[], &[]) };
    let routes = |text: &str, inputs: &Inputs| {
        let effective = load_text(text, inputs).unwrap();
        let source = effective.source("routes").to_string();
        let routes: Vec<_> = effective.config.routes.into_iter().map(|r| (r.path, r.protocol)).collect();
        (routes, source)
    };
    let route = |path: &str, protocol: &str| (path.to_owned(), protocol.to_owned());
    assert_eq!(routes(text, &inputs), (vec![route("/a", "one"), route("/b", "two")], "h.toml:1".into()));
    assert_eq!(routes("", &inputs), (vec![route("/", "one")], "default".into()));
    let value = Value::parse("[{ path = \"/c\", protocol = \"two\" }]");
    let flag = FlagValue { key: "routes".into(), value, flag: "--set routes".into() };
    let inputs = Inputs { flags: vec![flag], ..inputs };
    assert_eq!(routes(text, &inputs), (vec![route("/c", "two")], "flag --set routes".into()));
}

#[test]
fn a_low_cap_needs_no_other_limit_set() {
    for max in [1, 2, 3, 500] {
        read(&format!("limits.max_connections = {max}"));
    }
    let low_soft = read("limits.max_connections = 100\nlimits.soft_connections = 50").config.limits;
    assert_eq!(low_soft.resolve(100).warning, 50);
}

#[test]
fn the_shipped_file_spells_out_the_defaults() {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/holdfast.toml"));
    let effective = load(&Inputs { file: Some(path), ..Inputs::default() }).unwrap();
    assert_eq!(effective.config, Config::default());
    let lines: Vec<_> = effective
        .entries()
        .iter()
        .map(|entry| match entry.source {
            Source::File { line, .. } => line,
            _ => panic!("{} is missing", entry.key),
        })
        .collect();
    assert!(lines.is_sorted(), "entries and file differ in order");
}

#[test]
fn changes_name_each_key_and_what_a_reload_does() {
    let old = read("workers = 2\nrun_dir = \"/a\"\n[limits]\nmax_connections = 10");
    let new =
        read("workers = 3\nrun_dir = \"/b\"\n[limits]\nmax_connections = \"auto\"\nretry_after = \"30s\"");
    let found: Vec<_> = changes(&old.config, &new.config)
        .into_iter()
        .map(|change| (change.key, change.old.to_string(), change.new.to_string(), change.effect))
        .collect();
    assert_eq!(
        found,
        [
            ("workers", "2".into(), "3".into(), Effect::Live),
            ("run_dir", "\"/a\"".into(), "\"/b\"".into(), Effect::NeedsRestart),
            ("limits.max_connections", "10".into(), "\"auto\"".into(), Effect::Live),
        ]
    );
    assert_eq!(changes(&old.config, &old.config), []);
}

#[test]
fn a_reload_keeps_what_needs_a_restart() {
    let running = read("run_dir = \"/a\"\nlisten = \"127.0.0.1:0\"");
    let file = read("workers = \"auto\"\nlisten = \"127.0.0.1:0\"\nbacklog = 9\nrun_dir = \"/b\"");
    let (next, changes) = reload(&running, file);
    assert_eq!(changes.len(), 2);
    assert_eq!((next.config.run_dir.as_deref(), next.config.backlog), (Some("/a".as_ref()), 9));
    assert_eq!(next.source("run_dir").to_string(), "h.toml:1");
    assert_eq!(next.source("listen").to_string(), "h.toml:2");
    assert_eq!(next.source("backlog").to_string(), "h.toml:3");
}
