//! Bytes from clients, as far as they are bytes: how often a socket is read, and where to. What they say is
//! for `request` while a connection is on its way in, for `frames` while it is open, and for nobody after
//! that.

use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::{Flags, Phase};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::{Clients, Connections, Key, descriptor_of};

/// Reads of one connection in one turn; one with more to read waits for the others.
const READS_PER_TURN: usize = 8;

/// A verdict takes milliseconds, unless there is no supervisor or a queue before the cap.
const HALF_CLOSED_WAIT_MS: u64 = 1000;

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// This many bytes, and the socket is empty: they were fewer than fit.
    Last(usize),
    /// This many bytes; there may be more.
    Some(usize),
    /// Nothing for now.
    Nothing,
    /// The client will send no more.
    End,
    /// The connection is over.
    Failed,
}

impl Clients {
    /// The socket has bytes, or its end.
    pub(super) fn read(&mut self, key: Key, read_closed: bool) {
        for _ in 0..READS_PER_TURN {
            let Some(phase) = self.connections.get(key).map(|record| record.phase()) else { return };
            let read = match phase {
                Phase::AwaitingAdmission => return self.read_later(key, read_closed),
                Phase::Open if self.connections.holds_back(key) || self.connections.awaits_room(key) => {
                    return;
                }
                Phase::Handshake => self.read_request(key),
                Phase::Open | Phase::Closing => self.read_frames(key),
                Phase::Free | Phase::Refusing | Phase::Lingering | Phase::Ended => {
                    self.connections.receive(key, &mut self.scratch)
                }
            };
            match read {
                Read::Some(_) => {}
                // A short read emptied the socket, unless the end was announced: that makes no new event.
                Read::Last(_) if read_closed => {}
                Read::Last(_) | Read::Nothing | Read::Failed => return,
                Read::End => return self.read_end(key),
            }
        }
        self.connections.queue_read(key);
    }

    /// Goes on with those who had more to read than a turn allows, until their sockets are seen empty, and with those
    /// who were not read for a while.
    pub(crate) fn continue_reading(&mut self) {
        for _ in 0..self.connections.unread.len() {
            let Some(key) = self.connections.unread.pop_front() else { return };
            let Some(record) = self.connections.get_mut(key) else { continue };
            record.flags.set(Flags::READ_QUEUED, false);
            if record.flags.contains(Flags::GIVEN) {
                // Whoever has it now reads it from the beginning.
                continue;
            }
            record.flags.set(Flags::BUSY, true);
            // Whether the end was announced meanwhile does not matter: they are read until there is nothing
            // more.
            self.read(key, true);
            self.connections.settle(key);
        }
    }

    /// What a client that awaits admission sends stays in the kernel until the verdict. One that will send no more
    /// may still read its answer, or be gone: from here both look alike (RFC 9293, section 3.6), so it is waited
    /// for, and not for long.
    fn read_later(&mut self, key: Key, read_closed: bool) {
        let now_ms = self.connections.now_ms;
        let Some(record) = self.connections.get_mut(key) else { return };
        record.flags.set(Flags::INPUT_WAITS, true);
        if !read_closed || record.flags.contains(Flags::READ_ENDED) {
            return;
        }
        record.flags.set(Flags::READ_ENDED, true);
        record.deadline_ms = record.deadline_ms.min(now_ms + HALF_CLOSED_WAIT_MS);
        let deadline_ms = record.deadline_ms;
        self.connections.arm(key, deadline_ms);
        if let Err(error) = peek(key) {
            self.connections.fail(key, error);
        }
    }

    /// End of file. The client may still read, whether or not it has said goodbye: it gets what is queued for it, within
    /// the close deadline. If nothing is, it has just gone.
    fn read_end(&mut self, key: Key) {
        let connections = &mut self.connections;
        let Some(&record) = connections.get(key) else { return };
        let deadline_ms = match record.phase() {
            Phase::Open => connections.close_deadline_ms(),
            _ => record.deadline_ms,
        };
        let is_established = matches!(record.phase(), Phase::Open | Phase::Closing | Phase::Lingering);
        connections.mark_ending(key, CloseReason::Client);
        if is_established && connections.has_output(key) {
            connections.enter(key, Phase::Lingering, deadline_ms);
            if let Some(record) = connections.get_mut(key) {
                record.flags.set(Flags::READ_ENDED, true);
            }
        } else {
            connections.end(key);
        }
    }
}

/// Whether the connection still stands: a reset says so, and an end of file does not.
fn peek(key: Key) -> Result<(), Errno> {
    match recv(descriptor_of(key), &mut [0], MsgFlags::MSG_PEEK) {
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Connections {
    /// The connection is read in this turn or the next, whether or not the kernel says anything.
    pub(super) fn queue_read(&mut self, key: Key) {
        if let Some(record) = self.get_mut(key)
            && !record.flags.contains(Flags::READ_QUEUED)
        {
            record.flags.set(Flags::READ_QUEUED, true);
            self.unread.push_back(key);
        }
    }

    /// One read, into `buffer`.
    pub(super) fn receive(&mut self, key: Key, buffer: &mut [u8]) -> Read {
        loop {
            match recv(descriptor_of(key), buffer, MsgFlags::empty()) {
                Ok(0) => return Read::End,
                Ok(length) => {
                    self.table.counters().bytes_received += length as u64;
                    return if length < buffer.len() { Read::Last(length) } else { Read::Some(length) };
                }
                Err(Errno::EAGAIN) => return Read::Nothing,
                Err(Errno::EINTR) => {}
                Err(error) => {
                    self.fail(key, error);
                    return Read::Failed;
                }
            }
        }
    }
}
