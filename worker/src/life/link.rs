//! The worker's end of the link: one exhaustive match over what the supervisor says, and the senders of what
//! it is told.

use std::time::Duration;

use holdfast_shared::id::Incarnation;
use holdfast_shared::ipc::link::LinkError;
use holdfast_shared::ipc::message::{Envelope, MAX_BATCH, Report, ToWorker, WorkerMessage};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::life::event_loop::Worker;
use crate::life::settings;
use crate::serve::Admission;

impl Worker {
    /// Reads all that the supervisor has said.
    pub(crate) fn read_link(&mut self) {
        while let Some(link) = &mut self.link {
            let received = link.flush().and_then(|()| link.receive_with());
            match received {
                Ok(Some((envelope, descriptors))) => self.on_message(envelope, descriptors),
                Ok(None) => return,
                Err(LinkError::Closed) => return self.lose_supervisor(),
                Err(error) => log::error!("{error}; the message is ignored"),
            }
        }
    }

    fn on_message(&mut self, envelope: Envelope<ToWorker>, descriptors: Vec<OwnedFd>) {
        if ![Incarnation::ANY, self.incarnation].contains(&envelope.incarnation) {
            // For a worker that is dead. A socket that is dropped tells the other side that nobody is here.
            return;
        }
        match envelope.message {
            ToWorker::Configure { knows, .. } => {
                if let Some(link) = &mut self.link {
                    link.set_peer_knows(knows);
                }
                let came = descriptors.into_iter().next();
                match settings::put_in_force(&mut self.server.clients.connections.table, came) {
                    Ok((generation, settings)) => {
                        self.configure(settings);
                        self.tell(WorkerMessage::Applied { generation });
                    }
                    Err(error) => log::error!("the new settings cannot be applied: {error}"),
                }
            }
            ToWorker::Verdicts { verdicts } => {
                for (ticket, verdict) in verdicts {
                    self.server.on_verdict(ticket, verdict);
                }
            }
            ToWorker::ReportNow { request } => self.send_report(Some(request)),
            ToWorker::State { full, level } => {
                self.cluster_full = full;
                self.server.clients.set_level(level);
            }
            ToWorker::Drain { duration } => self.server.begin_drain(duration),
            ToWorker::HoldDrain => self.server.hold_drain(),
            ToWorker::Leave => self.server.leave(),
            ToWorker::Restart => self.begin_hand_over(descriptors.into_iter().next()),
            ToWorker::Give { transfer, to, count } => {
                if let Some(pair) = descriptors.into_iter().next() {
                    self.begin_giving(transfer, to, count, pair);
                }
            }
            ToWorker::Take { transfer, from } => {
                if let Some(pair) = descriptors.into_iter().next() {
                    self.begin_taking(transfer, from, pair);
                }
            }
            ToWorker::Counted { transfer } => self.on_counted(transfer),
            // For the keeper, which has not waited for it: nothing of it may stay here.
            ToWorker::Channels => drop(descriptors),
            ToWorker::Close { order, targets, code, text, reason } => {
                let clients = &mut self.server.clients;
                let told = targets.iter().filter(|target| clients.close(target, code, &text, reason)).count();
                let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
                self.tell(WorkerMessage::Told { order, named: count(targets.len()), told: count(told) });
            }
        }
    }

    /// Asks for admission of all who came with a valid request in this turn.
    pub(crate) fn send_tickets(&mut self) {
        while self.server.admission.has_unsent() && self.link_has_room() {
            let tickets = self.server.admission.take_batch();
            self.tell(WorkerMessage::Admit { tickets });
        }
    }

    /// Tells of all who left in this turn while they waited to be let in.
    pub(crate) fn send_withdrawn(&mut self) {
        for tickets in self.server.take_withdrawn().chunks(MAX_BATCH) {
            self.tell(WorkerMessage::Withdraw { tickets: tickets.to_vec() });
        }
    }

    /// Gives back the places of all who left in this turn. Never lost: what the link does not take waits
    /// here.
    pub(crate) fn send_releases(&mut self) {
        // Of those that are about to go, some may have ended: the supervisor hears first that they stayed.
        if self.moving.is_announced() {
            return;
        }
        while !self.server.clients.connections.released.is_empty() && self.link_has_room() {
            let released = &mut self.server.clients.connections.released;
            let closed = released.drain(..released.len().min(MAX_BATCH)).collect();
            self.tell(WorkerMessage::Release { closed });
        }
    }

    /// Reports the counts of this moment. What was counted is told first, so that a report and the ledger
    /// agree; and who is over is counted before.
    pub(crate) fn send_report(&mut self, request: Option<u64>) {
        self.server.finish_ended();
        self.send_releases();
        if let Some((told, untold)) = self.server.drain_progress() {
            self.tell(WorkerMessage::Draining { told, untold });
        }
        if let Some(link) = &mut self.link {
            let (dropped, skipped) = link.take_lost();
            let counters = self.server.clients.connections.table.counters();
            counters.link_dropped += dropped;
            counters.link_skipped += skipped;
        }
        let report = Report {
            connections: self.server.clients.connections.admitted(),
            pending_handshakes: self.server.clients.connections.pending(),
            queued_bytes: self.server.clients.connections.queued_bytes(),
            loop_lag: std::mem::replace(&mut self.longest_turn, Duration::ZERO),
            open_descriptors: self.server.open_descriptors(),
            counters: *self.server.clients.connections.table.counters(),
        };
        self.tell(WorkerMessage::Report { request, report: Box::new(report) });
    }

    /// Says something to the supervisor. What must arrive waits until there is room.
    pub(crate) fn tell(&mut self, message: WorkerMessage) {
        let Some(link) = &mut self.link else { return };
        match link.send(self.incarnation, &message.into()) {
            Ok(()) | Err(LinkError::NotKnown { .. }) => {}
            Err(LinkError::Closed) => self.lose_supervisor(),
            Err(error) => log::error!("{error}"),
        }
    }

    pub(crate) fn link_has_room(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.has_room())
    }

    /// The supervisor is gone. Those who are in stay and are served; those who would come in wait for the
    /// next one, for nobody counts until then.
    fn lose_supervisor(&mut self) {
        let Some(link) = self.link.take() else { return };
        log::error!(
            "the supervisor is gone: going on with {} connections, new ones wait for the next",
            self.server.clients.connections.admitted()
        );
        self.server.unwatch(link.as_raw_fd());
        self.reconnection.keep(link);
        self.server.admission = Admission::default();
        self.reconnection.begin(self.server.now);
    }
}
