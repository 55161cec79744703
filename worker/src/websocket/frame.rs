//! Frames on the wire (RFC 6455, section 5.2): reads the header of a client's, writes a server's.
//! Holds no bytes between calls and looks into no payload.

use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use super::mask::Mask;
use super::message::MessageKind;
use super::violation::Violation;

/// The longest header a client can send: two bytes, eight of length, four of mask.
pub(super) const MAX_CLIENT_HEADER: usize = 14;

/// The longest header a server sends: a client's without the mask.
pub(super) const MAX_SERVER_HEADER: usize = 10;

/// The most payload a control frame carries (RFC 6455, section 5.5).
pub const MAX_CONTROL_PAYLOAD: usize = 125;

const FIN: u8 = 0x80;
const FIN_TEXT: u8 = FIN | 1;
const FIN_BINARY: u8 = FIN | 2;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const LENGTH_IN_16_BITS: u8 = 126;
const LENGTH_IN_64_BITS: u8 = 127;
/// What a short frame saves without its mask.
const UNUSED: usize = 4;

/// The header of a client's frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClientHeader {
    pub(super) opcode: OpCode,
    /// Whether this frame ends its message.
    pub(super) last: bool,
    pub(super) mask: Mask,
    /// Bytes of payload that follow the header.
    pub(super) length: usize,
    /// Bytes of the header itself.
    pub(super) size: usize,
}

impl ClientHeader {
    /// Reads the header at the start of `bytes`; `None` while it is incomplete. A broken rule is reported as
    /// soon as the byte that breaks it is there.
    ///
    /// `unfinished` is the length of the message whose fragments are coming in, if there is one; with this
    /// frame it must stay within `max_message_size`.
    pub(super) fn parse(
        bytes: &[u8],
        unfinished: Option<usize>,
        max_message_size: usize,
    ) -> Result<Option<Self>, Violation> {
        let Some((&first, bytes)) = bytes.split_first() else { return Ok(None) };
        let last = first & FIN != 0;
        if first & RESERVED != 0 {
            return Err(Violation::ReservedBits);
        }
        let opcode = OpCode::from(first & 0x0f);
        check_sequence(opcode, last, unfinished.is_some())?;

        let Some((&second, bytes)) = bytes.split_first() else { return Ok(None) };
        if second & MASKED == 0 {
            return Err(Violation::Unmasked);
        }
        let short_length = second & !MASKED;
        if matches!(opcode, OpCode::Control(_)) && usize::from(short_length) > MAX_CONTROL_PAYLOAD {
            return Err(Violation::ControlTooLong);
        }
        let Some((length, bytes)) = parse_length(short_length, bytes)? else { return Ok(None) };
        let length = usize::try_from(length).map_err(|_| Violation::MessageTooBig)?;
        if matches!(opcode, OpCode::Data(_))
            && length > max_message_size.saturating_sub(unfinished.unwrap_or(0))
        {
            return Err(Violation::MessageTooBig);
        }

        let Some((key, _)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let size = server_header_size(length) + key.len();
        Ok(Some(Self { opcode, last, mask: Mask::new(*key), length, size }))
    }
}

/// A frame that is a whole message of at most 125 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct ShortMessage {
    pub(super) mask: Mask,
    pub(super) length: usize,
}

impl ShortMessage {
    /// Bytes of its header.
    pub(super) const HEADER: usize = 6;

    /// Bytes of its header once it is a server's.
    pub(super) const TURNED_HEADER: usize = Self::HEADER - UNUSED;

    /// The short message at the start of `bytes`, if one is there, whole. Breaks no rule and says nothing
    /// about other frames: those, and whatever is wrong, are [`ClientHeader::parse`]'s. This is for the
    /// many small messages of a busy client, where reading the header is most of the work.
    #[inline]
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[first, second, key @ ..], payload) = bytes.split_first_chunk::<{ Self::HEADER }>()?;
        if first != FIN_TEXT && first != FIN_BINARY {
            return None;
        }
        // Without its mask bit a length is 128 or more here.
        let length = usize::from(second ^ MASKED);
        (length <= MAX_CONTROL_PAYLOAD && length <= payload.len())
            .then(|| Self { mask: Mask::new(key), length })
    }

    /// Makes it a server's frame, where it lies at the start of `bytes`: unmasked, its header moved up to the
    /// payload, over the mask. Returns the bytes that it took up and still does, four in front unused.
    #[inline]
    pub(super) fn turn_round(self, bytes: &mut [u8]) -> usize {
        let size = Self::HEADER + self.length;
        let (header, payload) = bytes[..size].split_at_mut(Self::HEADER);
        header[UNUSED] = header[0];
        header[UNUSED + 1] = header[1] & !MASKED;
        self.mask.apply(payload);
        size
    }

    /// The first of the frames that were turned round, what it brings, and what follows it.
    #[inline]
    pub(super) fn split_turned(bytes: &mut [u8]) -> Option<(MessageKind, &mut [u8], &mut [u8])> {
        let [first, length] = *bytes.get(UNUSED..)?.first_chunk()?;
        let kind = if first == FIN_TEXT { MessageKind::Text } else { MessageKind::Binary };
        let (frame, rest) = bytes.split_at_mut_checked(Self::HEADER + usize::from(length))?;
        Some((kind, &mut frame[UNUSED..], rest))
    }
}

