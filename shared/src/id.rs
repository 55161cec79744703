//! Names of things that outlive a process: slots, incarnations, connections, tickets.
//! Plain numbers with types; nothing here knows who hands them out.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A numbered place a worker fills: a listener, a connection table and a link. Outlives its worker.
    SlotId(u16)
}

id! {
    /// How many workers a slot has had, the present one included; 0 is before the first.
    Incarnation(u32)
}

id! {
    /// One connection, unique within a run of the cluster: the slot in the upper 16 bits, a count below.
    ConnectionId(u64)
}

id! {
    /// One request for admission, unique within its worker's incarnation.
    Ticket(u64)
}

impl Incarnation {
    /// As an addressee: whichever of the slot's workers serves.
    pub const ANY: Self = Self(0);

    /// The one that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

impl ConnectionId {
    const SEQUENCE_BITS: u32 = 48;

    /// The slot that has let it in; it may be in another one by now.
    #[must_use]
    pub fn slot(self) -> SlotId {
        SlotId(u16::try_from(self.0 >> Self::SEQUENCE_BITS).unwrap_or_default())
    }

    /// The `sequence`-th connection of `slot`.
    #[must_use]
    pub fn new(slot: SlotId, sequence: u64) -> Self {
        Self((u64::from(slot.0) << Self::SEQUENCE_BITS) | (sequence & ((1 << Self::SEQUENCE_BITS) - 1)))
    }
}
