//! All connections of a worker: their records in the table, the heap state on the heap, their timers.
//! The one place where a connection begins and ends, and so the one place that counts.

mod answer;
mod backpressure;
mod budget;
mod client;
mod clients;
mod feed;
mod frames;
mod give_back;
mod heap_state;
mod high_water;
mod http_date;
mod ignored_proxies;
mod input;
mod message_rate;
mod moves;
mod outbox;
mod output;
mod pages;
mod request;
pub mod saved;
pub(crate) mod session;
#[cfg(test)]
mod tests;
mod timer_wheel;
mod timers;

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use holdfast_shared::id::{ConnectionId, SlotId};
use holdfast_shared::ipc::settings::Settings;
use holdfast_shared::reason::CloseReason;
pub(crate) use holdfast_shared::table::Key;
use holdfast_shared::table::{Flags, Phase, Record, Table};
use mio::Token;
use slab::Slab;

use crate::connection::timer_wheel::{Links, TimerLink, TimerWheel};
use crate::websocket::engine::Engine;
use budget::Budget;
pub(crate) use clients::Clients;
use feed::Feed;
use high_water::HighWater;
use http_date::HttpDate;
pub(crate) use outbox::Outbox;
use pages::Pages;
use session::SessionMemory;

/// A connection as mio carries it: the serial above, the descriptor below.
pub(crate) fn token(key: Key) -> Token {
    // Descriptors fit into 31 bits; on 64-bit Linux a token has room for both.
    Token(usize::try_from((u64::from(key.serial) << 32) | u64::from(key.row)).unwrap_or(usize::MAX))
}

/// The connection in a token made by [`token`].
pub(crate) fn from_token(token: Token) -> Key {
    let bits = token.0 as u64;
    let lower = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    Key { row: lower(bits), serial: lower(bits >> 32) }
}

/// A connection's descriptor as system calls take it.
pub(crate) fn descriptor_of(key: Key) -> RawFd {
    RawFd::try_from(key.row).unwrap_or(-1)
}

/// What a connection has on the heap while something is under way. Dies with the worker.
#[derive(Debug, Default)]
pub(crate) struct HeapState {
    /// The beginning of an upgrade request, or frames that came glued to it.
    pub(crate) request: Vec<u8>,
    /// The subprotocol that the request is answered with, when its name is longer than a record has room for.
    pub(crate) subprotocol: String,
    /// Half a frame or half a message.
    pub(crate) engine: Option<Box<Engine>>,
    /// When that message began; 0 is none.
    message_since_ms: u64,
    /// What the kernel did not take.
    pub(crate) outbox: Outbox,
    /// When the kernel last took some of that.
    taken_ms: u64,
    /// Since when the client is not read.
    unread_since_ms: Option<u64>,
    /// The record's index.
    row: u32,
    /// Bytes that count in the worker's budget.
    held: usize,
}

impl HeapState {
    fn is_empty(&self) -> bool {
        self.request.is_empty()
            && self.subprotocol.is_empty()
            && self.engine.is_none()
            && self.outbox.is_empty()
    }
}

/// All connections.
pub(crate) struct Connections {
    slot: SlotId,
    /// What holds now.
    pub(crate) settings: Settings,
    /// The clock, as of this turn of the loop.
    pub(crate) now_ms: u64,
    pub(crate) table: Table,
    date: HttpDate,
    pages: Pages,
    /// The kernel did not take pages back, and that was said.
    pages_refused: bool,
    heap_states: Slab<HeapState>,
    under_way: HighWater,
    wheel: TimerWheel,
    /// Admitted connections closed since the supervisor was last told.
    pub(crate) released: Vec<(IpAddr, CloseReason)>,
    /// Connections that are over, of which their applications have yet to be told.
    pub(crate) ended: Vec<Key>,
    /// Connections that may have more to read and will not be told so by the kernel, each once.
    unread: VecDeque<Key>,
    /// Rows by connection id, once an application has looked for one.
    names: Option<HashMap<u64, u32>>,
    /// Some that awaited admission do no longer, and not for a verdict.
    pub(crate) has_withdrawn: bool,
    admitted: u32,
    queued_bytes: u64,
    budget: Budget,
    /// `None` while no connection has a session.
    sessions: Option<SessionMemory>,
    /// `None` in a server without channels.
    feed: Option<Feed>,
}

