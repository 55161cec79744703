//! Bytes waiting to leave one connection: what the kernel did not take. Empty for nearly every connection
//! nearly always.

/// The queue. Its bound is the caller's business, in one place.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// Where a frame begins, at or before the first that was not begun to be sent; `None` when that is not known.
    frame: Option<usize>,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { bytes: Vec::new(), sent: 0, frame: Some(0) }
    }
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

    /// A queue of these bytes, which another worker had queued.
    pub(crate) fn restored(bytes: &[u8], begins_with_a_frame: bool) -> Self {
        Self { bytes: bytes.to_vec(), sent: 0, frame: begins_with_a_frame.then_some(0) }
    }

    /// Puts whole frames at the end of an empty queue, of which `sent` bytes were sent.
    pub(crate) fn push_rest(&mut self, frames: &[u8], sent: usize) {
        self.frame = frame_at(frames, Some(0), sent).map(|at| at - sent);
        self.bytes.extend_from_slice(&frames[sent..]);
    }

    /// Bytes of memory that it takes.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Drops all but the rest of a frame that was begun to be sent. False, and nothing dropped, when it is not
    /// known where that ends.
    pub(crate) fn keep_frame(&mut self) -> bool {
        let Some(end) = frame_at(&self.bytes, self.frame, self.sent) else { return false };
        self.bytes.truncate(end);
        self.bytes.shrink_to_fit();
        self.frame = Some(end);
        true
    }

    /// Puts `bytes`, whole frames, at the end.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        // Moving the rest down once more than half is gone keeps the cost of each byte constant.
        if self.sent > self.bytes.len() / 2 {
            self.frame = frame_at(&self.bytes, self.frame, self.sent).map(|at| at - self.sent);
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

/// Where the first frame begins that is not before `least`, when one begins at `known`. The end counts, too.
fn frame_at(bytes: &[u8], known: Option<usize>, least: usize) -> Option<usize> {
    let mut at = known?;
    while at < least {
        let header = bytes.get(at..)?;
        at = match (header.get(1)? & 0x7f, header) {
            (126, [_, _, a, b, ..]) => at + 4 + usize::from(u16::from_be_bytes([*a, *b])),
            (127, [_, _, a, b, c, d, e, f, g, h, ..]) => {
                let length = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
                at.checked_add(10)?.checked_add(usize::try_from(length).ok()?)?
            }
            (126 | 127, _) => return None,
            (length, _) => at + 2 + usize::from(length),
        };
    }
    (at <= bytes.len()).then_some(at)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use tungstenite::protocol::frame::coding::{Data, OpCode};

    use super::*;
    use crate::websocket::frame::append_frame;

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

        #[test]
        fn what_is_kept_ends_where_a_frame_does(
            lengths in prop::collection::vec(prop_oneof![0usize..300, Just(70_000)], 1..12),
            cut in any::<prop::sample::Index>(),
            more in any::<prop::sample::Index>(),
        ) {
            let mut frames = Vec::new();
            let mut ends = vec![0];
            for length in lengths {
                append_frame(&mut frames, OpCode::Data(Data::Binary), &vec![0x7e; length]);
                ends.push(frames.len());
            }
            let sent = cut.index(frames.len());
            let mut outbox = Outbox::default();
            outbox.push_rest(&frames, sent);
            let taken = more.index(outbox.len());
            outbox.advance(taken);
            append_frame(&mut frames, OpCode::Data(Data::Binary), b"one more");
            outbox.push(&frames[ends[ends.len() - 1]..]);
            prop_assert!(outbox.keep_frame());
            let end = ends.into_iter().find(|&end| end >= sent + taken).unwrap();
            prop_assert_eq!(outbox.front(), &frames[sent + taken..end]);
            prop_assert!(!Outbox::restored(b"xyz", false).keep_frame());
        }
    }
}
