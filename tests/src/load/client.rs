//! One client: a socket and how far it has come. Says what became of it; keeps no totals.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};

use mio::net::TcpStream;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::conversation::{Conversation, Ended};
use super::pattern::Pattern;
use super::tally::Tally;
use super::upgrade::{self, Answer};
use super::wire::Role;

/// Writes of one flooding client in one readiness; then others have their turn.
const FLOOD_WRITES: usize = 8;

/// What all clients of a process share.
#[derive(Debug)]
pub struct Shared {
    /// Where to.
    pub server: SocketAddr,
    /// The upgrade request.
    pub request: Vec<u8>,
    /// What is said.
    pub pattern: Pattern,
    /// What an open client does.
    pub role: Role,
    /// The work has begun.
    pub running: bool,
}

/// How far a client has come.
#[derive(Debug)]
enum Stage {
    /// No socket: not yet, or no longer.
    Away,
    /// SYN sent.
    Connecting(TcpStream),
    /// Request sent, answer not complete.
    Upgrading(TcpStream),
    /// A WebSocket connection.
    Open(TcpStream),
}

/// What readiness led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Goes on as before.
    Same,
    /// Goes on as before, but could do more at once: wake it again.
    More,
    /// The connection is open now.
    Opened,
    /// The attempt is over, let in or not, and the socket closed.
    Decided,
    /// An open connection has ended.
    Lost,
}

/// What an event says, apart from its token.
#[derive(Debug, Clone, Copy)]
pub struct Readiness {
    /// The server has ended its side, or the connection is broken.
    pub over: bool,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    source: Option<IpAddr>,
    stage: Stage,
    began: u64,
    /// A response head that came in pieces.
    head: Vec<u8>,
    /// What is said once open.
    pub talk: Conversation,
}

impl Client {
    /// A client that is yet to connect; `number` decides where in the pattern it begins.
    pub fn new(source: Option<IpAddr>, number: u64, pattern: &Pattern) -> Self {
        let talk = Conversation::starting_at(pattern, number);
        Self { source, stage: Stage::Away, began: 0, head: Vec::new(), talk }
    }

    /// Whether its connection is open.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    /// The socket, if any.
    pub fn stream(&mut self) -> Option<&mut TcpStream> {
        match &mut self.stage {
            Stage::Away => None,
            Stage::Connecting(stream) | Stage::Upgrading(stream) | Stage::Open(stream) => Some(stream),
        }
    }

    /// Starts to connect; on loopback that often succeeds at once, and the request is sent already.
    pub fn connect(&mut self, shared: &Shared, now: u64) -> Result<(), String> {
        self.began = now;
        let (stream, connected) =
            open(shared.server, self.source).map_err(|error| explain("connect", &error))?;
        self.stage = if connected { request(stream, shared)? } else { Stage::Connecting(stream) };
        Ok(())
    }

    /// Acts on readiness.
    pub fn ready(
        &mut self,
        ready: Readiness,
        shared: &Shared,
        tally: &mut Tally,
        scratch: &mut [u8],
    ) -> Step {
        if let Stage::Connecting(_) = self.stage {
            match self.connected(shared) {
                Ok(()) => {}
                Err(what) => return self.fail(what, tally),
            }
        }
        match self.stage {
            Stage::Away | Stage::Connecting(_) => Step::Same,
            Stage::Upgrading(_) => self.upgrading(shared, tally, scratch),
            Stage::Open(_) => self.open(ready, shared, tally, scratch),
        }
    }

    /// Sends what is to be sent.
    pub fn send(&mut self, shared: &Shared, tally: &mut Tally) -> Step {
        let Stage::Open(stream) = &mut self.stage else { return Step::Same };
        match self.talk.send(&shared.pattern, stream) {
            Ok(_) => Step::Same,
            Err(error) => self.lose(explain("send", &error), tally),
        }
    }

    fn connected(&mut self, shared: &Shared) -> Result<(), String> {
        let Stage::Connecting(stream) = std::mem::replace(&mut self.stage, Stage::Away) else {
            return Ok(());
        };
        if let Some(error) = stream.take_error().map_err(|error| explain("connect", &error))? {
            return Err(explain("connect", &error));
        }
        self.stage = match stream.peer_addr() {
            Ok(_) => request(stream, shared)?,
            Err(_) => Stage::Connecting(stream),
        };
        Ok(())
    }

    fn upgrading(&mut self, shared: &Shared, tally: &mut Tally, scratch: &mut [u8]) -> Step {
        let Stage::Upgrading(stream) = &mut self.stage else { return Step::Same };
        let read = match stream.read(scratch) {
            Ok(0) => return self.fail("closed before the answer".to_owned(), tally),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Same,
            Err(error) => return self.fail(explain("upgrade", &error), tally),
        };
        let mut bytes = &scratch[..read];
        let mut head = std::mem::take(&mut self.head);
        if !head.is_empty() {
            head.extend_from_slice(bytes);
            bytes = &head;
        }
        match upgrade::answer(bytes) {
            Answer::Incomplete => {
                self.head = bytes.to_vec();
                Step::Same
            }
            Answer::Refused(status) => {
                *tally.counts.statuses.entry(status).or_default() += 1;
                self.stage = Stage::Away;
                Step::Decided
            }
            Answer::Nonsense(what) => self.fail(what.to_owned(), tally),
            Answer::Upgraded(length) => self.upgraded(&bytes[length..], shared, tally),
        }
    }

