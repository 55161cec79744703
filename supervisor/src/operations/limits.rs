//! Limits that an operator changes while the service runs, or wants to know the effect of. They hold until the
//! configuration is read again: what is to last stands in the file.

use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::config::{self, Effective};
use mio::Waker;

use super::reload::{self, PATIENCE};
use super::resize::Resize;
use super::search::{Search, unreadable};
use super::shed;
use super::{Kind, Operation, Turn};
use crate::api::{Answer, ConnectionRow, Failure, LimitsOrder, LimitsReport, Reply, Sort};
use crate::cluster::Cluster;
use crate::host::capacity::{self, Demand};

/// In a dry run so many are named of those who would be closed.
const NAMED: usize = 100;

/// A change of limits.
#[derive(Debug)]
pub(super) struct SetLimits {
    stage: Stage,
    report: LimitsReport,
    reply: Option<Reply>,
}

#[derive(Debug)]
enum Stage {
    /// The change is in force, and workers have yet to confirm that.
    Confirming { generation: u64, deadline: Duration },
    /// Nothing changes; those who would be closed first are looked for.
    Looking(Search<Vec<ConnectionRow>>),
}

impl SetLimits {
    /// Does what `order` says; `None` if that was refused, or is done.
    pub(super) fn begin(
        cluster: &mut Cluster,
        resize: &mut Resize,
        order: &LimitsOrder,
        waker: &Arc<Waker>,
        reply: Reply,
    ) -> Option<Self> {
        let begun = if order.dry_run { look(cluster, order, waker) } else { change(cluster, resize, order) };
        match begun {
            Ok((stage, report)) => Some(Self { stage, report, reply: Some(reply) }),
            Err(failure) => {
                log::warn!("limits stay as they are: {failure}");
                reply.send(Err(failure));
                None
            }
        }
    }

    /// The way back to whoever asked.
    pub(super) fn into_reply(self) -> Option<Reply> {
        self.reply
    }
}

impl Operation for SetLimits {
    fn kind(&self) -> Option<Kind> {
        Some(Kind::Reload)
    }

    fn deadline(&self, _: &Cluster) -> Option<Duration> {
        match &self.stage {
            Stage::Confirming { deadline, .. } => Some(*deadline),
            Stage::Looking(_) => None,
        }
    }

    fn turn(&mut self, cluster: &mut Cluster, _: Turn<'_>) -> bool {
        let outcome = match &self.stage {
            Stage::Confirming { generation, deadline } => {
                let Some(confirmed) = reload::confirmed(cluster, *generation, *deadline) else {
                    return false;
                };
                self.report.level = cluster.level();
                confirmed
            }
            Stage::Looking(search) => {
                let Some(found) = search.take() else { return false };
                found.map(|first| {
                    if let Some(plan) = &mut self.report.shed {
                        plan.first = first;
                    }
                })
            }
        };
        if let Some(reply) = self.reply.take() {
            reply.send(outcome.map(|()| Answer::LimitsChanged(std::mem::take(&mut self.report))));
        }
        true
    }
}

fn next(cluster: &Cluster, order: &LimitsOrder) -> Result<(Effective, LimitsReport), Failure> {
    let next = config::set_limits(cluster.effective(), order.limits())
        .map_err(|errors| Failure::new(422, errors.to_string()))?;
    let changes = config::changes(cluster.config(), &next.config).into_iter().map(Into::into).collect();
    Ok((next, LimitsReport { changes, dry_run: order.dry_run, level: cluster.level(), shed: None }))
}

fn change(
    cluster: &mut Cluster,
    resize: &mut Resize,
    order: &LimitsOrder,
) -> Result<(Stage, LimitsReport), Failure> {
    let (next, mut report) = next(cluster, order)?;
    let simulated = order.simulated()?;
    // Before the settings: workers confirm those, and hear of the level first.
    let before = simulated.map(|level| cluster.simulate(level));
    if let Err(error) = reload::apply(cluster, resize, next, |_| Ok(())) {
        before.map(|before| cluster.simulate(before));
        return Err(Failure::new(422, error.to_string()));
    }
    if !report.changes.is_empty() {
        log::warn!("limits changed until the configuration is read again: {}", reload::list(&report.changes));
    }
    report.shed = shed::plan(shed::excess(cluster), cluster.config().limits.shed_rate);
    let (generation, deadline) = (cluster.generation(), cluster.now() + PATIENCE);
    Ok((Stage::Confirming { generation, deadline }, report))
}

fn look(
    cluster: &Cluster,
    order: &LimitsOrder,
    waker: &Arc<Waker>,
) -> Result<(Stage, LimitsReport), Failure> {
    let (next, mut report) = next(cluster, order)?;
    let limits = &next.config.limits;
    let workers = capacity::workers(next.config.workers);
    let capacity = capacity::plan(Demand::of(&next.config, workers, cluster.descriptors()))
        .map_err(|error| Failure::new(422, error.to_string()))?;
    let excess = shed::excess_of(cluster, limits.shed, capacity.max_connections);
    report.shed = shed::plan(excess, limits.shed_rate);
    let most = usize::try_from(excess).unwrap_or(usize::MAX).min(NAMED);
    let search = Search::begin(cluster, waker, move |tables| {
        let found = if most > 0 { tables.find(Sort::Idle, most, |found| found.is_open)? } else { Vec::new() };
        let now_ms = clock::now_ms();
        Ok(found.iter().map(|found| found.row(now_ms)).collect())
    });
    Ok((Stage::Looking(search.map_err(|error| unreadable(&error))?), report))
}
