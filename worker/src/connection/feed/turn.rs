//! A turn: the journal from the slot's position to its tail, or as much of it as fits, delivered to everybody who is
//! subscribed. All that a turn has for a channel leaves in one write to each subscriber. A turn is gone through in steps, with other clients
//! served between them; the records say who has it.

use holdfast_shared::channels::entry::Kind;
use holdfast_shared::channels::journal::{Entry, Overwritten};
use holdfast_shared::channels::memory::Word as Memory;
use holdfast_shared::channels::up_ring::Word;
use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::{Flags, Phase, Subscriber};
use tungstenite::protocol::frame::coding::CloseCode;

use super::super::{Connections, Key, index};
use super::ROWS_PER_STEP;
use super::parts::Frames;

/// Bytes of the journal in one turn at most, or an entry that is longer.
const BYTES_PER_TURN: u64 = 256 * 1024;

/// What is being delivered.
#[derive(Debug)]
pub(super) struct Turn {
    end: u64,
    parts: Vec<ChannelPart>,
}

/// What of it is of one channel.
#[derive(Debug)]
struct ChannelPart {
    channel: u32,
    plain: Frames,
    /// As clients with an envelope get it; made when there is one.
    enveloped: Option<Frames>,
    /// Connections that do not get all of it.
    excluded: Vec<u64>,
    /// Rows before this one are still to be gone through; `None` before the first.
    left: Option<usize>,
}

impl Turn {
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    fn part(&mut self, channel: u32) -> &mut ChannelPart {
        let found = self.parts.iter().position(|part| part.channel == channel);
        let place = found.unwrap_or_else(|| {
            let (plain, excluded) = (Frames::default(), Vec::new());
            self.parts.push(ChannelPart { channel, plain, enveloped: None, excluded, left: None });
            self.parts.len() - 1
        });
        &mut self.parts[place]
    }
}

impl Connections {
    /// Goes on with the turn, or begins one, for one step.
    pub(super) fn continue_turn(&mut self) {
        let mut rows_left = ROWS_PER_STEP;
        if self.feed.as_ref().is_some_and(|feed| feed.turn.is_none() && feed.is_behind()) {
            self.begin_turn();
        }
        // The turn stays where it is for those who catch up to its end; its parts leave it for the time of the call.
        while rows_left > 0 {
            let Some(turn) = self.feed.as_mut().and_then(|feed| feed.turn.as_mut()) else { return };
            let end = turn.end;
            let Some(mut part) = turn.parts.pop() else { return self.end_turn() };
            let is_done = self.deliver_part(&mut part, end, &mut rows_left);
            if !is_done && let Some(turn) = self.feed.as_mut().and_then(|feed| feed.turn.as_mut()) {
                turn.parts.push(part);
            }
        }
    }

    fn begin_turn(&mut self) {
        let Some(feed) = &mut self.feed else { return };
        let (start, tail) = (feed.delivered(), feed.memory.get(Memory::Tail));
        feed.turn = Some(Turn { end: start, parts: Vec::new() });
        let mut special = Vec::new();
        let mut position = start;
        while position < tail && position - start < BYTES_PER_TURN {
            let Ok(entry) = self.feed.as_ref().map_or(Err(Overwritten), |feed| feed.memory.entry(position))
            else {
                return self.is_overtaken();
            };
            position = entry.end();
            if entry.kind().is_some_and(Kind::is_addressed) {
                special.extend(self.on_addressed(&entry));
            } else if self.take_in(&entry).is_err() {
                return self.is_overtaken();
            }
            if let Some(turn) = self.feed.as_mut().and_then(|feed| feed.turn.as_mut()) {
                turn.end = position;
            }
        }
        // What is for one alone comes among what is for all, so they go through it by themselves.
        for key in special {
            self.set_busy(key);
            self.catch_up(key);
            self.settle(key);
        }
    }

    /// Adds an entry to the turn, if anybody here wants it.
    fn take_in(&mut self, entry: &Entry) -> Result<(), Overwritten> {
        let Some(feed) = &mut self.feed else { return Ok(()) };
        let channel = entry.head.channel;
        if entry.kind() != Some(Kind::Publication) || !feed.index.has(channel) {
            return Ok(());
        }
        let Some(turn) = &mut feed.turn else { return Ok(()) };
        let part = turn.part(channel);
        feed.memory.append_bytes(entry, &mut part.plain.bytes)?;
        part.plain.ends.push((part.plain.bytes.len(), entry.position));
        if entry.head.connection != 0 {
            part.excluded.push(entry.head.connection);
        }
        Ok(())
    }

