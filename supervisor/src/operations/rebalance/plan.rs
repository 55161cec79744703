//! Which slot gives how many connections to which: slots that retire to the emptiest of the others, and the
//! fullest to the emptiest until they are even. Pure.

use holdfast_shared::id::SlotId;

/// A slot at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) id: SlotId,
    /// Connections it holds.
    pub(crate) held: u64,
    /// Its worker serves.
    pub(crate) serves: bool,
    /// It is to be empty.
    pub(crate) retires: bool,
}

/// One move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) from: SlotId,
    pub(crate) to: SlotId,
    pub(crate) count: u32,
}

/// So small a part of a slot's connections makes no difference.
const PART: u64 = 50;

/// The next move that empties a slot, if one retires and has connections. It is a share of what it has, so
/// that the others fill evenly.
pub(crate) fn next_to_empty(places: &[Place]) -> Option<Step> {
    let takers = places.iter().filter(|place| place.serves && !place.retires).count() as u64;
    let from = places.iter().rfind(|place| place.serves && place.retires && place.held > 0)?;
    let to = emptiest(places)?.id;
    Some(Step { from: from.id, to, count: count(from.held.div_ceil(takers.max(1))) })
}

/// The next move that makes slots more even; `None` if they are.
pub(super) fn next_to_even(places: &[Place]) -> Option<Step> {
    let stay = || places.iter().filter(|place| place.serves && !place.retires);
    let slots = stay().count() as u64;
    let mean = stay().map(|place| place.held).sum::<u64>() / slots.max(1);
    let to = emptiest(places)?;
    let from = stay().max_by_key(|place| place.held)?;
    let (most, least) = (from.held, to.held);
    let is_even = most - least <= (mean / PART).max(1);
    // The mean is rounded down, so one of the two may be at it already.
    (!is_even).then(|| Step {
        from: from.id,
        to: to.id,
        count: count((most - mean).min(mean - least).max(1)),
    })
}

fn emptiest(places: &[Place]) -> Option<&Place> {
    places.iter().filter(|place| place.serves && !place.retires).min_by_key(|place| place.held)
}

fn count(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn places() -> impl Strategy<Value = Vec<Place>> {
        let place = (0..20_000_u64, prop::bool::weighted(0.9), prop::bool::weighted(0.2));
        prop::collection::vec(place, 0..12).prop_map(|places| {
            let place = |(id, (held, serves, retires))| Place { id: SlotId(id), held, serves, retires };
            (0..).zip(places).map(place).collect()
        })
    }

    fn carry_out(places: &mut [Place], step: Step) {
        let (from, to) = (usize::from(step.from.0), usize::from(step.to.0));
        assert_ne!(from, to);
        assert!(step.count > 0 && places[to].serves && !places[to].retires);
        places[from].held -= u64::from(step.count);
        places[to].held += u64::from(step.count);
    }

    proptest! {
        #[test]
        fn a_few_moves_make_slots_even(mut places in places()) {
            let all: u64 = places.iter().map(|place| place.held).sum();
            let mut steps = 0;
            while let Some(step) = next_to_even(&places) {
                carry_out(&mut places, step);
                steps += 1;
                prop_assert!(steps <= 4 * places.len());
            }
            let stay: Vec<u64> =
                places.iter().filter(|place| place.serves && !place.retires).map(|place| place.held).collect();
            if let (Some(most), Some(least)) = (stay.iter().max(), stay.iter().min()) {
                prop_assert!(most - least <= 1 + most / 40);
            }
            prop_assert_eq!(all, places.iter().map(|place| place.held).sum::<u64>());
        }

        #[test]
        fn slots_that_retire_are_emptied_if_any_other_serves(mut places in places()) {
            let others = places.iter().any(|place| place.serves && !place.retires);
            let mut steps = 0;
            while let Some(step) = next_to_empty(&places) {
                carry_out(&mut places, step);
                steps += 1;
                prop_assert!(steps < 5_000);
            }
            let left = places.iter().any(|place| place.serves && place.retires && place.held > 0);
            prop_assert!(!left || !others);
        }
    }
}
