//! What happens to connections and channels, told in the order in which it happens: publications of a channel that no
//! client can name. The number of an event is its number there.

use bytemuck::Zeroable;
use holdfast_shared::channels::entry::EntryHead;
use holdfast_shared::channels::rules::EVENTS;
use serde::{Serialize, Serializer};

use super::{Desk, From};

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Name {
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

/// One event, but for its number and its time.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Event<'a> {
    pub(super) name: Name,
    /// As text, since not every reader has 64 bits for a number.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub(super) connection: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) channel: Option<&'a str>,
    /// The close code of a connection that has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) code: Option<u16>,
    /// Why it has ended, as in the metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'a str>,
    /// The channels that a connection which has ended was in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) channels: Vec<String>,
}

impl Event<'_> {
    pub(super) fn of(name: Name, connection: u64) -> Self {
        Self { connection: Some(connection), ..Self::new(name) }
    }

    pub(super) fn new(name: Name) -> Self {
        Self {
            name,
            connection: None,
            user: None,
            channel: None,
            code: None,
            reason: None,
            channels: Vec::new(),
        }
    }
}

/// As it leaves.
#[derive(Serialize)]
struct Numbered<'a> {
    seq: u64,
    time_ms: u64,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

impl Desk {
    /// Makes the channel of events if there is to be one. What it has stays when nobody wants to know any more.
    pub(super) fn open_events(&mut self) {
        self.events = match self.settings.has_events {
            true => self.channels.open(&self.memory, &self.settings.rules, EVENTS),
            false => None,
        };
    }

    /// Tells what has happened, if anybody wants to know.
    pub(super) fn tell(&mut self, from: From, event: &Event<'_>) {
        let Some(channel) = self.events else { return };
        let Some(state) = self.channels.get(channel).map(|found| found.state) else { return };
        let numbered = Numbered { seq: state.offset + 1, time_ms: self.now.wall_ms, event };
        // Strings and numbers: nothing that JSON does not have.
        let bytes = serde_json::to_vec(&numbered).unwrap_or_default();
        let bytes = if bytes.len() <= self.memory.largest_entry() { &bytes[..] } else { b"{}" };
        let head = EntryHead { channel, flags: EntryHead::TEXT, ..EntryHead::zeroed() };
        self.append_publication(from, head, bytes);
    }

    pub(super) fn tell_of_member(&mut self, from: From, name: Name, connection: u64, channel: u32) {
        if self.events.is_none() {
            return;
        }
        let user = self.members.who(connection).and_then(|who| who.user);
        let channel = self.memory.channel_name(channel);
        let event =
            Event { user: user.as_deref(), channel: channel.as_deref(), ..Event::of(name, connection) };
        self.tell(from, &event);
    }

    pub(super) fn tell_of_channel(&mut self, from: From, name: Name, channel: u32) {
        if self.events.is_none() {
            return;
        }
        let channel = self.memory.channel_name(channel);
        self.tell(from, &Event { channel: channel.as_deref(), ..Event::new(name) });
    }
}

fn as_text<S: Serializer>(connection: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match connection {
        Some(connection) => serializer.collect_str(connection),
        None => serializer.serialize_none(),
    }
}
