//! An up-ring: what one slot's workers say to the hub, in order, in a memory that outlives both. The worker writes it, the
//! hub reads it; each has a position of its own in it, stored when what it stands for is done. In its header the slot
//! also says how far it has delivered the journal.
//!
//! Whatever the hub finds here was written by a process that talks to clients: nothing of it is believed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use bytemuck::{Pod, Zeroable};

pub use super::said::{Gone, Here, Joined, Refusal, Subscribe, Verdict};
use crate::format::Format;
use crate::sys::mapping;
use crate::sys::shared_memory::{Access, SharedMemory};

/// The up-rings of this program. Words, kinds of messages and fields of their JSON are appended.
pub const UP_RING_FORMAT: Format = Format { name: "up-ring", version: 1, reads_since: 1 };

const MAGIC: u64 = u64::from_le_bytes(*b"hfupring");
const HEADER_SIZE: usize = 4096;
/// Bytes of messages that a ring has room for.
pub const RING_SIZE: usize = 4 * 1024 * 1024;
/// The longest message, without its head.
pub const MAX_MESSAGE: usize = RING_SIZE / 4;
const HEAD: usize = size_of::<MessageHead>();

/// A word of the header, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Word {
    Magic = 0,
    /// The format's version below, `reads_since` above.
    Version = 8,
    /// The slot.
    Slot = 16,
    /// Behind the last message that counts. The worker's.
    Written = 24,
    /// Behind the last message that has been carried out. The hub's.
    Read = 32,
    /// All subscribers of the slot have the journal up to here, but for those that lag. The worker's.
    Delivered = 40,
    /// Odd while the worker sleeps.
    WorkerSleep = 56,
    /// The worker waits for room. The worker's, and the hub's to clear.
    WantsRoom = 64,
    /// The hub's generation to which the worker has last named all that it holds.
    Announced = 72,
    /// What is being said right now: a row above, its serial below; 0 is nothing.
    Saying = 80,
    /// Where that message begins.
    SayingAt = 88,
    /// What it is.
    SayingKind = 96,
    /// A worker has gone on with this ring: what records say of channels is of its memory.
    Opened = 104,
}

/// What a worker says. A hub passes over kinds that it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// A client's publication: its bytes are the data.
    Publish,
    /// A client is let in and asks for its channel: [`Joined`] in JSON.
    Joined,
    /// A client asks for one more channel: [`Subscribe`] in JSON.
    Subscribe,
    /// A client leaves a channel.
    Unsubscribe,
    /// A client is gone: [`Gone`] in JSON.
    Gone,
    /// A client of another slot is this one's now. The channel's place has its row.
    MovedIn,
    /// All clients of the slot follow, for a hub that does not know them.
    AnnounceBegin,
    /// One of them: [`Here`] in JSON.
    Here,
    /// Those were all.
    AnnounceEnd,
}

impl MessageKind {
    const ALL: [Self; 9] = [
        Self::Publish,
        Self::Joined,
        Self::Subscribe,
        Self::Unsubscribe,
        Self::Gone,
        Self::MovedIn,
        Self::AnnounceBegin,
        Self::Here,
        Self::AnnounceEnd,
    ];

    /// The kind of this number, if it is known.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What stands before a message's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct MessageHead {
    /// Of the message, head and padding included: a multiple of 8.
    length: u32,
    kind: u16,
    /// See [`MessageHead::TEXT`].
    pub flags: u16,
    /// The client.
    pub connection: u64,
    /// The channel's number, where one is spoken of.
    pub channel: u32,
    /// Of the bytes, without padding.
    bytes: u32,
}

impl MessageHead {
    /// The bytes of a publication are text.
    pub const TEXT: u16 = 1;
    /// A token lets the client publish: no rule is asked.
    pub const GRANTED: u16 = 2;
}

/// A message that was read.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    /// Its kind, if it is known.
    pub kind: Option<MessageKind>,
    /// The rest of its head.
    pub head: MessageHead,
    /// Where the next one begins.
    pub end: u64,
}

/// Why a ring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpRingError {
    /// It could not be made or mapped.
    #[error("cannot map an up-ring: {0}")]
    Map(#[from] io::Error),
    /// It is something else, or of another version.
    #[error("the memory handed over is no up-ring that this program can use ({UP_RING_FORMAT})")]
    NotARing,
    /// What lies in it cannot be: nothing that follows can be read.
    #[error("the up-ring of slot {slot} says what cannot be at position {position}")]
    Broken {
        /// Whose it is.
        slot: u16,
        /// Where.
        position: u64,
    },
}

/// A ring, mapped.
#[derive(Debug)]
pub struct UpRing {
    memory: SharedMemory,
}

