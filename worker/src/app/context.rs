//! What an application can do, while it is told something about one client. Small messages to that client are
//! gathered and leave together; a large one leaves from where it lies.

use std::net::IpAddr;
use std::time::Duration;

use holdfast_shared::id::ConnectionId;
use holdfast_shared::ipc::settings::ChannelSettings;
use holdfast_shared::session::SessionError;
use holdfast_shared::table::Key;
use tungstenite::protocol::frame::coding::{Control, OpCode};

use crate::channels::Published;
use crate::websocket::frame;
use crate::websocket::{Message, MessageKind};

/// From here on another system call costs less than a copy.
const LARGE: usize = 4096;

/// Gathered messages leave when there are this many bytes of them.
const GATHERED_LIMIT: usize = 64 * 1024;

/// The worker, as far as applications reach.
pub(crate) trait Host {
    /// The client that the call is about.
    fn key(&self) -> Key;
    fn id(&self) -> ConnectionId;
    fn address(&self) -> IpAddr;
    /// Writes whole frames to that client, if it is open.
    fn write(&mut self, frames: &[u8]);
    /// Sets that client's timer.
    fn set_timer(&mut self, after: Option<Duration>);
    fn session(&self) -> &[u8];
    fn set_session(&mut self, session: &[u8]) -> Result<(), SessionError>;
    fn find(&mut self, id: ConnectionId) -> Option<Key>;
    fn channels(&self) -> Option<&ChannelSettings>;
    /// Tells the hub of that client, and what its session asks for.
    fn join(&mut self);
    fn has_joined(&self) -> bool;
    /// Publishes to that client's channel.
    fn publish(&mut self, kind: MessageKind, data: &[u8]) -> Published;
    fn may_broadcast(&self) -> bool;
    /// Writes a message to any client. Says whether it is open.
    fn send_to(&mut self, client: Key, kind: MessageKind, payload: &[u8]) -> bool;
    /// Closes any client. Says whether it was open.
    fn close(&mut self, client: Key, code: u16, reason: &str) -> bool;
}

/// One client, and through it the worker.
pub struct Context<'a> {
    host: &'a mut dyn Host,
    gathered: &'a mut Vec<u8>,
    sent: u64,
    is_closed: bool,
    subprotocol: Option<String>,
}

impl<'a> Context<'a> {
    /// `gathered` is empty, and will be again after [`Context::finish`].
    pub(crate) fn new(host: &'a mut dyn Host, gathered: &'a mut Vec<u8>) -> Self {
        Self { host, gathered, sent: 0, is_closed: false, subprotocol: None }
    }

    /// The client, for writing to it when another one is spoken of.
    #[must_use]
    pub fn key(&self) -> Key {
        self.host.key()
    }

    /// The client's name, which no other has in the whole cluster, and which it keeps when it moves.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.host.id()
    }

    /// Where the client is, trusted proxies looked through.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.host.address()
    }

    /// Answers a request with this subprotocol, whatever its route would choose. Only one that the client offers goes
    /// into the answer.
    pub fn choose_subprotocol(&mut self, name: &str) {
        self.subprotocol = Some(name.to_owned());
    }

    pub(crate) fn take_subprotocol(&mut self) -> Option<String> {
        self.subprotocol.take()
    }

    /// Sends one message. Text must be UTF-8, which the client checks.
    pub fn send(&mut self, kind: MessageKind, payload: &[u8]) {
        self.sent += 1;
        frame::append_frame(self.gathered, kind.into(), payload);
        self.flush_if_many();
    }

    /// Sends a message back as it came.
    pub fn send_back(&mut self, message: Message<'_>) {
        self.sent += 1;
        let reply = message.into_reply();
        if reply.len() >= LARGE {
            self.flush();
            self.host.write(reply);
        } else {
            self.gathered.extend_from_slice(reply);
            self.flush_if_many();
        }
    }

    /// Closes the client, behind what was sent. `code` is one that RFC 6455, section 7.4, lets a server send.
    pub fn close(&mut self, code: u16, reason: &str) {
        self.flush();
        self.is_closed = true;
        self.host.close(self.host.key(), code, reason);
    }

    /// Has [`App::timer`](super::App::timer) called `after` this time, or never, instead of at the time set
    /// before. Outlives the worker.
    pub fn set_timer(&mut self, after: Option<Duration>) {
        self.host.set_timer(after);
    }

    /// What is kept for the client; empty if nothing is.
    #[must_use]
    pub fn session(&self) -> &[u8] {
        self.host.session()
    }

    /// Keeps `session` for the client in place of what was kept before, until it is closed: whatever becomes of
    /// the worker, and wherever the client moves. Empty keeps nothing.
    ///
    /// # Errors
    /// When it is longer than [`MAX_SESSION`](holdfast_shared::session::MAX_SESSION), or there is no memory for
    /// it. What was kept before is kept still.
    pub fn set_session(&mut self, session: &[u8]) -> Result<(), SessionError> {
        self.host.set_session(session)
    }

    /// The client of this name, if this worker serves it. The first call costs a look at every client, and from
    /// then on there is an index.
    pub fn find(&mut self, id: ConnectionId) -> Option<Key> {
        self.host.find(id)
    }

    /// What holds for channels; `None` in a server without them.
    pub(crate) fn channels(&self) -> Option<&ChannelSettings> {
        self.host.channels()
    }

    /// The client joins, and asks for the channel in its session.
    pub(crate) fn join(&mut self) {
        self.host.join();
    }

    /// Has the client joined?
    pub(crate) fn has_joined(&self) -> bool {
        self.host.has_joined()
    }

    /// Publishes to the client's channel.
    pub(crate) fn publish(&mut self, kind: MessageKind, data: &[u8]) -> Published {
        self.host.publish(kind, data)
    }

    /// Whether one message may be sent to many clients: not while the server is degraded, unless
    /// `degraded.allow_broadcast` says so. Up to the application.
    #[must_use]
    pub fn may_broadcast(&self) -> bool {
        self.host.may_broadcast()
    }

    /// Sends one message to any client of this worker, at once. Says whether it is open.
    pub fn send_to(&mut self, client: Key, kind: MessageKind, payload: &[u8]) -> bool {
        if client == self.host.key() {
            self.send(kind, payload);
            return !self.is_closed;
        }
        self.host.send_to(client, kind, payload)
    }

    /// Closes any client of this worker. Says whether it was open.
    pub fn close_client(&mut self, client: Key, code: u16, reason: &str) -> bool {
        if client == self.host.key() {
            self.close(code, reason);
            return true;
        }
        self.host.close(client, code, reason)
    }

    /// Did the application close the client?
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Sends a control frame, which is not the application's and not counted as a message.
    pub(crate) fn control(&mut self, opcode: Control, payload: &[u8]) {
        frame::append_frame(self.gathered, OpCode::Control(opcode), payload);
        self.flush_if_many();
    }

    /// Sends what was gathered. Returns how many messages there were.
    pub(crate) fn finish(mut self) -> u64 {
        self.flush();
        self.sent
    }

    fn flush_if_many(&mut self) {
        if self.gathered.len() >= GATHERED_LIMIT {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.gathered.is_empty() {
            self.host.write(self.gathered);
            self.gathered.clear();
        }
    }
}
