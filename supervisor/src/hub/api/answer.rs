//! What the hub answers. Plain data that becomes JSON.

use holdfast_shared::id::{ConnectionId, SlotId};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::{ApiError, Data, RenderedEvent};

/// What the loop answers.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To `Publish`.
    Published(Published),
    /// To `Broadcast` and `Batch`: one for each part, in order.
    Results { results: Vec<Outcome> },
    /// To `Subscribe`, `Unsubscribe`, `Send` and `Disconnect`.
    Reached(Reached),
    /// To `Channels`.
    Channels(Channels),
    /// To `Channel`.
    Channel(ChannelView),
    /// To `History`.
    History(History),
    /// To `Presence`.
    Presence(Presence),
    /// To `Connections`.
    Connections(Connections),
    /// To `Events`.
    Events(Events),
}

/// What became of one part of a call; a part that failed does not keep the others from being carried out.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    Done(Answer),
    Failed(ApiError),
}

impl From<Result<Answer, ApiError>> for Outcome {
    fn from(result: Result<Answer, ApiError>) -> Self {
        match result {
            Ok(answer) => Self::Done(answer),
            Err(error) => Self::Failed(error),
        }
    }
}

/// A publication that is in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Its number in its channel.
    pub offset: u64,
    /// What the number counts within.
    pub epoch: String,
    /// How many subscribers the channel has.
    pub subscribers: u64,
}

/// Whom a call was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// How many connections; a user may have several, or none.
    pub connections: u64,
}

/// Some of the channels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Channels {
    /// By name.
    pub channels: Vec<ChannelRow>,
    /// Where to go on, if there are more.
    pub next: Option<String>,
}

/// One channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChannelRow {
    /// Its name.
    pub name: String,
    /// Connections that are subscribed.
    pub subscribers: u64,
    /// The number of its last publication; 0 if there was none.
    pub offset: u64,
    /// What the number counts within.
    pub epoch: String,
}

/// One channel, closer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChannelView {
    /// What a list says of it.
    #[serde(flatten)]
    pub row: ChannelRow,
    /// How many publications can still be read.
    pub history: u64,
}

/// What was published in a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct History {
    /// The earliest first.
    pub publications: Vec<Publication>,
    /// What offsets count within.
    pub epoch: String,
    /// The number of the channel's last publication.
    pub offset: u64,
    /// Whether nothing is missing between what was asked for and the first one here.
    pub recovered: bool,
}

/// One publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Its number in its channel.
    pub offset: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// What.
    pub data: Data,
}

impl Serialize for Publication {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Publication", 3)?;
        object.serialize_field("offset", &self.offset)?;
        object.serialize_field("time_ms", &self.time_ms)?;
        self.data.write(&mut object)?;
        object.end()
    }
}

/// Who is in a channel.
#[derive(Debug, Clone, Serialize)]
pub struct Presence {
    /// Every connection that is subscribed.
    pub presence: Vec<PresenceRow>,
}

/// One who is there.
#[derive(Debug, Clone, Serialize)]
pub struct PresenceRow {
    /// The connection.
    #[serde(serialize_with = "as_text")]
    pub connection: ConnectionId,
    /// Its user, if it has one.
    pub user: Option<String>,
    /// What its token says of it.
    pub info: Option<Box<RawValue>>,
}

/// Some of the connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// By name.
    pub connections: Vec<ConnectionRow>,
}

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectionRow {
    /// Its name, which it keeps wherever it moves.
    #[serde(serialize_with = "as_text")]
    pub connection: ConnectionId,
    /// Its user, if it has one.
    pub user: Option<String>,
    /// The client's address.
    pub address: String,
    /// The slot that has it.
    pub slot: SlotId,
    /// The channels it is subscribed to.
    pub channels: Vec<String>,
}

/// Lifecycle events.
#[derive(Debug, Clone, Serialize)]
pub struct Events {
    /// In order. Numbers are consecutive, so whoever has waited too long sees what is missing.
    pub events: Vec<RenderedEvent>,
    /// The number of the event that follows.
    pub next: u64,
}

/// As text, since not every reader has 64 bits for a number.
pub(super) fn as_text<S: Serializer>(id: &ConnectionId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}
