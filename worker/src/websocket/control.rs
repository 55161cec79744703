//! Control frames: what they carry, and those that came in more than one read.

use std::ops::ControlFlow;

use tungstenite::protocol::frame::coding::{CloseCode, Control};

use super::engine::{Event, Sink};
use super::frame::{ClientHeader, MAX_CONTROL_PAYLOAD};
use super::mask::Mask;
use super::violation::Violation;

/// Hands an unmasked control frame to `sink`. Nothing counts after a close.
pub(super) fn deliver(
    opcode: Control,
    payload: &[u8],
    sink: &mut impl Sink,
) -> Result<ControlFlow<()>, Violation> {
    match opcode {
        Control::Ping => Ok(sink.event(Event::Ping(payload))),
        Control::Pong => Ok(sink.event(Event::Pong(payload))),
        Control::Close => {
            let _ = sink.event(Event::Close(parse_close(payload)?));
            Ok(ControlFlow::Break(()))
        }
        Control::Reserved(_) => Err(Violation::ReservedOpcode),
    }
}

/// A control frame that came in more than one read.
#[derive(Debug)]
pub(super) struct PartialControl {
    pub(super) opcode: Control,
    pub(super) mask: Mask,
    pub(super) length: usize,
    pub(super) have: usize,
    /// The payload so far, still masked.
    pub(super) payload: [u8; MAX_CONTROL_PAYLOAD],
}

impl PartialControl {
    pub(super) fn new(opcode: Control, header: &ClientHeader) -> Self {
        let payload = [0; MAX_CONTROL_PAYLOAD];
        Self { opcode, mask: header.mask, length: header.length, have: 0, payload }
    }

    /// How many bytes of payload are to come.
    pub(super) fn remaining(&self) -> usize {
        self.length - self.have
    }

    /// Adds payload, at most what remains.
    pub(super) fn append(&mut self, piece: &[u8]) {
        let end = self.have + piece.len();
        self.payload[self.have..end].copy_from_slice(piece);
        self.have = end;
    }

    pub(super) fn deliver(&mut self, sink: &mut impl Sink) -> Result<ControlFlow<()>, Violation> {
        let payload = &mut self.payload[..self.length];
        self.mask.apply(payload);
        deliver(self.opcode, payload, sink)
    }
}

/// The code and reason in the payload of a close frame (RFC 6455, section 5.5.1).
fn parse_close(payload: &[u8]) -> Result<Option<(CloseCode, &str)>, Violation> {
    if payload.is_empty() {
        return Ok(None);
    }
    let (code, reason) = payload.split_first_chunk().ok_or(Violation::CloseCodeCut)?;
    let code = u16::from_be_bytes(*code);
    // 1014, bad gateway, was registered with IANA after tungstenite's list was written.
    if code != 1014 && !CloseCode::from(code).is_allowed() {
        return Err(Violation::CloseCodeNotAllowed);
    }
    let reason = simdutf8::basic::from_utf8(reason).map_err(|_| Violation::CloseReasonNotUtf8)?;
    Ok(Some((code.into(), reason)))
}
