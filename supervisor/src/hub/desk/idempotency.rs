//! Publications that were asked for with a key: asked for again, they are not made again. The keys are in the journal, so
//! that a hub that starts has them as well.

use std::collections::{HashMap, VecDeque};

use holdfast_shared::channels::entry::EntryHead;
use sha2::{Digest, Sha256};

/// How long a key is remembered, as far as the journal goes back.
const REMEMBERED_MS: u64 = 5 * 60 * 1000;

/// A key as entries have it.
pub(super) type Key = [u8; 16];

/// The keys of the last minutes.
#[derive(Debug, Default)]
pub(super) struct Idempotency {
    offsets: HashMap<(Key, u32), u64>,
    by_time: VecDeque<(u64, Key, u32)>,
}

/// As entries have it.
pub(super) fn digest(key: &str) -> Key {
    let digest = Sha256::digest(key.as_bytes());
    let mut short = Key::default();
    short.copy_from_slice(&digest[..size_of::<Key>()]);
    short
}

impl Idempotency {
    /// The number of the publication that was made with this key.
    pub(super) fn find(&self, key: Key, channel: u32) -> Option<u64> {
        self.offsets.get(&(key, channel)).copied()
    }

    /// A publication was made.
    pub(super) fn note(&mut self, head: &EntryHead) {
        if head.key != Key::default() {
            self.offsets.insert((head.key, head.channel), head.offset);
            self.by_time.push_back((head.time_ms, head.key, head.channel));
        }
    }

    /// Forgets those that are old.
    pub(super) fn forget_old(&mut self, now_ms: u64) {
        while let Some(&(time, key, channel)) = self.by_time.front()
            && now_ms.saturating_sub(time) > REMEMBERED_MS
        {
            self.by_time.pop_front();
            self.offsets.remove(&(key, channel));
        }
    }
}
