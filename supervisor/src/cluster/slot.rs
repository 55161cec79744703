//! One slot with everything the supervisor has for it: the state machine, our end of the link, the table's
//! memory, what was last reported. Bookkeeping only; what to do about it is decided in `slot`, and done in
//! `supervisor`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use holdfast_shared::counters::Counters;
use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::link::SupervisorEnd;
use holdfast_shared::ipc::message::Report;
use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::{Flags, Header, Phase, Table};
use nix::unistd::Pid;

use crate::cluster::heartbeat::Heartbeat;
use crate::cluster::lifecycle::{Cause, Lifecycle, Worker};
use crate::cluster::state::SlotState;
use crate::host::spawn::Spawned;
use crate::operations::drain::DrainReport;

/// Causes that are shown before they have happened, so that the first time is seen as a change.
const USUAL_CAUSES: [&str; 7] =
    ["SIGKILL", "SIGSEGV", "SIGABRT", "exit status 1", "wedged", HANDED_OVER, KEEPER_DIED];

/// The cause of a planned restart.
const HANDED_OVER: &str = "handed over";

/// The cause when a worker took the place of its keeper.
const KEEPER_DIED: &str = "keeper died";

/// What dead workers may have left between the steps of an admission and those of an end: one connection that is
/// in and was not counted, one that was counted as gone and is open.
const UNCOUNTED: u64 = 2;

/// Admissions and closes of a slot. Counted where the connections are counted, so that one less the other is
/// always what is open.
#[derive(Debug, Default, Clone, Copy)]
pub struct Admitted {
    /// Connections let in.
    pub accepted: u64,
    /// Connections ended, by [`CloseReason`].
    pub closed: [u64; 32],
}

impl Admitted {
    /// Those let in that have not ended: open here, or moved to other slots. Those that came from other slots
    /// are missing, so it may be below zero.
    #[must_use]
    pub fn open(&self) -> i64 {
        let ended = self.closed.iter().sum::<u64>();
        i64::try_from(self.accepted).unwrap_or(i64::MAX).saturating_sub_unsigned(ended)
    }
}

/// A slot's seat at the supervisor's table.
#[derive(Debug)]
pub struct Slot {
    /// Which slot.
    pub id: SlotId,
    /// Where it stands.
    pub machine: Lifecycle,
    /// Our end of its link, while there is one.
    pub link: Option<SupervisorEnd>,
    /// The newest worker heard of.
    pub worker: Worker,
    /// Whether that worker is awake.
    pub heartbeat: Heartbeat,
    /// Which version the newest worker that said so runs.
    pub version: String,
    /// When that worker was ready.
    pub ready_since: Option<Duration>,
    /// When the last worker was reported dead, until the next one is ready.
    pub died_at: Option<Duration>,
    /// What it last reported.
    pub report: Report,
    /// How far its drain had come then.
    pub draining: DrainReport,
    /// Requests it has not answered yet.
    pub unanswered: BTreeSet<u64>,
    /// The generation of settings it said it applies.
    pub applied_generation: u64,
    /// Workers replaced, by the cause of the end.
    pub restarts: BTreeMap<String, u64>,
    /// How the last one ended.
    pub last_death: Option<String>,
    /// Who came and went, as the ledger saw it: in step with its count at every moment.
    pub admitted: Admitted,
    /// What was counted under earlier keepers, whose tables are gone.
    pub(crate) base: Counters,
    /// Its keeper was started by an earlier supervisor, and is no child of ours.
    pub(crate) is_adopted: bool,
    /// It does not start, and the others go on without it.
    pub(crate) is_given_up: bool,
    table: Option<OwnedFd>,
}

impl Slot {
    /// A slot that has never run.
    #[must_use]
    pub fn new(id: SlotId) -> Self {
        Self {
            id,
            machine: Lifecycle::default(),
            link: None,
            worker: Worker { pid: Pid::from_raw(0), incarnation: Incarnation::default() },
            heartbeat: Heartbeat::default(),
            version: String::new(),
            ready_since: None,
            died_at: None,
            report: Report::default(),
            draining: DrainReport::default(),
            unanswered: BTreeSet::new(),
            applied_generation: 0,
            restarts: USUAL_CAUSES.iter().map(|cause| ((*cause).to_owned(), 0)).collect(),
            last_death: None,
            admitted: Admitted::default(),
            base: Counters::default(),
            is_adopted: false,
            is_given_up: false,
            table: None,
        }
    }

    /// A new keeper has it.
    pub fn occupy(&mut self, spawned: Spawned) {
        self.is_adopted = false;
        self.link = Some(spawned.link);
        self.table = Some(spawned.table);
    }

    /// Connections of the slot at this moment, those on their way in among them; `None` without a table.
    #[must_use]
    pub fn connections_now(&self) -> Option<u64> {
        Header::read(self.table.as_ref()?.as_fd()).ok().map(|header| header.connections())
    }

    /// Connections that were let in and may be open, when its worker cannot say: never less than there are.
    #[must_use]
    pub(crate) fn connections_at_most(&self) -> u64 {
        let header = self.table.as_ref().and_then(|table| Header::read(table.as_fd()).ok());
        match header {
            Some(header) => header.admitted().saturating_add(UNCOUNTED),
            None => self.admitted.accepted.saturating_sub(self.admitted.closed.iter().sum()),
        }
    }

    /// Goes on from what an earlier supervisor has left of it.
    pub(crate) fn recall(&mut self, remembered: &SlotState) {
        self.base = remembered.base;
        self.report.counters = remembered.reported;
        self.admitted = Admitted { accepted: remembered.accepted, closed: remembered.closed };
        self.worker.incarnation = remembered.newest();
        self.restarts.extend(remembered.restarts());
    }

