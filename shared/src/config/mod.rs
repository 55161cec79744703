//! The configuration: file, environment and flags layered into one typed, validated [`Config`] in which every
//! value knows where it came from.
//!
//! Only the supervisor reads it; keepers and workers get the values they need by message. Nothing here
//! resolves what depends on the host (`"auto"`), opens a socket or changes the running server.

mod change;
mod channels;
mod check;
mod error;
mod keys;
mod layers;
mod parse;
mod secrets;
mod types;
mod value;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::secret::Secret;

pub use change::{Change, Effect, changes, reload};
pub use channels::{Api, ApiListen, CHANNELS, Channels, Events, Tokens};
pub use error::{ConfigError, ConfigErrors, Source};
pub use layers::{ENVIRONMENT, load, load_text, set_limits};
pub use secrets::{API_KEY_VARIABLE, Secrets};
pub use types::{
    AUTO_MAX_CONNECTIONS, Admin, Balance, Config, Degraded, Drain, ECHO, ForwardingHeader, Limits,
    MaxBuffered, MaxConnections, Portion, Proxy, RefusalMode, ResolvedLimits, Security, Shed, Timeouts,
    Workers,
};
pub use value::Value;

/// What the configuration is made from. Kept for the life of the supervisor, so that a reload puts the same
/// environment and flags over the new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// The file to read; without one the defaults stand in for it.
    pub file: Option<PathBuf>,
    /// Variables and their values. Those not in [`ENVIRONMENT`] and empty ones count as unset.
    pub environment: Vec<(String, String)>,
    /// Flags in order; of several for one key the last wins.
    pub flags: Vec<FlagValue>,
    /// The key in [`API_KEY_VARIABLE`], if there is one.
    pub api_key: Option<Secret>,
    /// The protocols that the program has; the first serves every path when nobody says which.
    pub protocols: Vec<&'static str>,
}

impl Default for Inputs {
    fn default() -> Self {
        Self { file: None, environment: Vec::new(), flags: Vec::new(), api_key: None, protocols: vec![ECHO] }
    }
}

/// One value given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlagValue {
    /// The key it sets, such as `limits.max_connections`.
    pub key: String,
    /// What it is set to.
    pub value: Value,
    /// The flag as the user would recognise it, such as `--max-connections`.
    pub flag: String,
}

/// A valid configuration and where each of its values came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// The values.
    pub config: Config,
    /// By key; a key that is absent has its default.
    sources: BTreeMap<&'static str, Source>,
}

/// One line of the effective configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The key with its section, such as `limits.max_connections`.
    pub key: &'static str,
    /// The value as the file would spell it.
    pub value: Value,
    /// Where the value came from.
    pub source: Source,
}

impl Effective {
    /// Where the value of `key` came from.
    #[must_use]
    pub fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }

    /// Every key with its value and source, in the order of the documented file.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        keys::KEYS
            .iter()
            .map(|key| Entry {
                key: key.name,
                value: (key.show)(&self.config),
                source: self.source(key.name),
            })
            .collect()
    }
}
