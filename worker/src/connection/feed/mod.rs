//! The way between a worker's clients and the hub: up, what they say; down, the journal, in turns. A slot's position says up
//! to where everybody has the journal, a record's says it for one client, and the two together say what is still to
//! be sent, whichever worker looks at them.
//!
//! ```text
//! client -> App -> Feed::say -> up-ring -> hub -> journal -> turn -> client
//!                                                    \-> catch_up -> one that could not keep pace
//! ```

mod catch_up;
mod membership;
mod parts;
mod publish;
#[cfg(test)]
mod tests;
mod turn;
mod verdicts;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::Duration;

use holdfast_shared::channels::memory::{ChannelMemory, Word as Memory};
use holdfast_shared::channels::sleep;
use holdfast_shared::channels::up_ring::{UpRing, UpRingError, Word};
use holdfast_shared::sys::descriptor;
use holdfast_shared::table::{Flags, Phase, Subscriber};

use super::{Connections, Key, index};
use crate::channels::ChannelAccess;
use crate::channels::index::Index;
use membership::Unsaid;
use turn::Turn;

/// Rows gone through before others are served.
const ROWS_PER_STEP: usize = 512;
/// Clients that catch up before others are served.
const VISITS_PER_STEP: usize = 64;
/// How long a client waits that the hub could not answer yet.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Why a worker cannot have channels.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    #[error("the descriptor of the up-ring: {0}")]
    Descriptor(#[from] io::Error),
    #[error(transparent)]
    Ring(#[from] UpRingError),
}

/// A worker's end of channels.
#[derive(Debug)]
pub(crate) struct Feed {
    memory: ChannelMemory,
    ring: UpRing,
    access: Bells,
    hub: sleep::Waker,
    index: Index,
    turn: Option<Turn>,
    /// Clients that lag, by row: their serials.
    lagging: HashMap<u32, u32>,
    /// Of those, some that can go on without an event.
    behind: VecDeque<Key>,
    /// Clients whose names are of another slot, by name: their rows.
    strangers: HashMap<u64, u32>,
    /// What the ring had no room for.
    unsaid: VecDeque<Unsaid>,
    unsaid_not_before: Duration,
    /// Clients that are not read, since what they say would find no room.
    held: Vec<Key>,
    /// While all clients are named to a hub that does not know them: its generation, and the row to go on with.
    announcing: Option<(u64, u32)>,
    /// The tail when it was last looked who lags too much.
    lag_seen_at: u64,
    /// The hub has not been woken since something was said.
    has_said: bool,
}

#[derive(Debug)]
struct Bells {
    own: i32,
    hub: i32,
}

impl Feed {
    fn delivered(&self) -> u64 {
        self.ring.get(Word::Delivered)
    }

    /// Up to where a client has everything that it can be given now.
    fn target(&self) -> u64 {
        self.turn.as_ref().map_or_else(|| self.delivered(), Turn::end)
    }

    fn is_behind(&self) -> bool {
        self.memory.get(Memory::Tail) != self.delivered()
    }
}

impl Connections {
    /// Takes up channels where the worker before left them. To be called before anything is taken over.
    pub(crate) fn open_feed(&mut self, access: ChannelAccess) -> Result<(), FeedError> {
        let ChannelAccess { memory, ring, bell, hub_bell } = access;
        let ring = descriptor::with(ring, UpRing::map)??;
        let feed = Feed {
            memory,
            ring,
            access: Bells { own: bell, hub: hub_bell },
            hub: sleep::Waker::default(),
            index: Index::default(),
            turn: None,
            lagging: HashMap::new(),
            behind: VecDeque::new(),
            strangers: HashMap::new(),
            unsaid: VecDeque::new(),
            unsaid_not_before: Duration::ZERO,
            held: Vec::new(),
            announcing: None,
            lag_seen_at: 0,
            has_said: true,
        };
        sleep::wake_up(feed.ring.word(Word::WorkerSleep));
        self.feed = Some(feed);
        self.settle_what_was_said();
        Ok(())
    }

    /// What wakes this worker when there is something for its clients.
    pub(crate) fn feed_bell(&self) -> Option<i32> {
        self.feed.as_ref().map(|feed| feed.access.own)
    }

    /// One step: what waits for room is said, a part of the turn is delivered, some of those who lag catch up.
    pub(crate) fn step_feed(&mut self, now: Duration) {
        if self.feed.is_none() {
            return;
        }
        self.say_unsaid(now);
        self.read_held();
        self.continue_turn();
        self.visit_behind();
        self.close_who_lags_too_much();
        self.announce();
    }

    /// Is there something to do without an event?
    pub(crate) fn feed_has_work(&self) -> bool {
        self.feed.as_ref().is_some_and(|feed| {
            feed.turn.is_some() || !feed.behind.is_empty() || feed.announcing.is_some() || feed.is_behind()
        })
    }

    /// When clients that the hub could not answer ask again.
    pub(crate) fn feed_deadline(&self) -> Option<Duration> {
        self.feed.as_ref().filter(|feed| !feed.unsaid.is_empty()).map(|feed| feed.unsaid_not_before)
    }

    /// Wakes the hub if it sleeps and something was said.
    pub(crate) fn wake_hub(&mut self) {
        if let Some(feed) = &mut self.feed
            && std::mem::take(&mut feed.has_said)
            && feed.hub.must_wake(feed.memory.word(Memory::HubSleep))
        {
            let _ = descriptor::with(feed.access.hub, sleep::ring);
        }
    }

    /// About to wait for events. Says whether there is something to do instead.
    pub(crate) fn feed_falls_asleep(&mut self) -> bool {
        let Some(feed) = &self.feed else { return false };
        sleep::fall_asleep(feed.ring.word(Word::WorkerSleep));
        feed.is_behind()
    }

    /// Has waited.
    pub(crate) fn feed_wakes_up(&mut self) {
        if let Some(feed) = &self.feed {
            sleep::wake_up(feed.ring.word(Word::WorkerSleep));
        }
    }

    /// The bell was rung.
    pub(crate) fn hush_feed(&self) {
        if let Some(feed) = &self.feed {
            let _ = descriptor::with(feed.access.own, sleep::hush);
        }
    }

    /// Gives memory back that a crowd needed.
    pub(super) fn give_back_feed(&mut self) {
        if let Some(feed) = &mut self.feed {
            feed.index.shrink();
            feed.lagging.shrink_to_fit();
            feed.behind.shrink_to_fit();
        }
    }

    /// The position up to which this connection has everything.
    fn position_of(&self, key: Key) -> Option<u64> {
        let (record, feed) = (self.get(key)?, self.feed.as_ref()?);
        let own = record.position();
        Some(if record.subscriber.contains(Subscriber::LAGGING) { own } else { own.max(feed.delivered()) })
    }

    /// The connection goes on by itself, from where it is.
    fn set_lagging(&mut self, key: Key) {
        let Some(position) = self.position_of(key) else { return };
        if let Some(record) = self.get_mut(key) {
            record.set_position(position);
            record.subscriber.set(Subscriber::LAGGING, true);
        }
        if let Some(feed) = &mut self.feed {
            feed.lagging.insert(key.row, key.serial);
        }
    }

    /// It can go on without an event.
    fn queue_behind(&mut self, key: Key) {
        self.set_lagging(key);
        if let Some(feed) = &mut self.feed {
            feed.behind.push_back(key);
        }
    }

    fn visit_behind(&mut self) {
        for _ in 0..VISITS_PER_STEP {
            let Some(key) = self.feed.as_mut().and_then(|feed| feed.behind.pop_front()) else { return };
            if self.is_in(key, Phase::Open) && !self.is_given(key) {
                self.set_busy(key);
                self.catch_up(key);
                self.settle(key);
            }
        }
    }

    /// Who has fallen too far behind is closed, or goes on with the newest.
    fn close_who_lags_too_much(&mut self) {
        let Some(feed) = &mut self.feed else { return };
        let tail = feed.memory.get(Memory::Tail);
        let most = self.settings.channels.as_ref().map_or(0, |channels| channels.max_lag);
        let most = most.min(feed.memory.journal_size() / 4 * 3);
        // Often enough that none gets more than a sixteenth further than it may.
        if feed.lagging.is_empty() || tail - feed.lag_seen_at < most / 16 {
            return;
        }
        feed.lag_seen_at = tail;
        let all: Vec<Key> = feed.lagging.iter().map(|(&row, &serial)| Key { row, serial }).collect();
        for key in all {
            let Some(position) = self.position_of(key).filter(|_| self.is_in(key, Phase::Open)) else {
                if let Some(feed) = &mut self.feed {
                    feed.lagging.remove(&key.row);
                }
                continue;
            };
            if tail - position.min(tail) > most && !self.is_given(key) {
                self.set_busy(key);
                self.skip_or_close(key);
                self.settle(key);
            }
        }
    }

    /// It is subscribed and cannot have all that there was.
    fn skip_or_close(&mut self, key: Key) {
        let Some(record) = self.get(key) else { return };
        if !record.subscriber.contains(Subscriber::LATEST) {
            return self.close_slow_reader(key);
        }
        let channel = record.channel();
        let is_told = record.subscriber.contains(Subscriber::ENVELOPE);
        self.finish_part(key);
        let Some(feed) = &self.feed else { return };
        let (target, name) = (feed.target(), feed.memory.channel_name(channel).unwrap_or_default());
        if let Some(record) = self.get_mut(key) {
            record.set_position(target);
        }
        if is_told {
            let mut told = Vec::new();
            crate::channels::envelope::append_skipped(&name, &mut told);
            self.write(key, &told);
        }
    }

    /// Does it go on by itself, from its own position?
    pub(super) fn lags(&self, key: Key) -> bool {
        self.get(key).is_some_and(|record| record.subscriber.contains(Subscriber::LAGGING))
    }

    /// Is it open, and subscribed to something?
    #[inline]
    fn is_subscribed_row(&self, row: u32) -> Option<Key> {
        let record = self.table.records().get(index(row))?;
        let is_so = record.phase() == Phase::Open
            && record.subscriber.contains(Subscriber::SUBSCRIBED)
            && !record.flags.contains(Flags::GIVEN);
        is_so.then_some(Key { row, serial: record.serial })
    }
}
