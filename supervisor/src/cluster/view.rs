//! What operators and monitoring see of the cluster, all of one instant. Changes nothing, but for asking the workers to
//! report first.

use holdfast_shared::config::Shed;
use holdfast_shared::counters::Counters;
use holdfast_shared::ipc::message::ToWorker;
use holdfast_shared::level::Level;
use nix::unistd::Pid;

use super::Cluster;
use super::lifecycle::State;
use super::slot::Slot;
use crate::api::histogram::Histogram;
use crate::api::{
    self, ConfigEntry, DrainProgress, Health, HealthStatus, LimitsView, RebalancedSlot, ServiceState,
    Snapshot, Totals, WorkerRow,
};
use crate::host::kernel;

impl Cluster {
    /// Asks every worker that can answer to report. Returns the number of this request.
    pub(crate) fn ask_for_reports(&mut self) -> u64 {
        let request = self.next_request();
        for id in self.slots.ids() {
            let slot = &mut self.slots[id];
            if slot.answers() && slot.link.is_some() {
                slot.unanswered.insert(request);
                self.tell(id, &ToWorker::ReportNow { request });
            }
        }
        request
    }

    /// A number that nothing else was asked with.
    pub(crate) fn next_request(&mut self) -> u64 {
        self.last_request += 1;
        self.last_request
    }

    /// Has every worker reported that was asked to?
    pub(crate) fn has_reports(&self, request: u64) -> bool {
        !self.slots().any(|slot| slot.unanswered.contains(&request))
    }

    /// Nobody waits for these reports any more.
    pub(crate) fn forget_request(&mut self, request: u64) {
        for slot in &mut self.slots.0 {
            slot.unanswered.remove(&request);
        }
    }

    /// The whole service, after the workers were asked by `request`.
    pub(crate) fn totals(&self, request: u64, version: &str, drain: Option<DrainProgress>) -> Totals {
        let counters = self.counters();
        let connections = self.ledger.connections();
        let max = self.capacity.max_connections;
        let mut closed = [0; 32];
        for slot in self.all_slots() {
            for (sum, count) in closed.iter_mut().zip(slot.book.closed()) {
                *sum += count;
            }
        }
        Totals {
            connections,
            max_connections: max.into(),
            utilization: fraction(connections, max.into()),
            level: self.level(),
            level_cause: self.level_cause().name().to_owned(),
            level_entries_total: self.state.levels_counted(),
            state: if self.phase.is_ending() { ServiceState::Draining } else { ServiceState::Running },
            drain,
            workers: self.wanted.into(),
            workers_ready: self.serving(),
            silent_workers: self
                .slots()
                .filter(|slot| is_silent(slot, request))
                .map(|slot| slot.id.0)
                .collect(),
            accepted_total: self.all_slots().map(|slot| slot.book.accepted()).sum(),
            rejected_total: api::rejections(&counters.rejected),
            closed_total: api::closes(&closed),
            restarts_total: self.all_slots().map(Slot::restarts_total).sum(),
            resumed_total: counters.resumed,
            lost_total: counters.lost,
            accept_pauses_total: counters.accept_pauses,
            anomalies_total: self.ledger.anomalies(),
            link_messages_dropped_total: counters.link_dropped,
            link_messages_skipped_total: counters.link_skipped,
            log_lines_dropped_total: self.state.log_lines_dropped(),
            messages_received_total: counters.messages_received,
            messages_sent_total: counters.messages_sent,
            bytes_received_total: counters.bytes_received,
            bytes_sent_total: counters.bytes_sent,
            waiting: self.waiting_room.len() as u64,
            pending_handshakes: self.slots().map(|slot| u64::from(slot.report.pending_handshakes)).sum(),
            uptime_seconds: self.now.saturating_sub(self.started).as_secs_f64(),
            version: version.to_owned(),
        }
    }

    /// Every slot, after the workers were asked by `request`.
    pub(crate) fn worker_rows(&self, request: u64) -> Vec<WorkerRow> {
        self.slots().map(|slot| self.worker_row(slot, request)).collect()
    }

