//! Frames of which a part is out. For a subscriber that is a position in the journal and a number of bytes, in its record,
//! and nothing on the heap: whoever serves it can make the rest of the frame again.

use holdfast_shared::channels::entry::Kind;
use holdfast_shared::channels::journal::{Entry, Overwritten};
use holdfast_shared::table::{Flags, Subscriber};

use super::super::output::TAKEN_WHOLE;
use super::super::{Connections, Key};
use crate::channels::envelope;

/// Frames that leave in one write, and where each of them comes from.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pub(super) bytes: Vec<u8>,
    /// Of each: where it ends in `bytes`, and the position of its entry.
    pub(super) ends: Vec<(usize, u64)>,
}

impl Frames {
    /// How many of them are out when `sent` bytes are, and the next one's entry and how much of it is out; no entry when all
    /// are.
    pub(super) fn after(&self, sent: usize) -> (u64, Option<(u64, u32)>) {
        let whole = self.ends.partition_point(|&(end, _)| end <= sent);
        let begin = whole.checked_sub(1).map_or(0, |last| self.ends[last].0);
        let next = self
            .ends
            .get(whole)
            .map(|&(_, position)| (position, u32::try_from(sent - begin).unwrap_or(u32::MAX)));
        (whole as u64, next)
    }
}

impl Connections {
    /// Appends the frame that this connection gets for an entry.
    pub(super) fn append_frame_of(
        &self,
        entry: &Entry,
        has_envelope: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Overwritten> {
        let Some(feed) = &self.feed else { return Err(Overwritten) };
        match has_envelope && entry.kind() == Some(Kind::Publication) {
            true => envelope::append_envelope(&feed.memory, entry, out),
            false => feed.memory.append_bytes(entry, out),
        }
    }

    /// Something else is to be written: the rest of a frame of which a part is out is queued before it. What cannot be made
    /// again ends the connection.
    pub(crate) fn finish_part(&mut self, key: Key) {
        let Some(record) = self.get(key).filter(|record| record.part() > 0) else { return };
        if !record.subscriber.contains(Subscriber::SUBSCRIBED) {
            return;
        }
        let (part, position) = (record.part() as usize, record.position());
        let has_envelope = record.subscriber.contains(Subscriber::ENVELOPE);
        let entry = self.feed.as_ref().map_or(Err(Overwritten), |feed| feed.memory.entry(position));
        let mut frame = Vec::new();
        let made = entry.and_then(|entry| {
            self.append_frame_of(&entry, has_envelope, &mut frame)?;
            Ok(entry)
        });
        match made {
            Ok(entry) if part < frame.len() => {
                if let Some(record) = self.get_mut(key) {
                    record.set_part(0);
                    record.set_position(entry.end());
                }
                self.queue_rest(key, &frame, part);
                self.table.counters().messages_sent += 1;
            }
            _ => {
                log::debug!("connection on descriptor {}: the rest of its frame is gone", key.row);
                self.mark_ending(key, holdfast_shared::reason::CloseReason::SlowReader);
                self.end(key);
            }
        }
    }

    /// Sends `frames`, of whose first one `part` bytes are out already. `reached` is the position behind the last. Says
    /// whether all went out.
    pub(super) fn send_frames(&mut self, key: Key, frames: &Frames, part: u32, reached: u64) -> bool {
        let begin = part as usize;
        let Some(bytes) = frames.bytes.get(begin..).filter(|bytes| !bytes.is_empty()) else {
            if let Some(record) = self.get_mut(key) {
                record.set_position(reached);
            }
            return true;
        };
        // As in `write_answer`: whoever finds this must not write into the middle of a frame.
        let may_be_cut = part > 0 || bytes.len() > TAKEN_WHOLE;
        if may_be_cut && let Some(record) = self.get_mut(key) {
            record.flags.set(Flags::FRAME_CUT, true);
        }
        let Some(sent) = self.send(key, bytes) else { return false };
        let (whole, next) = frames.after(begin + sent);
        self.table.counters().messages_sent += whole;
        let Some(record) = self.get_mut(key) else { return false };
        let (position, part) = next.unwrap_or((reached, 0));
        record.set_position(position);
        record.set_part(part);
        record.flags.set(Flags::FRAME_CUT, part > 0);
        next.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_is_out_says_where_to_go_on() {
        let frames = Frames { bytes: vec![0; 30], ends: vec![(10, 100), (20, 200), (30, 300)] };
        for (sent, expected) in [
            (0, (0, Some((100, 0)))),
            (9, (0, Some((100, 9)))),
            (10, (1, Some((200, 0)))),
            (29, (2, Some((300, 9)))),
            (30, (3, None)),
        ] {
            assert_eq!(frames.after(sent), expected, "{sent}");
        }
    }
}
