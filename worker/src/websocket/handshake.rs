//! The opening handshake (RFC 6455, section 4.2) from the server's side: reads a request as it arrives and
//! says what it asks for, or why it is refused. Whether there is room for another connection is not asked
//! here.
//!
//! Stricter than httparse, and than RFC 9112 allows, where leniency has been abused: no bare line feeds, one empty
//! line before the request at most, only ASCII in the request line.

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::Range;

use holdfast_shared::reason::Rejection;
use httparse::EMPTY_HEADER;
use tungstenite::handshake::derive_accept_key;

use super::client_address::ProxyPolicy;
use super::headers::Headers;
use super::proxy_header::{self, ProxyHeader};
use super::refusal::{Refusal, Status};
use super::subprotocol;
use super::target::{is_host, path_of};

/// The most bytes a head has, its last line feed included.
const MAX_HEAD: usize = 16 * 1024;

/// The most header fields a head has. Proxies allow about as many (HAProxy 101), and add some of their own.
const MAX_HEADERS: usize = 100;

/// What requests may do here.
const METHODS: [&str; 3] = ["GET", "HEAD", "OPTIONS"];

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
    /// Who is believed about where clients are.
    pub proxies: ProxyPolicy,
}

/// What a request has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Incomplete,
    /// A request for a WebSocket, with nothing wrong about it.
    Upgrade(Upgrade),
    /// A health check: `GET` or `HEAD` of `/health`, or `OPTIONS` of anything, which is what HAProxy's
    /// `option httpchk` sends when it is told nothing else.
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
    /// Where the request head lies: behind the PROXY header, if there is one, and before the first frames.
    pub head: Range<usize>,
    /// The value of Sec-WebSocket-Accept that proves the request was understood.
    pub accept: String,
    /// Where the client is, proxies looked through.
    pub address: IpAddr,
    /// Its request says that it comes from elsewhere, and is not believed.
    pub is_ignored_proxy: bool,
    /// What is asked for, normalised.
    pub path: String,
    /// The subprotocols that the client offers, in its order.
    pub subprotocols: Vec<String>,
}

/// A valid request, for whoever wants to know more of it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub(crate) head: &'a [u8],
    pub(crate) path: &'a str,
    /// What of the path lies below its route, without the slash between.
    pub(crate) below: &'a str,
    pub(crate) subprotocols: &'a [String],
}

impl<'a> Request<'a> {
    /// What is asked for, without the query: dot segments resolved, slashes merged, unreserved characters
    /// decoded. Rules about paths were decided on this.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// What of the path lies below its route's, without the slash between the two.
    #[must_use]
    pub fn below(&self) -> &'a str {
        self.below
    }

    /// The subprotocols that the client offers, in its order.
    #[must_use]
    pub fn subprotocols(&self) -> &'a [String] {
        self.subprotocols
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
        request.parse(self.head).ok()?;
        let header = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        Some(header.value.trim_ascii())
    }

    fn target(&self) -> &'a str {
        let target = self.head.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
        str::from_utf8(target).unwrap_or_default()
    }
}

/// Reads a request, and the PROXY header in front of it, of which all `bytes` have come from `peer` so far.
///
/// As HAProxy's `accept-proxy` has it for its peers, a trusted proxy must send the header, and nobody else may. But a
/// health check is answered without: it comes from the proxy itself, and asks for nothing that an address decides.
#[must_use]
pub fn read(bytes: &[u8], peer: IpAddr, policy: &HandshakePolicy) -> Progress {
    let bad = |detail| Progress::Refused(Refusal::of_request(Status::BadRequest, detail));
    let is_expected = policy.proxies.expects_proxy_header(peer);
    let (start, client) = match proxy_header::read(bytes) {
        ProxyHeader::Absent => (0, peer),
        ProxyHeader::Undecided => return Progress::Incomplete,
        _ if !is_expected => {
            return bad("A PROXY header is taken from trusted proxies only, and where it is configured");
        }
        ProxyHeader::Incomplete => return Progress::Incomplete,
        ProxyHeader::Bad(detail) => return bad(detail),
        ProxyHeader::Complete { length, source } => (length, source.unwrap_or(peer)),
    };
    match read_request(&bytes[start..], client, policy) {
        Progress::Upgrade(_) if is_expected && start == 0 => bad("The PROXY header is missing"),
        Progress::Upgrade(upgrade) => {
            let head = upgrade.head.start + start..upgrade.head.end + start;
            Progress::Upgrade(Upgrade { head, ..upgrade })
        }
        progress => progress,
    }
}

