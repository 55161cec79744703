//! The receiving half of a connection: bytes in, messages and control frames out, in the order they were
//! sent. Owns what a connection must remember between two reads, and nothing else. Sends nothing, knows no
//! socket and no clock.
//!
//! A message that lies whole in one read, as nearly all do, is unmasked and checked where it lies, without a
//! copy or an allocation. Everything else is gathered in a buffer of its own until its last byte has come.

use std::ops::ControlFlow;

use tungstenite::protocol::frame::coding::{CloseCode, OpCode};

use super::assembly::Assembly;
use super::control::{self, PartialControl};
use super::frame::{ClientHeader, MAX_CLIENT_HEADER, ShortMessage};
use super::mask::Mask;
use super::message::PartialMessage;
pub use super::message::{Message, MessageKind};
use super::violation::Violation;

/// While this much or more of a frame's payload is to come, it is read to where it stays; for less, one read
/// may bring what follows as well. Once as much has come: until then it takes no memory that it has not filled.
const DIRECT: usize = 16 * 1024;

/// How much room is made for the next direct read, if as much has come.
const DIRECT_ROOM: usize = 64 * 1024;

/// What came from the client.
#[derive(Debug)]
pub enum Event<'a> {
    /// A whole message.
    Message(Message<'a>),
    /// A ping, to be answered with a pong of the same payload.
    Ping(&'a [u8]),
    /// A pong, asked for or not.
    Pong(&'a [u8]),
    /// The client closes, with the code and reason it gave, if any. Whatever follows on the stream is
    /// ignored.
    Close(Option<(CloseCode, &'a str)>),
}

/// Where events go, in the order they came. Breaks when what follows no longer counts.
pub trait Sink {
    /// Something came from the client.
    fn event(&mut self, event: Event<'_>) -> ControlFlow<()>;

    /// A message came: nearly every event is one, and some sinks have a shorter way for it.
    #[inline]
    fn message(&mut self, message: Message<'_>) -> ControlFlow<()> {
        self.event(Event::Message(message))
    }
}

impl<F: FnMut(Event<'_>) -> ControlFlow<()>> Sink for F {
    fn event(&mut self, event: Event<'_>) -> ControlFlow<()> {
        self(event)
    }
}

/// What a connection remembers between two reads. The default is the state between messages, in which nothing
/// is remembered; it allocates nothing.
#[derive(Debug, Default)]
pub struct Engine {
    pub(super) stage: Stage,
    /// The data message whose first bytes have come and whose last have not. Control frames come in between.
    pub(super) message: Option<PartialMessage>,
    /// Whether a piece of a message has come since that was last asked.
    pub(super) progressed: bool,
}

/// Where in a frame the stream stands.
#[derive(Debug, Default)]
pub(super) enum Stage {
    /// At the start of a frame.
    #[default]
    BetweenFrames,
    /// The first `have` bytes of a frame header have come.
    InHeader { bytes: [u8; MAX_CLIENT_HEADER], have: usize },
    /// In the payload of a frame of `message`, of which `remaining` bytes are to come.
    InData { remaining: usize, mask: Mask, last: bool },
    /// In the payload of a control frame.
    InControl(Box<PartialControl>),
}

/// What a step leaves of the input, or that nothing of it counts any more.
type Step<'a> = Result<ControlFlow<(), &'a mut [u8]>, Violation>;

impl Engine {
    /// Whether nothing is kept, neither half a frame nor half a message: the engine can be dropped and a new
    /// one be taken for the next read.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::BetweenFrames) && self.message.is_none()
    }

    /// Whether a message has begun and not ended: a byte of its first header, at least, has come.
    #[must_use]
    pub fn is_in_message(&self) -> bool {
        /// Opcodes with this bit are of control frames (RFC 6455, section 5.2).
        const CONTROL: u8 = 0x08;
        let begins = matches!(&self.stage, Stage::InHeader { bytes, .. } if bytes[0] & CONTROL == 0);
        self.message.is_some() || begins
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.message.as_ref().map_or(0, |message| message.buffer.capacity())
    }

    /// Takes what was read from the client and hands every event in it to `sink`. `input` is scratch space
    /// afterwards: it is unmasked in place.
    ///
    /// The rest of `input` is ignored after a [`Event::Close`] and when `sink` breaks; the engine is of no
    /// more use then, because it no longer knows where in the stream it stands.
    ///
    /// # Errors
    /// The rule that the client broke, found at the first byte that breaks it; events before that byte have
    /// been delivered. The engine is of no more use.
    pub fn feed(
        &mut self,
        mut input: &mut [u8],
        assembly: &mut Assembly,
        sink: &mut impl Sink,
    ) -> Result<(), Violation> {
        while !input.is_empty() {
            if self.is_idle() {
                match take_short_messages(input, assembly.max_message_size, sink)? {
                    ControlFlow::Continue(rest) => input = rest,
                    ControlFlow::Break(()) => break,
                }
                if input.is_empty() {
                    break;
                }
            }
            let step = match self.stage {
                Stage::BetweenFrames => self.start_frame(input, assembly, sink),
                Stage::InHeader { .. } => self.continue_header(input, assembly, sink),
                Stage::InData { .. } => self.take_data(input, assembly, sink),
                Stage::InControl(_) => self.take_control(input, sink),
            };
            match step? {
                ControlFlow::Continue(rest) => input = rest,
                ControlFlow::Break(()) => break,
            }
        }
        Ok(())
    }

    /// Whether a piece of an unfinished message has come since this was last asked.
    pub fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    /// Where the next bytes of a long payload can be read to without a detour, if the stream is in one. What
    /// was read there is then to be [`filled`](Self::filled).
    pub fn vacant(&mut self, assembly: &mut Assembly) -> Option<&mut [u8]> {
        let (Stage::InData { remaining, last, .. }, Some(message)) = (&self.stage, &mut self.message) else {
            return None;
        };
        let have = message.len();
        if *remaining < DIRECT || have < DIRECT {
            return None;
        }
        let expected = if *last { have + *remaining } else { assembly.max_message_size };
        let room = message.room((*remaining).min(have).min(DIRECT_ROOM), expected, assembly);
        let length = room.len().min(*remaining);
        Some(&mut room[..length])
    }

    /// The first `count` bytes of what [`vacant`](Self::vacant) returned were read there. As
    /// [`feed`](Self::feed) otherwise.
    ///
    /// # Errors
    /// As for [`feed`](Self::feed).
    pub fn filled(
        &mut self,
        count: usize,
        assembly: &mut Assembly,
        sink: &mut impl Sink,
    ) -> Result<(), Violation> {
        self.advance(count, assembly, sink).map(|_| ())
    }

    /// A frame begins at the start of `input`. If all of it is there, it is dealt with where it lies.
    fn start_frame<'a>(
        &mut self,
        input: &'a mut [u8],
        assembly: &mut Assembly,
        sink: &mut impl Sink,
    ) -> Step<'a> {
        let Some(header) = ClientHeader::parse(input, self.unfinished(), assembly.max_message_size)? else {
            let mut bytes = [0; MAX_CLIENT_HEADER];
            let have = input.len();
            bytes[..have].copy_from_slice(input);
            self.stage = Stage::InHeader { bytes, have };
            return Ok(ControlFlow::Continue(&mut []));
        };
        let in_place = match header.opcode {
            OpCode::Control(_) => true,
            OpCode::Data(_) => header.last && self.message.is_none(),
        };
        if !in_place || input.len() - header.size < header.length {
            return self.start_payload(header, &mut input[header.size..], assembly, sink);
        }
        let (frame, rest) = input.split_at_mut(header.size + header.length);
        let flow = match header.opcode {
            OpCode::Control(opcode) => {
                let payload = &mut frame[header.size..];
                header.mask.apply(payload);
                control::deliver(opcode, payload, sink)?
            }
            OpCode::Data(opcode) => {
                sink.message(Message::in_frame(MessageKind::of(opcode), frame, header.size, header.mask)?)
            }
        };
        Ok(continue_with(flow, rest))
    }

    /// A header began in an earlier read.
    fn continue_header<'a>(
        &mut self,
        input: &'a mut [u8],
        assembly: &mut Assembly,
        sink: &mut impl Sink,
    ) -> Step<'a> {
        let unfinished = self.unfinished();
        let Stage::InHeader { bytes, have } = &mut self.stage else {
            return Ok(ControlFlow::Continue(input));
        };
        let before = *have;
        let taken = input.len().min(MAX_CLIENT_HEADER - before);
        bytes[before..before + taken].copy_from_slice(&input[..taken]);
        *have += taken;
        match ClientHeader::parse(&bytes[..*have], unfinished, assembly.max_message_size)? {
            None => Ok(ControlFlow::Continue(&mut input[taken..])),
            Some(header) => self.start_payload(header, &mut input[header.size - before..], assembly, sink),
        }
    }

    /// The payload of a frame begins at the start of `input` and must be kept.
    fn start_payload<'a>(
        &mut self,
        header: ClientHeader,
        input: &'a mut [u8],
        assembly: &mut Assembly,
        sink: &mut impl Sink,
    ) -> Step<'a> {
        match header.opcode {
            OpCode::Control(opcode) => {
                self.stage = Stage::InControl(Box::new(PartialControl::new(opcode, &header)));
                self.take_control(input, sink)
            }
            OpCode::Data(opcode) => {
                self.message.get_or_insert_with(|| PartialMessage::new(MessageKind::of(opcode)));
                self.stage = Stage::InData { remaining: header.length, mask: header.mask, last: header.last };
                self.take_data(input, assembly, sink)
            }
        }
    }

    /// Moves payload from `input` to the message; delivers the message if this is its end.
    fn take_data<'a>(
        &mut self,
        input: &'a mut [u8],
        assembly: &mut Assembly,
        sink: &mut impl Sink,
    ) -> Step<'a> {
        let (Stage::InData { remaining, last, .. }, Some(message)) = (&self.stage, &mut self.message) else {
            return Ok(ControlFlow::Continue(input));
        };
        let (piece, rest) = input.split_at_mut(input.len().min(*remaining));
        let expected = if *last { message.len() + *remaining } else { assembly.max_message_size };
        message.room(piece.len(), expected, assembly)[..piece.len()].copy_from_slice(piece);
        Ok(continue_with(self.advance(piece.len(), assembly, sink)?, rest))
    }

    /// The next `count` bytes of payload are where they stay; delivers the message if this is its end.
    fn advance(
        &mut self,
        count: usize,
        assembly: &mut Assembly,
        sink: &mut impl Sink,
    ) -> Result<ControlFlow<()>, Violation> {
        let (Stage::InData { remaining, mask, last }, Some(message)) = (&mut self.stage, &mut self.message)
        else {
            return Ok(ControlFlow::Continue(()));
        };
        message.advance(count, *mask)?;
        self.progressed = true;
        *mask = mask.after(count);
        *remaining -= count;
        if *remaining > 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let last = *last;
        self.stage = Stage::BetweenFrames;
        match self.message.take_if(|_| last) {
            Some(message) => {
                let (flow, buffer) = message.deliver(sink)?;
                assembly.give_back(buffer);
                Ok(flow)
            }
            None => Ok(ControlFlow::Continue(())),
        }
    }

    /// Moves payload from `input` to the control frame; delivers the frame if this is its end.
    fn take_control<'a>(&mut self, input: &'a mut [u8], sink: &mut impl Sink) -> Step<'a> {
        let Stage::InControl(control) = &mut self.stage else {
            return Ok(ControlFlow::Continue(input));
        };
        let (piece, rest) = input.split_at_mut(input.len().min(control.remaining()));
        control.append(piece);
        if control.remaining() > 0 {
            return Ok(ControlFlow::Continue(rest));
        }
        let Stage::InControl(mut control) = std::mem::take(&mut self.stage) else {
            return Ok(ControlFlow::Continue(rest));
        };
        Ok(continue_with(control.deliver(sink)?, rest))
    }

    /// The length of the message whose fragments are coming in, if there is one.
    fn unfinished(&self) -> Option<usize> {
        self.message.as_ref().map(PartialMessage::len)
    }
}

/// Takes whole short messages from the start of `input` for as long as there are any.
///
/// In two passes: one that makes server's frames of the client's where they lie, one that delivers them. A
/// processor that reads bytes it has only just written, in pieces of another size, waits for them; by the
/// second pass they are long in the cache.
fn take_short_messages<'a>(input: &'a mut [u8], max_message_size: usize, sink: &mut impl Sink) -> Step<'a> {
    let mut end = 0;
    while let Some(short) = ShortMessage::parse(&input[end..])
        && short.length <= max_message_size
    {
        end += short.turn_round(&mut input[end..]);
    }
    let (mut turned, rest) = input.split_at_mut(end);
    while let Some((kind, frame, after)) = ShortMessage::split_turned(turned) {
        if sink.message(Message::framed(kind, frame)?).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        turned = after;
    }
    Ok(ControlFlow::Continue(rest))
}

fn continue_with(flow: ControlFlow<()>, rest: &mut [u8]) -> ControlFlow<(), &mut [u8]> {
    match flow {
        ControlFlow::Continue(()) => ControlFlow::Continue(rest),
        ControlFlow::Break(()) => ControlFlow::Break(()),
    }
}
