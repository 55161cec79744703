//! One client: a socket, how far it has come, and what it does at every readiness. Counts where it is in its
//! group's numbers; decides nothing.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

use mio::net::TcpStream;

use super::conversation::{Conversation, Ended};
use super::stats::Stats;
use super::{Group, Role};
use crate::client::socket_from;
use crate::handshake::{self, Answer};

/// Writes of one flooding client in one readiness; then others have their turn.
const FLOOD_WRITES: usize = 8;

/// Receive buffer and segment size of a client that reads little: small, so that the server's own queue fills
/// and not the kernel's. Linux sizes the server's send buffer by the segment size, which is 64 KiB on the
/// loopback otherwise.
const SMALL_RECEIVE_BUFFER: usize = 4096;
const SMALL_SEGMENT: u32 = 1000;

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not begun.
    Waiting,
    /// TCP's handshake is under way.
    Connecting,
    /// Connected, and without an answer from the server.
    Upgrading,
    /// In: the server said 101.
    Open,
    /// It has sent its close frame and waits for the server's.
    Leaving,
    /// Over.
    Ended(End),
}

/// How a client ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// No connection, or one that ended before a complete answer.
    Failed(Fault),
    /// A complete HTTP response other than 101.
    Refused(u16),
    /// It wanted to go, and went.
    Left,
    /// The server sent a close frame with this code (1005: without one).
    Closed(u16),
    /// An open connection ended without a close frame.
    Lost(Fault),
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A system call, in doing this.
    Call(&'static str, io::ErrorKind),
    /// The server has ended the connection.
    EndOfStream,
    /// The server's answer to the upgrade request.
    Answer(&'static str),
    /// What came back is not what was sent, from this position of the stream on.
    Mismatch(u64),
    /// The server broke the protocol.
    Malformed,
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(doing, io::ErrorKind::AddrNotAvailable) => {
                write!(f, "{doing}: no free port left; use more --sources")
            }
            Self::Call(doing, kind) => write!(f, "{doing}: {kind}"),
            Self::EndOfStream => f.write_str("end of stream"),
            Self::Answer(what) => f.write_str(what),
            Self::Mismatch(_) => f.write_str("what came back is not what was sent"),
            Self::Malformed => f.write_str("the server broke the protocol"),
        }
    }
}

impl Fault {
    fn call(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Call(doing, error.kind())
    }

    /// Whether the server did what no server may do.
    pub(super) fn is_wrong(self) -> bool {
        matches!(self, Self::Answer(_) | Self::Mismatch(_) | Self::Malformed)
    }
}

impl From<Ended> for End {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Closed(code) => Self::Closed(code),
            Ended::Mismatch(at) => Self::Lost(Fault::Mismatch(at)),
            Ended::Malformed => Self::Lost(Fault::Malformed),
        }
    }
}

/// One client.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its group's position.
    pub(super) group: usize,
    /// Decides where in the pattern it begins.
    number: u64,
    source: Option<IpAddr>,
    pub(super) phase: Phase,
    stream: Option<TcpStream>,
    began: u64,
    /// A response that is not whole yet, or a refusal.
    pub(super) head: Vec<u8>,
    pub(super) talk: Conversation,
}

impl Connection {
    pub(super) fn new(group: usize, number: u64, source: Option<IpAddr>) -> Self {
        Self {
            group,
            number,
            source,
            phase: Phase::Waiting,
            stream: None,
            began: 0,
            head: Vec::new(),
            talk: Conversation::default(),
        }
    }

    /// Back to the beginning, as a new client.
    pub(super) fn start_over(&mut self) {
        *self = Self::new(self.group, self.number, self.source);
    }

    /// The socket, if any.
    pub(super) fn stream(&mut self) -> Option<&mut TcpStream> {
        self.stream.as_mut()
    }

    /// Starts to connect; on loopback that often succeeds at once, and the request is sent already.
    pub(super) fn connect(&mut self, server: SocketAddr, group: &Group, stats: &mut Stats) {
        self.began = stats.now;
        self.talk = Conversation::starting_at(&group.pattern, self.number);
        match open(server, self.source, group.role).map_err(Fault::call("connect")) {
            Ok((stream, connected)) => {
                self.stream = Some(stream);
                self.enter(Phase::Connecting, stats);
                if connected {
                    self.request(group, stats);
                }
            }
            Err(fault) => self.end(End::Failed(fault), stats),
        }
    }

    /// Acts on readiness; `over`: the server has ended its side, or the connection is broken. Whether it could do
    /// more at once: wake it again then.
    pub(super) fn ready(&mut self, over: bool, group: &Group, stats: &mut Stats, scratch: &mut [u8]) -> bool {
        if self.phase == Phase::Connecting {
            self.connected(group, stats);
            if self.phase == Phase::Connecting {
                return false;
            }
        }
        while !(self.phase == Phase::Open && group.role.reads_little()) {
            match self.read(group, stats, scratch) {
                // A short read says that the socket is empty: what comes later brings an event of its own. Only
                // the end may have been announced together with what was read.
                Some(read) if read == scratch.len() || over => {}
                _ => break,
            }
        }
        if over && self.phase == Phase::Open && matches!(group.role, Role::Flood { .. }) {
            self.end(End::Lost(Fault::EndOfStream), stats);
        }
        self.work(group, stats)
    }

