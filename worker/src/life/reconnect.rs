//! A slot without a supervisor: how its worker goes on, and how it finds the next one. It connects to the
//! socket that an adopting supervisor opens in the run directory, puts the new link where the old one was, so
//! that the keeper has it too, and hands over copies of all that the slot consists of. Whatever fails here is
//! tried again; no client notices.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Display, PathBuf};
use std::time::Duration;

use holdfast_shared::id::SlotId;
use holdfast_shared::ipc::codec;
use holdfast_shared::ipc::link::{LinkError, SlotEnd};
use holdfast_shared::ipc::message::{ToWorker, WorkerMessage};
use holdfast_shared::ipc::reconnect::{self, ReconnectError};
use holdfast_shared::sys::descriptor;
use holdfast_shared::sys::process::take_blocked;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, dup2};

use crate::life::event_loop::Worker;
use crate::serve::Watched;
use crate::test_hooks::is_crash_wanted;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a worker that has no clients waits for a supervisor, before it leaves its port to others.
const ABANDONED_AFTER: Duration = Duration::from_secs(300);

/// How often it is said that there is none.
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);

/// What a slot hands to its next supervisor, and how the search for it stands. The descriptors are the
/// keeper's too.
#[derive(Debug)]
pub(crate) struct Reconnection {
    /// The socket of the next supervisor.
    pub(crate) path: PathBuf,
    pub(crate) slot: SlotId,
    /// This worker.
    pub(crate) pid: Pid,
    pub(crate) keeper: Pid,
    /// Of the program it runs.
    pub(crate) version: &'static str,
    /// The number that the link has, whichever supervisor it leads to.
    pub(crate) link: RawFd,
    /// Its socket, while there is no supervisor.
    pub(crate) lost: Option<ManuallyDrop<OwnedFd>>,
    /// The lock of the run directory's slots.
    pub(crate) lock: RawFd,
    /// `None` while there is a supervisor.
    pub(crate) search: Option<Search>,
    /// When one was last looked for.
    pub(crate) last_attempt: Option<Duration>,
}

/// A search for a supervisor.
#[derive(Debug)]
pub(crate) struct Search {
    began: Duration,
    next_attempt: Duration,
    next_notice: Duration,
    /// What was logged last, so that it is logged once.
    last_failure: String,
}

