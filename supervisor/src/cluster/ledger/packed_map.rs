//! A sorted map from short keys to counts that costs little more than its bytes: what holds one entry for
//! each address of hundreds of thousands of clients. Knows neither addresses nor slots.
//!
//! Entries lie sorted in chunks, chunks lie sorted in a list. A chunk is found by bisecting the list, an
//! entry by bisecting the chunk, and room for an entry is made by moving at most one chunk's bytes. Chunks
//! have room for a few entries more than they hold, whereas a node of std's B-tree has room for eleven and
//! may hold five.

use std::ops::RangeInclusive;

/// A chunk that is full is split: twice so many entries would be twice as many bytes to move.
const MAX_ENTRIES: usize = 128;
/// A chunk with fewer is merged with a neighbour, so that chunks do not become a cost of their own.
const MIN_ENTRIES: usize = MAX_ENTRIES / 4;
/// Chunks grow and shrink in these steps. Doubling would leave a third of the memory unused.
const STEP: usize = 8;

/// Counts by keys of `N` bytes, which are ordered as numbers written big-endian are.
#[derive(Debug, Clone, Default)]
pub(super) struct PackedMap<const N: usize> {
    /// None is empty; all entries of one are below all entries of the next.
    chunks: Vec<Chunk<N>>,
}

#[derive(Debug, Clone)]
struct Chunk<const N: usize> {
    /// No entry of this chunk is below it, unless the chunk is the first, and every entry of the chunk before
    /// is. Kept here and not looked up in the entries: bisecting the list then touches the list alone.
    floor: [u8; N],
    entries: Vec<Entry<N>>,
}

/// Bytes only, so that nothing is lost to alignment.
#[derive(Debug, Clone, Copy)]
struct Entry<const N: usize> {
    key: [u8; N],
    count: [u8; 4],
}

impl<const N: usize> Entry<N> {
    fn new(key: [u8; N], count: u32) -> Self {
        Self { key, count: count.to_ne_bytes() }
    }

    fn count(&self) -> u32 {
        u32::from_ne_bytes(self.count)
    }
}

impl<const N: usize> PackedMap<N> {
    /// Adds `count`, which is not zero, to what is counted for `key`.
    pub(super) fn add(&mut self, key: [u8; N], count: u32) {
        let place = self.chunk_of(&key);
        let last = place + 1 == self.chunks.len();
        let Some(chunk) = self.chunks.get_mut(place) else {
            return self.chunks.push(Chunk { floor: key, entries: vec![Entry::new(key, count)] });
        };
        match chunk.position(&key) {
            Ok(found) => {
                let entry = &mut chunk.entries[found];
                *entry = Entry::new(key, entry.count().saturating_add(count));
            }
            Err(end) if chunk.entries.len() == MAX_ENTRIES && last && end == MAX_ENTRIES => {
                // Keys that come in ascending order leave full chunks behind.
                self.chunks.push(Chunk { floor: key, entries: vec![Entry::new(key, count)] });
            }
            Err(_) if chunk.entries.len() == MAX_ENTRIES => {
                let upper = chunk.split();
                self.chunks.insert(place + 1, upper);
                self.add(key, count);
            }
            Err(gap) => chunk.insert(gap, Entry::new(key, count)),
        }
    }

    /// Takes one from what is counted for `key`; `false` if that is nothing.
    #[must_use]
    pub(super) fn remove_one(&mut self, key: &[u8; N]) -> bool {
        let place = self.chunk_of(key);
        let Some(chunk) = self.chunks.get_mut(place) else { return false };
        let Ok(found) = chunk.position(key) else { return false };
        match chunk.entries[found].count() {
            0 | 1 => {
                chunk.entries.remove(found);
                chunk.give_back();
                if chunk.entries.len() < MIN_ENTRIES {
                    self.merge(place);
                }
            }
            more => chunk.entries[found] = Entry::new(*key, more - 1),
        }
        true
    }