    /// Begins what its role demands, and sends what is to be sent. Whether it could do more at once.
    pub(super) fn work(&mut self, group: &Group, stats: &mut Stats) -> bool {
        if self.phase == Phase::Open && group.running {
            match group.role {
                Role::Flood { .. } => return self.flood(group, stats),
                Role::Echo { in_flight, .. } | Role::Slow { in_flight, .. } if !group.paced => {
                    self.talk.say(&group.pattern, in_flight - self.talk.in_flight(), stats.now);
                }
                _ => {}
            }
        }
        if self.talk.has_output()
            && let Some(stream) = &mut self.stream
            && let Err(error) = self.talk.send(&group.pattern, stream)
        {
            // What the server said before it ended the connection comes first: the next read finds the end.
            if !matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
                self.cut(Fault::call("send")(error), stats);
            }
        }
        false
    }

    /// Sends a close frame, and is gone when the server answers it.
    pub(super) fn leave(&mut self, group: &Group, stats: &mut Stats) {
        self.talk.close(&group.pattern, 1000);
        self.enter(Phase::Leaving, stats);
        self.work(group, stats);
    }

    /// Over, as `end` says.
    pub(super) fn end(&mut self, end: End, stats: &mut Stats) {
        self.enter(Phase::Ended(end), stats);
        // Closing the last descriptor takes the socket out of the event queue.
        self.stream = None;
    }

    /// Reads once and acts on it: how many bytes there were, `None` when there is no more.
    pub(super) fn read(&mut self, group: &Group, stats: &mut Stats, scratch: &mut [u8]) -> Option<usize> {
        let stream = self.stream.as_mut()?;
        match stream.read(scratch) {
            Ok(0) => self.cut(Fault::EndOfStream, stats),
            Ok(read) => {
                self.received(&scratch[..read], group, stats);
                return Some(read);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.cut(Fault::call("receive")(error), stats),
        }
        None
    }

    fn connected(&mut self, group: &Group, stats: &mut Stats) {
        let Some(stream) = &self.stream else { return };
        match (stream.take_error(), stream.peer_addr()) {
            (Ok(None), Ok(_)) => self.request(group, stats),
            // Readiness without a result: the attempt goes on.
            (Ok(None), Err(_)) => {}
            (Ok(Some(error)) | Err(error), _) => self.cut(Fault::call("connect")(error), stats),
        }
    }

    /// Sends the request; a new socket's buffer takes it whole.
    fn request(&mut self, group: &Group, stats: &mut Stats) {
        let Some(stream) = &mut self.stream else { return };
        stats.moved(self.phase, Phase::Upgrading);
        self.phase = Phase::Upgrading;
        match stream.write(&group.request) {
            Ok(written) if written == group.request.len() => {}
            Ok(_) => self.cut(Fault::Answer("request not taken whole: too long a --header?"), stats),
            Err(error) => self.cut(Fault::call("upgrade")(error), stats),
        }
    }

    fn received(&mut self, bytes: &[u8], group: &Group, stats: &mut Stats) {
        if self.phase == Phase::Upgrading {
            let mut head = std::mem::take(&mut self.head);
            let bytes = if head.is_empty() {
                bytes
            } else {
                head.extend_from_slice(bytes);
                &head
            };
            match handshake::answer(bytes) {
                Answer::Incomplete => self.head = bytes.to_vec(),
                Answer::Refused(status) => {
                    self.head = bytes.to_vec();
                    self.end(End::Refused(status), stats);
                }
                Answer::Nonsense(what) => self.cut(Fault::Answer(what), stats),
                Answer::Upgraded(length) => {
                    self.enter(Phase::Open, stats);
                    stats.let_in(self.began);
                    match group.role {
                        Role::Handshake => self.end(End::Left, stats),
                        _ => self.hear(&bytes[length..], group, stats),
                    }
                }
            }
        } else {
            self.hear(bytes, group, stats);
        }
    }

    fn hear(&mut self, bytes: &[u8], group: &Group, stats: &mut Stats) {
        let heard = match group.running || group.strict {
            true => self.talk.hear_echo(&group.pattern, bytes, stats),
            false => self.talk.hear_anything(bytes, stats),
        };
        match heard {
            Ok(()) => {}
            Err(Ended::Closed(_)) if self.phase == Phase::Leaving => self.end(End::Left, stats),
            Err(ended) => self.end(ended.into(), stats),
        }
    }

    /// Sends without end, and never reads.
    fn flood(&mut self, group: &Group, stats: &mut Stats) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        match self.talk.pour(&group.pattern, stream, FLOOD_WRITES) {
            Ok((messages, more)) => {
                stats.took(messages);
                more
            }
            Err(error) => {
                self.cut(Fault::call("send")(error), stats);
                false
            }
        }
    }

    /// The connection has ended without a word that explains it.
    fn cut(&mut self, fault: Fault, stats: &mut Stats) {
        match self.phase {
            Phase::Open => self.end(End::Lost(fault), stats),
            Phase::Leaving => self.end(End::Left, stats),
            Phase::Waiting | Phase::Connecting | Phase::Upgrading => self.end(End::Failed(fault), stats),
            Phase::Ended(_) => {}
        }
    }

    fn enter(&mut self, phase: Phase, stats: &mut Stats) {
        stats.moved(self.phase, phase);
        self.phase = phase;
    }
}

/// A socket on its way to the server; whether it has arrived.
fn open(server: SocketAddr, source: Option<IpAddr>, role: Role) -> io::Result<(TcpStream, bool)> {
    let socket = socket_from(source, server)?;
    if role.reads_little() {
        socket.set_recv_buffer_size(SMALL_RECEIVE_BUFFER)?;
        socket.set_tcp_mss(SMALL_SEGMENT)?;
    }
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    let connected = match socket.connect(&server.into()) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => false,
        Err(error) => return Err(error),
    };
    Ok((TcpStream::from_std(socket.into()), connected))
}
