//! The lexical half of reading a request: finds the end of an HTTP/1 head, and the first byte that cannot be
//! part of one, looking at every byte once. Knows nothing of what the request asks for; `handshake` does.
//!
//! Stricter than RFC 9112 allows where leniency has been abused: no bare line feeds, no folded lines, no
//! space before a colon, only visible ASCII in the request line.

use std::fmt;

/// The most bytes a head has, its last line feed included.
pub const MAX_HEAD: usize = 16 * 1024;

/// The most header fields a head has.
pub const MAX_HEADERS: usize = 64;

/// The longest method worth reading on for; the longest registered one has 17 letters.
const MAX_METHOD: usize = 32;

/// Why the bytes so far are not, and will not become, a request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadError {
    /// The first byte of a TLS record that carries a handshake.
    Tls,
    /// The preface of HTTP/2, or a request line that ends in that version.
    Http2,
    /// A request line without a version.
    Http09,
    /// Anything else in the first line.
    RequestLine,
    /// A line that does not end with carriage return and line feed.
    LineEnd,
    /// A header line that begins with white space.
    Folded,
    /// A byte that a header name must not have.
    HeaderName,
    /// A byte that a header value must not have.
    HeaderValue,
    /// More than [`MAX_HEAD`] bytes.
    TooLong,
    /// More than [`MAX_HEADERS`] header fields.
    TooManyHeaders,
}

impl HeadError {
    /// What is wrong, for the response's body.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Tls => "This port speaks HTTP, not TLS",
            Self::Http2 => "This port speaks HTTP/1.1, not HTTP/2",
            Self::Http09 => "The request line has no HTTP version",
            Self::RequestLine => "The request line is not valid HTTP/1.1",
            Self::LineEnd => "Lines must end with CR LF",
            Self::Folded => "Folded header lines are not accepted",
            Self::HeaderName => "A header name has a byte that is not allowed",
            Self::HeaderValue => "A header value has a byte that is not allowed",
            Self::TooLong => "The request head is longer than 16 KiB",
            Self::TooManyHeaders => "The request has more than 64 headers",
        }
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for HeadError {}

/// How far into a head the bytes of a connection have been read.
#[derive(Debug, Clone, Default)]
pub struct HeadScanner {
    state: State,
    scanned: usize,
    headers: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Before the request line. One empty line is skipped there (RFC 9112, section 2.2).
    #[default]
    Start,
    /// After the carriage return of that empty line.
    EmptyLine,
    /// In the method, which has so many letters so far.
    Method(usize),
    /// In the request target; whether it has any bytes yet.
    Target { begun: bool },
    /// In the version, which has so many bytes so far.
    Version(usize),
    /// After the carriage return of the request line or a header line.
    LineFeed,
    /// At the start of a header line, or of the empty line that ends the head.
    LineStart,
    /// In the name of a header.
    Name,
    /// In the value of a header, after the colon.
    Value,
    /// After the carriage return of the empty line that ends the head.
    LastLineFeed,
    /// The head is complete.
    Complete,
}

impl HeadScanner {
    /// Looks at those of `bytes`, all that came on the connection, that were not there in the last call.
    /// Returns the length of the head once it is complete.
    ///
    /// # Errors
    /// At the first byte that cannot be part of a request head.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, HeadError> {
        while let Some(byte) = bytes.get(self.scanned)
            && self.state != State::Complete
        {
            if self.scanned == MAX_HEAD {
                return Err(HeadError::TooLong);
            }
            let run = self.state.stays_for(&bytes[self.scanned..bytes.len().min(MAX_HEAD)]);
            if run > 0 {
                self.scanned += run;
                continue;
            }
            let next = self.state.step(*byte)?;
            if next == State::Name && self.state == State::LineStart {
                self.headers += 1;
                if self.headers > MAX_HEADERS {
                    return Err(HeadError::TooManyHeaders);
                }
            }
            self.state = next;
            self.scanned += 1;
        }
        Ok((self.state == State::Complete).then_some(self.scanned))
    }
}

