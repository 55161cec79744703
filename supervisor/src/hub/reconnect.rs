//! How a hub without a supervisor finds the next one, and how long it goes on without. Serves on meanwhile.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_shared::ipc::reconnect;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// The search for a supervisor.
#[derive(Debug)]
pub(super) struct Search {
    path: PathBuf,
    next_attempt: Option<Duration>,
    last_failure: String,
}

impl Search {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, next_attempt: None, last_failure: String::new() }
    }

    /// There is none any more.
    pub(super) fn begin(&mut self, now: Duration) {
        self.next_attempt = Some(now);
        self.last_failure.clear();
    }

    /// There is one.
    pub(super) fn end(&mut self) {
        self.next_attempt = None;
    }

    /// How long until it is time to look; `None` when there is one.
    pub(super) fn pause(&self, now: Duration) -> Option<Duration> {
        Some(self.next_attempt?.saturating_sub(now))
    }

    /// A socket that leads to the next, if there is none, it is time to look, and one is there.
    pub(super) fn look(&mut self, now: Duration) -> Option<OwnedFd> {
        self.next_attempt = Some(self.next_attempt.filter(|&next| next <= now).map(|_| now + PAUSE)?);
        match reconnect::connect(&self.path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                let failure = error.to_string();
                if failure != self.last_failure {
                    log::info!("{failure}; going on without a supervisor, and trying again");
                    self.last_failure = failure;
                }
                None
            }
        }
    }
}
