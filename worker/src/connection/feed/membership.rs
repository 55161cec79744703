//! Who the hub knows: clients that join, are gone, come from other slots, and all of them for a hub that is new. Each of
//! these is said once, whoever dies: what is being said is noted in the ring before it counts there, and in the record after.

use std::time::Duration;

use holdfast_shared::channels::memory::Word as Memory;
use holdfast_shared::channels::up_ring::{Gone, Here, Joined, MAX_MESSAGE, MessageKind, Subscribe, Word};
use holdfast_shared::id::ConnectionId;
use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::{Flags, Phase, Record, Subscriber};
use serde::Serialize;
use tungstenite::protocol::frame::coding::CloseCode;

use super::super::{Connections, Key, index};
use super::ASK_AGAIN_AFTER;
use crate::channels::request::Kept;

/// Clients named in one step to a hub that does not know them.
const NAMED_PER_STEP: usize = 1024;

/// What is to be said once there is room.
#[derive(Debug)]
pub(super) enum Unsaid {
    Join(Key),
    MovedIn(Key),
}

impl Connections {
    /// Tells the hub of a client that opened, and what it asks for.
    pub(crate) fn join(&mut self, key: Key) {
        if self.feed.is_none() {
            return self.begin_close(
                key,
                CloseCode::Again,
                "Channels are not there yet",
                CloseReason::Application,
            );
        }
        if !self.say_join(key)
            && let Some(feed) = &mut self.feed
        {
            feed.unsaid.push_back(Unsaid::Join(key));
        }
    }

    /// Does the hub know this client?
    pub(crate) fn has_joined(&self, key: Key) -> bool {
        self.get(key).is_some_and(|record| record.subscriber.contains(Subscriber::JOINED))
    }

    fn say_join(&mut self, key: Key) -> bool {
        let Some(&record) = self.get(key).filter(|record| record.phase() == Phase::Open) else { return true };
        if record.subscriber.contains(Subscriber::JOINED) {
            return true;
        }
        let kept = Kept::read(self.session(key));
        let subscribe = kept.asks.map(|asks| Subscribe { row: key.row, ..asks });
        let joined =
            Joined { user: kept.user, address: record.address().to_string(), info: kept.info, subscribe };
        // Its answer lies behind this.
        let tail = self.feed.as_ref().map_or(0, |feed| feed.memory.get(Memory::Tail));
        if let Some(record) = self.get_mut(key) {
            record.set_position(tail);
            record.subscriber.set(Subscriber::ENVELOPE, kept.envelope);
        }
        let is_said = self.say_once(key, record.id, MessageKind::Joined, &joined);
        if is_said {
            self.note_joined(key, true);
        }
        is_said
    }

    /// The hub is told that this client is gone, if it knows it. False while there is no room for it.
    pub(crate) fn say_gone(&mut self, key: Key, record: &Record, reason: CloseReason) -> bool {
        if !record.subscriber.contains(Subscriber::JOINED) || self.feed.is_none() {
            return true;
        }
        let kept = Kept::read(self.session(key));
        let gone = Gone {
            code: code_of(reason),
            reason: reason.to_string(),
            user: kept.user,
            channels: channels_of(record, &kept.more).collect(),
        };
        let is_said = self.say_once(key, record.id, MessageKind::Gone, &gone);
        if is_said {
            self.note_joined(key, false);
        }
        is_said
    }

    fn say_once(&mut self, key: Key, id: u64, kind: MessageKind, what: &impl Serialize) -> bool {
        let Some(feed) = &mut self.feed else { return false };
        let bytes = serde_json::to_vec(what).unwrap_or_default();
        if bytes.len() > MAX_MESSAGE {
            return false;
        }
        let is_said = feed.ring.say_once((key.row, key.serial), kind, id, &bytes);
        feed.has_said = true;
        if !is_said {
            feed.ring.set(Word::WantsRoom, 1);
        }
        is_said
    }

    /// Notes what was said, in the record and then in the ring.
    fn note_joined(&mut self, key: Key, joined: bool) {
        if self.record_of(key).is_some() {
            self.table.records_mut()[index(key.row)].subscriber.set(Subscriber::JOINED, joined);
        }
        if let Some(feed) = &self.feed {
            feed.ring.forget_said();
        }
    }

