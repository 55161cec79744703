//! The phases of a connection, as they stand in its record.

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// No connection has this descriptor.
    Free = 0,
    /// Accepted; its upgrade request has not arrived in full.
    Handshake = 1,
    /// Its request is valid and waits for the supervisor's verdict; `accept_key` proves that it was understood.
    AwaitingAdmission = 2,
    /// A refusal was written; the write half is shut, and what the client still sends is thrown away.
    Refusing = 3,
    /// Established: 101 was written, frames flow.
    Open = 4,
    /// We sent a close frame first and wait for the client's.
    Closing = 5,
    /// Nothing more to say: the write half is shut, or about to be when the outbox is empty. Waits for end of
    /// file.
    Lingering = 6,
    /// Over, and counted with all others of its slot until its application was told.
    Ended = 7,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Free,
        Self::Handshake,
        Self::AwaitingAdmission,
        Self::Refusing,
        Self::Open,
        Self::Closing,
        Self::Lingering,
        Self::Ended,
    ];

    /// The word users see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Handshake => "handshake",
            Self::AwaitingAdmission => "parked",
            Self::Refusing => "refusing",
            Self::Open => "open",
            Self::Closing => "closing",
            Self::Lingering => "lingering",
            Self::Ended => "ended",
        }
    }

    /// Is the connection still on its way in, or being turned away?
    #[must_use]
    pub fn is_pending(self) -> bool {
        matches!(self, Self::Handshake | Self::AwaitingAdmission | Self::Refusing)
    }

    pub(super) fn from_byte(byte: u8) -> Self {
        // A byte out of range can only come from memory we did not write; a connection we know nothing of is
        // best treated as one to close.
        Self::ALL.get(usize::from(byte)).copied().unwrap_or(Self::Lingering)
    }
}
