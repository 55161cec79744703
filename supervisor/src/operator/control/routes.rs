//! Which request is which command, and what an answer looks like in HTTP.
//! Knows nothing of connections and decides nothing: every request goes to the loop.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, TrySendError};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use hyper::body::Bytes;
use mio::Waker;

use super::access::Access;
use crate::api::{Answer, Failure, Health, HealthStatus};
use crate::api::{Command, Request};
use crate::host::http::{Peer, Response, Service, json, text};
use crate::operator::metrics;

/// The commands of the admin address.
const ADMIN: &[Command] = &[Command::Metrics, Command::Health];

/// The way to the supervisor's loop.
#[derive(Debug, Clone)]
pub struct Loop {
    requests: Sender<Request>,
    waker: Arc<Waker>,
    version: &'static str,
    deadline: Option<Duration>,
}

impl Loop {
    /// A way over `requests` and `waker` to a supervisor of `version`; `deadline` replaces those of the
    /// commands.
    pub fn new(
        requests: Sender<Request>,
        waker: Arc<Waker>,
        version: &'static str,
        deadline: Option<Duration>,
    ) -> Self {
        Self { requests, waker, version, deadline }
    }

    /// Asks the loop and waits for its answer, but never for the loop to have room.
    async fn ask(&self, command: Command) -> Result<Answer, Failure> {
        let deadline = self.deadline.unwrap_or_else(|| command.deadline());
        let (request, answer) = Request::new(command);
        self.requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => {
                Failure::new(503, "the supervisor has too many requests waiting; try again")
            }
            TrySendError::Disconnected(_) => Failure::new(503, "the supervisor is stopping"),
        })?;
        self.waker
            .wake()
            .map_err(|error| Failure::new(500, format!("cannot wake the supervisor's loop: {error}")))?;
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::new(500, "the supervisor dropped the request; it may be stopping")),
            Err(_) => Err(Failure::new(504, format!("the supervisor did not answer within {deadline:?}"))),
        }
    }
}

/// What one listener offers.
#[derive(Debug, Clone)]
pub struct Routes {
    supervisor: Loop,
    commands: &'static [Command],
    /// What is at `/`, for people who look at the address in a browser.
    greeting: Option<String>,
}

impl Service for Routes {
    type Access = Access;

    fn admit(&self, peer: Peer, _: &Parts) -> Result<Access, Box<Response>> {
        const WHO: &str = "only root and the user of the supervisor may use the control socket";
        match Access::of_peer(peer, nix::unistd::geteuid().as_raw()) {
            Access::Nothing => Err(Box::new(Failure::new(403, WHO).into())),
            access => Ok(access),
        }
    }

    async fn answer(&self, head: Parts, body: Bytes, access: Access) -> Response {
        self.answer(&head.method, &head.uri, &body, access).await
    }

    fn refuse(&self, status: u16, error: String) -> Response {
        Failure::new(status, error).into()
    }
}

impl Routes {
    /// Everything, for the control socket.
    pub fn control(supervisor: Loop) -> Self {
        Self { supervisor, commands: Command::ALL, greeting: None }
    }

    /// Reads for monitoring, for the admin address.
    pub fn admin(supervisor: Loop) -> Self {
        let version = supervisor.version;
        let greeting =
            format!("Holdfast {version}\n/metrics  for Prometheus\n/health   for load balancers\n");
        Self { supervisor, commands: ADMIN, greeting: Some(greeting) }
    }

    async fn answer(&self, method: &Method, uri: &Uri, body: &[u8], access: Access) -> Response {
        let path = uri.path();
        // hyper leaves out the body of an answer to HEAD.
        let asked = if *method == Method::HEAD { "GET" } else { method.as_str() };
        if let ("GET", "/", Some(greeting)) = (asked, path, &self.greeting) {
            return text("text/plain; charset=utf-8", greeting.clone());
        }
        let query = uri.query().unwrap_or_default();
        let (path, name) = split(path);
        match self.commands.iter().find(|command| command.path() == path && command.method() == asked) {
            Some(command) => self
                .carry_out(command.clone(), name, query, body, access)
                .await
                .unwrap_or_else(Response::from),
            None => self.refuse(method, path),
        }
    }

