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

    /// A buffer: one that has served, with all its bytes there to be overwritten, or an empty one.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let buffer = self.spare.pop().unwrap_or_default();
        self.fewest = self.fewest.min(self.spare.len());
        buffer
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
        assert_eq!(assembly.take().capacity(), 0);
        assembly.give_back(vec![0; MIN_SPARE_SIZE]);
        assembly.give_back(vec![0; MIN_SPARE_SIZE]);
        assembly.trim();
        let one = assembly.take();
        assert_eq!(one.len(), MIN_SPARE_SIZE);
        assembly.give_back(one);
        assembly.trim();
        assert_eq!(assembly.spare.len(), 1, "one was needed, one was not");
        assembly.trim();
        assert_eq!(assembly.spare.len(), 0);
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
