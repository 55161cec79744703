//! Thousands of clients in one thread, on one mio event loop. Owns their sockets and counts; what one client does
//! with its socket is in `connection`, what it says in `conversation`. Tests drive it step by step: `run_until` a
//! fact about them is true. The load generator has a loop of its own.

mod connection;
mod conversation;
mod group;
mod latencies;
mod pattern;
mod stats;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::resource::{Resource, getrlimit};

use crate::PATIENCE;
use crate::holdfast::Holdfast;
use crate::http::Response;
use crate::watch::Watched;
use connection::Connection;
pub use connection::{End, Fault, Phase};
pub use group::{Group, Role};
pub use latencies::Latencies;
pub use pattern::{Kind, Pattern};
pub use stats::Stats;

/// Longest wait for readiness before the caller's fact is looked at again.
const TURN: Duration = Duration::from_millis(20);

/// Attempts to connect under way at any time, and begun in one turn, unless a group asks for more.
const CONNECTING_AT_ONCE: usize = 1_000;

const EVENTS_PER_TURN: usize = 1024;
const SCRATCH_SIZE: usize = 256 * 1024;

/// The name of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupId(usize);

/// Many clients of one server.
pub struct Clients {
    server: SocketAddr,
    process: Option<Watched>,
    poll: Poll,
    events: Option<Events>,
    scratch: Vec<u8>,
    clock: Instant,
    groups: Vec<Group>,
    stats: Vec<Stats>,
    members: Vec<Connection>,
    waiting: VecDeque<usize>,
    /// Attempts to connect that may be under way at any time.
    pub most_connecting: usize,
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
            events: Some(Events::with_capacity(EVENTS_PER_TURN)),
            scratch: vec![0; SCRATCH_SIZE],
            clock: Instant::now(),
            groups: Vec::new(),
            stats: Vec::new(),
            members: Vec::new(),
            waiting: VecDeque::new(),
            most_connecting: CONNECTING_AT_ONCE,
        }
    }

    /// Adds a group; it connects in the turns to come.
    ///
    /// # Panics
    /// When this process may not open so many descriptors: spread the clients over processes then.
    pub fn add(&mut self, group: Group) -> GroupId {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("the descriptor limit");
        let needed = (self.members.len() + group.clients) as u64;
        assert!(needed < limit, "{needed} descriptors are needed in a process that may have {limit}");
        let id = self.groups.len();
        for n in 0..group.clients {
            let number = self.members.len();
            self.waiting.push_back(number);
            self.members.push(Connection::new(id, number as u64, group.sources[n % group.sources.len()]));
        }
        let message_size = group.role.messages().1 as u64;
        self.stats.push(Stats { waiting: group.clients, message_size, ..Stats::default() });
        self.groups.push(group);
        GroupId(id)
    }

    /// How a group is doing.
    #[must_use]
    pub fn stats(&self, group: GroupId) -> &Stats {
        &self.stats[group.0]
    }

    /// As [`Stats::start_measuring`].
    pub fn start_measuring(&mut self, group: GroupId) {
        self.stats[group.0].start_measuring();
    }

    /// The refusals a group has read, complete.
    pub fn refusals(&self, group: GroupId) -> impl Iterator<Item = Response> {
        let refused =
            self.of_group(group).filter(|member| matches!(member.phase, Phase::Ended(End::Refused(_))));
        refused.filter_map(|member| Some(Response::parse(&member.head)?.0))
    }

    /// Longest time that a client has waited for a message to come back, waits not over included.
    #[must_use]
    pub fn longest_stall(&self, group: GroupId) -> Duration {
        let open = self.of_group(group).filter(|member| member.phase == Phase::Open);
        let since = open.filter_map(|member| member.talk.waiting_since()).min();
        let ongoing = since.map_or(0, |since| self.now().saturating_sub(since));
        Duration::from_nanos(self.stats(group).latencies.longest().max(ongoing))
    }

    /// As [`Clients::longest_stall`]; what was seen so far does not count any more.
    pub fn take_longest_stall(&mut self, group: GroupId) -> Duration {
        let longest = self.longest_stall(group);
        self.stats[group.0].latencies = Latencies::default();
        longest
    }

    /// `count` open clients of a group start the closing handshake with code 1000.
    ///
    /// # Panics
    /// When fewer are open.
    pub fn leave(&mut self, group: GroupId, count: usize) {
        self.each_open(group, count, |member, group, stats, _| {
            member.leave(group, stats);
            false
        });
    }

    /// `count` open clients of a group vanish without a close frame.
    ///
    /// # Panics
    /// When fewer are open.
    pub fn vanish(&mut self, group: GroupId, count: usize) {
        self.each_open(group, count, |member, _, stats, _| {
            member.end(End::Left, stats);
            false
        });
    }

    /// Every open client of a group that sends in parts sends a message but for its last byte.
    pub fn begin_messages(&mut self, group: GroupId) {
        self.each_open(group, self.stats(group).open, |member, group, stats, _| {
            member.talk.begin(&group.pattern, stats.now);
            member.work(group, stats)
        });
    }

    /// Every open client of a group that has begun a message sends its last byte.
    pub fn finish_messages(&mut self, group: GroupId) {
        self.each_open(group, self.stats(group).open, |member, group, stats, _| {
            member.talk.finish(&group.pattern);
            member.work(group, stats)
        });
    }

    /// Clients of a group send no new messages until [`Clients::release`].
    pub fn hold(&mut self, group: GroupId) {
        self.groups[group.0].running = false;
    }

    /// Ends a hold.
    pub fn release(&mut self, group: GroupId) {
        self.groups[group.0].running = true;
        self.each_open(group, self.stats(group).open, |member, group, stats, _| member.work(group, stats));
    }

    /// Messages of a group's open clients that were begun and are not back.
    #[must_use]
    pub fn in_flight(&self, group: GroupId) -> u64 {
        let open = self.of_group(group).filter(|member| member.phase == Phase::Open);
        open.map(|member| member.talk.in_flight()).sum()
    }

    /// Gives client `index` a message that was due at `due`, if it is open and may have another in flight.
    pub fn say(&mut self, index: usize, due: u64) -> bool {
        let member = &mut self.members[index];
        let (group, stats) = (&self.groups[member.group], &mut self.stats[member.group]);
        if member.phase != Phase::Open || member.talk.in_flight() >= group.role.messages().0 {
            return false;
        }
        member.talk.say(&group.pattern, 1, due);
        member.work(group, stats);
        true
    }

    /// Every open client of a group that reads slowly reads once, at most `bytes`.
    pub fn read_some(&mut self, group: GroupId, bytes: usize) {
        self.each_open(group, self.stats(group).open, |member, group, stats, scratch| {
            member.read(group, stats, &mut scratch[..bytes]);
            member.work(group, stats)
        });
    }

    /// Clients of a group that ended as `which` says connect anew, and are counted as new; returns how many.
    pub fn retry(&mut self, group: GroupId, which: impl Fn(End) -> bool) -> usize {
        let mut count = 0;
        for (index, member) in self.members.iter_mut().enumerate() {
            let wanted = matches!(member.phase, Phase::Ended(end) if which(end));
            if wanted && member.group == group.0 {
                self.stats[group.0].moved(member.phase, Phase::Waiting);
                member.start_over();
                self.waiting.push_back(index);
                count += 1;
            }
        }
        count
    }

    /// Turns the event loop until `fact` is true.
    ///
    /// # Panics
    /// When the server ends, or patience does, or a client saw what no server may send.
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
    /// When the event queue fails, or a client saw what no server may send.
    pub fn turn(&mut self, wait: Duration) {
        self.connect_more();
        self.wait(wait).expect("wait for readiness");
        self.serve();
        for (group, stats) in self.groups.iter().zip(&self.stats) {
            for end in stats.ends.keys() {
                if let End::Failed(fault) | End::Lost(fault) = end {
                    assert!(!fault.is_wrong(), "{:?}: {fault} ({fault:?})", group.role);
                }
            }
        }
    }

    /// Watches a descriptor that is no client's.
    pub(crate) fn watch(&self, descriptor: RawFd, token: Token) -> io::Result<()> {
        self.poll.registry().register(&mut SourceFd(&descriptor), token, Interest::READABLE)
    }

    /// Waits for readiness at most `wait`; [`Clients::serve`] acts on it.
    pub(crate) fn wait(&mut self, wait: Duration) -> io::Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        match self.poll.poll(events, Some(wait)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether a descriptor that is no client's is ready.
    pub(crate) fn is_ready(&self, token: Token) -> bool {
        self.events.iter().flatten().any(|event| event.token() == token)
    }

    /// Acts on every client's readiness.
    pub(crate) fn serve(&mut self) {
        let Some(events) = self.events.take() else { return };
        for event in &events {
            let index = event.token().0;
            let now = self.now();
            let Some(member) = self.members.get_mut(index) else { continue };
            let (group, stats) = (&self.groups[member.group], &mut self.stats[member.group]);
            stats.now = now;
            let over = event.is_read_closed() || event.is_write_closed() || event.is_error();
            let more = member.ready(over, group, stats, &mut self.scratch);
            self.after(index, more);
        }
        self.events = Some(events);
    }

    /// Starts as many attempts to connect as may be under way.
    pub(crate) fn connect_more(&mut self) {
        // Those that fail at once come back to the queue when they do handshakes: not more than once a turn.
        for begun in 0..self.waiting.len() {
            let Some(&index) = self.waiting.front() else { return };
            let at_once = self.groups[self.members[index].group].at_once;
            if !at_once && (begun >= self.most_connecting || self.connecting() >= self.most_connecting) {
                return;
            }
            self.waiting.pop_front();
            let now = self.now();
            let member = &mut self.members[index];
            let (group, stats) = (&self.groups[member.group], &mut self.stats[member.group]);
            stats.now = now;
            member.connect(self.server, group, stats);
            self.watch_client(index, false);
            self.after(index, false);
        }
    }

    /// Nanoseconds since the clients were made: the clock of due times.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Attempts under way; whoever says nothing is not on its way in.
    fn connecting(&self) -> usize {
        let count = |(group, stats): (&Group, &Stats)| match group.role {
            Role::Silent => stats.connecting,
            _ => stats.connecting + stats.upgrading,
        };
        self.groups.iter().zip(&self.stats).map(count).sum()
    }

    /// What a client's step asks for: to be woken `again`, or to come again after a handshake.
    fn after(&mut self, index: usize, again: bool) {
        let member = &mut self.members[index];
        if again {
            self.watch_client(index, true);
        } else if let (Role::Handshake, Phase::Ended(_)) = (self.groups[member.group].role, member.phase) {
            self.stats[member.group].waiting += 1;
            member.start_over();
            self.waiting.push_back(index);
        }
    }

    /// Registers a client's socket, or asks for its readiness anew.
    fn watch_client(&mut self, index: usize, again: bool) {
        let member = &mut self.members[index];
        let interest = Interest::READABLE | Interest::WRITABLE;
        let Some(stream) = member.stream() else { return };
        let watched = match again {
            true => self.poll.registry().reregister(stream, Token(index), interest),
            false => self.poll.registry().register(stream, Token(index), interest),
        };
        if let Err(error) = watched {
            // Fails only for want of kernel memory or of fs.epoll.max_user_watches.
            let fault = Fault::Call("watch a socket", error.kind());
            member.end(End::Failed(fault), &mut self.stats[member.group]);
        }
    }

    fn of_group(&self, group: GroupId) -> impl Iterator<Item = &Connection> {
        self.members.iter().filter(move |member| member.group == group.0)
    }

    /// Lets `count` open clients of a group act; `act` says whether a client is to be woken again at once.
    fn each_open(
        &mut self,
        id: GroupId,
        count: usize,
        mut act: impl FnMut(&mut Connection, &Group, &mut Stats, &mut [u8]) -> bool,
    ) {
        let open = self.stats[id.0].open;
        assert!(open >= count, "{count} of {open} open clients");
        let mut left = count;
        for index in 0..self.members.len() {
            if left == 0 {
                return;
            }
            if self.members[index].group == id.0 && self.members[index].phase == Phase::Open {
                left -= 1;
                let now = self.now();
                let member = &mut self.members[index];
                let (group, stats) = (&self.groups[id.0], &mut self.stats[id.0]);
                stats.now = now;
                let again = act(member, group, stats, &mut self.scratch);
                self.after(index, again);
            }
        }
    }
}
