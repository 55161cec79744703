//! The one list of all keys: how each is read, shown and reloaded. A key is added here, in [`Config`] and in
//! `deploy/holdfast.toml`.

use std::time::Duration;

use super::parse::{self, Problems};
use super::{Config, Value};

/// A key of the configuration.
pub(super) struct Key {
    /// With its section, such as `limits.max_connections`.
    pub name: &'static str,
    pub reload: OnReload,
    /// Takes a value, or says everything that is wrong with it and changes nothing.
    pub read: fn(&mut Config, &Value) -> Result<(), Problems>,
    /// Spells the value so that `read` gets the same again.
    pub show: fn(&Config) -> Value,
}

/// What a reload does with a key.
pub(super) enum OnReload {
    /// The new value takes the old one's place.
    Live,
    /// The function puts the running value (second) back into the new configuration (first).
    Keep(fn(&mut Config, &Config)),
}

use OnReload::{Keep, Live};

const fn key(
    name: &'static str,
    reload: OnReload,
    read: fn(&mut Config, &Value) -> Result<(), Problems>,
    show: fn(&Config) -> Value,
) -> Key {
    Key { name, reload, read, show }
}

/// Far above what one machine carries; keeps arithmetic on connections away from the edge of `u32`.
const MOST_CONNECTIONS: u32 = 100_000_000;
/// A worker has so many tickets and some more with the supervisor before it asks for nobody else.
const MOST_WAITING: u32 = 10_000;
/// Of anything in a second. A connection has 32 bits for thousandths of its messages.
const FASTEST: u32 = 1_000_000;
/// RFC 6455 allows 2^63; nobody wants to hold that in memory.
const LARGEST_SIZE: usize = 1024 * 1024 * 1024;
/// More than anybody keeps.
const LARGEST_JOURNAL: usize = 64 * 1024 * 1024 * 1024;
/// More than any machine has.
const LARGEST_TOTAL: usize = 1 << 50;
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_hours(24);
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

pub(super) const ROUTES: &str = "routes";
pub(super) const API_KEYS: &str = "api.keys_file";
pub(super) const TOKEN_SECRET: &str = "tokens.secret_file";
pub(super) const TOKEN_JWKS: &str = "tokens.jwks_file";
pub(super) const EVENTS_SECRET: &str = "events.secret_file";

/// Keys of earlier versions, and what says it now.
pub(super) const REMOVED: &[(&str, &str)] =
    &[("app", "[[routes]] with the keys path and protocol, such as path = \"/\" and protocol = \"echo\"")];

