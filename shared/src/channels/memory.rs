//! The channel memory: one memfd with a header, the directory of channels and the journal. The hub alone writes it;
//! workers map it read-only. Here is where things lie; what is done with them is `journal`'s and `directory`'s business.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use crate::format::Format;
use crate::sys::mapping;
use crate::sys::shared_memory::{Access, SharedMemory};

/// The channel memory of this program. Fields are appended, so that zeros mean "none".
pub const CHANNEL_FORMAT: Format = Format { name: "channel memory", version: 1, reads_since: 1 };

const MAGIC: u64 = u64::from_le_bytes(*b"hfchanls");
const HEADER_SIZE: usize = 4096;

/// Channels that there can be at once.
pub const MAX_CHANNELS: u32 = 1 << 20;
/// Bytes of a channel's record in the directory.
pub const CHANNEL_SIZE: usize = 192;

const DIRECTORY_AT: usize = HEADER_SIZE;
const JOURNAL_AT: usize = DIRECTORY_AT + MAX_CHANNELS as usize * CHANNEL_SIZE;

const _: () = assert!(JOURNAL_AT.is_multiple_of(4096));

/// The smallest journal, and what its size is a power of two times.
pub const SMALLEST_JOURNAL: usize = 64 * 1024;

/// A word of the header, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Word {
    Magic = 0,
    /// The format's version below, `reads_since` above.
    Version = 8,
    /// Bytes of the journal.
    JournalSize = 16,
    /// Behind the last entry that counts. Stored last: it makes a batch count.
    Tail = 24,
    /// Where the last batch began. What a hub that died has left undone lies between here and the tail.
    BatchStart = 32,
    /// Before the first entry that may still be read.
    Floor = 40,
    /// Counts the hubs that have served this memory.
    Generation = 48,
    /// The tail when the hub of this generation began.
    GenerationStart = 56,
    /// Odd while the hub sleeps.
    HubSleep = 64,
    /// No channel has a number beyond it.
    ChannelsUsed = 72,
    /// What makes epochs of this memory differ from those of others.
    Seed = 80,
    /// Epochs given.
    Epochs = 88,
    /// The last event that was acknowledged by whoever gets them pushed.
    EventsAcknowledged = 96,
    /// Publications made.
    Publications = 104,
    /// Events that were overwritten before they were acknowledged.
    EventsDropped = 112,
    /// When the hub last went round its loop: milliseconds of the monotonic clock.
    HubAlive = 120,
    /// Where the first entry begins that may still be read. The floor is no such place.
    First = 128,
}

/// Why a channel memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChannelMemoryError {
    /// The memory could not be made or mapped.
    #[error("cannot map the channel memory: {0}")]
    Map(#[from] io::Error),
    /// It is something else.
    #[error("the memory handed over is no channel memory (magic {found:#x})")]
    NotChannels {
        /// What stood where the magic should.
        found: u64,
    },
    /// It was written by a Holdfast that does not fit to this one.
    #[error("the channel memory has version {found}; this program has {CHANNEL_FORMAT}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// Its size is not what it says.
    #[error("the channel memory says that its journal has {found} bytes, which cannot be")]
    Size {
        /// The size found.
        found: u64,
    },
}

/// The channel memory, mapped.
#[derive(Debug)]
pub struct ChannelMemory {
    memory: SharedMemory,
    /// Bytes of the journal less one: sizes are powers of two.
    mask: u64,
}

/// Makes a channel memory with a journal of at least `journal_size` bytes, rounded up to a power of two.
///
/// # Errors
/// When there is no memory.
pub fn create(journal_size: usize) -> Result<OwnedFd, ChannelMemoryError> {
    let size = journal_size.max(SMALLEST_JOURNAL).checked_next_power_of_two();
    let size = size.ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
    let length = JOURNAL_AT.checked_add(size).ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
    let descriptor = mapping::create("holdfast-channels", length)?;
    let memory = SharedMemory::map(descriptor.as_fd(), length, Access::Write)?;
    let store = |word: Word, value: u64| memory.word(word as usize).store(value, Ordering::Relaxed);
    store(Word::Magic, MAGIC);
    store(Word::Version, u64::from(CHANNEL_FORMAT.version) | u64::from(CHANNEL_FORMAT.reads_since) << 32);
    store(Word::JournalSize, size as u64);
    // No entry lies at 0, which means "none".
    for word in [Word::Tail, Word::BatchStart, Word::Floor, Word::GenerationStart, Word::First] {
        store(word, 8);
    }
    store(Word::Seed, seed());
    Ok(descriptor)
}

