//! Answers to requests that do not become connections: refusals and health checks, as complete HTTP/1.1
//! responses after which the connection closes. Decides nothing: who is refused and why is decided by
//! `handshake` and by the supervisor.

use std::fmt::Write;
use std::time::Duration;

use holdfast_shared::reason::Rejection;

/// The status of a response, with the headers that the HTTP specifications ask of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// 200, naming the allowed methods, since `OPTIONS` asks for them
    Ok,
    /// 400
    BadRequest,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405, naming the allowed methods
    MethodNotAllowed,
    /// 408
    RequestTimeout,
    /// 414
    TargetTooLong,
    /// 426, naming the protocol and its version
    UpgradeRequired,
    /// 429
    TooManyRequests,
    /// 431
    HeadersTooLarge,
    /// 503
    ServiceUnavailable,
}

impl Status {
    /// The number and phrase of the status line.
    #[must_use]
    pub fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::Unauthorized => "401 Unauthorized",
            Self::Forbidden => "403 Forbidden",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::TargetTooLong => "414 URI Too Long",
            Self::UpgradeRequired => "426 Upgrade Required",
            Self::TooManyRequests => "429 Too Many Requests",
            Self::HeadersTooLarge => "431 Request Header Fields Too Large",
            Self::ServiceUnavailable => "503 Service Unavailable",
        }
    }

    /// `Connection` and the headers that the status calls for.
    fn headers(self) -> &'static str {
        match self {
            Self::Ok | Self::MethodNotAllowed => "Connection: close\r\nAllow: GET, HEAD, OPTIONS\r\n",
            // RFC 9110, section 15.5.22, and RFC 6455, section 4.4. Upgrade is a hop-by-hop header, so
            // Connection names it.
            Self::UpgradeRequired => {
                "Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            }
            _ => "Connection: close\r\n",
        }
    }
}

/// Why a request is refused, and what its sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status to answer with.
    pub status: Status,
    /// What to count it as.
    pub rejection: Rejection,
    /// One sentence for whoever reads the answer. Ours, never the client's words.
    pub detail: &'static str,
    /// Whether the request was a HEAD, whose answer has no body.
    pub head_only: bool,
}

impl Refusal {
    /// Nothing is served at the path.
    pub(crate) const NO_ROUTE: Self = Self::of_request(Status::NotFound, "No WebSocket at this path");

    /// The client offers none that is spoken at the path, and one is needed.
    pub(crate) const NO_SUBPROTOCOL: Self =
        Self::of_request(Status::BadRequest, "None of the subprotocols offered is spoken here");

    /// A request that is wrong in itself, or that an application does not want.
    #[must_use]
    pub const fn of_request(status: Status, detail: &'static str) -> Self {
        Self { status, rejection: Rejection::BadRequest, detail, head_only: false }
    }

    /// A good request that is not let in.
    #[must_use]
    pub fn admission(rejection: Rejection) -> Self {
        let (status, detail) = match rejection {
            Rejection::MaxConnections => (Status::ServiceUnavailable, "The server is full"),
            Rejection::MaxConnectionsPerAddress => {
                (Status::TooManyRequests, "Too many connections from your address")
            }
            Rejection::ConnectRate => (Status::TooManyRequests, "The server is being connected to too fast"),
            Rejection::ConnectRatePerAddress => (Status::TooManyRequests, "Your address connects too fast"),
            Rejection::PendingHandshakes => {
                (Status::ServiceUnavailable, "Too many handshakes are unfinished")
            }
            Rejection::Origin => (Status::Forbidden, "Pages of this origin may not connect"),
            Rejection::BadRequest => (Status::BadRequest, "Not a WebSocket handshake"),
            Rejection::HandshakeTimeout => (Status::RequestTimeout, "The handshake took too long"),
            Rejection::Draining => (Status::ServiceUnavailable, "The server is shutting down"),
            Rejection::Banned => (Status::Forbidden, "Your address is banned"),
        };
        Self { status, rejection, detail, head_only: false }
    }

    /// The complete response. `retry_after` is rounded up to whole seconds, at least one.
    #[must_use]
    pub fn response(&self, date: &str, retry_after: Option<Duration>) -> Vec<u8> {
        let body = format!(r#"{{"error":"{}","message":"{}"}}"#, self.rejection, self.detail);
        respond(self.status, date, retry_after, &body, self.head_only)
    }
}

impl Refusal {
    /// The same in a close frame, for scripts that cannot see a response.
    #[must_use]
    pub fn close_reason(&self, retry_after: Option<Duration>) -> String {
        match retry_after {
            Some(delay) => format!("{}; retry after {} s", self.rejection, whole_seconds(delay)),
            None => self.rejection.to_string(),
        }
    }
}

/// Rounded up, and at least one.
fn whole_seconds(delay: Duration) -> u64 {
    (delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1)
}

/// How the server is, for load balancers that ask the public port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// New connections are welcome.
    Ok,
    /// Shutting down: send clients elsewhere.
    Draining,
    /// Nobody is let in until there is a supervisor again: send clients elsewhere.
    NoSupervisor,
    /// At the connection cap: send clients elsewhere.
    Full,
}

