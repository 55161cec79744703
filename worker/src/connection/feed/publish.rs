//! What clients publish. They are read only while what they may say has room in the ring, so that nothing that was read
//! is lost for lack of it.

use holdfast_shared::channels::up_ring::{MAX_MESSAGE, MessageHead, MessageKind, RING_SIZE, Word};
use holdfast_shared::table::Subscriber;

use super::super::{Connections, Key};
use crate::channels::Published;
use crate::websocket::MessageKind as Frame;

/// Room that a read of short messages takes at most, beside one long message that it ends.
const ROOM_PER_READ: usize = 512 * 1024;

const _: () = assert!(ROOM_PER_READ + MAX_MESSAGE < RING_SIZE / 2);

impl Connections {
    /// Publishes to the client's channel.
    pub(crate) fn publish(&mut self, key: Key, kind: Frame, data: &[u8]) -> Published {
        let is_off = self.settings.broadcasts_are_off;
        let Some(&record) = self.get(key) else { return Published::Forbidden };
        if !record.subscriber.contains(Subscriber::PUBLISHES) {
            return Published::Forbidden;
        }
        let Some(feed) = &mut self.feed else { return Published::Forbidden };
        if is_off {
            return Published::Degraded;
        }
        if data.len() > MAX_MESSAGE.min(feed.memory.largest_entry() - 16) {
            return Published::TooLong;
        }
        let flags = if kind == Frame::Text { MessageHead::TEXT } else { 0 };
        feed.has_said = true;
        match feed.ring.say(MessageKind::Publish, flags, record.id, record.channel(), data) {
            true => Published::Said,
            false => Published::NoRoom,
        }
    }

    /// Is the client not to be read for now, since there may be no room for what it says? It is read again when there is.
    pub(in crate::connection) fn awaits_room(&mut self, key: Key) -> bool {
        let publishes = self.get(key).is_some_and(|record| record.subscriber.contains(Subscriber::PUBLISHES));
        let Some(feed) = self.feed.as_mut().filter(|_| publishes) else { return false };
        if feed.ring.room() >= ROOM_PER_READ + MAX_MESSAGE {
            return false;
        }
        feed.ring.set(Word::WantsRoom, 1);
        if feed.ring.room() >= ROOM_PER_READ + MAX_MESSAGE {
            return false;
        }
        feed.held.push(key);
        true
    }

    /// Reads those again who were not read, if there is room now.
    pub(super) fn read_held(&mut self) {
        let Some(feed) = &mut self.feed else { return };
        if feed.held.is_empty() || feed.ring.room() < ROOM_PER_READ + MAX_MESSAGE {
            return;
        }
        for key in std::mem::take(&mut feed.held) {
            self.queue_read(key);
        }
    }
}