impl Connections {
    /// The connections in `table`: none of them counted or armed until [`Connections::take_over`].
    pub(crate) fn new(slot: SlotId, mut table: Table, settings: Settings, now_ms: u64) -> Self {
        table.header_mut().pending = 0;
        Self {
            slot,
            settings,
            now_ms,
            pages: Pages::new(table.used().end),
            sessions: SessionMemory::of(table.header()),
            pages_refused: false,
            table,
            date: HttpDate::default(),
            heap_states: Slab::new(),
            under_way: HighWater::default(),
            wheel: TimerWheel::new(now_ms),
            released: Vec::new(),
            ended: Vec::new(),
            unread: VecDeque::new(),
            names: None,
            has_withdrawn: false,
            admitted: 0,
            queued_bytes: 0,
            budget: Budget::default(),
            feed: None,
        }
    }

    /// Admitted connections whose descriptors are open.
    pub(crate) fn admitted(&self) -> u32 {
        self.admitted
    }

    /// Connections on their way in or being turned away.
    pub(crate) fn pending(&self) -> u32 {
        self.table.header().pending
    }

    /// Bytes in all outboxes.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// The date that an answer carries now.
    pub(super) fn date(&mut self) -> &str {
        self.date.at(self.now_ms)
    }

    /// Is the last row taken? `own` is how many descriptors of the slot are no connections.
    pub(crate) fn is_full(&self, own: u32) -> bool {
        let own = own + u32::from(self.sessions.is_some());
        own + self.admitted + self.pending() >= self.table.header().rows
    }

    /// Makes `descriptor` a connection in phase `Handshake`. `None`, and the descriptor closed, when the
    /// table has no row for it.
    pub(crate) fn begin(&mut self, descriptor: OwnedFd, peer: IpAddr) -> Option<Key> {
        let row = u32::try_from(descriptor.as_raw_fd()).ok()?;
        let (now_ms, deadline_ms) = (self.now_ms, self.handshake_deadline_ms());
        let header = self.table.header_mut();
        if row >= header.rows {
            return None;
        }
        header.rows_used = header.rows_used.max(row + 1);
        header.sequence += 1;
        let sequence = header.sequence;
        let id = ConnectionId::new(self.slot, sequence);
        let record = &mut self.table.records_mut()[index(row)];
        record.begin(id.0, sequence, peer, now_ms, deadline_ms);
        let serial = record.serial;
        self.note_row(row);
        // From here on the record owns the descriptor, and `end` closes it.
        let _ = descriptor.into_raw_fd();
        self.table.header_mut().pending += 1;
        self.under_way.note(self.count_under_way());
        Some(Key { row, serial })
    }

    /// Counts a connection that an earlier worker left, as one of ours. What its flags say stays until its
    /// fate is carried out: this worker may die before that.
    pub(crate) fn take_over(&mut self, row: u32) -> Key {
        let record = &mut self.table.records_mut()[index(row)];
        (record.heap_state, record.queued) = (0, 0);
        record.flags.set(Flags::READ_QUEUED, false);
        (record.timer, record.timer_place) = ([0; 2], 0);
        let key = Key { row, serial: record.serial };
        let (admitted, pending) = (record.flags.contains(Flags::ADMITTED), record.phase().is_pending());
        self.note_row(row);
        self.admitted += u32::from(admitted);
        self.table.header_mut().pending += u32::from(pending);
        self.claim_session(key);
        self.take_over_subscriptions(key);
        key
    }

    /// Marks the connection while it is being taken over.
    pub(crate) fn set_resuming(&mut self, key: Key, on: bool) {
        if let Some(record) = self.get_mut(key) {
            record.flags.set(Flags::RESUMING, on);
        }
    }

    /// The record of `key`, if that connection is not over.
    pub(crate) fn get(&self, key: Key) -> Option<&Record> {
        self.record_of(key).filter(|record| record.is_live())
    }

    /// The record of `key`, also when all that is left is to tell its application.
    pub(crate) fn record_of(&self, key: Key) -> Option<&Record> {
        let record = self.table.records().get(index(key.row))?;
        (record.serial == key.serial && record.phase() != Phase::Free).then_some(record)
    }

