//! What is being done to the cluster. Each is an [`Operation`]: it has its turn whenever the loop has one, works on the
//! [`Cluster`] by its methods, and waits by saying when it is due. Which of them exclude each other is said in
//! `kind` and nowhere else.

pub(crate) mod adoption;
mod close;
mod drain;
pub(crate) mod figures;
mod kind;
mod limits;
mod rebalance;
mod reload;
mod resize;
mod restart;
mod search;
mod shed;
mod stop;
pub(crate) mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::config::Inputs;
use mio::Waker;

use crate::api::{
    Answer, CloseOrder, ConnectionsQuery, DrainOrder, DrainProgress, Failure, LimitsOrder, Reply,
    UpgradeReport,
};
use crate::cluster::{Cluster, News, Phase};
use close::Close;
use drain::Drain;
pub(crate) use kind::Kind;
use kind::Running;
use limits::SetLimits;
use rebalance::Rebalance;
use reload::Reload;
use resize::Resize;
use restart::Restart;
use search::List;
use shed::Shed;
use stop::Stop;
use upgrade::{Departure, Place, Upgrade};

/// Something that takes more than one turn.
trait Operation {
    /// What is under way, if it is.
    fn kind(&self) -> Option<Kind>;

    /// When it is due even if nothing happens.
    fn deadline(&self, cluster: &Cluster) -> Option<Duration>;

    /// Goes on as far as it can. Says whether it is over.
    fn turn(&mut self, cluster: &mut Cluster, turn: Turn<'_>) -> bool;
}

/// What an operation is told in its turn.
#[derive(Clone, Copy)]
struct Turn<'a> {
    news: &'a [News],
    running: Running,
}

/// All that is under way.
pub(crate) struct Operations {
    reloads: Vec<Reload>,
    limits: Vec<SetLimits>,
    restart: Option<Restart>,
    /// The upgrade under way, or the last one.
    upgrade: Option<Upgrade>,
    resize: Resize,
    rebalance: Option<Rebalance>,
    drain: Option<Drain>,
    stop: Option<Stop>,
    lists: Vec<List>,
    closes: Vec<Close>,
    shed: Option<Shed>,
    waker: Arc<Waker>,
}

impl Operations {
    /// `upgrade` is the one that has brought this program here; `waker` wakes the loop from other threads.
    pub(crate) fn new(upgrade: Option<Upgrade>, waker: Arc<Waker>) -> Self {
        Self {
            reloads: Vec::new(),
            limits: Vec::new(),
            restart: None,
            upgrade,
            resize: Resize::default(),
            rebalance: None,
            drain: None,
            stop: None,
            lists: Vec::new(),
            closes: Vec::new(),
            shed: None,
            waker,
        }
    }

    /// When there is something to do even if nothing happens.
    pub(crate) fn deadline(&self, cluster: &Cluster) -> Option<Duration> {
        self.all().filter_map(|operation| operation.deadline(cluster)).min()
    }