/// All keys, in the order of the documented file.
pub(super) const KEYS: &[Key] = &[
    key(
        "listen",
        Keep(|new, running| new.listen.clone_from(&running.listen)),
        |c, v| put(&mut c.listen, parse::listen(v)),
        |c| parse::show_list(&c.listen),
    ),
    key("workers", Live, |c, v| put(&mut c.workers, parse::workers(v)), |c| parse::show_workers(c.workers)),
    key(
        "backlog",
        Live,
        // listen(2) takes an int and cuts it to net.core.somaxconn.
        |c, v| put(&mut c.backlog, parse::count(v, 1..=i32::MAX.unsigned_abs())),
        |c| Value::Integer(c.backlog.into()),
    ),
    key("balance", Live, |c, v| put(&mut c.balance, parse::balance(v)), |c| parse::show_balance(c.balance)),
    key(
        "run_dir",
        Keep(|new, running| new.run_dir.clone_from(&running.run_dir)),
        |c, v| put(&mut c.run_dir, parse::run_dir(v)),
        |c| parse::show_run_dir(c.run_dir.as_deref()),
    ),
    key(ROUTES, Live, |c, v| put(&mut c.routes, parse::routes(v)), |c| parse::show_routes(&c.routes)),
    key(
        "limits.max_connections",
        Live,
        |c, v| put(&mut c.limits.max_connections, parse::max_connections(v, 1..=MOST_CONNECTIONS)),
        |c| parse::show_max_connections(c.limits.max_connections),
    ),
    key(
        "limits.soft_connections",
        Live,
        |c, v| put(&mut c.limits.soft_connections, parse::portion(v, 1..=MOST_CONNECTIONS)),
        |c| parse::show_portion(c.limits.soft_connections),
    ),
    key(
        "limits.warning_connections",
        Live,
        |c, v| put(&mut c.limits.warning_connections, parse::portion(v, 1..=MOST_CONNECTIONS)),
        |c| parse::show_portion(c.limits.warning_connections),
    ),
    key(
        "limits.hysteresis",
        Live,
        |c, v| put(&mut c.limits.hysteresis, parse::portion(v, 0..=MOST_CONNECTIONS)),
        |c| parse::show_portion(c.limits.hysteresis),
    ),
    key(
        "limits.max_connections_per_address",
        Live,
        |c, v| put(&mut c.limits.max_connections_per_address, parse::limit(v, MOST_CONNECTIONS)),
        |c| Value::Integer(c.limits.max_connections_per_address.map_or(0, |limit| limit.get().into())),
    ),
    key(
        "limits.ipv6_prefix",
        Live,
        |c, v| put(&mut c.limits.ipv6_prefix, parse::count(v, 1..=128)),
        |c| Value::Integer(c.limits.ipv6_prefix.into()),
    ),
    key(
        "limits.exempt_addresses",
        Live,
        |c, v| put(&mut c.limits.exempt_addresses, parse::networks(v)),
        |c| parse::show_list(&c.limits.exempt_addresses),
    ),
    key(
        "limits.connect_rate",
        Live,
        |c, v| put(&mut c.limits.connect_rate, parse::count(v, 0..=FASTEST)),
        |c| Value::Integer(c.limits.connect_rate.into()),
    ),
    key(
        "limits.connect_rate_per_address",
        Live,
        |c, v| put(&mut c.limits.connect_rate_per_address, parse::count(v, 0..=FASTEST)),
        |c| Value::Integer(c.limits.connect_rate_per_address.into()),
    ),
    key(
        "limits.max_pending_handshakes",
        Live,
        |c, v| put(&mut c.limits.max_pending_handshakes, parse::count(v, 1..=MOST_CONNECTIONS)),
        |c| Value::Integer(c.limits.max_pending_handshakes.into()),
    ),
    key(
        "limits.max_message_size",
        Live,
        |c, v| put(&mut c.limits.max_message_size, parse::size(v, 1..=LARGEST_SIZE)),
        |c| parse::show_size(c.limits.max_message_size),
    ),
    key(
        "limits.messages_per_second",
        Live,
        |c, v| put(&mut c.limits.messages_per_second, parse::limit(v, FASTEST)),
        |c| Value::Integer(c.limits.messages_per_second.map_or(0, |limit| limit.get().into())),
    ),
    key(
        "limits.max_queued_output",
        Live,
        // Room for control frames, of which the largest is 131 bytes (RFC 6455, section 5.5), must always be
        // there.
        |c, v| put(&mut c.limits.max_queued_output, parse::size(v, 1024..=LARGEST_SIZE)),
        |c| parse::show_size(c.limits.max_queued_output),
    ),
    key(
        "limits.max_buffered_total",
        Live,
        |c, v| put(&mut c.limits.max_buffered_total, parse::max_buffered(v, 1024 * 1024..=LARGEST_TOTAL)),
        |c| parse::show_max_buffered(c.limits.max_buffered_total),
    ),
    key(
        "limits.refusal",
        Live,
        |c, v| put(&mut c.limits.refusal, parse::refusal_mode(v)),
        |c| parse::show_refusal_mode(c.limits.refusal),
    ),
    key(
        "limits.retry_after",
        Live,
        |c, v| put(&mut c.limits.retry_after, parse::duration(v, SECOND..=TIMEOUT_MAX)),
        |c| parse::show_duration(c.limits.retry_after),
    ),
    key(
        "limits.waiting_room",
        Live,
        |c, v| put(&mut c.limits.waiting_room, parse::count(v, 0..=MOST_WAITING)),
        |c| Value::Integer(c.limits.waiting_room.into()),
    ),
    key(
        "limits.waiting_room_timeout",
        Live,
        |c, v| put(&mut c.limits.waiting_room_timeout, parse::duration(v, TIMEOUT_MIN..=TIMEOUT_MAX)),
        |c| parse::show_duration(c.limits.waiting_room_timeout),
    ),
    key(
        "limits.max_connections_per_user",
        Live,
        |c, v| put(&mut c.limits.max_connections_per_user, parse::count(v, 0..=MOST_CONNECTIONS)),
        |c| Value::Integer(c.limits.max_connections_per_user.into()),
    ),
    key(
        "limits.shed",
        Live,
        |c, v| put(&mut c.limits.shed, parse::shed(v)),
        |c| parse::show_shed(c.limits.shed),
    ),
    key(
        "limits.shed_rate",
        Live,
        |c, v| put(&mut c.limits.shed_rate, parse::count(v, 1..=MOST_CONNECTIONS)),
        |c| Value::Integer(c.limits.shed_rate.into()),
    ),
    key(
        "timeouts.handshake",
        Live,
        |c, v| put(&mut c.timeouts.handshake, parse::duration(v, TIMEOUT_MIN..=TIMEOUT_MAX)),
        |c| parse::show_duration(c.timeouts.handshake),
    ),
    key(
        "timeouts.ping_interval",
        Live,
        |c, v| put(&mut c.timeouts.ping_interval, parse::duration_or_never(v, INTERVAL_MIN..=TIMEOUT_MAX)),
        |c| parse::show_duration(c.timeouts.ping_interval.unwrap_or_default()),
    ),
    key(
        "timeouts.pong",
        Live,
        |c, v| put(&mut c.timeouts.pong, parse::duration(v, TIMEOUT_MIN..=TIMEOUT_MAX)),
        |c| parse::show_duration(c.timeouts.pong),
    ),
    key(
        "timeouts.idle",
        Live,
        |c, v| put(&mut c.timeouts.idle, parse::duration_or_never(v, INTERVAL_MIN..=TIMEOUT_MAX)),
        |c| parse::show_duration(c.timeouts.idle.unwrap_or_default()),
    ),
    key(
        "timeouts.close",
        Live,
        |c, v| put(&mut c.timeouts.close, parse::duration(v, TIMEOUT_MIN..=TIMEOUT_MAX)),
        |c| parse::show_duration(c.timeouts.close),
    ),
    key(
        "timeouts.message",
        Live,
        |c, v| put(&mut c.timeouts.message, parse::duration_or_never(v, INTERVAL_MIN..=TIMEOUT_MAX)),
        |c| parse::show_duration(c.timeouts.message.unwrap_or_default()),
    ),
    key(
        "timeouts.stalled",
        Live,
        |c, v| put(&mut c.timeouts.stalled, parse::duration_or_never(v, INTERVAL_MIN..=TIMEOUT_MAX)),
        |c| parse::show_duration(c.timeouts.stalled.unwrap_or_default()),
    ),
    key(
        "degraded.ping_interval",
        Live,
        |c, v| put(&mut c.degraded.ping_interval, parse::duration(v, INTERVAL_MIN..=TIMEOUT_MAX)),
        |c| parse::show_duration(c.degraded.ping_interval),
    ),
    key(
        "degraded.allow_broadcast",
        Live,
        |c, v| put(&mut c.degraded.allow_broadcast, parse::boolean(v)),
        |c| Value::Boolean(c.degraded.allow_broadcast),
    ),
    key(
        "degraded.max_message_size",
        Live,
        |c, v| put(&mut c.degraded.max_message_size, parse::size(v, 1..=LARGEST_SIZE)),
        |c| parse::show_size(c.degraded.max_message_size),
    ),
    key(
        "degraded.messages_per_second",
        Live,
        |c, v| put(&mut c.degraded.messages_per_second, parse::limit(v, FASTEST)),
        |c| Value::Integer(c.degraded.messages_per_second.map_or(0, |limit| limit.get().into())),
    ),
    key(
        "degraded.notify_clients",
        Live,
        |c, v| put(&mut c.degraded.notify_clients, parse::boolean(v)),
        |c| Value::Boolean(c.degraded.notify_clients),
    ),
    key(
        "degraded.memory",
        Live,
        |c, v| put(&mut c.degraded.memory, parse::percent(v)),
        |c| parse::show_percent(c.degraded.memory),
    ),
    key(
        "degraded.memory_stalls",
        Live,
        |c, v| put(&mut c.degraded.memory_stalls, parse::percent(v)),
        |c| parse::show_percent(c.degraded.memory_stalls),
    ),
    key(
        "degraded.descriptors",
        Live,
        |c, v| put(&mut c.degraded.descriptors, parse::percent(v)),
        |c| parse::show_percent(c.degraded.descriptors),
    ),
    key(
        "security.allowed_origins",
        Live,
        |c, v| put(&mut c.security.allowed_origins, parse::origins(v)),
        |c| parse::show_list(&c.security.allowed_origins),
    ),
    key(
        "security.path",
        Live,
        |c, v| put(&mut c.security.path, parse::path(v)),
        |c| Value::text(&*c.security.path),
    ),
    key(
        "proxy.trusted",
        Live,
        |c, v| put(&mut c.proxy.trusted, parse::networks(v)),
        |c| parse::show_list(&c.proxy.trusted),
    ),
    key(
        "proxy.header",
        Live,
        |c, v| put(&mut c.proxy.header, parse::forwarding_header(v)),
        |c| parse::show_forwarding_header(c.proxy.header),
    ),
    key(
        "proxy.proxy_protocol",
        Live,
        |c, v| put(&mut c.proxy.proxy_protocol, parse::boolean(v)),
        |c| Value::Boolean(c.proxy.proxy_protocol),
    ),
    key(
        "admin.listen",
        Live,
        |c, v| put(&mut c.admin.listen, parse::optional_address(v)),
        |c| Value::text(c.admin.listen.map_or_else(String::new, |address| address.to_string())),
    ),
    key(
        "channels.journal_size",
        Keep(|new, running| new.channels.journal_size = running.channels.journal_size),
        |c, v| put(&mut c.channels.journal_size, parse::size(v, 1024 * 1024..=LARGEST_JOURNAL)),
        |c| parse::show_size(c.channels.journal_size),
    ),
    key(
        "channels.max_lag",
        Live,
        |c, v| put(&mut c.channels.max_lag, parse::size(v, 64 * 1024..=LARGEST_JOURNAL)),
        |c| parse::show_size(c.channels.max_lag),
    ),
    key(
        "channels.max_subscriptions",
        Live,
        |c, v| put(&mut c.channels.max_subscriptions, parse::count(v, 1..=1000)),
        |c| Value::Integer(c.channels.max_subscriptions.into()),
    ),
    key(
        "channels.rules",
        Live,
        |c, v| put(&mut c.channels.rules, parse::channel_rules(v)),
        |c| parse::show_channel_rules(&c.channels.rules),
    ),
    key(
        "api.listen",
        Live,
        |c, v| put(&mut c.api.listen, parse::api_listen(v)),
        |c| parse::show_api_listen(&c.api.listen),
    ),
    key(
        API_KEYS,
        Live,
        |c, v| put(&mut c.api.keys_file, parse::optional_file(v)),
        |c| parse::show_optional_file(c.api.keys_file.as_deref()),
    ),
    key(
        TOKEN_SECRET,
        Live,
        |c, v| put(&mut c.tokens.secret_file, parse::optional_file(v)),
        |c| parse::show_optional_file(c.tokens.secret_file.as_deref()),
    ),
    key(
        TOKEN_JWKS,
        Live,
        |c, v| put(&mut c.tokens.jwks_file, parse::optional_file(v)),
        |c| parse::show_optional_file(c.tokens.jwks_file.as_deref()),
    ),
    key(
        "tokens.audience",
        Live,
        |c, v| put(&mut c.tokens.audience, parse::audience(v)),
        |c| Value::text(c.tokens.audience.as_deref().unwrap_or_default()),
    ),
    key(
        "events.url",
        Live,
        |c, v| put(&mut c.events.url, parse::events_url(v)),
        |c| Value::text(c.events.url.as_deref().unwrap_or_default()),
    ),
    key(
        EVENTS_SECRET,
        Live,
        |c, v| put(&mut c.events.secret_file, parse::optional_file(v)),
        |c| parse::show_optional_file(c.events.secret_file.as_deref()),
    ),
    key(
        "drain.duration",
        Live,
        |c, v| put(&mut c.drain.duration, parse::duration(v, Duration::ZERO..=TIMEOUT_MAX)),
        |c| parse::show_duration(c.drain.duration),
    ),
];