    /// It lives on, with this worker. Workers that ended while there was no supervisor are counted now.
    pub(crate) fn take_over(&mut self, worker: Worker, expected: u32, link: SupervisorEnd, table: OwnedFd) {
        let unseen = worker.incarnation.0.saturating_sub(expected);
        if unseen > 0 {
            *self.restarts.entry(Cause::Unknown.to_string()).or_default() += u64::from(unseen);
        }
        self.worker = worker;
        self.link = Some(link);
        self.table = Some(table);
    }

    /// It died while there was no supervisor, and its table with it: counts what was reported last, and whoever
    /// was in then as lost. So many of those let in were with other slots. Returns how many were lost.
    pub(crate) fn slot_lost_unseen(&mut self, moved_away: i64) -> u64 {
        let report = std::mem::take(&mut self.report);
        self.base.add(&report.counters);
        self.reconcile_with_table();
        let admitted = Admitted { accepted: self.base.accepted, closed: self.base.closed };
        let lost = u64::try_from(admitted.open().saturating_sub(moved_away)).unwrap_or(0);
        self.base.closed[CloseReason::WorkerLost.index()] += lost;
        self.base.lost += lost;
        self.admitted.closed = self.base.closed;
        lost
    }

    /// Everything the slot has counted, over all its workers and keepers.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = self.base;
        counters.add(&self.report.counters);
        counters
    }

    /// The worker says how far its drain has come. Those who have gone were released before.
    pub fn note_drain(&mut self, told: u32, untold: u32) {
        let gone = self.admitted.closed[CloseReason::Drain.index()];
        self.draining = DrainReport { told: gone + u64::from(told), untold: u64::from(untold) };
    }

    /// One connection of this slot has ended.
    pub fn count_close(&mut self, reason: CloseReason) {
        self.admitted.closed[reason.index()] += 1;
    }

    /// A worker has taken over, and says what its table has counted. What the last worker did not live to
    /// tell of is made up for: closes with their reasons, and clients that had been let in and never
    /// heard of it.
    pub fn reconcile(&mut self, counters: &Counters) {
        self.report.counters = *counters;
        self.reconcile_with_table();
    }

    fn reconcile_with_table(&mut self) {
        let counted = self.counters();
        self.admitted.closed = counted.closed;
        // More than were let in only when what an earlier supervisor remembered is lost.
        self.admitted.accepted = self.admitted.accepted.max(counted.accepted);
        let unheard = self.admitted.accepted.saturating_sub(counted.accepted);
        self.base.accepted += unheard;
        self.base.closed[CloseReason::WorkerLost.index()] += unheard;
        self.admitted.closed[CloseReason::WorkerLost.index()] += unheard;
    }

    /// The worker is gone, another one comes: what it was asked will not be answered.
    pub fn worker_died(&mut self, cause: Cause, now: Duration) {
        let cause = cause.to_string();
        *self.restarts.entry(cause.clone()).or_default() += 1;
        self.last_death = Some(cause);
        self.died_at = Some(now);
        self.heartbeat = Heartbeat::Absent;
        self.ready_since = None;
        self.unanswered.clear();
    }

    /// The worker has handed over, the next one comes at once.
    pub fn worker_handed_over(&mut self, now: Duration) {
        self.worker_left(HANDED_OVER, now);
    }

    /// The keeper died, and the worker has taken its place; the next one comes at once.
    pub(crate) fn keeper_replaced(&mut self, now: Duration) {
        self.worker_left(KEEPER_DIED, now);
    }

    fn worker_left(&mut self, cause: &str, now: Duration) {
        *self.restarts.entry(cause.to_owned()).or_default() += 1;
        self.died_at = Some(now);
        self.heartbeat = Heartbeat::Absent;
        self.ready_since = None;
        self.unanswered.clear();
    }

    /// The slot's descriptors are all closed. Counts what its table says to the end, and the connections that
    /// died with it. Returns how many those were.
    pub fn slot_lost(&mut self) -> u64 {
        self.link = None;
        self.ready_since = None;
        self.unanswered.clear();
        let died = self.count_to_the_end();
        self.note_drain(0, 0);
        died
    }

    fn count_to_the_end(&mut self) -> u64 {
        let report = std::mem::take(&mut self.report);
        let Some(memory) = self.table.take() else { return 0 };
        match Table::open(memory.as_fd()) {
            Ok(table) => {
                self.base.add(&table.header().counters);
                // What was between two slots is the other one's, or is missed when the transfer is over.
                let between = Flags::GIVEN.union(Flags::TAKEN);
                let is_held = |flags: Flags| flags.contains(Flags::ADMITTED) && !flags.intersects(between);
                let held = table.records().iter().filter(|record| is_held(record.flags));
                let mut died = 0;
                for record in held {
                    died += 1;
                    let reason = match record.phase() {
                        Phase::Open => CloseReason::WorkerLost,
                        // It was on its way out, for this reason.
                        _ => CloseReason::from_index(usize::from(record.ending))
                            .unwrap_or(CloseReason::WorkerLost),
                    };
                    self.base.closed[reason.index()] += 1;
                    self.base.lost += u64::from(record.phase() == Phase::Open);
                }
                self.reconcile_with_table();
                died
            }
            Err(error) => {
                log::error!("slot {}: {error}; what was counted since its last report is lost", self.id);
                self.base.add(&report.counters);
                self.reconcile_with_table();
                0
            }
        }
    }

    /// Workers replaced so far.
    #[must_use]
    pub fn restarts_total(&self) -> u64 {
        self.restarts.values().sum()
    }
}
