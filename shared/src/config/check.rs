//! Validation of the whole: rules about values that are fine alone but not together. Checks only what can be
//! known without asking the host.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::{API_KEY_VARIABLE, ApiListen, ConfigError, Effective, MaxConnections, Source, keys};

/// Every broken rule. Values of `failed` keys are not what anybody meant, so rules about them are left out.
pub(super) fn whole(effective: &Effective, failed: &BTreeSet<&'static str>) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let intact = |keys: &[&'static str]| keys.iter().all(|key| !failed.contains(key));
    if intact(&[MAX, SOFT]) {
        errors.extend(soft_within_max(effective));
    }
    if intact(&[MAX, SOFT, WARNING]) {
        errors.extend(warning_within_soft(effective));
    }
    if intact(&[MAX, SOFT, WARNING, HYSTERESIS]) {
        errors.extend(hysteresis_within_warning(effective));
    }
    if intact(&[JOURNAL, LAG]) {
        errors.extend(lag_within_journal(effective));
    }
    if intact(&[API_LISTEN, keys::API_KEYS]) {
        errors.extend(api_without_key(effective));
    }
    if intact(&["listen", "admin.listen", API_LISTEN]) {
        errors.extend(overlapping_listen(effective));
    }
    errors
}

const JOURNAL: &str = "channels.journal_size";
const API_LISTEN: &str = "api.listen";
const LAG: &str = "channels.max_lag";
const MAX: &str = "limits.max_connections";
const SOFT: &str = "limits.soft_connections";
const WARNING: &str = "limits.warning_connections";
const HYSTERESIS: &str = "limits.hysteresis";

/// A subscriber that has fallen behind is to find what it has not had yet.
fn lag_within_journal(effective: &Effective) -> Option<ConfigError> {
    let channels = &effective.config.channels;
    let most = channels.most_lag();
    (channels.max_lag > most).then(|| ConfigError::Value {
        place: effective.source(if effective.source(LAG) == Source::Default { JOURNAL } else { LAG }),
        key: LAG.to_owned(),
        problem: format!("{} bytes are more than three quarters of {JOURNAL}", channels.max_lag),
        allowed: format!("at most {most} bytes, or raise {JOURNAL}"),
    })
}

/// Whoever asks needs a key.
fn api_without_key(effective: &Effective) -> Option<ConfigError> {
    let config = &effective.config;
    let is_useless = config.api.listen != ApiListen::Off && config.secrets.api_keys.is_empty();
    is_useless.then(|| ConfigError::Value {
        place: effective.source(API_LISTEN),
        key: API_LISTEN.to_owned(),
        problem: "there is no key, so that nobody could use it".to_owned(),
        allowed: format!(
            "with a file of keys in {}, or a key in {API_KEY_VARIABLE}; or \"\" for off",
            keys::API_KEYS
        ),
    })
}

fn soft_within_max(effective: &Effective) -> Option<ConfigError> {
    let limits = &effective.config.limits;
    let max = limits.max_connections.ceiling();
    let soft = limits.soft_connections.of(max);
    let at_most = match limits.max_connections {
        MaxConnections::Auto => format!("{MAX} = \"auto\", at most {max}"),
        MaxConnections::Count(_) => format!("{MAX} = {max}"),
    };
    too_high(effective, SOFT, soft, MAX, max, &at_most)
}

fn warning_within_soft(effective: &Effective) -> Option<ConfigError> {
    let limits = &effective.config.limits;
    let max = limits.max_connections.ceiling();
    let (warning, soft) = (limits.warning_connections.of(max), limits.soft_connections.of(max));
    too_high(effective, WARNING, warning, SOFT, soft, &format!("{SOFT} = {soft}"))
}

fn hysteresis_within_warning(effective: &Effective) -> Option<ConfigError> {
    let limits = &effective.config.limits;
    let max = limits.max_connections.ceiling();
    let (hysteresis, warning) = (limits.hysteresis.of(max), limits.warning_connections.of(max));
    too_high(effective, HYSTERESIS, hysteresis, WARNING, warning, &format!("{WARNING} = {warning}"))
}

/// A lower limit above an upper one. A lower limit that nobody set gives way instead (`Limits::resolve`).
fn too_high(
    effective: &Effective,
    lower_key: &'static str,
    lower: u32,
    upper_key: &'static str,
    upper: u32,
    upper_text: &str,
) -> Option<ConfigError> {
    let place = effective.source(lower_key);
    if lower <= upper || place == Source::Default {
        return None;
    }
    Some(ConfigError::Value {
        place,
        key: lower_key.to_owned(),
        problem: format!("{lower} connections are above {upper_text} ({})", effective.source(upper_key)),
        allowed: format!("at most {upper}, or raise {upper_key}"),
    })
}

/// Addresses that cannot be bound beside each other. Those of admin and API count as the last.
fn overlapping_listen(effective: &Effective) -> Vec<ConfigError> {
    let config = &effective.config;
    let public = config.listen.iter().map(|address| ("listen", *address));
    let admin = config.admin.listen.iter().map(|address| ("admin.listen", *address));
    let api = match config.api.listen {
        ApiListen::Address(address) => Some((API_LISTEN, address)),
        ApiListen::Off | ApiListen::Unix(_) => None,
    };
    let mut seen: Vec<SocketAddr> = Vec::new();
    let mut errors = Vec::new();
    for (key, address) in public.chain(admin).chain(api) {
        if let Some(other) = seen.iter().find(|other| overlap(**other, address)) {
            let problem = if *other == address {
                format!("{address} is given twice")
            } else {
                format!("{address} overlaps with {other}")
            };
            errors.push(ConfigError::Value {
                place: blame(effective, key),
                key: key.to_owned(),
                problem,
                allowed: "each address and port once, where 0.0.0.0 and [::] stand for every address of their family"
                    .to_owned(),
            });
        }
        seen.push(address);
    }
    errors
}

/// An address nobody set is not to blame for being in the way of one that somebody did.
fn blame(effective: &Effective, key: &str) -> Source {
    match effective.source(key) {
        Source::Default => effective.source("listen"),
        source => source,
    }
}

/// Whether both cannot be bound at once. Families do not meet: an IPv6 listener is for IPv6 only.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let (a_ip, b_ip) = (a.ip().to_canonical(), b.ip().to_canonical());
    let meet = match (a_ip, b_ip) {
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
            a_ip == b_ip || a_ip.is_unspecified() || b_ip.is_unspecified()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    };
    // Port 0 is a fresh port each time.
    meet && a.port() == b.port() && a.port() != 0
}
