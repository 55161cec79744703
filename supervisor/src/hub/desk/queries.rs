//! What applications ask: nothing changes by it.

use holdfast_shared::channels::directory::epoch_text;
use holdfast_shared::channels::journal::Entry;
use holdfast_shared::channels::rules::{ChannelName, EVENTS};
use holdfast_shared::id::{ConnectionId, SlotId};
use serde_json::value::RawValue;

use super::Desk;
use super::commands::not_known_yet;
use crate::hub::api::{
    ApiError, ChannelRow, ChannelView, Channels, ChannelsQuery, ConnectionRow, Connections, ConnectionsQuery,
    Data, Events, EventsQuery, History, HistoryQuery, Presence, PresenceRow, Publication, RenderedEvent,
};

/// No answer has more bytes of messages, but for one that is longer alone.
const MOST_BYTES: usize = 8 * 1024 * 1024;

impl Desk {
    pub(super) fn list_channels(&self, query: &ChannelsQuery) -> Channels {
        let is_asked_for = |name: &str| {
            name != EVENTS
                && name.starts_with(&query.prefix)
                && query.cursor.as_deref().is_none_or(|cursor| name > cursor)
        };
        let mut found: Vec<(&str, u32)> =
            self.channels.names().filter(|(name, _)| is_asked_for(name)).collect();
        let is_more = found.len() > query.limit;
        if is_more && query.limit > 0 {
            found.select_nth_unstable(query.limit - 1);
        }
        found.truncate(query.limit);
        found.sort_unstable();
        let channels: Vec<_> =
            found.into_iter().filter_map(|(name, number)| self.row(name, number)).collect();
        let next = channels.last().filter(|_| is_more).map(|last| last.name.clone());
        Channels { channels, next }
    }

    pub(super) fn show_channel(&self, name: &ChannelName) -> Result<ChannelView, ApiError> {
        let number = self.number(name)?;
        let row = self.row(name.as_str(), number).ok_or_else(|| no_channel(name))?;
        Ok(ChannelView { row, history: self.history(number).count() as u64 })
    }

    pub(super) fn read_history(&self, query: &HistoryQuery) -> Result<History, ApiError> {
        let number = self.number(&query.channel)?;
        let state = self.channels.get(number).map(|found| found.state).unwrap_or_default();
        let epoch = epoch_text(state.epoch);
        let since = query.since.filter(|_| query.epoch.as_ref().is_none_or(|of_query| *of_query == epoch));
        let mut entries: Vec<Entry> = match since {
            Some(since) => self.history(number).take_while(|entry| entry.head.offset > since).collect(),
            None => self.history(number).take(query.limit).collect(),
        };
        entries.reverse();
        let recovered = match (query.since, since) {
            (None, _) => true,
            (Some(_), None) => false,
            (_, Some(since)) => {
                let first = entries.first().map_or(state.offset + 1, |entry| entry.head.offset);
                since <= state.offset && first == since + 1
            }
        };
        entries.truncate(query.limit);
        let publications = self.read_publications(&entries);
        Ok(History { publications, epoch, offset: state.offset, recovered })
    }

    fn read_publications(&self, entries: &[Entry]) -> Vec<Publication> {
        let (mut publications, mut total) = (Vec::new(), 0);
        for entry in entries {
            let mut frame = Vec::new();
            if self.memory.append_bytes(entry, &mut frame).is_err() {
                continue;
            }
            total += frame.len();
            if total > MOST_BYTES && !publications.is_empty() {
                break;
            }
            let (offset, time_ms) = (entry.head.offset, entry.head.time_ms);
            let data = data_of(frame, entry.head.is_text());
            publications.push(Publication { offset, time_ms, data });
        }
        publications
    }

    pub(super) fn presence(&self, name: &ChannelName) -> Result<Presence, ApiError> {
        if !self.rule_for(name.as_str()).is_some_and(|rule| rule.presence) {
            let message =
                format!("no rule with presence = true is the first that matches the channel {name}");
            return Err(ApiError::of_status(403, message));
        }
        if !self.knows_all {
            return Err(not_known_yet());
        }
        let number = self.channels.find(name.as_str()).unwrap_or_default();
        let is_in = |&connection: &u64| number != 0 && self.members.is_in(connection, number);
        let mut connections: Vec<u64> = self.members.ids().filter(is_in).collect();
        connections.sort_unstable();
        let row = |connection| {
            let who = self.members.who(connection).unwrap_or_default();
            // It was JSON in the token.
            let info = who.info.and_then(|info| RawValue::from_string(info).ok());
            PresenceRow { connection: ConnectionId(connection), user: who.user, info }
        };
        Ok(Presence { presence: connections.into_iter().map(row).collect() })
    }

