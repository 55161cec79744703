//! Any valid configuration, spelled out by its entries, reads back as the same one.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_shared::channels::rules::{Lag, Pattern, Rule};
use holdfast_shared::config::{
    Admin, Api, ApiListen, Balance, Channels, Config, Degraded, Drain, ECHO, Effective, Events, FlagValue,
    ForwardingHeader, Inputs, Limits, MaxBuffered, MaxConnections, Portion, Proxy, RefusalMode, Secrets,
    Security, Shed, Timeouts, Tokens, Value, Workers, changes, load, load_text, reload,
};
use holdfast_shared::path::normalise;
use holdfast_shared::route::{Route, Subprotocols};
use holdfast_shared::secret::Secret;
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn duration(least: u64) -> impl Strategy<Value = Duration> {
    (least..=86_400_000).prop_map(Duration::from_millis)
}

/// Public and admin addresses differ in port, so that none overlap.
fn addresses(ports: std::ops::Range<u16>) -> impl Strategy<Value = Vec<SocketAddr>> {
    proptest::collection::hash_map(ports, any::<IpAddr>(), 1..4)
        .prop_map(|found| found.into_iter().map(|(port, ip)| SocketAddr::new(ip, port)).collect())
}

fn networks() -> impl Strategy<Value = Vec<IpNet>> {
    let network = (any::<IpAddr>(), 0..=32u8).prop_map(|(ip, bits)| IpNet::new(ip, bits).unwrap().trunc());
    vec(network, 0..3)
}

prop_compose! {
    fn limits()(
        cap in option::of(1..=100_000_000u32),
        levels in (1..=100u8, 1..=100u8, 0..=100u8),
        counts in any::<bool>(),
        per_address in 0..=100_000_000u32,
        ipv6_prefix in 1..=128u8,
        exempt_addresses in networks(),
        rates in (0..=1_000_000u32, 0..=1_000_000u32),
        max_pending_handshakes in 1..=100_000_000u32,
        max_message_size in 1..=1usize << 30,
        messages_per_second in 0..=1_000_000u32,
        max_queued_output in 1024..=1usize << 30,
        buffered in option::of(1usize << 20..=1 << 50),
        refusal in select(vec![RefusalMode::Status, RefusalMode::Close]),
        retry_after in duration(1000),
        (room, max_connections_per_user) in ((0..=10_000u32, duration(10)), 0..=100_000_000u32),
        (shed, shed_rate) in (select(vec![Shed::None, Shed::Idlest]), 1..=100_000_000u32),
    ) -> Limits {
        let max = cap.unwrap_or(100_000);
        let mut percents = [levels.0, levels.1, levels.2];
        percents.sort_unstable();
        let [hysteresis, warning, soft] = percents.map(|percent| {
            let portion = Portion::Percent(percent);
            if counts { Portion::Count(portion.of(max)) } else { portion }
        });
        Limits {
            max_connections: cap.map_or(MaxConnections::Auto, MaxConnections::Count),
            soft_connections: soft,
            warning_connections: warning,
            hysteresis,
            max_connections_per_address: NonZeroU32::new(per_address),
            ipv6_prefix,
            exempt_addresses,
            connect_rate: rates.0,
            connect_rate_per_address: rates.1,
            max_pending_handshakes,
            max_message_size,
            messages_per_second: NonZeroU32::new(messages_per_second),
            max_queued_output,
            max_buffered_total: buffered.map_or(MaxBuffered::Auto, MaxBuffered::Bytes),
            refusal,
            retry_after,
            waiting_room: room.0,
            waiting_room_timeout: room.1,
            max_connections_per_user,
            shed,
            shed_rate,
        }
    }
}

