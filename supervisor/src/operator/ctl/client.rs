//! One HTTP/1.1 request over a Unix socket, blocking: just what our own server needs from a client.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::CtlError;
use crate::api::Command;

/// Longest answer taken, in bytes: far above what thousands of workers fill.
const ANSWER_LIMIT: usize = 64 << 20;

/// What the server may need beyond its own deadline for the loop's answer.
const GRACE: Duration = Duration::from_secs(5);

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: String,
}

/// What is asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Its method.
    pub method: &'static str,
    /// Path and query.
    pub target: String,
    /// JSON, or nothing.
    pub body: String,
    /// How long the server itself waits before it answers 504.
    pub deadline: Duration,
}

impl From<&Command> for Request {
    fn from(command: &Command) -> Self {
        Self {
            method: command.method(),
            target: command.target(),
            body: command.body(),
            deadline: command.deadline(),
        }
    }
}

/// Sends `request` to the socket at `path` and waits for the answer, at most a little longer than the server itself
/// would.
pub fn exchange(path: &Path, request: &Request) -> Result<Response, CtlError> {
    let stream =
        UnixStream::connect(path).map_err(|source| CtlError::Connect { path: path.to_owned(), source })?;
    let bytes = talk(stream, request).map_err(|source| CtlError::Talk { path: path.to_owned(), source })?;
    match parse(&bytes) {
        Ok(Some(response)) => Ok(response),
        Ok(None) => Err(CtlError::Talk { path: path.to_owned(), source: ErrorKind::UnexpectedEof.into() }),
        Err(reason) => Err(CtlError::Understand { path: path.to_owned(), reason }),
    }
}

fn talk(mut stream: UnixStream, request: &Request) -> io::Result<Vec<u8>> {
    let patience = Some(request.deadline + GRACE);
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    let Request { method, target, body, .. } = request;
    let length = body.len();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    match stream.write_all(request.as_bytes()) {
        // A server that turns us away closes without reading; why is in what it sent before.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
        _ => {}
    }
    let mut answer = Vec::new();
    let limit = u64::try_from(ANSWER_LIMIT).unwrap_or(u64::MAX);
    match stream.take(limit).read_to_end(&mut answer) {
        // Closing a socket with unread input resets it: whether the answer is complete, its length says.
        Err(error) if error.kind() != ErrorKind::ConnectionReset || answer.is_empty() => Err(error),
        _ => Ok(answer),
    }
}

/// The response in `bytes`, if it is complete. Our server always says `Content-Length`.
fn parse(bytes: &[u8]) -> Result<Option<Response>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(start) = head.parse(bytes).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let status = head.code.ok_or("no status")?;
    let length = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok())
        .ok_or("no content-length")?;
    let Some(body) = bytes[start..].get(..length) else { return Ok(None) };
    let body = std::str::from_utf8(body).map_err(|error| error.to_string())?.to_owned();
    Ok(Some(Response { status, body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_complete_when_its_length_says_so() {
        let whole = b"HTTP/1.1 422 X\r\nContent-Length: 3\r\n\r\nabc";
        for end in 0..whole.len() {
            assert_eq!(parse(&whole[..end]), Ok(None), "cut at {end}");
        }
        assert_eq!(parse(whole), Ok(Some(Response { status: 422, body: "abc".to_owned() })));
    }

    #[test]
    fn what_is_not_http_is_an_error() {
        for bytes in [
            &b"SSH-2.0-x\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        ] {
            assert!(parse(bytes).is_err());
        }
        assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n\xff").is_err());
    }
}
