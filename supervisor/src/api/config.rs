//! The config as the control socket shows it, and what a reload made of it.
//! Strings and JSON where `shared::config` has types: whoever reads this back may be another version.

use holdfast_shared::config;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One key of the effective config.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigEntry {
    /// The key with its section: `limits.max_connections`.
    pub key: String,
    /// Its value, as JSON.
    pub value: Value,
    /// Where it came from: `default`, `holdfast.toml:12`, `environment PORT`, `flag --listen`.
    pub source: String,
}

impl From<config::Entry> for ConfigEntry {
    fn from(entry: config::Entry) -> Self {
        Self { key: entry.key.to_owned(), value: json(&entry.value), source: entry.source.to_string() }
    }
}

/// One key that a reload found changed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// The key with its section.
    pub key: String,
    /// The value before, as JSON.
    pub old: Value,
    /// The value in the new config, as JSON.
    pub new: Value,
    /// What became of it: `applied`, or `needs restart`.
    pub effect: String,
}

impl From<config::Change> for Change {
    fn from(change: config::Change) -> Self {
        let effect = match change.effect {
            config::Effect::Live => "applied",
            config::Effect::NeedsRestart => "needs restart",
        };
        Self {
            key: change.key.to_owned(),
            old: json(&change.old),
            new: json(&change.new),
            effect: effect.to_owned(),
        }
    }
}

/// What a successful reload did. A refused one is a [`super::Failure`] with 422 and every error, one a line.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadReport {
    /// Every changed key; empty if nothing changed.
    pub changes: Vec<Change>,
}

impl FromIterator<config::Change> for ReloadReport {
    fn from_iter<I: IntoIterator<Item = config::Change>>(changes: I) -> Self {
        Self { changes: changes.into_iter().map(Change::from).collect() }
    }
}

fn json(value: &config::Value) -> Value {
    // Strings, integers and lists of them: nothing JSON cannot say.
    serde_json::to_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use holdfast_shared::config::{Effect, Source, Value as ConfigValue};
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_plain_json_and_sources_are_words() {
        let value = ConfigValue::List(vec![ConfigValue::text("[::]:1"), ConfigValue::Integer(2)]);
        let entry = config::Entry { key: "listen", value, source: Source::Environment("PORT") };
        let entry = serde_json::to_value(ConfigEntry::from(entry)).unwrap();
        assert_eq!(entry, json!({"key": "listen", "value": ["[::]:1", 2], "source": "environment PORT"}));
    }

    /// `holdfast ctl` and programs that read the shared types see the same words.
    #[test]
    fn changes_read_as_the_config_crate_writes_them() {
        for effect in [Effect::Live, Effect::NeedsRestart] {
            let change = config::Change {
                key: "routes",
                old: ConfigValue::Integer(1),
                new: ConfigValue::text("x"),
                effect,
            };
            let direct = serde_json::to_value(&change).unwrap();
            let report: ReloadReport = [change].into_iter().collect();
            assert_eq!(serde_json::to_value(&report.changes[0]).unwrap(), direct);
        }
    }
}
