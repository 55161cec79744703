//! One client of many: its socket, its place in the conversation, and what it does at every readiness.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::{End, Group, Phase, Readiness, Role, Stats};
use crate::client::{socket_from, upgrade_request};
use crate::frame::{self, Frame};
use crate::http::Response;

/// Receive buffer and segment size of a client that reads little: small, so that the server's own queue fills
/// and not the kernel's. Linux sizes the server's send buffer by the segment size, which is 64 KiB on the
/// loopback otherwise.
const FLOOD_RECEIVE_BUFFER: usize = 4096;
const FLOOD_SEGMENT: u32 = 1000;

pub(super) struct Member {
    group: usize,
    number: u64,
    source: IpAddr,
    phase: Phase,
    stream: Option<TcpStream>,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    /// How far it is in the message it sends again and again.
    flooded: usize,
    sent: u64,
    received: u64,
    /// The last byte of a message that was begun.
    held_back: Option<u8>,
    /// Pongs for pings that came meanwhile: a frame is not interrupted (RFC 6455, section 5.4).
    pongs: Vec<u8>,
    last_echo: Option<Instant>,
    refusal: Option<Response>,
}

impl Member {
    pub(super) fn new(group: usize, number: u64, source: IpAddr) -> Self {
        Self {
            group,
            number,
            source,
            phase: Phase::Waiting,
            stream: None,
            input: Vec::new(),
            output: Vec::new(),
            written: 0,
            flooded: 0,
            sent: 0,
            received: 0,
            held_back: None,
            pongs: Vec::new(),
            last_echo: None,
            refusal: None,
        }
    }

