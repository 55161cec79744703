//! What a slot's clients are served with: readiness from the kernel, listeners, those who wait for admission, the
//! drain. Knows of no supervisor: what is to be said to one, and what it has said, is the business of `life`.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::id::Ticket;
use holdfast_shared::ipc::message::Verdict;
use holdfast_shared::sys::memory;
use holdfast_shared::table::Phase;
use mio::event::Event as Readiness;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::admission::{Admission, Outcome};
use super::drain::Drain;
use super::listener::{AcceptPause, Listener};
use crate::connection::{Clients, Key, descriptor_of, from_token, token};

pub(crate) const EVENTS_PER_TURN: usize = 1024;

/// A descriptor that is watched and is no client's and no listener's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watched {
    /// The link to the supervisor.
    Link,
    /// The keeper's process.
    Keeper,
    /// The pair over which connections move.
    Pair,
    /// What the hub wakes this worker by.
    Bell,
}

impl Watched {
    const ALL: [Self; 4] = [Self::Link, Self::Keeper, Self::Pair, Self::Bell];

    /// At the end of all tokens. The lower part of a connection's is a descriptor's number, which this is not.
    fn token(self) -> Token {
        Token(usize::MAX - self as usize)
    }
}

/// Everything that serving clients takes.
pub(crate) struct Server {
    pub(crate) clients: Clients,
    pub(crate) admission: Admission,
    /// Connections in the order they were accepted, finished handshakes among them until trimmed.
    pub(crate) handshakes: VecDeque<Key>,
    pub(crate) drain: Option<Drain>,
    /// The clock, read once a turn.
    pub(crate) now: Duration,
    /// Descriptors of the slot that are no connections.
    pub(crate) own_descriptors: u32,
    /// Descriptors that are kept free for connections from another slot.
    pub(crate) reserved_descriptors: u32,
    pub(super) listeners: Vec<Listener>,
    pub(super) accept_pause: AcceptPause,
    poll: Poll,
    link_is_ready: bool,
    keeper_is_ready: bool,
}

impl Server {
    /// A server that watches its listeners, and no connection yet.
    pub(crate) fn new(clients: Clients, listeners: &[RawFd], own_descriptors: u32) -> io::Result<Self> {
        let poll = Poll::new()?;
        let listeners: Vec<Listener> =
            listeners.iter().map(|&descriptor| Listener { descriptor, ready: true }).collect();
        for (position, listener) in listeners.iter().enumerate() {
            let token = listener_token(position);
            poll.registry().register(&mut SourceFd(&listener.descriptor), token, Interest::READABLE)?;
        }
        Ok(Self {
            clients,
            admission: Admission::default(),
            handshakes: VecDeque::new(),
            drain: None,
            now: clock::now(),
            own_descriptors,
            reserved_descriptors: 0,
            listeners,
            accept_pause: AcceptPause::default(),
            poll,
            link_is_ready: true,
            keeper_is_ready: false,
        })
    }

    /// Waits for readiness, at most `timeout`, and serves the connections that are ready.
    ///
    /// # Errors
    /// When the kernel's readiness can no longer be had.
    pub(crate) fn serve_ready(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let has_work = self.clients.connections.feed_falls_asleep();
        let timeout = if has_work { Some(Duration::ZERO) } else { timeout };
        let polled = self.poll.poll(events, timeout);
        self.clients.connections.feed_wakes_up();
        if let Err(error) = polled
            && error.kind() != io::ErrorKind::Interrupted
        {
            return Err(error);
        }
        self.now = clock::now();
        self.clients.connections.now_ms = clock::milliseconds(self.now);
        for event in &*events {
            self.handle(event);
        }
        Ok(())
    }