impl Availability {
    /// The complete answer to a health check, without a body if `head_only`.
    #[must_use]
    pub fn response(self, date: &str, head_only: bool) -> Vec<u8> {
        let (status, word) = match self {
            Self::Ok => (Status::Ok, "ok"),
            Self::Draining | Self::NoSupervisor => (Status::ServiceUnavailable, "draining"),
            Self::Full => (Status::ServiceUnavailable, "full"),
        };
        respond(status, date, None, &format!(r#"{{"status":"{word}"}}"#), head_only)
    }
}

fn respond(
    status: Status,
    date: &str,
    retry_after: Option<Duration>,
    body: &str,
    head_only: bool,
) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {}\r\nDate: {date}\r\n{}", status.line(), status.headers());
    if let Some(delay) = retry_after {
        // Writing to a String does not fail.
        let _ = write!(out, "Retry-After: {}\r\n", whole_seconds(delay));
    }
    let _ = write!(
        out,
        "Content-Type: application/json\r\nCache-Control: no-store\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    if !head_only {
        out.push_str(body);
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn text(response: Vec<u8>) -> String {
        String::from_utf8(response).unwrap()
    }

    #[test]
    fn a_refusal_is_a_complete_response() {
        let refusal = Refusal::admission(Rejection::MaxConnections);
        let body = r#"{"error":"max_connections","message":"The server is full"}"#;
        let expected = format!(
            "HTTP/1.1 503 Service Unavailable\r\nDate: {DATE}\r\nConnection: close\r\nRetry-After: 31\r\n\
             Content-Type: application/json\r\nCache-Control: no-store\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(text(refusal.response(DATE, Some(Duration::from_millis(30_001)))), expected);
        assert!(!text(refusal.response(DATE, None)).contains("Retry-After"));
        assert!(text(refusal.response(DATE, Some(Duration::ZERO))).contains("Retry-After: 1\r\n"));
    }

    #[test]
    fn every_rejection_has_its_status() {
        for rejection in Rejection::ALL {
            let refusal = Refusal::admission(*rejection);
            let expected = match rejection {
                Rejection::MaxConnections | Rejection::PendingHandshakes | Rejection::Draining => "503",
                Rejection::MaxConnectionsPerAddress
                | Rejection::ConnectRate
                | Rejection::ConnectRatePerAddress => "429",
                Rejection::Origin | Rejection::Banned => "403",
                Rejection::BadRequest => "400",
                Rejection::HandshakeTimeout => "408",
            };
            assert!(refusal.status.line().starts_with(expected), "{rejection}");
            let response = text(refusal.response(DATE, None));
            assert!(response.contains(&format!(r#""error":"{rejection}""#)), "{response}");
        }
    }

    #[test]
    fn statuses_bring_the_headers_they_need() {
        let response = |status| text(Refusal::of_request(status, "why").response(DATE, None));
        assert!(response(Status::MethodNotAllowed).contains("\r\nAllow: GET, HEAD, OPTIONS\r\n"));
        let upgrade = response(Status::UpgradeRequired);
        for header in ["Upgrade: websocket", "Connection: Upgrade, close", "Sec-WebSocket-Version: 13"] {
            assert!(upgrade.contains(&format!("\r\n{header}\r\n")), "{upgrade}");
        }
    }

    #[test]
    fn close_reasons_fit_into_a_close_frame() {
        for rejection in Rejection::ALL {
            let refusal = Refusal::admission(*rejection);
            let longest = refusal.close_reason(Some(Duration::from_secs(36 * 3600)));
            assert!(longest.len() <= 123, "{longest}");
            assert_eq!(longest, format!("{rejection}; retry after 129600 s"));
            assert_eq!(refusal.close_reason(None), rejection.name());
        }
    }

    #[test]
    fn health_is_answered() {
        assert!(text(Availability::Ok.response(DATE, false)).ends_with("\r\n\r\n{\"status\":\"ok\"}"));
        assert!(text(Availability::Draining.response(DATE, false)).starts_with("HTTP/1.1 503 "));
        let full = text(Availability::Full.response(DATE, true));
        assert!(full.ends_with("Content-Length: 17\r\n\r\n"), "{full}");
    }
}
