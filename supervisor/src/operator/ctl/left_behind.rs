//! Slots that serve on though their supervisor is gone, as `holdfast ctl` meets them: found by what they have open,
//! and ended on request.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use holdfast_shared::sys::process::{open_pidfd, signal_pidfd};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::host::run_dir::{is_slot_process, left_behind};

/// How long workers may take to tell their clients, and the killed to be gone.
const GRACE: Duration = Duration::from_secs(5);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Ends all of them: workers tell their clients and leave, and what is left then is killed. Returns which they were.
pub(super) fn end(run_dir: &Path) -> io::Result<BTreeSet<Pid>> {
    let mut told = BTreeSet::new();
    // What is killed while the others run is taken up by them, in new processes: all are stopped first.
    for signals in [&[Signal::SIGTERM][..], &[Signal::SIGSTOP, Signal::SIGKILL]] {
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            let left = left_behind(run_dir);
            if left.is_empty() {
                return Ok(told);
            }
            for &signal in signals {
                left.iter().try_for_each(|&pid| send(pid, run_dir, signal))?;
            }
            told.extend(left);
            thread::sleep(PAUSE);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn send(pid: Pid, run_dir: &Path, signal: Signal) -> io::Result<()> {
    let send = || -> io::Result<()> {
        let process = open_pidfd(pid)?;
        // The number may be another process's by now, but this name of it is not any more.
        if is_slot_process(pid, run_dir) { signal_pidfd(process.as_fd(), signal) } else { Ok(()) }
    };
    match send() {
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(()),
        result => result,
    }
}
