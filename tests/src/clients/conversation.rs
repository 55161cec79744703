//! What an open client says and hears: its place in the pattern's two streams, and control frames in between.
//! Knows no socket: writes through `Write`, is given what was read.

use std::collections::VecDeque;
use std::io::{self, Write};

use super::pattern::Pattern;
use crate::frame::{self, Arrived, Malformed, Scanner};

/// Any key masks; the payload of a pong is the server's own.
const CONTROL_KEY: [u8; 4] = [0x5a, 0xa5, 0x3c, 0xc3];

/// Why a conversation cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The server sent a close frame with this code.
    Closed(u16),
    /// What came back is not what was sent, from this position of the stream on.
    Mismatch(u64),
    /// The server broke the protocol.
    Malformed,
}

impl From<Malformed> for Ended {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Messages that have come back: how many, and when each run of them was due to be sent.
pub trait Heard {
    /// `count` messages that were due at `due` (nanoseconds) have come back.
    fn echoes(&mut self, due: u64, count: u64);
    /// A ping was answered.
    fn ping(&mut self);
}

/// One client's conversation. Positions are bytes since the stream began.
#[derive(Debug, Default)]
pub struct Conversation {
    sent: u64,
    /// Send up to here.
    target: u64,
    received: u64,
    /// Messages in flight as runs: due at, count.
    travelling: VecDeque<(u64, u64)>,
    in_flight: u64,
    scanner: Scanner,
    /// Pongs and close frames, sent at the next frame boundary.
    control: Vec<u8>,
}

impl Conversation {
    /// A conversation that begins with the pattern's message `first`, so that neighbours do not say the same.
    pub fn starting_at(pattern: &Pattern, first: u64) -> Self {
        let sent = first * pattern.sent_frame();
        Self { sent, target: sent, received: first * pattern.echoed_frame(), ..Self::default() }
    }

    /// Messages sent, or to be sent, that have not come back.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// `count` more messages are to be sent, due at `now`.
    pub fn say(&mut self, pattern: &Pattern, count: u64, now: u64) {
        if count > 0 {
            self.target += count * pattern.sent_frame();
            self.in_flight += count;
            self.travelling.push_back((now, count));
        }
    }

    /// One message is to be sent but for its last byte, due at `now`.
    pub fn begin(&mut self, pattern: &Pattern, now: u64) {
        self.say(pattern, 1, now);
        self.target -= 1;
    }

    /// The last byte of the message that was begun is to be sent as well.
    pub fn finish(&mut self, pattern: &Pattern) {
        self.target = self.target.next_multiple_of(pattern.sent_frame());
    }

    /// A close frame is to be sent after the message that has begun, and nothing after it.
    pub fn close(&mut self, pattern: &Pattern, code: u16) {
        self.target = self.sent.next_multiple_of(pattern.sent_frame());
        let payload = code.to_be_bytes();
        frame::put(frame::FIN | frame::CLOSE, Some(CONTROL_KEY), &payload, &mut self.control);
    }

    /// When the oldest message that has not come back was due.
    pub fn waiting_since(&self) -> Option<u64> {
        self.travelling.front().map(|(due, _)| *due)
    }

    /// Whether there is something to send.
    pub fn has_output(&self) -> bool {
        self.sent < self.target || !self.control.is_empty()
    }