/// The rules that the first byte alone can break.
fn check_sequence(opcode: OpCode, last: bool, message_unfinished: bool) -> Result<(), Violation> {
    match opcode {
        OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => {
            Err(Violation::ReservedOpcode)
        }
        OpCode::Control(_) if !last => Err(Violation::FragmentedControl),
        OpCode::Control(_) => Ok(()),
        OpCode::Data(Data::Continue) if !message_unfinished => Err(Violation::NothingToContinue),
        OpCode::Data(Data::Text | Data::Binary) if message_unfinished => Err(Violation::MessageUnfinished),
        OpCode::Data(_) => Ok(()),
    }
}

/// The payload length and the bytes that follow it; `None` while it is incomplete.
///
/// "The minimal number of bytes MUST be used to encode the length": a length that could be shorter is
/// refused.
fn parse_length(short: u8, bytes: &[u8]) -> Result<Option<(u64, &[u8])>, Violation> {
    let (length, rest, least) = match short {
        LENGTH_IN_16_BITS => {
            let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*length)), rest, u64::from(LENGTH_IN_16_BITS))
        }
        LENGTH_IN_64_BITS => {
            if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
                return Err(Violation::LengthTopBit);
            }
            let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*length), rest, u64::from(u16::MAX) + 1)
        }
        _ => (u64::from(short), bytes, 0),
    };
    if length < least { Err(Violation::LengthNotMinimal) } else { Ok(Some((length, rest))) }
}

/// Bytes of the header of a server's frame with `length` bytes of payload.
fn server_header_size(length: usize) -> usize {
    match length {
        0..=125 => 2,
        126..=0xffff => 4,
        _ => MAX_SERVER_HEADER,
    }
}

/// The header of a server's frame that is a whole message: final and unmasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerHeader {
    bytes: [u8; MAX_SERVER_HEADER],
    size: usize,
}

impl ServerHeader {
    /// The header for `length` bytes of payload.
    #[must_use]
    pub fn new(opcode: OpCode, length: usize) -> Self {
        let wide = u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes();
        let mut bytes = [0; MAX_SERVER_HEADER];
        bytes[0] = FIN | u8::from(opcode);
        let size = server_header_size(length);
        match size {
            2 => bytes[1] = wide[7],
            4 => {
                bytes[1] = LENGTH_IN_16_BITS;
                bytes[2..4].copy_from_slice(&wide[6..]);
            }
            _ => {
                bytes[1] = LENGTH_IN_64_BITS;
                bytes[2..].copy_from_slice(&wide);
            }
        }
        Self { bytes, size }
    }

    /// The bytes to send before the payload.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.size]
    }
}

/// Appends a whole message, or a control frame of at most [`MAX_CONTROL_PAYLOAD`] bytes, to `out`.
pub fn append_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    let header = ServerHeader::new(opcode, payload.len());
    out.reserve(header.size + payload.len());
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(payload);
}

/// Appends a whole message to `out`.
pub fn append_message(out: &mut Vec<u8>, kind: MessageKind, payload: &[u8]) {
    let kind = match kind {
        MessageKind::Text => Data::Text,
        MessageKind::Binary => Data::Binary,
    };
    append_frame(out, OpCode::Data(kind), payload);
}

