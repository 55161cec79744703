//! The budget of a worker: how much its connections may have on the heap together, queued output and half of what
//! they are sending. Above it the largest are closed, until a sixteenth of it is free: so they are looked for
//! seldom, and only among those that have anything there.

use std::cmp::Reverse;

use holdfast_shared::reason::{CloseReason, Rejection};
use holdfast_shared::sys::memory;
use holdfast_shared::table::{Flags, Phase};
use tungstenite::protocol::frame::coding::CloseCode;

use super::{Connections, HeapState, Key};
use crate::websocket::refusal::Refusal;

/// What is held, and what became of those that held most.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// Bytes that all heap states take.
    held: u64,
    /// Connections closed since that was last said.
    closed: u32,
    /// Some are being closed: what that makes is not looked at.
    is_closing: bool,
}

impl HeapState {
    fn size(&self) -> usize {
        let engine = self.engine.as_ref().map_or(0, |engine| engine.size());
        size_of::<Self>()
            + self.request.capacity()
            + self.subprotocol.capacity()
            + engine
            + self.outbox.capacity()
    }
}

impl Connections {
    /// The heap state of `key` has changed. If all of them take too much now, the largest are closed; this one may be
    /// among them.
    pub(super) fn note_heap_state(&mut self, key: Key) {
        let Some(heap) = self.heap_state(key) else { return };
        let now = heap.size();
        let before = std::mem::replace(&mut heap.held, now);
        self.budget.held = (self.budget.held + now as u64).saturating_sub(before as u64);
        let most = self.settings.max_buffered_total;
        if most > 0 && self.budget.held > most && !self.budget.is_closing {
            self.close_largest(most - most / 16);
        }
    }

    /// A heap state is gone.
    pub(super) fn note_dropped(&mut self, heap: &HeapState) {
        self.budget.held = self.budget.held.saturating_sub(heap.held as u64);
    }

    /// Says how many were closed since the last call.
    pub(super) fn report_budget(&mut self) {
        let closed = std::mem::take(&mut self.budget.closed);
        if closed > 0 {
            let most = self.settings.max_buffered_total;
            log::warn!(
                "closed {closed} connections with the largest backlogs: more than {most} bytes were waiting"
            );
        }
    }

    fn close_largest(&mut self, target: u64) {
        let mut largest: Vec<(usize, u32)> =
            self.heap_states.iter().map(|(_, heap)| (heap.held, heap.row)).collect();
        largest.sort_unstable_by_key(|&(held, _)| Reverse(held));
        self.budget.is_closing = true;
        for (_, row) in largest {
            if self.budget.held <= target {
                break;
            }
            if let Some(key) = self.key_at(row) {
                self.close_for_room(key);
            }
        }
        self.budget.is_closing = false;
        // What they held lies between what others hold, and the budget is of memory, not of what is in use.
        memory::give_back_freed();
    }

    fn close_for_room(&mut self, key: Key) {
        let Some(record) = self.get(key) else { return };
        let (phase, flags) = (record.phase(), record.flags);
        if flags.intersects(Flags::GIVEN.union(Flags::TAKEN).union(Flags::RESUMING)) {
            return;
        }
        self.budget.closed += 1;
        // One in whose event this happens is settled when that is over.
        let is_busy = flags.contains(Flags::BUSY);
        self.set_busy(key);
        match phase {
            Phase::Open => self.close_without_backlog(key),
            Phase::Handshake | Phase::AwaitingAdmission => {
                self.has_withdrawn |= phase == Phase::AwaitingAdmission;
                self.refuse(key, &Refusal::admission(Rejection::PendingHandshakes));
                self.end(key);
            }
            Phase::Refusing | Phase::Closing | Phase::Lingering => self.end(key),
            Phase::Free | Phase::Ended => {}
        }
        if !is_busy {
            self.settle(key);
        }
    }