    /// What the worker before was saying when it died was said or not; and where the ring is new, nothing that records say of
    /// channels is true any more.
    pub(super) fn settle_what_was_said(&mut self) {
        let Some(feed) = &mut self.feed else { return };
        let is_fresh = feed.ring.get(Word::Opened) == 0;
        let said = feed.ring.was_said();
        if is_fresh {
            let generation = feed.memory.get(Memory::Generation);
            feed.ring.say(MessageKind::AnnounceBegin, 0, 0, 0, &[]);
            feed.ring.say(MessageKind::AnnounceEnd, 0, 0, 0, &[]);
            feed.ring.set(Word::Announced, generation);
            feed.ring.set(Word::Opened, 1);
        }
        if let Some((row, serial, kind)) = said {
            self.note_joined(Key { row, serial }, kind == MessageKind::Joined);
        }
        if is_fresh {
            for row in self.table.used() {
                let record = &mut self.table.records_mut()[index(row)];
                if record.phase() == Phase::Open && record.subscriber != Subscriber::NONE {
                    log::debug!("connection {} was subscribed in a memory that is gone", record.id);
                    record.subscriber = Subscriber::NONE;
                    record.set_channel(0);
                    record.set_part(0);
                    // As one whose stream state died with its worker: it is told to come back.
                    record.flags.set(Flags::BUSY, true);
                }
            }
        }
    }

    /// Goes on with a connection that an earlier worker or another slot has left.
    pub(crate) fn take_over_subscriptions(&mut self, key: Key) {
        let Some(&record) = self.get(key) else { return };
        if self.feed.is_none() || !record.subscriber.contains(Subscriber::JOINED) {
            return;
        }
        let more = match record.subscriber.contains(Subscriber::MANY) {
            true => Kept::read(self.session(key)).more,
            false => Vec::new(),
        };
        let is_stranger = ConnectionId(record.id).slot() != self.slot;
        let Some(feed) = &mut self.feed else { return };
        for channel in channels_of(&record, &more) {
            feed.index.add(channel, key.row);
        }
        if record.subscriber.contains(Subscriber::LAGGING) {
            feed.lagging.insert(key.row, key.serial);
        }
        if is_stranger {
            feed.strangers.insert(record.id, key.row);
        }
    }

    /// A connection of another slot is this one's: it goes on from where it was there.
    pub(crate) fn take_in_subscriptions(&mut self, key: Key) {
        self.take_over_subscriptions(key);
        let Some(&record) = self.get(key) else { return };
        if !record.subscriber.contains(Subscriber::JOINED) || self.feed.is_none() {
            return;
        }
        self.queue_behind(key);
        if let Some(feed) = &mut self.feed {
            feed.strangers.insert(record.id, key.row);
            feed.unsaid.push_back(Unsaid::MovedIn(key));
        }
    }

    /// It may go to another slot: from now on its own position says what it has.
    pub(crate) fn detach_from_slot(&mut self, key: Key) {
        if self.feed.is_some() && self.has_joined(key) {
            self.set_lagging(key);
        }
    }

    /// It stays after all.
    pub(crate) fn attach_to_slot(&mut self, key: Key) {
        if self.feed.is_some() && self.has_joined(key) {
            self.queue_behind(key);
        }
    }

    /// There is no connection in this row any more. To be called while its session can be read.
    pub(in crate::connection) fn drop_subscriptions(&mut self, row: u32, record: &Record) {
        if self.feed.is_none() || record.subscriber == Subscriber::NONE {
            return;
        }
        if record.flags.contains(Flags::TAKEN) {
            // It has never been taken in.
            return;
        }
        let more = match record.subscriber.contains(Subscriber::MANY) {
            true => Kept::read(self.session_of_row(row, record)).more,
            false => Vec::new(),
        };
        let Some(feed) = &mut self.feed else { return };
        for channel in channels_of(record, &more) {
            feed.index.remove(channel);
        }
        feed.lagging.remove(&row);
        feed.strangers.remove(&record.id);
    }

    /// Says what there was no room for.
    pub(super) fn say_unsaid(&mut self, now: Duration) {
        let Some(feed) = &mut self.feed else { return };
        if feed.unsaid.is_empty() || now < feed.unsaid_not_before {
            return;
        }
        for _ in 0..feed.unsaid.len() {
            let Some(unsaid) = self.feed.as_mut().and_then(|feed| feed.unsaid.pop_front()) else { return };
            let is_said = match unsaid {
                Unsaid::Join(key) => self.say_join(key),
                Unsaid::MovedIn(key) => self.say_moved_in(key),
            };
            if !is_said && let Some(feed) = &mut self.feed {
                feed.unsaid.push_front(unsaid);
                feed.unsaid_not_before = now + ASK_AGAIN_AFTER;
                return;
            }
        }
    }

