//! Which request is which command, and who may ask. Knows nothing of connections and decides nothing: every command goes
//! to the loop.

use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::channels::rules::ChannelName;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::body::Bytes;
use nix::unistd::geteuid;
use percent_encoding::percent_decode_str;
use tokio::sync::watch;

use super::body::{Batch, read};
use super::call::Line;
use super::server::Counts;
use super::{Answer, ApiError, ChannelsQuery, Command, ConnectionsQuery, EventsQuery, HistoryQuery, Keys};
use crate::api::Query;
use crate::host::http::{Peer, Response, Service, json};

/// Most entries of one answer, and how many there are if nothing is said.
const LIMITS: std::ops::RangeInclusive<usize> = 1..=10_000;
const DEFAULT_LIMIT: usize = 100;

/// Longest wait for an event.
const MAX_WAIT: Duration = Duration::from_mins(1);

/// Who may ask at a site.
#[derive(Debug, Clone)]
pub enum Guard {
    /// Whoever shows one of these keys.
    Keys(watch::Receiver<Keys>),
    /// The superuser, and the user that we run as.
    OwnUser,
}

/// One site of the API.
#[derive(Debug)]
pub struct Routes {
    pub guard: Guard,
    pub line: Line,
    pub counts: Arc<Counts>,
}

/// One command and its request.
struct Route {
    method: &'static str,
    /// What follows a slash at its end is a name.
    path: &'static str,
    read: fn(&Asked<'_>) -> Result<Command, ApiError>,
}

/// What a request says beside its path.
struct Asked<'a> {
    path: &'static str,
    name: &'a str,
    query: &'a str,
    body: &'a [u8],
}

const ROUTES: &[Route] = &[
    post("/api/publish", |asked| asked.body().map(Command::Publish)),
    post("/api/broadcast", |asked| asked.body().map(Command::Broadcast)),
    post("/api/batch", |asked| asked.body().map(|Batch(commands)| Command::Batch(commands))),
    post("/api/subscribe", |asked| asked.body().map(Command::Subscribe)),
    post("/api/unsubscribe", |asked| asked.body().map(Command::Unsubscribe)),
    post("/api/send", |asked| asked.body().map(Command::Send)),
    post("/api/disconnect", |asked| asked.body().map(Command::Disconnect)),
    get("/api/channels", channels),
    get("/api/channels/", |asked| {
        asked.query().end()?;
        asked.name().map(Command::Channel)
    }),
    get("/api/history", history),
    get("/api/presence", |asked| {
        let mut query = asked.query();
        let channel = asked.channel(&mut query)?;
        query.end()?;
        Ok(Command::Presence(channel))
    }),
    get("/api/connections", connections),
    get("/api/events", events),
];

const fn post(path: &'static str, read: fn(&Asked<'_>) -> Result<Command, ApiError>) -> Route {
    Route { method: "POST", path, read }
}

const fn get(path: &'static str, read: fn(&Asked<'_>) -> Result<Command, ApiError>) -> Route {
    Route { method: "GET", path, read }
}

impl Service for Routes {
    type Access = ();

    fn admit(&self, peer: Peer, head: &Parts) -> Result<(), Box<Response>> {
        let error = match (&self.guard, peer) {
            (Guard::Keys(keys), _) => match keys.borrow().check(&head.headers) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
            (Guard::OwnUser, Peer::Process { uid, .. }) if uid == 0 || uid == geteuid().as_raw() => {
                return Ok(());
            }
            (Guard::OwnUser, _) => {
                ApiError::of_status(403, "only root and the user of the server may use this socket")
            }
        };
        Err(Box::new(self.respond(&Err(error))))
    }

    async fn answer(&self, head: Parts, body: Bytes, (): ()) -> Response {
        let answer = match command(&head, &body) {
            Ok(command) => self.line.ask(command).await,
            Err(error) => Err(error),
        };
        let is_wrong_method = answer.as_ref().is_err_and(|error| error.status == 405);
        let mut response = self.respond(&answer);
        if is_wrong_method && let Ok(allowed) = HeaderValue::from_str(&allowed(head.uri.path()).join(", ")) {
            response.headers_mut().insert(header::ALLOW, allowed);
        }
        response
    }

    fn refuse(&self, status: u16, error: String) -> Response {
        self.respond(&Err(ApiError::of_status(status, error)))
    }
}

impl Routes {
    fn respond(&self, answer: &Result<Answer, ApiError>) -> Response {
        let response = match answer {
            Ok(answer) => json(StatusCode::OK, answer),
            Err(error) => {
                let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let mut response = json(status, error);
                if status == StatusCode::UNAUTHORIZED {
                    // RFC 9110, section 11.6.1.
                    let challenge = HeaderValue::from_static("Bearer realm=\"holdfast\"");
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
                }
                response
            }
        };
        self.counts.add(response.status());
        response
    }
}

