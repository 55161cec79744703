//! One child process under watch: every line it logs, how it ended, and the only place in the tests that
//! waits for time to pass. Knows nothing of Holdfast.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;

/// How many of the last log lines a failed wait prints.
const TAIL: usize = 60;

/// How long the log of a process that has ended may take to arrive when others still hold its end of the
/// pipe.
const LOG_GRACE: Duration = Duration::from_millis(500);

/// A running (or ended) child process whose standard error is being collected. Clones watch the same one.
#[derive(Clone)]
pub struct Watched {
    pid: Pid,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    /// Nobody reads the log.
    is_unread: bool,
    log_ended: bool,
    exit: Option<(ExitStatus, Instant)>,
}

impl Shared {
    /// A wait that fails panics with the lock held; that must not take the collecting threads along.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The process is gone and everything it said is here, as far as we can know.
    fn is_over(&self) -> bool {
        self.exit.is_some_and(|(_, at)| self.log_ended || at.elapsed() > LOG_GRACE)
    }
}

impl Watched {
    /// Starts `command` with its standard error captured.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid fits"));
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let log = child.stderr.take().expect("standard error is piped");
        let collector = Arc::clone(&shared);
        thread::spawn(move || collect(log, &collector));
        let reaper = Arc::clone(&shared);
        thread::spawn(move || reap(child, &reaper));
        Self { pid, shared }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends `signal`, unless the process has ended.
    pub fn signal(&self, signal: Signal) {
        let state = self.state();
        if state.exit.is_none() {
            // The reaper may be between wait and its note of it; the pid is then free for an instant, not yet
            // reused.
            let _ = kill(self.pid, signal);
        }
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<ExitStatus> {
        self.state().exit.map(|(status, _)| status)
    }

    /// Every line so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.state().lines.clone()
    }

    /// Lets the log fill its pipe, as a reader that hangs does, or reads it again. One more line is read at most.
    pub fn leave_unread(&self, is_unread: bool) {
        self.state().is_unread = is_unread;
        self.shared.changed.notify_all();
    }

    /// Waits for the first line that contains `pattern`.
    ///
    /// # Panics
    /// When the process ends without saying it, or patience does.
    #[must_use]
    pub fn wait_for_line(&self, pattern: &str) -> String {
        self.wait_for_lines(pattern, 1).remove(0)
    }

    /// Waits until `count` lines contain `pattern`, and returns them.
    ///
    /// # Panics
    /// When the process ends before that, or patience does.
    #[must_use]
    pub fn wait_for_lines(&self, pattern: &str, count: usize) -> Vec<String> {
        self.wait(&format!("{count} log line(s) with {pattern:?}"), |state| {
            let found: Vec<String> =
                state.lines.iter().filter(|line| line.contains(pattern)).cloned().collect();
            (found.len() >= count).then_some(found)
        })
    }

    /// Waits for its end and the rest of its log.
    ///
    /// # Panics
    /// When patience ends first.
    #[must_use]
    pub fn wait_for_exit(&self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state();
        loop {
            if let (true, Some((status, _))) = (state.is_over(), state.exit) {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {PATIENCE:?}\n{}", tail(&state));
            state = self.sleep_on(state, LOG_GRACE);
        }
    }

    /// Lets `pause` pass, so that a poll does not spin; ends early on news.
    ///
    /// # Panics
    /// At once when the process has ended: whatever the caller polls for will not come.
    pub fn pause(&self, pause: Duration, waiting_for: &str) {
        let state = self.sleep_on(self.state(), pause);
        if let Some((status, _)) = state.exit {
            panic!("{status} while waiting for {waiting_for}\n{}", tail(&state));
        }
    }

    /// The last log lines, for a panic message.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.state())
    }

    /// As [`Watched::tail`]; `None` while somebody else looks at the log, who may be about to panic.
    #[must_use]
    pub fn try_tail(&self) -> Option<String> {
        self.shared.state.try_lock().ok().map(|state| tail(&state))
    }

    fn wait<T>(&self, what: &str, mut found: impl FnMut(&State) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state();
        loop {
            if let Some(value) = found(&state) {
                return value;
            }
            if let (true, Some((status, _))) = (state.is_over(), state.exit) {
                panic!("{status} before {what}\n{}", tail(&state));
            }
            assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}\n{}", tail(&state));
            state = self.sleep_on(state, LOG_GRACE);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    fn sleep_on<'a>(&'a self, state: MutexGuard<'a, State>, pause: Duration) -> MutexGuard<'a, State> {
        let result = self.shared.changed.wait_timeout(state, pause);
        result.unwrap_or_else(PoisonError::into_inner).0
    }
}

fn collect(log: impl std::io::Read, shared: &Shared) {
    for line in BufReader::new(log).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut state = shared.lock();
        state.lines.push(line);
        shared.changed.notify_all();
        while state.is_unread {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
    shared.lock().log_ended = true;
    shared.changed.notify_all();
}

fn reap(mut child: Child, shared: &Shared) {
    let status = child.wait().expect("our own child can be waited for");
    shared.lock().exit = Some((status, Instant::now()));
    shared.changed.notify_all();
}

fn tail(state: &State) -> String {
    let skipped = state.lines.len().saturating_sub(TAIL);
    let mut text = format!("--- log ({skipped} earlier lines not shown) ---\n");
    for line in &state.lines[skipped..] {
        text.push_str(line);
        text.push('\n');
    }
    text + "--- end of log ---"
}
