//! The worker's loop. Readiness becomes an [`Event`], an event is one match arm, an arm is one method. After
//! the batch, in fixed order: the link, new clients, unread input, timers, the drain, and what the supervisor
//! is to be told.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::id::Incarnation;
use holdfast_shared::ipc::link::SlotEnd;
use holdfast_shared::ipc::settings::Settings;
use holdfast_shared::sys::memory;
use mio::event::Event as Readiness;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::connection::{Clients, Key, descriptor_of, from_token, token};
use crate::life::hand_over::HandOver;
use crate::life::keeper_takeover::Keeper;
use crate::life::moving::{Moving, PAIR};
use crate::life::reconnect::Reconnection;
use crate::life::run::Departure;
use crate::serve::admission::Admission;
use crate::serve::drain::Drain;
use crate::serve::listener::{AcceptPause, Listener};
use crate::websocket::refusal::Availability;

const LINK: Token = Token(usize::MAX);
const KEEPER: Token = Token(usize::MAX - 1);
pub(crate) const EVENTS_PER_TURN: usize = 1024;
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// What readiness means.
enum Event {
    /// The supervisor said something, or reads again.
    Link,
    /// The keeper has ended.
    KeeperEnd,
    /// Clients are queued.
    Listener(usize),
    /// Another worker said something about connections that move.
    Pair,
    /// A connection has bytes, takes bytes, or ended.
    Connection(Key),
}

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// It does.
    Continue,
    /// The worker was told to leave and has nothing left to do.
    Leave,
    /// What the worker had in hand is saved for the next one.
    HandOver,
}

/// Everything a worker has. What belongs together is a field of its own type; what is here is what the whole
/// loop shares.
pub(crate) struct Worker {
    pub(crate) incarnation: Incarnation,
    pub(crate) poll: Poll,
    /// `None` while there is no supervisor.
    pub(crate) link: Option<ManuallyDrop<SlotEnd>>,
    /// How the next one is found.
    pub(crate) reconnection: Reconnection,
    pub(crate) keeper: Keeper,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) table_memory: RawFd,
    /// Descriptors of the slot that are no connections.
    pub(crate) own_descriptors: u32,
    pub(crate) clients: Clients,
    pub(crate) admission: Admission,
    pub(crate) accept_pause: AcceptPause,
    /// Connections in the order they were accepted, finished handshakes among them until trimmed.
    pub(crate) handshakes: VecDeque<Key>,
    pub(crate) drain: Option<Drain>,
    pub(crate) hand_over: Option<HandOver>,
    pub(crate) moving: Moving,
    /// The cluster-wide cap is reached, as /health says.
    pub(crate) cluster_full: bool,
    /// The clock, read once a turn.
    pub(crate) now: Duration,
    pub(crate) report_due: Duration,
    pub(crate) longest_turn: Duration,
    link_ready: bool,
}

/// What a worker starts from.
pub(crate) struct Parts {
    pub(crate) incarnation: Incarnation,
    pub(crate) link: ManuallyDrop<SlotEnd>,
    pub(crate) reconnection: Reconnection,
    pub(crate) listeners: Vec<RawFd>,
    pub(crate) table_memory: RawFd,
    pub(crate) own_descriptors: u32,
    pub(crate) clients: Clients,
}

impl Worker {
    /// A worker that watches its link and listeners, and no connection yet.
    pub(crate) fn new(parts: Parts) -> io::Result<Self> {
        let now = clock::now();
        let poll = Poll::new()?;
        watch_link(&poll, parts.link.as_raw_fd())?;
        let listeners: Vec<Listener> =
            parts.listeners.iter().map(|&descriptor| Listener { descriptor, ready: true }).collect();
        for (position, listener) in listeners.iter().enumerate() {
            let token = listener_token(position);
            poll.registry().register(&mut SourceFd(&listener.descriptor), token, Interest::READABLE)?;
        }
        let keeper = Keeper::watch(parts.reconnection.keeper, poll.registry(), KEEPER, now);
        Ok(Self {
            incarnation: parts.incarnation,
            poll,
            keeper,
            link: Some(parts.link),
            reconnection: parts.reconnection,
            listeners,
            table_memory: parts.table_memory,
            own_descriptors: parts.own_descriptors,
            admission: Admission::default(),
            clients: parts.clients,
            accept_pause: AcceptPause::default(),
            handshakes: VecDeque::new(),
            drain: None,
            hand_over: None,
            moving: Moving::default(),
            cluster_full: false,
            now,
            // Spread, so that the reports of many workers do not come in step.
            report_due: now + REPORT_INTERVAL.mul_f64(fastrand::f64()),
            longest_turn: Duration::ZERO,
            link_ready: true,
        })
    }

    /// Serves until told to leave.
    ///
    /// # Errors
    /// When the kernel's readiness can no longer be had.
    pub(crate) fn run(&mut self) -> io::Result<Departure> {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        loop {
            self.serve_ready(&mut events, self.timeout())?;
            let began = self.now;
            match self.after_batch() {
                Flow::Continue => {}
                Flow::Leave => return Ok(Departure::Left),
                Flow::HandOver => return Ok(Departure::HandedOver),
            }
            self.longest_turn = self.longest_turn.max(clock::now().saturating_sub(began));
        }
    }

