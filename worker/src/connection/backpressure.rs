//! Backpressure. A client that leaves too much of its output lying is not read, so that what it goes on sending waits in the
//! kernels of both sides and TCP slows it down: nothing is lost, and nobody else waits. Owns when reading stops and goes on,
//! what is not held against a client meanwhile, and who has stalled. Reads and writes nothing itself.
//!
//! Readiness is edge-triggered, and no edge comes for bytes that were left in the kernel. So whoever is to be read again is put
//! into the list of those whom no edge is waited for.

use holdfast_shared::table::Phase;

use super::{Connections, Key, message_rate};

impl Connections {
    /// Is this open connection not to be read now? More than half of `max_queued_output` waits for the client, or a quarter
    /// still does since then.
    pub(super) fn holds_back(&mut self, key: Key) -> bool {
        let (now_ms, most) = (self.now_ms, self.settings.max_queued_output / 2);
        let Some(heap) = self.heap_state(key) else { return false };
        if heap.unread_since_ms.is_none() && heap.outbox.len() as u64 > most {
            heap.unread_since_ms = Some(now_ms);
        }
        heap.unread_since_ms.is_some()
    }

    /// Output waits for a client for whom none did.
    pub(super) fn note_first_queued(&mut self, key: Key) {
        let now_ms = self.now_ms;
        if let Some(heap) = self.heap_state(key) {
            heap.taken_ms = now_ms;
        }
        // Sooner, it may be, than anything that the wheel knows of.
        self.arm_open(key);
    }

    /// The kernel took some of the queued output.
    pub(super) fn note_taken(&mut self, key: Key) {
        let (now_ms, least) = (self.now_ms, self.settings.max_queued_output / 4);
        let Some(heap) = self.heap_state(key) else { return };
        heap.taken_ms = now_ms;
        if heap.outbox.len() as u64 <= least && heap.unread_since_ms.is_some() {
            self.read_on(key);
            self.arm_open(key);
        }
    }

    /// Reads a client again that was not read. It could not be heard meanwhile, so its times stood still.
    pub(super) fn read_on(&mut self, key: Key) {
        let now_ms = self.now_ms;
        let per_second = self.settings.messages_per_second;
        let Some(heap) = self.heap_state(key) else { return };
        let Some(since_ms) = heap.unread_since_ms.take() else { return };
        let unread_ms = now_ms.saturating_sub(since_ms);
        if heap.message_since_ms > 0 {
            heap.message_since_ms += unread_ms;
        }
        if let Some(record) = self.get_mut(key) {
            record.active_ms += unread_ms;
            let taken = message_rate::after_pause(record.rate_taken(), unread_ms, per_second);
            record.set_rate_taken(taken);
        }
        self.queue_read(key);
    }

    /// All of the client's output has left, and pings are sent again. A pong that is awaited may lie unread, and a ping that is
    /// overdue is drawn anew: those who were held up together are not pinged together.
    pub(super) fn ping_again(&mut self, key: Key) {
        if !self.is_in(key, Phase::Open) {
            return;
        }
        let (now_ms, delay_ms) = (self.now_ms, self.random_ping_delay_ms());
        self.is_alive(key);
        if let Some(record) = self.get_mut(key)
            && record.ping_due_ms <= now_ms + 1
        {
            record.ping_due_ms = now_ms + delay_ms;
        }
        self.arm_open(key);
    }

