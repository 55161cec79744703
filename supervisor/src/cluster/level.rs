//! From the count of connections to a [`Level`], with hysteresis so that a count that hovers at an edge does
//! not make the level flap. Pure: who announces a change is not decided here. Admission never asks the level;
//! a cluster that is still called full admits as soon as one place is free.

use holdfast_shared::level::Level;

/// The counts at which levels begin, and how far below them they end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelEdges {
    /// [`Level::Warning`] begins here, in connections.
    pub warning: u64,
    /// [`Level::Degraded`] begins here, in connections.
    pub soft: u64,
    /// [`Level::Full`] begins here, in connections.
    pub max: u64,
    /// A level ends this many connections below where it began. Zero means one: an edge that is entered and
    /// left at the same count would flap. More than the edge means the edge: nothing is held at no
    /// connections.
    pub margin: u64,
}

impl LevelEdges {
    /// The level that follows `current` at `count` connections.
    ///
    /// Rises at once, over several levels if need be; falls to the highest level that is not yet left. Works
    /// with edges that changed since `current` was computed.
    #[must_use]
    pub fn next(&self, current: Level, count: u64) -> Level {
        let holds = |level: Level| {
            let edge = self.edge(level);
            count >= edge || (level <= current && count > edge.saturating_sub(self.margin.max(1)))
        };
        Level::ALL.into_iter().rev().find(|&level| holds(level)).unwrap_or_default()
    }

    fn edge(&self, level: Level) -> u64 {
        match level {
            Level::Normal => 0,
            Level::Warning => self.warning,
            Level::Degraded => self.soft,
            Level::Full => self.max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EDGES: LevelEdges = LevelEdges { warning: 70, soft: 80, max: 100, margin: 5 };

    /// The levels seen while the count follows `counts`, repetitions left out, and the counts they began at.
    fn walk(
        edges: &LevelEdges,
        mut level: Level,
        counts: impl IntoIterator<Item = u64>,
    ) -> Vec<(u64, Level)> {
        let mut seen = Vec::new();
        for count in counts {
            let next = edges.next(level, count);
            if next != level {
                seen.push((count, next));
            }
            level = next;
        }
        seen
    }

    #[test]
    fn levels_begin_at_their_edge_and_end_a_margin_below() {
        let up = [(70, Level::Warning), (80, Level::Degraded), (100, Level::Full)];
        assert_eq!(walk(&EDGES, Level::Normal, 0..=100), up);
        let down = [(95, Level::Degraded), (75, Level::Warning), (65, Level::Normal)];
        assert_eq!(walk(&EDGES, Level::Full, (0..=100).rev()), down);
    }

    #[test]
    fn a_fall_from_full_keeps_the_levels_not_yet_left() {
        assert_eq!(EDGES.next(Level::Full, 77), Level::Degraded);
        assert_eq!(EDGES.next(Level::Full, 66), Level::Warning);
        assert_eq!(EDGES.next(Level::Full, 0), Level::Normal);
        assert_eq!(EDGES.next(Level::Normal, 77), Level::Warning);
    }

    #[test]
    fn the_smallest_cap_can_be_left() {
        let edges = LevelEdges { warning: 1, soft: 1, max: 1, margin: 0 };
        assert_eq!(walk(&edges, Level::Normal, [1, 0]), [(1, Level::Full), (0, Level::Normal)]);
    }

    #[test]
    fn lowered_edges_take_hold_at_the_next_look() {
        let lowered = LevelEdges { warning: 10, soft: 20, max: 30, margin: 1 };
        assert_eq!(lowered.next(Level::Normal, 40), Level::Full);
        assert_eq!(EDGES.next(Level::Full, 40), Level::Normal);
    }

    fn edges() -> impl Strategy<Value = LevelEdges> {
        (1_u64..300, 1_u64..300, 1_u64..300, 0_u64..100).prop_map(|(a, b, c, margin)| {
            let mut edges = [a, b, c];
            edges.sort_unstable();
            LevelEdges { warning: edges[0], soft: edges[1], max: edges[2], margin }
        })
    }

    proptest! {
        #[test]
        fn a_monotone_count_passes_each_edge_once(edges in edges()) {
            let up = walk(&edges, Level::Normal, 0..=300);
            prop_assert!(up.is_sorted_by(|a, b| a.1 < b.1));
            prop_assert_eq!(up.last(), Some(&(edges.max, Level::Full)));
            let down = walk(&edges, Level::Full, (0..=300).rev());
            prop_assert!(down.is_sorted_by(|a, b| a.1 > b.1));
            prop_assert_eq!(down.last().map(|seen| seen.1), Some(Level::Normal));
        }

        #[test]
        fn a_count_that_swings_less_than_the_margin_never_flaps(
            edges in edges(),
            start in prop::sample::select(Level::ALL.to_vec()),
            low in 0_u64..300,
            swings in prop::collection::vec(any::<prop::sample::Index>(), 1..100),
        ) {
            // A margin is cut at zero connections, so a swing that wide may flap.
            let width = usize::try_from(edges.margin.clamp(1, edges.warning)).unwrap();
            let counts = swings.iter().map(|swing| low + swing.index(width) as u64);
            let mut levels = vec![start];
            levels.extend(walk(&edges, start, counts).into_iter().map(|seen| seen.1));
            prop_assert!(levels.is_sorted() || levels.iter().rev().is_sorted(), "{:?}", levels);
        }

        #[test]
        fn the_level_is_never_below_the_edge_reached_nor_above_the_edge_left(
            edges in edges(),
            current in prop::sample::select(Level::ALL.to_vec()),
            count in 0_u64..400,
        ) {
            let next = edges.next(current, count);
            for level in Level::ALL {
                if count >= edges.edge(level) {
                    prop_assert!(next >= level);
                }
            }
            prop_assert!(next == Level::Normal || count > edges.edge(next).saturating_sub(edges.margin.max(1)));
        }
    }
}
