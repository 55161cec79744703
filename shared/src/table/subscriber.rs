//! What an open connection is to channels. Part of the table layout: append only.

use bytemuck::{Pod, Zeroable};

use super::Record;

/// Facts about a connection and channels that are either so or not. See the constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Subscriber(u8);

impl Subscriber {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// The hub was told that it is here, and is to be told when it is gone.
    pub const JOINED: Self = Self(1);
    /// It is subscribed to the channel in its record.
    pub const SUBSCRIBED: Self = Self(1 << 1);
    /// It has what it is subscribed to up to its own position, however far its slot is.
    pub const LAGGING: Self = Self(1 << 2);
    /// Its messages say of which channel they are, and which number they have there.
    pub const ENVELOPE: Self = Self(1 << 3);
    /// It may publish to its channel.
    pub const PUBLISHES: Self = Self(1 << 4);
    /// If it is too slow it goes on with the newest.
    pub const LATEST: Self = Self(1 << 5);
    /// Its session names more channels.
    pub const MANY: Self = Self(1 << 6);

    /// Are all of `facts` so?
    #[must_use]
    #[inline]
    pub fn contains(self, facts: Self) -> bool {
        self.0 & facts.0 == facts.0
    }

    /// Is any of `facts` so?
    #[must_use]
    #[inline]
    pub fn intersects(self, facts: Self) -> bool {
        self.0 & facts.0 != 0
    }

    /// Makes `facts` so, or not.
    pub fn set(&mut self, facts: Self, on: bool) {
        if on {
            self.0 |= facts.0;
        } else {
            self.0 &= !facts.0;
        }
    }
}

/// What is kept of it where the accept key was before.
impl Record {
    /// In `Open`: bytes that are out of the frame of the entry at [`Record::position`].
    #[must_use]
    pub fn part(&self) -> u32 {
        let [_, _, _, _, a, b, c, d, ..] = self.accept_key;
        u32::from_le_bytes([a, b, c, d])
    }

    /// Sets that.
    pub fn set_part(&mut self, part: u32) {
        self.accept_key[4..8].copy_from_slice(&part.to_le_bytes());
    }

    /// In `Open`: up to where in the journal it has what it is subscribed to. Without [`Subscriber::LAGGING`] its slot's
    /// position counts when that is further.
    #[must_use]
    pub fn position(&self) -> u64 {
        let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, ..] = self.accept_key;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Sets that.
    pub fn set_position(&mut self, position: u64) {
        self.accept_key[8..16].copy_from_slice(&position.to_le_bytes());
    }

    /// In `Open`: the number of the channel that it is subscribed to; 0 is none. More are in its session.
    #[must_use]
    pub fn channel(&self) -> u32 {
        let [.., a, b, c, d] = self.accept_key;
        u32::from_le_bytes([a, b, c, d])
    }

    /// Sets that.
    pub fn set_channel(&mut self, channel: u32) {
        self.accept_key[16..].copy_from_slice(&channel.to_le_bytes());
    }
}