/// The command that a request is.
fn command(head: &Parts, body: &[u8]) -> Result<Command, ApiError> {
    let path = head.uri.path();
    // hyper leaves out the body of an answer to HEAD.
    let method = if head.method == http::Method::HEAD { "GET" } else { head.method.as_str() };
    let here = || ROUTES.iter().filter_map(|route| Some((route, route.name(path)?)));
    let Some((route, name)) = here().find(|(route, _)| route.method == method) else {
        return Err(match here().next() {
            Some((route, _)) => ApiError::of_status(405, format!("{} does not take {method}", route.path)),
            None => ApiError::of_status(404, format!("no {path} here, only {}", list())),
        });
    };
    let asked = Asked { path: route.path, name, query: head.uri.query().unwrap_or_default(), body };
    if route.method == "POST" {
        asked.query().end()?;
        check_type(route.path, &head.headers)?;
    } else if !body.is_empty() {
        let (path, length) = (route.path, body.len());
        return Err(ApiError::of_status(
            400,
            format!("{path} takes no body, and this one has {length} bytes"),
        ));
    }
    (route.read)(&asked)
}

/// The body is JSON, or does not say what it is.
fn check_type(path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let essence = text.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::of_status(415, format!("{path} takes application/json, and this body is {essence}")))
}

fn allowed(path: &str) -> Vec<&'static str> {
    let here = ROUTES.iter().filter(|route| route.name(path).is_some());
    let mut allowed: Vec<_> = here.map(|route| route.method).collect();
    if allowed.contains(&"GET") {
        allowed.push("HEAD");
    }
    allowed
}

fn list() -> String {
    let entries: Vec<_> = ROUTES.iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    entries.join(", ")
}

impl Route {
    /// The name in `path`, if that is this route's: nothing, where it takes none.
    fn name<'a>(&self, path: &'a str) -> Option<&'a str> {
        let name = path.strip_prefix(self.path)?;
        (name.is_empty() != self.path.ends_with('/')).then_some(name)
    }
}

impl Asked<'_> {
    fn body<T: serde::de::DeserializeOwned>(&self) -> Result<T, ApiError> {
        read(self.path, self.body)
    }

    fn query(&self) -> Query {
        Query::parse(self.path, self.query)
    }

    fn name(&self) -> Result<ChannelName, ApiError> {
        let bad = |error: String| ApiError::of_status(400, format!("{}: {error}", self.path));
        let name = percent_decode_str(self.name).decode_utf8().map_err(|error| bad(error.to_string()))?;
        channel(&name).map_err(bad)
    }

    fn channel(&self, query: &mut Query) -> Result<ChannelName, ApiError> {
        query.take("channel", channel)?.ok_or_else(|| {
            ApiError::of_status(400, format!("{}: say which, such as ?channel=chat:42", self.path))
        })
    }
}

fn channels(asked: &Asked<'_>) -> Result<Command, ApiError> {
    let mut query = asked.query();
    let prefix = query.take_as("prefix", "text")?.unwrap_or_default();
    let cursor = query.take_as("cursor", "text")?;
    let limit = limit(&mut query)?;
    query.end()?;
    Ok(Command::Channels(ChannelsQuery { prefix, cursor, limit }))
}

fn history(asked: &Asked<'_>) -> Result<Command, ApiError> {
    let mut query = asked.query();
    let channel = asked.channel(&mut query)?;
    let since = query.take_as("since", "an offset")?;
    let epoch = query.take_as("epoch", "text")?;
    let limit = limit(&mut query)?;
    query.end()?;
    Ok(Command::History(HistoryQuery { channel, since, epoch, limit }))
}

fn connections(asked: &Asked<'_>) -> Result<Command, ApiError> {
    let mut query = asked.query();
    let user = query.take_as("user", "text")?;
    let address = query.take_as("address", "an address")?;
    let limit = limit(&mut query)?;
    query.end()?;
    Ok(Command::Connections(ConnectionsQuery { user, address, limit }))
}

fn events(asked: &Asked<'_>) -> Result<Command, ApiError> {
    let mut query = asked.query();
    let after = query.take_as("after", "the number of an event")?.unwrap_or_default();
    let wait = query.take("wait", wait)?.unwrap_or_default();
    let limit = limit(&mut query)?;
    query.end()?;
    Ok(Command::Events(EventsQuery { after, wait, limit }))
}

fn channel(text: &str) -> Result<ChannelName, String> {
    ChannelName::new(text).map_err(|error| error.to_string())
}

fn limit(query: &mut Query) -> Result<usize, ApiError> {
    let limit = |text: &str| {
        let limit = text.parse().ok().filter(|limit| LIMITS.contains(limit));
        limit.ok_or_else(|| format!("{text} is no number from {} to {}", LIMITS.start(), LIMITS.end()))
    };
    Ok(query.take("limit", limit)?.unwrap_or(DEFAULT_LIMIT))
}

fn wait(text: &str) -> Result<Duration, String> {
    let wait = humantime::parse_duration(text).map_err(|error| format!("{text}: {error}, such as 30s"))?;
    Some(wait)
        .filter(|wait| *wait <= MAX_WAIT)
        .ok_or_else(|| format!("{text} is too long, and at most {MAX_WAIT:?} are waited"))
}