fn read_request(bytes: &[u8], peer: IpAddr, policy: &HandshakePolicy) -> Progress {
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
    Progress::Refused(Refusal { head_only: asks_for_head(bytes), ..refusal })
}

/// Is this the beginning of a HEAD request, whose answer has no body whatever it is?
#[must_use]
pub fn asks_for_head(bytes: &[u8]) -> bool {
    let request = match proxy_header::read(bytes) {
        ProxyHeader::Complete { length, .. } => &bytes[length..],
        _ => bytes,
    };
    request.strip_prefix(b"\r\n").unwrap_or(request).starts_with(b"HEAD ")
}

/// The first byte that a head must not have although httparse takes it, and what is wrong with it.
fn first_violation(bytes: &[u8]) -> (usize, Option<Refusal>) {
    let bad = |detail| Refusal::of_request(Status::BadRequest, detail);
    let head = &bytes[..bytes.len().min(MAX_HEAD)];
    let start = if head.starts_with(b"\r\n") { 2 } else { 0 };
    let too_long = || match head[start..].contains(&b'\n') {
        true => Refusal::of_request(Status::HeadersTooLarge, "The request head is longer than 16 KiB"),
        false => Refusal::of_request(Status::TargetTooLong, "The request target is longer than 16 KiB"),
    };
    let mut first = (head.len(), (bytes.len() > MAX_HEAD).then(too_long));
    let line = head[start..].iter().take_while(|&&byte| byte != b'\n');
    if let Some(at) = line.clone().position(|byte| !byte.is_ascii()) {
        first = (start + at, Some(bad("The request line is not ASCII")));
    }
    // A lone CR may be the first half of the empty line.
    if head != b"\r"
        && let Some(b'\r' | b'\n') = head.get(start)
    {
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
            return Refusal::of_request(Status::HeadersTooLarge, "The request has more than 100 headers");
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

/// Appends the response that turns the connection into a WebSocket; an empty `subprotocol` is none.
pub fn write_switching(out: &mut Vec<u8>, date: &str, accept: &str, subprotocol: &str) {
    let name = if subprotocol.is_empty() { "" } else { "\r\nSec-WebSocket-Protocol: " };
    for part in [
        "HTTP/1.1 101 Switching Protocols\r\nDate: ",
        date,
        "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
        accept,
        name,
        subprotocol,
        "\r\n\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
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
    if !METHODS.contains(&method) {
        return Err(Refusal::of_request(Status::MethodNotAllowed, "Only GET, HEAD and OPTIONS are allowed"));
    }
    let is_http_1_1 = request.version == Some(1);
    let headers = Headers(request.headers);
    let path = match (method, target) {
        // The server as a whole (RFC 9110, section 9.3.7).
        ("OPTIONS", "*") => Cow::Borrowed("/"),
        _ => path_of(target).map_err(bad)?,
    };
    let host = headers.single("host").map_err(|()| bad("More than one Host header"))?;
    if is_http_1_1 && host.is_none() {
        return Err(bad("The Host header is missing"));
    }
    if host.is_some_and(|host| !is_host(host)) {
        return Err(bad("The Host header is not a host with or without a port"));
    }
    if headers.announce_body() {
        return Err(bad("The request has a body"));
    }
    let wants_websocket = headers.lists("upgrade", "websocket");
    if method == "OPTIONS" || path == HEALTH_PATH && !wants_websocket {
        return Ok(Progress::Health { head_only: method == "HEAD", length });
    }
    let accept = check_upgrade(&headers, wants_websocket, is_http_1_1)?;
    if method != "GET" {
        return Err(bad("A WebSocket handshake is a GET"));
    }
    if !policy.allows_path(&path) {
        return Err(Refusal::NO_ROUTE);
    }
    let origin = headers.single("origin").map_err(|()| bad("More than one Origin header"))?;
    if origin.is_some_and(|origin| !policy.allows_origin(origin)) {
        return Err(Refusal::admission(Rejection::Origin));
    }
    Ok(Progress::Upgrade(Upgrade {
        head: 0..length,
        accept,
        address: policy.proxies.client_address(peer, &headers),
        is_ignored_proxy: policy.proxies.is_ignored(peer, &headers),
        path: path.into_owned(),
        subprotocols: subprotocol::offered(&headers).map_err(bad)?,
    }))
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
    if !is_key(key) {
        return Err(bad("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    Ok(derive_accept_key(key))
}

/// Whether this is 16 bytes in base64. What the bits beyond them are is left to the client: nobody decodes them.
fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    key.strip_suffix(b"==").is_some_and(|digits| digits.len() == 22 && digits.iter().all(is_digit))
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
