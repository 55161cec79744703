//! Rules of channels, and where the API listens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Problem, Problems, boolean, count, duration, list, show_duration};
use crate::channels::directory::MAX_NAME;
use crate::channels::rules::{Lag, Pattern, Rule};
use crate::config::{ApiListen, Value};

const MATCH: &str = "match";
const HISTORY: &str = "history";
const HISTORY_TTL: &str = "history_ttl";
const PRESENCE: &str = "presence";
const CLIENT_SUBSCRIBE: &str = "client_subscribe";
const CLIENT_PUBLISH: &str = "client_publish";
const MAX_SUBSCRIBERS: &str = "max_subscribers";
const PUBLISH_RATE: &str = "publish_rate";
const LAG: &str = "lag";
const FIELDS: [&str; 9] = [
    MATCH,
    HISTORY,
    HISTORY_TTL,
    PRESENCE,
    CLIENT_SUBSCRIBE,
    CLIENT_PUBLISH,
    MAX_SUBSCRIBERS,
    PUBLISH_RATE,
    LAG,
];

const ALLOWED: &str = "[[channels.rules]], each with a match, such as \"public:*\"";
const MOST: u32 = 100_000_000;
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// Any number of rules.
pub(in crate::config) fn channel_rules(value: &Value) -> Result<Vec<Rule>, Problems> {
    list(value, rule)
}

fn rule(value: &Value) -> Result<Rule, Problem> {
    let Value::Table(fields) = value else {
        return Err(Problem::new(format!("{value} is not a rule"), ALLOWED));
    };
    if let Some(unknown) = fields.keys().find(|key| !FIELDS.contains(&&***key)) {
        return Err(Problem::new(format!("{unknown} is not a key of a rule"), FIELDS.join(", ")));
    }
    let pattern = fields.get(MATCH).ok_or_else(|| Problem::new("match is missing", ALLOWED))?;
    let mut rule = Rule { matches: in_field(MATCH, match_of(pattern))?, ..Rule::default() };
    for (name, value) in fields {
        match name.as_str() {
            HISTORY => rule.history = in_field(HISTORY, count(value, 0..=MOST))?,
            HISTORY_TTL => {
                rule.history_ttl = in_field(HISTORY_TTL, duration(value, Duration::ZERO..=LONGEST))?;
            }
            PRESENCE => rule.presence = in_field(PRESENCE, boolean(value))?,
            CLIENT_SUBSCRIBE => rule.client_subscribe = in_field(CLIENT_SUBSCRIBE, boolean(value))?,
            CLIENT_PUBLISH => rule.client_publish = in_field(CLIENT_PUBLISH, boolean(value))?,
            MAX_SUBSCRIBERS => rule.max_subscribers = in_field(MAX_SUBSCRIBERS, count(value, 0..=MOST))?,
            PUBLISH_RATE => rule.publish_rate = in_field(PUBLISH_RATE, count(value, 0..=1_000_000))?,
            LAG => rule.lag = in_field(LAG, lag(value))?,
            _ => {}
        }
    }
    Ok(rule)
}

fn in_field<T>(name: &'static str, parsed: Result<T, Problem>) -> Result<T, Problem> {
    parsed.map_err(|problem| Problem { field: Some(name), ..problem })
}

fn match_of(value: &Value) -> Result<Pattern, Problem> {
    let allowed =
        || format!("the name of a channel (up to {MAX_NAME} printable characters), or its beginning and a *");
    let Value::Text(text) = value else {
        return Err(Problem::new(format!("{value} matches no channel"), allowed()));
    };
    Pattern::new(text.as_str()).map_err(|error| Problem::new(format!("{value}: {error}"), allowed()))
}

fn lag(value: &Value) -> Result<Lag, Problem> {
    [Lag::Close, Lag::Latest].into_iter().find(|&lag| show_lag(lag) == *value).ok_or_else(|| {
        Problem::new(
            format!("{value} is nothing that becomes of slow subscribers"),
            "\"close\" or \"latest\"",
        )
    })
}

fn show_lag(lag: Lag) -> Value {
    Value::text(match lag {
        Lag::Close => "close",
        Lag::Latest => "latest",
    })
}

pub(in crate::config) fn show_channel_rules(rules: &[Rule]) -> Value {
    Value::List(rules.iter().map(show_rule).collect())
}

