//! The configuration of channels, as types with their defaults: which there may be, how applications reach them, and by which
//! tokens clients show who they are. Knows neither how values are spelled nor what the files hold.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Config;
use crate::channels::rules::Rule;
use crate::route::Route;

/// Which channels there may be, and what holds for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channels {
    /// Bytes in which publications are kept.
    pub journal_size: usize,
    /// How far a subscriber may fall behind, in bytes of the journal.
    pub max_lag: usize,
    /// Channels that one connection may be subscribed to.
    pub max_subscriptions: u32,
    /// What holds for which channels; the first that matches.
    pub rules: Vec<Rule>,
}

/// How applications reach channels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Api {
    /// Where.
    pub listen: ApiListen,
    /// The file with the keys that let them in, one a line.
    pub keys_file: Option<PathBuf>,
}

/// Where the API listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiListen {
    /// Nowhere.
    #[default]
    Off,
    /// At an address.
    Address(SocketAddr),
    /// At a socket in the file system.
    Unix(PathBuf),
}

/// By which tokens clients show who they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// The file with the secret of tokens signed by HS256.
    pub secret_file: Option<PathBuf>,
    /// The file with the public keys (RFC 7517, section 5) of tokens signed by RS256 and ES256.
    pub jwks_file: Option<PathBuf>,
    /// Whom a token must be for, by its claim `aud`; `None` lets any be.
    pub audience: Option<String>,
}

/// Where events are sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Whither; `None` is nowhere: they are asked for.
    pub url: Option<String>,
    /// The file with the secret that signs them.
    pub secret_file: Option<PathBuf>,
}

/// The protocol of channels.
pub const CHANNELS: &str = "channels";

impl Config {
    /// Is there anything to have a hub for?
    #[must_use]
    pub fn has_channels(&self) -> bool {
        let is_route = |route: &Route| route.protocol == CHANNELS;
        self.api.listen != ApiListen::Off
            || !self.channels.rules.is_empty()
            || self.routes.iter().any(is_route)
    }
}

impl Channels {
    /// How far a subscriber may fall behind at most, and still find what it has not had yet.
    #[must_use]
    pub fn most_lag(&self) -> usize {
        self.journal_size / 4 * 3
    }
}

impl Default for Channels {
    fn default() -> Self {
        Self {
            journal_size: 64 * 1024 * 1024,
            max_lag: 8 * 1024 * 1024,
            max_subscriptions: 100,
            rules: Vec::new(),
        }
    }
}
