//! Closing connections on an operator's word: one, or all of a network. They are looked for first; then their workers
//! tell them, so many at a time that nobody notices.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::reason::CloseReason;
use mio::Waker;

use super::search::{Search, unreadable};
use super::{Kind, Operation, Turn};
use crate::api::{Answer, CloseOrder, CloseReport, Failure, Reply, Sort, Whom};
use crate::cluster::{Cluster, Found, Goodbye, News};

/// Between two batches.
const PAUSE: Duration = Duration::from_millis(100);

/// How long workers may take to say that they have told their clients.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// So many connections a second, a batch at a time.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the next batch is due.
    due: Duration,
    /// What is left of the last batch: hundredths of a connection, when the rate is no multiple of the pauses.
    rest: u32,
}

impl Pace {
    pub(super) fn new(now: Duration) -> Self {
        Self { due: now, rest: 0 }
    }

    /// When the next batch is due.
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// How many may be told now, at `rate` a second; `None` if it is too early.
    pub(super) fn take(&mut self, now: Duration, rate: u32) -> Option<usize> {
        const PAUSES: u32 = 10;
        if now < self.due {
            return None;
        }
        self.due = now + PAUSE;
        let tenths = self.rest + rate;
        self.rest = tenths % PAUSES;
        usize::try_from(tenths / PAUSES).ok()
    }
}

/// An order to close, being carried out.
#[derive(Debug)]
pub(super) struct Close {
    order: u64,
    /// `None` once all were found.
    search: Option<Search<Vec<Found>>>,
    targets: VecDeque<Found>,
    goodbye: Goodbye,
    whom: Whom,
    pace: Pace,
    report: CloseReport,
    /// Those who were named to their workers, and whose workers have not said that they told them.
    unsaid: u64,
    /// Until when whoever asked waits for the first answers.
    until: Duration,
    reply: Option<Reply>,
}

impl Close {
    /// So many orders at a time.
    pub(super) const MOST: usize = 16;

    /// Looks for whom `order` is about; who asked is told at once if that cannot be.
    pub(super) fn begin(
        cluster: &mut Cluster,
        waker: &Arc<Waker>,
        order: &CloseOrder,
        reply: Reply,
    ) -> Option<Self> {
        let whom = match order.whom() {
            Ok(whom) => whom,
            Err(failure) => {
                reply.send(Err(failure));
                return None;
            }
        };
        let goodbye = Goodbye {
            code: order.code(),
            text: order.reason().to_owned(),
            reason: CloseReason::Admin,
            only_idle: false,
        };
        let search = Search::begin(cluster, waker, move |tables| {
            tables.find(Sort::Idle, usize::MAX, |found| {
                found.is_open
                    && match whom {
                        Whom::One(id) => found.id == id,
                        Whom::Network(network) => found.is_of(network),
                    }
            })
        });
        let search = match search {
            Ok(search) => search,
            Err(error) => {
                reply.send(Err(unreadable(&error)));
                return None;
            }
        };
        Some(Self {
            order: cluster.next_request(),
            search: Some(search),
            targets: VecDeque::new(),
            goodbye,
            whom,
            pace: Pace::new(cluster.now()),
            report: CloseReport::default(),
            unsaid: 0,
            until: cluster.now() + PATIENCE,
            reply: Some(reply),
        })
    }

    /// The way back to whoever asked, if they still wait.
    pub(super) fn into_reply(self) -> Option<Reply> {
        self.reply
    }

    fn answer(&mut self, answer: Result<Answer, Failure>) {
        if let Some(reply) = self.reply.take() {
            reply.send(answer);
        }
    }

    /// All were found, or nobody can look.
    fn on_found(&mut self, found: Result<Vec<Found>, Failure>, rate: u32) -> bool {
        match found {
            Ok(found) if found.is_empty() => {
                let who = match self.whom {
                    Whom::One(id) => format!("no open connection {id}"),
                    Whom::Network(network) => format!("no open connection of {network}"),
                };
                self.answer(Err(Failure::new(404, who)));
                true
            }
            Ok(found) => {
                self.report.found = found.len() as u64;
                self.targets = found.into();
                if self.targets.len() > 1 {
                    log::info!("closing {} connections, {rate} a second", self.targets.len());
                }
                false
            }
            Err(failure) => {
                self.answer(Err(failure));
                true
            }
        }
    }

    fn tell(&mut self, cluster: &mut Cluster, rate: u32) {
        let Some(most) = self.pace.take(cluster.now(), rate) else { return };
        // Whoever names one connection does not want to wait for the pace.
        let batch: Vec<Found> = self.targets.drain(..self.targets.len().min(most.max(1))).collect();
        self.unsaid += batch.len() as u64;
        cluster.tell_to_go(self.order, &batch, &self.goodbye);
    }

    fn progress(&self, rate: u32) -> CloseReport {
        let remaining = self.targets.len() as u64;
        CloseReport {
            remaining,
            seconds_left: remaining as f64 / f64::from(rate.max(1)),
            ..self.report.clone()
        }
    }
}

impl Operation for Close {
    fn kind(&self) -> Option<Kind> {
        None
    }

    fn deadline(&self, _: &Cluster) -> Option<Duration> {
        match &self.search {
            Some(_) => None,
            None if self.targets.is_empty() => Some(self.until),
            None => Some(self.pace.due()),
        }
    }

    fn turn(&mut self, cluster: &mut Cluster, turn: Turn<'_>) -> bool {
        let rate = cluster.config().limits.shed_rate;
        if let Some(search) = &self.search {
            let Some(found) = search.take() else { return false };
            self.search = None;
            self.until = cluster.now() + PATIENCE;
            if self.on_found(found, rate) {
                return true;
            }
        }
        for news in turn.news {
            if let News::Told { order, named, told } = *news
                && order == self.order
            {
                self.unsaid = self.unsaid.saturating_sub(named.into());
                self.report.told += u64::from(told);
            }
        }
        if !self.targets.is_empty() {
            self.tell(cluster, rate);
            self.until = cluster.now() + PATIENCE;
        }
        let is_late = cluster.now() >= self.until;
        if self.unsaid == 0 || is_late {
            let progress = self.progress(rate);
            self.answer(Ok(Answer::Closing(progress)));
        }
        let is_over = self.targets.is_empty() && (self.unsaid == 0 || is_late);
        if is_over && self.report.found > 1 {
            log::info!("closed {} of {} connections", self.report.told, self.report.found);
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_as_many_as_its_rate() {
        for rate in [1, 7, 10, 99, 100, 100_000] {
            let mut pace = Pace::new(Duration::ZERO);
            let mut told = 0;
            for step in 0..1_000 {
                let now = Duration::from_millis(step * 10);
                assert_eq!(pace.due() <= now, step % 10 == 0);
                told += pace.take(now, rate).unwrap_or(0);
            }
            assert_eq!(told, rate as usize * 10, "{rate}");
        }
    }
}