/// A path in its normal form, as configurations are kept.
fn path() -> impl Strategy<Value = String> {
    "/|(/[!-\"$-.0->@-~]{1,8}){1,3}".prop_filter_map("a bad escape", |path| {
        let normal = normalise(&path)?.trim_end_matches('/').to_owned();
        Some(if normal.is_empty() { "/".to_owned() } else { normal })
    })
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let subprotocols =
        prop_oneof![Just(Subprotocols::Any), vec("[!#-&a-z]{1,4}", 0..3).prop_map(Subprotocols::Listed)];
    let paths = proptest::collection::hash_map(path(), (subprotocols, any::<bool>()), 1..5);
    paths.prop_map(|paths| {
        let route = |(path, (subprotocols, subprotocol_required))| Route {
            path,
            protocol: ECHO.to_owned(),
            subprotocols,
            subprotocol_required,
        };
        paths.into_iter().map(route).collect()
    })
}

prop_compose! {
    fn timeouts()(
        handshake in duration(10), ping_interval in option::of(duration(100)), pong in duration(10),
        idle in option::of(duration(100)), close in duration(10), message in option::of(duration(100)), stalled in option::of(duration(100)),
    ) -> Timeouts {
        Timeouts { handshake, ping_interval, pong, idle, close, message, stalled }
    }
}

prop_compose! {
    fn degraded()(
        ping_interval in duration(100), allow_broadcast in any::<bool>(), max_message_size in 1..=1usize << 30,
        rate in 0..=1_000_000u32, notify_clients in any::<bool>(), memory in 0..=100u8, memory_stalls in 0..=100u8, descriptors in 0..=100u8,
    ) -> Degraded {
        Degraded {
            ping_interval, allow_broadcast, max_message_size, messages_per_second: NonZeroU32::new(rate),
            notify_clients, memory, memory_stalls, descriptors,
        }
    }
}

fn rule() -> impl Strategy<Value = Rule> {
    let counts = (0..=100_000_000u32, 0..=100_000_000u32, 0..=1_000_000u32);
    let permits = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    ("[!$-)+->A-[a-~][!$-)+->A-[a-~]{0,9}[*]?|[*]", duration(0), counts, permits).prop_map(
        |(pattern, history_ttl, counts, permits)| Rule {
            matches: Pattern::new(pattern).unwrap(),
            history: counts.0,
            history_ttl,
            presence: permits.0,
            client_subscribe: permits.1,
            client_publish: permits.2,
            max_subscribers: counts.1,
            publish_rate: counts.2,
            lag: if permits.3 { Lag::Close } else { Lag::Latest },
        },
    )
}

prop_compose! {
    fn channels()(
        journal_size in 1usize << 20..=1 << 36, lag in 64..=96usize, max_subscriptions in 1..=1000u32, rules in vec(rule(), 0..4),
    ) -> Channels {
        Channels { journal_size, max_lag: journal_size / 128 * lag, max_subscriptions, rules }
    }
}

/// A place of the API needs a key, and files must be there.
fn api() -> impl Strategy<Value = Api> {
    let place = prop_oneof![
        Just(ApiListen::Off),
        "/[^\0]{1,20}".prop_map(|path| ApiListen::Unix(PathBuf::from(path))),
        (any::<IpAddr>(), 60_000..=65_535u16)
            .prop_map(|(ip, port)| ApiListen::Address(SocketAddr::new(ip, port))),
    ];
    place.prop_map(|listen| Api { listen, keys_file: None })
}

fn tokens() -> impl Strategy<Value = Tokens> {
    option::of(".{1,20}").prop_map(|audience| Tokens { audience, ..Tokens::default() })
}

fn events() -> impl Strategy<Value = Events> {
    option::of("https?://[a-z.]{1,9}(:[1-9][0-9]{3})?(/[!$-~]{0,9})?")
        .prop_map(|url| Events { url, ..Events::default() })
}

/// With a key for the API, for a place of it needs one.
fn keyed() -> Inputs {
    Inputs { api_key: Some(Secret::new("0123456789abcdef")), ..Inputs::default() }
}