    /// As for a slow reader, but what is queued is dropped, except for the rest of the frame of which the client
    /// has a part.
    fn close_without_backlog(&mut self, key: Key) {
        self.mark_ending(key, CloseReason::SlowReader);
        self.enter(key, Phase::Lingering, self.close_deadline_ms());
        let Some(heap) = self.heap_state(key) else { return };
        let before = heap.outbox.len();
        let is_whole = heap.outbox.keep_frame();
        let dropped = before - heap.outbox.len();
        (heap.request, heap.engine) = (Vec::new(), None);
        self.queued_bytes -= dropped as u64;
        self.note_heap_state(key);
        if is_whole {
            self.write_close(key, CloseCode::Again, "Slow reader");
            self.note_heap_state(key);
        } else {
            // Where the frame ends that the client has a part of is not known: nothing more can be said.
            self.end(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::IpAddr;
    use std::os::unix::net::UnixStream;

    use holdfast_shared::id::SlotId;
    use holdfast_shared::ipc::settings::Settings;
    use holdfast_shared::sys::mapping;
    use holdfast_shared::table::{self, Table};
    use std::os::fd::AsFd;
    use tungstenite::protocol::frame::coding::{Data, OpCode};

    use super::*;
    use crate::websocket::frame;

    const ROWS: u32 = 1024;
    const MIB: usize = 1 << 20;

    fn connections(max_buffered_total: u64) -> Connections {
        let memory = mapping::create("table", table::size(ROWS)).unwrap();
        let table = Table::format(memory.as_fd(), SlotId(0), ROWS).unwrap();
        let close_timeout = std::time::Duration::from_secs(5);
        let settings = Settings {
            max_buffered_total,
            max_queued_output: 64 * MIB as u64,
            close_timeout,
            ..Settings::default()
        };
        Connections::new(SlotId(0), table, settings, 0)
    }

    /// An established connection, and the client.
    fn open(connections: &mut Connections) -> (Key, UnixStream) {
        let (ours, client) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        let key = connections.begin(ours.into(), IpAddr::from([127, 0, 0, 1])).unwrap();
        connections.mark_admitted(key);
        connections.enter(key, Phase::Open, u64::MAX);
        (key, client)
    }

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::append_frame(&mut bytes, OpCode::Data(Data::Binary), &vec![7; length]);
        bytes
    }

    /// All that the client gets.
    fn read_all(connections: &mut Connections, key: Key, client: &mut UnixStream) -> Vec<u8> {
        let (mut bytes, mut buffer) = (Vec::new(), vec![0; MIB]);
        loop {
            match client.read(&mut buffer) {
                Ok(0) => return bytes,
                Ok(length) => bytes.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock && connections.has_output(key) => {
                    connections.flush(key);
                }
                Err(_) => return bytes,
            }
        }
    }

    #[test]
    fn the_largest_backlog_goes_first_and_its_client_is_told_between_two_frames() {
        let mut connections = connections(8 * MIB as u64);
        let mut clients: Vec<(Key, UnixStream)> = (0..4).map(|_| open(&mut connections)).collect();
        // The first frame of each is cut by the kernel, whose buffers are small; the others wait whole.
        for ((key, _), frames) in clients.iter().zip([1, 4, 2, 1]) {
            for _ in 0..frames {
                connections.write(*key, &message(MIB));
            }
        }
        let phase = |connections: &Connections, key: Key| connections.get(key).map(|record| record.phase());
        let phases: Vec<_> = clients.iter().map(|(key, _)| phase(&connections, *key)).collect();
        let [open, closing] = [Some(Phase::Open), Some(Phase::Lingering)];
        assert_eq!(phases, [open, closing, open, open], "{} bytes", connections.budget.held);
        assert!(connections.budget.held <= 8 * MIB as u64);

        let (key, client) = &mut clients[1];
        let bytes = read_all(&mut connections, *key, client);
        let first = message(MIB);
        assert!(bytes.starts_with(&first), "the frame of which it had a part is whole");
        assert_eq!(bytes[first.len()..][..4], [0x88, 2 + 11, 0x03, 0xf5], "1013 follows");
        let (key, client) = &mut clients[2];
        let bytes = read_all(&mut connections, *key, client);
        assert_eq!(bytes.len(), 2 * first.len(), "others get all of theirs");
        assert_eq!(connections.table.counters().closed.iter().sum::<u64>(), 0);
        for (key, _) in &clients {
            connections.end(*key);
        }
        assert_eq!((connections.budget.held, connections.queued_bytes()), (0, 0));
    }

    #[test]
    fn halves_of_messages_count_too() {
        let mut connections = connections(MIB as u64);
        let (key, _client) = open(&mut connections);
        connections.set_busy(key);
        connections.heap_state_or_new(key).unwrap().request = vec![0; 2 * MIB];
        connections.settle(key);
        assert!(connections.is_in(key, Phase::Lingering));
        assert!(connections.budget.held < 1000, "{} bytes", connections.budget.held);
    }
}
