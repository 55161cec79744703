//! Why a client was refused and why a connection ended: the words that metrics, logs, the control socket and
//! refusal bodies share. Append only: the order is part of the table layout and of the link's messages.

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

reasons! {
    /// Why a client was not let in.
    Rejection {
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
    }
}

reasons! {
    /// Why an established connection ended.
    CloseReason {
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
        /// More unread output than `limits.max_queued_output`.
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
    }
}
