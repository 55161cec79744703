//! What the supervisor and the hub say to each other, over a link as slots have one. Variants are appended, and fields
//! to variants, as in `message`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::channels::rules::Rule;
use crate::id::SlotId;
use crate::ipc::codec::{self, Kind, Message};
use crate::ipc::link::Link;
use crate::level::Level;

/// The supervisor's end.
pub type SupervisorHubEnd = Link<ToHub, FromHub>;
/// The hub's end.
pub type HubEnd = Link<FromHub, ToHub>;

/// From the supervisor to the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHub {
    /// The channel memory, writable, and the hub's bell come with this, by descriptor. The first message to a hub that has
    /// none. Not answered.
    Memory,
    /// The [`HubSettings`] in the sealed memory that comes with this, by descriptor, hold from now on. Behind it come the bound listeners: that of the
    /// API if `has_api`, then the local socket's. Answered by `Applied`.
    Configure {
        /// Counts up with each change.
        generation: u64,
        /// The API's listener is among the descriptors.
        has_api: bool,
    },
    /// A slot's up-ring and its bell come with this, by descriptor. Said again with the same ones it changes nothing. Not
    /// answered.
    Slot {
        /// The slot.
        slot: SlotId,
    },
    /// The slot and its connections are gone for good: what its ring still holds counts, then all that is left of it is told as
    /// ended. Not answered.
    SlotLost {
        /// The slot.
        slot: SlotId,
    },
    /// All slots that there are have been named. Until then the hub knows that it does not know all. Not answered.
    AllSlots,
    /// What the server is like for its clients. Not answered.
    Level {
        /// The level.
        level: Level,
    },
    /// End. Answered by ending.
    Leave,
}

/// From the hub to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromHub {
    /// The hub is there. Answered by `Memory`, `Configure`, `Slot` for each, `AllSlots`.
    Hello {
        /// Its process.
        pid: i32,
        /// Its program's version.
        version: String,
        /// How many kinds of [`ToHub`] it knows.
        knows: u32,
    },
    /// A hub whose supervisor is gone gives itself to the next, as the first message of a new link. With it come, by
    /// descriptor: the channel memory, its bell, and for each of `slots` its ring and its bell. `Hello` follows. Not answered.
    Adopt {
        /// Its process.
        pid: i32,
        /// The slots that it serves.
        slots: Vec<SlotId>,
    },
    /// The settings of this generation are in force, or could not be put in force.
    Applied {
        /// The generation, as in `Configure`.
        generation: u64,
        /// Why not.
        error: Option<String>,
    },
    /// What the hub counts; every second. A hub that does not say this for long is wedged.
    Report {
        /// The counts.
        report: HubReport,
    },
}

/// What the hub must know of the configuration. Travels by name; what is missing takes its default. It has secrets, which no
/// worker gets.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HubSettings {
    /// What holds for which channels; the first that matches.
    pub rules: Vec<Rule>,
    /// Connections of one user; 0 is no limit.
    pub max_connections_per_user: u32,
    /// What happens to connections is noted down.
    pub has_events: bool,
    /// Whoever shows one of these may ask the API.
    pub api_keys: Vec<String>,
}

impl fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "settings of {} rules and {} keys", self.rules.len(), self.api_keys.len())
    }
}

/// What the hub counts, at one moment. Totals are those of the channel memory, and outlive hubs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HubReport {
    /// Channels there are.
    pub channels: u64,
    /// Subscriptions there are.
    pub subscriptions: u64,
    /// Publications made.
    pub publications: u64,
    /// Requests to the API, answered.
    pub api_requests: u64,
    /// Of those, refused or failed.
    pub api_errors: u64,
    /// Bytes in all up-rings that wait for the hub.
    pub queued_bytes: u64,
    /// How old the oldest entry of the journal is, in milliseconds.
    pub journal_age_ms: u64,
    /// Bytes of the journal.
    pub journal_bytes: u64,
    /// Events that whoever gets them pushed has not acknowledged.
    pub events_pending: u64,
    /// Events that were overwritten before they were acknowledged.
    pub events_dropped: u64,
    /// How far the slowest slot is behind, in bytes of the journal.
    pub slowest_slot_bytes: u64,
    /// Slots whose rings were given up since nothing in them could be read.
    pub broken_rings: u64,
}

impl Message for ToHub {
    fn kind(payload: &[u8]) -> Option<Kind> {
        codec::only_kind::<Self>(payload)
    }

    fn may_be_lost(&self) -> bool {
        false
    }
}

impl Message for FromHub {
    fn kind(payload: &[u8]) -> Option<Kind> {
        codec::only_kind::<Self>(payload)
    }

    fn may_be_lost(&self) -> bool {
        matches!(self, Self::Report { .. })
    }
}
