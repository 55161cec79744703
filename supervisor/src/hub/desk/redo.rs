//! What a hub that starts does before all else: the last batch counts, but the one before may have died before it brought
//! directory, links and rings up to it. All of that follows from the batch's entries, and may be done twice.

use std::collections::BTreeMap;

use holdfast_shared::channels::entry::{EntryHead, Kind};
use holdfast_shared::channels::journal::{Entry, Writer};
use holdfast_shared::channels::memory::{ChannelMemory, Word};

use super::Desk;

/// Redoes the last batch. Returns up to where it has carried out each slot's ring.
pub(super) fn redo(memory: &ChannelMemory) -> BTreeMap<u16, u64> {
    let mut rings = BTreeMap::new();
    for entry in entries_from(memory, memory.get(Word::BatchStart)) {
        if let Some((slot, position)) = entry.head.asked_by() {
            rings.insert(slot, position);
        }
        redo_entry(memory, &entry);
    }
    rings
}

fn redo_entry(memory: &ChannelMemory, entry: &Entry) {
    let head = &entry.head;
    let Some(mut state) = memory.channel_state(head.channel).filter(|_| !is_of_row(entry)) else { return };
    match entry.kind() {
        Some(Kind::Publication) => {
            Writer::link(memory, head.previous, entry.position);
            state.offset = head.offset;
            state.last = entry.position;
        }
        Some(Kind::Subscribed) => state.subscribers = subscribers_of(&head.key),
        Some(Kind::Unsubscribed | Kind::Note) => state.subscribers = head.argument,
        Some(Kind::Refused | Kind::Direct | Kind::Disconnect) | None => return,
    }
    memory.set_channel_state(head.channel, &state);
}

/// Has the channel's place something else in it?
fn is_of_row(entry: &Entry) -> bool {
    matches!(entry.kind(), Some(Kind::Direct | Kind::Disconnect) | None)
}

fn subscribers_of(key: &[u8; 16]) -> u64 {
    key.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// The entries from `position` on, where one begins, up to the tail.
fn entries_from(memory: &ChannelMemory, position: u64) -> impl Iterator<Item = Entry> {
    let mut next = position;
    std::iter::from_fn(move || {
        let entry = memory.entry(next).ok()?;
        next = entry.end();
        Some(entry)
    })
}

impl Desk {
    /// What only the journal has: keys of publications, and where connections are whose workers have not heard of it yet.
    pub(super) fn read_journal(&mut self) {
        for entry in entries_from(&self.memory, self.memory.get(Word::First)) {
            let EntryHead { connection, channel, flags, .. } = entry.head;
            match entry.kind() {
                Some(Kind::Publication) => self.idempotency.note(&entry.head),
                Some(Kind::Subscribed) => self.members.note(connection, channel, true),
                Some(Kind::Unsubscribed) => self.members.note(connection, channel, false),
                Some(Kind::Note) if connection != 0 => {
                    self.members.note(connection, channel, flags & EntryHead::ENTERED != 0);
                }
                _ => {}
            }
        }
        self.idempotency.forget_old(self.now.wall_ms);
    }
}
