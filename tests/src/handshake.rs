//! The opening handshake, seen from the client (RFC 6455 section 4.1): the request as bytes, the answer as a
//! verdict.

/// One key for all clients: the accept key is then a constant, for this side and for a server that only
/// pretends.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The accept key that belongs to `KEY` (the example of RFC 6455 section 1.3).
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// More header lines than any server sends.
const MOST_HEADERS: usize = 64;

/// A longer response is not waited for.
const LONGEST_HEAD: usize = 16 * 1024;

/// An upgrade request with `extra` header lines, each ended by CRLF.
#[must_use]
pub fn request(host: &str, path: &str, extra: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    )
    .into_bytes()
}

/// What the bytes received so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Not whole yet.
    Incomplete,
    /// Upgraded; the WebSocket stream begins after this many bytes.
    Upgraded(usize),
    /// Another status than 101; the body is there as well.
    Refused(u16),
    /// Not HTTP, or a 101 with the wrong accept key.
    Nonsense(&'static str),
}

/// Reads a response head.
pub(crate) fn answer(bytes: &[u8]) -> Answer {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < LONGEST_HEAD => return Answer::Incomplete,
        Ok(httparse::Status::Partial) => return Answer::Nonsense("endless response head"),
        Err(_) => return Answer::Nonsense("answer is not HTTP"),
    };
    let header = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map_or(&b""[..], |header| header.value)
    };
    match response.code {
        Some(101) if header("sec-websocket-accept") == ACCEPT.as_bytes() => Answer::Upgraded(length),
        Some(101) => Answer::Nonsense("wrong Sec-WebSocket-Accept"),
        Some(status) => {
            let body =
                str::from_utf8(header("content-length")).ok().and_then(|text| text.trim().parse().ok());
            let whole = length.saturating_add(body.unwrap_or(0));
            if bytes.len() < whole.min(LONGEST_HEAD) { Answer::Incomplete } else { Answer::Refused(status) }
        }
        None => Answer::Nonsense("answer is not HTTP"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_belong_together() {
        assert_eq!(tungstenite::handshake::derive_accept_key(KEY.as_bytes()), ACCEPT);
    }

    #[test]
    fn answers_are_told_apart() {
        let upgraded = format!("HTTP/1.1 101 Switching Protocols\r\nSEC-WEBSOCKET-ACCEPT: {ACCEPT}\r\n\r\n");
        assert_eq!(answer(upgraded.as_bytes()), Answer::Upgraded(upgraded.len()));
        assert_eq!(answer(&upgraded.as_bytes()[..upgraded.len() - 1]), Answer::Incomplete);
        assert_eq!(answer(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"), Answer::Refused(503));
        let refused = b"HTTP/1.1 503 Full\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(answer(refused), Answer::Refused(503));
        assert_eq!(answer(&refused[..refused.len() - 1]), Answer::Incomplete);
        assert_eq!(answer(b"HTTP/1.1 101 Fine\r\n\r\n"), Answer::Nonsense("wrong Sec-WebSocket-Accept"));
        assert_eq!(answer(b"SSH-2.0-OpenSSH\r\n"), Answer::Nonsense("answer is not HTTP"));
    }
}
