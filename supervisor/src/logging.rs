//! Log lines on standard error: time, level, who, what. Who is the role and the process, for the lines of all
//! processes come out of one stream. Nobody is held up by it: what standard error does not take at once is
//! dropped, and the next line that gets through says how many were.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use env_filter::Filter;
use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{dup2_stderr, write};

/// PIPE_BUF of pipe(7): so much of a line is written whole or not at all, whoever else writes.
const ATOMIC: usize = 4096;

/// Lines that standard error did not take.
static LINES_DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many lines of this process standard error did not take.
#[must_use]
pub fn lines_dropped() -> u64 {
    LINES_DROPPED.load(Ordering::Relaxed)
}

/// Starts logging. `HOLDFAST_LOG` chooses more or less (`debug`, `holdfast_worker=trace`); the default is
/// `info`.
pub fn start(role: &'static str) {
    let mut filter = env_filter::Builder::new();
    filter.filter_level(LevelFilter::Info);
    if let Ok(wanted) = std::env::var("HOLDFAST_LOG") {
        filter.parse(&wanted);
    }
    let filter = filter.build();
    let level = filter.filter();
    let logger = Logger { role, filter, out: Mutex::new(StandardError { kind: Kind::find(), dropped: 0 }) };
    // A second start keeps the first logger: nothing is lost by that.
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
}

struct Logger {
    role: &'static str,
    filter: Filter,
    out: Mutex<StandardError>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.filter.matches(record) {
            return;
        }
        let head = |level: Level| {
            let time = humantime::format_rfc3339_millis(SystemTime::now());
            format!("{time} {level:<5} {}[{}]", self.role, std::process::id())
        };
        let line = format!("{} {}\n", head(record.level()), record.args());
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if out.dropped > 0 {
            let dropped = out.dropped;
            let notice = format!(
                "{} {dropped} log lines are missing here: they were not read in time\n",
                head(Level::Warn)
            );
            if out.put(notice.as_bytes()) {
                out.dropped = 0;
            }
        }
        if out.dropped > 0 || !out.put(line.as_bytes()) {
            out.dropped += 1;
            LINES_DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// What is known of standard error.
struct StandardError {
    kind: Kind,
    /// Lines that it did not take since the last one that it took.
    dropped: u64,
}

/// How standard error is kept from holding up whoever writes.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// A file: nobody has to read it.
    File,
    /// A socket, as a service manager gives: each message says that it does not wait.
    Socket,
    /// A pipe or terminal, opened again to be ours and non-blocking. Whoever else has the one we were started
    /// with does not notice.
    NonBlocking,
    /// A pipe or terminal that we may not open again: looked at before each write. If another process fills it in
    /// between, we wait.
    Shared,
}

impl Kind {
    fn find() -> Self {
        let stderr = io::stderr();
        let Ok(status) = fstat(&stderr) else { return Self::File };
        match SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFSOCK => Self::Socket,
            SFlag::S_IFIFO | SFlag::S_IFCHR => {
                let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
                let path = format!("/proc/self/fd/{}", stderr.as_raw_fd());
                let opened = OpenOptions::new().write(true).custom_flags(flags).open(path);
                if opened.is_ok_and(|own| dup2_stderr(own).is_ok()) {
                    Self::NonBlocking
                } else {
                    Self::Shared
                }
            }
            _ => Self::File,
        }
    }
}

impl StandardError {
    /// Whether it took all of `line`.
    fn put(&self, line: &[u8]) -> bool {
        let stderr = io::stderr();
        let part = if self.kind == Kind::File { line.len() } else { ATOMIC };
        line.chunks(part).all(|chunk| {
            let taken = match self.kind {
                Kind::File | Kind::NonBlocking => write(&stderr, chunk),
                Kind::Socket => {
                    send(stderr.as_raw_fd(), chunk, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)
                }
                Kind::Shared => {
                    let mut watched = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut watched, PollTimeout::ZERO) {
                        Ok(1) => write(&stderr, chunk),
                        _ => return false,
                    }
                }
            };
            taken == Ok(chunk.len())
        })
    }
}