fn put<T, E: Into<Problems>>(place: &mut T, parsed: Result<T, E>) -> Result<(), Problems> {
    *place = parsed.map_err(Into::into)?;
    Ok(())
}

pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether `name` is a `[section]`.
pub(super) fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(|key| key.name.split_once('.')).map(|(section, _)| section)
}

/// The key or section that `name` was probably meant to be: the right key in the wrong section, or a slip of
/// the finger.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    /// Below this Jaro-Winkler similarity, a suggestion confuses more than it helps.
    const LIKELY: f64 = 0.8;

    let misplaced = KEYS.iter().map(|key| key.name).find(|known| last(known) == last(name));
    let similar = || {
        KEYS.iter()
            .map(|key| key.name)
            .chain(sections().filter(|_| !name.contains('.')))
            .map(|known| (known, similarity(known, name)))
            .filter(|(_, similarity)| *similarity > LIKELY)
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(known, _)| known)
    };
    misplaced.or_else(similar)
}

fn last(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, last)| last).trim_end_matches('"')
}

/// Of whole names, but a section that both share makes nothing similar.
fn similarity(known: &str, name: &str) -> f64 {
    match (known.split_once('.'), name.split_once('.')) {
        (Some((known_section, known)), Some((section, name))) if known_section == section => {
            strsim::jaro_winkler(known, name)
        }
        _ => strsim::jaro_winkler(known, name),
    }
}