impl ChannelMemory {
    /// Maps what [`create`] has made.
    ///
    /// # Errors
    /// When it cannot be mapped, or is not what this program can use.
    pub fn map(descriptor: BorrowedFd<'_>, access: Access) -> Result<Self, ChannelMemoryError> {
        let length = usize::try_from(nix::sys::stat::fstat(descriptor).map_err(io::Error::from)?.st_size);
        let length = length.unwrap_or(0);
        let found = length.saturating_sub(JOURNAL_AT) as u64;
        if !found.is_power_of_two() || found < SMALLEST_JOURNAL as u64 {
            return Err(ChannelMemoryError::Size { found });
        }
        let memory = SharedMemory::map(descriptor, length, access)?;
        let this = Self { memory, mask: found - 1 };
        let magic = this.get(Word::Magic);
        if magic != MAGIC {
            return Err(ChannelMemoryError::NotChannels { found: magic });
        }
        let version = this.get(Word::Version);
        let low = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
        let theirs = Format { version: low(version), reads_since: low(version >> 32), ..CHANNEL_FORMAT };
        if !CHANNEL_FORMAT.fits(&theirs) {
            return Err(ChannelMemoryError::Version { found: theirs.version });
        }
        if this.get(Word::JournalSize) != found {
            return Err(ChannelMemoryError::Size { found: this.get(Word::JournalSize) });
        }
        Ok(this)
    }

    /// Bytes of the journal.
    #[must_use]
    pub fn journal_size(&self) -> u64 {
        self.mask + 1
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
    pub fn word(&self, word: Word) -> &std::sync::atomic::AtomicU64 {
        self.memory.word(word as usize)
    }

    /// Where a channel's record lies; `None` if there is no such number.
    #[must_use]
    pub(super) fn channel_at(channel: u32) -> Option<usize> {
        let place = channel.checked_sub(1).filter(|&place| place < MAX_CHANNELS)?;
        Some(DIRECTORY_AT + place as usize * CHANNEL_SIZE)
    }

    pub(super) fn raw(&self) -> &SharedMemory {
        &self.memory
    }

    /// A word of the journal; `position` is a multiple of 8, so that it never lies across the end.
    #[inline]
    pub(super) fn journal_word(&self, position: u64) -> &std::sync::atomic::AtomicU64 {
        self.memory.word(self.place(position))
    }

    /// Copies bytes of the journal out, around its end if need be.
    #[inline]
    pub(super) fn copy_out(&self, position: u64, bytes: &mut [u8]) {
        self.memory.copy_out_around(JOURNAL_AT, self.place(position), bytes);
    }

    /// Copies bytes into the journal, around its end if need be.
    #[inline]
    pub(super) fn copy_in(&self, position: u64, bytes: &[u8]) {
        self.memory.copy_in_around(JOURNAL_AT, self.place(position), bytes);
    }

    fn place(&self, position: u64) -> usize {
        JOURNAL_AT + usize::try_from(position & self.mask).unwrap_or_default()
    }
}

/// Differs from memory to memory, on all machines, well enough.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_is_what_it_says_or_refused() {
        let made = create(100_000).unwrap();
        let memory = ChannelMemory::map(made.as_fd(), Access::Write).unwrap();
        assert_eq!((memory.journal_size(), memory.get(Word::Tail)), (131_072, 8));
        memory.set(Word::Version, 99 << 32 | 99);
        let refused = ChannelMemory::map(made.as_fd(), Access::Read).unwrap_err();
        assert!(matches!(refused, ChannelMemoryError::Version { found: 99 }));
        memory.set(Word::Magic, 1);
        assert!(matches!(
            ChannelMemory::map(made.as_fd(), Access::Read),
            Err(ChannelMemoryError::NotChannels { found: 1 })
        ));
        let other = mapping::create("other", 4096).unwrap();
        assert!(matches!(
            ChannelMemory::map(other.as_fd(), Access::Read),
            Err(ChannelMemoryError::Size { .. })
        ));
    }

    #[test]
    fn bytes_go_around_the_end() {
        let made = create(SMALLEST_JOURNAL).unwrap();
        let memory = ChannelMemory::map(made.as_fd(), Access::Write).unwrap();
        let position = SMALLEST_JOURNAL as u64 * 3 - 3;
        memory.copy_in(position, b"around");
        let mut bytes = [0; 6];
        memory.copy_out(position, &mut bytes);
        assert_eq!(&bytes, b"around");
    }
}