    /// Watches a connection, for both directions at once: that is never changed again.
    pub(crate) fn register(&self, key: Key) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&descriptor_of(key)), token(key), interest)
    }

    /// Watches a descriptor of the slot.
    pub(crate) fn watch(&self, descriptor: RawFd, watched: Watched) -> io::Result<()> {
        let interest = match watched {
            Watched::Keeper | Watched::Bell => Interest::READABLE,
            Watched::Link | Watched::Pair => Interest::READABLE | Interest::WRITABLE,
        };
        self.poll.registry().register(&mut SourceFd(&descriptor), watched.token(), interest)
    }

    /// Stops watching a descriptor. That it is closed would not do: other processes have copies.
    pub(crate) fn unwatch(&self, descriptor: RawFd) {
        if let Err(error) = self.poll.registry().deregister(&mut SourceFd(&descriptor)) {
            log::error!("cannot stop watching descriptor {descriptor}: {error}");
        }
    }

    /// Has the supervisor said something, or does it read again, since this was last asked?
    pub(crate) fn take_link_is_ready(&mut self) -> bool {
        std::mem::take(&mut self.link_is_ready)
    }

    /// Has the keeper ended since this was last asked?
    pub(crate) fn take_keeper_is_ready(&mut self) -> bool {
        std::mem::take(&mut self.keeper_is_ready)
    }

    /// Descriptors open in the slot.
    pub(crate) fn open_descriptors(&self) -> u32 {
        self.own_descriptors + self.clients.connections.admitted() + self.clients.connections.pending()
    }

    /// The slot's listening sockets.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = RawFd> {
        self.listeners.iter().map(|listener| listener.descriptor)
    }

    /// Those whose requests came in this turn ask to be let in, if there is anybody to ask: if not, they are
    /// asked for when there is.
    pub(crate) fn note_asking(&mut self, has_supervisor: bool) {
        for key in self.clients.take_asking() {
            if let Some(record) = self.clients.connections.get(key).filter(|_| has_supervisor) {
                self.admission.ask(key, record.address(), self.now);
            }
        }
        let connections = &self.clients.connections;
        self.admission.trim(|key| connections.is_in(key, Phase::AwaitingAdmission));
    }

    /// The tickets of clients that have left before their verdicts came, if the supervisor may keep places for them.
    pub(crate) fn take_withdrawn(&mut self) -> Vec<Ticket> {
        let connections = &mut self.clients.connections;
        let may_wait = !connections.settings.waiting_room_timeout.is_zero();
        if !std::mem::take(&mut connections.has_withdrawn) || !may_wait {
            return Vec::new();
        }
        self.admission.take_withdrawn(|key| connections.is_in(key, Phase::AwaitingAdmission))
    }

    /// Asks again for all who wait, of a supervisor that was never asked.
    pub(crate) fn ask_for_all(&mut self) {
        self.clients.take_asking();
        self.admission = Admission::default();
        for row in self.clients.connections.occupied_rows(0) {
            if let Some(key) = self.clients.connections.key_at(row)
                && let Some(record) = self.clients.connections.get(key)
                && record.phase() == Phase::AwaitingAdmission
            {
                self.admission.ask(key, record.address(), self.now);
            }
        }
    }

    /// The supervisor has decided about a client.
    pub(crate) fn on_verdict(&mut self, ticket: Ticket, verdict: Verdict) {
        let connections = &self.clients.connections;
        let is_waiting = |key| connections.is_in(key, Phase::AwaitingAdmission);
        let outcome = self.admission.verdict(ticket, verdict, self.now, is_waiting);
        match (outcome, verdict) {
            (Outcome::Deliver { key, waited }, verdict) => {
                self.clients.connections.table.counters().admission(waited);
                match verdict {
                    Verdict::Granted => self.clients.admit(key),
                    Verdict::Refused(reason) => self.clients.refuse(key, reason),
                }
            }
            (Outcome::GiveBack(address), _) => self.clients.connections.give_back(address),
            (Outcome::Void, _) => {}
        }
    }

    /// What is done once a turn for those who are in: unread input, timers, ends.
    pub(crate) fn after_batch(&mut self) {
        self.accept_clients();
        self.clients.continue_reading();
        self.clients.connections.step_feed(self.now);
        self.clients.expire_timers();
    }

    /// Applications hear who is gone, and what they took is free.
    pub(crate) fn finish_ended(&mut self) {
        self.clients.finish_ended();
        self.clients.connections.wake_hub();
        self.trim_handshakes();
        if !self.clients.connections.released.is_empty() {
            self.accept_pause.lift();
        }
    }

    /// Gives back what a crowd or a burst needed and nobody needs any more; to be called about once a second.
    pub(crate) fn give_back_memory(&mut self) {
        self.clear_handshakes();
        if self.clients.give_back_memory() {
            self.admission.shrink();
            // What was freed long before, messages and queues, is most of it.
            let began = clock::now();
            memory::give_back_freed();
            let took = clock::now().saturating_sub(began);
            log::debug!("a burst is over; gave back what it took in {took:?}");
        }
    }

    /// How long until there is something to do, unless something comes before.
    pub(crate) fn next_step(&self) -> Option<Duration> {
        if self.accept_is_due() || self.clients.has_unread() || self.clients.connections.feed_has_work() {
            return Some(Duration::ZERO);
        }
        let until = |moment: Duration| moment.saturating_sub(self.now);
        let pause = self.accept_pause.until().map(until);
        let drain = self.drain.as_ref().and_then(Drain::next_step).map(until);
        let feed = self.clients.connections.feed_deadline().map(until);
        [self.clients.connections.next_timer(), pause, drain, feed].into_iter().flatten().min()
    }

    fn handle(&mut self, readiness: &Readiness) {
        let token = readiness.token();
        match Watched::ALL.into_iter().find(|watched| watched.token() == token) {
            Some(Watched::Link) => self.link_is_ready = true,
            Some(Watched::Keeper) => self.keeper_is_ready = true,
            // What there is to read is read after the batch.
            Some(Watched::Pair) => {}
            Some(Watched::Bell) => self.clients.connections.hush_feed(),
            None => match listener_position(token).and_then(|position| self.listeners.get_mut(position)) {
                Some(listener) => listener.ready = true,
                None => {
                    let readable =
                        readiness.is_readable() || readiness.is_read_closed() || readiness.is_error();
                    let (writable, read_closed) = (readiness.is_writable(), readiness.is_read_closed());
                    self.clients.on_ready(from_token(token), readable, writable, read_closed);
                }
            },
        }
    }
}

/// Below those of [`Watched`].
fn listener_token(position: usize) -> Token {
    Token(usize::MAX - Watched::ALL.len() - position)
}

fn listener_position(token: Token) -> Option<usize> {
    (usize::MAX - Watched::ALL.len()).checked_sub(token.0)
}
