//! One HTTP/1.1 connection: who the client is, how much and how slowly it may send, when it ends.
//! What a request means is the business of `routes`.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};

use super::deadline::WriteDeadline;
use super::routes::{Response, Routes};
use super::server::Deadlines;
use crate::api::Failure;

/// Longest request line and headers, in bytes; more is answered 431.
pub const HEAD_LIMIT: usize = 16 * 1024;

/// Longest request body, in bytes; more is answered 413.
pub const BODY_LIMIT: usize = 64 * 1024;

/// How long one that was accepted just before the end has for its first request, which may be on its way.
const FIRST_REQUEST: Duration = Duration::from_millis(50);

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything: the superuser, or the user the supervisor runs as.
    Everything {
        /// The peer's user.
        uid: u32,
        /// The peer's process, where the kernel knows it.
        pid: Option<i32>,
    },
    /// What the routes of the admin address offer.
    Reads,
    /// Nothing: it hears 403.
    Nothing,
}

impl Access {
    /// The access of a peer of the control socket. Its mode 0600 says the same, but a mode is easily widened
    /// by hand.
    pub fn of_peer(uid: u32, pid: Option<i32>, own_uid: u32) -> Self {
        if uid == 0 || uid == own_uid { Self::Everything { uid, pid } } else { Self::Nothing }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything { uid, pid: Some(pid) } => write!(f, "uid {uid}, pid {pid}"),
            Self::Everything { uid, pid: None } => write!(f, "uid {uid}"),
            Self::Reads => f.write_str("a reader"),
            Self::Nothing => f.write_str("a stranger"),
        }
    }
}

/// Serves `stream` until the client closes it, breaks a rule or a deadline, or the server is `stopping`.
pub async fn serve<S>(
    stream: S,
    access: Access,
    routes: Arc<Routes>,
    deadlines: Deadlines,
    mut stopping: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = TokioIo::new(WriteDeadline::new(stream, deadlines.write));
    let asked = Arc::new(Notify::new());
    let first = Arc::clone(&asked);
    let service = service_fn(move |request| {
        asked.notify_one();
        answer(request, access, Arc::clone(&routes), deadlines)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(deadlines.head)
            .max_buf_size(HEAD_LIMIT)
            .serve_connection(stream, service)
    );
    let mut told_to_stop = pin!(async move {
        // An error says that whoever could tell is gone.
        let _ = stopping.wait_for(|stopping| *stopping).await;
        let _ = tokio::time::timeout(FIRST_REQUEST, first.notified()).await;
    });
    let mut is_stopping = false;
    let end = poll_fn(|context| {
        if !is_stopping && told_to_stop.as_mut().poll(context).is_ready() {
            is_stopping = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(context)
    });
    if let Err(error) = end.await {
        log::debug!("control: a connection ended badly: {error}");
    }
}

async fn answer(
    request: Request<Incoming>,
    access: Access,
    routes: Arc<Routes>,
    deadlines: Deadlines,
) -> Result<Response, Infallible> {
    if access == Access::Nothing {
        return Ok(last(403, "only root and the user of the supervisor may use the control socket"));
    }
    let (head, body) = request.into_parts();
    Ok(match tokio::time::timeout(deadlines.body, read(body)).await {
        Ok(Ok(body)) => routes.answer(&head.method, &head.uri, &body, access).await,
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            last(413, format!("the request body is longer than {BODY_LIMIT} bytes"))
        }
        Ok(Err(error)) => last(400, format!("cannot read the request body: {error}")),
        Err(_) => last(408, "the request body did not come in time"),
    })
}

/// Reads the whole body, so that nobody else has to think of slow or endless ones.
async fn read(body: Incoming) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
    Ok(Limited::new(body, BODY_LIMIT).collect().await?.to_bytes())
}

/// A refusal that is the last answer of its connection.
fn last(status: u16, error: impl Into<String>) -> Response {
    let mut response = Response::from(Failure::new(status, error));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_own_user_may_command() {
        let everything = |uid| Access::Everything { uid, pid: Some(7) };
        assert_eq!(Access::of_peer(0, Some(7), 1000), everything(0));
        assert_eq!(Access::of_peer(1000, Some(7), 1000), everything(1000));
        assert_eq!(Access::of_peer(1001, Some(7), 1000), Access::Nothing);
        assert_eq!(Access::of_peer(1001, Some(7), 0), Access::Nothing);
    }
}
