//! One slot with everything the supervisor has for it: where it stands, our end of the link, the table's memory,
//! its book. Bookkeeping only; what to do about it is decided in `lifecycle`, and done by the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use holdfast_shared::counters::Counters;
use holdfast_shared::id::{Incarnation, SlotId};
use holdfast_shared::ipc::link::SupervisorEnd;
use holdfast_shared::ipc::message::Report;
use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::{Flags, Header, Phase, Record, TableError, scan};
use nix::unistd::Pid;

use super::book::{Book, Ends};
use super::heartbeat::Heartbeat;
use super::lifecycle::{Cause, Lifecycle, State, Worker};
use super::state::SlotState;
use crate::host::spawn::Spawned;

/// Causes that are shown before they have happened, so that the first time is seen as a change.
const USUAL_CAUSES: [&str; 7] =
    ["SIGKILL", "SIGSEGV", "SIGABRT", "exit status 1", "wedged", HANDED_OVER, KEEPER_DIED];

/// The cause of a planned restart.
pub(super) const HANDED_OVER: &str = "handed over";

/// The cause when a worker took the place of its keeper.
pub(super) const KEEPER_DIED: &str = "keeper died";

/// What dead workers may have left between the steps of an admission and those of an end: one connection that is
/// in and was not counted, one that was counted as gone and is open.
const UNCOUNTED: u64 = 2;

/// How far the drain of one slot has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DrainReport {
    /// Connections that were ever told to go, those that have gone among them.
    pub(crate) told: u64,
    /// Connections that are still to be told.
    pub(crate) untold: u64,
}

/// One slot.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(super) id: SlotId,
    pub(super) life: Lifecycle,
    /// Our end of its link, while there is one.
    pub(super) link: Option<SupervisorEnd>,
    /// The newest worker heard of.
    pub(super) worker: Worker,
    pub(super) heartbeat: Heartbeat,
    /// The version of the newest worker that said so.
    pub(super) version: String,
    /// Since when its worker is ready, if it is.
    pub(super) ready_since: Option<Duration>,
    /// When the last worker was reported dead, until the next one is ready.
    pub(super) died_at: Option<Duration>,
    /// What its worker last reported.
    pub(super) report: Report,
    pub(super) draining: DrainReport,
    /// Requests its worker has not answered yet.
    pub(super) unanswered: BTreeSet<u64>,
    /// The generation of settings its worker said it applies.
    pub(super) applied_generation: u64,
    /// Workers replaced, by the cause of the end.
    pub(super) restarts: BTreeMap<String, u64>,
    pub(super) last_death: Option<String>,
    pub(super) book: Book,
    /// Its keeper was started by an earlier supervisor, and is no child of ours.
    pub(super) is_adopted: bool,
    /// It does not start, and the others go on without it.
    pub(super) is_given_up: bool,
    /// It is on its way out, and gets no new clients.
    pub(super) retires: bool,
    table: Option<Arc<OwnedFd>>,
}

impl Slot {
    /// A slot that has never run.
    pub(super) fn new(id: SlotId) -> Self {
        Self {
            id,
            life: Lifecycle::default(),
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
            book: Book::default(),
            is_adopted: false,
            is_given_up: false,
            retires: false,
            table: None,
        }
    }

    /// A slot that goes on from what an earlier supervisor has left of it.
    pub(super) fn recalled(id: SlotId, remembered: &SlotState) -> Self {
        let mut slot = Self::new(id);
        slot.book = Book::new(remembered.base, remembered.reported, remembered.accepted, remembered.closed);
        slot.worker.incarnation = remembered.newest();
        slot.restarts.extend(remembered.restarts());
        slot
    }

    pub(crate) fn id(&self) -> SlotId {
        self.id
    }

    pub(crate) fn state(&self) -> State {
        self.life.state()
    }

    /// Has it a worker that is ready and awake?
    pub(crate) fn is_awake(&self) -> bool {
        matches!(self.state(), State::Ready(_)) && !self.heartbeat.is_wedged()
    }

    /// Is it there for new clients?
    pub(crate) fn serves(&self) -> bool {
        self.is_awake() && !self.retires
    }

    /// Is it on its way out?
    pub(crate) fn retires(&self) -> bool {
        self.retires
    }

