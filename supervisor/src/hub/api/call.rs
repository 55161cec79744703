//! How a command reaches the hub's loop and how its answer comes back. Waits for the answer, never for the loop to have
//! room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use mio::Waker;
use tokio::sync::oneshot;

use super::{Answer, ApiError, Command};

/// One question to the loop.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub command: Command,
    /// Where the answer goes.
    pub reply: Reply,
}

/// The way back to whoever asked. Dropping it unused tells them so (500).
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Result<Answer, ApiError>>);

impl Reply {
    /// Answers. Never blocks, and does nothing if nobody waits any more.
    pub fn send(self, answer: Result<Answer, ApiError>) {
        // An error here is the value coming back because the client has gone: nobody is left to tell.
        let _ = self.0.send(answer);
    }

    /// Whether whoever asked still waits. A command that changes something is carried out all the same.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.0.is_closed()
    }
}

/// The loop's end: calls that wait.
#[derive(Debug)]
pub struct Inbox {
    calls: Receiver<Call>,
    is_woken: Arc<AtomicBool>,
}

impl Inbox {
    /// The calls that wait now, to be taken whenever the waker has woken the loop. What comes later wakes it again.
    pub fn take(&self) -> impl Iterator<Item = Call> {
        // Before the look: a call that comes after it finds the mark gone, and wakes.
        self.is_woken.store(false, Ordering::SeqCst);
        self.calls.try_iter().take(self.calls.len())
    }
}

/// The clients' end.
#[derive(Debug, Clone)]
pub struct Line {
    calls: Sender<Call>,
    waker: Arc<Waker>,
    is_woken: Arc<AtomicBool>,
    deadline: Option<Duration>,
}

impl Line {
    /// A way to a loop that `waker` wakes, for at most `queue` calls at once; `deadline` replaces those of the commands.
    pub fn new(queue: usize, waker: Arc<Waker>, deadline: Option<Duration>) -> (Self, Inbox) {
        let (sender, calls) = crossbeam_channel::bounded(queue);
        let is_woken = Arc::new(AtomicBool::new(false));
        (Self { calls: sender, waker, is_woken: Arc::clone(&is_woken), deadline }, Inbox { calls, is_woken })
    }

    /// Asks the loop and waits for its answer.
    pub async fn ask(&self, command: Command) -> Result<Answer, ApiError> {
        let deadline = self.deadline.unwrap_or_else(|| command.deadline());
        let (sender, answer) = oneshot::channel();
        self.calls.try_send(Call { command, reply: Reply(sender) }).map_err(|error| match error {
            TrySendError::Full(_) => ApiError::of_status(503, "too many requests wait; try again"),
            TrySendError::Disconnected(_) => ApiError::of_status(503, "the hub is stopping; try again"),
        })?;
        // One wake-up for all that come before the loop looks.
        if !self.is_woken.swap(true, Ordering::SeqCst) {
            self.waker
                .wake()
                .map_err(|error| ApiError::of_status(500, format!("cannot wake the hub's loop: {error}")))?;
        }
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ApiError::of_status(500, "the hub dropped the request; it may be stopping")),
            Err(_) => Err(ApiError::of_status(504, format!("the hub did not answer within {deadline:?}"))),
        }
    }
}