    /// The sum of the counts in a range of keys. Stops counting at `enough`.
    pub(super) fn sum(&self, keys: RangeInclusive<[u8; N]>, enough: u64) -> u64 {
        let (first, last) = keys.into_inner();
        let place = self.chunk_of(&first);
        let chunks = self.chunks.get(place..).unwrap_or_default();
        let skipped = chunks.first().map_or(0, |chunk| chunk.entries.partition_point(|at| at.key < first));
        let entries = chunks.iter().flat_map(|chunk| &chunk.entries).skip(skipped);
        let mut total = 0;
        for entry in entries.take_while(|entry| entry.key <= last) {
            total += u64::from(entry.count());
            if total >= enough {
                break;
            }
        }
        total
    }

    /// Everything, in the keys' order.
    pub(super) fn iter(&self) -> impl Iterator<Item = ([u8; N], u32)> {
        self.chunks.iter().flat_map(|chunk| &chunk.entries).map(|entry| (entry.key, entry.count()))
    }

    /// Keeps only the keys that are `wanted`.
    pub(super) fn retain(&mut self, wanted: impl Fn(&[u8; N]) -> bool) {
        for chunk in &mut self.chunks {
            chunk.entries.retain(|entry| wanted(&entry.key));
            chunk.give_back();
        }
        // From the end, so that a merge moves only what was looked at already.
        for place in (0..self.chunks.len()).rev() {
            if self.chunks[place].entries.len() < MIN_ENTRIES {
                self.merge(place);
            }
        }
    }

    /// The chunk where `key` is or would be: the last one whose floor is not above it, or the first.
    fn chunk_of(&self, key: &[u8; N]) -> usize {
        self.chunks.partition_point(|chunk| chunk.floor <= *key).saturating_sub(1)
    }

    /// The chunk at `place` has become small: it is dropped if it is empty, or becomes part of a neighbour
    /// that has room.
    fn merge(&mut self, place: usize) {
        let length = self.chunks[place].entries.len();
        if length == 0 {
            self.chunks.remove(place);
            return self.shrink_list();
        }
        // Not to the brim: the next insertion would split it again.
        let has_room = |chunk: Option<&Chunk<N>>| {
            chunk.is_some_and(|chunk| chunk.entries.len() + length <= MAX_ENTRIES - MIN_ENTRIES)
        };
        let lower = match place.checked_sub(1) {
            Some(before) if has_room(self.chunks.get(before)) => before,
            _ if has_room(self.chunks.get(place + 1)) => place,
            _ => return,
        };
        let upper = self.chunks.remove(lower + 1);
        let chunk = &mut self.chunks[lower];
        chunk.entries.reserve_exact(upper.entries.len());
        chunk.entries.extend(upper.entries);
        chunk.give_back();
        self.shrink_list();
    }

    /// Not at every chunk that goes, for the list is copied.
    fn shrink_list(&mut self) {
        if self.chunks.len() < self.chunks.capacity() / 2 {
            self.chunks.shrink_to(self.chunks.len() + self.chunks.len() / 4);
        }
    }
}

