//! How a client can break the protocol, and what it is told. The rules themselves are enforced by `frame` and
//! `engine`.

use std::fmt;

use holdfast_shared::reason::CloseReason;
use tungstenite::protocol::frame::coding::CloseCode;

/// Why a stream cannot go on. Its [`text`](Self::text) fits into a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A frame without a mask (RFC 6455, 5.1).
    Unmasked,
    /// A reserved bit is set, and no extension was negotiated that would give it a meaning (5.2).
    ReservedBits,
    /// An opcode without a meaning (5.2).
    ReservedOpcode,
    /// A length written with more bytes than it needs (5.2).
    LengthNotMinimal,
    /// A length of 2^63 or more (5.2).
    LengthTopBit,
    /// A control frame that claims to have a continuation (5.5).
    FragmentedControl,
    /// A control frame with more than 125 bytes (5.5).
    ControlTooLong,
    /// A continuation without a beginning (5.4).
    NothingToContinue,
    /// A new message inside an unfinished one (5.4).
    MessageUnfinished,
    /// A close frame with half a close code (5.5.1).
    CloseCodeCut,
    /// A close code that must not be sent (7.4).
    CloseCodeNotAllowed,
    /// A close reason that is not UTF-8 (5.5.1).
    CloseReasonNotUtf8,
    /// A text message that is not UTF-8 (8.1).
    TextNotUtf8,
    /// A message longer than the limit.
    MessageTooBig,
}

impl Violation {
    /// The close code to send.
    #[must_use]
    pub fn code(self) -> CloseCode {
        match self.reason() {
            CloseReason::MessageTooBig => CloseCode::Size,
            CloseReason::InvalidUtf8 => CloseCode::Invalid,
            _ => CloseCode::Protocol,
        }
    }

    /// The reason to count the connection's end under.
    #[must_use]
    pub fn reason(self) -> CloseReason {
        match self {
            Self::MessageTooBig => CloseReason::MessageTooBig,
            Self::TextNotUtf8 | Self::CloseReasonNotUtf8 => CloseReason::InvalidUtf8,
            Self::Unmasked
            | Self::ReservedBits
            | Self::ReservedOpcode
            | Self::LengthNotMinimal
            | Self::LengthTopBit
            | Self::FragmentedControl
            | Self::ControlTooLong
            | Self::NothingToContinue
            | Self::MessageUnfinished
            | Self::CloseCodeCut
            | Self::CloseCodeNotAllowed => CloseReason::ProtocolError,
        }
    }

    /// The broken rule, for the close frame and the log.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Unmasked => "Client frames must be masked",
            Self::ReservedBits => "Reserved bits must be zero",
            Self::ReservedOpcode => "Reserved opcode",
            Self::LengthNotMinimal => "Length not in its shortest form",
            Self::LengthTopBit => "Length has its top bit set",
            Self::FragmentedControl => "Control frames must not be fragmented",
            Self::ControlTooLong => "Control frames carry at most 125 bytes",
            Self::NothingToContinue => "Continuation without a message",
            Self::MessageUnfinished => "New message before the last was finished",
            Self::CloseCodeCut => "Close code must be two bytes",
            Self::CloseCodeNotAllowed => "Close code must not be sent",
            Self::CloseReasonNotUtf8 => "Close reason is not UTF-8",
            Self::TextNotUtf8 => "Text message is not UTF-8",
            Self::MessageTooBig => "Message too big",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for Violation {}
