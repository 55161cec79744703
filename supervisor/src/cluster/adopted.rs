//! Processes that are ours to look after and not our children: keepers of a dead supervisor, and their
//! workers. `waitpid` tells nothing of them and their numbers may be reused, so each is known by a pidfd.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use holdfast_shared::sys::process::{open_pidfd, signal_pidfd};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::host::kernel::parent;

/// All of them that run.
#[derive(Debug, Default)]
pub(crate) struct AdoptedProcesses(BTreeMap<Pid, OwnedFd>);

impl AdoptedProcesses {
    /// Looks after `pid`, which must be a child of `parent` still; `token` becomes ready when it ends.
    /// Nothing happens if it has ended already.
    pub(crate) fn watch(&mut self, pid: Pid, of: Option<Pid>, registry: &Registry, token: Token) {
        if self.0.contains_key(&pid) {
            return;
        }
        let watch = || -> io::Result<OwnedFd> {
            let process = open_pidfd(pid)?;
            registry.register(&mut SourceFd(&process.as_raw_fd()), token, Interest::READABLE)?;
            Ok(process)
        };
        match watch() {
            // The number was taken by another process before the name was had.
            Ok(_) if of.is_some_and(|of| parent(pid) != Some(of)) => {}
            Ok(process) => drop(self.0.insert(pid, process)),
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
            Err(error) => log::error!("cannot watch process {pid}: {error}"),
        }
    }

    /// Is its end still to be told?
    pub(crate) fn watches(&self, pid: Pid) -> bool {
        self.0.contains_key(&pid)
    }

    /// Those that have ended since the last call; they are not looked after any more.
    pub(crate) fn ended(&mut self) -> Vec<Pid> {
        let ended = self.0.extract_if(.., |_, process| has_ended(process));
        ended.map(|(pid, _)| pid).collect()
    }

    /// Sends a signal to one of them. Says whether there was a process to get it.
    pub(crate) fn signal(&self, pid: Pid, signal: Signal) -> bool {
        let Some(process) = self.0.get(&pid).filter(|process| !has_ended(process)) else { return false };
        match signal_pidfd(process.as_fd(), signal) {
            Ok(()) => true,
            Err(error) => {
                log::error!("cannot send {signal} to process {pid}: {error}");
                error.raw_os_error() != Some(Errno::ESRCH as i32)
            }
        }
    }
}

/// Is it a child of this process after all? It is when this process was executed in place of the dead
/// supervisor.
pub(crate) fn is_child(pid: Pid) -> bool {
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT).is_ok()
}

/// A pidfd is readable once its process has ended, and all its descriptors are closed by then.
fn has_ended(process: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut watched, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use mio::Poll;

    use super::*;

    #[test]
    fn an_end_is_seen_once_and_a_child_is_told_from_others() {
        let poll = Poll::new().unwrap();
        let mut process = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(process.id()).unwrap());
        let mut adopted_processes = AdoptedProcesses::default();
        adopted_processes.watch(pid, Some(Pid::from_raw(1)), poll.registry(), Token(0));
        assert!(!adopted_processes.signal(pid, Signal::SIGKILL), "it is not a child of the first process");
        adopted_processes.watch(pid, Some(nix::unistd::getpid()), poll.registry(), Token(0));
        assert_eq!(adopted_processes.ended(), []);
        assert!(is_child(pid) && !is_child(nix::unistd::getppid()));
        assert!(adopted_processes.signal(pid, Signal::SIGKILL));
        process.wait().unwrap();
        assert_eq!(adopted_processes.ended(), [pid]);
        assert_eq!(adopted_processes.ended(), []);
        assert!(!adopted_processes.signal(pid, Signal::SIGKILL));
        adopted_processes.watch(pid, None, poll.registry(), Token(0));
        assert_eq!(adopted_processes.ended(), []);
    }
}