impl<const N: usize> Chunk<N> {
    fn position(&self, key: &[u8; N]) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| entry.key.cmp(key))
    }

    fn insert(&mut self, gap: usize, entry: Entry<N>) {
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(STEP);
        }
        self.entries.insert(gap, entry);
    }

    /// Cuts off the upper half.
    fn split(&mut self) -> Self {
        let entries = self.entries.split_off(self.entries.len() / 2);
        self.entries.shrink_to(self.entries.len() + STEP);
        let floor = entries.first().map_or(self.floor, |entry| entry.key);
        Self { floor, entries }
    }

    fn give_back(&mut self) {
        if self.entries.capacity() - self.entries.len() >= 2 * STEP {
            self.entries.shrink_to(self.entries.len() + STEP);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl<const N: usize> PackedMap<N> {
        /// Bytes taken from the allocator, its own header of eight bytes for each chunk included.
        fn bytes(&self) -> usize {
            let entries = |chunk: &Chunk<N>| chunk.entries.capacity() * size_of::<Entry<N>>() + 8;
            let list = self.chunks.capacity() * size_of::<Chunk<N>>();
            list + self.chunks.iter().map(entries).sum::<usize>()
        }

        fn check(&self) {
            for pair in self.chunks.windows(2) {
                let below = pair[0].entries.last().unwrap().key;
                assert!(below < pair[1].floor && pair[1].floor <= pair[1].entries[0].key);
            }
            for chunk in &self.chunks {
                assert!(!chunk.entries.is_empty() && chunk.entries.len() <= MAX_ENTRIES);
                assert!(chunk.entries.is_sorted_by_key(|entry| entry.key));
            }
        }
    }

    /// Scattered, but the same at every run.
    fn scattered(n: u64) -> [u8; 18] {
        let mut key = [0; 18];
        key[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        key
    }

    fn ascending(n: u64) -> [u8; 18] {
        let mut key = [0; 18];
        key[..8].copy_from_slice(&n.to_be_bytes());
        key
    }

    #[test]
    fn an_entry_costs_little_more_than_its_bytes_in_whatever_order_it_comes() {
        const ENTRIES: usize = 20_000;
        for key in [ascending, scattered, |n| ascending(u64::MAX - n)] {
            let mut map = PackedMap::<18>::default();
            (0..ENTRIES as u64).for_each(|n| map.add(key(n), 1));
            let each = map.bytes().div_ceil(ENTRIES);
            assert!(each <= 25, "{each} bytes for one of {}", size_of::<Entry<18>>());
            (0..ENTRIES as u64).filter(|n| n % 10 != 0).for_each(|n| assert!(map.remove_one(&key(n))));
            map.check();
            let each = map.bytes().div_ceil(ENTRIES / 10);
            assert!(each <= 40, "{each} bytes for one of {} after most have gone", size_of::<Entry<18>>());
            (0..ENTRIES as u64).filter(|n| n % 10 == 0).for_each(|n| assert!(map.remove_one(&key(n))));
            assert_eq!(map.chunks.len(), 0);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(u16, u32),
        Remove(u16),
        RetainMultiplesOf(u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // A run of neighbours makes chunks fill and split; few enough keys make them meet again.
        let step = prop_oneof![
            20 => (0..2000_u16, 1..4_u32).prop_map(|(key, count)| Step::Add(key, count)),
            15 => (0..2000_u16).prop_map(Step::Remove),
            1 => (1..4_u16).prop_map(Step::RetainMultiplesOf),
        ];
        prop::collection::vec(step, 0..1500)
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_map(steps in steps(), filled in 0..1500_u16, from in 0..2000_u16, to in 0..2000_u16) {
            let mut map = PackedMap::<2>::default();
            let mut model = BTreeMap::new();
            for key in 0..filled {
                map.add(key.to_be_bytes(), 1);
                model.insert(key, 1_u32);
            }
            for step in steps {
                match step {
                    Step::Add(key, count) => {
                        map.add(key.to_be_bytes(), count);
                        *model.entry(key).or_default() += count;
                    }
                    Step::Remove(key) => {
                        prop_assert_eq!(map.remove_one(&key.to_be_bytes()), model.contains_key(&key));
                        if let Some(count) = model.get_mut(&key) {
                            *count -= 1;
                        }
                        model.retain(|_, count| *count > 0);
                    }
                    Step::RetainMultiplesOf(factor) => {
                        map.retain(|key| u16::from_be_bytes(*key).is_multiple_of(factor));
                        model.retain(|key, _| key.is_multiple_of(factor));
                    }
                }
            }
            map.check();
            let found: Vec<(u16, u32)> = map.iter().map(|(key, count)| (u16::from_be_bytes(key), count)).collect();
            prop_assert_eq!(found, model.iter().map(|(key, count)| (*key, *count)).collect::<Vec<_>>());
            let (from, to) = (from.min(to), from.max(to));
            let expected: u64 = model.range(from..=to).map(|(_, count)| u64::from(*count)).sum();
            prop_assert_eq!(map.sum(from.to_be_bytes()..=to.to_be_bytes(), u64::MAX), expected);
            prop_assert!(map.sum(from.to_be_bytes()..=to.to_be_bytes(), 5) >= expected.min(5));
        }
    }
}