impl State {
    /// How many of the next bytes change nothing: nearly all of a head are in the middle of a name or a value.
    fn stays_for(self, bytes: &[u8]) -> usize {
        let changes = match self {
            Self::Name => |byte: &u8| !is_token(*byte),
            Self::Value => |byte: &u8| !is_in_value(*byte),
            _ => return 0,
        };
        bytes.iter().position(changes).unwrap_or(bytes.len())
    }

    /// The state after one more byte.
    fn step(self, byte: u8) -> Result<Self, HeadError> {
        match (self, byte) {
            (Self::Start, b'\r') => Ok(Self::EmptyLine),
            (Self::EmptyLine, b'\n') => Ok(Self::Method(0)),
            (Self::EmptyLine, _) => Err(HeadError::LineEnd),
            // The record type "handshake", which begins every TLS connection (RFC 8446, section 5.1).
            (Self::Start, 0x16) => Err(HeadError::Tls),
            (Self::Start, byte) if is_token(byte) => Ok(Self::Method(1)),
            (Self::Method(1..), b' ') => Ok(Self::Target { begun: false }),
            (Self::Method(length @ ..MAX_METHOD), byte) if is_token(byte) => Ok(Self::Method(length + 1)),
            (Self::Start | Self::Method(_), _) => Err(HeadError::RequestLine),
            (Self::Target { begun: true }, b' ') => Ok(Self::Version(0)),
            (Self::Target { begun: true }, b'\r' | b'\n') => Err(HeadError::Http09),
            (Self::Target { .. }, b'!'..=b'~') => Ok(Self::Target { begun: true }),
            (Self::Target { .. }, _) => Err(HeadError::RequestLine),
            (Self::Version(length), byte) => step_version(length, byte),
            (Self::LineFeed, b'\n') => Ok(Self::LineStart),
            (Self::LastLineFeed, b'\n') => Ok(Self::Complete),
            (Self::LineFeed | Self::LastLineFeed, _)
            | (Self::LineStart | Self::Name | Self::Value, b'\n') => Err(HeadError::LineEnd),
            (Self::LineStart, b'\r') => Ok(Self::LastLineFeed),
            (Self::LineStart, b' ' | b'\t') => Err(HeadError::Folded),
            (Self::Name, b':') => Ok(Self::Value),
            (Self::LineStart | Self::Name, byte) if is_token(byte) => Ok(Self::Name),
            (Self::LineStart | Self::Name, _) => Err(HeadError::HeaderName),
            (Self::Value, b'\r') => Ok(Self::LineFeed),
            (Self::Value, byte) if is_in_value(byte) => Ok(Self::Value),
            (Self::Value, _) => Err(HeadError::HeaderValue),
            (Self::Complete, _) => Ok(Self::Complete),
        }
    }
}

/// The version is `HTTP/1.1`, or `HTTP/1.0` from health checks.
fn step_version(length: usize, byte: u8) -> Result<State, HeadError> {
    const PREFIX: &[u8] = b"HTTP/1.";
    match (PREFIX.get(length), byte) {
        (Some(expected), byte) if *expected == byte => Ok(State::Version(length + 1)),
        (Some(b'1'), b'2') => Err(HeadError::Http2),
        (None, b'0' | b'1') if length == PREFIX.len() => Ok(State::Version(length + 1)),
        (None, b'\r') if length > PREFIX.len() => Ok(State::LineFeed),
        (_, b'\n') => Err(HeadError::LineEnd),
        _ => Err(HeadError::RequestLine),
    }
}

