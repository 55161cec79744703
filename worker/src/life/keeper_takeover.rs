//! A worker whose keeper died. The slot's descriptors are open in the worker alone now, and would be closed by
//! its next crash; so it takes the keeper's place: saves what it has in hand and executes its own program as the
//! slot's keeper, which makes a fresh worker. Same process, same descriptors; no client notices.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::sys::process::open_pidfd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Pid, getppid};

use crate::life::event_loop::Worker;
use crate::life::hand_over::note;
use crate::life::keeper_start::{KeeperStart, OURSELVES};
use crate::serve::{Server, Watched};

/// The longest that verdicts under way are waited for: until then the slot is one death away from its end.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// The keeper as its worker sees it.
#[derive(Debug)]
pub(crate) enum KeeperWatch {
    /// It lives, as far as was heard. Its descriptor, if it could be had, becomes readable when that changes.
    Alive(Option<OwnedFd>),
    /// It is dead. Its place is taken when nothing is under way, or at this moment.
    Dead { until: Duration },
    /// Its place could not be taken; tried again at this moment.
    Failed { until: Duration },
}

impl KeeperWatch {
    /// Watches the process `pid`.
    pub(crate) fn watch(pid: Pid, server: &Server) -> Self {
        let now = server.now;
        let watch = || -> io::Result<OwnedFd> {
            let process = open_pidfd(pid)?;
            server.watch(process.as_raw_fd(), Watched::Keeper)?;
            Ok(process)
        };
        let watched = watch();
        // Whoever has another parent by now may have watched another process of that number.
        if getppid() != pid {
            return Self::dead(now);
        }
        match watched {
            Ok(process) => Self::Alive(Some(process)),
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Self::dead(now),
            Err(error) => {
                log::error!("cannot watch keeper {pid}: {error}; if it dies, this worker does not notice");
                Self::Alive(None)
            }
        }
    }

    /// It has ended.
    pub(crate) fn dead(now: Duration) -> Self {
        Self::Dead { until: now + LONGEST_WAIT }
    }

    /// When something is to be done.
    pub(crate) fn next_step(&self) -> Option<Duration> {
        match *self {
            Self::Alive(_) => None,
            Self::Dead { until } | Self::Failed { until } => Some(until),
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        matches!(self, Self::Alive(_))
    }
}

impl Worker {
    /// Looks whether the keeper has ended.
    pub(crate) fn look_at_keeper(&mut self) {
        let KeeperWatch::Alive(Some(process)) = &self.keeper else { return };
        let mut watched = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        if poll(&mut watched, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            log::error!("keeper {} is dead; taking its place", self.reconnection.keeper);
            self.keeper = KeeperWatch::dead(self.server.now);
        }
    }

    /// Takes the place of a dead keeper, if it is time. Returns only when it is not, and when it failed: clients
    /// are served on then.
    pub(crate) fn take_keepers_place(&mut self) {
        let is_time = match self.keeper {
            KeeperWatch::Alive(_) => false,
            KeeperWatch::Dead { until } => self.server.now >= until || !self.is_under_way(),
            KeeperWatch::Failed { until } => self.server.now >= until,
        };
        if !is_time {
            return;
        }
        if self.hand_over.take().is_some_and(|hand_over| hand_over.has_program()) {
            self.stay("its keeper died");
        }
        // Those in the middle of something would be lost either way, and everybody else with them if we stayed.
        let saved = self
            .save(clock::now())
            .inspect_err(|error| log::error!("{error}; connections in the middle of something are lost"));
        if let Some(link) = &mut self.link {
            let _ = link.flush();
        }
        if let Ok(memory) = &saved {
            self.server.clients.connections.table.header_mut().saved = note(memory.as_raw_fd());
        }
        compiler_fence(Ordering::SeqCst);
        let result = File::open(OURSELVES).and_then(|program| self.as_keeper().execute(program.as_fd()));
        let Err(error) = result;
        self.server.clients.connections.table.header_mut().saved = 0;
        log::error!("cannot take the keeper's place: {error}; serving on without one, and trying again");
        self.keeper = KeeperWatch::Failed { until: self.server.now + PAUSE };
    }

    /// What this process is handed as the slot's keeper.
    fn as_keeper(&self) -> KeeperStart {
        KeeperStart {
            slot: self.reconnection.slot,
            last_incarnation: self.incarnation,
            link: self.reconnection.link,
            table: self.table_memory,
            lock: self.reconnection.lock,
            reconnect_socket: self.reconnection.path.clone(),
            listeners: self.server.listeners().collect(),
            previous: None,
            went_back: None,
        }
    }
}
