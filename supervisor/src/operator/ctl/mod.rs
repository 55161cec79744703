//! `holdfast ctl`: asks a running supervisor over its control socket, or the hub over that of its API, and prints the
//! answer.
//! Blocking, one request (but for an upgrade, which is watched), no state; knows nothing the socket does not say,
//! but who serves on when there is nobody at it.

pub(crate) mod channels;
mod client;
mod human;
mod left_behind;
mod tables;
mod upgrade;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use client::Response;
use nix::unistd::Pid;

use crate::api::{Failure, Health, HealthStatus};
use crate::host::run_dir;
use crate::operator::control::socket_path;

/// What `holdfast ctl` can ask: the commands of the control socket.
pub use crate::api::Command as CtlCommand;
pub use channels::ChannelsCommand;

/// Whom `holdfast ctl` asks, and what.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum CtlRequest {
    /// The supervisor.
    #[command(flatten)]
    Supervisor(CtlCommand),
    /// The hub.
    #[command(flatten)]
    Channels(ChannelsCommand),
}

/// Why `holdfast ctl` has no good answer. All of them are exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    #[error("cannot connect to {}: {source}; {}", path.display(), remedy(source))]
    Connect { path: PathBuf, source: io::Error },
    #[error(
        "no supervisor in {}; pids {} serve on. Start holdfast with this run directory to have one again, or end them with `holdfast ctl --run-dir {} stop`",
        run_dir.display(), list(pids), run_dir.display()
    )]
    NoSupervisor { run_dir: PathBuf, pids: Vec<Pid> },
    #[error("cannot end the processes that serve on without a supervisor: {0}")]
    End(#[source] io::Error),
    #[error("lost the supervisor at {} while waiting for its answer: {source}; see its log", path.display())]
    Talk { path: PathBuf, source: io::Error },
    #[error("cannot understand the answer at {}: {reason}; is it a supervisor of this version?", path.display())]
    Understand { path: PathBuf, reason: String },
    #[error("{error}")]
    Refused { status: u16, error: String },
    #[error("the service does not want clients now: it is {}", .0.name())]
    Unhealthy(HealthStatus),
    #[error(
        "no channels here: {} is missing. Set api.listen, write a rule in [[channels.rules]], or let a route have the protocol \"channels\"; see `holdfast ctl config` for what is in effect",
        path.display()
    )]
    NoChannels { path: PathBuf },
    #[error("cannot read what to publish from standard input: {0}")]
    Read(#[source] io::Error),
    #[error("upgrade failed: {0}")]
    UpgradeFailed(String),
    #[error("cannot write to standard output: {0}")]
    Print(#[source] io::Error),
}

/// Asks the supervisor of `run_dir`, or its hub, and prints the answer to standard output: tables for people or, with
/// `json`, the body as it was received (metrics are Prometheus text either way).
///
/// # Errors
/// See [`CtlError`]; its text is for standard error.
pub fn run(run_dir: &Path, json: bool, request: &CtlRequest) -> Result<(), CtlError> {
    let command = match request {
        CtlRequest::Supervisor(command) => command,
        CtlRequest::Channels(command) => return print(&channels::ask(run_dir, json, command, io::stdin())?),
    };
    match ask_supervisor(run_dir, json, command) {
        Err(error @ CtlError::Connect { .. }) => go_without_supervisor(run_dir, json, command, error),
        result => result,
    }
}

/// Nobody answers, as `error` says: whether anybody serves on, and their end if that is asked for.
fn go_without_supervisor(
    run_dir: &Path,
    json: bool,
    command: &CtlCommand,
    error: CtlError,
) -> Result<(), CtlError> {
    let pids = run_dir::left_behind(run_dir);
    if pids.is_empty() {
        return Err(error);
    }
    if *command != CtlCommand::Stop {
        return Err(CtlError::NoSupervisor { run_dir: run_dir.to_owned(), pids });
    }
    let ended = left_behind::end(run_dir).map_err(CtlError::End)?;
    let message = format!("ended pids {}, which served on without a supervisor", list(&ended));
    print(&if json { serde_json::json!({ "message": message }).to_string() } else { message })
}

fn list<'a>(pids: impl IntoIterator<Item = &'a Pid>) -> String {
    pids.into_iter().map(Pid::to_string).collect::<Vec<_>>().join(", ")
}

fn ask_supervisor(run_dir: &Path, json: bool, command: &CtlCommand) -> Result<(), CtlError> {
    if *command == (CtlCommand::Upgrade { status: false }) {
        return upgrade::run(run_dir, json);
    }
    let (text, health) = ask(run_dir, json, command)?;
    print(&text)?;
    match health {
        HealthStatus::Ok => Ok(()),
        HealthStatus::Draining | HealthStatus::Full => Err(CtlError::Unhealthy(health)),
    }
}

/// What [`run`] prints, and whether a health check said no.
pub(crate) fn ask(
    run_dir: &Path,
    json: bool,
    command: &CtlCommand,
) -> Result<(String, HealthStatus), CtlError> {
    let path = socket_path(run_dir);
    let response = client::exchange(&path, &command.into())?;
    let health = match judge(command, &response) {
        Verdict::Answer => HealthStatus::Ok,
        Verdict::Health(status) => status,
        Verdict::Failure(error) => return Err(CtlError::Refused { status: response.status, error }),
    };
    let text = if json {
        response.body
    } else {
        tables::render(command, &response.body)
            .map_err(|error| CtlError::Understand { path, reason: error.to_string() })?
    };
    Ok((text, health))
}

/// What kind of answer a response is.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// What was asked for.
    Answer,
    /// The answer to a health check, which may be no.
    Health(HealthStatus),
    /// No answer; why.
    Failure(String),
}

fn judge(command: &CtlCommand, response: &Response) -> Verdict {
    if let Ok(failure) = serde_json::from_str::<Failure>(&response.body) {
        return Verdict::Failure(failure.error);
    }
    match (command, response.status) {
        (CtlCommand::Health, 200 | 503) => match serde_json::from_str::<Health>(&response.body) {
            Ok(health) => Verdict::Health(health.status),
            Err(_) => Verdict::Failure(bare(response)),
        },
        (_, 200..=299) => Verdict::Answer,
        _ => Verdict::Failure(bare(response)),
    }
}

/// A failure whose body is not ours, such as one of the HTTP library.
fn bare(response: &Response) -> String {
    format!("the supervisor answered {} {}", response.status, response.body).trim_end().to_owned()
}

fn print(text: &str) -> Result<(), CtlError> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        // `holdfast ctl workers | head -1` is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CtlError::Print(error)),
        _ => Ok(()),
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "is holdfast running? If its run directory is another one, name it with --run-dir"
        }
        io::ErrorKind::ConnectionRefused => {
            "the supervisor that made this socket is gone; start holdfast again"
        }
        io::ErrorKind::PermissionDenied => "run this as root or as the user holdfast runs as",
        _ => "is --run-dir the run directory of a running holdfast?",
    }
}

#[cfg(test)]
mod tests;
