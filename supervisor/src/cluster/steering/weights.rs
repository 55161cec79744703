//! From what slots are like to what part of the new clients each gets. Pure.

use super::Load;

/// The part of the new clients that each slot gets: weights of which at least one is not zero, and whose sum
/// fits `u32`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Weights(Vec<u32>);

/// How many newcomers to make weights for: as many as are expected before they can be corrected. And no fewer
/// than a small part of what a slot holds: counts that differ by less are even, and a sudden crowd must not
/// be sent where two were missing.
pub(super) fn volume(loads: &[Load], expected: u64) -> u64 {
    const PART_OF_A_SLOT: u64 = 16;
    const PER_SLOT: u64 = 4;
    /// Far above what arrives in any interval; keeps the sum of the weights within `u32`.
    const MOST: u64 = 1 << 30;

    let (mut slots, mut all) = (0, 0_u64);
    for load in loads.iter().filter(|load| load.serves) {
        slots += 1;
        all = all.saturating_add(load.all());
    }
    let even = all / (PART_OF_A_SLOT * slots.max(1));
    expected.max(even).max(PER_SLOT * slots).clamp(1, MOST)
}

impl Weights {
    /// As water fills a vessel of uneven floor: `volume` newcomers bring the emptiest slots to one level, and
    /// those above it get none. `None` if no slot serves.
    pub(super) fn by_load(loads: &[Load], volume: u64) -> Option<Self> {
        let level = level(loads, volume)?;
        let missing = |load: &Load| if load.serves { level.saturating_sub(load.all()) } else { 0 };
        Some(Self(loads.iter().map(|load| u32::try_from(missing(load)).unwrap_or(u32::MAX)).collect()))
    }

    /// The same for every slot that serves. `None` if none does.
    pub(super) fn equal(loads: &[Load]) -> Option<Self> {
        let weights: Vec<u32> = loads.iter().map(|load| load.serves.into()).collect();
        weights.contains(&1).then_some(Self(weights))
    }

    /// The same weights for places that belong to these slots.
    pub(super) fn by_place(&self, slots: &[usize]) -> Self {
        Self(slots.iter().map(|&slot| self.0.get(slot).copied().unwrap_or_default()).collect())
    }

    /// By slot.
    pub(super) fn as_slice(&self) -> &[u32] {
        &self.0
    }

    /// Never zero.
    pub(super) fn sum(&self) -> u32 {
        self.0.iter().fold(0, |sum, &weight| sum.saturating_add(weight))
    }

    /// What a slot gets, in thousandths.
    pub(super) fn share(&self, slot: usize) -> Option<u16> {
        let (weight, sum) = (u64::from(*self.0.get(slot)?), u64::from(self.sum()));
        u16::try_from((weight * 1000 + sum / 2) / sum).ok()
    }
}

impl Load {
    /// Connections, and those about to be.
    pub(super) fn all(&self) -> u64 {
        self.held.saturating_add(self.coming)
    }
}

/// Where `volume` more connections bring the emptiest slots that serve.
fn level(loads: &[Load], volume: u64) -> Option<u64> {
    let mut counts: Vec<u64> = loads.iter().filter(|load| load.serves).map(Load::all).collect();
    counts.sort_unstable();
    let mut level = None;
    let (mut slots, mut content) = (0, volume);
    for count in counts {
        if level.is_some_and(|level| level <= count) {
            break;
        }
        slots += 1;
        content = content.saturating_add(count);
        level = Some(content.div_ceil(slots));
    }
    level
}
