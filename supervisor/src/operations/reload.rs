//! Reading the configuration again. All of it is validated, and what can fail is done, before anything
//! changes: a bad one leaves everything as it was and says why. A good one applies live; no connection is
//! touched.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use holdfast_shared::config::{self, ConfigErrors, Effective, Inputs};
use holdfast_shared::ipc::settings_memory::SettingsMemoryError;
use serde_json::Value;

use super::resize::Resize;
use super::{Kind, Operation, Turn};
use crate::api::{Answer, Change, Failure, ReloadReport, Reply};
use crate::cluster::hub::HubError;
use crate::cluster::{Cluster, Phase, ResizeError};
use crate::host::capacity::{self, Demand, Unreachable};
use crate::host::notify;

/// Longer lists are counted in the log, and told in full to whoever asked for the reload.
const MOST_ITEMS: usize = 16;

/// How long workers may take to say that they apply new settings.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A reload that workers have yet to confirm.
#[derive(Debug)]
pub(super) struct Reload {
    /// When it is answered, whether or not all have.
    deadline: Duration,
    generation: u64,
    report: ReloadReport,
    reply: Option<Reply>,
}

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error("{0}")]
    Invalid(#[from] ConfigErrors),
    #[error(transparent)]
    Capacity(#[from] Unreachable),
    #[error(transparent)]
    Settings(#[from] SettingsMemoryError),
    #[error("{0}")]
    Admin(String),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Resize(#[from] ResizeError),
    #[error("cannot set the backlog: {0}")]
    Backlog(#[from] io::Error),
}

impl Reload {
    /// Reads the configuration and applies it; `None` if that was refused. `rebind` moves the admin address.
    pub(super) fn begin(
        cluster: &mut Cluster,
        resize: &mut Resize,
        inputs: &Inputs,
        rebind: impl FnOnce(Option<SocketAddr>) -> Result<(), String>,
        reply: Option<Reply>,
    ) -> Option<Self> {
        notify::reloading();
        match try_reload(cluster, resize, inputs, rebind) {
            Ok(report) => {
                let (deadline, generation) = (cluster.now() + PATIENCE, cluster.generation());
                Some(Self { deadline, generation, report, reply })
            }
            Err(error) => {
                log::error!("reload refused, nothing has changed: {error}");
                if let Some(reply) = reply {
                    reply.send(Err(Failure::new(422, error.to_string())));
                }
                notify_reloaded(cluster, "reload refused, the configuration before it holds");
                None
            }
        }
    }

    /// The way back to whoever asked, if anybody did.
    pub(super) fn into_reply(self) -> Option<Reply> {
        self.reply
    }
}

impl Operation for Reload {
    fn kind(&self) -> Option<Kind> {
        Some(Kind::Reload)
    }

    fn deadline(&self, _: &Cluster) -> Option<Duration> {
        Some(self.deadline)
    }

    fn turn(&mut self, cluster: &mut Cluster, _: Turn<'_>) -> bool {
        let Some(confirmed) = confirmed(cluster, self.generation, self.deadline) else { return false };
        if confirmed.is_ok() {
            log::info!("reload done: {}", describe(&self.report));
        }
        let answer = confirmed.map(|()| Answer::Reload(std::mem::take(&mut self.report)));
        if let Some(reply) = self.reply.take() {
            reply.send(answer);
        }
        notify_reloaded(cluster, "serving with the configuration as it was last read");
        true
    }
}

/// A service that has not been ready yet becomes so only when all slots serve.
fn notify_reloaded(cluster: &Cluster, status: &str) {
    if cluster.phase() == Phase::Running {
        notify::ready(status);
    }
}

fn try_reload(
    cluster: &mut Cluster,
    resize: &mut Resize,
    inputs: &Inputs,
    rebind: impl FnOnce(Option<SocketAddr>) -> Result<(), String>,
) -> Result<ReloadReport, ReloadError> {
    let (next, changes) = config::reload(cluster.effective(), config::load(inputs)?);
    let warnings = next.config.secrets.warnings.clone();
    apply(cluster, resize, next, rebind)?;
    for warning in warnings {
        log::warn!("{warning}");
    }
    Ok(changes.into_iter().collect())
}

/// Do all workers apply the settings of `generation`? `None` while that is not known, and it is not yet too late.
pub(super) fn confirmed(
    cluster: &Cluster,
    generation: u64,
    deadline: Duration,
) -> Option<Result<(), Failure>> {
    let behind = cluster.slots().filter(|slot| slot.is_behind(generation));
    let behind: Vec<String> = behind.map(|slot| slot.id().to_string()).collect();
    if behind.is_empty() {
        return Some(Ok(()));
    }
    (cluster.now() >= deadline).then(|| {
        let late = behind.join(", ");
        log::error!("workers of slots {late} have not confirmed the new settings in {PATIENCE:?}");
        let error =
            format!("the configuration is in force, but the workers of slots {late} have not confirmed it");
        Err(Failure::new(504, error))
    })
}

/// Puts `next` in force, or changes nothing. `rebind` moves the admin address.
pub(super) fn apply(
    cluster: &mut Cluster,
    resize: &mut Resize,
    next: Effective,
    rebind: impl FnOnce(Option<SocketAddr>) -> Result<(), String>,
) -> Result<(), ReloadError> {
    let workers = capacity::workers(next.config.workers);
    let capacity = capacity::plan(Demand::of(&next.config, workers, cluster.descriptors()))?;
    // What can fail comes first, so that a failure leaves everything as it was.
    let hub = cluster.plan_hub(&next.config)?;
    let memory = cluster.next_settings(&next.config, &capacity)?;
    let opened = cluster.open_listeners(workers, next.config.backlog)?;
    if let Err(error) = cluster.set_backlog(next.config.backlog) {
        cluster.close_listeners(opened);
        return Err(error.into());
    }
    if let Err(error) = rebind(next.config.admin.listen) {
        cluster.close_listeners(opened);
        cluster.set_backlog(cluster.config().backlog)?;
        return Err(ReloadError::Admin(error));
    }
    cluster.apply(next, capacity, memory, hub);
    resize.begin(cluster, workers);
    Ok(())
}

fn describe(report: &ReloadReport) -> String {
    if report.changes.is_empty() { "nothing has changed".to_owned() } else { list(&report.changes) }
}

/// Changes as a log line has room for them.
pub(super) fn list(changes: &[Change]) -> String {
    let one = |change: &Change| {
        format!("{} {} -> {} ({})", change.key, brief(&change.old), brief(&change.new), change.effect)
    };
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// A value as a log line has room for it.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(items) if items.len() > MOST_ITEMS => format!("[{} items]", items.len()),
        value => value.to_string(),
    }
}
