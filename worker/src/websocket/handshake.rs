//! The opening handshake (RFC 6455, section 4.2) from the server's side: reads a request as it arrives and
//! says what it asks for, or why it is refused. Whether there is room for another connection is not asked
//! here.
//!
//! Stricter than httparse, and than RFC 9112 allows, where leniency has been abused: no bare line feeds, one empty
//! line before the request at most, only ASCII in the request line.

use std::net::IpAddr;

use data_encoding::BASE64;
use httparse::{EMPTY_HEADER, Header};
use ipnet::IpNet;
use tungstenite::handshake::derive_accept_key;

use super::refusal::{Refusal, Status};
use crate::websocket::client_address::client_address;
use holdfast_shared::reason::Rejection;

/// The most bytes a head has, its last line feed included.
const MAX_HEAD: usize = 16 * 1024;

/// The most header fields a head has.
const MAX_HEADERS: usize = 64;

/// What load balancers ask for to see whether the server is well.
const HEALTH_PATH: &str = "/health";

/// Which requests may become connections, and who is believed about where they come from.
#[derive(Debug, Clone, Default)]
pub struct HandshakePolicy {
    /// Upgrades are allowed at this path and below, by whole segments; `/` allows any.
    pub path: String,
    /// Web origins, `scheme://host[:port]`, whose pages may connect; empty allows any. A request without an
    /// Origin header does not come from a web page and is let through.
    pub allowed_origins: Vec<String>,
    /// Proxies whose X-Forwarded-For is believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// What a request has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Incomplete,
    /// A request for a WebSocket, with nothing wrong about it.
    Upgrade(Upgrade),
    /// A health check.
    Health {
        /// Whether the answer must have no body.
        head_only: bool,
        /// Bytes of the request.
        length: usize,
    },
    /// Anything else. Known as soon as the bytes cannot become one of the above.
    Refused(Refusal),
}

/// A request for a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// Bytes of the request head. What follows are the first frames.
    pub length: usize,
    /// The value of Sec-WebSocket-Accept that proves the request was understood.
    pub accept: String,
    /// Where the client is, proxies looked through.
    pub address: IpAddr,
}

/// The head of a valid request, for whoever wants to know more of it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a>(pub(crate) &'a [u8]);

impl<'a> Request<'a> {
    /// What is asked for, without the query.
    #[must_use]
    pub fn path(&self) -> &'a str {
        path_of(self.target()).unwrap_or("/")
    }

    /// What stands behind the question mark, as it came.
    #[must_use]
    pub fn query(&self) -> Option<&'a str> {
        self.target().split_once('?').map(|(_, query)| query)
    }

    /// The first header of this name, in whatever case, without the white space around it.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        let mut storage = [EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut storage);
        request.parse(self.0).ok()?;
        let header = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(header.value.trim_ascii())
    }

    fn target(&self) -> &'a str {
        let target = self.0.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
        str::from_utf8(target).unwrap_or_default()
    }
}

/// Reads a request of which all `bytes` have come from `peer` so far.
#[must_use]
pub fn read(bytes: &[u8], peer: IpAddr, policy: &HandshakePolicy) -> Progress {
    let mut storage = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut storage);
    let (end, violation) = first_violation(bytes);
    let refusal = match request.parse(&bytes[..end]) {
        Ok(httparse::Status::Complete(length)) => match judge(&request, length, peer, policy) {
            Ok(progress) => return progress,
            Err(refusal) => refusal,
        },
        Ok(httparse::Status::Partial) => match violation {
            None => return Progress::Incomplete,
            Some(refusal) => refusal,
        },
        Err(error) => not_http(bytes, error),
    };
    Progress::Refused(Refusal { head_only: bytes.starts_with(b"HEAD "), ..refusal })
}

/// The first byte that a head must not have although httparse takes it, and what is wrong with it.
fn first_violation(bytes: &[u8]) -> (usize, Option<Refusal>) {
    let bad = |detail| Refusal::of_request(Status::BadRequest, detail);
    let head = &bytes[..bytes.len().min(MAX_HEAD)];
    let too_long = || Refusal::of_request(Status::HeadersTooLarge, "The request head is longer than 16 KiB");
    let mut first = (head.len(), (bytes.len() > MAX_HEAD).then(too_long));
    let start = if head.starts_with(b"\r\n") { 2 } else { 0 };
    let line = head[start..].iter().take_while(|&&byte| byte != b'\n');
    if let Some(at) = line.clone().position(|byte| !byte.is_ascii()) {
        first = (start + at, Some(bad("The request line is not ASCII")));
    }
    if let Some(b'\r' | b'\n') = head.get(start) {
        first = (start, Some(bad("There is no request line")));
    }
    let mut before = 0;
    for (at, &byte) in head[..first.0].iter().enumerate() {
        if byte == b'\n' && before != b'\r' {
            return (at, Some(bad("Lines must end with CR LF")));
        }
        before = byte;
    }
    first
}

/// What is wrong with bytes that are no request.
fn not_http(bytes: &[u8], error: httparse::Error) -> Refusal {
    let detail = match error {
        httparse::Error::TooManyHeaders => {
            return Refusal::of_request(Status::HeadersTooLarge, "The request has more than 64 headers");
        }
        // The record type "handshake", which begins every TLS connection (RFC 8446, section 5.1).
        _ if bytes.first() == Some(&0x16) => "This port speaks HTTP, not TLS",
        _ if bytes.starts_with(b"PRI * ") => "This port speaks HTTP/1.1, not HTTP/2",
        httparse::Error::HeaderName => "A header name has a byte that is not allowed",
        httparse::Error::HeaderValue => "A header value has a byte that is not allowed",
        httparse::Error::NewLine => "Lines must end with CR LF",
        _ => "The request line is not valid HTTP/1.1",
    };
    Refusal::of_request(Status::BadRequest, detail)
}