    /// Lets everything go on.
    pub(crate) fn turn(&mut self, cluster: &mut Cluster, news: &[News]) {
        let turn = Turn { news, running: self.running(cluster) };
        if advance(&mut self.drain, cluster, turn) {
            self.begin_stop(cluster);
        }
        let turn = Turn { news, running: self.running(cluster) };
        advance(&mut self.stop, cluster, turn);
        advance(&mut self.restart, cluster, turn);
        let turn = Turn { news, running: self.running(cluster) };
        self.resize.turn(cluster, turn);
        if self.resize.wants_rebalance(cluster) {
            self.rebalance(cluster, None);
        }
        let turn = Turn { news, running: self.running(cluster) };
        advance(&mut self.rebalance, cluster, turn);
        self.reloads.retain_mut(|reload| !reload.turn(cluster, turn));
        self.limits.retain_mut(|limits| !limits.turn(cluster, turn));
        self.lists.retain_mut(|list| !list.turn(cluster, turn));
        self.closes.retain_mut(|close| !close.turn(cluster, turn));
        if self.shed.is_none() && shed::excess(cluster) > 0 && !turn.running.is_ending() {
            self.shed = Some(Shed::begin(cluster, &self.waker));
        }
        advance(&mut self.shed, cluster, turn);
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.turn(cluster, turn);
        }
    }

    /// What the loop has to do for an upgrade. `is_quiet` if nobody waits for figures, `has_left` if the control thread
    /// has ended.
    pub(crate) fn departure(&mut self, cluster: &Cluster, is_quiet: bool, has_left: bool) -> Departure {
        let is_quiet = is_quiet && self.reloads.is_empty() && self.limits.is_empty() && self.lists.is_empty();
        let upgrade = self.upgrade.as_mut();
        upgrade.map_or(Departure::Stay, |upgrade| upgrade.departure(cluster.now(), is_quiet, has_left))
    }

    /// Reads the configuration again and applies it, or refuses it. Whoever asked is answered when all workers apply
    /// it. `rebind` moves the admin address.
    pub(crate) fn reload(
        &mut self,
        cluster: &mut Cluster,
        inputs: &Inputs,
        rebind: impl FnOnce(Option<SocketAddr>) -> Result<(), String>,
        reply: Option<Reply>,
    ) {
        if let Some(reply) = self.admit(Kind::Reload, cluster, reply)
            && let Some(reload) = Reload::begin(cluster, &mut self.resize, inputs, rebind, reply)
        {
            self.reloads.push(reload);
        }
    }

    /// Changes limits, or says what a change would do. Whoever asked is answered when all workers apply it.
    pub(crate) fn set_limits(&mut self, cluster: &mut Cluster, order: &LimitsOrder, reply: Reply) {
        if let Some(Some(reply)) = self.admit(Kind::Reload, cluster, Some(reply)) {
            self.limits.extend(SetLimits::begin(cluster, &mut self.resize, order, &self.waker, reply));
        }
    }

    /// Lists connections.
    pub(crate) fn list(&mut self, cluster: &Cluster, query: ConnectionsQuery, reply: Reply) {
        if self.lists.len() < List::MOST {
            self.lists.extend(List::begin(cluster, &self.waker, query, reply));
        } else {
            reply.send(Err(Failure::new(503, "other lists of connections are being made; try again")));
        }
    }

    /// Closes connections on an operator's word.
    pub(crate) fn close(&mut self, cluster: &mut Cluster, order: &CloseOrder, reply: Reply) {
        if self.closes.len() < Close::MOST {
            self.closes.extend(Close::begin(cluster, &self.waker, order, reply));
        } else {
            reply.send(Err(Failure::new(503, "other connections are being closed; try again")));
        }
    }

    /// Replaces the workers of all slots, or of one, one after the other. Whoever asked is answered at the end.
    pub(crate) fn restart(&mut self, cluster: &mut Cluster, slot: Option<u16>, reply: Option<Reply>) {
        if let Some(reply) = self.admit(Kind::Restart, cluster, reply) {
            self.restart = Restart::begin(cluster, slot, reply);
        }
    }

    /// Begins an upgrade. Whoever asked is answered when the new program is about to take over, or when it is clear
    /// that it will not.
    pub(crate) fn upgrade(&mut self, cluster: &mut Cluster, place: &Place, reply: Option<Reply>) {
        if let Some(reply) = self.admit(Kind::Upgrade, cluster, reply) {
            self.upgrade = Some(Upgrade::begin(cluster, place, reply));
        }
    }

    /// How far the last upgrade has come.
    pub(crate) fn upgrade_progress(&self, cluster: &Cluster) -> UpgradeReport {
        self.upgrade.as_ref().map(|upgrade| upgrade.progress(cluster)).unwrap_or_default()
    }

    /// The program that was to be executed could not be.
    pub(crate) fn execution_failed(&mut self, cluster: &Cluster, error: &str) {
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.execution_failed(cluster, error);
        }
    }

    /// Makes slots even. Whoever asked is answered when they are.
    pub(crate) fn rebalance(&mut self, cluster: &mut Cluster, reply: Option<Reply>) {
        if let Some(reply) = self.admit(Kind::Rebalance, cluster, reply) {
            self.rebalance = Some(Rebalance::begin(cluster, reply));
        }
    }

    /// SIGTERM or SIGINT: begins a drain; a second one ends the service at once.
    pub(crate) fn on_end_signal(&mut self, cluster: &mut Cluster) {
        if self.stop.is_some() {
            return;
        }
        match &mut self.drain {
            None => self.drain = Some(Drain::begin(cluster, None, true)),
            Some(drain) => {
                if drain.on_signal(cluster) {
                    self.begin_stop(cluster);
                }
            }
        }
    }

    /// An operator's order. Asked for twice, it is done once.
    pub(crate) fn order_drain(
        &mut self,
        cluster: &mut Cluster,
        order: DrainOrder,
    ) -> Result<Answer, Failure> {
        self.running(cluster).admits(Kind::Drain)?;
        drain::order(&mut self.drain, cluster, order)
    }

    /// How far the drain has come, if there is one.
    pub(crate) fn drain_progress(&self, cluster: &Cluster) -> Option<DrainProgress> {
        self.drain.as_ref().and_then(|drain| drain.progress(cluster))
    }

    /// Ends at once: clients are told, and not waited for.
    pub(crate) fn begin_stop(&mut self, cluster: &mut Cluster) {
        if self.running(cluster).admits(Kind::Stop).is_ok() {
            self.drain = None;
            self.stop = Some(Stop::begin(cluster));
        }
    }

    /// Those who wait for an answer, and get none from this program.
    pub(crate) fn take_waiting(&mut self) -> impl Iterator<Item = Reply> {
        let reloads = self.reloads.drain(..).filter_map(Reload::into_reply);
        let limits = self.limits.drain(..).filter_map(SetLimits::into_reply);
        let lists = self.lists.drain(..).filter_map(List::into_reply);
        reloads.chain(limits).chain(lists).chain(self.closes.drain(..).filter_map(Close::into_reply))
    }

    fn all(&self) -> impl Iterator<Item = &dyn Operation> {
        fn one<O: Operation>(operation: &Option<O>) -> Option<&dyn Operation> {
            operation.as_ref().map(|operation| operation as _)
        }
        let Self {
            reloads,
            limits,
            restart,
            upgrade,
            resize,
            rebalance,
            drain,
            stop,
            lists,
            closes,
            shed,
            ..
        } = self;
        let reloads = reloads.iter().map(|reload| reload as &dyn Operation);
        let limits = limits.iter().map(|limits| limits as &dyn Operation);
        let lists = lists.iter().map(|list| list as &dyn Operation);
        let closes = closes.iter().map(|close| close as &dyn Operation);
        let others =
            [one(restart), one(upgrade), Some(resize as _), one(rebalance), one(drain), one(stop), one(shed)];
        reloads.chain(limits).chain(lists).chain(closes).chain(others.into_iter().flatten())
    }

    fn running(&self, cluster: &Cluster) -> Running {
        let starts = cluster.phase() == Phase::Starting || !cluster.is_counted();
        let of_cluster = [starts.then_some(Kind::Start), cluster.is_moving().then_some(Kind::Move)];
        self.all().map(Operation::kind).chain(of_cluster).flatten().collect()
    }

    /// May one of these begin? If not, whoever asked is told what is in its way, and `None` is returned.
    fn admit(&self, kind: Kind, cluster: &Cluster, reply: Option<Reply>) -> Option<Option<Reply>> {
        match self.running(cluster).admits(kind) {
            Ok(()) => Some(reply),
            Err(failure) => {
                refuse(kind, reply, failure);
                None
            }
        }
    }
}

/// Gives an operation its turn, and ends it when it is over; says whether it is.
fn advance<O: Operation>(operation: &mut Option<O>, cluster: &mut Cluster, turn: Turn<'_>) -> bool {
    operation.take_if(|operation| operation.turn(cluster, turn)).is_some()
}

/// Tells whoever asked, and the log, why something is not begun.
fn refuse(kind: Kind, reply: Option<Reply>, failure: Failure) {
    log::warn!("no {}: {failure}", kind.name());
    if let Some(reply) = reply {
        reply.send(Err(failure));
    }
}