    /// The record of `key`, to be changed.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Record> {
        let record = self.table.records_mut().get_mut(index(key.row))?;
        (record.serial == key.serial && record.is_live()).then_some(record)
    }

    /// The connection at `row`, if there is one.
    pub(crate) fn key_at(&self, row: u32) -> Option<Key> {
        let record = self.table.records().get(index(row))?;
        (record.phase() != Phase::Free).then_some(Key { row, serial: record.serial })
    }

    /// Moves a connection to another phase, which ends at `deadline_ms`.
    pub(crate) fn enter(&mut self, key: Key, phase: Phase, deadline_ms: u64) {
        let Some(record) = self.get_mut(key) else { return };
        let before = record.phase();
        log::trace!("connection {}: {} -> {}", record.id, before.name(), phase.name());
        record.set_phase(phase);
        record.deadline_ms = deadline_ms;
        match (before.is_pending(), phase.is_pending()) {
            (true, false) => self.table.header_mut().pending -= 1,
            (false, true) => self.table.header_mut().pending += 1,
            (true, true) | (false, false) => {}
        }
        if before == Phase::Open && phase != Phase::Open {
            // Its close frame may be among what it was not read for.
            self.read_on(key);
        }
        self.arm(key, deadline_ms);
    }

    /// The supervisor let this one in: it counts from now until [`Connections::end`].
    pub(crate) fn mark_admitted(&mut self, key: Key) {
        let Some(record) = self.get_mut(key) else { return };
        record.flags.set(Flags::ADMITTED, true);
        self.admitted += 1;
        self.table.counters().accepted += 1;
    }

    /// Makes up for a worker that died between writing down and counting: whoever is in or has left must have
    /// come, and whoever has come and is not in must have left.
    pub(crate) fn reconcile(&mut self) {
        let header = self.table.header_mut();
        let accounted = u64::from(self.admitted) + header.went();
        let missing = header.came().saturating_sub(accounted);
        header.counters.closed[CloseReason::WorkerLost.index()] += missing;
        header.counters.accepted = header.counters.accepted.max(accounted.saturating_sub(header.moved_in));
    }

    /// The supervisor let one in that had left meanwhile: counted as one that came and went, and given back.
    pub(crate) fn give_back(&mut self, address: IpAddr) {
        let counters = self.table.counters();
        counters.accepted += 1;
        counters.close(CloseReason::Client, Duration::ZERO);
        self.released.push((address, CloseReason::Client));
    }

    /// Says why an established connection is ending, unless that was said before.
    pub(crate) fn mark_ending(&mut self, key: Key, reason: CloseReason) {
        if let Some(record) = self.get_mut(key)
            && record.phase() == Phase::Open
        {
            record.ending = u8::try_from(reason.index()).unwrap_or(u8::MAX);
        }
    }

    /// The connection is over: its application is told, then it is freed. One that has not opened is freed now.
    pub(crate) fn end(&mut self, key: Key) {
        let Some(&record) = self.get(key) else { return };
        self.has_withdrawn |= record.phase() == Phase::AwaitingAdmission;
        self.wheel.cancel(&mut TableLinks(&mut self.table), key.row);
        self.drop_heap_state(key);
        if record.flags.contains(Flags::OPENED) {
            self.mark_ending(key, CloseReason::Client);
            self.table.records_mut()[index(key.row)].set_phase(Phase::Ended);
            self.ended.push(key);
        } else {
            self.finish_end(key);
        }
    }

    /// Frees the connection's record, closes its descriptor, counts it, remembers to release it. The one place
    /// where this happens, so nothing is counted twice.
    pub(crate) fn finish_end(&mut self, key: Key) {
        let Some(&record) = self.record_of(key) else { return };
        self.free(key, &record);
        // Freed first: should the worker die before the close, the next one closes what no record owns.
        if let Err(error) = nix::unistd::close(descriptor_of(key)) {
            log::error!("cannot close descriptor {}: {error}", key.row);
        }
    }

    /// Frees the record of a connection whose descriptor is closed already.
    pub(crate) fn forget(&mut self, key: Key) {
        if let Some(&record) = self.record_of(key) {
            self.free(key, &record);
        }
    }

    /// A worker that dies now died of telling the application that this one is over.
    pub(super) fn set_telling(&mut self, key: Key) {
        if self.record_of(key).is_some() {
            self.table.records_mut()[index(key.row)].flags.set(Flags::BUSY, true);
        }
    }

    fn free(&mut self, key: Key, record: &Record) {
        self.clear_row(key.row, record);
        self.table.header_mut().pending -= u32::from(record.phase().is_pending());
        if record.flags.contains(Flags::ADMITTED) {
            self.admitted -= 1;
            let reason = match record.phase() {
                Phase::Open => CloseReason::Client,
                _ => CloseReason::from_index(usize::from(record.ending)).unwrap_or(CloseReason::Error),
            };
            let lasted = Duration::from_millis(self.now_ms.saturating_sub(record.opened_ms));
            self.table.counters().close(reason, lasted);
            self.released.push((record.address(), reason));
        }
    }

    /// There is no connection at `row` any more.
    fn clear_row(&mut self, row: u32, record: &Record) {
        self.drop_subscriptions(row, record);
        self.table.records_mut()[index(row)].end();
        self.free_session(record.session);
        self.pages.remove(row);
        if let Some(names) = &mut self.names {
            names.remove(&record.id);
        }
    }

    /// There is a connection at `row` now.
    fn note_row(&mut self, row: u32) {
        self.pages.add(row);
        if let Some(names) = &mut self.names {
            names.insert(self.table.records()[index(row)].id, row);
        }
    }

    /// An event of this connection begins: should the worker die before [`Connections::settle`], its stream
    /// state is lost.
    pub(crate) fn set_busy(&mut self, key: Key) {
        if let Some(record) = self.get_mut(key) {
            record.flags.set(Flags::BUSY, true);
        }
    }

    /// The event is over: the record says again all there is to know, or that heap state exists.
    pub(crate) fn settle(&mut self, key: Key) {
        let Some(record) = self.get_mut(key) else { return };
        if record.heap_state == 0 {
            record.flags.set(Flags::UNSAVED.union(Flags::BUSY), false);
            return;
        }
        if self.heap_state(key).is_some_and(|heap| heap.is_empty()) {
            self.drop_heap_state(key);
        }
        self.note_heap_state(key);
        let queued = self.heap_state(key).map_or(0, |heap| heap.outbox.len());
        if let Some(record) = self.get_mut(key) {
            record.queued = u32::try_from(queued).unwrap_or(u32::MAX);
            record.flags.set(Flags::UNSAVED, record.heap_state != 0);
            record.flags.set(Flags::BUSY, false);
        }
    }

    /// The heap state, if there is one.
    pub(crate) fn heap_state(&mut self, key: Key) -> Option<&mut HeapState> {
        let place = self.get(key)?.heap_state;
        self.heap_states.get_mut(usize::try_from(place).ok()?.checked_sub(1)?)
    }

    /// The heap state of the connection with this record, if there is one.
    fn heap_state_of(&self, record: &Record) -> Option<&HeapState> {
        self.heap_states.get((record.heap_state as usize).checked_sub(1)?)
    }

    /// The heap state, made if there is none. `None` only when the connection is gone.
    pub(crate) fn heap_state_or_new(&mut self, key: Key) -> Option<&mut HeapState> {
        if self.get(key)?.heap_state == 0 {
            let position = self.heap_states.insert(HeapState { row: key.row, ..HeapState::default() });
            self.under_way.note(self.count_under_way());
            self.get_mut(key)?.heap_state = u32::try_from(position + 1).ok()?;
        }
        self.heap_state(key)
    }

    /// Handshakes and heap state: what takes memory besides the records.
    fn count_under_way(&self) -> usize {
        self.heap_states.len() + self.pending() as usize
    }

    fn drop_heap_state(&mut self, key: Key) {
        let Some(record) = self.get_mut(key) else { return };
        let place = std::mem::take(&mut record.heap_state);
        if let Some(position) = usize::try_from(place).ok().and_then(|place| place.checked_sub(1))
            && let Some(heap) = self.heap_states.try_remove(position)
        {
            self.queued_bytes -= heap.outbox.len() as u64;
            self.note_dropped(&heap);
        }
    }
}

/// The timer wheel's links, which lie in the records.
struct TableLinks<'a>(&'a mut Table);

impl Links for TableLinks<'_> {
    fn link(&self, row: u32) -> TimerLink {
        let record = &self.0.records()[index(row)];
        let [next, previous] = record.timer;
        TimerLink { next, previous, place: record.timer_place }
    }

    fn set_link(&mut self, row: u32, link: TimerLink) {
        let record = &mut self.0.records_mut()[index(row)];
        (record.timer, record.timer_place) = ([link.next, link.previous], link.place);
    }
}

fn index(row: u32) -> usize {
    row as usize
}
