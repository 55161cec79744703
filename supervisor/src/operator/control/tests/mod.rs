//! The HTTP side with real sockets and a loop that gives canned answers.

mod abuse;
mod admin;
mod answers;

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::bind::bind_control;
use super::*;
use crate::api::Command;
use crate::api::{
    Answer, CloseReport, ConfigEntry, ConnectionRow, Failure, Health, HealthStatus, LimitsReport, LimitsView,
    RebalanceReport, RebalancedSlot, Report, RestartReport, RestartedSlot, Totals, UpgradeReport,
    UpgradeState, WorkerRow,
};
use crate::host::http::tests::{Client, HANG, Reply, tcp, unix};
use crate::host::launch::InheritedSockets;

/// A started HTTP side; the loop's end is the test's to read, or a [`FakeLoop`]'s.
struct Rig {
    dir: tempfile::TempDir,
    control: Option<Control>,
    waker: Arc<Waker>,
    inbox: Option<(Poll, Receiver<Request>)>,
    fake: Option<FakeLoop>,
}

struct FakeLoop {
    done: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Rig {
    fn new(queue: usize, deadlines: Deadlines) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let (sender, receiver) = crossbeam_channel::bounded(queue);
        let admin = Some("127.0.0.1:0".parse().unwrap());
        let sockets = Sockets::bind(dir.path(), admin, InheritedSockets::default()).unwrap();
        let control = Control::start_with(sockets, sender, Arc::clone(&waker), "1.2.3", deadlines).unwrap();
        Self { dir, control: Some(control), waker, inbox: Some((poll, receiver)), fake: None }
    }

    /// With the deadlines of a real one and a loop that answers every request with [`canned`].
    fn answering() -> Self {
        Self::new(QUEUE, Deadlines::default()).with_loop(canned)
    }

    /// Starts a loop that does nothing until it is woken, then answers everything waiting.
    fn with_loop(mut self, answer: impl Fn(Command) -> Result<Answer, Failure> + Send + 'static) -> Self {
        let (mut poll, requests) = self.inbox.take().unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut events = Events::with_capacity(8);
            while !is_done.load(Ordering::SeqCst) {
                poll.poll(&mut events, None).unwrap();
                for request in requests.try_iter() {
                    request.reply.send(answer(request.command));
                }
            }
        });
        self.fake = Some(FakeLoop { done, thread });
        self
    }

    /// The next request, for a test that is the loop itself.
    fn take(&self) -> Request {
        self.inbox.as_ref().unwrap().1.recv_timeout(HANG).unwrap()
    }

    fn path(&self) -> PathBuf {
        socket_path(self.dir.path())
    }

    fn control(&mut self) -> &mut Control {
        self.control.as_mut().unwrap()
    }

    /// Lets the thread end.
    fn leave(&mut self) {
        self.control().leave();
        while !self.control().has_left() {
            std::thread::yield_now();
        }
    }

    fn start_again(&mut self) {
        let waker = Arc::clone(&self.waker);
        drop(self.control().start_again(waker, "1.2.3").unwrap());
    }

    fn client(&self) -> Client<UnixStream> {
        unix(&self.path())
    }

    /// A client whose request the loop has and does not answer.
    fn waiting_client(&self) -> (Client<UnixStream>, Request) {
        let mut client = self.client();
        client.send(b"GET /totals HTTP/1.1\r\n\r\n");
        (client, self.take())
    }

    fn admin_client(&mut self) -> Client<TcpStream> {
        let address = self.control().admin_address().unwrap();
        tcp(address)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            control.stop();
        }
        if let Some(FakeLoop { done, thread }) = self.fake.take() {
            done.store(true, Ordering::SeqCst);
            self.waker.wake().unwrap();
            thread.join().unwrap();
        }
    }
}

/// What a failed request says.
trait Explained {
    fn error(&self) -> String;
}

impl Explained for Reply {
    fn error(&self) -> String {
        serde_json::from_str::<Failure>(&self.body).unwrap().error
    }
}

#[allow(clippy::needless_pass_by_value, reason = "commands are passed as the loop takes them")]
fn canned(command: Command) -> Result<Answer, Failure> {
    Ok(match command {
        Command::Totals => {
            Answer::Totals(Box::new(Totals { connections: 7, silent_workers: vec![3], ..Totals::default() }))
        }
        Command::Workers => {
            Answer::Workers(vec![WorkerRow { slot: 1, pid: Some(9), ..WorkerRow::default() }])
        }
        Command::Config => {
            Answer::Config(vec![ConfigEntry { key: "workers".to_owned(), ..ConfigEntry::default() }])
        }
        Command::Connections(_) => Answer::Connections(vec![ConnectionRow {
            id: "7".to_owned(),
            address: "192.0.2.7".to_owned(),
            ..ConnectionRow::default()
        }]),
        Command::Close(_) => {
            Answer::Closing(CloseReport { found: 2, told: 1, remaining: 1, seconds_left: 0.5 })
        }
        Command::Explain(_) => Answer::Explanation(Box::default()),
        Command::Ban(_) | Command::Unban(_) | Command::Bans => Answer::Bans(Vec::new()),
        Command::Limits(order) if order.is_change() => Answer::LimitsChanged(LimitsReport::default()),
        Command::Limits(_) => Answer::Limits(LimitsView { max_connections: 500, ..LimitsView::default() }),
        Command::Health => Answer::Health(Health { status: HealthStatus::Full, ..Health::default() }),
        Command::Metrics => Answer::Metrics(Box::default()),
        Command::Reload => return Err(Failure::new(422, "holdfast.toml:3: one\nholdfast.toml:4: two")),
        Command::Restart { slot } => {
            let slots = vec![RestartedSlot { slot: slot.unwrap_or(1), kept: 12, ..RestartedSlot::default() }];
            Answer::Restart(RestartReport { slots })
        }
        Command::Upgrade { status: false } => Answer::UpgradeBegun(Box::default()),
        Command::Upgrade { status: true } => {
            Answer::Upgrade(Box::new(UpgradeReport { state: UpgradeState::Done, ..UpgradeReport::default() }))
        }
        Command::Rebalance => {
            let slots = vec![RebalancedSlot { slot: 3, connections: 40 }];
            Answer::Rebalance(RebalanceReport { moved: 60, slots })
        }
        Command::Drain(_) => {
            Answer::Done(Report { message: "draining".to_owned(), connections: 7, drain: None })
        }
        Command::Stop => Answer::Done(Report { message: "stopping".to_owned(), connections: 7, drain: None }),
    })
}
