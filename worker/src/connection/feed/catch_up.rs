//! One connection goes on from its own position: it was slow, it comes back for what it has missed, it came from another
//! slot, or there is something in a turn for it alone.

use holdfast_shared::channels::entry::Kind;
use holdfast_shared::channels::journal::{Entry, Overwritten};
use holdfast_shared::id::ConnectionId;
use holdfast_shared::table::{Phase, Record, Subscriber};

use super::super::{Connections, Key};
use super::parts::Frames;
use crate::channels::request::Kept;

/// Bytes that leave in one write at most, or a frame that is longer.
const BYTES_PER_VISIT: usize = 256 * 1024;
/// Entries looked at in one visit: most of them may be of other channels.
const ENTRIES_PER_VISIT: usize = 8192;

/// What a connection gets.
struct Wanted {
    id: ConnectionId,
    channel: u32,
    more: Vec<(u32, u64)>,
}

impl Wanted {
    fn takes(&self, entry: &Entry) -> bool {
        match entry.kind() {
            Some(Kind::Publication) => {
                let is_of = entry.head.channel == self.channel
                    || self
                        .more
                        .iter()
                        .any(|&(channel, from)| channel == entry.head.channel && entry.position >= from);
                is_of && entry.head.connection != self.id.0
            }
            Some(Kind::Direct) => entry.head.connection == self.id.0,
            // They were looked at when the slot came by, in their order.
            Some(Kind::Subscribed | Kind::Refused | Kind::Unsubscribed | Kind::Disconnect | Kind::Note)
            | None => false,
        }
    }
}

impl Connections {
    /// Sends what there is for it, as far as the socket takes it and within the bounds of one visit. It is busy.
    pub(crate) fn catch_up(&mut self, key: Key) {
        if !self.is_in(key, Phase::Open) {
            return;
        }
        if self.has_output(key) {
            // It goes on when that is out.
            return self.set_lagging(key);
        }
        let Some(&record) = self.get(key) else { return };
        let (Some(start), Some(target)) =
            (self.position_of(key), self.feed.as_ref().map(super::Feed::target))
        else {
            return;
        };
        let mut frames = Frames::default();
        match self.gather(key.row, &record, start, target, &mut frames) {
            Err(Overwritten) => self.skip_or_close(key),
            Ok(reached) => {
                self.set_lagging(key);
                if !self.send_frames(key, &frames, record.part(), reached) {
                    return;
                }
                if reached < target {
                    self.queue_behind(key);
                } else {
                    self.has_caught_up(key);
                }
            }
        }
    }

    /// The frames for a connection between two positions. Returns how far they go.
    fn gather(
        &self,
        row: u32,
        record: &Record,
        start: u64,
        target: u64,
        frames: &mut Frames,
    ) -> Result<u64, Overwritten> {
        let Some(feed) = &self.feed else { return Ok(start) };
        let more = match record.subscriber.contains(Subscriber::MANY) {
            true => Kept::read(self.session_of_row(row, record)).more,
            false => Vec::new(),
        };
        let wanted = Wanted { id: ConnectionId(record.id), channel: record.channel(), more };
        let has_envelope = record.subscriber.contains(Subscriber::ENVELOPE);
        let mut position = start;
        for _ in 0..ENTRIES_PER_VISIT {
            if position >= target || frames.bytes.len() >= BYTES_PER_VISIT {
                break;
            }
            let entry = feed.memory.entry(position)?;
            // The one that a part is out of is its own, whatever it is subscribed to by now.
            if wanted.takes(&entry) || (position == start && record.part() > 0) {
                self.append_frame_of(&entry, has_envelope, &mut frames.bytes)?;
                frames.ends.push((frames.bytes.len(), position));
            }
            position = entry.end();
        }
        Ok(position)
    }

    fn has_caught_up(&mut self, key: Key) {
        if let Some(record) = self.get_mut(key) {
            record.subscriber.set(Subscriber::LAGGING, false);
        }
        if let Some(feed) = &mut self.feed {
            feed.lagging.remove(&key.row);
        }
    }
}
