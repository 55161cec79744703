//! One HTTP/1.1 connection: how much and how slowly its client may send, when it ends.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::deadline::WriteDeadline;
use super::places::Place;
use super::{Peer, Response, Service, Site, last};

/// How long one that was accepted just before the end has for its first request, which may be on its way.
const FIRST_REQUEST: Duration = Duration::from_millis(50);

/// Serves `stream` until the client closes it, breaks a rule or a deadline, another needs its `place`, or the site ends.
pub async fn serve<S, V>(stream: S, peer: Peer, place: Place, site: Site<V>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    V: Service,
{
    let stream = TokioIo::new(WriteDeadline::new(stream, site.deadlines.write));
    let asked = Arc::new(Notify::new());
    let first = Arc::clone(&asked);
    let (place, mut stopping) = (Arc::new(place), site.stopping.clone());
    let service = service_fn(|request| {
        asked.notify_one();
        let (site, place) = (site.clone(), Arc::clone(&place));
        async move { Ok::<_, Infallible>(answer(request, peer, &place, &site).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(site.deadlines.head)
            .max_buf_size(site.bounds.head)
            .serve_connection(stream, service)
    );
    let mut told_to_stop = pin!(async move {
        // An error says that whoever could tell is gone.
        let _ = stopping.wait_for(|stopping| *stopping).await;
        let _ = tokio::time::timeout(FIRST_REQUEST, first.notified()).await;
    });
    let mut lost = pin!(place.lost());
    let mut is_stopping = false;
    let end = poll_fn(|context| {
        if lost.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !is_stopping && told_to_stop.as_mut().poll(context).is_ready() {
            is_stopping = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(context)
    });
    if let Err(error) = end.await {
        log::debug!("{}: a connection ended badly: {error}", site.name);
    }
}

async fn answer<V: Service>(
    request: Request<Incoming>,
    peer: Peer,
    place: &Place,
    site: &Site<V>,
) -> Response {
    place.heard();
    let (head, body) = request.into_parts();
    let access = match site.service.admit(peer, &head) {
        Ok(access) => access,
        Err(refusal) => return last(*refusal),
    };
    place.known();
    let refuse = |status, error: String| last(site.service.refuse(status, error));
    let limit = site.bounds.body;
    let too_long = || refuse(413, format!("the request body is longer than {limit} bytes"));
    if body.size_hint().lower() > limit as u64 {
        return too_long();
    }
    let answer = match tokio::time::timeout(site.deadlines.body, read(body, limit)).await {
        Ok(Ok(body)) => {
            place.answering();
            site.service.answer(head, body, access).await
        }
        Ok(Err(error)) if error.is::<LengthLimitError>() => too_long(),
        Ok(Err(error)) => refuse(400, format!("cannot read the request body: {error}")),
        Err(_) => refuse(408, "the request body did not come in time".to_owned()),
    };
    place.heard();
    answer
}

/// Reads the whole body, so that nobody else has to think of slow or endless ones.
async fn read(body: Incoming, limit: usize) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
    Ok(Limited::new(body, limit).collect().await?.to_bytes())
}
