//! The subprotocol that a client is to be answered with, while it awaits admission: so it outlives a worker as the accept
//! key does.

use super::{Flags, Record};

/// Its length, and its text.
type Room = [u8; 24];

impl Record {
    /// The longest name that there is room for.
    pub const LONGEST_SUBPROTOCOL: usize = size_of::<Room>() - 1;

    /// The answer will name this subprotocol. It lies where an open connection has its times, which are set when it
    /// opens. Says whether there was room; if not, none is kept.
    pub fn set_subprotocol(&mut self, name: &str) -> bool {
        let mut room = Room::default();
        let (length, text) = room.split_at_mut(1);
        let (Some(text), Ok(count)) = (text.get_mut(..name.len()), u8::try_from(name.len())) else {
            return false;
        };
        length[0] = count;
        text.copy_from_slice(name.as_bytes());
        [self.seen_ms, self.active_ms, self.ping_due_ms] = bytemuck::cast(room);
        self.flags.set(Flags::SUBPROTOCOL, true);
        true
    }

    /// When the client last sent data, or, while a subprotocol lies there, when it came.
    #[must_use]
    pub fn last_active_ms(&self) -> u64 {
        if self.flags.contains(Flags::SUBPROTOCOL) { self.opened_ms } else { self.active_ms }
    }

    /// The subprotocol that is kept.
    #[must_use]
    pub fn subprotocol(&self) -> Option<String> {
        if !self.flags.contains(Flags::SUBPROTOCOL) {
            return None;
        }
        let room: Room = bytemuck::cast([self.seen_ms, self.active_ms, self.ping_due_ms]);
        let text = room.get(1..)?.get(..usize::from(room[0]))?;
        String::from_utf8(text.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    #[test]
    fn a_name_is_kept_where_there_is_room() {
        let mut record = Record::zeroed();
        record.begin(1, 1, "::1".parse().unwrap(), 77, 78);
        assert_eq!(record.subprotocol(), None);
        assert!(!record.set_subprotocol(&"x".repeat(Record::LONGEST_SUBPROTOCOL + 1)));
        assert_eq!((record.subprotocol(), record.seen_ms), (None, 77));
        for name in ["mqtt", "graphql-transport-ws", &"x".repeat(Record::LONGEST_SUBPROTOCOL)] {
            assert!(record.set_subprotocol(name));
            assert_eq!(record.subprotocol().as_deref(), Some(name));
        }
        assert_eq!((record.opened_ms, record.last_active_ms(), record.deadline_ms), (77, 77, 78));
    }
}
