//! Taking clients off the accept queues: so many a turn, and none while descriptors are short. Every client
//! that reaches a slot comes through here.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use holdfast_shared::clock::milliseconds;
use holdfast_shared::reason::Rejection;
use holdfast_shared::sys::listener::accept;
use holdfast_shared::table::Phase;
use nix::errno::Errno;

use super::server::Server;
use crate::connection::Key;
use crate::websocket::refusal::Refusal;

/// Accepts of one listener in one turn, so that a storm of connects does not starve those who are in.
const ACCEPTS_PER_TURN: usize = 128;

/// How long accepting rests when descriptors ran out. A close within that time wakes it too.
const PAUSE: Duration = Duration::from_millis(100);

/// Places beyond the bound for unfinished handshakes. Whoever gets one is answered: a health check with how the server is, anybody else with
/// a refusal.
const KEPT_FOR_HEALTH_CHECKS: u32 = 8;

/// How many of the oldest are looked at for one to evict: many may be finished, or waiting for verdicts.
const LOOK_AT: usize = 1024;

const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// One listening socket of the slot. Not owned: it outlives this worker.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) descriptor: RawFd,
    /// The queue may hold clients. Readiness is edge-triggered: once told, remember until the queue was seen
    /// empty.
    pub(crate) ready: bool,
}

/// Whether accepting rests because descriptors are short.
#[derive(Debug, Default)]
pub(crate) struct AcceptPause {
    until: Option<Duration>,
    last_logged: Option<Duration>,
}

impl AcceptPause {
    /// When accepting goes on by itself.
    pub(crate) fn until(&self) -> Option<Duration> {
        self.until
    }

    /// A descriptor was closed.
    pub(crate) fn lift(&mut self) {
        self.until = None;
    }
}

impl Server {
    /// Accepts what the budget of this turn allows.
    pub(crate) fn accept_clients(&mut self) {
        if self.accept_pause.until.is_some_and(|until| self.now < until) {
            return;
        }
        self.accept_pause.until = None;
        for position in 0..self.listeners.len() {
            for _ in 0..ACCEPTS_PER_TURN {
                if !self.listeners[position].ready || self.accept_pause.until.is_some() {
                    break;
                }
                self.accept_one(position);
            }
        }
    }

    /// A descriptor was closed.
    pub(crate) fn lift_accept_pause(&mut self) {
        self.accept_pause.lift();
    }

    /// Is there a client to accept in the next turn, without a new event?
    pub(crate) fn accept_is_due(&self) -> bool {
        self.accept_pause.until.is_none() && self.listeners.iter().any(|listener| listener.ready)
    }

    fn accept_one(&mut self, position: usize) {
        if self.clients.connections.is_full(self.own_descriptors + self.reserved_descriptors) {
            return self.pause("all descriptors of this worker are in use");
        }
        match accept(self.listeners[position].descriptor) {
            Ok(None) => self.listeners[position].ready = false,
            Ok(Some((descriptor, peer))) => {
                let row = descriptor.as_raw_fd();
                match self.clients.connections.begin(descriptor, peer.ip()) {
                    Some(key) => self.welcome(key),
                    None => self.pause(&format!("descriptor {row} is beyond the connection table")),
                }
            }
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // The client left while it was queued, or a firewall refused it: accept(2) passes such errors
                // on.
                Some(
                    Errno::ECONNABORTED
                    | Errno::EINTR
                    | Errno::EPERM
                    | Errno::EPROTO
                    | Errno::ENETDOWN
                    | Errno::EHOSTDOWN
                    | Errno::EHOSTUNREACH
                    | Errno::ENETUNREACH,
                ) => {}
                _ => self.pause(&error.to_string()),
            },
        }
    }

    fn welcome(&mut self, key: Key) {
        let most = self.clients.connections.settings.max_pending_handshakes;
        if self.clients.connections.pending() > most
            && !self.evict_oldest_handshake()
            && self.clients.connections.pending() > most.saturating_add(KEPT_FOR_HEALTH_CHECKS)
        {
            self.clients.connections.refuse(key, &Refusal::admission(Rejection::PendingHandshakes));
            return self.clients.connections.end(key);
        }
        if let Err(error) = self.register(key) {
            self.clients.connections.end(key);
            return self.pause(&format!("cannot watch a new connection: {error}"));
        }
        self.handshakes.push_back(key);
        self.clients.connections.enter(
            key,
            Phase::Handshake,
            self.clients.connections.handshake_deadline_ms(),
        );
    }

    /// Too many unfinished handshakes: the oldest makes room, so that somebody who speaks gets in however
    /// many are silent. One that was silent gets its refusal, and no time to read it: lingering would
    /// keep the place. Says whether there was one among the oldest.
    fn evict_oldest_handshake(&mut self) -> bool {
        for _ in 0..self.handshakes.len().min(LOOK_AT) {
            let Some(key) = self.handshakes.pop_front() else { return false };
            match self.clients.connections.get(key).map(|record| record.phase()) {
                Some(Phase::Handshake) => {
                    self.clients.connections.refuse(key, &Refusal::admission(Rejection::PendingHandshakes));
                    self.clients.connections.end(key);
                    return true;
                }
                Some(Phase::Refusing) => {
                    self.clients.connections.end(key);
                    return true;
                }
                // Whoever waits for a verdict has done its part.
                Some(Phase::AwaitingAdmission) => self.handshakes.push_back(key),
                Some(Phase::Free | Phase::Open | Phase::Closing | Phase::Lingering | Phase::Ended) | None => {
                }
            }
        }
        false
    }

    /// Forgets handshakes that are finished, once they are many.
    pub(crate) fn trim_handshakes(&mut self) {
        if self.handshakes.len() > 64 + 2 * self.clients.connections.pending() as usize {
            self.drop_finished_handshakes();
        }
    }

    /// Drops them all, and the room they took: nobody is to look at a record again whose connection is over
    /// when the table's memory is given back.
    pub(crate) fn clear_handshakes(&mut self) {
        self.drop_finished_handshakes();
        self.handshakes.shrink_to(2 * self.handshakes.len());
    }

    fn drop_finished_handshakes(&mut self) {
        let connections = &self.clients.connections;
        self.handshakes.retain(|&key| connections.get(key).is_some_and(|record| record.phase().is_pending()));
    }

    /// Descriptors, or memory for them, ran out. Readiness will not be told again, so a timer or a close
    /// resumes accepting.
    fn pause(&mut self, cause: &str) {
        self.accept_pause.until = Some(self.now + PAUSE);
        self.clients.connections.table.counters().accept_pauses += 1;
        if self.accept_pause.last_logged.is_none_or(|last| self.now >= last + LOG_INTERVAL) {
            self.accept_pause.last_logged = Some(self.now);
            log::warn!(
                "accepting pauses for {} ms at a time: {cause}; {} connections are open and new clients wait in the kernel's queue. \
                 Raise the descriptor limit of the service (LimitNOFILE) or lower limits.max_connections",
                milliseconds(PAUSE),
                self.clients.connections.admitted(),
            );
        }
    }
}
