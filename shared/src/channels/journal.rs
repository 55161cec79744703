//! The journal: entries in one order, in a ring. The hub writes in batches, and one store makes a batch count; readers
//! go from position to position. A reader that is overtaken finds out, and gets nothing that was overwritten.

use std::sync::atomic::{Ordering, fence};

use bytemuck::Zeroable;

use super::entry::{EntryHead, HEAD, Kind};
use super::memory::{ChannelMemory, Word};

/// No entry may be longer than this part of the journal.
const LARGEST_PART: u64 = 8;

/// An entry that was read, and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where it begins.
    pub position: u64,
    /// Its head.
    pub head: EntryHead,
}

impl Entry {
    /// Where the next one begins.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.position + u64::from(self.head.length)
    }

    /// What it is, if this program knows.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_number(self.head.kind)
    }
}

/// The entry is no longer there, or never was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the journal has been overwritten at this position")]
pub struct Overwritten;

impl ChannelMemory {
    /// Reads the entry at `position`, which lies below the tail.
    ///
    /// # Errors
    /// When it was overwritten.
    #[inline]
    pub fn entry(&self, position: u64) -> Result<Entry, Overwritten> {
        let tail = self.get(Word::Tail);
        if !position.is_multiple_of(8) || position >= tail {
            return Err(Overwritten);
        }
        let mut head = EntryHead::zeroed();
        self.copy_out(position, bytemuck::bytes_of_mut(&mut head));
        let is_sound = head.length as usize >= HEAD
            && head.length.is_multiple_of(8)
            && head.bytes as usize <= head.length as usize - HEAD
            && position + u64::from(head.length) <= tail;
        if self.is_overwritten(position) || !is_sound {
            return Err(Overwritten);
        }
        Ok(Entry { position, head })
    }

    /// Puts the bytes of an entry at the end of `into`.
    ///
    /// # Errors
    /// When they were overwritten; `into` is as it was.
    #[inline]
    pub fn append_bytes(&self, entry: &Entry, into: &mut Vec<u8>) -> Result<(), Overwritten> {
        let before = into.len();
        into.resize(before + entry.head.bytes as usize, 0);
        self.copy_out(entry.position + HEAD as u64, &mut into[before..]);
        if self.is_overwritten(entry.position) {
            into.truncate(before);
            return Err(Overwritten);
        }
        Ok(())
    }

    /// May what lies here have been overwritten?
    #[must_use]
    #[inline]
    pub fn is_overwritten(&self, position: u64) -> bool {
        // What was copied was copied before the floor is looked at.
        fence(Ordering::Acquire);
        position < self.get(Word::Floor)
    }

    /// The position of the channel's publication behind this one, if there is one.
    #[must_use]
    pub fn next_in_channel(&self, entry: &Entry) -> Option<u64> {
        let at = entry.position + std::mem::offset_of!(EntryHead, next) as u64;
        let next = self.journal_word(at).load(Ordering::Acquire);
        if next <= entry.position || next >= self.get(Word::Tail) || self.is_overwritten(entry.position) {
            return None;
        }
        let follows =
            |next: &Entry| next.head.previous == entry.position && next.head.channel == entry.head.channel;
        self.entry(next).ok().filter(follows).map(|next| next.position)
    }

    /// Bytes of the longest entry, without its head.
    #[must_use]
    pub fn largest_entry(&self) -> usize {
        usize::try_from(self.journal_size() / LARGEST_PART).unwrap_or(usize::MAX) - HEAD
    }
}

/// The end of the journal, where the hub writes.
#[derive(Debug)]
pub struct Writer {
    /// Behind the last entry written; the tail, but for the batch under way.
    end: u64,
}

impl Writer {
    /// Goes on where the journal ends.
    #[must_use]
    pub fn new(memory: &ChannelMemory) -> Self {
        Self { end: memory.get(Word::Tail) }
    }