    pub(super) fn list_connections(&self, query: &ConnectionsQuery) -> Result<Connections, ApiError> {
        if !self.knows_all {
            return Err(not_known_yet());
        }
        let of_user = query.user.as_deref().map(|user| self.members.of_user(user).to_vec());
        let mut found = of_user.unwrap_or_else(|| self.members.ids().collect());
        if let Some(address) = query.address {
            found.retain(|&connection| self.members.address(connection) == Some(address));
        }
        found.sort_unstable();
        found.truncate(query.limit);
        let row = |connection| {
            let who = self.members.who(connection).unwrap_or_default();
            let channels = self.members.channels(connection).into_iter();
            ConnectionRow {
                connection: ConnectionId(connection),
                user: who.user,
                address: who.address.map(|address| address.to_string()).unwrap_or_default(),
                slot: SlotId(who.slot),
                channels: channels.filter_map(|channel| self.memory.channel_name(channel)).collect(),
            }
        };
        Ok(Connections { connections: found.into_iter().map(row).collect() })
    }

    /// The number of the last event.
    pub(in crate::hub) fn last_event(&self) -> u64 {
        self.events.and_then(|channel| self.channels.get(channel)).map_or(0, |events| events.state.offset)
    }

    /// Those behind `after`; none if there are none yet. Of the batch under way there are none.
    pub(super) fn read_events(&mut self, query: &EventsQuery) -> Result<Events, ApiError> {
        let Some(channel) = self.events else {
            return Err(ApiError::of_status(404, "nothing is noted down of what happens: there is no API"));
        };
        let last = self.channels.get(channel).map(|events| events.state).unwrap_or_default();
        let cursor = self.cursor.filter(|&(seq, _)| seq == query.after && seq != last.offset);
        let first = match cursor.and_then(|(_, position)| self.memory.entry(position).ok()) {
            Some(before) => self.memory.next_in_channel(&before),
            None => self
                .publications(channel, last.last)
                .take_while(|entry| entry.head.offset > query.after)
                .last()
                .map(|entry| entry.position),
        };
        let (mut next, mut events, mut total) = (first, Vec::new(), 0);
        let mut seq = query.after.min(last.offset);
        while let Some(entry) = next.and_then(|position| self.memory.entry(position).ok()) {
            let mut bytes = Vec::new();
            if events.len() >= query.limit
                || total > MOST_BYTES
                || self.memory.append_bytes(&entry, &mut bytes).is_err()
            {
                break;
            }
            total += bytes.len();
            seq = entry.head.offset;
            self.cursor = Some((seq, entry.position));
            let json = String::from_utf8(bytes).unwrap_or_default();
            events.extend(RenderedEvent::from_json(seq, json));
            next = self.memory.next_in_channel(&entry);
        }
        Ok(Events { events, next: seq + 1 })
    }

    fn number(&self, name: &ChannelName) -> Result<u32, ApiError> {
        self.channels.find(name.as_str()).ok_or_else(|| no_channel(name))
    }

    fn row(&self, name: &str, number: u32) -> Option<ChannelRow> {
        let state = self.channels.get(number)?.state;
        Some(ChannelRow {
            name: name.to_owned(),
            subscribers: state.subscribers,
            offset: state.offset,
            epoch: epoch_text(state.epoch),
        })
    }
}

fn no_channel(name: &ChannelName) -> ApiError {
    let message =
        format!("there is no channel {name}: nobody is subscribed, and nothing of it can be had again");
    ApiError::of_status(404, message)
}

/// The message in a whole frame of a server.
fn data_of(mut frame: Vec<u8>, is_text: bool) -> Data {
    let header = match frame.get(1).map(|length| length & 0x7f) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    frame.drain(..header.min(frame.len()));
    if !is_text {
        return Data::binary(frame);
    }
    String::from_utf8(frame).map_or_else(|error| Data::binary(error.into_bytes()), Data::text)
}
