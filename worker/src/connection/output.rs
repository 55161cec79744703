//! Bytes to clients: written at once when the kernel takes them, queued within bounds when not. Also the ways
//! to say goodbye, for each leaves its last bytes here.

use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::{Flags, Phase};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use tungstenite::protocol::frame::coding::{CloseCode, Control, OpCode};

use super::{Connections, Key, descriptor_of};
use crate::websocket::frame;

/// So few bytes go into the socket's buffer whole or not at all, unless it is all but full: a worker that
/// dies while it writes them leaves a stream that ends between frames, and its client can be told 1012.
pub(super) const TAKEN_WHOLE: usize = 4096;

impl Connections {
    /// Writes `bytes`, whole frames or a whole response. What the kernel does not take is queued; a client
    /// for which more than `max_queued_output` would wait behind other output is a slow reader, and closed.
    pub(crate) fn write(&mut self, key: Key, bytes: &[u8]) {
        let queued = self.queued(key);
        if queued > 0 && (queued + bytes.len()) as u64 > self.settings.max_queued_output {
            // Nothing of these bytes is on the wire yet, so they can be left out and the stream stays whole.
            self.close_slow_reader(key);
        } else {
            self.write_answer(key, bytes);
        }
    }

    /// Writes whole frames that answer what the client itself has sent. They are queued however many they are: their
    /// bound is that nothing more is read from the client then.
    pub(crate) fn write_answer(&mut self, key: Key, bytes: &[u8]) {
        self.finish_part(key);
        if self.queued(key) == 0 {
            // Should the worker die in the middle of this, the next one must not write into the middle of a
            // frame. With nothing queued the flag is not set, so for what is taken whole there is
            // nothing to set or clear.
            let may_be_cut = bytes.len() > TAKEN_WHOLE;
            if may_be_cut {
                self.set_frame_cut(key, true);
            }
            match self.send(key, bytes) {
                Some(sent) if sent < bytes.len() => {
                    self.set_frame_cut(key, sent > 0);
                    self.queue_rest(key, bytes, sent);
                }
                Some(_) if may_be_cut => self.set_frame_cut(key, false),
                Some(_) | None => {}
            }
        } else {
            self.queue(key, bytes);
        }
    }

    /// The socket takes bytes again.
    pub(crate) fn flush(&mut self, key: Key) {
        loop {
            let Some(heap) = self.heap_state(key) else { return };
            if heap.outbox.is_empty() {
                return;
            }
            // The outbox leaves the connection for the time of the call, so that both can be borrowed.
            let mut waiting = std::mem::take(&mut heap.outbox);
            self.set_frame_cut(key, true);
            let Some(sent) = self.send(key, waiting.front()) else {
                self.queued_bytes -= waiting.len() as u64;
                return;
            };
            waiting.advance(sent);
            let left = waiting.len();
            self.queued_bytes -= sent as u64;
            if let Some(heap) = self.heap_state(key) {
                heap.outbox = waiting;
            }
            if sent > 0 {
                self.note_taken(key);
            }
            if left == 0 {
                self.outbox_ran_empty(key);
            } else if sent == 0 {
                return;
            }
        }
    }

    /// Starts the closing handshake: sends a close frame and waits for the client's.
    pub(crate) fn begin_close(&mut self, key: Key, code: CloseCode, text: &str, reason: CloseReason) {
        if !self.is_in(key, Phase::Open) {
            return;
        }
        self.mark_ending(key, reason);
        self.enter(key, Phase::Closing, self.close_deadline_ms());
        self.write_close(key, code, text);
    }

    /// Nothing more will be said: sends a last close frame, shuts the write half when it is out, and waits
    /// for the client to go.
    pub(crate) fn finish_close(
        &mut self,
        key: Key,
        code: Option<CloseCode>,
        text: &str,
        reason: CloseReason,
    ) {
        let Some(phase) = self.get(key).map(|record| record.phase()) else { return };
        self.mark_ending(key, reason);
        self.enter(key, Phase::Lingering, self.close_deadline_ms());
        if phase == Phase::Open {
            match code {
                Some(code) => self.write_close(key, code, text),
                None => {
                    let mut last_frame = Vec::new();
                    frame::append_frame(&mut last_frame, OpCode::Control(Control::Close), &[]);
                    self.write_last(key, &last_frame);
                }
            }
        }
        self.shut_when_flushed(key);
    }

