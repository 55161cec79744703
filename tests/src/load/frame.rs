//! RFC 6455 frames as clients need them: writing masked ones, and a scanner that finds the control frames in
//! what arrives. Looks into no data frame: the payloads of echoes are compared with the pattern, all others
//! are skipped.

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

/// Appends a client's frame.
pub fn masked(opcode: u8, key: [u8; 4], payload: &[u8], out: &mut Vec<u8>) {
    header(opcode, 0x80, payload.len() as u64, out);
    out.extend_from_slice(&key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// Appends a server's frame.
pub fn unmasked(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    header(opcode, 0, payload.len() as u64, out);
    out.extend_from_slice(payload);
}

/// FIN is set; the length takes the shortest form, as section 5.2 demands.
fn header(opcode: u8, mask_bit: u8, length: u64, out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => out.push(mask_bit | short),
        (_, Ok(medium)) => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&length.to_be_bytes());
        }
    }
}

/// Whether a frame that begins with this byte is a control frame.
pub fn is_control(first: u8) -> bool {
    first & 0x08 != 0
}

/// A frame that has arrived whole.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived {
    /// To be answered with the same payload.
    Ping(Vec<u8>),
    /// The server closes, with this code (1005: it gave none).
    Close(u16),
    /// A pong, or data; no matter.
    Other,
}

/// The server sent what no server may send.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Finds the frames in a stream, whatever pieces it comes in. Keeps only the payload of a control frame.
#[derive(Debug, Default)]
pub struct Scanner {
    header: [u8; 10],
    have: usize,
    left: u64,
    control: Vec<u8>,
}

impl Scanner {
    /// Whether a frame has begun and not ended.
    pub fn in_frame(&self) -> bool {
        self.have > 0
    }

    /// Takes bytes of one frame at most: how many, and the frame, should it be complete now.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<(usize, Option<Arrived>), Malformed> {
        let mut used = 0;
        while self.have < self.header_length() {
            let Some(&byte) = bytes.get(used) else { return Ok((used, None)) };
            self.header[self.have] = byte;
            self.have += 1;
            used += 1;
            if self.have == self.header_length() {
                self.left = self.payload_length()?;
            }
        }
        let rest = &bytes[used..];
        let take = rest.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if is_control(self.header[0]) {
            self.control.extend_from_slice(&rest[..take]);
        }
        self.left -= take as u64;
        used += take;
        if self.left > 0 {
            return Ok((used, None));
        }
        self.have = 0;
        Ok((used, Some(self.arrived())))
    }

    fn header_length(&self) -> usize {
        match (self.have, self.header[1] & 0x7f) {
            (0 | 1, _) => 2,
            (_, 126) => 4,
            (_, 127) => 10,
            _ => 2,
        }
    }

    fn payload_length(&self) -> Result<u64, Malformed> {
        let short = self.header[1];
        // Section 5.1: a server must not mask.
        if short & 0x80 != 0 {
            return Err(Malformed);
        }
        let length = match short {
            126 => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            127 => self.header[2..10].iter().fold(0, |length, byte| (length << 8) | u64::from(*byte)),
            short => u64::from(short),
        };
        if is_control(self.header[0]) && length > CONTROL_MAX { Err(Malformed) } else { Ok(length) }
    }

    fn arrived(&mut self) -> Arrived {
        let payload = std::mem::take(&mut self.control);
        match self.header[0] & 0x0f {
            PING => Arrived::Ping(payload),
            CLOSE => match payload[..] {
                [high, low, ..] => Arrived::Close(u16::from_be_bytes([high, low])),
                _ => Arrived::Close(1005),
            },
            _ => Arrived::Other,
        }
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
        let mut stream = Vec::new();
        unmasked(TEXT, &[b'x'; 125], &mut stream);
        unmasked(PING, b"are you there", &mut stream);
        unmasked(BINARY, &[0; 126], &mut stream);
        unmasked(BINARY, &[0; 70_000], &mut stream);
        unmasked(PONG, b"", &mut stream);
        unmasked(CLOSE, &[0x03, 0xe9, b'b', b'y', b'e'], &mut stream);
        unmasked(CLOSE, &[], &mut stream);
        for piece in [1, 2, 3, 7, 1_000, stream.len()] {
            let frames = scan_in_pieces(&stream, piece);
            assert_eq!(frames.len(), 7, "in pieces of {piece}");
            assert_eq!(frames[1], Arrived::Ping(b"are you there".to_vec()));
            assert_eq!(frames[5..], [Arrived::Close(1001), Arrived::Close(1005)]);
        }
    }

    #[test]
    fn masked_and_oversized_control_frames_are_refused() {
        assert_eq!(Scanner::default().scan(&[0x81, 0x81, 1, 2, 3, 4, 5]), Err(Malformed));
        assert_eq!(Scanner::default().scan(&[0x89, 126, 0, 126]), Err(Malformed));
    }
}