    /// Has it a worker that has said `Ready` and was not reported dead?
    pub(crate) fn answers(&self) -> bool {
        self.ready_since.is_some()
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    pub(crate) fn draining(&self) -> DrainReport {
        self.draining
    }

    /// Has it a worker that has yet to apply the settings of `generation`?
    pub(crate) fn is_behind(&self, generation: u64) -> bool {
        self.answers() && self.applied_generation < generation
    }

    /// Connections that ended for this reason.
    pub(crate) fn closed_for(&self, reason: CloseReason) -> u64 {
        self.book.closed()[reason.index()]
    }

    /// A new keeper has it.
    pub(super) fn occupy(&mut self, spawned: Spawned) {
        self.is_adopted = false;
        self.link = Some(spawned.link);
        self.table = Some(Arc::new(spawned.table));
    }

    /// It lives on, with this worker. Workers that ended while there was no supervisor are counted now.
    pub(super) fn take_over(&mut self, worker: Worker, expected: u32, link: SupervisorEnd, table: OwnedFd) {
        let unseen = worker.incarnation.0.saturating_sub(expected);
        if unseen > 0 {
            *self.restarts.entry(Cause::Unknown.to_string()).or_default() += u64::from(unseen);
        }
        self.worker = worker;
        self.link = Some(link);
        self.table = Some(Arc::new(table));
    }

    /// The memory of its table, if it has one.
    pub(super) fn table(&self) -> Option<Arc<OwnedFd>> {
        self.table.clone()
    }

    /// Connections of the slot at this moment, those on their way in among them; `None` without a table.
    pub(super) fn connections_now(&self) -> Option<u64> {
        Header::read(self.table.as_ref()?.as_fd()).ok().map(|header| header.connections())
    }

    /// Connections that were let in and may be open, when its worker cannot say: never less than there are.
    pub(super) fn connections_at_most(&self) -> u64 {
        let header = self.table.as_ref().and_then(|table| Header::read(table.as_fd()).ok());
        match header {
            Some(header) => header.admitted().saturating_add(UNCOUNTED),
            None => self.book.open().try_into().unwrap_or(0),
        }
    }

    /// The worker says how far its drain has come. Those who have gone were released before.
    pub(super) fn note_drain(&mut self, told: u32, untold: u32) {
        let gone = self.closed_for(CloseReason::Drain);
        self.draining = DrainReport { told: gone + u64::from(told), untold: u64::from(untold) };
    }

    /// The worker is gone, of `cause`: what it was asked will not be answered.
    pub(super) fn on_worker_death(&mut self, cause: Cause, now: Duration) {
        let cause = cause.to_string();
        self.on_worker_end(&cause, now);
        self.last_death = Some(cause);
    }

    /// The worker has left for another, which comes at once.
    pub(super) fn on_worker_end(&mut self, cause: &str, now: Duration) {
        *self.restarts.entry(cause.to_owned()).or_default() += 1;
        self.died_at = Some(now);
        self.heartbeat = Heartbeat::Absent;
        self.ready_since = None;
        self.unanswered.clear();
    }

    /// The slot's descriptors are all closed, with `held` connections as far as the ledger knows. Counts what its
    /// table says to the end, and the connections that ended with it. Returns how many those were.
    pub(super) fn slot_lost(&mut self, held: u64) -> u64 {
        self.link = None;
        self.ready_since = None;
        self.unanswered.clear();
        self.report = Report::default();
        let Some(memory) = self.table.take() else { return 0 };
        let died = match ends_with(&memory) {
            Ok((counters, ended, lost)) => {
                self.book.table_lost(&counters, &ended, lost);
                ended.iter().sum()
            }
            Err(error) => {
                log::error!("slot {}: {error}; what was counted since its last report is lost", self.id);
                self.book.table_lost_unread(held);
                held
            }
        };
        self.note_drain(0, 0);
        died
    }

    /// It died while there was no supervisor, and its table with it: whoever was in is lost. So many of those let in
    /// were with other slots. Returns how many were lost.
    pub(super) fn slot_lost_unseen(&mut self, moved_away: i64) -> u64 {
        let lost = u64::try_from(self.book.open().saturating_sub(moved_away)).unwrap_or(0);
        self.book.table_lost_unread(lost);
        lost
    }

    /// Workers replaced so far.
    pub(super) fn restarts_total(&self) -> u64 {
        self.restarts.values().sum()
    }
}

/// What a table has counted whose descriptors are closed, and the connections that it holds: by reason, and how many
/// were established.
fn ends_with(memory: &OwnedFd) -> Result<(Counters, Ends, u64), TableError> {
    let (memory, mut ended, mut lost) = (memory.as_fd(), Ends::default(), 0);
    let unreadable = |source| TableError::Map { rows: 0, source };
    let header = Header::read(memory).map_err(unreadable)?;
    header.check()?;
    // What was between two slots is the other one's, or is missed when the transfer is over.
    let between = Flags::GIVEN.union(Flags::TAKEN);
    let count = |_, record: &Record| {
        if !record.flags.contains(Flags::ADMITTED) || record.flags.intersects(between) {
            return;
        }
        let is_open = record.phase() == Phase::Open;
        // One that was on its way out ends for the reason it was.
        let ending = CloseReason::from_index(usize::from(record.ending)).filter(|_| !is_open);
        ended[ending.unwrap_or(CloseReason::WorkerLost).index()] += 1;
        lost += u64::from(is_open);
    };
    scan(memory, &header, count).map_err(unreadable)?;
    Ok((header.counters, ended, lost))
}
