//! The API with real sockets and a loop that answers what it was asked.

mod abuse;
mod answers;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use holdfast_shared::channels::rules::ChannelName;
use mio::{Events as Readiness, Poll, Token, Waker};

use super::*;
use crate::host::http::tests::{Client, HANG, Reply as HttpReply, tcp, unix};
use crate::host::http::{Deadlines, Listener};
use crate::operator::ctl::CtlError;
use crate::operator::ctl::channels::{ChannelsCommand, ask};

const KEY: &str = "the-key-of-the-tests";

/// A started API; the loop's end is the test's to read, or a thread's.
struct Rig {
    dir: tempfile::TempDir,
    address: SocketAddr,
    server: Option<Server>,
    waker: Arc<Waker>,
    inbox: Option<(Poll, Inbox)>,
    answering: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Rig {
    fn new(deadlines: Deadlines) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let local = UnixListener::bind(dir.path().join("api.sock")).unwrap();
        let public = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = public.local_addr().unwrap();
        let [local, public] =
            [local.into(), public.into()].map(|socket| Listener::from_descriptor(socket).unwrap());
        let keys = Keys::new([KEY]);
        let (server, inbox) =
            Server::start_with(local, Some(public), keys, Arc::clone(&waker), deadlines).unwrap();
        let inbox = Some((poll, inbox));
        Self { dir, address, server: Some(server), waker, inbox, answering: None }
    }

    /// With a loop that answers with what it was asked.
    fn echoing() -> Self {
        Self::new(Deadlines::default()).with_loop(echo)
    }

    /// Starts a loop that does nothing until it is woken, then answers everything waiting.
    fn with_loop(
        mut self,
        answer: impl Fn(Command) -> Result<Answer, ApiError> + std::marker::Send + 'static,
    ) -> Self {
        let (mut poll, inbox) = self.inbox.take().unwrap();
        let is_done = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&is_done);
        let thread = std::thread::spawn(move || {
            let mut readiness = Readiness::with_capacity(8);
            while !done.load(Ordering::SeqCst) {
                poll.poll(&mut readiness, None).unwrap();
                for call in inbox.take() {
                    call.reply.send(answer(call.command));
                }
            }
        });
        self.answering = Some((is_done, thread));
        self
    }

    /// The next call, for a test that is the loop itself.
    fn call(&mut self) -> Call {
        let (poll, inbox) = self.inbox.as_mut().unwrap();
        let mut readiness = Readiness::with_capacity(8);
        loop {
            if let Some(call) = inbox.take().next() {
                return call;
            }
            poll.poll(&mut readiness, Some(HANG)).unwrap();
        }
    }

    fn client(&self) -> Client<TcpStream> {
        tcp(self.address)
    }

    fn local(&self) -> Client<UnixStream> {
        unix(&self.dir.path().join("api.sock"))
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Whoever still waits for an answer hears that there will be none.
        drop(self.inbox.take());
        if let Some((is_done, thread)) = self.answering.take() {
            is_done.store(true, Ordering::SeqCst);
            self.waker.wake().unwrap();
            thread.join().unwrap();
        }
        if let Some(server) = self.server.take() {
            server.stop();
        }
    }
}

/// A request with the key.
fn request(method: &str, target: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

trait Asks {
    fn call(&mut self, method: &str, target: &str, body: &str) -> HttpReply;
}

impl<S: std::io::Read + std::io::Write> Asks for Client<S> {
    fn call(&mut self, method: &str, target: &str, body: &str) -> HttpReply {
        self.send(request(method, target, body).as_bytes());
        self.reply()
    }
}

/// What the refusal `reply` says: code and message.
fn refusal(reply: &HttpReply) -> (String, String) {
    let body: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
    let text = |name: &str| body["error"][name].as_str().unwrap().to_owned();
    (text("code"), text("message"))
}

/// Answers with what was asked, as far as an answer can hold it.
#[allow(clippy::needless_pass_by_value, reason = "commands are passed as the loop takes them")]
fn echo(command: Command) -> Result<Answer, ApiError> {
    let published =
        |data: &Data| Published { offset: 1, epoch: "e1".to_owned(), subscribers: data.bytes().len() as u64 };
    Ok(match command {
        Command::Publish(publish) if publish.channel.as_str() == "full" => {
            return Err(ApiError::new(409, "full", "no room"));
        }
        Command::Publish(publish) => Answer::Published(published(&publish.data)),
        Command::Broadcast(broadcast) => Answer::Results {
            results: broadcast
                .channels
                .into_iter()
                .map(|channel| Publish {
                    channel,
                    data: broadcast.data.clone(),
                    idempotency_key: None,
                    exclude: None,
                })
                .map(|publish| echo(Command::Publish(publish)).into())
                .collect(),
        },
        Command::Batch(commands) => {
            Answer::Results { results: commands.into_iter().map(|command| echo(command).into()).collect() }
        }
        Command::Events(query) => Answer::Events(Events { events: Vec::new(), next: query.after + 1 }),
        Command::Channel(name) => {
            let row = ChannelRow { name: name.into(), subscribers: 1, offset: 2, epoch: "e1".to_owned() };
            Answer::Channel(ChannelView { row, history: 2 })
        }
        _ => Answer::Reached(Reached { connections: 1 }),
    })
}

#[test]
fn ctl_asks_without_a_key() {
    let rig = Rig::echoing();
    let publish = |channel: &str, json| {
        let command = ChannelsCommand::Publish {
            channel: ChannelName::new(channel).unwrap(),
            data: Some("hi".to_owned()),
        };
        ask(rig.dir.path(), json, &command, std::io::empty())
    };
    assert_eq!(publish("a", false).unwrap(), "offset 1 in epoch e1, 4 subscribers");
    assert_eq!(publish("a", true).unwrap(), r#"{"offset":1,"epoch":"e1","subscribers":4}"#);
    let refused = publish("full", false).unwrap_err();
    assert!(matches!(refused, CtlError::Refused { status: 409, .. }) && refused.to_string() == "no room");
}