    /// Waits for readiness, at most `timeout`, and serves the connections that are ready.
    pub(crate) fn serve_ready(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        if let Err(error) = self.poll.poll(events, timeout)
            && error.kind() != io::ErrorKind::Interrupted
        {
            return Err(error);
        }
        self.read_clock();
        self.update_availability();
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

    /// Other settings hold from now on.
    pub(crate) fn configure(&mut self, settings: Settings) {
        self.clients.configure(settings);
        self.grow_table();
    }

    pub(crate) fn read_clock(&mut self) {
        self.now = clock::now();
        self.clients.connections.now_ms = clock::milliseconds(self.now);
    }

    fn handle(&mut self, readiness: &Readiness) {
        match self.name(readiness.token()) {
            Event::Link => self.link_ready = true,
            Event::KeeperEnd => self.look_at_keeper(),
            Event::Listener(position) => self.listeners[position].ready = true,
            // What there is to read is read after the batch.
            Event::Pair => {}
            Event::Connection(key) => self.on_connection(key, readiness),
        }
    }

    fn name(&self, token: Token) -> Event {
        if token == LINK {
            return Event::Link;
        }
        if token == KEEPER {
            return Event::KeeperEnd;
        }
        if token == PAIR {
            return Event::Pair;
        }
        match KEEPER.0.checked_sub(1 + token.0) {
            Some(position) if position < self.listeners.len() => Event::Listener(position),
            _ => Event::Connection(from_token(token)),
        }
    }

    fn on_connection(&mut self, key: Key, readiness: &Readiness) {
        let readable = readiness.is_readable() || readiness.is_read_closed() || readiness.is_error();
        self.clients.on_ready(key, readable, readiness.is_writable(), readiness.is_read_closed());
    }

    fn after_batch(&mut self) -> Flow {
        if std::mem::take(&mut self.link_ready) {
            self.read_link();
        }
        self.update_availability();
        self.continue_moving();
        self.look_for_supervisor();
        self.accept_clients();
        self.clients.continue_reading();
        self.clients.expire_timers();
        let flow = if self.is_abandoned() { Flow::Leave } else { self.continue_drain() };
        self.clients.finish_ended();
        self.trim_handshakes();
        if !self.clients.connections.released.is_empty() {
            self.accept_pause.lift();
        }
        self.tell_supervisor();
        if flow == Flow::Continue {
            self.take_keepers_place();
            self.continue_hand_over()
        } else {
            flow
        }
    }

    /// How the server is, for whoever asks on the public port. Without a supervisor nobody is let in.
    fn update_availability(&mut self) {
        self.clients.availability = if self.drain.is_some() {
            Availability::Draining
        } else if self.link.is_none() {
            Availability::NoSupervisor
        } else if self.cluster_full {
            Availability::Full
        } else {
            Availability::Ok
        };
    }

    /// Gives back what a crowd or a burst needed and nobody needs any more; to be called about once a second.
    fn give_back_memory(&mut self) {
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

    fn tell_supervisor(&mut self) {
        for key in self.clients.take_asking() {
            // Without a supervisor it is asked for when there is one again, if it still waits then.
            if let Some(record) = self.clients.connections.get(key).filter(|_| self.link.is_some()) {
                self.admission.ask(key, record.address(), self.now);
            }
        }
        // Whoever is about to leave asks for nobody: the next worker does.
        if self.hand_over.is_none() && self.keeper.is_alive() {
            self.send_tickets();
        }
        self.send_releases();
        if self.now >= self.report_due {
            self.report_due = self.now + REPORT_INTERVAL;
            self.give_back_memory();
            if self.link_has_room() {
                self.send_report(None);
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if self.accept_is_due() || self.clients.has_unread() {
            return Some(Duration::ZERO);
        }
        let mut timeout = self.report_due.saturating_sub(self.now);
        if let Some(timer) = self.clients.connections.next_timer() {
            timeout = timeout.min(timer);
        }
        let moments = [
            self.accept_pause.until(),
            self.drain.as_ref().and_then(Drain::next_step),
            self.hand_over.as_ref().map(HandOver::until),
            self.reconnection.next_attempt(),
            self.keeper.next_step(),
        ];
        for moment in moments.into_iter().flatten() {
            timeout = timeout.min(moment.saturating_sub(self.now));
        }
        Some(timeout)
    }

    fn grow_table(&mut self) {
        let Some(memory) = holdfast_shared::sys::descriptor::borrow(self.table_memory) else { return };
        if let Err(error) =
            self.clients.connections.table.grow(memory, self.clients.connections.settings.rows)
        {
            // Clients for whom there is no row wait in the accept queue; nobody who is in is touched.
            log::error!("{error}; going on with {} rows", self.clients.connections.table.header().rows);
        }
    }
}

/// Watches the link's descriptor, for both directions at once.
pub(crate) fn watch_link(poll: &Poll, link: RawFd) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&link), LINK, Interest::READABLE | Interest::WRITABLE)
}

fn listener_token(position: usize) -> Token {
    Token(KEEPER.0 - 1 - position)
}