    /// The hub could not answer yet: asks again, after a while.
    pub(super) fn join_again(&mut self, key: Key) {
        self.note_joined(key, false);
        if let Some(feed) = &mut self.feed {
            feed.unsaid.push_back(Unsaid::Join(key));
            feed.unsaid_not_before = Duration::from_millis(self.now_ms) + ASK_AGAIN_AFTER;
        }
    }

    fn say_moved_in(&mut self, key: Key) -> bool {
        let Some(&record) = self.get(key) else { return true };
        let Some(feed) = &mut self.feed else { return true };
        feed.has_said = true;
        // While slots name all that they have, one that moves between two of them may be named by neither.
        feed.ring.say(MessageKind::MovedIn, 0, record.id, key.row, &[]) && self.say_here(key.row)
    }

    /// Names all clients to a hub that does not know them, some in each step, once the slot is as far as that hub was when it
    /// began: what was answered before has arrived then.
    pub(super) fn announce(&mut self) {
        let Some(feed) = &mut self.feed else { return };
        let generation = feed.memory.get(Memory::Generation);
        if feed.ring.get(Word::Announced) == generation {
            feed.announcing = None;
            return;
        }
        let first = match feed.announcing {
            Some((of, row)) if of == generation => row,
            _ if feed.delivered() < feed.memory.get(Memory::GenerationStart) => return,
            _ if feed.ring.say(MessageKind::AnnounceBegin, 0, 0, 0, &[]) => 0,
            _ => return,
        };
        feed.has_said = true;
        feed.announcing = Some((generation, first));
        let rows: Vec<u32> = self.occupied_rows(first).take(NAMED_PER_STEP).collect();
        for &row in &rows {
            if !self.say_here(row) {
                if let Some(feed) = &mut self.feed {
                    feed.announcing = Some((generation, row));
                    feed.ring.set(Word::WantsRoom, 1);
                }
                return;
            }
        }
        let Some(feed) = &mut self.feed else { return };
        if let Some(&last) = rows.last() {
            feed.announcing = Some((generation, last + 1));
        } else if feed.ring.say(MessageKind::AnnounceEnd, 0, 0, 0, &[]) {
            feed.ring.set(Word::Announced, generation);
            feed.announcing = None;
        }
    }

    fn say_here(&mut self, row: u32) -> bool {
        let Some(key) = self.key_at(row) else { return true };
        let Some(&record) = self.get(key).filter(|record| record.subscriber.contains(Subscriber::JOINED))
        else {
            return true;
        };
        let kept = Kept::read(self.session(key));
        let here = Here {
            user: kept.user,
            address: record.address().to_string(),
            info: kept.info,
            channels: channels_of(&record, &kept.more).collect(),
            row,
        };
        let bytes = serde_json::to_vec(&here).unwrap_or_default();
        let Some(feed) = &mut self.feed else { return true };
        feed.ring.say(MessageKind::Here, 0, record.id, 0, &bytes)
    }
}

/// The channels that a connection is subscribed to.
pub(super) fn channels_of(record: &Record, more: &[(u32, u64)]) -> impl Iterator<Item = u32> {
    let first = record.subscriber.contains(Subscriber::SUBSCRIBED).then(|| record.channel());
    first.into_iter().chain(more.iter().map(|&(channel, _)| channel))
}

/// The code that applications know the reason by (RFC 6455, section 7.4.1).
fn code_of(reason: CloseReason) -> u16 {
    match reason {
        CloseReason::Client | CloseReason::IdleTimeout | CloseReason::Admin | CloseReason::Application => {
            1000
        }
        CloseReason::Drain => 1001,
        CloseReason::ProtocolError => 1002,
        CloseReason::PingTimeout | CloseReason::Error => 1006,
        CloseReason::InvalidUtf8 => 1007,
        CloseReason::MessageRate | CloseReason::MessageTimeout => 1008,
        CloseReason::MessageTooBig => 1009,
        CloseReason::WorkerLost => 1012,
        CloseReason::SlowReader | CloseReason::Shed => 1013,
    }
}
