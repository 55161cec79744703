//! Entries for one connection, in the order of the journal: it is subscribed or refused, unsubscribed, closed. Another
//! worker may look at them again, and finds them done.

use holdfast_shared::channels::entry::Kind;
use holdfast_shared::channels::journal::Entry;
use holdfast_shared::channels::up_ring::{Refusal, Verdict};
use holdfast_shared::id::ConnectionId;
use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::{Phase, Record, Subscriber};
use tungstenite::protocol::frame::coding::CloseCode;

use super::super::{Connections, Key, index};
use crate::channels::envelope;
use crate::channels::request::Kept;

impl Connections {
    /// Carries the entry out, if it is for a connection of this slot. Returns the connection if it has something to send to it
    /// among what is for all.
    pub(super) fn on_addressed(&mut self, entry: &Entry) -> Option<Key> {
        let id = ConnectionId(entry.head.connection);
        let kind = entry.kind()?;
        let mut bytes = Vec::new();
        self.feed.as_ref()?.memory.append_bytes(entry, &mut bytes).ok()?;
        match kind {
            Kind::Subscribed | Kind::Refused => {
                let verdict: Verdict = serde_json::from_slice(&bytes).ok()?;
                let key = self.addressee(id, Some(verdict.row))?;
                self.set_busy(key);
                match kind {
                    Kind::Subscribed => self.on_subscribed(key, entry, &verdict),
                    _ => self.on_refused(key, &verdict),
                }
                self.settle(key);
                None
            }
            Kind::Unsubscribed => {
                let key = self.addressee(id, None)?;
                self.set_busy(key);
                self.on_unsubscribed(key, entry.head.channel);
                self.settle(key);
                None
            }
            Kind::Direct => self.addressee(id, entry.head.channel.checked_sub(1)),
            Kind::Disconnect => {
                let key = self.addressee(id, entry.head.channel.checked_sub(1))?;
                let code = u16::try_from(entry.head.argument).unwrap_or_default();
                let code = Some(CloseCode::from(code)).filter(|code| code.is_allowed());
                let text = String::from_utf8_lossy(&bytes);
                self.set_busy(key);
                let code = code.unwrap_or(CloseCode::Normal);
                self.begin_close(key, code, &text, CloseReason::Application);
                self.settle(key);
                None
            }
            Kind::Publication | Kind::Note => None,
        }
    }

    /// The connection of this name, if it is here: in the row where it was, or one that came from another slot.
    fn addressee(&mut self, id: ConnectionId, row: Option<u32>) -> Option<Key> {
        let is_it = |record: &Record| record.id == id.0 && record.phase() == Phase::Open;
        if let Some(row) = row
            && self.table.records().get(index(row)).is_some_and(is_it)
        {
            return self.key_at(row).filter(|&key| !self.is_given(key));
        }
        let found = match self.feed.as_ref()?.strangers.get(&id.0) {
            Some(&row) => self.key_at(row),
            // Where it was is known of all that were just let in; others are looked for.
            None if row.is_none() && id.slot() == self.slot => self.find(id),
            None => None,
        };
        found.filter(|&key| self.get(key).is_some_and(is_it) && !self.is_given(key))
    }

    fn on_subscribed(&mut self, key: Key, entry: &Entry, verdict: &Verdict) {
        let Some(&record) = self.get(key) else { return };
        let channel = entry.head.channel;
        let mut kept = Kept::read(self.session(key));
        let is_first = !record.subscriber.contains(Subscriber::SUBSCRIBED);
        let is_known =
            !is_first && record.channel() == channel || kept.more.iter().any(|&(known, _)| known == channel);
        if is_known {
            return;
        }
        if is_first {
            kept.asks = None;
        } else {
            kept.more.push((channel, entry.end()));
        }
        if let Err(error) = self.set_session(key, &kept.write()) {
            log::error!("connection {}: {error}", record.id);
            return self.begin_close(key, CloseCode::Again, "No memory", CloseReason::Error);
        }
        let begins_at = Some(entry.head.argument).filter(|&position| is_first && position != 0);
        if let Some(record) = self.get_mut(key) {
            record.subscriber.set(Subscriber::MANY, !kept.more.is_empty());
            if is_first {
                record.set_channel(channel);
                record.set_part(0);
                record.set_position(begins_at.unwrap_or_else(|| entry.end()));
                record.subscriber.set(Subscriber::SUBSCRIBED, true);
                record.subscriber.set(Subscriber::PUBLISHES, verdict.may_publish);
                record.subscriber.set(Subscriber::LATEST, verdict.lag_latest);
                record.subscriber.set(Subscriber::LAGGING, begins_at.is_some());
            }
        }
        if let Some(feed) = &mut self.feed {
            feed.index.add(channel, key.row);
        }
        if kept.envelope {
            let mut welcome = Vec::new();
            envelope::append_subscribed(verdict, &mut welcome);
            self.table.counters().messages_sent += 1;
            self.write(key, &welcome);
        }
        if begins_at.is_some() {
            self.queue_behind(key);
        }
        // What idle time it had does not count for a subscriber.
        self.arm_open(key);
    }

    fn on_refused(&mut self, key: Key, verdict: &Verdict) {
        let is_waiting =
            self.get(key).is_some_and(|record| !record.subscriber.contains(Subscriber::SUBSCRIBED));
        if !is_waiting {
            return;
        }
        let (code, text) = match verdict.reason {
            Some(Refusal::AskAgain) => return self.join_again(key),
            Some(Refusal::Forbidden) | None => (CloseCode::Policy, "forbidden"),
            Some(Refusal::MaxSubscribers) => (CloseCode::Again, "max_subscribers"),
            Some(Refusal::MaxConnectionsPerUser) => (CloseCode::Policy, "max_connections_per_user"),
            Some(Refusal::MaxSubscriptions) => (CloseCode::Policy, "max_subscriptions"),
            Some(Refusal::MaxChannels) => (CloseCode::Again, "max_channels"),
        };
        self.begin_close(key, code, text, CloseReason::Application);
    }

    fn on_unsubscribed(&mut self, key: Key, channel: u32) {
        let Some(&record) = self.get(key) else { return };
        let mut kept = Kept::read(self.session(key));
        if record.subscriber.contains(Subscriber::SUBSCRIBED) && record.channel() == channel {
            if record.subscriber.contains(Subscriber::MANY) {
                // The next one takes its place; it is counted in the index already.
                let (next, _) = kept.more.remove(0);
                let _ = self.set_session(key, &kept.write());
                if let Some(record) = self.get_mut(key) {
                    record.set_channel(next);
                    record.subscriber.set(Subscriber::MANY, !kept.more.is_empty());
                }
            } else {
                self.begin_close(key, CloseCode::Normal, "Unsubscribed", CloseReason::Application);
                if let Some(record) = self.get_mut(key) {
                    record.subscriber.set(Subscriber::SUBSCRIBED, false);
                    record.set_channel(0);
                }
            }
        } else if kept.more.iter().any(|&(known, _)| known == channel) {
            kept.more.retain(|&(known, _)| known != channel);
            let _ = self.set_session(key, &kept.write());
            if let Some(record) = self.get_mut(key) {
                record.subscriber.set(Subscriber::MANY, !kept.more.is_empty());
            }
        } else {
            return;
        }
        if let Some(feed) = &mut self.feed {
            feed.index.remove(channel);
        }
    }
}
