//! Thousands of clients in one thread, on one mio event loop, driven step by step: `run_until` a fact about
//! them is true. Owns sockets and counts; what one client does with its socket is in `member`.

mod member;
mod stats;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Events, Interest, Poll, Token};
use nix::sys::resource::{Resource, getrlimit};

use crate::PATIENCE;
use crate::frame;
use crate::holdfast::Holdfast;
use crate::http::Response;
use crate::watch::Watched;
use member::Member;
pub use stats::{End, Phase, Stats};

/// Longest wait for readiness before the caller's fact is looked at again.
const TURN: Duration = Duration::from_millis(20);

/// Connection attempts under way at any time, unless a group asks for more.
const CONNECTING_AT_ONCE: usize = 1_000;

/// What a client does once it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Connects and says nothing at all.
    Silent,
    /// Upgrades, answers pings, and keeps quiet.
    Idle,
    /// Upgrades and keeps `in_flight` messages of `size` bytes travelling, checking every byte that comes
    /// back.
    Echo {
        /// Messages sent and not yet back.
        in_flight: u64,
        /// Bytes of each.
        size: usize,
    },
    /// Upgrades, and sends a message of `size` bytes in two parts when told to: see
    /// [`Clients::begin_messages`] and [`Clients::finish_messages`].
    InParts {
        /// Bytes of the message.
        size: usize,
    },
    /// Upgrades, then sends messages of `size` bytes as fast as the server takes them and never reads.
    Flood {
        /// Bytes of each message.
        size: usize,
    },
    /// Echoes like [`Role::Echo`], and reads only when told to: see [`Clients::sip`].
    Slow {
        /// Messages sent and not yet back.
        in_flight: u64,
        /// Bytes of each.
        size: usize,
    },
}

impl Role {
    /// It reads little or nothing: its socket's buffers are kept small, so that the server's own queue fills.
    fn reads_little(self) -> bool {
        matches!(self, Self::Flood { .. } | Self::Slow { .. })
    }
}

/// Clients that do the same.
#[derive(Debug, Clone)]
pub struct Group {
    /// How many.
    pub clients: usize,
    /// What they do.
    pub role: Role,
    /// The addresses they come from, used in turn.
    pub sources: Vec<IpAddr>,
    /// Header lines added to their upgrade requests, each ended by CRLF.
    pub headers: String,
    /// All connect in one event-loop turn.
    pub at_once: bool,
    /// Begin no new messages: see [`Clients::hold`].
    held: bool,
    /// The frame of [`Role::Flood`].
    flood: Vec<u8>,
}

impl Group {
    /// `clients` from 127.0.0.1.
    #[must_use]
    pub fn new(clients: usize, role: Role) -> Self {
        let sources = vec![IpAddr::from([127, 0, 0, 1])];
        let flood = match role {
            Role::Flood { size } => frame::masked(frame::FIN | frame::BINARY, &vec![0; size]),
            _ => Vec::new(),
        };
        Self { clients, role, sources, headers: String::new(), at_once: false, held: false, flood }
    }

    /// From these addresses, in turn.
    #[must_use]
    pub fn from(mut self, sources: impl IntoIterator<Item = IpAddr>) -> Self {
        self.sources = sources.into_iter().collect();
        self
    }

    /// All in one event-loop turn.
    #[must_use]
    pub fn at_once(mut self) -> Self {
        self.at_once = true;
        self
    }
}

/// The name of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupId(usize);

/// Many clients of one server.
pub struct Clients {
    server: SocketAddr,
    process: Option<Watched>,
    poll: Poll,
    events: Events,
    scratch: Vec<u8>,
    groups: Vec<Group>,
    stats: Vec<Stats>,
    members: Vec<Member>,
    waiting: VecDeque<usize>,
}

impl Clients {
    /// None yet, for `server`, which must go on running while they do.
    ///
    /// # Panics
    /// When no event queue can be had.
    #[must_use]
    pub fn of(server: &Holdfast) -> Self {
        Self { process: Some(server.process().clone()), ..Self::new(server.address()) }
    }

