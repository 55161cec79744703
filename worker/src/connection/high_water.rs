//! Whether less is under way than was some time ago: how a burst is known to be over. Counts; frees nothing.

/// Turns without need before a burst counts as over: one that comes back every other second keeps its room.
const QUIET_TURNS: u8 = 3;

/// Growth below this is not worth undoing.
const WORTHWHILE: usize = 64;

/// The most that was ever needed at one time, and lately.
#[derive(Debug, Default)]
pub(super) struct HighWater {
    /// Since a burst was last over: for so many there is room.
    ever: usize,
    /// Since the last turn.
    lately: usize,
    quiet_turns: u8,
}

impl HighWater {
    /// So many are needed now.
    pub(super) fn note(&mut self, needed: usize) {
        self.lately = self.lately.max(needed);
    }

    /// A turn is over, with `needed` still needed. True when a burst is over, once for each: no more than a
    /// quarter of what there was room for was needed for some turns.
    pub(super) fn burst_is_over(&mut self, needed: usize) -> bool {
        let lately = std::mem::replace(&mut self.lately, needed);
        self.ever = self.ever.max(lately);
        if self.ever < WORTHWHILE || lately > self.ever / 4 {
            self.quiet_turns = 0;
            return false;
        }
        self.quiet_turns += 1;
        let is_over = self.quiet_turns == QUIET_TURNS;
        if is_over {
            *self = Self { ever: needed, lately: needed, quiet_turns: 0 };
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_over_after_some_turns_in_which_it_has_not_come_back() {
        let mut water = HighWater::default();
        let mut turn = |seen: usize, left: usize| {
            water.note(seen);
            water.burst_is_over(left)
        };
        assert!(!turn(1000, 10));
        assert!(!turn(10, 10) && !turn(10, 10));
        assert!(!turn(900, 10), "it came back");
        assert!(!turn(10, 10) && !turn(10, 10));
        assert!(turn(10, 10));
        assert!((0..10).all(|_| !turn(10, 10)), "it is over once");
    }

    #[test]
    fn what_is_in_use_or_hardly_worth_it_stays() {
        let mut water = HighWater::default();
        water.note(WORTHWHILE - 1);
        assert!((0..10).all(|_| !water.burst_is_over(0)));
        water.note(1000);
        assert!((0..10).all(|_| !water.burst_is_over(500)));
    }
}