/// Appends the response that turns the connection into a WebSocket.
pub fn write_switching(out: &mut Vec<u8>, accept: &str) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(accept.as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
}

/// Decides about a complete head of so many bytes.
fn judge(
    request: &httparse::Request<'_, '_>,
    length: usize,
    peer: IpAddr,
    policy: &HandshakePolicy,
) -> Result<Progress, Refusal> {
    let bad = |detail| Refusal::of_request(Status::BadRequest, detail);
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(bad("The request is not valid HTTP/1.1"));
    };
    let is_http_1_1 = request.version == Some(1);
    let headers = Headers(request.headers);

    let path = path_of(target);
    let wants_websocket = headers.lists("upgrade", "websocket");
    let is_health = path == Some(HEALTH_PATH) && !wants_websocket && matches!(method, "GET" | "HEAD");
    if method != "GET" && !is_health {
        return Err(Refusal::of_request(Status::MethodNotAllowed, "Only GET is allowed"));
    }
    let path = path.ok_or_else(|| bad("The request target is neither a path nor a URL"))?;
    let host = headers.single("host").map_err(|()| bad("More than one Host header"))?;
    if is_http_1_1 && host.is_none() {
        return Err(bad("The Host header is missing"));
    }
    if headers.announce_body() {
        return Err(bad("The request has a body"));
    }
    if is_health {
        return Ok(Progress::Health { head_only: method == "HEAD", length });
    }
    let accept = check_upgrade(&headers, wants_websocket, is_http_1_1)?;
    if !policy.allows_path(path) {
        return Err(Refusal::NO_ROUTE);
    }
    let origin = headers.single("origin").map_err(|()| bad("More than one Origin header"))?;
    if origin.is_some_and(|origin| !policy.allows_origin(origin)) {
        return Err(Refusal::admission(Rejection::Origin));
    }
    let address = client_address(peer, &policy.trusted_proxies, headers.all("x-forwarded-for"));
    Ok(Progress::Upgrade(Upgrade { length, accept, address }))
}

/// The requirements of RFC 6455, section 4.2.1, in the order in which a client finds out most; returns the
/// accept key.
fn check_upgrade(headers: &Headers<'_>, wants_websocket: bool, is_http_1_1: bool) -> Result<String, Refusal> {
    let bad = |detail| Refusal::of_request(Status::BadRequest, detail);
    if !wants_websocket || !headers.lists("connection", "upgrade") {
        return Err(Refusal::of_request(Status::UpgradeRequired, "This is a WebSocket server"));
    }
    if !is_http_1_1 {
        return Err(bad("WebSocket handshakes need HTTP/1.1"));
    }
    let version = headers
        .single("sec-websocket-version")
        .map_err(|()| bad("More than one Sec-WebSocket-Version header"))?;
    if version != Some(b"13") {
        return Err(Refusal::of_request(Status::UpgradeRequired, "Sec-WebSocket-Version must be 13"));
    }
    let key = headers
        .single("sec-websocket-key")
        .map_err(|()| bad("More than one Sec-WebSocket-Key header"))?
        .ok_or_else(|| bad("The Sec-WebSocket-Key header is missing"))?;
    if !BASE64.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
        return Err(bad("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    Ok(derive_accept_key(key))
}

/// The path in a request target in origin form or absolute form (RFC 9112, section 3.2), without the query.
fn path_of(target: &str) -> Option<&str> {
    let from_path = if target.starts_with('/') {
        target
    } else {
        let (scheme, rest) = target.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return None;
        }
        match rest.find(['/', '?']) {
            Some(at) if rest[at..].starts_with('/') => &rest[at..],
            _ => "/",
        }
    };
    from_path.split('?').next()
}

impl HandshakePolicy {
    fn allows_path(&self, path: &str) -> bool {
        let allowed = self.path.trim_end_matches('/');
        path.strip_prefix(allowed).is_some_and(|below| below.is_empty() || below.starts_with('/'))
    }

    fn allows_origin(&self, origin: &[u8]) -> bool {
        let origin = without_default_port(origin);
        self.allowed_origins.is_empty()
            || self
                .allowed_origins
                .iter()
                .any(|allowed| without_default_port(allowed.as_bytes()).eq_ignore_ascii_case(origin))
    }
}

/// An origin as browsers write it: they leave out the port that the scheme implies.
fn without_default_port(origin: &[u8]) -> &[u8] {
    let has_scheme =
        |scheme: &[u8]| origin.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let port: &[u8] = match () {
        () if has_scheme(b"https://") => b":443",
        () if has_scheme(b"http://") => b":80",
        () => return origin,
    };
    origin.strip_suffix(port).unwrap_or(origin)
}

/// The header fields of a request.
struct Headers<'a>(&'a [Header<'a>]);

impl<'a> Headers<'a> {
    /// All values under `name`, in order, without the white space around them.
    fn all(&self, name: &'static str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        let named = self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value.trim_ascii())
    }

    /// The value under `name`; an error if there is more than one.
    fn single(&self, name: &'static str) -> Result<Option<&'a [u8]>, ()> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() { Err(()) } else { Ok(first) }
    }

    /// Whether the comma-separated lists under `name` have `token` among them, in whatever case.
    fn lists(&self, name: &'static str, token: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Whether the request says that a body follows. A length we cannot read counts as one.
    fn announce_body(&self) -> bool {
        self.all("transfer-encoding").next().is_some()
            || self.all("content-length").any(|length| length != b"0")
    }
}