/// Whether `byte` may be in a method or a header name (RFC 9110, section 5.6.2).
#[inline]
fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Whether `byte` may be in a header value (RFC 9110, section 5.5).
#[inline]
fn is_in_value(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

/// What [`is_token`] says of each byte.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut i = 0;
    while i < others.len() {
        table[others[i] as usize] = true;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict on `bytes`, and after how many of them it was reached.
    fn scan(bytes: &[u8]) -> (Result<Option<usize>, HeadError>, usize) {
        let mut scanner = HeadScanner::default();
        for length in 1..=bytes.len() {
            let verdict = scanner.scan(&bytes[..length]);
            assert_eq!(verdict, HeadScanner::default().scan(&bytes[..length]), "at once, {length} bytes");
            if verdict != Ok(None) {
                return (verdict, length);
            }
        }
        (Ok(None), bytes.len())
    }

    #[test]
    fn heads_end_where_they_end() {
        for (head, rest) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], &b""[..]),
            (b"GET /x?y HTTP/1.1\r\nHost: h\r\nEmpty:\r\nX:\t\xc3\xa4 \r\n\r\n", b"\x81\x80more"),
            (b"\r\nOPTIONS * HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"),
        ] {
            let bytes = [head, rest].concat();
            assert_eq!(scan(&bytes), (Ok(Some(head.len())), head.len()));
            assert_eq!(HeadScanner::default().scan(&bytes), Ok(Some(head.len())), "with what follows");
        }
    }

    #[test]
    fn what_is_no_head_is_known_by_its_first_impossible_byte() {
        use HeadError::*;
        for (bytes, error) in [
            (&b"\x16"[..], Tls),
            (b"\x00", RequestLine),
            (b"\xff", RequestLine),
            (b" ", RequestLine),
            (b"\n", RequestLine),
            (b"\r\r", LineEnd),
            (b"\r\n\r", RequestLine),
            (b"\r\n ", RequestLine),
            (b"hello\r", RequestLine),
            (b"G\xc3", RequestLine),
            (b"GET  ", RequestLine),
            (b"GET /\r", Http09),
            (b"GET /\n", Http09),
            (b"GET /\xc3", RequestLine),
            (b"GET /\t", RequestLine),
            (b"GET / x", RequestLine),
            (b"GET / h", RequestLine),
            (b"GET / HTTP/2", Http2),
            (b"PRI * HTTP/2", Http2),
            (b"GET / HTTP/3", RequestLine),
            (b"GET / HTTP/1.2", RequestLine),
            (b"GET / HTTP/1.11", RequestLine),
            (b"GET / HTTP/1.1 ", RequestLine),
            (b"GET / HTTP/1.1\n", LineEnd),
            (b"GET / HTTP/1.1\rH", LineEnd),
            (b"GET / HTTP/1.1\r\n\n", LineEnd),
            (b"GET / HTTP/1.1\r\n\rx", LineEnd),
            (b"GET / HTTP/1.1\r\n ", Folded),
            (b"GET / HTTP/1.1\r\nA: b\r\n\t", Folded),
            (b"GET / HTTP/1.1\r\n:", HeaderName),
            (b"GET / HTTP/1.1\r\nHost ", HeaderName),
            (b"GET / HTTP/1.1\r\nHost\r", HeaderName),
            (b"GET / HTTP/1.1\r\nHost\n", LineEnd),
            (b"GET / HTTP/1.1\r\nH\xc3", HeaderName),
            (b"GET / HTTP/1.1\r\nHost: a\n", LineEnd),
            (b"GET / HTTP/1.1\r\nHost: a\rb", LineEnd),
            (b"GET / HTTP/1.1\r\nHost: a\0", HeaderValue),
            (b"GET / HTTP/1.1\r\nHost: a\x7f", HeaderValue),
        ] {
            assert_eq!(scan(bytes), (Err(error), bytes.len()), "{}", bytes.escape_ascii());
        }
        assert_eq!(scan(&[b'A'; 50]), (Err(RequestLine), MAX_METHOD + 1));
    }

    #[test]
    fn the_size_of_a_head_is_bounded() {
        let line = b"GET / HTTP/1.1\r\nX: ";
        let longest = [line, &vec![b'x'; MAX_HEAD - line.len() - 4][..], b"\r\n\r\n"].concat();
        assert_eq!(scan(&longest), (Ok(Some(MAX_HEAD)), MAX_HEAD));
        let longer = [line, &vec![b'x'; MAX_HEAD][..]].concat();
        assert_eq!(scan(&longer), (Err(HeadError::TooLong), MAX_HEAD + 1));
    }

    #[test]
    fn the_number_of_headers_is_bounded() {
        let head = |headers| ["GET / HTTP/1.1\r\n", &"X: y\r\n".repeat(headers), "\r\n"].concat();
        let most = head(MAX_HEADERS);
        assert_eq!(scan(most.as_bytes()).0, Ok(Some(most.len())));
        assert_eq!(scan(head(MAX_HEADERS + 1).as_bytes()).0, Err(HeadError::TooManyHeaders));
    }
}