/// Makes a ring for `slot`, whose workers begin to deliver at `delivered`.
///
/// # Errors
/// When there is no memory.
pub fn create(slot: u16, delivered: u64) -> Result<OwnedFd, UpRingError> {
    let descriptor = mapping::create("holdfast-up-ring", HEADER_SIZE + RING_SIZE)?;
    let ring =
        UpRing { memory: SharedMemory::map(descriptor.as_fd(), HEADER_SIZE + RING_SIZE, Access::Write)? };
    ring.set(Word::Magic, MAGIC);
    ring.set(Word::Version, u64::from(UP_RING_FORMAT.version) | u64::from(UP_RING_FORMAT.reads_since) << 32);
    ring.set(Word::Slot, slot.into());
    ring.set(Word::Delivered, delivered);
    Ok(descriptor)
}

impl UpRing {
    /// Maps a ring.
    ///
    /// # Errors
    /// When it cannot be mapped, or is none.
    pub fn map(descriptor: BorrowedFd<'_>) -> Result<Self, UpRingError> {
        let ring = Self { memory: SharedMemory::map(descriptor, HEADER_SIZE + RING_SIZE, Access::Write)? };
        let version = ring.get(Word::Version);
        let low = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
        let theirs = Format { version: low(version), reads_since: low(version >> 32), ..UP_RING_FORMAT };
        if ring.get(Word::Magic) != MAGIC || !UP_RING_FORMAT.fits(&theirs) {
            return Err(UpRingError::NotARing);
        }
        Ok(ring)
    }

    /// The slot that it is of.
    #[must_use]
    pub fn slot(&self) -> u16 {
        u16::try_from(self.get(Word::Slot)).unwrap_or(u16::MAX)
    }

    /// A word of the header.
    #[must_use]
    #[inline]
    pub fn get(&self, word: Word) -> u64 {
        self.memory.word(word as usize).load(Ordering::Acquire)
    }

    /// Sets a word of the header, after everything that was written before.
    #[inline]
    pub fn set(&self, word: Word, value: u64) {
        self.memory.word(word as usize).store(value, Ordering::Release);
    }

    /// The word itself.
    #[must_use]
    pub fn word(&self, word: Word) -> &AtomicU64 {
        self.memory.word(word as usize)
    }

    /// Bytes that messages may have now, heads included.
    #[must_use]
    pub fn room(&self) -> usize {
        let used = self.get(Word::Written).saturating_sub(self.get(Word::Read));
        RING_SIZE.saturating_sub(usize::try_from(used).unwrap_or(usize::MAX))
    }

    /// Says something, which counts from now on, if there is room. The worker's. Afterwards, before it sleeps, the caller
    /// looks whether the hub has to be woken; there is a fence for that here.
    pub fn say(&self, kind: MessageKind, flags: u16, connection: u64, channel: u32, bytes: &[u8]) -> bool {
        let Some(end) = self.write(kind, flags, connection, channel, bytes) else { return false };
        self.set(Word::Written, end);
        fence(Ordering::SeqCst);
        true
    }

    /// As [`UpRing::say`], so that a worker that takes over can tell whether it was said (see [`UpRing::was_said`]) and
    /// what it was said of: the connection at `row` with this `serial`.
    pub fn say_once(&self, owner: (u32, u32), kind: MessageKind, connection: u64, bytes: &[u8]) -> bool {
        let Some(end) = self.write(kind, 0, connection, 0, bytes) else { return false };
        self.set(Word::SayingAt, self.get(Word::Written));
        self.set(Word::SayingKind, kind as u64);
        self.set(Word::Saying, (u64::from(owner.0) << 32) | u64::from(owner.1));
        self.set(Word::Written, end);
        fence(Ordering::SeqCst);
        true
    }

    /// What was said is noted elsewhere, too: forgets what [`UpRing::say_once`] has noted.
    pub fn forget_said(&self) {
        self.set(Word::Saying, 0);
    }

    /// What the worker before was saying last, by row, serial and kind, if it counts and may not be noted elsewhere.
    #[must_use]
    pub fn was_said(&self) -> Option<(u32, u32, MessageKind)> {
        let owner = self.get(Word::Saying);
        let kind = MessageKind::from_number(u16::try_from(self.get(Word::SayingKind)).ok()?)?;
        let low = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
        let counts = self.get(Word::Written) > self.get(Word::SayingAt);
        (owner != 0 && counts).then_some((low(owner >> 32), low(owner), kind))
    }

