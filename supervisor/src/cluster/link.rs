//! The supervisor's end of the links: one exhaustive match over what slots say.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::codec;
use holdfast_shared::ipc::link::LinkError;
use holdfast_shared::ipc::message::{
    DeathCause, Envelope, KeeperMessage, Report, ToSupervisor, ToWorker, WorkerMessage,
};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::lifecycle::{Cause, Event, State, Worker};
use super::slot::{HANDED_OVER, Slot};
use super::{Cluster, News};
use crate::api::RestartedSlot;

/// Messages of one slot in one turn.
const MESSAGES_PER_TURN: usize = 64;

/// How far a link was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkEnd {
    /// Nothing more for now.
    Open,
    /// There may be more.
    Unread,
    /// Nobody holds the other end.
    Closed,
}

impl Cluster {
    /// Reads what a slot has said.
    pub(crate) fn on_link(&mut self, slot: SlotId) {
        let end = self.read_link(slot);
        self.note_link_end(slot, end);
    }

    /// Reads what a slot has said, but no more than so much in one turn: others wait for verdicts. Says how
    /// that ended.
    pub(super) fn read_link(&mut self, slot: SlotId) -> LinkEnd {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(link) = self.slots.get_mut(slot).and_then(|slot| slot.link.as_mut()) else {
                return LinkEnd::Open;
            };
            match link.flush().and_then(|()| link.receive()) {
                Ok(Some(message)) => self.on_message(slot, message),
                Ok(None) => return LinkEnd::Open,
                Err(LinkError::Closed) => return LinkEnd::Closed,
                Err(error) => {
                    log::error!("slot {slot}: {error}; the message is ignored");
                }
            }
        }
        LinkEnd::Unread
    }

    /// Does what reading a link to this end asks for.
    pub(super) fn note_link_end(&mut self, slot: SlotId, end: LinkEnd) {
        match end {
            LinkEnd::Open => {}
            LinkEnd::Unread => self.unread_links.push(slot),
            LinkEnd::Closed => {
                self.slots[slot].link = None;
                self.step(slot, Event::LinkClosed);
            }
        }
    }

    /// Goes on with the links that had more to say than one turn allows.
    pub(super) fn continue_links(&mut self) {
        for slot in std::mem::take(&mut self.unread_links) {
            self.on_link(slot);
        }
    }

    /// Says something to whichever worker of a slot serves. What must arrive waits until there is room, but a
    /// worker that has stopped reading is killed: the next one takes over its connections, and asks again for
    /// what it was not told.
    pub(super) fn tell(&mut self, slot: SlotId, message: &ToWorker) {
        self.tell_worker(slot, Incarnation::ANY, message, &[]);
    }

    /// As `tell`, to one of the slot's workers and no other, with copies of `descriptors`.
    pub(super) fn tell_worker(
        &mut self,
        slot: SlotId,
        incarnation: Incarnation,
        message: &ToWorker,
        descriptors: &[BorrowedFd<'_>],
    ) {
        let Some(record) = self.slots.get_mut(slot) else { return };
        let Some(link) = &mut record.link else { return };
        match link.send_with(incarnation, message, descriptors) {
            Ok(()) if link.has_room() => {}
            Ok(()) => {
                let worker = record.worker;
                log::error!("slot {slot}: worker {} does not read its link, killing it", worker.pid);
                if record.state().worker() == Some(worker) {
                    self.signal(slot, worker.pid, Signal::SIGKILL);
                }
            }
            // The end of file is read in due course, after what came before it.
            Err(LinkError::Closed | LinkError::NotKnown { .. }) => {}
            Err(error) => log::error!("slot {slot}: {error}"),
        }
    }

    /// Asks a slot's worker to hand over to the next, which runs `program` if there is one. Returns which was asked, or
    /// the state of a slot whose worker cannot be.
    pub(crate) fn ask_to_hand_over(
        &mut self,
        slot: SlotId,
        program: Option<BorrowedFd<'_>>,
    ) -> Result<Incarnation, &'static str> {
        let state = self.slots.get(slot).map(Slot::state).ok_or("gone")?;
        match (state, state.worker()) {
            (State::Ready(_), Some(Worker { incarnation, .. })) => {
                self.tell_worker(slot, incarnation, &ToWorker::Restart, program.as_slice());
                Ok(incarnation)
            }
            _ => Err(state.name()),
        }
    }

    fn on_message(&mut self, slot: SlotId, envelope: Envelope<ToSupervisor>) {
        let Envelope { incarnation, message } = envelope;
        match message {
            ToSupervisor::Keeper(message) => self.on_keeper_message(slot, incarnation, message),
            ToSupervisor::Worker(message) => {
                self.hear(slot);
                self.on_worker_message(slot, incarnation, message);
            }
        }
    }

    fn on_keeper_message(&mut self, slot: SlotId, incarnation: Incarnation, message: KeeperMessage) {
        match message {
            KeeperMessage::Started { pid } => {
                let worker = Worker { pid: Pid::from_raw(pid), incarnation };
                self.on_worker(slot, worker);
                self.step(slot, Event::WorkerStarted(worker));
            }
            KeeperMessage::Died { cause, lived, pause } => {
                log::debug!("slot {slot}: worker {incarnation} lived {lived:?}");
                if self.is_current(slot, incarnation) {
                    self.waiting_room.leave_slot(slot, incarnation.next());
                    self.step(slot, Event::WorkerDied { cause: cause.into(), pause });
                }
                self.news.push(News::Died { slot, incarnation });
            }
            KeeperMessage::Left => {
                log::debug!("slot {slot}: worker {incarnation} has left");
                if self.is_current(slot, incarnation) {
                    self.waiting_room.leave_slot(slot, incarnation.next());
                    self.step(slot, Event::WorkerLeft);
                }
            }
            KeeperMessage::HandedOver => {
                log::debug!("slot {slot}: worker {incarnation} has handed over");
                if self.is_current(slot, incarnation) {
                    self.waiting_room.leave_slot(slot, incarnation.next());
                    self.slots[slot].on_worker_end(HANDED_OVER, self.now);
                    self.step(slot, Event::WorkerLeft);
                }
            }
            KeeperMessage::ProgramRefused { reason } => {
                let reason = format!("the new one cannot be executed: {reason}");
                self.news.push(News::KeptProgram { slot, reason });
            }
            KeeperMessage::WentBack { reason } => {
                log::error!("slot {slot}: went back to the program before: {reason}");
                self.news.push(News::KeptProgram { slot, reason });
            }
            KeeperMessage::WantsChannels => self.on_wants_channels(slot),
            KeeperMessage::Keeper { pid } => {
                self.on_keeper(slot, Worker { pid: Pid::from_raw(pid), incarnation });
            }
        }
    }

    fn on_worker_message(&mut self, slot: SlotId, incarnation: Incarnation, message: WorkerMessage) {
        match message {
            WorkerMessage::Hello { pid, version, knows } => {
                self.on_hello(slot, Worker { pid: Pid::from_raw(pid), incarnation }, version, knows);
            }
            WorkerMessage::Holdings { addresses } => {
                for (address, count) in addresses {
                    self.ledger.resync_add(slot, incarnation, address, count);
                }
            }
            WorkerMessage::Ready { resumed, lost, took, counters } => {
                log::debug!("slot {slot}: worker {incarnation} resumed {resumed}, lost {lost}, in {took:?}");
                self.slots[slot].book.taken_over(&counters);
                self.on_ready(slot, incarnation);
                let pause_ms = took.as_secs_f64() * 1000.0;
                let result = RestartedSlot { slot: slot.0, kept: resumed, lost, pause_ms };
                self.news.push(News::Ready { incarnation, result });
                self.remember(slot);
                self.note_reported(slot);
            }
            WorkerMessage::Admit { tickets } => self.on_admit(slot, incarnation, tickets),
            WorkerMessage::Withdraw { tickets } => self.on_withdraw(slot, incarnation, &tickets),
            WorkerMessage::Release { closed } => {
                for (address, reason) in closed {
                    if self.ledger.release(slot, incarnation, address) {
                        self.slots[slot].book.close(reason);
                    }
                }
                self.remember(slot);
            }
            WorkerMessage::Report { request, report } => self.on_report(slot, request, *report),
            WorkerMessage::Draining { told, untold } => {
                self.slots[slot].note_drain(told, untold);
            }
            WorkerMessage::RestartRefused { reason } => {
                self.news.push(News::Stays { slot, incarnation, reason });
            }
            WorkerMessage::Adopt { .. } => log::error!("slot {slot}: gives itself to us, and is ours"),
            WorkerMessage::Giving { transfer, addresses } => {
                self.on_giving(slot, incarnation, transfer, addresses);
            }
            WorkerMessage::Kept { transfer, addresses } => {
                self.on_kept(slot, incarnation, transfer, addresses);
            }
            WorkerMessage::Took { addresses, .. } => {
                self.on_arrived(slot, incarnation, addresses);
            }
            WorkerMessage::GiveEnded { transfer, moved, stopped } => {
                self.on_give_ended(transfer, moved, stopped);
            }
            WorkerMessage::TakeEnded { transfer } => self.on_take_ended(transfer),
            WorkerMessage::Told { order, named, told } => self.news.push(News::Told { order, named, told }),
            WorkerMessage::Applied { generation } => self.slots[slot].applied_generation = generation,
        }
    }

    /// News of a worker. If it is a newer one than the one we know, that one is dead, whether or not its
    /// keeper could tell us.
    pub(super) fn on_worker(&mut self, slot: SlotId, worker: Worker) {
        let known = self.slots[slot].state().worker();
        if known.is_some_and(|known| known.incarnation < worker.incarnation) {
            let pause = Duration::ZERO;
            self.step(slot, Event::WorkerDied { cause: Cause::Unknown, pause });
        }
        self.slots[slot].worker = worker;
        self.watch_worker(slot, worker);
    }

    /// Is this about the worker we know, or from a keeper that was late to tell?
    fn is_current(&self, slot: SlotId, incarnation: Incarnation) -> bool {
        self.slots[slot].state().worker().is_none_or(|known| known.incarnation == incarnation)
    }

    /// A worker is there: from now on its word counts, and it is told what holds.
    fn on_hello(&mut self, slot: SlotId, worker: Worker, version: String, knows: u32) {
        self.on_worker(slot, worker);
        let record = &mut self.slots[slot];
        record.unanswered.clear();
        record.version = version;
        if let Some(link) = &mut record.link {
            link.set_peer_knows(knows);
        }
        self.ledger.resync_begin(slot, worker.incarnation);
        self.waiting_room.leave_slot(slot, worker.incarnation);
        self.tell_settings(slot);
        self.tell(slot, &self.level_message());
        if self.phase.is_ending() {
            // Before it serves anybody: /health has to say so from the first moment.
            self.tell(slot, &ToWorker::HoldDrain);
        }
    }

    /// Tells a slot's worker the settings that hold.
    pub(super) fn tell_settings(&mut self, slot: SlotId) {
        let knows = codec::known::<WorkerMessage>();
        let configure = ToWorker::Configure { generation: self.generation, knows };
        // Shared, for `tell_worker` may change anything.
        let memory = Arc::clone(&self.settings);
        self.tell_worker(slot, Incarnation::ANY, &configure, &[memory.as_fd()]);
    }

    fn on_ready(&mut self, slot: SlotId, incarnation: Incarnation) {
        self.ledger.resync_finish(slot, incarnation);
        let record = &mut self.slots[slot];
        record.ready_since = Some(self.now);
        if let Some(died_at) = record.died_at.take() {
            self.resume_seconds.observe(self.now.saturating_sub(died_at).as_secs_f64());
        }
        let worker = record.worker;
        self.step(slot, Event::Ready(worker));
    }

    fn on_report(&mut self, slot: SlotId, request: Option<u64>, report: Report) {
        let record = &mut self.slots[slot];
        record.book.report(&report.counters);
        record.report = report;
        if let Some(request) = request {
            record.unanswered.remove(&request);
        }
        self.remember(slot);
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