    fn upgraded(&mut self, rest: &[u8], shared: &Shared, tally: &mut Tally) -> Step {
        *tally.counts.statuses.entry(101).or_default() += 1;
        let Stage::Upgrading(stream) = std::mem::replace(&mut self.stage, Stage::Away) else {
            return Step::Same;
        };
        tally.done(self.began);
        if shared.role == Role::Handshake {
            return Step::Decided;
        }
        self.stage = Stage::Open(stream);
        match self.talk.hear_anything(rest, tally) {
            // A ping that came with the answer must not wait for the next event: there may be none.
            Ok(()) => match self.send(shared, tally) {
                Step::Same => Step::Opened,
                _ => Step::Decided,
            },
            Err(ended) => {
                self.lose(describe(&ended), tally);
                Step::Decided
            }
        }
    }

    fn open(&mut self, ready: Readiness, shared: &Shared, tally: &mut Tally, scratch: &mut [u8]) -> Step {
        if matches!(shared.role, Role::Flood { .. }) {
            return if ready.over {
                self.lose("cut off".to_owned(), tally)
            } else {
                self.flood(shared, tally)
            };
        }
        if let Err(what) = self.hear(shared, tally, scratch) {
            return self.lose(what, tally);
        }
        if let (Role::Echo { in_flight, rate: None, .. }, true) = (shared.role, shared.running) {
            self.talk.say(&shared.pattern, in_flight as u64 - self.talk.in_flight(), tally.now);
        }
        if self.talk.has_output() { self.send(shared, tally) } else { Step::Same }
    }

    /// Reads until the socket is empty. A short read says so too: with edge-triggered readiness, what comes
    /// later brings an event of its own.
    fn hear(&mut self, shared: &Shared, tally: &mut Tally, scratch: &mut [u8]) -> Result<(), String> {
        let Stage::Open(stream) = &mut self.stage else { return Ok(()) };
        loop {
            let read = match stream.read(scratch) {
                Ok(0) => return Err("end of stream".to_owned()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(explain("receive", &error)),
            };
            let bytes = &scratch[..read];
            let heard = match shared.role {
                Role::Echo { .. } | Role::Burst { .. } if shared.running => {
                    self.talk.hear_echo(&shared.pattern, bytes, tally)
                }
                _ => self.talk.hear_anything(bytes, tally),
            };
            heard.map_err(|ended| describe(&ended))?;
            if read < scratch.len() {
                return Ok(());
            }
        }
    }

    /// Sends without end, and never reads.
    fn flood(&mut self, shared: &Shared, tally: &mut Tally) -> Step {
        let Stage::Open(stream) = &mut self.stage else { return Step::Same };
        if !shared.running {
            return Step::Same;
        }
        match self.talk.pour(&shared.pattern, stream, FLOOD_WRITES) {
            Ok((messages, more)) => {
                tally.counts.units += messages;
                tally.counts.bytes += messages * tally.message_size();
                if more { Step::More } else { Step::Same }
            }
            Err(error) => self.lose(explain("send", &error), tally),
        }
    }

    fn fail(&mut self, what: String, tally: &mut Tally) -> Step {
        self.stage = Stage::Away;
        tally.failed(what);
        Step::Decided
    }

    fn lose(&mut self, what: String, tally: &mut Tally) -> Step {
        self.stage = Stage::Away;
        tally.lost(what);
        Step::Lost
    }
}

/// A socket on its way to the server; whether it has arrived.
fn open(server: SocketAddr, source: Option<IpAddr>) -> io::Result<(TcpStream, bool)> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(server), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        // Otherwise bind takes a port of its own at once, and all destinations share 28,232 of them (ip(7)).
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    let connected = match socket.connect(&server.into()) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => false,
        Err(error) => return Err(error),
    };
    Ok((TcpStream::from_std(socket.into()), connected))
}

/// Sends the request; a new socket's buffer takes it whole.
fn request(mut stream: TcpStream, shared: &Shared) -> Result<Stage, String> {
    match stream.write(&shared.request) {
        Ok(written) if written == shared.request.len() => Ok(Stage::Upgrading(stream)),
        Ok(_) => Err("request not taken whole: too long a --header?".to_owned()),
        Err(error) => Err(explain("upgrade", &error)),
    }
}

fn explain(doing: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            format!("{doing}: no free port left; use more --sources")
        }
        kind => format!("{doing}: {kind}"),
    }
}

fn describe(ended: &Ended) -> String {
    match ended {
        Ended::Closed(code) => format!("closed by the server with code {code}"),
        Ended::Mismatch => "what came back is not what was sent".to_owned(),
        Ended::Malformed => "the server broke the protocol".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::pattern::Kind;
    use super::*;

    #[test]
    fn a_ping_that_comes_with_the_answer_is_answered_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Shared {
            server: listener.local_addr().unwrap(),
            request: b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            pattern: Pattern::new(20, Kind::Text, 1, false),
            role: Role::Idle,
            running: false,
        };
        let mut client = Client::new(None, 0, &shared.pattern);
        client.connect(&shared, 0).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_nodelay(true).unwrap();
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {}\r\n\r\n\x09\x00",
            upgrade::ACCEPT
        );
        let answer: Vec<u8> =
            answer.into_bytes().into_iter().map(|byte| if byte == 9 { 0x89 } else { byte }).collect();
        server.write_all(&answer).unwrap();
        let (mut tally, mut scratch) = (Tally::new(20), vec![0; 4096]);
        let step = loop {
            let step = client.ready(Readiness { over: false }, &shared, &mut tally, &mut scratch);
            if step != Step::Same {
                break step;
            }
        };
        assert_eq!(step, Step::Opened);
        let mut received = vec![0; shared.request.len() + 6];
        server.read_exact(&mut received).unwrap();
        assert_eq!(received[shared.request.len()..][..2], [0x8a, 0x80], "an empty pong, masked");
    }
}