    /// Sends what is to be sent, as far as `stream` takes it; returns the bytes taken.
    pub fn send(&mut self, pattern: &Pattern, stream: &mut impl Write) -> io::Result<u64> {
        let mut taken = 0;
        loop {
            // A control frame may stand between frames, never inside one.
            let beyond = self.sent % pattern.sent_frame();
            let result = if !self.control.is_empty() && beyond == 0 {
                stream.write(&self.control)
            } else if self.sent < self.target {
                let limit = match self.control.is_empty() {
                    true => self.target,
                    false => self.target.min(self.sent - beyond + pattern.sent_frame()),
                };
                stream.write(pattern.to_send(self.sent, limit))
            } else {
                return Ok(taken);
            };
            match result {
                Ok(count) if !self.control.is_empty() && beyond == 0 => drop(self.control.drain(..count)),
                Ok(count) => {
                    self.sent += count as u64;
                    taken += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends on without end and without waiting for echoes, in at most `writes` writes: how many messages the
    /// kernel has taken, and whether it would take more.
    pub fn pour(
        &mut self,
        pattern: &Pattern,
        stream: &mut impl Write,
        writes: usize,
    ) -> io::Result<(u64, bool)> {
        let before = self.sent / pattern.sent_frame();
        let mut more = true;
        for _ in 0..writes {
            match stream.write(pattern.to_send(self.sent, u64::MAX)) {
                Ok(count) => self.sent += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    more = false;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok((self.sent / pattern.sent_frame() - before, more))
    }

    /// Takes bytes of a stream in which every data frame must be an echo.
    pub fn hear_echo(
        &mut self,
        pattern: &Pattern,
        bytes: &[u8],
        heard: &mut impl Heard,
    ) -> Result<(), Ended> {
        if !self.scanner.in_frame() && pattern.matches(self.received, bytes) {
            return self.advance(pattern, bytes.len() as u64, heard);
        }
        self.hear_slowly(pattern, bytes, heard)
    }

    /// As `hear_echo`, but looking for control frames between the echoes.
    #[cold]
    fn hear_slowly(
        &mut self,
        pattern: &Pattern,
        mut bytes: &[u8],
        heard: &mut impl Heard,
    ) -> Result<(), Ended> {
        while let Some(&first) = bytes.first() {
            let beyond = self.received % pattern.echoed_frame();
            if self.scanner.in_frame() || (beyond == 0 && frame::is_control(first)) {
                bytes = self.scan(bytes, heard)?;
                continue;
            }
            let to_boundary = usize::try_from(pattern.echoed_frame() - beyond).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(to_boundary));
            if !pattern.matches(self.received, now) {
                return Err(Ended::Mismatch(pattern.first_difference(self.received, now)));
            }
            self.advance(pattern, now.len() as u64, heard)?;
            bytes = later;
        }
        Ok(())
    }

    /// Takes bytes of a stream in which data frames do not matter.
    pub fn hear_anything(&mut self, mut bytes: &[u8], heard: &mut impl Heard) -> Result<(), Ended> {
        while !bytes.is_empty() {
            bytes = self.scan(bytes, heard)?;
        }
        Ok(())
    }

    fn scan<'a>(&mut self, bytes: &'a [u8], heard: &mut impl Heard) -> Result<&'a [u8], Ended> {
        let (used, arrived) = self.scanner.scan(bytes)?;
        match arrived {
            Some(Arrived::Ping(payload)) => {
                frame::put(frame::FIN | frame::PONG, Some(CONTROL_KEY), &payload, &mut self.control);
                heard.ping();
            }
            Some(Arrived::Close(code)) => return Err(Ended::Closed(code)),
            Some(Arrived::Other) | None => {}
        }
        Ok(&bytes[used..])
    }

    fn advance(&mut self, pattern: &Pattern, bytes: u64, heard: &mut impl Heard) -> Result<(), Ended> {
        let before = self.received / pattern.echoed_frame();
        self.received += bytes;
        let mut back = self.received / pattern.echoed_frame() - before;
        while back > 0 {
            // More has come back than was sent.
            let Some((due, count)) = self.travelling.front_mut() else {
                return Err(Ended::Mismatch(self.received));
            };
            let run = back.min(*count);
            heard.echoes(*due, run);
            *count -= run;
            back -= run;
            self.in_flight -= run;
            if *count == 0 {
                self.travelling.pop_front();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::Kind;
    use super::*;

    #[derive(Default)]
    struct Count(u64, u64);

    impl Heard for Count {
        fn echoes(&mut self, _due: u64, count: u64) {
            self.0 += count;
        }
        fn ping(&mut self) {
            self.1 += 1;
        }
    }

    /// Takes three bytes, then would block, over and over.
    struct Narrow(Vec<u8>, bool);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if !self.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(3);
            self.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The echo of messages `first..first + count`, with a ping before the last.
    fn echo_with_ping(sent: &[u8], count: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for (n, frame) in sent.chunks(sent.len() / count).enumerate() {
            if n == count - 1 {
                frame::put(frame::FIN | frame::PING, None, b"hello", &mut out);
            }
            let plain: Vec<u8> =
                frame[6..].iter().zip(frame[2..6].iter().cycle()).map(|(a, b)| a ^ b).collect();
            frame::put(frame::FIN | frame::TEXT, None, &plain, &mut out);
        }
        out
    }

    #[test]
    fn pings_between_echoes_are_answered_between_messages() {
        let pattern = Pattern::new(20, Kind::Text, 4, false, 2);
        for piece in [1, 5, 22, 23, 1_000] {
            let mut talk = Conversation::starting_at(&pattern, 3);
            let (mut wire, mut heard) = (Narrow(Vec::new(), false), Count::default());
            talk.say(&pattern, 4, 0);
            while talk.has_output() {
                talk.send(&pattern, &mut wire).unwrap();
            }
            let echo = echo_with_ping(&wire.0, 4);
            talk.say(&pattern, 1, 0);
            talk.send(&pattern, &mut wire).unwrap();
            talk.send(&pattern, &mut wire).unwrap();
            for bytes in echo.chunks(piece) {
                talk.hear_echo(&pattern, bytes, &mut heard).unwrap();
            }
            while talk.has_output() {
                talk.send(&pattern, &mut wire).unwrap();
            }
            assert_eq!((heard.0, heard.1, talk.in_flight()), (4, 1, 1), "in pieces of {piece}");
            let mut pong = Vec::new();
            frame::put(frame::FIN | frame::PONG, Some(CONTROL_KEY), b"hello", &mut pong);
            assert_eq!(wire.0[5 * 26..], pong, "after the message that had begun");
        }
    }

    #[test]
    fn the_last_byte_of_a_message_waits_and_a_pong_waits_for_it() {
        let pattern = Pattern::new(20, Kind::Binary, 1, false, 2);
        let mut talk = Conversation::starting_at(&pattern, 2);
        let mut wire = Vec::new();
        talk.begin(&pattern, 0);
        assert_eq!(talk.send(&pattern, &mut wire).unwrap(), pattern.sent_frame() - 1);
        talk.hear_echo(&pattern, &[0x89, 0], &mut Count::default()).unwrap();
        talk.send(&pattern, &mut wire).unwrap();
        assert_eq!(wire.len() as u64, pattern.sent_frame() - 1);
        talk.finish(&pattern);
        talk.send(&pattern, &mut wire).unwrap();
        assert_eq!(&wire[usize::try_from(pattern.sent_frame()).unwrap()..][..2], [0x8a, 0x80]);
        assert_eq!(talk.in_flight(), 1);
    }

    #[test]
    fn wrong_bytes_surplus_echoes_and_close_frames_end_it() {
        let pattern = Pattern::new(20, Kind::Text, 4, false, 2);
        let mut talk = Conversation::starting_at(&pattern, 0);
        talk.say(&pattern, 1, 0);
        let mut wire = Vec::new();
        talk.send(&pattern, &mut wire).unwrap();
        let mut stream = echo_with_ping(&wire, 1);
        let wrong = stream.len() - 1;
        stream[wrong] ^= 0x20;
        let end = 2 + 20;
        let heard = talk.hear_echo(&pattern, &stream, &mut Count::default());
        assert_eq!(heard, Err(Ended::Mismatch(end - 1)));
        let mut silent = Conversation::starting_at(&pattern, 0);
        stream[wrong] ^= 0x20;
        let heard = silent.hear_echo(&pattern, &stream, &mut Count::default());
        assert_eq!(heard, Err(Ended::Mismatch(end)));
        let close = [0x88, 2, 0x03, 0xf4];
        assert_eq!(silent.hear_anything(&close, &mut Count::default()), Err(Ended::Closed(1012)));
    }
}
