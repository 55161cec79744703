//! Lifecycle events as applications read them.

use std::sync::Arc;

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use holdfast_shared::id::ConnectionId;

use super::answer::as_text;

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventName {
    /// A client was let in.
    Connected,
    /// A connection has become a subscriber of a channel.
    Subscribed,
    /// It is one no more.
    Unsubscribed,
    /// A connection has ended.
    Disconnected,
    /// A channel has its first subscriber.
    ChannelOccupied,
    /// A channel has lost its last one.
    ChannelVacated,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Its number; the next event has the next one.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// What.
    pub name: EventName,
    /// Whose.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text_if_any")]
    pub connection: Option<ConnectionId>,
    /// Their user, if they have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The channel that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// The close code of a connection that has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// Why it has ended, by the names of `holdfast ctl totals`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The channels that a connection which has ended was in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub channels: Vec<String>,
}

/// An event as the JSON that leaves, made once.
#[derive(Debug, Clone)]
pub struct RenderedEvent {
    seq: u64,
    json: Arc<RawValue>,
}

impl Event {
    /// As JSON.
    ///
    /// # Errors
    /// None that is known.
    pub fn render(&self) -> serde_json::Result<RenderedEvent> {
        Ok(RenderedEvent { seq: self.seq, json: serde_json::value::to_raw_value(self)?.into() })
    }
}

impl RenderedEvent {
    /// The event number `seq`, whose JSON was kept.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn from_json(seq: u64, json: String) -> serde_json::Result<Self> {
        Ok(Self { seq, json: RawValue::from_string(json)?.into() })
    }

    /// Its number.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Its JSON.
    #[must_use]
    pub fn json(&self) -> &str {
        self.json.get()
    }
}

impl Serialize for RenderedEvent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

fn as_text_if_any<S: Serializer>(id: &Option<ConnectionId>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => as_text(id, serializer),
        None => Err(S::Error::custom("skipped")),
    }
}
