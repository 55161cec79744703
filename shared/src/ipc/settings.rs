//! What a worker must know to serve: the part of the configuration that concerns it, as the supervisor
//! computed it. A worker never reads a file; it gets these as memory, when it starts and whenever they change.
//!
//! They travel by name: a name that the reader does not know is ignored, and one that it misses takes its default.

use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::channels::rules::Rule;
use crate::channels::token_keys::TokenKeys;
use crate::level::Level;
use crate::route::Route;

/// All of it. Replaced as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Rows the connection table must have: descriptors this worker can use.
    pub rows: u32,
    /// Unfinished handshakes this worker may have.
    pub max_pending_handshakes: u32,
    /// Longest message taken from a client, in bytes.
    pub max_message_size: u64,
    /// Most output kept for a client that does not read, in bytes.
    pub max_queued_output: u64,
    /// What a refused client is told to wait, before jitter.
    pub retry_after: Duration,
    /// From accept to the end of the request, and from the request to the verdict.
    pub handshake_timeout: Duration,
    /// Between two pings; zero is never.
    pub ping_interval: Duration,
    /// From a ping to any sign of life.
    pub pong_timeout: Duration,
    /// Without a data frame; zero is never.
    pub idle_timeout: Duration,
    /// From our close frame to the client's, and from there to end of file.
    pub close_timeout: Duration,
    /// Path at and below which upgrades are allowed.
    pub path: String,
    /// Origins that may connect; empty is any.
    pub allowed_origins: Vec<String>,
    /// Peers that are believed about where their clients are.
    pub trusted_proxies: Vec<IpNet>,
    /// A good request that a limit or a drain turns away is answered with 101 and a close frame, and not in HTTP.
    pub refuses_with_close: bool,
    /// They say it in `Forwarded`, and not in `X-Forwarded-For`.
    pub reads_forwarded: bool,
    /// They say it in a PROXY header.
    pub has_proxy_header: bool,
    /// Which protocol serves which path.
    pub routes: Vec<Route>,
    /// Most bytes that a worker keeps for all clients together, queued output and half messages; 0 is no limit.
    pub max_buffered_total: u64,
    /// How long a client may take none of its queued output; zero is for ever.
    pub stalled_timeout: Duration,
    /// From the first byte of a message to its last; zero is for ever.
    pub message_timeout: Duration,
    /// Most messages of one connection in a second; 0 is no limit.
    pub messages_per_second: u32,
    /// How long a client may wait for a place, on top of the handshake timeout; zero is not at all.
    pub waiting_room_timeout: Duration,
    /// What holds instead when the server is degraded; `None` changes nothing.
    pub degraded: Option<Degraded>,
    /// Applications may not send one message to many.
    pub broadcasts_are_off: bool,
    /// What holds for channels; `None` in a server without them.
    pub channels: Option<ChannelSettings>,
}

/// What a worker must know of channels.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelSettings {
    /// Tells the channel memory that there is from those that were: its seed.
    pub memory: u64,
    /// What holds for which channels; the first that matches.
    pub rules: Vec<Rule>,
    /// How far a subscriber may fall behind, in bytes of the journal.
    pub max_lag: u64,
    /// Channels that one connection may be subscribed to.
    pub max_subscriptions: u32,
    /// What clients' tokens are checked by.
    pub tokens: TokenKeys,
}

/// What holds for clients of a degraded server, as far as it is stricter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Degraded {
    /// Between two pings.
    pub ping_interval: Duration,
    /// Applications may send one message to many.
    pub allow_broadcast: bool,
    /// Longest message taken from a client, in bytes.
    pub max_message_size: u64,
    /// New clients are told.
    pub notify_clients: bool,
    /// Most messages of one connection in a second; 0 changes nothing.
    pub messages_per_second: u32,
}

impl Settings {
    /// What holds at this level.
    #[must_use]
    pub fn at(&self, level: Level) -> Self {
        let mut settings = self.clone();
        if let Some(degraded) = self.degraded.as_ref().filter(|_| level >= Level::Degraded) {
            if !settings.ping_interval.is_zero() {
                settings.ping_interval = settings.ping_interval.max(degraded.ping_interval);
            }
            settings.max_message_size = settings.max_message_size.min(degraded.max_message_size);
            settings.messages_per_second = match (settings.messages_per_second, degraded.messages_per_second)
            {
                (0, most) | (most, 0) => most,
                (usual, degraded) => usual.min(degraded),
            };
            settings.broadcasts_are_off = !degraded.allow_broadcast;
        }
        settings
    }
}