/// What a rule has by default is left out.
fn show_rule(rule: &Rule) -> Value {
    let usual = Rule::default();
    let number = |number: u32| Value::Integer(number.into());
    let all = [
        (HISTORY, rule.history != usual.history, number(rule.history)),
        (HISTORY_TTL, rule.history_ttl != usual.history_ttl, show_duration(rule.history_ttl)),
        (PRESENCE, rule.presence != usual.presence, Value::Boolean(rule.presence)),
        (
            CLIENT_SUBSCRIBE,
            rule.client_subscribe != usual.client_subscribe,
            Value::Boolean(rule.client_subscribe),
        ),
        (CLIENT_PUBLISH, rule.client_publish != usual.client_publish, Value::Boolean(rule.client_publish)),
        (MAX_SUBSCRIBERS, rule.max_subscribers != usual.max_subscribers, number(rule.max_subscribers)),
        (PUBLISH_RATE, rule.publish_rate != usual.publish_rate, number(rule.publish_rate)),
        (LAG, rule.lag != usual.lag, show_lag(rule.lag)),
    ];
    let mut fields = BTreeMap::from([(MATCH.to_owned(), Value::text(&*rule.matches.0))]);
    fields.extend(
        all.into_iter().filter(|(_, is_set, _)| *is_set).map(|(name, _, value)| (name.to_owned(), value)),
    );
    Value::Table(fields)
}

/// An address, `unix:` and a path, or the empty string for none.
pub(in crate::config) fn api_listen(value: &Value) -> Result<ApiListen, Problem> {
    const API_ALLOWED: &str = "ADDRESS:PORT, such as \"127.0.0.1:8405\", \"unix:\" and a path of at most 107 bytes, or \"\" for off";
    let problem = || Problem::new(format!("{value} is nowhere to listen"), API_ALLOWED);
    let Value::Text(text) = value else { return Err(problem()) };
    match text.strip_prefix("unix:") {
        // sockaddr_un has 108 bytes for a path and its zero.
        Some(path) if path.starts_with('/') && path.len() <= 107 && !path.contains('\0') => {
            Ok(ApiListen::Unix(PathBuf::from(path)))
        }
        Some(_) => Err(problem()),
        None if text.is_empty() => Ok(ApiListen::Off),
        None => text.parse().map(ApiListen::Address).map_err(|_| problem()),
    }
}

pub(in crate::config) fn show_api_listen(listen: &ApiListen) -> Value {
    Value::text(match listen {
        ApiListen::Off => String::new(),
        ApiListen::Address(address) => address.to_string(),
        ApiListen::Unix(path) => format!("unix:{}", path.display()),
    })
}

/// A file, or the empty string for none.
pub(in crate::config) fn optional_file(value: &Value) -> Result<Option<PathBuf>, Problem> {
    match value {
        Value::Text(text) if text.is_empty() => Ok(None),
        Value::Text(text) if !text.contains('\0') => Ok(Some(PathBuf::from(text))),
        _ => Err(Problem::new(format!("{value} is no file"), "the path of a file, or \"\" for none")),
    }
}

pub(in crate::config) fn show_optional_file(file: Option<&Path>) -> Value {
    Value::text(file.map_or_else(String::new, |path| path.display().to_string()))
}

/// A URL of HTTP, or the empty string for none. One with a password in it would show that to whoever sees the configuration.
pub(in crate::config) fn events_url(value: &Value) -> Result<Option<String>, Problem> {
    let problem = |what: String| {
        Problem::new(
            what,
            "a URL such as \"https://example.org/events\" of at most 2048 characters, or \"\" for none",
        )
    };
    let Value::Text(text) = value else { return Err(problem(format!("{value} is not a URL"))) };
    if text.is_empty() {
        return Ok(None);
    }
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let authority = rest.map(|rest| rest.split(['/', '?']).next().unwrap_or_default());
    if authority.is_some_and(|authority| authority.contains('@')) {
        return Err(problem(
            "a URL with a user and a password is shown to everybody who sees the configuration".to_owned(),
        ));
    }
    let is_plain = text.len() <= 2048 && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    match authority {
        Some(authority) if is_plain && !authority.is_empty() && !authority.starts_with(':') => {
            Ok(Some(text.clone()))
        }
        _ => Err(problem(format!("{value} is not a URL of HTTP"))),
    }
}

/// Whom tokens must be for, or the empty string for anybody.
pub(in crate::config) fn audience(value: &Value) -> Result<Option<String>, Problem> {
    match value {
        Value::Text(text) if text.len() <= 255 => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        _ => Err(Problem::new(
            format!("{value} is no audience"),
            "what the claim aud of tokens says, at most 255 bytes, or \"\" for any",
        )),
    }
}
