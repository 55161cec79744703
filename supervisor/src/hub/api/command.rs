//! What applications can ask of the hub, checked: whoever carries it out looks at no length and no spelling.

use std::net::IpAddr;
use std::time::Duration;

use holdfast_shared::channels::rules::ChannelName;
use holdfast_shared::id::ConnectionId;

use super::Data;

/// How long the loop may take to answer before the client hears 504.
const PATIENCE: Duration = Duration::from_secs(10);

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Publish to a channel.
    Publish(Publish),
    /// Publish the same to many channels.
    Broadcast(Broadcast),
    /// Carry out several commands in order; none of them is a batch or only asks.
    Batch(Vec<Self>),
    /// Make connections subscribers of a channel.
    Subscribe(Subscription),
    /// The reverse.
    Unsubscribe(Subscription),
    /// Say something to connections, in no channel.
    Send(Send),
    /// Close connections.
    Disconnect(Disconnect),
    /// List channels.
    Channels(ChannelsQuery),
    /// Show one channel.
    Channel(ChannelName),
    /// Read what was published.
    History(HistoryQuery),
    /// List who is subscribed.
    Presence(ChannelName),
    /// List connections.
    Connections(ConnectionsQuery),
    /// Read lifecycle events, or wait for the next.
    Events(EventsQuery),
}

impl Command {
    /// How long the loop may take to answer.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        match self {
            Self::Events(query) => query.wait + PATIENCE,
            _ => PATIENCE,
        }
    }
}

/// A publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    pub channel: ChannelName,
    pub data: Data,
    /// What was published with it before is not published again.
    pub idempotency_key: Option<String>,
    /// The connection that does not get it.
    pub exclude: Option<ConnectionId>,
}

/// A publication in many channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broadcast {
    pub channels: Vec<ChannelName>,
    pub data: Data,
    /// Holds for each channel on its own.
    pub idempotency_key: Option<String>,
    /// The connection that does not get it.
    pub exclude: Option<ConnectionId>,
}

/// Who is to be in a channel, or no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub channel: ChannelName,
    pub target: Target,
}

/// Something said to connections themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    pub target: Target,
    pub data: Data,
}

/// An order to close connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnect {
    pub target: Target,
    /// A close code that a server may send.
    pub code: u16,
    /// At most 123 bytes.
    pub reason: String,
}

/// Whom a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One connection.
    Connection(ConnectionId),
    /// All connections of a user.
    User(String),
}

/// Which channels are listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChannelsQuery {
    /// Whose names begin so.
    pub prefix: String,
    /// What a list before this one ended with.
    pub cursor: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// Which publications are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryQuery {
    pub channel: ChannelName,
    /// Those after this offset; without it the latest.
    pub since: Option<u64>,
    /// What `since` counts within, if that is known.
    pub epoch: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// Which connections are listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectionsQuery {
    /// Of this user.
    pub user: Option<String>,
    /// From this address.
    pub address: Option<IpAddr>,
    /// At most so many.
    pub limit: usize,
}

/// Which events are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventsQuery {
    /// Those whose number is higher.
    pub after: u64,
    /// How long to wait for one if there is none.
    pub wait: Duration,
    /// At most so many.
    pub limit: usize,
}