prop_compose! {
    fn config()(
        listen in addresses(1..30_000),
        admin in option::of(addresses(30_000..60_000)),
        workers in option::of(1..=1024u16),
        backlog in 1..=0x7fff_ffffu32,
        balance in select(vec![Balance::Kernel, Balance::LeastConnections, Balance::SourceAddress]),
        run_dir in option::of("[^\0]{1,20}"),
        limits in limits(),
        timeouts in timeouts(),
        allowed_origins in vec("[a-z]{1,5}://[a-z0-9.-]{1,9}(:[1-9][0-9]{3})?", 0..3),
        path in path(),
        trusted in networks(), header in select(vec![ForwardingHeader::XForwardedFor, ForwardingHeader::Forwarded]),
        proxy_protocol in any::<bool>(),
        drain in duration(0),
        degraded in degraded(),
        routes in routes(),
        channels in (channels(), api(), tokens(), events()),
    ) -> Config {
        let (channels, api, tokens, events) = channels;
        Config {
            channels,
            api,
            tokens,
            events,
            secrets: Secrets::default(),
            listen,
            workers: workers.map_or(Workers::Auto, Workers::Count),
            backlog,
            balance,
            run_dir: run_dir.map(PathBuf::from),
            routes,
            limits,
            timeouts,
            security: Security { allowed_origins, path },
            proxy: Proxy { trusted, header, proxy_protocol },
            admin: Admin { listen: admin.and_then(|addresses| addresses.first().copied()) },
            degraded,
            drain: Drain { duration: drain },
        }
    }
}

/// Spelled out as a file, through the changes that lead from the defaults to `config`.
fn spell(config: &Config) -> String {
    let mut text = String::new();
    for change in changes(&Config::default(), config) {
        writeln!(text, "{} = {}", change.key, change.new).unwrap();
    }
    text
}

fn flags(effective: &Effective) -> Vec<FlagValue> {
    effective
        .entries()
        .into_iter()
        .map(|entry| FlagValue {
            key: entry.key.to_owned(),
            value: Value::parse(&entry.value.to_string()),
            flag: format!("--set {}", entry.key),
        })
        .collect()
}

proptest! {
    #[test]
    fn a_config_spelled_out_reads_back(config in config()) {
        let effective = load_text(&spell(&config), &keyed());
        let effective = effective.map_err(|errors| TestCaseError::fail(errors.to_string()))?;
        let config = Config { secrets: effective.config.secrets.clone(), ..config };
        prop_assert_eq!(&effective.config, &config);

        let again = load(&Inputs { flags: flags(&effective), ..keyed() });
        prop_assert_eq!(again.map_err(|errors| TestCaseError::fail(errors.to_string()))?.config, config);
    }

    #[test]
    fn a_reload_leaves_only_what_needs_a_restart(old in config(), new in config()) {
        let read = |config| load_text(&spell(config), &keyed()).unwrap();
        let (next, reported) = reload(&read(&old), read(&new));
        let left: Vec<_> = changes(&next.config, &new).into_iter().map(|change| change.key).collect();
        let waiting: Vec<_> = reported
            .into_iter()
            .filter(|change| change.effect == holdfast_shared::config::Effect::NeedsRestart)
            .map(|change| change.key)
            .collect();
        prop_assert_eq!(left, waiting);
    }

    #[test]
    fn no_text_makes_reading_panic(text in any::<String>(), value in any::<String>()) {
        let inputs = Inputs {
            environment: vec![("PORT".into(), value.clone()), ("WORKERS".into(), value.clone())],
            flags: vec![FlagValue { key: text.clone(), value: Value::parse(&value), flag: "--set".into() }],
            ..Inputs::default()
        };
        // Either outcome is fine, and every refusal has something to say.
        if let Err(errors) = load_text(&text, &inputs) {
            prop_assert!(errors.iter().count() > 0);
        }
    }
}
