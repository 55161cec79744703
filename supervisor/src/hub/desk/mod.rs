//! What is done with what workers and applications say: entries are written, in batches, and with each batch that counts
//! the directory is brought up to it. Pure but for the channel memory, which it alone writes: no socket, no clock. One that
//! is dropped at any point is gone on for by the next on the same memory.

mod channels;
mod commands;
mod events;
mod idempotency;
mod members;
mod membership;
mod publish;
mod queries;
mod rates;
mod recovery;
mod redo;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_shared::channels::entry::{EntryHead, Kind, NO_SLOT};
use holdfast_shared::channels::journal::Writer;
use holdfast_shared::channels::memory::{ChannelMemory, Word};
use holdfast_shared::channels::rules::Rule;
use holdfast_shared::channels::up_ring::{Message, MessageKind};

use channels::Channels;
use idempotency::Idempotency;
use members::Members;
use rates::Rates;

/// A batch is at most this part of the journal, but for its last request.
const BATCH_PART: u64 = 8;

/// What the configuration says of channels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct DeskSettings {
    /// What holds for which channels; the first that matches.
    pub(super) rules: Vec<Rule>,
    /// Connections of one user; 0 is no limit.
    pub(super) max_connections_per_user: u32,
    /// Somebody may want to know what happens to connections.
    pub(super) has_events: bool,
}

/// What time it is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Now {
    /// By the clock on the wall, in milliseconds.
    pub(super) wall_ms: u64,
    /// By the clock that never jumps.
    pub(super) monotonic: Duration,
}

/// What the hub knows of a slot's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// None, or only those that came since it began.
    Nothing,
    /// They are being named.
    Naming,
    /// All.
    All,
}

/// Where a request came from: what `source` of its entries is to be, and the slot.
#[derive(Debug, Clone, Copy)]
struct From {
    slot: u16,
    source: u64,
}

impl From {
    const APPLICATION: Self = Self { slot: NO_SLOT, source: (NO_SLOT as u64) << 48 };
}

/// The hub without its sockets.
#[derive(Debug)]
pub(super) struct Desk {
    memory: ChannelMemory,
    writer: Writer,
    settings: DeskSettings,
    channels: Channels,
    members: Members,
    slots: BTreeMap<u16, Knowledge>,
    /// All slots that there are have been named.
    has_all_slots: bool,
    /// All connections of all slots are known.
    knows_all: bool,
    idempotency: Idempotency,
    rates: Rates,
    events: Option<u32>,
    /// The event that was read last, and where it lies: whoever reads on begins there.
    cursor: Option<(u64, u64)>,
    now: Now,
    /// Publications since the last batch that counts.
    published: u64,
    /// Something was written for clients that they have not been woken for.
    concerns_clients: bool,
    /// Where workers' rings were read up to, as the entries of the last batch have it.
    redone: BTreeMap<u16, u64>,
    /// Frames are built here.
    frame: Vec<u8>,
}

impl Desk {
    /// Goes on with the memory, as the hub that is none any more left it.
    pub(super) fn new(memory: ChannelMemory, settings: DeskSettings, now: Now) -> Self {
        let redone = redo::redo(&memory);
        let channels = Channels::read(&memory, &settings.rules);
        let mut this = Self {
            writer: Writer::new(&memory),
            memory,
            settings,
            channels,
            members: Members::default(),
            slots: BTreeMap::new(),
            has_all_slots: false,
            knows_all: false,
            idempotency: Idempotency::default(),
            rates: Rates::default(),
            events: None,
            cursor: None,
            now,
            published: 0,
            concerns_clients: false,
            redone,
            frame: Vec::new(),
        };
        this.read_journal();
        this.open_events();
        this
    }

    /// Begins a generation: all workers name their connections anew.
    pub(super) fn begin_generation(&mut self) {
        self.memory.set(Word::GenerationStart, self.memory.get(Word::Tail));
        self.memory.set(Word::Generation, self.memory.get(Word::Generation) + 1);
    }

    pub(super) fn memory(&self) -> &ChannelMemory {
        &self.memory
    }

    /// Other settings hold from now on.
    pub(super) fn configure(&mut self, settings: DeskSettings) {
        self.settings = settings;
        self.channels.set_rules(&self.settings.rules);
        self.open_events();
    }

    pub(super) fn set_time(&mut self, now: Now) {
        self.now = now;
    }

    /// There is a slot. Returns up to where its ring has been carried out, if that ring says less.
    pub(super) fn add_slot(&mut self, slot: u16) -> Option<u64> {
        self.slots.entry(slot).or_insert(Knowledge::Nothing);
        self.knows_all = false;
        self.redone.remove(&slot)
    }

    /// All slots that there are have been named.
    pub(super) fn set_all_slots(&mut self) {
        self.has_all_slots = true;
        self.learn();
    }

