//! What std lacks about processes: a fork whose child shares the descriptor table, and names for processes that
//! are never reused.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::Pid;

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The process that asked.
    Parent {
        /// The new process.
        child: Pid,
    },
    /// The new process.
    Child,
}

/// Lets a fault end the process as the kernel means it to. Rust's runtime catches SIGSEGV and SIGBUS to
/// report an overflowing stack, and returns when it was none; a signal that somebody sent would then be
/// swallowed.
///
/// # Errors
/// What the kernel says.
pub fn die_of_faults() -> io::Result<()> {
    for fault in [Signal::SIGSEGV, Signal::SIGBUS] {
        // SAFETY: the default action runs no code of ours.
        unsafe { signal(fault, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// Forks with `CLONE_FILES`: the child has its own memory, and *shares* the descriptor table. What either
/// opens or closes, the other sees; when one dies, however it dies, nothing is closed.
///
/// # Errors
/// What the kernel says, and `EBUSY` when the process has more than one thread: the child would have only the
/// calling one, and whatever locks the others hold, the allocator's too, would stay locked in it for ever.
pub fn fork_sharing_descriptors() -> io::Result<Side> {
    // Has no effect but its check: it is refused unless this is the only thread. It needs no descriptor, as a
    // look into /proc would, and descriptors may have run out when a worker is to be replaced.
    unshare(CloneFlags::CLONE_THREAD).map_err(|_| Errno::EBUSY)?;
    let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: without CLONE_VM and with a null stack, clone returns twice like fork(2), each side on its own
    // copy of the stack. There is one thread (checked above), so the child's memory is in a consistent
    // state.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    match Errno::result(result)? {
        0 => Ok(Side::Child),
        child => Ok(Side::Parent { child: Pid::from_raw(i32::try_from(child).map_err(io::Error::other)?) }),
    }
}

/// A name for the process `pid` that is never another's, whoever its parent is (pidfd_open(2)). Readable once
/// the process has ended. Not inherited by exec.
///
/// # Errors
/// What the kernel says: `ESRCH` when there is no such process.
pub fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    let flags: libc::c_long = 0;
    // SAFETY: takes and returns plain numbers.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid.as_raw()), flags) };
    let number = i32::try_from(Errno::result(number)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends `signal` to a process named by [`open_pidfd`].
///
/// # Errors
/// What the kernel says: `ESRCH` when it has ended and was waited for.
pub fn signal_pidfd(process: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let none: libc::c_long = 0;
    // SAFETY: a null siginfo is allowed, and means the same as for kill(2).
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            libc::c_long::from(process.as_raw_fd()),
            libc::c_long::from(signal as i32),
            none,
            none,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Takes `signal`, which is blocked, if it has come and waits. Needs no descriptor.
#[must_use]
pub fn take_blocked(signal: Signal) -> bool {
    let wanted = SigSet::from(signal);
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both are read for the length of the call; a null siginfo is allowed.
    let taken = unsafe { libc::sigtimedwait(wanted.as_ref(), std::ptr::null_mut(), &raw const at_once) };
    taken == signal as i32
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn a_blocked_signal_is_taken_once() {
        let signal = Signal::SIGUSR1;
        SigSet::from(signal).thread_block().unwrap();
        assert!(!take_blocked(signal));
        raise(signal).unwrap();
        assert!(take_blocked(signal));
        assert!(!take_blocked(signal));
    }
}
