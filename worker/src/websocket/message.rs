//! Data messages: complete ones, handed to whoever receives them, and those still coming in.
//! Knows how messages are checked and stored; `engine` knows how frames make them up.

use std::ops::ControlFlow;

use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::engine::Event;
use super::frame::{MAX_SERVER_HEADER, ServerHeader};
use super::utf8::{self, PiecewiseUtf8};
use super::violation::Violation;

/// What a message's bytes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// UTF-8.
    Text,
    /// Anything.
    Binary,
}

impl MessageKind {
    /// What the first frame of a message says about it. A continuation never begins one: the header was checked.
    pub(super) fn of(opcode: Data) -> Self {
        match opcode {
            Data::Text => Self::Text,
            Data::Binary | Data::Continue | Data::Reserved(_) => Self::Binary,
        }
    }
}

impl From<MessageKind> for OpCode {
    fn from(kind: MessageKind) -> Self {
        match kind {
            MessageKind::Text => OpCode::Data(Data::Text),
            MessageKind::Binary => OpCode::Data(Data::Binary),
        }
    }
}

/// A complete message, unmasked; text is valid UTF-8.
///
/// Before the payload its buffer has room for the header of a server's frame, so that an echo is sent from where it
/// was received: a client's header is four bytes longer than a server's for the same payload.
#[derive(Debug)]
pub struct Message<'a> {
    kind: MessageKind,
    buffer: &'a mut [u8],
    payload_at: usize,
}

impl<'a> Message<'a> {
    /// A whole message in one frame, whose payload, unmasked, starts at `payload_at`.
    pub(super) fn in_frame(
        kind: MessageKind,
        frame: &'a mut [u8],
        payload_at: usize,
    ) -> Result<Self, Violation> {
        if kind == MessageKind::Text && !utf8::is_valid(&frame[payload_at..]) {
            return Err(Violation::TextNotUtf8);
        }
        Ok(Self { kind, buffer: frame, payload_at })
    }

    /// Text or binary.
    #[must_use]
    pub fn kind(&self) -> MessageKind {
        self.kind
    }

    /// The message itself.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.buffer[self.payload_at..]
    }

    /// The same message as a frame to send back: header and payload, contiguous.
    #[must_use]
    pub fn into_reply(self) -> &'a mut [u8] {
        let header = ServerHeader::new(self.kind.into(), self.buffer.len() - self.payload_at);
        let header = header.as_bytes();
        let start = self.payload_at - header.len();
        self.buffer[start..self.payload_at].copy_from_slice(header);
        &mut self.buffer[start..]
    }
}

/// A message that came in more than one frame or more than one read.
#[derive(Debug)]
pub(super) struct PartialMessage {
    kind: MessageKind,
    /// Room for the header of a reply, then the payload so far, unmasked.
    buffer: Vec<u8>,
    utf8: PiecewiseUtf8,
}

impl PartialMessage {
    pub(super) fn new(kind: MessageKind) -> Self {
        Self { kind, buffer: Vec::new(), utf8: PiecewiseUtf8::default() }
    }

    /// Bytes of payload so far.
    pub(super) fn len(&self) -> usize {
        self.buffer.len().saturating_sub(MAX_SERVER_HEADER)
    }

    /// Adds unmasked payload to a message that will not grow beyond `expected` bytes.
    pub(super) fn append(&mut self, piece: &[u8], expected: usize) -> Result<(), Violation> {
        if self.kind == MessageKind::Text {
            self.utf8.push(piece).map_err(|_| Violation::TextNotUtf8)?;
        }
        self.make_room(piece.len(), expected);
        self.buffer.extend_from_slice(piece);
        Ok(())
    }

    /// Grows the buffer by doubling, so that bytes move a constant number of times, but never to more than the
    /// message can need. What a header announces is not reserved before it arrives: that would let a client
    /// that sends fourteen bytes hold a megabyte.
    fn make_room(&mut self, more: usize, expected: usize) {
        if self.buffer.is_empty() {
            self.buffer.reserve_exact(MAX_SERVER_HEADER + more);
            self.buffer.resize(MAX_SERVER_HEADER, 0);
        }
        let needed = self.buffer.len() + more;
        if needed > self.buffer.capacity() {
            let doubled = self.buffer.capacity().saturating_mul(2);
            let target = doubled.min(expected.saturating_add(MAX_SERVER_HEADER)).max(needed);
            self.buffer.reserve_exact(target - self.buffer.len());
        }
    }

    pub(super) fn deliver(
        mut self,
        sink: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Violation> {
        if !self.utf8.is_complete() {
            return Err(Violation::TextNotUtf8);
        }
        Ok(sink(Event::Message(Message {
            kind: self.kind,
            buffer: &mut self.buffer,
            payload_at: MAX_SERVER_HEADER,
        })))
    }
}