    /// Where the next entry will lie.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.end
    }

    /// Is anything written that does not count yet?
    #[must_use]
    pub fn has_batch(&self, memory: &ChannelMemory) -> bool {
        self.end != memory.get(Word::Tail)
    }

    /// Below what position everything is overwritten once an entry with so many bytes is there.
    #[must_use]
    pub fn floor_with(&self, memory: &ChannelMemory, bytes: usize) -> u64 {
        (self.end + length_of(bytes)).saturating_sub(memory.journal_size())
    }

    /// Writes an entry; it counts from [`Writer::commit`] on. The length and the number of bytes are filled in.
    ///
    /// # Panics
    /// When it is longer than [`ChannelMemory::largest_entry`]: whoever takes it in has to look.
    pub fn append(&mut self, memory: &ChannelMemory, mut head: EntryHead, bytes: &[u8]) -> u64 {
        assert!(bytes.len() <= memory.largest_entry());
        let length = length_of(bytes.len());
        head.length = u32::try_from(length).unwrap_or(u32::MAX);
        head.bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let floor = self.floor_with(memory, bytes.len());
        if floor > memory.get(Word::Floor) {
            memory.set(Word::First, first_from(memory, floor));
            memory.set(Word::Floor, floor);
            // Whoever copies what is overwritten now must see that the floor has risen.
            fence(Ordering::SeqCst);
        }
        let position = self.end;
        memory.copy_in(position, bytemuck::bytes_of(&head));
        memory.copy_in(position + HEAD as u64, bytes);
        self.end = position + length;
        position
    }

    /// Lets the channel's publication at `previous` lead to the one at `position`.
    pub fn link(memory: &ChannelMemory, previous: u64, position: u64) {
        if previous != 0 && !memory.is_overwritten(previous) {
            let at = previous + std::mem::offset_of!(EntryHead, next) as u64;
            memory.journal_word(at).store(position, Ordering::Release);
        }
    }

    /// What was written counts from now on. Everything that follows from the batch before must have been carried out:
    /// a hub that starts redoes this one only.
    pub fn commit(&mut self, memory: &ChannelMemory) {
        memory.set(Word::BatchStart, memory.get(Word::Tail));
        memory.set(Word::Tail, self.end);
        // Between the tail and the look at who sleeps (see `sleep`).
        fence(Ordering::SeqCst);
    }
}

/// Where the first entry at or behind `floor` begins, found by the lengths of those before it, which are still there.
fn first_from(memory: &ChannelMemory, floor: u64) -> u64 {
    let mut first = memory.get(Word::First);
    while first < floor {
        let length = memory.journal_word(first).load(Ordering::Relaxed) & u64::from(u32::MAX);
        // Only the hub has written there; should it be nothing all the same, all of it is given up.
        first = if length < HEAD as u64 { memory.get(Word::Tail) } else { first + length };
    }
    first
}

fn length_of(bytes: usize) -> u64 {
    (HEAD + bytes).next_multiple_of(8) as u64
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::super::memory::{SMALLEST_JOURNAL, create};
    use super::*;
    use crate::sys::shared_memory::Access;

    fn memory() -> ChannelMemory {
        ChannelMemory::map(create(SMALLEST_JOURNAL).unwrap().as_fd(), Access::Write).unwrap()
    }

    fn head(offset: u64) -> EntryHead {
        EntryHead { offset, channel: 1, ..EntryHead::zeroed() }
    }

    #[test]
    fn a_batch_counts_from_its_commit_on() {
        let memory = memory();
        let mut writer = Writer::new(&memory);
        let first = writer.append(&memory, head(1), b"one");
        assert_eq!(memory.entry(first), Err(Overwritten));
        writer.commit(&memory);
        let entry = memory.entry(first).unwrap();
        let mut bytes = Vec::new();
        memory.append_bytes(&entry, &mut bytes).unwrap();
        assert_eq!((entry.head.offset, bytes.as_slice(), entry.end()), (1, &b"one"[..], writer.position()));
        assert_eq!(memory.get(Word::BatchStart), first);
        // A hub that dies before the commit has written nothing.
        Writer::new(&memory).append(&memory, head(2), b"two");
        assert_eq!(Writer::new(&memory).position(), entry.end());
    }

    #[test]
    fn the_next_one_is_found_only_where_it_points_back() {
        let memory = memory();
        let mut writer = Writer::new(&memory);
        let first = writer.append(&memory, head(1), b"1");
        let second = writer.append(&memory, EntryHead { previous: first, ..head(2) }, b"2");
        Writer::link(&memory, first, second);
        writer.commit(&memory);
        let entry = memory.entry(first).unwrap();
        assert_eq!(memory.next_in_channel(&entry), Some(second));
        assert_eq!(memory.next_in_channel(&memory.entry(second).unwrap()), None);
        Writer::link(&memory, first, first + 8);
        assert_eq!(memory.next_in_channel(&entry), None);
    }

    proptest! {
        #[test]
        fn what_is_above_the_floor_is_as_it_was_written(sizes in prop::collection::vec(0usize..8000, 1..60)) {
            let memory = memory();
            let mut writer = Writer::new(&memory);
            let mut written = Vec::new();
            for (number, size) in (1..).zip(sizes) {
                let bytes = vec![u8::try_from(number % 251).unwrap(); size];
                written.push((writer.append(&memory, head(number), &bytes), bytes));
                writer.commit(&memory);
            }
            for (number, (position, bytes)) in (1..).zip(&written) {
                let Ok(entry) = memory.entry(*position) else {
                    prop_assert!(*position < memory.get(Word::Floor));
                    continue;
                };
                let mut found = Vec::new();
                memory.append_bytes(&entry, &mut found).unwrap();
                prop_assert_eq!((entry.head.offset, &found), (number, bytes));
            }
            // The last ones always are.
            prop_assert!(memory.entry(written.last().unwrap().0).is_ok());
        }
    }
}