    pub(super) fn write_close(&mut self, key: Key, code: CloseCode, text: &str) {
        let mut last_frame = Vec::new();
        frame::append_close(&mut last_frame, code, text);
        self.write_last(key, &last_frame);
    }

    /// Does anything wait to be sent?
    pub(crate) fn has_output(&mut self, key: Key) -> bool {
        self.queued(key) > 0
    }

    /// Bytes that wait to be sent.
    fn queued(&mut self, key: Key) -> usize {
        self.heap_state(key).map_or(0, |heap| heap.outbox.len())
    }

    pub(super) fn close_slow_reader(&mut self, key: Key) {
        if !self.is_in(key, Phase::Open) {
            // It is being closed already, and does not read that either: its deadline will end it.
            return;
        }
        self.mark_ending(key, CloseReason::SlowReader);
        self.enter(key, Phase::Lingering, self.close_deadline_ms());
        self.write_close(key, CloseCode::Again, "Slow reader");
    }

    /// Writes a close frame: behind whatever is queued, and however much that is.
    fn write_last(&mut self, key: Key, last_frame: &[u8]) {
        self.write_answer(key, last_frame);
    }

    fn queue(&mut self, key: Key, bytes: &[u8]) {
        if let Some(heap) = self.heap_state_or_new(key) {
            heap.outbox.push(bytes);
            self.queued_bytes += bytes.len() as u64;
            self.note_heap_state(key);
        }
    }

    /// Queues what is left of whole frames, of which the kernel took `sent` bytes.
    pub(super) fn queue_rest(&mut self, key: Key, frames: &[u8], sent: usize) {
        if let Some(heap) = self.heap_state_or_new(key) {
            heap.outbox.push_rest(frames, sent);
            self.queued_bytes += (frames.len() - sent) as u64;
            self.note_first_queued(key);
            self.note_heap_state(key);
        }
    }

    fn set_frame_cut(&mut self, key: Key, is_cut: bool) {
        if let Some(record) = self.get_mut(key) {
            record.flags.set(Flags::FRAME_CUT, is_cut);
        }
    }

    /// What the kernel took; `None` when the connection is over.
    pub(super) fn send(&mut self, key: Key, bytes: &[u8]) -> Option<usize> {
        loop {
            match send(descriptor_of(key), bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => {
                    self.table.counters().bytes_sent += sent as u64;
                    return Some(sent);
                }
                Err(Errno::EAGAIN) => return Some(0),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    self.fail(key, error);
                    return None;
                }
            }
        }
    }

    /// The socket is broken: the connection is over.
    pub(crate) fn fail(&mut self, key: Key, error: Errno) {
        log::debug!("connection on descriptor {}: {error}", key.row);
        let reason = match error {
            Errno::ECONNRESET | Errno::EPIPE => CloseReason::Client,
            _ => CloseReason::Error,
        };
        self.mark_ending(key, reason);
        if self.is_in(key, Phase::Open) {
            self.enter(key, Phase::Lingering, self.now_ms);
        }
        self.end(key);
    }

    fn outbox_ran_empty(&mut self, key: Key) {
        self.set_frame_cut(key, false);
        self.ping_again(key);
        self.shut_when_flushed(key);
    }

    pub(super) fn shut_when_flushed(&mut self, key: Key) {
        let flushed = !self.has_output(key);
        let Some(record) = self.get_mut(key) else { return };
        let last = matches!(record.phase(), Phase::Refusing | Phase::Lingering);
        if last && flushed && record.flags.contains(Flags::READ_ENDED) {
            self.end(key);
        } else if last && flushed && !record.flags.contains(Flags::WRITE_SHUT) {
            record.flags.set(Flags::WRITE_SHUT, true);
            // A peer that is gone already makes this fail; reading then says so.
            let _ = shutdown(descriptor_of(key), Shutdown::Write);
        }
    }

    pub(crate) fn is_in(&self, key: Key, phase: Phase) -> bool {
        self.get(key).is_some_and(|record| record.phase() == phase)
    }
}
