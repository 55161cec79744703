//! Where sessions lie in their memory: the arithmetic of taking and freeing blocks. Touches no memory, and
//! keeps all it knows on the heap, for what is live can be told from the records alone.
//!
//! The memory is divided into spans of 64 KiB. All blocks of a span have one size, the size of its first block; a
//! span without blocks has none, and can be given back.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::ops::Range;

/// Blocks begin at multiples of this many bytes, and are as many long.
pub(super) const UNIT: usize = 16;

/// Units in a span.
const SPAN: u32 = 4096;

/// The largest block, in units: a whole span.
pub(super) const LARGEST: u32 = SPAN;

/// The smallest block, in units: a head and as much again.
const SMALLEST: u32 = 2;

/// Spans there can be, so that the place of every unit fits into a `u32`.
const MOST_SPANS: u32 = u32::MAX / SPAN;

/// A block: its first unit and its length in units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Block {
    pub(super) start: u32,
    pub(super) units: u32,
}

/// The size of the block that is taken for `units`: two sizes for each doubling, so that at most a third of a block
/// is unused.
fn size_class(units: u32) -> u32 {
    let power = units.max(SMALLEST).next_power_of_two();
    let between = power / 4 * 3;
    if units <= between && between > SMALLEST { between } else { power }
}

/// One span that has, or had, blocks.
#[derive(Debug, Default)]
struct Span {
    /// Length of its blocks in units; 0 when it has none.
    units: u32,
    live: u32,
    /// A bit for each block: taken or not.
    taken: Vec<u64>,
    memory: Memory,
}

/// Whether a span without blocks costs memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Memory {
    /// It may.
    #[default]
    Held,
    /// It may, and it was empty when last looked at and has been ever since.
    Unneeded,
    /// It was given back, or never touched.
    GivenBack,
}

impl Span {
    fn begin(&mut self, units: u32) {
        let blocks = SPAN / units;
        *self = Self { units, live: 0, taken: vec![0; blocks.div_ceil(64) as usize], memory: Memory::Held };
    }

    fn is_full(&self) -> bool {
        self.units > 0 && self.live == SPAN / self.units
    }

    /// The first free block's number, taken.
    fn take(&mut self) -> Option<u32> {
        let (word, bits) = self.taken.iter_mut().enumerate().find(|(_, bits)| **bits != u64::MAX)?;
        let bit = bits.trailing_ones();
        let number = u32::try_from(word).ok()? * 64 + bit;
        if number >= SPAN / self.units {
            return None;
        }
        *bits |= 1 << bit;
        self.live += 1;
        Some(number)
    }

    /// Takes or frees block `number`. False if it was so already, or there is none.
    fn set(&mut self, number: u32, taken: bool) -> bool {
        let Some(bits) = self.taken.get_mut(number as usize / 64) else { return false };
        let bit = 1_u64 << (number % 64);
        if (*bits & bit != 0) == taken {
            return false;
        }
        *bits ^= bit;
        self.live = if taken { self.live + 1 } else { self.live - 1 };
        true
    }
}

/// All blocks.
#[derive(Debug, Default)]
pub(super) struct Spans {
    spans: Vec<Span>,
    /// Spans with room, by the size of their blocks. The first is used first, so that the others become empty.
    with_room: BTreeMap<u32, BTreeSet<u32>>,
    /// Spans without blocks.
    empty: BTreeSet<u32>,
}

impl Spans {
    /// Those of a memory of which an earlier worker may have touched the first `units`. None has a block as far
    /// as is known yet.
    pub(super) fn new(units: u32) -> Self {
        let mut spans = Self::default();
        spans.reach(units / SPAN);
        spans
    }

    /// Units that the memory must have.
    pub(super) fn end(&self) -> u32 {
        index(self.spans.len()) * SPAN
    }

    /// Takes a block of at least `units`. `None` when there is no place for more, or no block is that long.
    pub(super) fn allocate(&mut self, units: u32) -> Option<Block> {
        if units > LARGEST {
            return None;
        }
        let units = size_class(units);
        let position = match self.with_room.get(&units).and_then(BTreeSet::first) {
            Some(&position) => position,
            None => self.begin_span(units)?,
        };
        let span = self.spans.get_mut(position as usize)?;
        let number = span.take()?;
        if span.is_full() {
            self.remove_room(units, position);
        }
        Some(Block { start: position * SPAN + number * units, units })
    }

    /// A block that a record speaks of, of a worker before this one. False when it cannot be one, since another
    /// lies where it would.
    pub(super) fn claim(&mut self, block: Block) -> bool {
        let Block { start, units } = block;
        let (position, offset) = (start / SPAN, start % SPAN);
        let is_possible = (1..=LARGEST).contains(&units)
            && offset.is_multiple_of(units)
            && offset + units <= SPAN
            && position < index(self.spans.len());
        if !is_possible {
            return false;
        }
        let Some(span) = self.spans.get_mut(position as usize) else { return false };
        if span.units == 0 {
            span.begin(units);
            self.empty.remove(&position);
            self.add_room(units, position);
        } else if span.units != units {
            return false;
        }
        let Some(span) = self.spans.get_mut(position as usize) else { return false };
        let is_new = span.set(offset / units, true);
        if span.is_full() {
            self.remove_room(units, position);
        }
        is_new
    }

    /// A block is needed no more.
    pub(super) fn free(&mut self, start: u32) {
        let position = start / SPAN;
        let Some(span) = self.spans.get_mut(position as usize).filter(|span| span.units > 0) else { return };
        let (units, was_full) = (span.units, span.is_full());
        if !span.set(start % SPAN / units, false) {
            return;
        }
        if span.live == 0 {
            *span = Span::default();
            self.remove_room(units, position);
            self.empty.insert(position);
        } else if was_full {
            self.add_room(units, position);
        }
    }

