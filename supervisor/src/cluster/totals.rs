//! Answering questions with figures of one moment: every worker is asked, and the answer is put together when
//! all have reported. One that does not report in time is named, and its last figures stand; no figure is
//! ever reset while it is being collected.

use std::time::Duration;

use holdfast_shared::counters::Counters;
use holdfast_shared::ipc::message::ToWorker;
use holdfast_shared::level::Level;

use crate::api::histogram::Histogram;
use crate::api::{
    self, Answer, ConfigEntry, Health, HealthStatus, LimitsView, Report, ServiceState, Snapshot, Totals,
    WorkerRow,
};
use crate::api::{Command, Reply, Request};
use crate::cluster::lifecycle::State;
use crate::cluster::slot::Slot;
use crate::host::kernel;
use crate::supervisor::Supervisor;

/// How long a worker may take to report before it is called silent.
const PATIENCE: Duration = Duration::from_secs(1);

/// A question whose answer needs the workers' reports.
#[derive(Debug)]
pub struct Gather {
    /// When it is answered, whether or not all have reported.
    pub(crate) deadline: Duration,
    request: u64,
    command: Command,
    reply: Reply,
}

impl Gather {
    /// The way back to whoever asked.
    pub(crate) fn into_reply(self) -> Reply {
        self.reply
    }
}

impl Supervisor {
    /// Takes every request the control thread has put into the channel.
    pub(crate) fn on_requests(&mut self) {
        while let Ok(Request { command, reply }) = self.requests.try_recv() {
            match command {
                Command::Totals | Command::Workers | Command::Metrics => self.gather(command, reply),
                Command::Config => reply.send(Ok(Answer::Config(self.config_entries()))),
                Command::Limits => reply.send(Ok(Answer::Limits(self.limits_view()))),
                Command::Health => reply.send(Ok(Answer::Health(self.health()))),
                Command::Reload => self.reload(Some(reply)),
                Command::Restart { slot } => self.restart(slot, Some(reply)),
                Command::Upgrade { status: false } => self.upgrade(Some(reply)),
                Command::Upgrade { status: true } => {
                    reply.send(Ok(Answer::Upgrade(Box::new(self.upgrade_progress()))));
                }
                Command::Rebalance => self.rebalance(Some(reply)),
                Command::Drain(order) => {
                    let answer = self.order_drain(order);
                    reply.send(answer);
                }
                Command::Stop => {
                    reply.send(Ok(self.done("stopping: connections are cut, the service exits")));
                    self.stop();
                }
            }
        }
    }

    /// Answers the questions that all workers have reported for, or that have waited long enough.
    pub(crate) fn finish_gathers(&mut self) {
        let now = self.now;
        let slots = &self.slots;
        let is_due = |gather: &mut Gather| {
            now >= gather.deadline || !slots.iter().any(|seat| seat.unanswered.contains(&gather.request))
        };
        let due: Vec<Gather> = self.gathers.extract_if(.., is_due).collect();
        for Gather { request, command, reply, .. } in due {
            if reply.is_abandoned() {
                continue;
            }
            let answer = match command {
                Command::Workers => Answer::Workers(self.worker_rows(request)),
                Command::Metrics => Answer::Metrics(Box::new(self.snapshot(request))),
                _ => Answer::Totals(Box::new(self.totals(request))),
            };
            reply.send(Ok(answer));
            for seat in &mut self.slots {
                seat.unanswered.remove(&request);
            }
        }
    }

    fn gather(&mut self, command: Command, reply: Reply) {
        self.last_request += 1;
        let request = self.last_request;
        for position in 0..self.slots.len() {
            let seat = &mut self.slots[position];
            if seat.ready_since.is_some() && seat.link.is_some() {
                seat.unanswered.insert(request);
                self.tell(position, &ToWorker::ReportNow { request });
            }
        }
        self.gathers.push(Gather { deadline: self.now + PATIENCE, request, command, reply });
    }

    fn totals(&self, request: u64) -> Totals {
        let counters = self.counters();
        let connections = self.ledger.connections();
        let max = self.capacity.max_connections;
        Totals {
            connections,
            max_connections: max.into(),
            utilization: fraction(connections, max.into()),
            level: self.level,
            state: if self.stage.is_ending() { ServiceState::Draining } else { ServiceState::Running },
            drain: self.drain_progress(),
            workers: self.scale.wanted() as u64,
            workers_ready: self.ready_seats(),
            silent_workers: self
                .slots
                .iter()
                .filter(|seat| is_silent(seat, request))
                .map(|seat| seat.id.0)
                .collect(),
            accepted_total: self.all_seats().map(|seat| seat.admitted.accepted).sum(),
            rejected_total: api::rejections(&counters.rejected),
            closed_total: api::closes(&self.closed()),
            restarts_total: self.all_seats().map(Slot::restarts_total).sum(),
            resumed_total: counters.resumed,
            lost_total: counters.lost,
            accept_pauses_total: counters.accept_pauses,
            anomalies_total: self.ledger.anomalies(),
            messages_received_total: counters.messages_received,
            messages_sent_total: counters.messages_sent,
            bytes_received_total: counters.bytes_received,
            bytes_sent_total: counters.bytes_sent,
            pending_handshakes: self.slots.iter().map(|seat| u64::from(seat.report.pending_handshakes)).sum(),
            uptime_seconds: self.now.saturating_sub(self.started).as_secs_f64(),
            version: self.program.version.to_owned(),
        }
    }