    fn end_turn(&mut self) {
        if let Some(feed) = &mut self.feed
            && let Some(turn) = feed.turn.take()
        {
            feed.ring.set(Word::Delivered, turn.end);
            feed.has_said = true;
        }
    }

    /// The hub went on without this slot, since it did not keep pace: nobody knows what its clients have missed.
    fn is_overtaken(&mut self) {
        let Some(feed) = &mut self.feed else { return };
        feed.turn = None;
        let tail = feed.memory.get(Memory::Tail);
        feed.ring.set(Word::Delivered, tail);
        let rows: Vec<u32> = self.occupied_rows(0).collect();
        log::error!("the journal was overwritten before it was delivered: subscribers have to come back");
        for row in rows {
            let Some(key) = self.is_subscribed_row(row) else { continue };
            self.set_busy(key);
            let text = "Publications were missed";
            self.begin_close(key, CloseCode::Restart, text, CloseReason::Error);
            self.settle(key);
        }
    }

    /// Goes through some of a channel's subscribers. Says whether all have it.
    fn deliver_part(&mut self, part: &mut ChannelPart, end: u64, rows_left: &mut usize) -> bool {
        let delivered = self.feed.as_ref().map_or(0, super::Feed::delivered);
        let Some(mut rows) = self.feed.as_mut().and_then(|feed| feed.index.take_rows(part.channel)) else {
            return true;
        };
        let mut place = part.left.unwrap_or(rows.len()).min(rows.len());
        while place > 0 && *rows_left > 0 {
            place -= 1;
            *rows_left -= 1;
            if !self.deliver(rows[place], part, delivered, end) {
                // What takes its place has been gone through.
                rows.swap_remove(place);
            }
        }
        part.left = Some(place);
        if let Some(feed) = &mut self.feed {
            feed.index.put_rows(part.channel, rows);
        }
        place == 0
    }

    /// Delivers to one row, unless it has it. False when it is not subscribed any more.
    #[inline]
    fn deliver(&mut self, row: u32, part: &mut ChannelPart, delivered: u64, end: u64) -> bool {
        let Some(record) = self.table.records().get(index(row)) else { return false };
        let (subscriber, position) = (record.subscriber, record.position());
        if record.phase() != Phase::Open || !subscriber.contains(Subscriber::SUBSCRIBED) {
            return false;
        }
        let is_many = subscriber.contains(Subscriber::MANY);
        if record.channel() != part.channel && !is_many {
            return false;
        }
        if record.flags.contains(Flags::GIVEN) || subscriber.contains(Subscriber::LAGGING) || position >= end
        {
            return true;
        }
        let key = Key { row, serial: record.serial };
        let goes_by_itself = is_many || position > delivered || part.excluded.contains(&record.id);
        let has_heap_state = record.heap_state != 0;
        self.set_busy(key);
        if goes_by_itself || (has_heap_state && self.has_output(key)) {
            self.catch_up(key);
        } else if subscriber.contains(Subscriber::ENVELOPE) {
            self.deliver_enveloped(key, part, end);
        } else {
            self.send_turn(key, &part.plain, end);
        }
        self.settle(key);
        true
    }

    #[inline]
    fn send_turn(&mut self, key: Key, frames: &Frames, end: u64) {
        if !self.send_frames(key, frames, 0, end) {
            self.set_lagging_at(key);
        }
    }

    fn deliver_enveloped(&mut self, key: Key, part: &mut ChannelPart, end: u64) {
        if part.enveloped.is_none() {
            match self.envelop(&part.plain) {
                Ok(frames) => part.enveloped = Some(frames),
                Err(Overwritten) => return self.skip_or_close(key),
            }
        }
        if let Some(frames) = &part.enveloped {
            self.send_turn(key, frames, end);
        }
    }

    fn envelop(&self, plain: &Frames) -> Result<Frames, Overwritten> {
        let Some(feed) = &self.feed else { return Err(Overwritten) };
        let mut frames = Frames::default();
        for &(_, position) in &plain.ends {
            let entry = feed.memory.entry(position)?;
            self.append_frame_of(&entry, true, &mut frames.bytes)?;
            frames.ends.push((frames.bytes.len(), position));
        }
        Ok(frames)
    }

    /// It goes on by itself from the position that is in its record.
    fn set_lagging_at(&mut self, key: Key) {
        let Some(record) = self.get_mut(key) else { return };
        record.subscriber.set(Subscriber::LAGGING, true);
        if let Some(feed) = &mut self.feed {
            feed.lagging.insert(key.row, key.serial);
        }
    }
}
