//! WebSocket frames byte by byte (RFC 6455 section 5.2): written as clients send them, wrong ones included, and
//! found in what a server sends.

/// The key the tests' frames are masked with.
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

/// Header with a 64-bit length and a masking key.
pub const LONGEST_HEADER: usize = 14;

/// Largest payload of a control frame (section 5.5).
const CONTROL_MAX: u64 = 125;

/// Appends a frame; `first` holds FIN, reserved bits and opcode. With a key it is a client's.
pub fn put(first: u8, key: Option<[u8; 4]>, payload: &[u8], out: &mut Vec<u8>) {
    put_header(first, key, payload.len() as u64, out);
    match key {
        Some(key) => out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key)),
        None => out.extend_from_slice(payload),
    }
}

/// The shortest form of the length, as section 5.2 demands.
fn put_header(first: u8, key: Option<[u8; 4]>, length: u64, out: &mut Vec<u8>) {
    let mask_bit = u8::from(key.is_some()) << 7;
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => out.extend([first, mask_bit | short]),
        (_, Ok(medium)) => {
            out.extend([first, mask_bit | 126]);
            out.extend(medium.to_be_bytes());
        }
        _ => {
            out.extend([first, mask_bit | 127]);
            out.extend(length.to_be_bytes());
        }
    }
    out.extend(key.iter().flatten());
}

/// A frame as a client sends it.
#[must_use]
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LONGEST_HEADER + payload.len());
    put(first, Some(MASK), payload, &mut bytes);
    bytes
}

/// The same without the mask that clients owe.
#[must_use]
pub fn unmasked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(first, None, payload, &mut bytes);
    bytes
}

/// A masked frame's header that promises `length` bytes and brings none.
#[must_use]
pub fn promise(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_header(first, Some(MASK), length, &mut bytes);
    bytes
}

/// A close frame's payload.
#[must_use]
pub fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// Whether a frame that begins with this byte is a control frame.
pub(crate) fn is_control(first: u8) -> bool {
    first & 0x08 != 0
}

/// The code in a close frame's payload: 1005 when it carries none.
fn code_in(payload: &[u8]) -> u16 {
    payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code))
}

/// The server sent what no server may send.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Payload and header length of the server's frame at the start of `bytes`; `None` while its header is incomplete.
fn lengths(bytes: &[u8]) -> Result<Option<(u64, usize)>, Malformed> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    let lengths = match *second {
        // Section 5.1: a server must not mask.
        0x80.. => return Err(Malformed),
        126 => rest.first_chunk().map(|length| (u64::from(u16::from_be_bytes(*length)), 4)),
        127 => rest.first_chunk().map(|length| (u64::from_be_bytes(*length), 10)),
        short => Some((u64::from(short), 2)),
    };
    let too_long = |(length, _): &(u64, usize)| is_control(*first) && *length > CONTROL_MAX;
    if lengths.as_ref().is_some_and(too_long) { Err(Malformed) } else { Ok(lengths) }
}

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
        assert_ne!(self.payload.len(), 1, "a close frame with half a code");
        code_in(&self.payload)
    }

    /// The frame at the start of `bytes` and its length, or `None` while it is incomplete.
    ///
    /// # Panics
    /// When no server may send it.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let (length, header) = lengths(bytes).expect("a frame that a server may send")?;
        let end = header.checked_add(usize::try_from(length).ok()?)?;
        let payload = bytes.get(header..end)?.to_vec();
        Some((Self { first: bytes[0], payload }, end))
    }
}

/// A frame that has arrived whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// To be answered with the same payload.
    Ping(Vec<u8>),
    /// The server closes, with this code (1005: it gave none).
    Close(u16),
    /// A pong, or data; no matter.
    Other,
}

/// Finds the frames in a stream, whatever pieces it comes in. Keeps only the payload of a control frame.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    header: [u8; 10],
    have: usize,
    /// Bytes of the payload to come, once the header is there.
    left: Option<u64>,
    control: Vec<u8>,
}

impl Scanner {
    /// Whether a frame has begun and not ended.
    pub(crate) fn in_frame(&self) -> bool {
        self.have > 0
    }

    /// Takes bytes of one frame at most: how many, and the frame, should it be complete now.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Result<(usize, Option<Arrived>), Malformed> {
        let mut used = 0;
        let left = loop {
            if let Some(left) = self.left {
                break left;
            }
            let Some(&byte) = bytes.get(used) else { return Ok((used, None)) };
            self.header[self.have] = byte;
            self.have += 1;
            used += 1;
            self.left = lengths(&self.header[..self.have])?.map(|(length, _)| length);
        };
        let rest = &bytes[used..];
        let take = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if is_control(self.header[0]) {
            self.control.extend_from_slice(&rest[..take]);
        }
        let left = left - take as u64;
        if left > 0 {
            self.left = Some(left);
            return Ok((used + take, None));
        }
        (self.have, self.left) = (0, None);
        let payload = std::mem::take(&mut self.control);
        let arrived = match self.header[0] & 0x0f {
            PING => Arrived::Ping(payload),
            CLOSE => Arrived::Close(code_in(&payload)),
            _ => Arrived::Other,
        };
        Ok((used + take, Some(arrived)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan_in_pieces(stream: &[u8], piece: usize) -> Vec<Arrived> {
        let mut scanner = Scanner::default();
        let mut frames = Vec::new();
        for mut bytes in stream.chunks(piece) {
            while !bytes.is_empty() {
                let (used, frame) = scanner.scan(bytes).unwrap();
                bytes = &bytes[used..];
                frames.extend(frame);
            }
        }
        assert!(!scanner.in_frame());
        frames
    }

    #[test]
    fn frames_are_found_in_any_pieces() {
        let frames = [
            (TEXT, &[b'x'; 125][..]),
            (PING, b"are you there"),
            (BINARY, &[0; 126]),
            (BINARY, &[0; 70_000]),
            (PONG, b""),
            (CLOSE, &[0x03, 0xe9, b'b', b'y', b'e']),
            (CLOSE, &[]),
        ];
        let stream = frames.map(|(opcode, payload)| unmasked(FIN | opcode, payload)).concat();
        for piece in [1, 2, 3, 7, 1_000, stream.len()] {
            let found = scan_in_pieces(&stream, piece);
            assert_eq!(found.len(), 7, "in pieces of {piece}");
            assert_eq!(found[1], Arrived::Ping(b"are you there".to_vec()));
            assert_eq!(found[5..], [Arrived::Close(1001), Arrived::Close(1005)]);
        }
        let mut rest = &stream[..];
        for (opcode, payload) in frames {
            let (frame, length) = Frame::parse(rest).unwrap();
            assert_eq!((frame.opcode(), &frame.payload[..]), (opcode, payload));
            assert_eq!(Frame::parse(&rest[..length - 1]), None);
            rest = &rest[length..];
        }
    }

    #[test]
    fn masked_and_oversized_control_frames_are_refused() {
        assert_eq!(Scanner::default().scan(&[0x81, 0x81, 1, 2, 3, 4, 5]), Err(Malformed));
        assert_eq!(Scanner::default().scan(&[0x89, 126, 0, 126]), Err(Malformed));
    }
}
