//! What putting messages together takes, for all connections of a worker: how long a message may be, and
//! buffers that have served and will serve again. A fresh buffer of a megabyte costs the kernel more than
//! receiving a megabyte does: its pages are cleared and mapped one by one.

/// Most spare buffers kept: those that are in use at the same time are few, for a message takes up one only
/// while it comes in.
const MAX_SPARE: usize = 16;

/// A buffer longer than this is not kept: somebody has raised the limit for messages that should not cost
/// everybody memory.
const MAX_SPARE_SIZE: usize = 4 * 1024 * 1024;

/// Shorter ones are not worth keeping: the allocator has them at hand.
const MIN_SPARE_SIZE: usize = 64 * 1024;

/// A message that needs less has not come far enough to be given one: whoever sends little holds little.
const MIN_NEEDED: usize = 16 * 1024;

/// How much longer a spare buffer may be than what is needed of it now.
const MAX_LONGER: usize = 32;

/// The limit, and the spare buffers.
#[derive(Debug, Default)]
pub struct Assembly {
    /// The most bytes a message has, over all its fragments.
    pub max_message_size: usize,
    spare: Vec<Vec<u8>>,
    /// The fewest spare buffers there were since the last [`Assembly::trim`]: so many were not needed.
    fewest: usize,
}

impl Assembly {
    /// No spare buffers yet.
    #[must_use]
    pub fn new(max_message_size: usize) -> Self {
        Self { max_message_size, spare: Vec::new(), fewest: 0 }
    }

    /// A buffer that has served, with all its bytes there to be overwritten, for a message that needs so many of them
    /// now; if there is one that fits.
    pub(super) fn take(&mut self, needed: usize) -> Option<Vec<u8>> {
        if needed < MIN_NEEDED {
            return None;
        }
        let fits = |buffer: &Vec<u8>| (needed..=needed.saturating_mul(MAX_LONGER)).contains(&buffer.len());
        let place = self.spare.iter().rposition(fits)?;
        let buffer = self.spare.swap_remove(place);
        self.fewest = self.fewest.min(self.spare.len());
        Some(buffer)
    }

    /// A buffer has served.
    pub(super) fn give_back(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < MAX_SPARE && (MIN_SPARE_SIZE..=MAX_SPARE_SIZE).contains(&buffer.capacity()) {
            self.spare.push(buffer);
        }
    }

    /// Frees the buffers that nobody needed since the last call.
    pub fn trim(&mut self) {
        self.spare.truncate(self.spare.len() - self.fewest);
        self.fewest = self.spare.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_serves_again_and_is_freed_when_nobody_needs_it() {
        let mut assembly = Assembly::new(1);
        assert_eq!(assembly.take(MIN_SPARE_SIZE), None);
        assembly.give_back(vec![0; MIN_SPARE_SIZE]);
        assembly.give_back(vec![0; MIN_SPARE_SIZE]);
        assembly.trim();
        let one = assembly.take(MIN_SPARE_SIZE).unwrap();
        assert_eq!(one.len(), MIN_SPARE_SIZE);
        assembly.give_back(one);
        assembly.trim();
        assert_eq!(assembly.spare.len(), 1, "one was needed, one was not");
        assembly.trim();
        assert_eq!(assembly.spare.len(), 0);
    }

    #[test]
    fn a_message_of_which_little_has_come_gets_no_long_buffer_and_none_that_is_too_short() {
        let mut assembly = Assembly::new(1);
        assembly.give_back(vec![0; 1 << 20]);
        assert_eq!(assembly.take(MIN_NEEDED - 1), None);
        assert_eq!(assembly.take(MIN_NEEDED), None);
        assert_eq!(assembly.take((1 << 20) + 1), None);
        assert!(assembly.take((1 << 20) / MAX_LONGER).is_some());
    }

    #[test]
    fn what_is_too_small_or_too_large_or_too_many_is_not_kept() {
        let mut assembly = Assembly::new(1);
        assembly.give_back(vec![0; MIN_SPARE_SIZE - 1]);
        assembly.give_back(vec![0; MAX_SPARE_SIZE + 1]);
        assert_eq!(assembly.spare.len(), 0);
        for _ in 0..2 * MAX_SPARE {
            assembly.give_back(vec![0; MIN_SPARE_SIZE]);
        }
        assert_eq!(assembly.spare.len(), MAX_SPARE);
    }
}