/// Appends a close frame to `out`. What does not fit of `reason` is cut off, at the end of a character.
pub fn append_close(out: &mut Vec<u8>, code: CloseCode, reason: &str) {
    let code = u16::from(code).to_be_bytes();
    let reason = &reason[..reason.floor_char_boundary(MAX_CONTROL_PAYLOAD - code.len())];
    let header = ServerHeader::new(OpCode::Control(Control::Close), code.len() + reason.len());
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(&code);
    out.extend_from_slice(reason.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: OpCode = OpCode::Data(Data::Text);
    const LIMIT: usize = 100_000;

    fn parse(bytes: &[u8]) -> Result<Option<ClientHeader>, Violation> {
        ClientHeader::parse(bytes, None, LIMIT)
    }

    #[test]
    fn lengths_are_read_in_all_three_forms() {
        for (header, length) in [
            (&[0x81, 0x80][..], 0),
            (&[0x81, 0xfd], 125),
            (&[0x81, 0xfe, 0, 126], 126),
            (&[0x81, 0xfe, 0xff, 0xff], 65_535),
            (&[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0], 65_536),
        ] {
            let bytes = [header, &[1, 2, 3, 4]].concat();
            let expected = ClientHeader {
                opcode: TEXT,
                last: true,
                mask: Mask::new([1, 2, 3, 4]),
                length,
                size: bytes.len(),
            };
            assert_eq!(parse(&bytes), Ok(Some(expected)));
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "{header:x?} cut at {cut}");
            }
        }
    }

    #[test]
    fn every_rule_is_reported_by_the_byte_that_breaks_it() {
        use Violation::*;
        let cases: [(&[u8], Violation); 21] = [
            (&[0xc1], ReservedBits),
            (&[0xa1], ReservedBits),
            (&[0x91], ReservedBits),
            (&[0x83], ReservedOpcode),
            (&[0x87], ReservedOpcode),
            (&[0x8b], ReservedOpcode),
            (&[0x8f], ReservedOpcode),
            (&[0x08], FragmentedControl),
            (&[0x09], FragmentedControl),
            (&[0x0a], FragmentedControl),
            (&[0x80], NothingToContinue),
            (&[0x00], NothingToContinue),
            (&[0x81, 0x05], Unmasked),
            (&[0x88, 0x00], Unmasked),
            (&[0x89, 0xfe], ControlTooLong),
            (&[0x88, 0xff], ControlTooLong),
            (&[0x82, 0xfe, 0, 125], LengthNotMinimal),
            (&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], LengthNotMinimal),
            (&[0x82, 0xff, 0x80], LengthTopBit),
            (&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0x86, 0xa1], MessageTooBig),
            (&[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], MessageTooBig),
        ];
        for (bytes, violation) in cases {
            assert_eq!(parse(bytes), Err(violation), "{bytes:x?}");
            assert_eq!(parse(&bytes[..bytes.len() - 1]), Ok(None), "{bytes:x?}: too early");
        }
    }

    #[test]
    fn fragments_are_counted_together_and_control_frames_are_not() {
        let continuation = [0x80, 0x8b, 0, 0, 0, 0];
        assert!(matches!(ClientHeader::parse(&continuation, Some(LIMIT - 11), LIMIT), Ok(Some(_))));
        assert_eq!(
            ClientHeader::parse(&continuation, Some(LIMIT - 10), LIMIT),
            Err(Violation::MessageTooBig)
        );
        // The limit may have been lowered since the message began.
        assert_eq!(ClientHeader::parse(&continuation, Some(LIMIT), 10), Err(Violation::MessageTooBig));
        let ping = [0x89, 0x8b, 0, 0, 0, 0];
        assert!(matches!(ClientHeader::parse(&ping, Some(LIMIT), LIMIT), Ok(Some(_))));
        for data in [0x01, 0x81, 0x02, 0x82] {
            assert_eq!(ClientHeader::parse(&[data], Some(0), LIMIT), Err(Violation::MessageUnfinished));
        }
    }

    #[test]
    fn server_headers_are_minimal() {
        for (length, expected) in [
            (0, &[0x81, 0][..]),
            (125, &[0x81, 125]),
            (126, &[0x81, 126, 0, 126]),
            (65_535, &[0x81, 126, 0xff, 0xff]),
            (65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            assert_eq!(ServerHeader::new(TEXT, length).as_bytes(), expected);
        }
    }

    #[test]
    fn frames_are_appended() {
        let mut out = b"before".to_vec();
        append_frame(&mut out, OpCode::Control(Control::Pong), b"abc");
        append_close(&mut out, CloseCode::Away, "bye");
        assert_eq!(out, b"before\x8a\x03abc\x88\x05\x03\xe9bye");
    }

    #[test]
    fn close_reasons_are_cut_between_characters() {
        let mut out = Vec::new();
        append_close(&mut out, CloseCode::Normal, &"é".repeat(100));
        assert_eq!(out.len(), 2 + 2 + 122);
        assert_eq!(usize::from(out[1]), out.len() - 2);
        assert_eq!(std::str::from_utf8(&out[4..]), Ok("é".repeat(61).as_str()));
    }
}
