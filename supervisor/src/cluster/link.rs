//! The supervisor's end of the links: one exhaustive match over what slots say. Admission happens here,
//! message by message.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::id::{Incarnation, Ticket};
use holdfast_shared::ipc::codec;
use holdfast_shared::ipc::link::LinkError;
use holdfast_shared::ipc::message::{
    DeathCause, Envelope, KeeperMessage, Report, ToSupervisor, ToWorker, Verdict, WorkerMessage,
};
use holdfast_shared::level::Level;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::api::RestartedSlot;
use crate::cluster::ledger::Admission;
use crate::cluster::lifecycle::{Cause, Event, Worker};
use crate::operations::restart;
use crate::supervisor::Supervisor;

/// Messages of one slot in one turn.
const MESSAGES_PER_TURN: usize = 64;

/// How far a link was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkEnd {
    /// Nothing more for now.
    Open,
    /// There may be more.
    Unread,
    /// Nobody holds the other end.
    Closed,
}

impl Supervisor {
    /// Reads what a slot has said.
    pub(crate) fn on_link(&mut self, position: usize) {
        let end = self.read_link(position);
        self.note_link_end(position, end);
    }

    /// Reads what a slot has said, but no more than so much in one turn: others wait for verdicts. Says how
    /// that ended.
    pub(crate) fn read_link(&mut self, position: usize) -> LinkEnd {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(link) = self.slots.get_mut(position).and_then(|seat| seat.link.as_mut()) else {
                return LinkEnd::Open;
            };
            match link.flush().and_then(|()| link.receive()) {
                Ok(Some(message)) => self.on_message(position, message),
                Ok(None) => return LinkEnd::Open,
                Err(LinkError::Closed) => return LinkEnd::Closed,
                Err(error) => {
                    log::error!("slot {}: {error}; the message is ignored", self.slots[position].id);
                }
            }
        }
        LinkEnd::Unread
    }

    /// Does what reading a link to this end asks for.
    pub(crate) fn note_link_end(&mut self, position: usize, end: LinkEnd) {
        match end {
            LinkEnd::Open => {}
            LinkEnd::Unread => self.unread_links.push(position),
            LinkEnd::Closed => {
                self.slots[position].link = None;
                self.step(position, Event::LinkClosed);
            }
        }
    }

    /// Goes on with the links that had more to say than one turn allows.
    pub(crate) fn continue_links(&mut self) {
        for position in std::mem::take(&mut self.unread_links) {
            self.on_link(position);
        }
    }

    /// Says something to whichever worker of a slot serves. What must arrive waits until there is room, but a
    /// worker that has stopped reading is killed: the next one takes over its connections, and asks again for
    /// what it was not told.
    pub(crate) fn tell(&mut self, position: usize, message: &ToWorker) {
        self.tell_worker(position, Incarnation::ANY, message, &[]);
    }

    /// As `tell`, to one of the slot's workers and no other, with copies of `descriptors`.
    pub(crate) fn tell_worker(
        &mut self,
        position: usize,
        incarnation: Incarnation,
        message: &ToWorker,
        descriptors: &[BorrowedFd<'_>],
    ) {
        let Some(seat) = self.slots.get_mut(position) else { return };
        let Some(link) = &mut seat.link else { return };
        match link.send_with(incarnation, message, descriptors) {
            Ok(()) if link.has_room() => {}
            Ok(()) => {
                log::error!(
                    "slot {}: worker {} does not read its link, killing it",
                    seat.id,
                    seat.worker.pid
                );
                let worker = seat.worker;
                if seat.machine.state().worker() == Some(worker) {
                    self.signal(position, worker.pid, Signal::SIGKILL);
                }
            }
            // Its end of file is read in due course, after what came before it.
            Err(LinkError::Closed) => {}
            Err(error) => log::error!("slot {}: {error}", seat.id),
        }
    }

    fn on_message(&mut self, position: usize, envelope: Envelope<ToSupervisor>) {
        let Envelope { incarnation, message } = envelope;
        match message {
            ToSupervisor::Keeper(message) => self.on_keeper_message(position, incarnation, message),
            ToSupervisor::Worker(message) => {
                self.hear(position);
                self.on_worker_message(position, incarnation, message);
            }
        }
    }

    fn on_keeper_message(&mut self, position: usize, incarnation: Incarnation, message: KeeperMessage) {
        let slot = self.slots[position].id;
        match message {
            KeeperMessage::Started { pid } => {
                let worker = Worker { pid: Pid::from_raw(pid), incarnation };
                self.on_worker(position, worker);
                self.step(position, Event::WorkerStarted(worker));
            }
            KeeperMessage::Died { cause, lived, pause } => {
                log::debug!("slot {slot}: worker {incarnation} lived {lived:?}");
                if self.is_current(position, incarnation) {
                    self.step(position, Event::WorkerDied { cause: cause.into(), pause });
                }
                self.on_restart(restart::Event::Died { slot, incarnation });
            }
            KeeperMessage::Left => {
                log::debug!("slot {slot}: worker {incarnation} has left");
                if self.is_current(position, incarnation) {
                    self.step(position, Event::WorkerLeft);
                }
            }
            KeeperMessage::HandedOver => {
                log::debug!("slot {slot}: worker {incarnation} has handed over");
                if self.is_current(position, incarnation) {
                    self.slots[position].worker_handed_over(self.now);
                    self.step(position, Event::WorkerLeft);
                }
            }
            KeeperMessage::ProgramRefused { reason } => {
                let reason = format!("the new one cannot be executed: {reason}");
                self.on_restart(restart::Event::KeptProgram { slot, reason });
            }
            KeeperMessage::WentBack { reason } => {
                log::error!("slot {slot}: went back to the program before: {reason}");
                self.on_restart(restart::Event::KeptProgram { slot, reason });
            }
            KeeperMessage::Keeper { pid } => {
                self.on_keeper(position, Worker { pid: Pid::from_raw(pid), incarnation });
            }
        }
    }

    fn on_worker_message(&mut self, position: usize, incarnation: Incarnation, message: WorkerMessage) {
        let slot = self.slots[position].id;
        match message {
            WorkerMessage::Hello { pid, version, knows } => {
                self.on_hello(position, Worker { pid: Pid::from_raw(pid), incarnation }, version, knows);
            }
            WorkerMessage::Holdings { addresses } => {
                for (address, count) in addresses {
                    self.ledger.resync_add(slot, incarnation, address, count);
                }
            }
            WorkerMessage::Ready { resumed, lost, took, counters } => {
                log::debug!("slot {slot}: worker {incarnation} resumed {resumed}, lost {lost}, in {took:?}");
                self.slots[position].reconcile(&counters);
                self.on_ready(position, incarnation);
                let pause_ms = took.as_secs_f64() * 1000.0;
                let result = RestartedSlot { slot: slot.0, kept: resumed, lost, pause_ms };
                self.on_restart(restart::Event::Ready { incarnation, result });
                self.remember(position);
                self.note_reported(position);
            }
            WorkerMessage::Admit { tickets } => self.on_admit(position, incarnation, tickets),
            WorkerMessage::Release { closed } => {
                for (address, reason) in closed {
                    if self.ledger.release(slot, incarnation, address) {
                        self.slots[position].count_close(reason);
                    }
                }
                self.remember(position);
            }
            WorkerMessage::Report { request, report } => self.on_report(position, request, *report),
            WorkerMessage::Draining { told, untold } => {
                self.slots[position].note_drain(told, untold);
            }
            WorkerMessage::RestartRefused { reason } => {
                self.on_restart(restart::Event::Refused { slot, incarnation, reason });
            }
            WorkerMessage::Adopt { .. } => log::error!("slot {slot}: gives itself to us, and is ours"),
            WorkerMessage::Giving { transfer, addresses } => {
                self.on_giving(position, incarnation, transfer, addresses);
            }
            WorkerMessage::Kept { transfer, addresses } => {
                self.on_kept(position, incarnation, transfer, addresses);
            }
            WorkerMessage::Took { addresses, .. } => {
                self.on_arrived(position, incarnation, addresses);
            }
            WorkerMessage::GiveEnded { transfer, moved, stopped } => {
                self.on_give_ended(transfer, moved, stopped);
            }
            WorkerMessage::TakeEnded { transfer } => self.on_take_ended(transfer),
            WorkerMessage::Applied { generation } => self.slots[position].applied_generation = generation,
        }
    }

    /// News of a worker. If it is a newer one than the one we know, that one is dead, whether or not its
    /// keeper could tell us.
    pub(crate) fn on_worker(&mut self, position: usize, worker: Worker) {
        let known = self.slots[position].machine.state().worker();
        if known.is_some_and(|known| known.incarnation < worker.incarnation) {
            let pause = Duration::ZERO;
            self.step(position, Event::WorkerDied { cause: Cause::Unknown, pause });
        }
        self.slots[position].worker = worker;
        self.watch_worker(position, worker);
    }

    /// Is this about the worker we know, or from a keeper that was late to tell?
    fn is_current(&self, position: usize, incarnation: Incarnation) -> bool {
        self.slots[position].machine.state().worker().is_none_or(|known| known.incarnation == incarnation)
    }

    /// A worker is there: from now on its word counts, and it is told what holds.
    fn on_hello(&mut self, position: usize, worker: Worker, version: String, knows: u32) {
        self.on_worker(position, worker);
        let seat = &mut self.slots[position];
        seat.unanswered.clear();
        seat.version = version;
        if let Some(link) = &mut seat.link {
            link.set_peer_knows(knows);
        }
        let slot = seat.id;
        self.ledger.resync_begin(slot, worker.incarnation);
        self.tell_settings(position);
        self.tell(position, &ToWorker::State { full: self.level == Level::Full });
        if self.stage.is_ending() {
            // Before it serves anybody: /health has to say so from the first moment.
            self.tell(position, &ToWorker::HoldDrain);
        }
    }

    /// Tells a slot's worker the settings that hold.
    pub(crate) fn tell_settings(&mut self, position: usize) {
        let knows = codec::known::<WorkerMessage>();
        let configure = ToWorker::Configure { generation: self.generation, knows };
        // Shared, for `tell_worker` may change anything.
        let memory = Arc::clone(&self.settings);
        self.tell_worker(position, Incarnation::ANY, &configure, &[memory.as_fd()]);
    }

    fn on_ready(&mut self, position: usize, incarnation: Incarnation) {
        let (now, slot) = (self.now, self.slots[position].id);
        self.ledger.resync_finish(slot, incarnation);
        let seat = &mut self.slots[position];
        seat.ready_since = Some(now);
        if let Some(died_at) = seat.died_at.take() {
            self.resume_seconds.observe(now.saturating_sub(died_at).as_secs_f64());
        }
        let worker = seat.worker;
        self.step(position, Event::Ready(worker));
    }

    pub(crate) fn on_admit(
        &mut self,
        position: usize,
        incarnation: Incarnation,
        tickets: Vec<(Ticket, IpAddr)>,
    ) {
        if !self.admission_hold.is_open() {
            return self.hold(position, incarnation, tickets);
        }
        let slot = self.slots[position].id;
        let verdict = |(ticket, address)| match self.ledger.admit(slot, incarnation, address) {
            Admission::Granted => Some((ticket, Verdict::Granted)),
            Admission::Refused(reason) => Some((ticket, Verdict::Refused(reason))),
            Admission::Stale => None,
        };
        let verdicts: Vec<_> = tickets.into_iter().filter_map(verdict).collect();
        let granted = verdicts.iter().filter(|(_, verdict)| *verdict == Verdict::Granted).count();
        self.slots[position].admitted.accepted += granted as u64;
        // Before anybody hears of it: whoever adopts must not count fewer than were let in.
        self.remember(position);
        if !verdicts.is_empty() {
            self.tell_worker(position, incarnation, &ToWorker::Verdicts { verdicts }, &[]);
        }
    }

    fn on_report(&mut self, position: usize, request: Option<u64>, report: Report) {
        let seat = &mut self.slots[position];
        seat.report = report;
        if let Some(request) = request {
            seat.unanswered.remove(&request);
        }
        self.remember(position);
    }
}

impl From<DeathCause> for Cause {
    fn from(cause: DeathCause) -> Self {
        match cause {
            DeathCause::Exit(status) => Self::Exit(status),
            DeathCause::Signal(signal) => Self::Signal(signal),
        }
    }
}