    fn worker_row(&self, slot: &Slot, request: u64) -> WorkerRow {
        let state = slot.state();
        let worker = state.worker();
        let counters = slot.book.counters();
        let queue = self.listeners.accept_queue(slot.id);
        let pid = |pid: Pid| u32::try_from(pid.as_raw()).ok();
        let since = |since| self.now.saturating_sub(since).as_secs_f64();
        WorkerRow {
            slot: slot.id.0,
            pid: worker.and_then(|worker| pid(worker.pid)),
            keeper_pid: state.keeper().and_then(pid),
            incarnation: slot.worker.incarnation.0,
            state: state_name(slot).to_owned(),
            weight: self.steering.share(slot.id),
            silent: is_silent(slot, request),
            last_death: slot.last_death.clone(),
            restarts_total: slot.restarts.clone(),
            connections: self.ledger.held_by(slot.id),
            accepted_total: slot.book.accepted(),
            rejected_total: counters.rejected_total(),
            messages_received_total: counters.messages_received,
            messages_sent_total: counters.messages_sent,
            queued_bytes: slot.report.queued_bytes,
            loop_lag_seconds: slot.report.loop_lag.as_secs_f64(),
            accept_queue: queue.length.into(),
            accept_queue_max: queue.limit.into(),
            open_descriptors: worker.map(|_| slot.report.open_descriptors.into()),
            max_descriptors: worker.map(|_| self.descriptors.into()),
            resident_bytes: worker.and_then(|worker| kernel::resident_bytes(worker.pid)),
            uptime_seconds: slot.ready_since.map_or(0.0, since),
            version: slot.version.clone(),
        }
    }

    /// Everything that `/metrics` shows.
    pub(crate) fn snapshot(&self, request: u64, version: &str, drain: Option<DrainProgress>) -> Snapshot {
        let counters = self.counters();
        Snapshot {
            totals: self.totals(request, version, drain),
            workers: self.worker_rows(request),
            limits: self.limits_view(),
            connection_duration: Histogram::durations(&counters.duration),
            resume: self.resume_seconds.clone(),
            admission_wait: Histogram::admission_waits(&counters.admission_wait),
            ping_rtt: Histogram::ping_rtts(&counters.ping_rtt),
            listen_drops: kernel::listen_drops(),
        }
    }

    pub(crate) fn config_entries(&self) -> Vec<ConfigEntry> {
        self.effective.entries().into_iter().map(Into::into).collect()
    }

    pub(crate) fn limits_view(&self) -> LimitsView {
        let limits = &self.effective.config.limits;
        LimitsView {
            max_connections: self.levels.edges.max,
            soft_connections: self.levels.edges.soft,
            warning_connections: self.levels.edges.warning,
            max_connections_per_address: self.ledger.limits().max_connections_per_address.into(),
            max_pending_handshakes: limits.max_pending_handshakes.into(),
            max_message_size: limits.max_message_size as u64,
            messages_per_second: limits.messages_per_second.map_or(0, |limit| limit.get().into()),
            max_queued_output: limits.max_queued_output as u64,
            max_buffered_total: self.capacity.buffered_per_worker,
            waiting_room: limits.waiting_room.into(),
            shed: match limits.shed {
                Shed::None => "none".to_owned(),
                Shed::Idlest => "idlest".to_owned(),
            },
            shed_rate: limits.shed_rate.into(),
            level: self.level(),
            descriptors_per_worker: self.descriptors.into(),
        }
    }

    pub(crate) fn health(&self) -> Health {
        Health {
            status: if self.phase.is_ending() {
                HealthStatus::Draining
            } else if self.level() == Level::Full {
                HealthStatus::Full
            } else {
                HealthStatus::Ok
            },
            connections: self.ledger.connections(),
            max_connections: self.capacity.max_connections.into(),
            level: self.level(),
            workers: self.wanted.into(),
            workers_ready: self.serving(),
        }
    }

    /// How many connections each slot holds.
    pub(crate) fn shares(&self) -> Vec<RebalancedSlot> {
        let share =
            |slot: &Slot| RebalancedSlot { slot: slot.id.0, connections: self.ledger.held_by(slot.id) };
        self.slots().map(share).collect()
    }

    fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for slot in self.all_slots() {
            sum.add(&slot.book.counters());
        }
        sum
    }

    fn serving(&self) -> u64 {
        self.slots().filter(|slot| slot.serves()).count() as u64
    }
}

fn state_name(slot: &Slot) -> &'static str {
    match slot.state() {
        _ if slot.heartbeat.is_wedged() => "wedged",
        State::Ready(_) | State::Draining(_) if slot.retires => "retiring",
        state => state.name(),
    }
}

/// Did it not report for this request? One that has no worker now could not even be asked.
fn is_silent(slot: &Slot, request: u64) -> bool {
    slot.unanswered.contains(&request) || (!slot.answers() && !matches!(slot.state(), State::Left))
}

fn fraction(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