    /// None yet, for whatever listens on `server`.
    ///
    /// # Panics
    /// When no event queue can be had.
    #[must_use]
    pub fn new(server: SocketAddr) -> Self {
        Self {
            server,
            process: None,
            poll: Poll::new().expect("an event queue"),
            events: Events::with_capacity(1024),
            scratch: vec![0; 64 * 1024],
            groups: Vec::new(),
            stats: Vec::new(),
            members: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Adds a group; it connects in the turns to come.
    ///
    /// # Panics
    /// When this process may not open so many descriptors: spread the clients over processes then.
    pub fn add(&mut self, group: Group) -> GroupId {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("the descriptor limit");
        let needed = (self.members.len() + group.clients + 64) as u64;
        assert!(needed <= limit, "{needed} descriptors are needed in a process that may have {limit}");
        let id = self.groups.len();
        for n in 0..group.clients {
            self.waiting.push_back(self.members.len());
            self.members.push(Member::new(id, n as u64, group.sources[n % group.sources.len()]));
        }
        self.stats.push(Stats { waiting: group.clients, ..Stats::default() });
        self.groups.push(group);
        GroupId(id)
    }

    /// How a group is doing.
    #[must_use]
    pub fn stats(&self, group: GroupId) -> &Stats {
        &self.stats[group.0]
    }

    /// The refusals a group has read, complete.
    pub fn refusals(&self, group: GroupId) -> impl Iterator<Item = &Response> {
        self.of_group(group).filter_map(Member::refusal)
    }

    /// Longest time that a client with messages in flight has waited for the next one to come back, waits not
    /// over included.
    #[must_use]
    pub fn longest_stall(&self, group: GroupId) -> Duration {
        let now = Instant::now();
        let ongoing = self.of_group(group).map(|member| member.waiting_for(now)).max().unwrap_or_default();
        ongoing.max(self.stats(group).longest_stall)
    }

    /// As [`Clients::longest_stall`]; what was seen so far does not count any more.
    pub fn take_longest_stall(&mut self, group: GroupId) -> Duration {
        let longest = self.longest_stall(group);
        self.stats[group.0].longest_stall = Duration::ZERO;
        longest
    }

    /// `count` open clients of a group start the closing handshake with code 1000.
    ///
    /// # Panics
    /// When fewer are open.
    pub fn leave(&mut self, group: GroupId, count: usize) {
        self.each_open(group, count, Member::leave);
    }

    /// `count` open clients of a group vanish without a close frame.
    ///
    /// # Panics
    /// When fewer are open.
    pub fn vanish(&mut self, group: GroupId, count: usize) {
        self.each_open(group, count, |member, _, stats| member.vanish(stats));
    }

    /// Every open client of a group that sends in parts sends a message but for its last byte.
    pub fn begin_messages(&mut self, group: GroupId) {
        self.each_open(group, self.stats(group).open, Member::begin_message);
    }

    /// Every open client of a group that has begun a message sends its last byte.
    pub fn finish_messages(&mut self, group: GroupId) {
        self.each_open(group, self.stats(group).open, Member::finish_message);
    }

    /// Clients of a group send no new messages until [`Clients::release`].
    pub fn hold(&mut self, group: GroupId) {
        self.groups[group.0].held = true;
    }

    /// Ends a hold.
    pub fn release(&mut self, group: GroupId) {
        self.groups[group.0].held = false;
        self.each_open(group, self.stats(group).open, Member::go_on);
    }

    /// Messages of a group's open clients that were begun and are not back.
    #[must_use]
    pub fn in_flight(&self, group: GroupId) -> u64 {
        self.of_group(group).filter(|member| member.phase() == Phase::Open).map(Member::in_flight).sum()
    }

    /// Every open client of a group that reads slowly reads once, at most `bytes`.
    pub fn sip(&mut self, id: GroupId, bytes: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let most = bytes.min(scratch.len());
        self.each_open(id, self.stats(id).open, |member, group, stats| {
            member.sip(group, stats, &mut scratch[..most]);
        });
        self.scratch = scratch;
    }

    /// Clients of a group that ended as `which` says connect anew; returns how many.
    pub fn retry(&mut self, group: GroupId, which: impl Fn(End) -> bool) -> usize {
        let mut count = 0;
        for (index, member) in self.members.iter_mut().enumerate() {
            let wanted = matches!(member.phase(), Phase::Ended(end) if which(end));
            if wanted && member.group() == group.0 {
                member.start_over(&mut self.stats[group.0]);
                self.waiting.push_back(index);
                count += 1;
            }
        }
        count
    }

    /// Turns the event loop until `fact` is true.
    ///
    /// # Panics
    /// When the server ends, or patience does.
    pub fn run_until(&mut self, what: &str, mut fact: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !fact(self) {
            if let Some(status) = self.process.as_ref().and_then(Watched::exit) {
                panic!("the server ended ({status}) before {what}: {:?}", self.stats);
            }
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}: {:?}", self.stats);
            self.turn(TURN);
        }
    }

    /// One turn of the event loop: connects, waits for readiness at most `wait`, acts on it.
    ///
    /// # Panics
    /// When the event queue fails.
    pub fn turn(&mut self, wait: Duration) {
        self.connect_more();
        match self.poll.poll(&mut self.events, Some(wait)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => panic!("waiting for readiness: {error}"),
        }
        for event in &self.events {
            let member = &mut self.members[event.token().0];
            let (group, stats) = (&self.groups[member.group()], &mut self.stats[member.group()]);
            member.ready(Readiness::of(event), group, stats, &mut self.scratch);
        }
    }

    fn connect_more(&mut self) {
        while let Some(&index) = self.waiting.front() {
            let member = &mut self.members[index];
            let group_index = member.group();
            let group = &self.groups[group_index];
            let connecting: usize = self.stats.iter().map(|stats| stats.connecting).sum();
            if connecting >= CONNECTING_AT_ONCE && !group.at_once {
                return;
            }
            self.waiting.pop_front();
            if let Some(stream) = member.connect(self.server, group, &mut self.stats[group_index]) {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.poll.registry().register(stream, Token(index), interest).expect("register a socket");
            }
        }
    }

    fn of_group(&self, group: GroupId) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.group() == group.0)
    }

    fn each_open(&mut self, id: GroupId, count: usize, mut act: impl FnMut(&mut Member, &Group, &mut Stats)) {
        let (group, stats) = (&self.groups[id.0], &mut self.stats[id.0]);
        assert!(stats.open >= count, "{count} of {} open clients", stats.open);
        let open =
            self.members.iter_mut().filter(|member| member.group() == id.0 && member.phase() == Phase::Open);
        for member in open.take(count) {
            act(member, group, stats);
        }
    }
}

/// What an event says, apart from its token.
#[derive(Debug, Clone, Copy)]
struct Readiness {
    readable: bool,
    writable: bool,
    /// Error, or the server has ended its side: all there is to know for a client that never reads.
    over: bool,
}

impl Readiness {
    fn of(event: &Event) -> Self {
        Self {
            readable: event.is_readable(),
            writable: event.is_writable(),
            over: event.is_error() || event.is_read_closed(),
        }
    }
}
