//! What is said of clients between workers and the hub, in JSON: fields are added by name, and what is missing takes its
//! default.

use serde::{Deserialize, Serialize};

/// What a client asks for when it asks for a channel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Subscribe {
    /// The channel's name.
    pub channel: String,
    /// The last publication that it has, if it was here before.
    pub since: Option<u64>,
    /// Of that epoch.
    pub epoch: Option<String>,
    /// Its token names the channel: no rule is asked.
    pub is_granted: bool,
    /// Where its record is.
    pub row: u32,
}

/// A client that was let in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Joined {
    /// Whose it is, if a token says so.
    pub user: Option<String>,
    /// Where it is.
    pub address: String,
    /// What the token says about the user, as JSON.
    pub info: Option<String>,
    /// What it asks for.
    pub subscribe: Option<Subscribe>,
}

/// A client that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Gone {
    /// The close code of the reason.
    pub code: u16,
    /// As in the metrics.
    pub reason: String,
    /// Whose it was.
    pub user: Option<String>,
    /// The channels that it was subscribed to, by number.
    pub channels: Vec<u32>,
}

/// A client that is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Here {
    /// Whose it is.
    pub user: Option<String>,
    /// Where it is.
    pub address: String,
    /// What the token says about the user, as JSON.
    pub info: Option<String>,
    /// The channels that it is subscribed to, by number.
    pub channels: Vec<u32>,
    /// Where its record is.
    pub row: u32,
}

/// The answer to a request for a channel, in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Verdict {
    /// Where the client's record was when it asked.
    pub row: u32,
    /// The channel's name.
    pub channel: String,
    /// The channel's epoch.
    pub epoch: String,
    /// The channel's last publication.
    pub offset: u64,
    /// All that the client has missed follows; `None` when it has not asked.
    pub recovered: Option<bool>,
    /// Why it was refused.
    pub reason: Option<Refusal>,
    /// It may publish.
    pub may_publish: bool,
    /// A subscriber that is too slow skips to the newest.
    pub lag_latest: bool,
}

/// Why the hub refuses a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// No rule lets anybody subscribe to it.
    Forbidden,
    /// `max_subscribers` of the channel's rule.
    MaxSubscribers,
    /// `limits.max_connections_per_user`.
    MaxConnectionsPerUser,
    /// `channels.max_subscriptions`.
    MaxSubscriptions,
    /// There are as many channels as there can be.
    MaxChannels,
    /// The hub does not know all clients yet: ask again.
    AskAgain,
}
