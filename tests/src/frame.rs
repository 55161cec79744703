//! WebSocket frames byte by byte (RFC 6455 section 5.2), wrong ones included: what a library's client would
//! refuse to send.

/// The key all frames of the tests are masked with.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// FIN, the last frame of a message.
pub const FIN: u8 = 0x80;
/// Continuation of a fragmented message.
pub const CONTINUATION: u8 = 0x0;
/// Text message.
pub const TEXT: u8 = 0x1;
/// Binary message.
pub const BINARY: u8 = 0x2;
/// Close.
pub const CLOSE: u8 = 0x8;
/// Ping.
pub const PING: u8 = 0x9;
/// Pong.
pub const PONG: u8 = 0xa;

/// A frame a server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// FIN, reserved bits and opcode.
    pub first: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The opcode alone.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    /// The code of a close frame: 1005 when it carries none.
    ///
    /// # Panics
    /// When this is no close frame, or one with a single byte.
    #[must_use]
    pub fn close_code(&self) -> u16 {
        assert_eq!(self.opcode(), CLOSE, "not a close frame: {self:?}");
        match self.payload[..] {
            [] => 1005,
            [high, low, ..] => u16::from_be_bytes([high, low]),
            [_] => panic!("a close frame with half a code"),
        }
    }

    /// The frame at the start of `bytes` and its length, or `None` while it is incomplete.
    ///
    /// # Panics
    /// When it is masked: servers must not (RFC 6455 section 5.1).
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let (&first, rest) = bytes.split_first()?;
        let (&second, rest) = rest.split_first()?;
        assert_eq!(second & 0x80, 0, "a masked frame from the server");
        let (length, extended): (usize, usize) = match second {
            126 => (usize::from(u16::from_be_bytes(rest.first_chunk().copied()?)), 2),
            127 => (usize::try_from(u64::from_be_bytes(rest.first_chunk().copied()?)).ok()?, 8),
            short => (usize::from(short), 0),
        };
        let payload = rest.get(extended..extended.checked_add(length)?)?;
        Some((Self { first, payload: payload.to_vec() }, 2 + extended + length))
    }
}

/// A frame as a client sends it; `first` holds FIN, reserved bits and opcode.
#[must_use]
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, 0x80, payload.len() as u64);
    bytes.extend_from_slice(&MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// The same without the mask that clients owe.
#[must_use]
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, 0, payload.len() as u64);
    bytes.extend_from_slice(payload);
    bytes
}

/// A masked frame's header that promises `length` bytes and brings none.
#[must_use]
pub fn promise(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = header(first, 0x80, length);
    bytes.extend_from_slice(&MASK);
    bytes
}

/// A close frame's payload.
#[must_use]
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// First two bytes and extended length; the shortest form, as the RFC demands.
fn header(first: u8, mask: u8, length: u64) -> Vec<u8> {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => vec![first, mask | short],
        (_, Ok(medium)) => [&[first, mask | 126][..], &medium.to_be_bytes()].concat(),
        _ => [&[first, mask | 127][..], &length.to_be_bytes()].concat(),
    }
}
