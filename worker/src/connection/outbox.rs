//! Bytes waiting to leave one connection: what the kernel did not take. Empty for nearly every connection
//! nearly always.

/// The queue. Its bound is the caller's business, in one place.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Bytes still to be sent.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Is there nothing to send?
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts `bytes` at the end.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        // Moving the rest down once more than half is gone keeps the cost of each byte constant.
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// What is to be sent next.
    pub(crate) fn front(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// The first `count` bytes were sent.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent = (self.sent + count).min(self.bytes.len());
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_they_came(steps in prop::collection::vec((0usize..50, 0usize..50), 0..60)) {
            let mut outbox = Outbox::default();
            let mut model = VecDeque::new();
            let mut next = 0u8;
            for (push, take) in steps {
                let bytes: Vec<u8> = (0..push).map(|_| { next = next.wrapping_add(1); next }).collect();
                outbox.push(&bytes);
                model.extend(bytes);
                let take = take.min(outbox.len());
                let expected: Vec<u8> = model.drain(..take).collect();
                prop_assert_eq!(&outbox.front()[..take], &expected[..]);
                outbox.advance(take);
                prop_assert_eq!(outbox.len(), model.len());
            }
        }
    }
}
