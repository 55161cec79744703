//! What an open connection is to channels. Part of the table layout: append only.

use bytemuck::{Pod, Zeroable};

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
