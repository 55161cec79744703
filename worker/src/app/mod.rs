//! What the server does with messages. An application sees whole, valid messages and writes whole replies; it
//! never sees a frame, a socket or a limit.

mod echo;
mod program;

pub use echo::Echo;
pub use program::Program;

use holdfast_shared::table::Phase;
use tungstenite::protocol::frame::coding::{Control, OpCode};

use crate::connection::{Connections, Key};
use crate::websocket::frame;
use crate::websocket::{Message, MessageKind};

/// An application.
pub trait App {
    /// A client sent `message`; whatever is put into `replies` goes back to it, in order.
    fn message(&mut self, message: Message<'_>, replies: &mut Replies<'_>);
}

/// Where an application puts its answers to one client. Small ones are gathered and leave together; a large
/// one leaves from where it lies.
pub struct Replies<'a> {
    connections: &'a mut Connections,
    key: Key,
    gathered: &'a mut Vec<u8>,
    messages: u64,
}

/// From here on another system call costs less than a copy.
const LARGE: usize = 4096;

/// Gathered replies leave when there are this many bytes of them.
const GATHERED_LIMIT: usize = 64 * 1024;

impl<'a> Replies<'a> {
    /// Answers to the client of `key`. `gathered` is empty, and will be again after [`Replies::finish`].
    pub(crate) fn new(connections: &'a mut Connections, key: Key, gathered: &'a mut Vec<u8>) -> Self {
        Self { connections, key, gathered, messages: 0 }
    }

    /// Sends `payload` as one message. A text must be UTF-8, which the client checks.
    pub fn send(&mut self, kind: MessageKind, payload: &[u8]) {
        self.messages += 1;
        frame::append_frame(self.gathered, kind.into(), payload);
        self.flush_if_many();
    }

    /// Sends a message back as it came.
    pub fn send_back(&mut self, message: Message<'_>) {
        self.messages += 1;
        let reply = message.into_reply();
        if reply.len() >= LARGE {
            self.flush();
            self.write(reply);
        } else {
            self.gathered.extend_from_slice(reply);
            self.flush_if_many();
        }
    }

    /// Sends a control frame, which is not the application's and not counted as a message.
    pub(crate) fn control(&mut self, opcode: Control, payload: &[u8]) {
        frame::append_frame(self.gathered, OpCode::Control(opcode), payload);
        self.flush_if_many();
    }

    /// Sends what was gathered. Returns how many messages there were.
    pub(crate) fn finish(mut self) -> u64 {
        self.flush();
        self.messages
    }

    fn flush_if_many(&mut self) {
        if self.gathered.len() >= GATHERED_LIMIT {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.gathered.is_empty() {
            let mut gathered = std::mem::take(self.gathered);
            self.write(&gathered);
            gathered.clear();
            *self.gathered = gathered;
        }
    }

    /// A connection that is no longer open, since its client does not read, gets nothing after its close
    /// frame.
    fn write(&mut self, frames: &[u8]) {
        if self.connections.is_in(self.key, Phase::Open) {
            self.connections.write(self.key, frames);
        }
    }
}