/// Why the next supervisor was not reached.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error(transparent)]
    Connect(#[from] ReconnectError),
    #[error("cannot replace the link: {0}")]
    Replace(#[source] io::Error),
    #[error("the link is not at hand")]
    NoLink,
    #[error("cannot hand over the slot's descriptors: {0}")]
    Lend(#[source] io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("cannot watch the link: {0}")]
    Watch(#[source] io::Error),
}

impl Reconnection {
    /// The first word to a supervisor.
    pub(crate) fn hello(&self) -> WorkerMessage {
        let version = self.version.to_owned();
        WorkerMessage::Hello { pid: self.pid.as_raw(), version, knows: codec::known::<ToWorker>() }
    }

    /// The supervisor is gone: the search for the next begins, at once unless there was an attempt just now.
    /// One that does not take this slot hangs up on it, and would otherwise be asked again without a rest.
    pub(crate) fn begin(&mut self, now: Duration) {
        let next_attempt = self.last_attempt.map_or(now, |last| now.max(last + PAUSE));
        // What somebody sent while there was a supervisor was not meant for a slot without one.
        let _ = take_blocked(Signal::SIGTERM);
        let next_notice = now + NOTICE_INTERVAL;
        self.search = Some(Search { began: now, next_attempt, next_notice, last_failure: String::new() });
    }

    /// Keeps the socket of a link that leads nowhere: its number is the keeper's too.
    pub(crate) fn keep(&mut self, link: ManuallyDrop<SlotEnd>) {
        self.lost = Some(ManuallyDrop::new(ManuallyDrop::into_inner(link).into_socket()));
    }

    /// When there is something to do.
    pub(crate) fn next_attempt(&self) -> Option<Duration> {
        self.search.as_ref().map(|search| search.next_attempt)
    }

    fn run_dir(&self) -> Display<'_> {
        self.path.parent().unwrap_or(&self.path).display()
    }
}

impl Search {
    /// For how long there has been no supervisor, if it is time to say so.
    fn notice(&mut self, now: Duration) -> Option<Duration> {
        let is_time = now >= self.next_notice;
        if is_time {
            self.next_notice = now + NOTICE_INTERVAL;
        }
        is_time.then(|| now.saturating_sub(self.began))
    }
}

impl Worker {
    /// Tries to connect to the next supervisor, if there is none and it is time.
    pub(crate) fn look_for_supervisor(&mut self) {
        let Some(search) = &mut self.reconnection.search else { return };
        if self.server.now < search.next_attempt {
            return;
        }
        search.next_attempt = self.server.now + PAUSE;
        self.reconnection.last_attempt = Some(self.server.now);
        if take_blocked(Signal::SIGTERM) {
            log::info!("leaving: told to by a signal, and there is no supervisor");
            return self.server.leave();
        }
        if let Some(lonely) = search.notice(self.server.now) {
            let (count, run_dir) = (self.server.clients.connections.admitted(), self.reconnection.run_dir());
            log::warn!(
                "no supervisor for {} minutes; serving {count} connections on. Start holdfast with run_dir {run_dir} \
                 to have one again, or end this with `holdfast ctl --run-dir {run_dir} stop`",
                lonely.as_secs() / 60,
            );
        }
        if self.moving.is_active() {
            // The next supervisor knows nothing of what is between two slots: it is to be told when it is over.
            return;
        }
        match self.connect() {
            Ok(link) => {
                self.link = Some(link);
                self.reconnection.search = None;
                self.register_with_supervisor();
            }
            Err(error) => self.note_failure(&error),
        }
    }

    /// Is there neither a supervisor nor a client, and has there been none for long?
    pub(crate) fn is_abandoned(&self) -> bool {
        let has_clients =
            self.server.clients.connections.admitted() + self.server.clients.connections.pending() > 0;
        let search = self.reconnection.search.as_ref();
        !has_clients && search.is_some_and(|search| self.server.now >= search.began + ABANDONED_AFTER)
    }

    fn connect(&mut self) -> Result<ManuallyDrop<SlotEnd>, ConnectError> {
        let number = self.reconnection.link;
        let socket = reconnect::connect(&self.reconnection.path)?;
        // From here on the keeper speaks on the new link as well. What it says before the message below, the
        // supervisor passes over; if this worker dies before that, the next one starts anew.
        let mut lost = self.reconnection.lost.take().ok_or(ConnectError::NoLink)?;
        let replaced = dup2(&socket, &mut lost);
        drop(socket);
        let mut link = ManuallyDrop::new(SlotEnd::new(ManuallyDrop::into_inner(lost)));
        let offered = replaced
            .map_err(|error| ConnectError::Replace(error.into()))
            .and_then(|()| self.offer(&mut link))
            .and_then(|()| self.server.watch(number, Watched::Link).map_err(ConnectError::Watch));
        if let Err(error) = offered {
            self.reconnection.keep(link);
            return Err(error);
        }
        Ok(link)
    }

    fn offer(&self, link: &mut SlotEnd) -> Result<(), ConnectError> {
        let Reconnection { slot, pid, keeper, lock, .. } = self.reconnection;
        let own = [self.table_memory, lock];
        let all = own.into_iter().chain(self.server.listeners());
        let (pid, keeper) = (pid.as_raw(), keeper.as_raw());
        let offer = WorkerMessage::Adopt { slot, pid, keeper };
        let send = |all: &[BorrowedFd<'_>]| link.send_with(self.incarnation, &offer.into(), all);
        Ok(descriptor::with_all(all, send).map_err(ConnectError::Lend)??)
    }

    /// Tells a supervisor that knows nothing of this worker all it has to know. Places given up since the
    /// last one died are not among the holdings, so there is nothing to give back.
    fn register_with_supervisor(&mut self) {
        log::info!(
            "found the next supervisor, with {} connections",
            self.server.clients.connections.admitted()
        );
        self.tell(self.reconnection.hello());
        if is_crash_wanted("register") {
            // Not before the supervisor has looked at us and heard the first word.
            let link = self.link.iter();
            let mut watched: Vec<_> = link.map(|link| PollFd::new(link.as_fd(), PollFlags::POLLIN)).collect();
            let _ = poll(&mut watched, PollTimeout::NONE);
            std::process::abort();
        }
        self.server.clients.connections.released.clear();
        // A drain was the last one's: its time was kept there. This one says so if it wants one.
        self.server.drain = None;
        self.tell_holdings();
        let counters = Box::new(*self.server.clients.connections.table.counters());
        let took = Duration::ZERO;
        self.tell(WorkerMessage::Ready { resumed: 0, lost: 0, took, counters });
        self.server.ask_for_all();
    }

    fn note_failure(&mut self, error: &ConnectError) {
        let Some(search) = &mut self.reconnection.search else { return };
        let failure = error.to_string();
        if failure != search.last_failure {
            log::info!("{failure}; going on without a supervisor, and trying again");
            search.last_failure = failure;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_is_looked_for_at_once_and_one_that_hangs_up_not_without_a_rest() {
        let mut reconnection = Reconnection {
            path: PathBuf::new(),
            slot: SlotId(0),
            pid: Pid::this(),
            keeper: Pid::parent(),
            version: "",
            link: -1,
            lost: None,
            lock: -1,
            search: None,
            last_attempt: None,
        };
        let now = Duration::from_secs(100);
        reconnection.begin(now);
        assert_eq!(reconnection.next_attempt(), Some(now));
        reconnection.last_attempt = Some(now);
        reconnection.begin(now);
        assert_eq!(reconnection.next_attempt(), Some(now + PAUSE));
        reconnection.begin(now + 2 * PAUSE);
        assert_eq!(reconnection.next_attempt(), Some(now + 2 * PAUSE));
    }

    #[test]
    fn being_without_one_is_said_once_a_minute() {
        let second = Duration::from_secs(1);
        let mut search = Search {
            began: Duration::ZERO,
            next_attempt: Duration::ZERO,
            next_notice: NOTICE_INTERVAL,
            last_failure: String::new(),
        };
        let said: Vec<_> = (1..=200).filter_map(|now| search.notice(now * second)).collect();
        assert_eq!(said, [60 * second, 120 * second, 180 * second]);
    }
}
