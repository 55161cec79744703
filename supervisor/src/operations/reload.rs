//! Reading the configuration again. All of it is validated, and what can fail is done, before anything
//! changes: a bad one leaves everything as it was and says why. A good one applies live; no connection is
//! touched.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::config::{self, Config, ConfigErrors, Effective};
use holdfast_shared::ipc::settings_memory::{self, SettingsMemoryError};

use crate::api::Reply;
use crate::api::{Answer, Change, Failure, ReloadReport};
use crate::cluster::settings;
use crate::host::capacity::{self, Capacity, Demand, Unreachable};
use crate::host::kernel;
use crate::host::notify;
use crate::operations::resize::ScaleError;
use crate::operator::control;
use crate::start;
use crate::supervisor::{Stage, Supervisor};

/// How long workers may take to say that they apply new settings.
const PATIENCE: Duration = Duration::from_secs(10);

/// A reload that workers have yet to confirm.
#[derive(Debug)]
pub struct PendingReload {
    /// When it is answered, whether or not all have.
    pub(crate) deadline: Duration,
    generation: u64,
    report: ReloadReport,
    reply: Option<Reply>,
}

impl PendingReload {
    /// The way back to whoever asked, if anybody did.
    pub(crate) fn into_reply(self) -> Option<Reply> {
        self.reply
    }
}

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    /// It is wrong in itself.
    #[error("{0}")]
    Invalid(#[from] ConfigErrors),
    /// It asks for more than the descriptors carry.
    #[error(transparent)]
    Capacity(#[from] Unreachable),
    /// Workers cannot be told.
    #[error(transparent)]
    Settings(#[from] SettingsMemoryError),
    /// The new admin address cannot be used.
    #[error(transparent)]
    Admin(#[from] control::Error),
    /// There cannot be more slots.
    #[error(transparent)]
    Scale(#[from] ScaleError),
    /// The backlog cannot be set.
    #[error("cannot set the backlog: {0}")]
    Backlog(#[from] io::Error),
}

/// How many workers, handshakes and connections the descriptors are to carry.
pub(crate) fn demand(config: &Config, workers: u32, descriptors: u32) -> Demand {
    Demand {
        descriptors,
        workers,
        max_connections: config.limits.max_connections,
        max_pending_handshakes: config.limits.max_pending_handshakes,
        max_buffered_total: config.limits.max_buffered_total,
        memory: kernel::memory_limit(),
    }
}

impl Supervisor {
    /// Reads the configuration again and applies it, or refuses it. Whoever asked is answered when all
    /// workers apply it.
    pub(crate) fn reload(&mut self, reply: Option<Reply>) {
        if self.stage.is_ending() {
            const REFUSAL: &str = "not reloading: the service is shutting down";
            log::warn!("{REFUSAL}");
            if let Some(reply) = reply {
                reply.send(Err(Failure::new(409, REFUSAL)));
            }
            return;
        }
        notify::reloading();
        match self.try_reload() {
            Ok(report) => {
                let generation = self.generation;
                self.reloads.push(PendingReload { deadline: self.now + PATIENCE, generation, report, reply });
            }
            Err(error) => {
                log::error!("reload refused, nothing has changed: {error}");
                if let Some(reply) = reply {
                    reply.send(Err(Failure::new(422, error.to_string())));
                }
                self.notify_reloaded("reload refused, the configuration before it holds");
            }
        }
    }

    /// Answers the reloads that all workers have confirmed, or that have waited long enough.
    pub(crate) fn finish_reloads(&mut self) {
        let mut waiting = std::mem::take(&mut self.reloads);
        waiting.retain_mut(|reload| {
            let behind = self
                .slots
                .iter()
                .filter(|seat| seat.ready_since.is_some() && seat.applied_generation < reload.generation);
            let behind: Vec<String> = behind.map(|seat| seat.id.to_string()).collect();
            if !behind.is_empty() && self.now < reload.deadline {
                return true;
            }
            let answer = if behind.is_empty() {
                log::info!("reload done: {}", describe(&reload.report));
                Ok(Answer::Reload(std::mem::take(&mut reload.report)))
            } else {
                let late = behind.join(", ");
                log::error!(
                    "reload: workers of slots {late} have not confirmed the new settings in {PATIENCE:?}"
                );
                Err(Failure::new(
                    504,
                    format!(
                        "the configuration is in force, but the workers of slots {late} have not confirmed it"
                    ),
                ))
            };
            if let Some(reply) = reload.reply.take() {
                reply.send(answer);
            }
            self.notify_reloaded("serving with the configuration as it was last read");
            false
        });
        self.reloads.append(&mut waiting);
    }

    /// A service that has not been ready yet becomes so only when all slots serve.
    fn notify_reloaded(&self, status: &str) {
        if self.stage == Stage::Running {
            notify::ready(status);
        }
    }

    fn try_reload(&mut self) -> Result<ReloadReport, ReloadError> {
        let (next, changes) = config::reload(&self.effective, config::load(&self.inputs)?);
        let workers = start::workers(next.config.workers);
        let capacity = capacity::plan(demand(&next.config, workers.into(), self.descriptors))?;
        // What can fail comes first, so that a failure leaves everything as it was.
        let memory =
            settings_memory::create(self.generation + 1, &settings::for_worker(&next.config, &capacity))?;
        let opened = self.open_listeners(workers, next.config.backlog)?;
        if let Err(error) = self.listeners.set_backlog(next.config.backlog) {
            self.close_listeners(opened);
            return Err(error.into());
        }
        if let Err(error) = self.control.rebind(next.config.admin.listen) {
            self.close_listeners(opened);
            self.listeners.set_backlog(self.effective.config.backlog)?;
            return Err(error.into());
        }
        self.apply(next, capacity, memory);
        self.scale_to(workers);
        Ok(changes.into_iter().collect())
    }

    fn apply(&mut self, next: Effective, capacity: Capacity, memory: OwnedFd) {
        self.effective = next;
        self.capacity = capacity;
        let config = &self.effective.config;
        self.ledger.set_limits(settings::for_ledger(config, &capacity));
        self.edges = settings::for_levels(&config.limits.resolve(capacity.max_connections));
        self.steering.reconsider();
        self.generation += 1;
        self.state.set_generation(self.generation);
        self.settings = Arc::new(memory);
        for position in 0..self.slots.len() {
            self.tell_settings(position);
        }
    }
}

fn describe(report: &ReloadReport) -> String {
    if report.changes.is_empty() {
        return "nothing has changed".to_owned();
    }
    let one =
        |change: &Change| format!("{} {} -> {} ({})", change.key, change.old, change.new, change.effect);
    report.changes.iter().map(one).collect::<Vec<_>>().join(", ")
}
