//! Data messages: complete ones, handed to whoever receives them, and those still coming in.
//! Knows how messages are checked and stored; `engine` knows how frames make them up.

use std::ops::ControlFlow;

use tungstenite::protocol::frame::coding::{Data, OpCode};

use super::assembly::Assembly;
use super::engine::Sink;
use super::frame::{MAX_SERVER_HEADER, ServerHeader, ShortMessage};
use super::mask::Mask;
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
    /// What the first frame of a message says about it. A continuation never begins one: the header was
    /// checked.
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
/// Before the payload its buffer has room for the header of a server's frame, so that an echo is sent from
/// where it was received: a client's header is four bytes longer than a server's for the same payload.
#[derive(Debug)]
pub struct Message<'a> {
    kind: MessageKind,
    buffer: &'a mut [u8],
    payload_at: usize,
    /// The buffer is a server's frame already.
    is_framed: bool,
}

impl<'a> Message<'a> {
    /// A whole short message as a server's frame.
    #[inline]
    pub(super) fn framed(kind: MessageKind, frame: &'a mut [u8]) -> Result<Self, Violation> {
        let payload_at = ShortMessage::TURNED_HEADER;
        check(kind, &frame[payload_at..])?;
        Ok(Self { kind, buffer: frame, payload_at, is_framed: true })
    }

    /// A whole message in one frame, whose payload, still masked, starts at `payload_at`.
    pub(super) fn in_frame(
        kind: MessageKind,
        frame: &'a mut [u8],
        payload_at: usize,
        mask: Mask,
    ) -> Result<Self, Violation> {
        let is_ascii = mask.apply(&mut frame[payload_at..]);
        if !is_ascii {
            check(kind, &frame[payload_at..])?;
        }
        Ok(Self { kind, buffer: frame, payload_at, is_framed: false })
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
    #[inline]
    pub fn into_reply(self) -> &'a mut [u8] {
        if self.is_framed {
            return self.buffer;
        }
        let header = ServerHeader::new(self.kind.into(), self.buffer.len() - self.payload_at);
        let header = header.as_bytes();
        let start = self.payload_at - header.len();
        self.buffer[start..self.payload_at].copy_from_slice(header);
        &mut self.buffer[start..]
    }
}

#[inline]
fn check(kind: MessageKind, payload: &[u8]) -> Result<(), Violation> {
    if kind == MessageKind::Text && !utf8::is_valid(payload) {
        return Err(Violation::TextNotUtf8);
    }
    Ok(())
}

/// A message that comes in more than one frame or more than one read.
#[derive(Debug)]
pub(super) struct PartialMessage {
    pub(super) kind: MessageKind,
    /// Room for the header of a reply, the payload so far, unmasked, and room for more of it. All of it can
    /// be written to.
    pub(super) buffer: Vec<u8>,
    /// Where the payload so far ends.
    pub(super) end: usize,
    pub(super) utf8: PiecewiseUtf8,
}

impl PartialMessage {
    /// An empty message.
    pub(super) fn new(kind: MessageKind) -> Self {
        Self { kind, buffer: Vec::new(), end: MAX_SERVER_HEADER, utf8: PiecewiseUtf8::default() }
    }

    /// Bytes of payload so far.
    pub(super) fn len(&self) -> usize {
        self.end - MAX_SERVER_HEADER
    }

    /// The payload so far.
    pub(super) fn payload(&self) -> &[u8] {
        // Until the first byte of payload the buffer may be empty.
        self.buffer.get(MAX_SERVER_HEADER..self.end).unwrap_or_default()
    }

    /// Room for the next bytes, at least `at_least` of them, of a message that will not grow beyond
    /// `expected` bytes.
    ///
    /// The buffer grows by doubling, so that bytes move a constant number of times, but never to more than
    /// the message can need. What a header announces is not reserved before it arrives: that would let a
    /// client that sends fourteen bytes hold a megabyte. A buffer that has served takes its place once enough has come.
    pub(super) fn room(&mut self, at_least: usize, expected: usize, assembly: &mut Assembly) -> &mut [u8] {
        let needed = self.end + at_least;
        if needed <= self.buffer.len() {
            return &mut self.buffer[self.end..];
        }
        if let Some(mut spare) = assembly.take(needed) {
            let filled = self.end.min(self.buffer.len());
            spare[..filled].copy_from_slice(&self.buffer[..filled]);
            assembly.give_back(std::mem::replace(&mut self.buffer, spare));
        } else {
            let doubled = self.buffer.len().saturating_mul(2);
            let target = doubled.min(expected.saturating_add(MAX_SERVER_HEADER)).max(needed);
            self.buffer.reserve_exact(target - self.buffer.len());
            self.buffer.resize(target, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// The first `count` bytes of the room are payload now, still masked.
    pub(super) fn advance(&mut self, count: usize, mask: Mask) -> Result<(), Violation> {
        let piece = &mut self.buffer[self.end..self.end + count];
        let is_ascii = mask.apply(piece);
        if self.kind == MessageKind::Text && !(is_ascii && self.utf8.is_complete()) {
            self.utf8.push(piece).map_err(|_| Violation::TextNotUtf8)?;
        }
        self.end += count;
        Ok(())
    }

    /// The message is complete. Its buffer comes back for the next one.
    pub(super) fn deliver(mut self, sink: &mut impl Sink) -> Result<(ControlFlow<()>, Vec<u8>), Violation> {
        if !self.utf8.is_complete() {
            return Err(Violation::TextNotUtf8);
        }
        // A message of empty fragments has never needed room.
        self.buffer.resize(self.buffer.len().max(self.end), 0);
        let flow = sink.message(Message {
            kind: self.kind,
            buffer: &mut self.buffer[..self.end],
            payload_at: MAX_SERVER_HEADER,
            is_framed: false,
        });
        Ok((flow, self.buffer))
    }
}