    pub(super) fn group(&self) -> usize {
        self.group
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn refusal(&self) -> Option<&Response> {
        self.refusal.as_ref()
    }

    /// How long it has been waiting for its next echo.
    pub(super) fn waiting_for(&self, now: Instant) -> Duration {
        match (self.phase, self.last_echo) {
            (Phase::Open, Some(since)) if self.in_flight() > 0 => now.duration_since(since),
            _ => Duration::ZERO,
        }
    }

    /// Back to the beginning, as a new client.
    pub(super) fn start_over(&mut self, stats: &mut Stats) {
        stats.moved(self.phase, Phase::Waiting);
        *self = Self::new(self.group, self.number, self.source);
    }

    /// Starts to connect; the socket is there to be registered unless that failed.
    pub(super) fn connect(
        &mut self,
        server: SocketAddr,
        group: &Group,
        stats: &mut Stats,
    ) -> Option<&mut TcpStream> {
        match connect(self.source, server, group.role) {
            Ok(stream) => {
                self.enter(Phase::Connecting, stats);
                self.stream = Some(stream);
            }
            Err(_) => self.end(End::Failed, stats),
        }
        self.stream.as_mut()
    }

    /// Sends a close frame, and is gone when the server answers it.
    pub(super) fn leave(&mut self, group: &Group, stats: &mut Stats) {
        self.output.extend(frame::masked(frame::FIN | frame::CLOSE, &frame::close_payload(1000, "")));
        self.enter(Phase::Leaving, stats);
        self.write(group, stats);
    }

    /// Sends a message but for its last byte.
    pub(super) fn begin_message(&mut self, group: &Group, stats: &mut Stats) {
        let Role::InParts { size } = group.role else { return };
        let mut frame = frame::masked(frame::FIN | frame::BINARY, &message(self.number, self.sent, size));
        self.held_back = frame.pop();
        self.sent += 1;
        self.output.extend(frame);
        self.write(group, stats);
    }

    /// Sends the last byte of a message that was begun.
    pub(super) fn finish_message(&mut self, group: &Group, stats: &mut Stats) {
        self.output.extend(self.held_back.take());
        self.output.extend(std::mem::take(&mut self.pongs));
        self.write(group, stats);
    }

    /// Messages begun and not back.
    pub(super) fn in_flight(&self) -> u64 {
        self.sent - self.received
    }

    /// After a hold.
    pub(super) fn go_on(&mut self, group: &Group, stats: &mut Stats) {
        if self.in_flight() == 0 {
            self.last_echo = None;
        }
        self.fill_flight(group);
        self.write(group, stats);
    }

    /// Reads once.
    pub(super) fn sip(&mut self, group: &Group, stats: &mut Stats, scratch: &mut [u8]) {
        self.read_once(group, stats, scratch);
    }

    /// Drops the connection.
    pub(super) fn vanish(&mut self, stats: &mut Stats) {
        self.end(End::Left, stats);
    }

    pub(super) fn ready(
        &mut self,
        readiness: Readiness,
        group: &Group,
        stats: &mut Stats,
        scratch: &mut [u8],
    ) {
        if self.phase == Phase::Connecting {
            self.connected(group, stats);
        }
        if readiness.readable || readiness.over {
            self.read(group, stats, scratch);
        }
        if matches!((self.phase, group.role), (Phase::Open, Role::Flood { .. })) && readiness.over {
            self.end(End::Lost, stats);
        }
        if readiness.writable {
            self.write(group, stats);
        }
    }

    fn connected(&mut self, group: &Group, stats: &mut Stats) {
        let Some(stream) = &self.stream else { return };
        match (stream.take_error(), stream.peer_addr()) {
            (Ok(None), Ok(_)) => {}
            // Readiness without a result: the attempt goes on.
            (Ok(None), Err(error)) if error.kind() == io::ErrorKind::NotConnected => return,
            _ => return self.end(End::Failed, stats),
        }
        if group.role != Role::Silent {
            self.output = upgrade_request(&group.headers);
        }
        self.enter(Phase::Upgrading, stats);
    }

    /// Reads until there is no more, as edge-triggered readiness demands; who reads little stops once it is
    /// in.
    fn read(&mut self, group: &Group, stats: &mut Stats, scratch: &mut [u8]) {
        while !(group.role.reads_little() && self.phase == Phase::Open)
            && self.read_once(group, stats, scratch)
        {}
        if self.input.is_empty() {
            self.input = Vec::new();
        }
    }

    /// Whether there may be more.
    fn read_once(&mut self, group: &Group, stats: &mut Stats, scratch: &mut [u8]) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        match stream.read(scratch) {
            Ok(0) => self.cut(stats),
            Ok(length) => {
                self.input.extend_from_slice(&scratch[..length]);
                self.digest(group, stats);
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(_) => self.cut(stats),
        }
        false
    }

    /// The connection has ended without a word that explains it.
    fn cut(&mut self, stats: &mut Stats) {
        match self.phase {
            Phase::Open => self.end(End::Lost, stats),
            Phase::Leaving => self.end(End::Left, stats),
            Phase::Waiting | Phase::Connecting | Phase::Upgrading => self.end(End::Failed, stats),
            Phase::Ended(_) => {}
        }
    }

    fn digest(&mut self, group: &Group, stats: &mut Stats) {
        if self.phase == Phase::Upgrading {
            let Some((response, length)) = Response::parse(&self.input) else { return };
            self.input.drain(..length);
            if response.status == 101 {
                self.enter(Phase::Open, stats);
                self.fill_flight(group);
                self.write(group, stats);
            } else {
                let status = response.status;
                self.refusal = Some(response);
                return self.end(End::Refused(status), stats);
            }
        }
        if let Role::Flood { .. } = group.role {
            // What came along with the 101, a ping perhaps, goes unread like the rest.
            self.input.clear();
            return;
        }
        while matches!(self.phase, Phase::Open | Phase::Leaving) {
            let Some((frame, length)) = Frame::parse(&self.input) else { return };
            self.input.drain(..length);
            self.received(&frame, group, stats);
        }
    }

    fn received(&mut self, frame: &Frame, group: &Group, stats: &mut Stats) {
        match frame.opcode() {
            frame::CLOSE if self.phase == Phase::Leaving => self.end(End::Left, stats),
            frame::CLOSE => self.end(End::Closed(frame.close_code()), stats),
            frame::PING => {
                let pong = frame::masked(frame::FIN | frame::PONG, &frame.payload);
                let queue = if self.held_back.is_some() { &mut self.pongs } else { &mut self.output };
                queue.extend(pong);
                self.write(group, stats);
            }
            frame::BINARY => self.echoed(&frame.payload, group, stats),
            _ => panic!("client {} of group {} got {frame:?}", self.number, self.group),
        }
    }

    fn echoed(&mut self, payload: &[u8], group: &Group, stats: &mut Stats) {
        let (Role::Echo { size, .. } | Role::Slow { size, .. } | Role::InParts { size }) = group.role else {
            panic!("a message nobody sent: {payload:?}")
        };
        let expected = message(self.number, self.received, size);
        if payload != expected {
            let place = payload.iter().zip(&expected).position(|(ours, theirs)| ours != theirs);
            let (came, sent) = (payload.len(), expected.len());
            panic!(
                "echo {} of client {} ({:?}) came back changed: {came} bytes of {sent}, the first other one at {place:?}",
                self.received, self.number, group.role
            );
        }
        let now = Instant::now();
        stats.longest_stall = stats.longest_stall.max(self.waiting_for(now));
        self.received += 1;
        stats.echoes += 1;
        self.last_echo = Some(now);
        if self.phase == Phase::Open {
            self.fill_flight(group);
            self.write(group, stats);
        }
    }

    /// Queues what the role has to send now.
    fn fill_flight(&mut self, group: &Group) {
        let (Role::Echo { in_flight, size } | Role::Slow { in_flight, size }) = group.role else { return };
        if group.held {
            return;
        }
        self.last_echo.get_or_insert_with(Instant::now);
        while self.sent - self.received < in_flight {
            let payload = message(self.number, self.sent, size);
            self.output.extend(frame::masked(frame::FIN | frame::BINARY, &payload));
            self.sent += 1;
        }
    }

    /// Writes until there is no more, or the socket takes no more; a flooding client always has more.
    fn write(&mut self, group: &Group, stats: &mut Stats) {
        loop {
            if self.written == self.output.len() {
                self.output = Vec::new();
                self.written = 0;
            }
            let bytes = match (self.phase, group.role) {
                (Phase::Open, Role::Flood { .. }) => &group.flood[self.flooded..],
                _ if self.output.is_empty() => return,
                _ => &self.output[self.written..],
            };
            let Some(stream) = &mut self.stream else { return };
            match stream.write(bytes) {
                Ok(length) if self.output.is_empty() => {
                    self.flooded = (self.flooded + length) % group.flood.len();
                }
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Only a client that never reads ends here; the others read what the server had to say first.
                Err(_) if matches!(group.role, Role::Flood { .. }) => return self.cut(stats),
                Err(_) => return,
            }
        }
    }

    fn end(&mut self, end: End, stats: &mut Stats) {
        self.enter(Phase::Ended(end), stats);
        // Closing the last descriptor takes the socket out of the event queue.
        self.stream = None;
        self.input = Vec::new();
        self.output = Vec::new();
        self.written = 0;
    }

    fn enter(&mut self, phase: Phase, stats: &mut Stats) {
        stats.moved(self.phase, phase);
        self.phase = phase;
    }
}

fn connect(source: IpAddr, server: SocketAddr, role: Role) -> io::Result<TcpStream> {
    let socket = socket_from(source)?;
    if role.reads_little() {
        socket.set_recv_buffer_size(FLOOD_RECEIVE_BUFFER)?;
        socket.set_tcp_mss(FLOOD_SEGMENT)?;
    }
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

/// The `sequence`-th message of a client: no two are alike.
fn message(client: u64, sequence: u64, size: usize) -> Vec<u8> {
    let seed = client.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(sequence).to_le_bytes();
    let mut step = sequence;
    seed.into_iter()
        .cycle()
        .take(size)
        .map(|byte| {
            step = step.wrapping_add(1);
            byte ^ step.to_le_bytes()[0]
        })
        .collect()
}
