//! The worker's loop: what its server has to do and what its supervisor says, in turns. After each batch of
//! events, in fixed order: the keeper, the link, connections that move, new clients, unread input, timers, the
//! drain, and what the supervisor is to be told.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::id::Incarnation;
use holdfast_shared::ipc::link::SlotEnd;
use holdfast_shared::ipc::settings::Settings;
use holdfast_shared::sys::descriptor;
use holdfast_shared::table::TableError;
use mio::Events;

use crate::life::hand_over::HandOver;
use crate::life::keeper_takeover::KeeperWatch;
use crate::life::moving::Moving;
use crate::life::reconnect::Reconnection;
use crate::life::run::Departure;
use crate::serve::{EVENTS_PER_TURN, Server, Watched};
use crate::websocket::refusal::Availability;

const REPORT_INTERVAL: Duration = Duration::from_secs(1);

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

/// A server, and its place among the processes.
pub(crate) struct Worker {
    pub(super) server: Server,
    pub(super) incarnation: Incarnation,
    /// `None` while there is no supervisor.
    pub(super) link: Option<ManuallyDrop<SlotEnd>>,
    /// How the next one is found.
    pub(super) reconnection: Reconnection,
    pub(super) keeper: KeeperWatch,
    pub(super) table_memory: RawFd,
    pub(super) hand_over: Option<HandOver>,
    pub(super) moving: Moving,
    /// The cluster-wide cap is reached, as /health says.
    pub(super) cluster_full: bool,
    pub(super) longest_turn: Duration,
    report_due: Duration,
}

impl Worker {
    /// A worker that watches its link and its keeper.
    pub(crate) fn new(
        server: Server,
        incarnation: Incarnation,
        link: ManuallyDrop<SlotEnd>,
        reconnection: Reconnection,
        table_memory: RawFd,
    ) -> io::Result<Self> {
        server.watch(link.as_raw_fd(), Watched::Link)?;
        if let Some(bell) = server.clients.connections.feed_bell() {
            server.watch(bell, Watched::Bell)?;
        }
        Ok(Self {
            incarnation,
            link: Some(link),
            keeper: KeeperWatch::watch(reconnection.keeper, &server),
            reconnection,
            table_memory,
            hand_over: None,
            moving: Moving::default(),
            cluster_full: false,
            longest_turn: Duration::ZERO,
            // Spread, so that the reports of many workers do not come in step.
            report_due: server.now + REPORT_INTERVAL.mul_f64(fastrand::f64()),
            server,
        })
    }

    /// Serves until told to leave.
    ///
    /// # Errors
    /// When the kernel's readiness can no longer be had.
    pub(crate) fn run(&mut self) -> io::Result<Departure> {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        loop {
            self.update_availability();
            self.server.serve_ready(&mut events, Some(self.timeout()))?;
            let began = self.server.now;
            match self.after_batch() {
                Flow::Continue => {}
                Flow::Leave => return Ok(Departure::Left),
                Flow::HandOver => return Ok(Departure::HandedOver),
            }
            self.longest_turn = self.longest_turn.max(clock::now().saturating_sub(began));
        }
    }

    /// Other settings hold from now on.
    pub(crate) fn configure(&mut self, settings: Settings) {
        let rows = settings.rows;
        self.server.clients.configure(settings);
        let table = &mut self.server.clients.connections.table;
        let grown = descriptor::with(self.table_memory, |memory| table.grow(memory, rows));
        if let Err(error) = grown.unwrap_or_else(|source| Err(TableError::Map { rows, source })) {
            // Clients for whom there is no row wait in the accept queue; nobody who is in is touched.
            log::error!("{error}; going on with {} rows", table.header().rows);
        }
    }

    fn after_batch(&mut self) -> Flow {
        if self.server.take_keeper_is_ready() {
            self.look_at_keeper();
        }
        if self.server.take_link_is_ready() {
            self.read_link();
        }
        self.continue_moving();
        self.look_for_supervisor();
        self.update_availability();
        self.server.reserved_descriptors = self.moving.reserved();
        self.server.after_batch();
        let leaves = self.is_abandoned() || self.server.continue_drain();
        self.server.finish_ended();
        self.tell_supervisor();
        if leaves {
            return Flow::Leave;
        }
        self.take_keepers_place();
        self.continue_hand_over()
    }

    /// How the server is, for whoever asks on the public port.
    pub(super) fn update_availability(&mut self) {
        self.server.clients.availability = if self.server.drain.is_some() {
            Availability::Draining
        } else if self.link.is_none() {
            Availability::NoSupervisor
        } else if self.cluster_full {
            Availability::Full
        } else {
            Availability::Ok
        };
    }

    fn tell_supervisor(&mut self) {
        self.server.note_asking(self.link.is_some());
        // Whoever is about to leave asks for nobody: the next worker does.
        if self.hand_over.is_none() && self.keeper.is_alive() {
            self.send_tickets();
            self.send_withdrawn();
        }
        self.send_releases();
        if self.server.now >= self.report_due {
            self.report_due = self.server.now + REPORT_INTERVAL;
            self.server.give_back_memory();
            if self.link_has_room() {
                self.send_report(None);
            }
        }
    }

    fn timeout(&self) -> Duration {
        let moments = [
            Some(self.report_due),
            self.hand_over.as_ref().map(HandOver::until),
            self.reconnection.next_attempt(),
            self.keeper.next_step(),
        ];
        let until = |moment: Duration| moment.saturating_sub(self.server.now);
        let step = moments.into_iter().flatten().map(until).chain(self.server.next_step()).min();
        step.unwrap_or(REPORT_INTERVAL)
    }
}