    fn worker_rows(&self, request: u64) -> Vec<WorkerRow> {
        self.slots
            .iter()
            .enumerate()
            .map(|(position, seat)| self.worker_row(position, seat, request))
            .collect()
    }

    fn worker_row(&self, position: usize, seat: &Slot, request: u64) -> WorkerRow {
        let state = seat.machine.state();
        let worker = state.worker();
        let counters = seat.counters();
        let queue = self.listeners.accept_queue(position);
        let pid = |pid: nix::unistd::Pid| u32::try_from(pid.as_raw()).ok();
        WorkerRow {
            slot: seat.id.0,
            pid: worker.and_then(|worker| pid(worker.pid)),
            keeper_pid: state.keeper().and_then(pid),
            incarnation: seat.worker.incarnation.0,
            state: self.state_name(position, seat).to_owned(),
            weight: self.steering.share(position),
            silent: is_silent(seat, request),
            last_death: seat.last_death.clone(),
            restarts_total: seat.restarts.clone(),
            connections: self.ledger.held_by(seat.id),
            accepted_total: seat.admitted.accepted,
            rejected_total: counters.rejected_total(),
            messages_received_total: counters.messages_received,
            messages_sent_total: counters.messages_sent,
            queued_bytes: seat.report.queued_bytes,
            loop_lag_seconds: seat.report.loop_lag.as_secs_f64(),
            accept_queue: queue.length.into(),
            accept_queue_max: queue.limit.into(),
            open_descriptors: worker.map(|_| seat.report.open_descriptors.into()),
            max_descriptors: worker.map(|_| self.descriptors.into()),
            resident_bytes: worker.and_then(|worker| kernel::resident_bytes(worker.pid)),
            uptime_seconds: seat
                .ready_since
                .map_or(0.0, |since| self.now.saturating_sub(since).as_secs_f64()),
            version: seat.version.clone(),
        }
    }

    fn state_name(&self, position: usize, seat: &Slot) -> &'static str {
        match seat.machine.state() {
            _ if seat.heartbeat.is_wedged() => "wedged",
            State::Ready(_) | State::Draining(_) if self.scale.retires(position) => "retiring",
            state => state.name(),
        }
    }

    fn snapshot(&self, request: u64) -> Snapshot {
        let counters = self.counters();
        Snapshot {
            totals: self.totals(request),
            workers: self.worker_rows(request),
            limits: self.limits_view(),
            connection_duration: Histogram::durations(&counters.duration),
            resume: self.resume_seconds.clone(),
            admission_wait: Histogram::admission_waits(&counters.admission_wait),
            listen_drops: kernel::listen_drops(),
        }
    }

    fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for seat in self.all_seats() {
            sum.add(&seat.counters());
        }
        sum
    }

    fn closed(&self) -> [u64; 32] {
        let mut sum = [0; 32];
        for seat in self.all_seats() {
            for (sum, count) in sum.iter_mut().zip(seat.admitted.closed) {
                *sum += count;
            }
        }
        sum
    }

    fn config_entries(&self) -> Vec<ConfigEntry> {
        self.effective.entries().into_iter().map(Into::into).collect()
    }

    fn limits_view(&self) -> LimitsView {
        let limits = &self.effective.config.limits;
        LimitsView {
            max_connections: self.edges.max,
            soft_connections: self.edges.soft,
            warning_connections: self.edges.warning,
            max_connections_per_address: self.ledger.limits().max_connections_per_address.into(),
            max_pending_handshakes: limits.max_pending_handshakes.into(),
            max_message_size: limits.max_message_size as u64,
            max_queued_output: limits.max_queued_output as u64,
            max_buffered_total: self.capacity.buffered_per_worker,
            level: self.level,
            descriptors_per_worker: self.descriptors.into(),
        }
    }

    fn health(&self) -> Health {
        Health {
            status: if self.stage.is_ending() {
                HealthStatus::Draining
            } else if self.level == Level::Full {
                HealthStatus::Full
            } else {
                HealthStatus::Ok
            },
            connections: self.ledger.connections(),
            max_connections: self.capacity.max_connections.into(),
            level: self.level,
            workers: self.scale.wanted() as u64,
            workers_ready: self.ready_seats(),
        }
    }

    fn ready_seats(&self) -> u64 {
        let serves = |(position, seat): &(usize, &Slot)| {
            let is_ready = matches!(seat.machine.state(), State::Ready(_)) && !seat.heartbeat.is_wedged();
            is_ready && !self.scale.retires(*position)
        };
        self.slots.iter().enumerate().filter(serves).count() as u64
    }

    /// All slots there have been.
    fn all_seats(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().chain(&self.retired)
    }

    fn done(&self, message: &str) -> Answer {
        Answer::Done(Report {
            message: message.to_owned(),
            connections: self.ledger.connections(),
            drain: None,
        })
    }
}

/// Did it not report for this request? One that has no worker now could not even be asked.
fn is_silent(seat: &Slot, request: u64) -> bool {
    seat.unanswered.contains(&request)
        || (seat.ready_since.is_none() && !matches!(seat.machine.state(), State::Left))
}

fn fraction(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
