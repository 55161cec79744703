//! What differs between two configurations and what a reload does about it. Applies nothing itself.

use serde::Serialize;

use super::keys::{self, KEYS, OnReload};
use super::{Config, Effective, Value};

/// What happens to a key that a reload finds changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Effect {
    /// The new value holds at once.
    #[serde(rename = "applied")]
    Live,
    /// The old value stays until the server is stopped and started.
    #[serde(rename = "needs restart")]
    NeedsRestart,
}

/// One key that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// With its section.
    pub key: &'static str,
    /// The running value.
    pub old: Value,
    /// The value just read.
    pub new: Value,
    /// What a reload does about it.
    pub effect: Effect,
}

/// The keys whose values differ, in the order of the documented file.
#[must_use]
pub fn changes(old: &Config, new: &Config) -> Vec<Change> {
    KEYS.iter()
        .map(|key| Change {
            key: key.name,
            old: (key.show)(old),
            new: (key.show)(new),
            effect: match key.reload {
                OnReload::Live => Effect::Live,
                OnReload::Keep(_) => Effect::NeedsRestart,
            },
        })
        .filter(|change| change.old != change.new)
        .collect()
}

/// What is in effect once `running` has reloaded `read`: the new values, except that changed keys which need
/// a restart keep the running value and its source. The changes say which is which.
#[must_use]
pub fn reload(running: &Effective, read: Effective) -> (Effective, Vec<Change>) {
    let mut changes = changes(&running.config, &read.config);
    let contents = read.config.secrets.changed(&running.config.secrets);
    changes.extend(contents.into_iter().filter_map(keys::find).filter_map(|key| {
        let (old, new) = ((key.show)(&running.config), (key.show)(&read.config));
        let new_contents = Value::text("new contents");
        // A file with another name is among the changes.
        (old == new).then_some(Change { key: key.name, old, new: new_contents, effect: Effect::Live })
    }));
    let mut next = read;
    for key in KEYS {
        if let OnReload::Keep(keep) = key.reload
            && (key.show)(&running.config) != (key.show)(&next.config)
        {
            keep(&mut next.config, &running.config);
            next.sources.insert(key.name, running.source(key.name));
        }
    }
    (next, changes)
}
