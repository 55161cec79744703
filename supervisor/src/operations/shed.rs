//! Closing the idlest when the cap was lowered below the count and `limits.shed` says so, until the count is at the cap.
//! Nobody who has become active since they were found idle is closed: then others are looked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::config::Shed as Mode;
use holdfast_shared::reason::CloseReason;
use mio::Waker;

use super::close::{PATIENCE, Pace};
use super::search::Search;
use super::{Kind, Operation, Turn};
use crate::api::{ShedPlan, Sort};
use crate::cluster::{Cluster, Found, Goodbye, News};

/// Between two looks for idle connections, when the last one did not bring enough.
const PAUSE: Duration = Duration::from_secs(1);

/// The idlest being closed.
#[derive(Debug)]
pub(super) struct Shed {
    order: u64,
    waker: Arc<Waker>,
    search: Option<Search<Vec<Found>>>,
    not_before: Duration,
    targets: VecDeque<Found>,
    pace: Pace,
    /// Those who were told, all in all.
    told: u64,
    /// Since the count of leaving ones began: those named to their workers, less those who were not told.
    named: u64,
    /// And those who had been shed before that.
    shed_before: u64,
    last_told: Duration,
}

/// How many are above the cap and are to be closed.
pub(super) fn excess(cluster: &Cluster) -> u64 {
    excess_of(cluster, cluster.config().limits.shed, cluster.capacity().max_connections)
}

/// How many would be, with this cap.
pub(super) fn excess_of(cluster: &Cluster, shed: Mode, max_connections: u32) -> u64 {
    match shed {
        Mode::None => 0,
        Mode::Idlest => cluster.connections().saturating_sub(max_connections.into()),
    }
}

/// Who is closed when so many are above the cap; nobody if it is none.
pub(super) fn plan(connections: u64, rate: u32) -> Option<ShedPlan> {
    let seconds = connections as f64 / f64::from(rate.max(1));
    (connections > 0).then(|| ShedPlan { connections, rate, seconds, first: Vec::new() })
}

impl Shed {
    pub(super) fn begin(cluster: &mut Cluster, waker: &Arc<Waker>) -> Self {
        log::warn!(
            "shedding {} connections, the idlest first, {} a second",
            excess(cluster),
            cluster.config().limits.shed_rate
        );
        Self {
            order: cluster.next_request(),
            waker: Arc::clone(waker),
            search: None,
            not_before: cluster.now(),
            targets: VecDeque::new(),
            pace: Pace::new(cluster.now()),
            told: 0,
            named: 0,
            shed_before: cluster.closed_for(CloseReason::Shed),
            last_told: cluster.now(),
        }
    }

    /// Those who are on their way out and still count. Who is not gone when the time for that is over, since its worker
    /// died meanwhile, is none of them.
    fn leaving(&mut self, cluster: &Cluster) -> u64 {
        let shed = cluster.closed_for(CloseReason::Shed);
        if cluster.now() >= self.last_told + cluster.config().timeouts.close * 2 + PATIENCE {
            (self.named, self.shed_before) = (0, shed);
        }
        self.named.saturating_sub(shed.saturating_sub(self.shed_before))
    }

    fn look(&mut self, cluster: &Cluster, missing: u64) {
        self.not_before = cluster.now() + PAUSE;
        let limit = usize::try_from(missing).unwrap_or(usize::MAX);
        let search = Search::begin(cluster, &self.waker, move |tables| {
            tables.find(Sort::Idle, limit, |found| found.is_open)
        });
        match search {
            Ok(search) => self.search = Some(search),
            Err(error) => log::error!("cannot look for idle connections: {error}"),
        }
    }

    fn tell(&mut self, cluster: &mut Cluster, missing: u64) {
        let limits = &cluster.config().limits;
        let Some(most) = self.pace.take(cluster.now(), limits.shed_rate) else { return };
        let most = most.min(usize::try_from(missing).unwrap_or(usize::MAX));
        let batch: Vec<Found> = self.targets.drain(..self.targets.len().min(most)).collect();
        // The batches come seconds apart, and so do those who are told to come back.
        let retry = limits.retry_after.mul_f64(0.5 + fastrand::f64()).as_secs().max(1);
        let goodbye = Goodbye {
            code: 1013,
            text: format!("The server sheds load; retry after {retry} s"),
            reason: CloseReason::Shed,
            only_idle: true,
        };
        self.named += batch.len() as u64;
        self.last_told = cluster.now();
        cluster.tell_to_go(self.order, &batch, &goodbye);
    }
}

impl Operation for Shed {
    fn kind(&self) -> Option<Kind> {
        None
    }

    fn deadline(&self, _: &Cluster) -> Option<Duration> {
        match &self.search {
            Some(_) => None,
            None if self.targets.is_empty() => Some(self.not_before),
            None => Some(self.pace.due()),
        }
    }

    fn turn(&mut self, cluster: &mut Cluster, turn: Turn<'_>) -> bool {
        for news in turn.news {
            if let News::Told { order, named, told } = *news
                && order == self.order
            {
                self.named = self.named.saturating_sub(named.saturating_sub(told).into());
                self.told += u64::from(told);
            }
        }
        let excess = excess(cluster);
        if excess == 0 || turn.running.is_ending() {
            log::info!("shed {} connections", self.told);
            return true;
        }
        if let Some(found) = self.search.as_ref().and_then(Search::take) {
            self.search = None;
            match found {
                Ok(found) => self.targets = found.into(),
                Err(failure) => log::error!("{failure}"),
            }
        }
        let missing = excess.saturating_sub(self.leaving(cluster));
        if missing > 0 && self.targets.is_empty() && self.search.is_none() && cluster.now() >= self.not_before
        {
            self.look(cluster, missing);
        } else if missing > 0 && !self.targets.is_empty() {
            self.tell(cluster, missing);
        }
        false
    }
}
