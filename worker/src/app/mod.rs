//! What the server does with messages. An application sees whole, valid messages and writes whole replies; it never sees
//! a frame, a socket or a limit.

mod echo;

pub use echo::Echo;

use tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::websocket::frame;
use crate::websocket::{Message, MessageKind};

/// An application.
pub trait App {
    /// A client sent `message`; whatever is put into `replies` goes back to it, in order.
    fn message(&mut self, message: Message<'_>, replies: &mut Replies<'_>);
}

/// Where an application puts its answers to one client.
#[derive(Debug)]
pub struct Replies<'a> {
    output: &'a mut Vec<u8>,
    messages: u64,
}

impl<'a> Replies<'a> {
    /// Answers are appended to `output` as frames.
    pub(crate) fn new(output: &'a mut Vec<u8>) -> Self {
        Self { output, messages: 0 }
    }

    /// Sends `payload` as one message. A text must be UTF-8, which the client checks.
    pub fn send(&mut self, kind: MessageKind, payload: &[u8]) {
        let opcode = match kind {
            MessageKind::Text => OpCode::Data(Data::Text),
            MessageKind::Binary => OpCode::Data(Data::Binary),
        };
        frame::append_frame(self.output, opcode, payload);
        self.messages += 1;
    }

    /// Sends a control frame, which is not the application's and not counted as a message.
    pub(crate) fn control(&mut self, opcode: OpCode, payload: &[u8]) {
        frame::append_frame(self.output, opcode, payload);
    }

    /// How many messages were put in.
    pub(crate) fn messages(&self) -> u64 {
        self.messages
    }
}