    /// The client has taken nothing for `timeouts.stalled`, as far as is known. The kernel says that there is room only when a
    /// third of its buffer is free (`sk_stream_is_writable`), so a slow client may have taken some all the same: it is tried.
    pub(super) fn close_if_stalled(&mut self, key: Key) {
        self.flush(key);
        let now_ms = self.now_ms;
        let has_stalled =
            self.heap_state(key).is_some_and(|heap| !heap.outbox.is_empty() && heap.taken_ms < now_ms);
        if has_stalled {
            self.close_slow_reader(key);
        } else {
            self.arm_open(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::time::Duration;

    use holdfast_shared::reason::CloseReason;

    use super::super::Clients;
    use super::super::tests::{Peer, clients};
    use super::*;

    const SECOND_MS: u64 = 1000;

    /// A masked message of 1000 bytes.
    fn message() -> Vec<u8> {
        [&[0x82, 0xfe, 0x03, 0xe8, 0, 0, 0, 0][..], &[7; 1000]].concat()
    }

    /// Sends messages for as long as the socket takes them, and reads none. Returns how many bytes it took.
    fn flood(clients: &mut Clients, peer: &mut Peer) -> usize {
        let messages = message().repeat(10_000);
        let mut sent = 0;
        loop {
            match peer.socket.write(&messages[sent..][..10_000]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return sent,
                Err(error) => panic!("{error}"),
            }
            clients.on_ready(peer.key, true, false, false);
            clients.continue_reading();
        }
    }

    /// Reads all that there is, and lets the server send and read on, until there is nothing more.
    fn read_all(clients: &mut Clients, peer: &mut Peer) -> usize {
        let (mut total, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            match peer.socket.read(&mut buffer) {
                Ok(0) => return total,
                Ok(count) => total += count,
                Err(_) if !clients.has_unread() && !clients.connections.has_output(peer.key) => return total,
                Err(_) => {}
            }
            clients.on_ready(peer.key, false, true, false);
            clients.continue_reading();
        }
    }

    fn pass(clients: &mut Clients, time_ms: u64) {
        clients.connections.now_ms += time_ms;
        clients.expire_timers();
        clients.continue_reading();
    }

    fn is_slow_reader(clients: &Clients, key: Key) -> bool {
        let reason = |ending| CloseReason::from_index(usize::from(ending));
        clients.connections.get(key).is_some_and(|record| {
            record.phase() == Phase::Lingering && reason(record.ending) == Some(CloseReason::SlowReader)
        })
    }

    #[test]
    fn a_client_that_reads_later_gets_every_answer_and_is_not_held_to_be_idle_or_dead_meanwhile() {
        let mut clients = clients();
        clients.connections.settings.idle_timeout = Duration::from_secs(10);
        clients.connections.settings.ping_interval = Duration::from_secs(5);
        clients.connections.settings.pong_timeout = Duration::from_secs(5);
        let mut peer = Peer::open(&mut clients, "nann");
        let sent = flood(&mut clients, &mut peer);
        let bound = clients.connections.settings.max_queued_output;
        let queued = clients.connections.queued_bytes();
        assert!((bound / 2..bound / 2 + 64 * 1024).contains(&queued), "{queued} bytes queued");
        assert!(!clients.has_unread(), "nothing is done for it until it reads");

        pass(&mut clients, 3600 * SECOND_MS);
        assert!(clients.connections.is_in(peer.key, Phase::Open));
        let whole = sent / message().len();
        assert_eq!(read_all(&mut clients, &mut peer), whole * (message().len() - 4), "answers lack the mask");
        assert!(clients.connections.is_in(peer.key, Phase::Open) && clients.connections.queued_bytes() == 0);

        // Its time goes on where it stood still.
        pass(&mut clients, 5 * SECOND_MS);
        assert!(clients.connections.is_in(peer.key, Phase::Open));
        clients.connections.get_mut(peer.key).unwrap().ping_due_ms = u64::MAX;
        pass(&mut clients, 6 * SECOND_MS);
        assert!(clients.connections.is_in(peer.key, Phase::Closing), "now it is idle");
    }

    #[test]
    fn a_client_that_takes_nothing_is_closed_and_any_byte_that_it_takes_begins_the_time_anew() {
        let mut clients = clients();
        clients.connections.settings.stalled_timeout = Duration::from_secs(30);
        let (mut slow, mut stalled) =
            (Peer::open(&mut clients, "nslow"), Peer::open(&mut clients, "nstalled"));
        flood(&mut clients, &mut slow);
        flood(&mut clients, &mut stalled);
        pass(&mut clients, 20 * SECOND_MS);
        // Nobody says that there is room now.
        let _ = slow.socket.read(&mut vec![0; 50_000]).unwrap();
        pass(&mut clients, 15 * SECOND_MS);
        assert!(clients.connections.is_in(slow.key, Phase::Open));
        assert!(is_slow_reader(&clients, stalled.key));
        pass(&mut clients, 29 * SECOND_MS);
        assert!(clients.connections.is_in(slow.key, Phase::Open));
        pass(&mut clients, 2 * SECOND_MS);
        assert!(is_slow_reader(&clients, slow.key));
    }

    #[test]
    fn what_is_pushed_to_a_client_beyond_the_bound_closes_it() {
        let mut clients = clients();
        let mut ann = Peer::open(&mut clients, "nann");
        let bob = Peer::open(&mut clients, "nbob");
        let id = clients.connections.get(bob.key).unwrap().id;
        let mut pushes = 0;
        while clients.connections.is_in(bob.key, Phase::Open) {
            assert!(ann.say(&mut clients, &format!("@{id}")).ends_with("sent"));
            pushes += 1;
        }
        assert!(pushes > 1000 && is_slow_reader(&clients, bob.key));
        let close_frame = 2 + 2 + "Slow reader".len() as u64;
        let most = clients.connections.settings.max_queued_output + close_frame;
        assert!(clients.connections.queued_bytes() <= most);
        assert!(ann.say(&mut clients, &format!("@{id}")).ends_with("gone"));
    }

    #[test]
    fn a_client_that_is_told_to_go_while_it_is_not_read_is_read_again() {
        let mut clients = clients();
        let mut peer = Peer::open(&mut clients, "nann");
        flood(&mut clients, &mut peer);
        assert!(!clients.has_unread());
        clients.tell_to_go(peer.key);
        assert!(clients.has_unread());
    }
}
