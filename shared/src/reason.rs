//! Why a client was refused and why a connection ended: the words that metrics, logs, the control socket and
//! refusal bodies share. Append only: the order is part of the table layout and of the link's messages.

use std::fmt;

use serde::de::{DeserializeSeed, EnumAccess, Error, VariantAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident, unknown ones are $fallback:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// All of them, in the order of their indices.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The word users see.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The place of this reason in an array of counters.
            #[must_use]
            pub fn index(self) -> usize {
                self as usize
            }

            /// The reason at `index`, if there is one.
            #[must_use]
            pub fn from_index(index: usize) -> Option<Self> {
                Self::ALL.get(index).copied()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                const NAMES: &[&str] = &[$($text,)+];
                let position = deserializer.deserialize_enum(stringify!($name), NAMES, Position(NAMES))?;
                // A newer program's reason must not cost the message that it is in.
                Ok(Self::from_index(position).unwrap_or(Self::$fallback))
            }
        }
    };
}

reasons! {
    /// Why a client was not let in.
    Rejection, unknown ones are MaxConnections {
        /// The cluster-wide cap is reached.
        MaxConnections = "max_connections",
        /// The client's address holds as many connections as one address may.
        MaxConnectionsPerAddress = "max_connections_per_address",
        /// The whole server is being connected to faster than allowed.
        ConnectRate = "connect_rate",
        /// The client's address connects faster than one address may.
        ConnectRatePerAddress = "connect_rate_per_address",
        /// Too many unfinished handshakes; the oldest silent one made room.
        PendingHandshakes = "pending_handshakes",
        /// The Origin header names a site that is not allowed.
        Origin = "origin",
        /// Not a WebSocket upgrade request we can accept.
        BadRequest = "bad_request",
        /// The request, or the verdict on it, did not come before the deadline.
        HandshakeTimeout = "handshake_timeout",
        /// The server is shutting down.
        Draining = "draining",
        /// An operator has banned the client's address.
        Banned = "banned",
    }
}

reasons! {
    /// Why an established connection ended.
    CloseReason, unknown ones are Error {
        /// The client closed it, with or without a close frame.
        Client = "client",
        /// No data frame for `timeouts.idle`.
        IdleTimeout = "idle_timeout",
        /// No sign of life within `timeouts.pong` after a ping.
        PingTimeout = "ping_timeout",
        /// A message longer than `limits.max_message_size`.
        MessageTooBig = "message_too_big",
        /// More messages than allowed per second.
        MessageRate = "message_rate",
        /// A frame that breaks RFC 6455.
        ProtocolError = "protocol_error",
        /// A text message or close reason that is not UTF-8.
        InvalidUtf8 = "invalid_utf8",
        /// It was sent more than `limits.max_queued_output` beside what it had not read, took none of that for
        /// `timeouts.stalled`, or had one of the largest backlogs above `limits.max_buffered_total`.
        SlowReader = "slow_reader",
        /// An operator closed it.
        Admin = "admin",
        /// The server is shutting down.
        Drain = "drain",
        /// Its worker died while its stream state was in flight.
        WorkerLost = "worker_lost",
        /// The cap was lowered below the count.
        Shed = "shed",
        /// A socket error.
        Error = "error",
        /// Its application closed it.
        Application = "application",
        /// A message was begun and not finished within `timeouts.message`.
        MessageTimeout = "message_timeout",
    }
}

/// Reads a reason as its place among these names; one that is not among them as a place beyond.
struct Position(&'static [&'static str]);

impl<'de> Visitor<'de> for Position {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a reason")
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<usize, A::Error> {
        let (position, rest) = access.variant_seed(self)?;
        rest.unit_variant()?;
        Ok(position)
    }

    fn visit_u64<E: Error>(self, position: u64) -> Result<usize, E> {
        Ok(usize::try_from(position).unwrap_or(usize::MAX))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<usize, E> {
        Ok(self.0.iter().position(|&known| known == name).unwrap_or(usize::MAX))
    }
}

impl<'de> DeserializeSeed<'de> for Position {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}