    fn write(
        &self,
        kind: MessageKind,
        flags: u16,
        connection: u64,
        channel: u32,
        bytes: &[u8],
    ) -> Option<u64> {
        let length = (HEAD + bytes.len()).next_multiple_of(8);
        if bytes.len() > MAX_MESSAGE || length > self.room() {
            return None;
        }
        let head = MessageHead {
            length: u32::try_from(length).ok()?,
            kind: kind as u16,
            flags,
            connection,
            channel,
            bytes: u32::try_from(bytes.len()).ok()?,
        };
        let at = self.get(Word::Written);
        self.copy_in(at, bytemuck::bytes_of(&head));
        self.copy_in(at + HEAD as u64, bytes);
        Some(at + length as u64)
    }

    /// The message at `position`, its bytes in place of what was in `bytes`; `None` when there is none yet. The hub's.
    ///
    /// # Errors
    /// When what lies there cannot be.
    pub fn message(&self, position: u64, bytes: &mut Vec<u8>) -> Result<Option<Message>, UpRingError> {
        let written = self.get(Word::Written);
        if position == written {
            return Ok(None);
        }
        let broken = || UpRingError::Broken { slot: self.slot(), position };
        let available = written.checked_sub(position).filter(|&length| length <= RING_SIZE as u64);
        let available = available.ok_or_else(broken)?;
        let mut head = MessageHead::zeroed();
        if !position.is_multiple_of(8) || available < HEAD as u64 {
            return Err(broken());
        }
        self.copy_out(position, bytemuck::bytes_of_mut(&mut head));
        let (length, count) = (head.length as usize, head.bytes as usize);
        let is_sound = length.is_multiple_of(8)
            && length as u64 <= available
            && count <= MAX_MESSAGE
            && HEAD + count <= length
            && length <= (HEAD + count).next_multiple_of(8);
        if !is_sound {
            return Err(broken());
        }
        bytes.resize(count, 0);
        self.copy_out(position + HEAD as u64, bytes);
        Ok(Some(Message { kind: MessageKind::from_number(head.kind), head, end: position + length as u64 }))
    }

    fn copy_in(&self, position: u64, bytes: &[u8]) {
        self.memory.copy_in_around(HEADER_SIZE, place(position), bytes);
    }

    fn copy_out(&self, position: u64, bytes: &mut [u8]) {
        self.memory.copy_out_around(HEADER_SIZE, place(position), bytes);
    }
}

/// Where a position lies in the memory.
fn place(position: u64) -> usize {
    HEADER_SIZE + usize::try_from(position % RING_SIZE as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn ring() -> UpRing {
        UpRing::map(create(3, 8).unwrap().as_fd()).unwrap()
    }

    #[test]
    fn whether_something_was_said_is_known_after_a_death() {
        let ring = ring();
        assert!(ring.was_said().is_none());
        assert!(ring.say_once((7, 9), MessageKind::Gone, 1, b"{}"));
        assert_eq!(ring.was_said(), Some((7, 9, MessageKind::Gone)));
        ring.forget_said();
        assert!(ring.was_said().is_none());
        // A worker that died before it counted has said nothing.
        ring.set(Word::SayingAt, ring.get(Word::Written));
        ring.set(Word::Saying, 1 << 32);
        assert!(ring.was_said().is_none());
    }

    #[test]
    fn what_cannot_be_is_an_error_and_nothing_else() {
        let (ring, mut bytes) = (ring(), Vec::new());
        ring.say(MessageKind::Publish, 0, 1, 1, b"x");
        let end = ring.get(Word::Written);
        for (written, at) in [(end + 8, end), (end, end + 8), (u64::MAX, 0), (end, 4)] {
            ring.set(Word::Written, written);
            assert!(matches!(ring.message(at, &mut bytes), Err(UpRingError::Broken { slot: 3, .. })));
        }
        let other = UpRing::map(mapping::create("other", HEADER_SIZE + RING_SIZE).unwrap().as_fd());
        assert!(matches!(other, Err(UpRingError::NotARing)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn messages_are_read_as_they_were_said(steps in prop::collection::vec((0usize..900_000, any::<bool>()), 1..40)) {
            let (ring, mut bytes, mut waiting) = (ring(), Vec::new(), VecDeque::new());
            for (number, (size, reads)) in (1u64..).zip(steps) {
                let said = vec![u8::try_from(number % 251).unwrap(); size];
                if ring.say(MessageKind::Publish, MessageHead::TEXT, number, 5, &said) {
                    waiting.push_back((number, said));
                } else {
                    prop_assert!(ring.room() < HEAD + size + 8);
                }
                if reads && let Some((number, said)) = waiting.pop_front() {
                    let message = ring.message(ring.get(Word::Read), &mut bytes).unwrap().unwrap();
                    prop_assert_eq!((message.head.connection, message.head.channel, &bytes), (number, 5, &said));
                    ring.set(Word::Read, message.end);
                }
            }
        }
    }
}
