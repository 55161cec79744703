//! Clients in processes of their own: the parent's side of `holdfast-clients`.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::Instant;

use serde_json::Value;

use crate::PATIENCE;
use crate::control::Totals;

/// One child process full of clients. They vanish with it.
pub struct ClientProcess {
    child: Child,
    input: Option<ChildStdin>,
    reports: Receiver<Value>,
    last: Totals,
}

impl ClientProcess {
    /// Starts `program` (the test's `CARGO_BIN_EXE_holdfast-clients`) with `clients` in `role` from `sources`
    /// loopback addresses beginning with number `first_source`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(
        program: &str,
        server: SocketAddr,
        clients: usize,
        role: &str,
        first_source: u16,
        sources: u16,
    ) -> Self {
        let mut child = Command::new(program)
            .args([
                &server.to_string(),
                &clients.to_string(),
                role,
                &first_source.to_string(),
                &sources.to_string(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start holdfast-clients");
        let output = BufReader::new(child.stdout.take().expect("standard output is piped"));
        let (sender, reports) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let report = serde_json::from_str(&line).expect("a report in JSON");
                if sender.send(report).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, reports, last: Totals(Value::Null) }
    }

    /// Waits until its report is as wanted, and returns it.
    ///
    /// # Panics
    /// When it ends, or patience does.
    pub fn wait_until(&mut self, what: &str, wanted: impl Fn(&Totals) -> bool) -> &Totals {
        let deadline = Instant::now() + PATIENCE;
        while self.last.0.is_null() || !wanted(&self.last) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left) {
                Ok(report) => self.last = Totals(report),
                Err(RecvTimeoutError::Timeout) => panic!("{what}: not within {PATIENCE:?}: {:?}", self.last),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the clients ended before {what}: {:?}", self.last)
                }
            }
        }
        &self.last
    }

    /// Its newest report, without waiting; `None` before the first.
    ///
    /// # Panics
    /// When it has ended.
    pub fn latest(&mut self) -> Option<&Totals> {
        loop {
            match self.reports.try_recv() {
                Ok(report) => self.last = Totals(report),
                Err(TryRecvError::Empty) => return (!self.last.0.is_null()).then_some(&self.last),
                Err(TryRecvError::Disconnected) => panic!("the clients ended: {:?}", self.last),
            }
        }
    }
}

impl Drop for ClientProcess {
    fn drop(&mut self) {
        // End of input asks it to end; killing makes sure of it.
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