    fn refuse(&self, method: &Method, path: &str) -> Response {
        let here = self.commands.iter().filter(|command| command.path() == path);
        let mut allowed: Vec<_> = here.map(|command| command.method()).collect();
        if path == "/" && self.greeting.is_some() {
            allowed.push("GET");
        }
        if allowed.is_empty() {
            return Failure::new(404, format!("no {path} here, only {}", list(self.commands))).into();
        }
        if allowed.contains(&"GET") {
            allowed.push("HEAD");
        }
        let mut response = Response::from(Failure::new(405, format!("{path} does not take {method}")));
        if let Ok(allowed) = HeaderValue::from_str(&allowed.join(",")) {
            response.headers_mut().insert(header::ALLOW, allowed);
        }
        response
    }

    async fn carry_out(
        &self,
        command: Command,
        name: &str,
        query: &str,
        body: &[u8],
        access: Access,
    ) -> Result<Response, Failure> {
        let command = command.with_name(name)?.with_query(query)?.with_body(body)?;
        if !command.is_change() {
            return self.supervisor.ask(command).await.map(respond);
        }
        let target = command.target();
        log::info!("control: {target} asked for by {access}");
        let outcome = self.supervisor.ask(command).await;
        match &outcome {
            Ok(_) => log::info!("control: {target} done"),
            Err(failure) => log::warn!("control: {target} failed: {failure}"),
        }
        outcome.map(respond)
    }
}

/// What is behind the second slash is a name; the path of its command ends there.
fn split(path: &str) -> (&str, &str) {
    const NAMED: &str = "/connections/";
    if path.starts_with(NAMED) { path.split_at(NAMED.len()) } else { (path, "") }
}

fn respond(answer: Answer) -> Response {
    match answer {
        Answer::Totals(totals) => json(StatusCode::OK, &totals),
        Answer::Workers(rows) => json(StatusCode::OK, &rows),
        Answer::Config(entries) => json(StatusCode::OK, &entries),
        Answer::Limits(limits) => json(StatusCode::OK, &limits),
        Answer::LimitsChanged(report) => json(StatusCode::OK, &report),
        Answer::Connections(rows) => json(StatusCode::OK, &rows),
        Answer::Explanation(explanation) => json(StatusCode::OK, &explanation),
        Answer::Bans(bans) => json(StatusCode::OK, &bans),
        Answer::Closing(report) => json(StatusCode::OK, &report),
        Answer::Health(health) => json(status_of(&health), &health),
        Answer::Metrics(snapshot) => text(metrics::CONTENT_TYPE, metrics::render(&snapshot)),
        Answer::Reload(report) => json(StatusCode::OK, &report),
        Answer::Restart(report) => json(StatusCode::OK, &report),
        Answer::UpgradeBegun(report) => json(StatusCode::ACCEPTED, &report),
        Answer::Upgrade(report) => json(StatusCode::OK, &report),
        Answer::Rebalance(report) => json(StatusCode::OK, &report),
        Answer::Done(report) => json(StatusCode::OK, &report),
    }
}

impl From<Failure> for Response {
    fn from(failure: Failure) -> Self {
        json(StatusCode::from_u16(failure.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &failure)
    }
}

fn status_of(health: &Health) -> StatusCode {
    match health.status {
        HealthStatus::Ok => StatusCode::OK,
        HealthStatus::Draining | HealthStatus::Full => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn list(commands: &[Command]) -> String {
    let entries: Vec<_> =
        commands.iter().map(|command| format!("{} {}", command.method(), command.path())).collect();
    entries.join(", ")
}
