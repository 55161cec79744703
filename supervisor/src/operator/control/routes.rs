//! Which request is which command, and what an answer looks like in HTTP.
//! Knows nothing of connections and decides nothing: every request goes to the loop.

use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, get, on};
use axum::{Extension, Json, Router};
use crossbeam_channel::{Sender, TrySendError};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use mio::Waker;

use super::connection::Access;
use crate::api::{Answer, Failure, Health, HealthStatus};
use crate::api::{Command, Request};
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
    pub async fn ask(&self, command: Command) -> Result<Answer, Failure> {
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
        let deadline = self.deadline.unwrap_or_else(|| command.deadline());
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::new(500, "the supervisor dropped the request; it may be stopping")),
            Err(_) => Err(Failure::new(504, format!("the supervisor did not answer within {deadline:?}"))),
        }
    }
}

/// Everything, for the control socket.
pub fn control(supervisor: &Loop) -> Router {
    finish(commands(supervisor, Command::ALL), Command::ALL)
}

/// Reads for monitoring, for the admin address.
pub fn admin(supervisor: &Loop) -> Router {
    finish(commands(supervisor, ADMIN).route("/", get(hint(supervisor.version))), ADMIN)
}

fn commands(supervisor: &Loop, commands: &[Command]) -> Router {
    commands.iter().fold(Router::new(), |router, &command| {
        let filter = if command.is_change() { MethodFilter::POST } else { MethodFilter::GET };
        let supervisor = supervisor.clone();
        let handler = async move |Extension(access): Extension<Access>, uri: Uri| {
            let command = command.with_query(uri.query().unwrap_or_default())?;
            carry_out(&supervisor, command, access).await
        };
        router.route(command.path(), on(filter, handler))
    })
}

fn finish(router: Router, commands: &'static [Command]) -> Router {
    router
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Failure::new(405, format!("{} does not take {method}", uri.path()))
        })
        .fallback(async move |uri: Uri| {
            Failure::new(404, format!("no {} here, only {}", uri.path(), list(commands)))
        })
}

async fn carry_out(supervisor: &Loop, command: Command, access: Access) -> Result<Response, Failure> {
    if !command.is_change() {
        return supervisor.ask(command).await.map(respond);
    }
    let path = command.target();
    log::info!("control: {path} asked for by {access}");
    let outcome = supervisor.ask(command).await;
    match &outcome {
        Ok(_) => log::info!("control: {path} done"),
        Err(failure) => log::warn!("control: {path} failed: {failure}"),
    }
    outcome.map(respond)
}

fn respond(answer: Answer) -> Response {
    match answer {
        Answer::Totals(totals) => Json(totals).into_response(),
        Answer::Workers(rows) => Json(rows).into_response(),
        Answer::Config(entries) => Json(entries).into_response(),
        Answer::Limits(limits) => Json(limits).into_response(),
        Answer::Health(health) => (status_of(&health), Json(health)).into_response(),
        Answer::Metrics(snapshot) => text(metrics::CONTENT_TYPE, metrics::render(&snapshot)),
        Answer::Reload(report) => Json(report).into_response(),
        Answer::Restart(report) => Json(report).into_response(),
        Answer::UpgradeBegun(report) => (StatusCode::ACCEPTED, Json(report)).into_response(),
        Answer::Upgrade(report) => Json(report).into_response(),
        Answer::Rebalance(report) => Json(report).into_response(),
        Answer::Done(report) => Json(report).into_response(),
    }
}

fn status_of(health: &Health) -> StatusCode {
    match health.status {
        HealthStatus::Ok => StatusCode::OK,
        HealthStatus::Draining | HealthStatus::Full => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn text(content_type: &'static str, body: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], body).into_response()
}

fn hint(version: &str) -> String {
    format!("Holdfast {version}\n/metrics  for Prometheus\n/health   for load balancers\n")
}

fn list(commands: &[Command]) -> String {
    let entries: Vec<_> =
        commands.iter().map(|command| format!("{} {}", command.method(), command.path())).collect();
    entries.join(", ")
}