    /// Runs of units that have had no block since the last call: they are to be given back now, and are taken for
    /// it.
    pub(super) fn take_unneeded(&mut self) -> Vec<Range<u32>> {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for &position in &self.empty {
            let Some(span) = self.spans.get_mut(position as usize) else { continue };
            match span.memory {
                Memory::Held => span.memory = Memory::Unneeded,
                Memory::Unneeded => {
                    span.memory = Memory::GivenBack;
                    let start = position * SPAN;
                    match runs.last_mut() {
                        Some(run) if run.end == start => run.end += SPAN,
                        _ => runs.push(start..start + SPAN),
                    }
                }
                Memory::GivenBack => {}
            }
        }
        runs
    }

    /// A span for blocks of this size: one that is empty, or a new one.
    fn begin_span(&mut self, units: u32) -> Option<u32> {
        let position = match self.empty.pop_first() {
            Some(position) => position,
            None if index(self.spans.len()) < MOST_SPANS => {
                self.spans.push(Span::default());
                index(self.spans.len()) - 1
            }
            None => return None,
        };
        self.spans.get_mut(position as usize)?.begin(units);
        self.add_room(units, position);
        Some(position)
    }

    /// Makes the first `count` spans known.
    fn reach(&mut self, count: u32) {
        let before = index(self.spans.len());
        self.spans.resize_with(count.min(MOST_SPANS) as usize, Span::default);
        self.empty.extend(before..index(self.spans.len()));
    }

    fn add_room(&mut self, units: u32, position: u32) {
        self.with_room.entry(units).or_default().insert(position);
    }

    fn remove_room(&mut self, units: u32, position: u32) {
        if let Entry::Occupied(mut positions) = self.with_room.entry(units) {
            positions.get_mut().remove(&position);
            if positions.get().is_empty() {
                positions.remove();
            }
        }
    }
}

fn index(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Picture = (Vec<(u32, Vec<u64>)>, BTreeMap<u32, BTreeSet<u32>>, BTreeSet<u32>);

    /// What can be taken and what is taken, whatever the order in which it came about.
    fn picture(spans: &Spans) -> Picture {
        let each = spans.spans.iter().map(|span| (span.units, span.taken.clone())).collect();
        (each, spans.with_room.clone(), spans.empty.clone())
    }

    #[test]
    fn a_block_is_at_most_half_as_long_again_as_what_is_in_it() {
        for units in 1..=LARGEST {
            let class = size_class(units);
            assert!(class >= units && class <= LARGEST && class <= (units * 3 / 2).max(SMALLEST));
        }
    }

    #[test]
    fn empty_spans_are_given_back_once_and_used_again_for_blocks_of_any_size() {
        let mut spans = Spans::default();
        let blocks: Vec<Block> = (0..3).filter_map(|_| spans.allocate(LARGEST)).collect();
        assert_eq!(spans.take_unneeded(), []);
        spans.free(blocks[0].start);
        spans.free(blocks[1].start);
        assert_eq!(spans.take_unneeded(), []);
        assert_eq!(spans.take_unneeded(), vec![0..2 * SPAN]);
        assert_eq!(spans.take_unneeded(), []);
        assert_eq!(spans.allocate(2), Some(Block { start: 0, units: 2 }));
        assert_eq!(spans.end(), 3 * SPAN);
    }

    proptest! {
        /// Some is a length to take, none frees the block that the number falls on.
        #[test]
        fn blocks_never_overlap_and_what_is_rebuilt_equals_what_was_live(
            steps in prop::collection::vec((prop::option::weighted(0.6, 1..=LARGEST / 8), any::<prop::sample::Index>()), 0..300),
        ) {
            let mut spans = Spans::default();
            let mut live: Vec<Block> = Vec::new();
            for (step, which) in steps {
                match step {
                    Some(units) => {
                        let block = spans.allocate(units).unwrap();
                        prop_assert!(block.units >= units && block.start + block.units <= spans.end());
                        live.push(block);
                    }
                    None if !live.is_empty() => {
                        let block = live.swap_remove(which.index(live.len()));
                        spans.free(block.start);
                    }
                    None => {}
                }
                let mut sorted = live.clone();
                sorted.sort_unstable();
                prop_assert!(sorted.windows(2).all(|pair| pair[0].start + pair[0].units <= pair[1].start));
            }
            let mut rebuilt = Spans::new(spans.end());
            for &block in &live {
                prop_assert!(rebuilt.claim(block));
                prop_assert!(!rebuilt.claim(block), "it is taken");
            }
            prop_assert_eq!(picture(&rebuilt), picture(&spans));
            for block in live {
                rebuilt.free(block.start);
            }
            prop_assert_eq!(rebuilt.empty.len(), rebuilt.spans.len());
            prop_assert!(rebuilt.with_room.is_empty());
        }

        #[test]
        fn no_claim_makes_anything_panic(blocks in prop::collection::vec((any::<u32>(), any::<u32>(), 0..200_u32, 0..9_u32), 0..50)) {
            let mut spans = Spans::new(3 * SPAN);
            for (start, units, near, small) in blocks {
                for block in [Block { start, units }, Block { start: near, units: small }] {
                    if spans.claim(block) {
                        prop_assert!(block.start + block.units <= spans.end());
                    }
                }
                spans.free(start);
                spans.allocate(units % 99);
            }
        }
    }
}
