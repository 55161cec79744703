//! One entry of the journal: a head of fixed size, then its bytes.

use bytemuck::{Pod, Zeroable};

/// Bytes of a head.
pub const HEAD: usize = size_of::<EntryHead>();

const _: () = assert!(HEAD == 88);

/// The source of an entry that no worker has asked for.
pub const NO_SLOT: u16 = u16::MAX;

/// What an entry is. A reader passes over kinds that it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message for all subscribers of a channel but [`EntryHead::connection`]. The bytes are the frame that clients get.
    Publication,
    /// The connection is subscribed to the channel. `argument` is the position from which it is delivered to it; the bytes
    /// are a [`Verdict`](super::up_ring::Verdict) in JSON.
    Subscribed,
    /// The connection is not subscribed to the channel, since it was refused; the bytes are the verdict in JSON.
    Refused,
    /// The connection is subscribed to the channel no more.
    Unsubscribed,
    /// A message for this connection alone. The bytes are the frame that it gets.
    Direct,
    /// The connection is to be closed: `argument` is the code, the bytes are the text.
    Disconnect,
    /// Nothing for anybody: what happened to a channel. `argument` is the number of its subscribers then.
    Note,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Publication,
        Self::Subscribed,
        Self::Refused,
        Self::Unsubscribed,
        Self::Direct,
        Self::Disconnect,
        Self::Note,
    ];

    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The kind of this number, if it is known.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Is it for one connection?
    #[must_use]
    pub fn is_addressed(self) -> bool {
        match self {
            Self::Subscribed | Self::Refused | Self::Unsubscribed | Self::Direct | Self::Disconnect => true,
            Self::Publication | Self::Note => false,
        }
    }
}

/// What stands before an entry's bytes. Fields are never moved; what is added goes into `spare`, where zeros mean "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EntryHead {
    /// Of the entry, head and padding included: a multiple of 8.
    pub length: u32,
    /// [`Kind::number`].
    pub kind: u16,
    /// See the constants.
    pub flags: u16,
    /// The channel's number; 0 if it is of none. For `Direct` and `Disconnect` the row where the connection was last, plus one.
    pub channel: u32,
    /// Of the entry's bytes, without padding.
    pub bytes: u32,
    /// The publication's number in its channel; 0 for what is no publication.
    pub offset: u64,
    /// The position of the channel's publication before this one; 0 if there is none.
    pub previous: u64,
    /// The position of the channel's next publication. Stored when that is written; only good below the tail, and if that
    /// one points back.
    pub next: u64,
    /// When it was published: milliseconds of the wall clock.
    pub time_ms: u64,
    /// Who asked for it: the slot above, the position behind the request in its ring in the lower 48 bits.
    pub source: u64,
    /// The connection that it is for, or not for; 0 is none.
    pub connection: u64,
    /// See the kinds.
    pub argument: u64,
    /// A publication's idempotency key, digested; zeros are none.
    pub key: [u8; 16],
}

impl EntryHead {
    /// The bytes of the message are text.
    pub const TEXT: u16 = 1;
    /// The connection of a `Note` has entered the channel; without it, it has left.
    pub const ENTERED: u16 = 2;

    const POSITION_BITS: u32 = 48;

    /// What `source` is for a request of `slot` that ended at `position` of its ring.
    #[must_use]
    pub fn source_of(slot: u16, position: u64) -> u64 {
        (u64::from(slot) << Self::POSITION_BITS) | (position & ((1 << Self::POSITION_BITS) - 1))
    }

    /// The slot and the position in `source`; `None` when no worker asked for the entry.
    #[must_use]
    pub fn asked_by(&self) -> Option<(u16, u64)> {
        let slot = u16::try_from(self.source >> Self::POSITION_BITS).unwrap_or(NO_SLOT);
        (slot != NO_SLOT).then_some((slot, self.source & ((1 << Self::POSITION_BITS) - 1)))
    }

    /// Is the message text?
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.flags & Self::TEXT != 0
    }
}
