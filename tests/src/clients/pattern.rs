//! What echo clients say, computed once: an endless stream of distinct frames, and the stream a faithful
//! server sends back. Sending is a slice of the first, checking a comparison with the second; nothing is
//! built or masked per message.

use serde::{Deserialize, Serialize};

use crate::frame;

/// The messages repeat after this many bytes, unless more distinct ones were asked for.
const PERIOD: usize = 64 * 1024;

/// Whether payloads are text or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Kind {
    /// Printable ASCII in text frames.
    Text,
    /// Random bytes in binary frames.
    Binary,
}

/// Both streams. Positions are bytes since the stream began, as `u64`; all frames of a stream are of one
/// size.
#[derive(Debug)]
pub struct Pattern {
    /// One period of masked frames and `in_flight` frames more, so that any allowed run of them is one
    /// slice.
    sent: Vec<u8>,
    /// One period of what comes back.
    echoed: Vec<u8>,
    sent_period: usize,
    sent_frame: u64,
    echoed_frame: u64,
}

impl Pattern {
    /// Streams of `size`-byte messages, at least `distinct` of them, for clients that have at most `in_flight`
    /// of them travelling. A `raw` server does not unmask (the floor): what comes back is what was sent, mask
    /// and all.
    pub fn new(size: usize, kind: Kind, in_flight: usize, raw: bool, distinct: usize) -> Self {
        let distinct = (PERIOD / (size + frame::LONGEST_HEADER)).clamp(distinct, 1024);
        let mut random = fastrand::Rng::with_seed(0x686f_6c64);
        let (mut sent, mut echoed) = (Vec::new(), Vec::new());
        for _ in 0..distinct {
            let payload: Vec<u8> = match kind {
                Kind::Text => (0..size).map(|_| random.u8(b' '..=b'~')).collect(),
                Kind::Binary => (0..size).map(|_| random.u8(..)).collect(),
            };
            let first = match kind {
                Kind::Text => frame::FIN | frame::TEXT,
                Kind::Binary => frame::FIN | frame::BINARY,
            };
            let before = sent.len();
            frame::put(first, Some(random.u32(1..).to_be_bytes()), &payload, &mut sent);
            if raw {
                echoed.extend_from_slice(&sent[before..]);
            } else {
                frame::put(first, None, &payload, &mut echoed);
            }
        }
        let (sent_period, sent_frame) = (sent.len(), sent.len() / distinct);
        let echoed_frame = echoed.len() / distinct;
        let length = sent_period + in_flight * sent_frame;
        while sent.len() < length {
            let more = (length - sent.len()).min(sent_period);
            sent.extend_from_within(..more);
        }
        Self { sent, echoed, sent_period, sent_frame: sent_frame as u64, echoed_frame: echoed_frame as u64 }
    }

    /// Bytes of one message on its way to the server.
    pub fn sent_frame(&self) -> u64 {
        self.sent_frame
    }

    /// Bytes of one message on its way back.
    pub fn echoed_frame(&self) -> u64 {
        self.echoed_frame
    }

    /// The bytes to send from position `from` on, up to `until`, or to the end of the slice at hand.
    pub fn to_send(&self, from: u64, until: u64) -> &[u8] {
        let start = remainder(from, self.sent_period);
        let wanted = usize::try_from(until - from).unwrap_or(usize::MAX);
        &self.sent[start..self.sent.len().min(start.saturating_add(wanted))]
    }

    /// The first position from `at` on where `received` is not that.
    pub fn first_difference(&self, at: u64, received: &[u8]) -> u64 {
        (at..).zip(received).find(|(at, byte)| !self.matches(*at, &[**byte])).map_or(at, |(at, _)| at)
    }

    /// Whether `received` is what a faithful server sends from position `at` on.
    pub fn matches(&self, at: u64, mut received: &[u8]) -> bool {
        let mut start = remainder(at, self.echoed.len());
        while !received.is_empty() {
            let length = received.len().min(self.echoed.len() - start);
            let (now, later) = received.split_at(length);
            if now != &self.echoed[start..start + length] {
                return false;
            }
            received = later;
            start = 0;
        }
        true
    }
}

fn remainder(position: u64, period: usize) -> usize {
    // Below `period`, which is a usize.
    usize::try_from(position % period as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_window_is_one_slice_of_whole_frames() {
        for (size, in_flight) in [(0, 1), (20, 16), (125, 3), (126, 2_000), (70_000, 4)] {
            let pattern = Pattern::new(size, Kind::Text, in_flight, false, 2);
            let window = in_flight as u64 * pattern.sent_frame();
            for frame in 0..2_500 {
                let from = frame * pattern.sent_frame();
                let bytes = pattern.to_send(from, from + window);
                assert_eq!(bytes.len() as u64, window, "{size} bytes, {in_flight} in flight, frame {frame}");
                assert_eq!(bytes[0], 0x80 | frame::TEXT);
            }
        }
    }

    #[test]
    fn the_echo_of_a_stream_is_recognised_at_any_cut_and_nothing_else_is() {
        let pattern = Pattern::new(125, Kind::Binary, 1, false, 2);
        let whole: Vec<u8> = pattern.echoed.iter().chain(&pattern.echoed).copied().collect();
        for (from, to) in [(0, 1), (0, whole.len()), (77, 5_000), (pattern.echoed.len() - 3, whole.len() - 9)]
        {
            assert!(pattern.matches(from as u64, &whole[from..to]));
            let mut wrong = whole[from..to].to_vec();
            wrong[(to - from) / 2] ^= 1;
            assert!(!pattern.matches(from as u64, &wrong));
        }
        assert!(!pattern.matches(0, &whole[127..254]), "the second message is not the first");
    }

    #[test]
    fn unmasking_what_is_sent_gives_what_comes_back() {
        let pattern = Pattern::new(300, Kind::Text, 1, false, 2);
        let (header, payload) = pattern.to_send(0, pattern.sent_frame()).split_at(8);
        let plain: Vec<u8> = payload.iter().zip(header[4..].iter().cycle()).map(|(a, b)| a ^ b).collect();
        assert_eq!(plain, pattern.echoed[4..304]);
    }
}
