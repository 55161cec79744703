//! The supervisor's end of the links: one exhaustive match over what slots say. Admission happens here, message by message.

use std::net::IpAddr;

use holdfast_shared::id::{Incarnation, Ticket};
use holdfast_shared::ipc::link::LinkError;
use holdfast_shared::ipc::message::{DeathCause, Report, ToSupervisor, ToWorker, Verdict};
use holdfast_shared::level::Level;
use nix::unistd::Pid;

use crate::ledger::Admission;
use crate::pool::send_kill;
use crate::settings;
use crate::slot::{Cause, Event, Worker};
use crate::supervisor::Supervisor;

impl Supervisor {
    /// Reads all that a slot has said.
    pub(crate) fn on_link(&mut self, position: usize) {
        while let Some(link) = self.seats.get_mut(position).and_then(|seat| seat.link.as_mut()) {
            match link.flush().and_then(|()| link.receive()) {
                Ok(Some(message)) => self.on_message(position, message),
                Ok(None) => return,
                Err(LinkError::Closed) => return self.on_link_closed(position),
                Err(error) => {
                    log::error!("slot {}: {error}; the message is ignored", self.seats[position].id);
                }
            }
        }
    }

    /// Says something to a slot's worker. One that has stopped reading is killed: the next one takes over its connections, and asks
    /// again for what it was not told.
    pub(crate) fn tell(&mut self, position: usize, message: &ToWorker) {
        let Some(seat) = self.seats.get_mut(position) else { return };
        let Some(link) = &mut seat.link else { return };
        match link.send(message) {
            Ok(()) => {}
            Err(LinkError::Full) => {
                log::error!(
                    "slot {}: worker {} does not read its link, killing it",
                    seat.id,
                    seat.worker.pid
                );
                if seat.machine.state().worker().is_some_and(|worker| worker == seat.worker) {
                    send_kill(seat.worker.pid);
                }
            }
            // Its end of file is read in due course, after what came before it.
            Err(LinkError::Closed) => {}
            Err(error) => log::error!("slot {}: {error}", seat.id),
        }
    }

    fn on_link_closed(&mut self, position: usize) {
        self.seats[position].link = None;
        self.step(position, Event::LinkClosed);
    }

    fn on_message(&mut self, position: usize, message: ToSupervisor) {
        let slot = self.seats[position].id;
        match message {
            ToSupervisor::Started { incarnation, pid } => {
                let worker = Worker { pid: Pid::from_raw(pid), incarnation };
                self.seats[position].worker = worker;
                self.step(position, Event::WorkerStarted(worker));
            }
            ToSupervisor::Died { incarnation, cause, lived, pause } => {
                log::debug!("slot {slot}: worker {incarnation} lived {lived:?}");
                self.step(position, Event::WorkerDied { cause: cause.into(), pause });
            }
            ToSupervisor::Left { incarnation } => {
                log::debug!("slot {slot}: worker {incarnation} has left");
                self.step(position, Event::WorkerLeft);
            }
            ToSupervisor::Hello { incarnation, pid } => self.on_hello(position, incarnation, pid),
            ToSupervisor::Holdings { incarnation, addresses } => {
                for (address, count) in addresses {
                    self.ledger.resync_add(slot, incarnation, address, count);
                }
            }
            ToSupervisor::Ready { incarnation, resumed, lost, took, counters } => {
                log::debug!("slot {slot}: worker {incarnation} resumed {resumed}, lost {lost}, in {took:?}");
                self.seats[position].reconcile(&counters);
                self.on_ready(position, incarnation);
            }
            ToSupervisor::Admit { incarnation, tickets } => self.on_admit(position, incarnation, tickets),
            ToSupervisor::Release { incarnation, closed } => {
                for (address, reason) in closed {
                    if self.ledger.release(slot, incarnation, address) {
                        self.seats[position].count_close(reason);
                    }
                }
            }
            ToSupervisor::Report { request, report, .. } => self.on_report(position, request, *report),
            ToSupervisor::Applied { generation, .. } => self.seats[position].applied_generation = generation,
        }
    }

    /// A worker is there: from now on its word counts, and it is told what holds.
    fn on_hello(&mut self, position: usize, incarnation: Incarnation, pid: i32) {
        let seat = &mut self.seats[position];
        seat.worker = Worker { pid: Pid::from_raw(pid), incarnation };
        seat.unanswered.clear();
        let slot = seat.id;
        self.ledger.resync_begin(slot, incarnation);
        let settings = Box::new(settings::for_worker(&self.effective.config, &self.capacity));
        self.tell(position, &ToWorker::Configure { generation: self.generation, settings });
        self.tell(position, &ToWorker::State { full: self.level == Level::Full });
    }

    fn on_ready(&mut self, position: usize, incarnation: Incarnation) {
        let (now, slot) = (self.now, self.seats[position].id);
        self.ledger.resync_finish(slot, incarnation);
        let seat = &mut self.seats[position];
        seat.ready_since = Some(now);
        if let Some(died_at) = seat.died_at.take() {
            self.resume_seconds.observe(now.saturating_sub(died_at).as_secs_f64());
        }
        let worker = seat.worker;
        self.step(position, Event::Hello(worker));
    }

    fn on_admit(&mut self, position: usize, incarnation: Incarnation, tickets: Vec<(Ticket, IpAddr)>) {
        let slot = self.seats[position].id;
        let verdict = |(ticket, address)| match self.ledger.admit(slot, incarnation, address) {
            Admission::Granted => Some((ticket, Verdict::Granted)),
            Admission::Refused(reason) => Some((ticket, Verdict::Refused(reason))),
            Admission::Stale => None,
        };
        let verdicts: Vec<_> = tickets.into_iter().filter_map(verdict).collect();
        let granted = verdicts.iter().filter(|(_, verdict)| *verdict == Verdict::Granted).count();
        self.seats[position].admitted.accepted += granted as u64;
        if !verdicts.is_empty() {
            self.tell(position, &ToWorker::Verdicts { incarnation, verdicts });
        }
    }

    fn on_report(&mut self, position: usize, request: Option<u64>, report: Report) {
        let seat = &mut self.seats[position];
        seat.report = report;
        if let Some(request) = request {
            seat.unanswered.remove(&request);
        }
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