    /// Carries out a message of a slot, which ends at `end` of its ring.
    #[inline]
    pub(super) fn take(&mut self, slot: u16, message: &Message, bytes: &[u8]) {
        let from = From { slot, source: EntryHead::source_of(slot, message.end) };
        let head = &message.head;
        match message.kind {
            Some(MessageKind::Publish) => self.on_publish(from, head, bytes),
            Some(MessageKind::Joined) => self.on_joined(from, head.connection, bytes),
            Some(MessageKind::Subscribe) => self.on_subscribe(from, head.connection, bytes),
            Some(MessageKind::Unsubscribe) => self.on_unsubscribe(from, head.connection, head.channel),
            Some(MessageKind::Gone) => self.on_gone(from, head.connection, bytes),
            // The channel's place has the row.
            Some(MessageKind::MovedIn) => self.members.place(head.connection, slot, head.channel),
            Some(MessageKind::AnnounceBegin) => self.set_knowledge(slot, Knowledge::Naming),
            Some(MessageKind::Here) => self.on_here(from, head.connection, bytes),
            Some(MessageKind::AnnounceEnd) => self.on_all_named(slot),
            // Of a newer program.
            None => {}
        }
    }

    /// Is the batch so long that it is to count before anything is added?
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        let length = self.writer.position() - self.memory.get(Word::Tail);
        length >= self.memory.journal_size() / BATCH_PART
    }

    /// Lets what was written count, if there is anything.
    pub(super) fn commit(&mut self) {
        if !self.writer.has_batch(&self.memory) {
            return;
        }
        self.writer.commit(&self.memory);
        self.carry_out();
    }

    /// Brings all that follows from the batch up to it. One that dies before that leaves it to the next.
    fn carry_out(&mut self) {
        self.channels.write_records(&self.memory);
        if self.published > 0 {
            let before = self.memory.get(Word::Publications);
            self.memory.set(Word::Publications, before + std::mem::take(&mut self.published));
        }
    }

    /// Was anything written for clients since this was last asked?
    pub(super) fn take_concern(&mut self) -> bool {
        std::mem::take(&mut self.concerns_clients)
    }

    /// Lets go of what is of no use any more. To be called now and then, between batches.
    pub(super) fn tidy(&mut self) {
        self.idempotency.forget_old(self.now.wall_ms);
        self.rates.forget_old(self.now.monotonic);
        let (memory, events, floor) = (&self.memory, self.events, self.memory.get(Word::Floor));
        let (rules, now_ms) = (&self.settings.rules, self.now.wall_ms);
        self.channels.sweep(memory, |number, channel| {
            if channel.state.subscribers > 0 || events == Some(number) {
                return false;
            }
            let ttl = channel.rule.and_then(|rule| rules.get(rule)).map(|rule| rule.history_ttl);
            let ttl_ms = ttl.filter(|ttl| !ttl.is_zero()).map(holdfast_shared::clock::milliseconds);
            let is_older = |ttl_ms| {
                memory
                    .entry(channel.state.last)
                    .is_ok_and(|last| last.head.time_ms.saturating_add(ttl_ms) < now_ms)
            };
            channel.state.last < floor || ttl_ms.is_some_and(is_older)
        });
    }

    /// How many connections of the slot are known, and whether those are all.
    pub(super) fn connections_of(&self, slot: u16) -> (u64, bool) {
        let knows_slot = self.slots.get(&slot) == Some(&Knowledge::All);
        (self.members.of_slot(slot), knows_slot)
    }

    /// Channels, and subscriptions to all of them.
    pub(super) fn counts(&self) -> (u64, u64) {
        let subscriptions = self.channels.iter().map(|(_, channel)| channel.state.subscribers).sum();
        let own = usize::from(self.events.is_some());
        (self.channels.len().saturating_sub(own) as u64, subscriptions)
    }

    /// How old the first entry is that can be read.
    pub(super) fn journal_age_ms(&self) -> u64 {
        let first = self.memory.entry(self.memory.get(Word::First));
        first.map_or(0, |first| self.now.wall_ms.saturating_sub(first.head.time_ms))
    }

    /// Writes an entry. All that is written goes through here.
    fn append(&mut self, kind: Kind, from: From, head: EntryHead, bytes: &[u8]) -> u64 {
        let head = EntryHead { kind: kind.number(), source: from.source, time_ms: self.now.wall_ms, ..head };
        self.concerns_clients |= kind.is_addressed();
        self.writer.append(&self.memory, head, bytes)
    }

    /// The rule that holds for the channel.
    #[inline]
    fn rule(&self, channel: u32) -> Option<&Rule> {
        self.settings.rules.get(self.channels.get(channel)?.rule?)
    }
}
