//! What clients do, and how many do it. Plain data; who does it is in `connection` and `conversation`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Kind, Pattern};
use crate::client::upgrade_request;

/// Messages of a group that are not alike, so that it is seen when clients get those of others.
const DISTINCT: usize = 61;

/// What a client does once it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Connects and says nothing at all.
    Silent,
    /// Upgrades, answers pings, and keeps quiet.
    Idle,
    /// Leaves as soon as it is let in, and comes again.
    Handshake,
    /// Upgrades and keeps `in_flight` messages of `size` bytes travelling, checking every byte that comes
    /// back.
    Echo {
        /// Messages sent and not yet back.
        in_flight: u64,
        /// Bytes of each.
        size: usize,
    },
    /// Upgrades, and sends a message of `size` bytes in two parts when told to: see
    /// [`Clients::begin_messages`] and [`Clients::finish_messages`].
    InParts {
        /// Bytes of the message.
        size: usize,
    },
    /// Upgrades, then sends messages of `size` bytes as fast as the server takes them and never reads.
    Flood {
        /// Bytes of each message.
        size: usize,
    },
    /// Echoes like [`Role::Echo`], and reads only when told to: see [`Clients::read_some`].
    Slow {
        /// Messages sent and not yet back.
        in_flight: u64,
        /// Bytes of each.
        size: usize,
    },
}

impl Role {
    /// It reads little or nothing: its socket's buffers are kept small, so that the server's own queue fills.
    pub(super) fn reads_little(self) -> bool {
        matches!(self, Self::Flood { .. } | Self::Slow { .. })
    }

    /// Messages that travel at a time, and their size.
    pub(crate) fn messages(self) -> (u64, usize) {
        match self {
            Self::Echo { in_flight, size } | Self::Slow { in_flight, size } => (in_flight, size),
            Self::InParts { size } | Self::Flood { size } => (1, size),
            Self::Silent | Self::Idle | Self::Handshake => (1, 0),
        }
    }
}

/// Clients that do the same.
#[derive(Debug)]
pub struct Group {
    /// How many.
    pub clients: usize,
    /// What they do.
    pub role: Role,
    /// The addresses they come from, used in turn; `None`: as the kernel chooses.
    pub sources: Vec<Option<IpAddr>>,
    /// The upgrade request.
    pub request: Vec<u8>,
    /// All connect in one event-loop turn.
    pub at_once: bool,
    /// What they say.
    pub pattern: Pattern,
    /// They begin new messages: see [`Clients::hold`].
    pub running: bool,
    /// They begin new messages only when told to: see [`Clients::say`].
    pub paced: bool,
    /// A message that is no echo is a fault even before they run.
    pub strict: bool,
}

impl Group {
    /// `clients` from 127.0.0.1.
    #[must_use]
    pub fn new(clients: usize, role: Role) -> Self {
        let (in_flight, size) = role.messages();
        let in_flight = usize::try_from(in_flight).unwrap_or(usize::MAX);
        Self {
            clients,
            role,
            sources: vec![Some(IpAddr::from([127, 0, 0, 1]))],
            request: if role == Role::Silent { Vec::new() } else { upgrade_request("") },
            at_once: false,
            pattern: Pattern::new(size, Kind::Binary, in_flight, false, DISTINCT),
            running: true,
            paced: false,
            strict: true,
        }
    }

    /// From these addresses, in turn.
    #[must_use]
    pub fn from(mut self, sources: impl IntoIterator<Item = IpAddr>) -> Self {
        self.sources = sources.into_iter().map(Some).collect();
        self
    }

    /// All in one event-loop turn.
    #[must_use]
    pub fn at_once(mut self) -> Self {
        self.at_once = true;
        self
    }
}
