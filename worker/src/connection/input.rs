//! Bytes from clients: requests while a connection is on its way in, frames while it is open, nothing of interest after that.
//! Parsing is `websocket`'s; here is what follows from it.

use std::ops::ControlFlow;

use holdfast_shared::reason::{CloseReason, Rejection};
use holdfast_shared::table::{Flags, Phase, Record};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tungstenite::protocol::frame::coding::Control;

use crate::app::Replies;
use crate::connection::Key;
use crate::connection::timers::NO_VERDICT;
use crate::event_loop::Worker;
use crate::websocket::engine::{Engine, Event};
use crate::websocket::handshake::{self, Progress, RequestReader, Upgrade};
use crate::websocket::refusal::{Health, Refusal};

/// Reads of one connection in one turn; one with more to read waits for the others.
const READS_PER_TURN: usize = 16;

/// What a read brought.
enum Read {
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

impl Worker {
    /// The socket has bytes, or its end.
    pub(crate) fn read(&mut self, key: Key, read_closed: bool) {
        for _ in 0..READS_PER_TURN {
            let Some(phase) = self.connections.get(key).map(|record| record.phase()) else { return };
            if phase == Phase::Parked {
                return self.read_later(key, read_closed);
            }
            match self.receive(key) {
                Read::Last(length) => {
                    self.take_bytes(key, phase, length);
                    // A short read emptied the socket, unless the end was announced: that makes no new event.
                    if !read_closed {
                        return;
                    }
                }
                Read::Some(length) => self.take_bytes(key, phase, length),
                Read::End => return self.read_end(key),
                Read::Nothing | Read::Failed => return,
            }
        }
        self.unread.push_back((key, read_closed));
    }

    /// What a parked client sends stays in the kernel until the verdict. If it is gone there is nothing to wait for.
    fn read_later(&mut self, key: Key, read_closed: bool) {
        if read_closed {
            self.connections.end(key);
        } else if let Some(record) = self.connections.get_mut(key) {
            record.flags.set(Flags::INPUT_WAITS, true);
        }
    }

    fn receive(&mut self, key: Key) -> Read {
        loop {
            match recv(key.descriptor(), &mut self.scratch, MsgFlags::empty()) {
                Ok(0) => return Read::End,
                Ok(length) => {
                    self.connections.table.counters().bytes_received += length as u64;
                    return if length < self.scratch.len() { Read::Last(length) } else { Read::Some(length) };
                }
                Err(Errno::EAGAIN) => return Read::Nothing,
                Err(Errno::EINTR) => {}
                Err(error) => {
                    self.connections.fail(key, error);
                    return Read::Failed;
                }
            }
        }
    }

    fn take_bytes(&mut self, key: Key, phase: Phase, length: usize) {
        // The scratch buffer leaves the worker for the time of this call, so that both can be borrowed.
        let mut scratch = std::mem::take(&mut self.scratch);
        match phase {
            Phase::Handshake => self.take_request(key, &scratch[..length]),
            Phase::Open | Phase::Closing => self.take_frames(key, &mut scratch[..length]),
            Phase::Free | Phase::Parked | Phase::Refusing | Phase::Lingering => {}
        }
        self.scratch = scratch;
    }

    fn read_end(&mut self, key: Key) {
        // End of file without a closing handshake, or after one: either way it was the client who left, if the connection
        // is still open. Queued output is dropped: nobody reads it.
        self.connections.mark_ending(key, CloseReason::Client);
        self.connections.end(key);
    }

    fn take_request(&mut self, key: Key, bytes: &[u8]) {
        let Some(record) = self.connections.get(key) else { return };
        let peer = record.address();
        // A request that comes in one piece is read where it lies; one that comes in several is gathered.
        let (mut gathered, mut reader) = match self.connections.volatile(key) {
            Some(volatile) => (std::mem::take(&mut volatile.request), std::mem::take(&mut volatile.reader)),
            None => (Vec::new(), RequestReader::default()),
        };
        let request = if gathered.is_empty() {
            bytes
        } else {
            gathered.extend_from_slice(bytes);
            &gathered
        };
        match reader.read(request, peer, &self.policy) {
            Progress::Incomplete => self.keep_request(key, request.to_vec(), reader),
            Progress::Upgrade(upgrade) => {
                if let Some(frames) = request.get(upgrade.length..).filter(|frames| !frames.is_empty()) {
                    self.keep_request(key, frames.to_vec(), RequestReader::default());
                }
                self.park(key, &upgrade);
            }
            Progress::Health { head_only, .. } => {
                let response = self.health().response(head_only);
                self.connections.respond(key, &response);
            }
            Progress::Refused(refusal) => self.connections.refuse(key, &refusal),
        }
    }

    fn keep_request(&mut self, key: Key, request: Vec<u8>, reader: RequestReader) {
        if let Some(volatile) = self.connections.volatile_or_new(key) {
            volatile.request = request;
            volatile.reader = reader;
        }
    }

    fn health(&self) -> Health {
        if self.drain.is_some() {
            Health::Draining
        } else if self.cluster_full {
            Health::Full
        } else {
            Health::Ok
        }
    }

    /// The request is valid: asks the supervisor, and waits.
    fn park(&mut self, key: Key, upgrade: &Upgrade) {
        if self.drain.is_some() {
            return self.connections.refuse(key, &Refusal::admission(Rejection::Draining));
        }
        if self.link.is_none() {
            return self.connections.refuse(key, &NO_VERDICT);
        }
        let Some(record) = self.connections.get_mut(key) else { return };
        record.set_address(upgrade.address);
        record.scratch = AcceptKey::from(upgrade).0;
        let deadline_ms = self.connections.handshake_deadline_ms();
        self.connections.enter(key, Phase::Parked, deadline_ms);
        self.admission.ask(key, upgrade.address, self.now);
    }

    /// The supervisor lets this client in.
    pub(crate) fn admit(&mut self, key: Key) {
        let Some(&Record { scratch: accept, flags, .. }) = self.connections.get(key) else { return };
        let input_waits = flags.contains(Flags::INPUT_WAITS);
        self.connections.set_busy(key);
        let now_ms = self.connections.now_ms;
        let ping_due_ms = now_ms + self.connections.random_ping_delay_ms();
        if let Some(record) = self.connections.get_mut(key) {
            record.scratch = [0; 32];
            record.flags.set(Flags::INPUT_WAITS, false);
            record.seen_ms = now_ms;
            record.active_ms = now_ms;
            record.ping_due_ms = ping_due_ms;
        }
        self.connections.mark_admitted(key);
        self.connections.enter(key, Phase::Open, u64::MAX);
        self.connections.arm_open(key);
        handshake::write_switching(&mut self.out, AcceptKey(accept).as_str());
        self.connections.write(key, &self.out);
        self.out.clear();
        let glued = self.connections.volatile(key).map(|volatile| std::mem::take(&mut volatile.request));
        if let Some(mut glued) = glued.filter(|glued| !glued.is_empty()) {
            self.take_frames(key, &mut glued);
        }
        // Frames that came while it was parked made their event then; none will come again for them.
        if input_waits {
            self.read(key, false);
        }
        self.connections.settle(key);
    }

    fn take_frames(&mut self, key: Key, bytes: &mut [u8]) {
        self.connections.heard_from(key);
        let mut kept = self.connections.volatile(key).and_then(|volatile| volatile.engine.take());
        let mut fresh = Engine::default();
        let engine = kept.as_deref_mut().unwrap_or(&mut fresh);
        let closing = self.connections.is_in(key, Phase::Closing);
        let mut close = None;
        let mut received = 0;
        let mut replies = Replies::new(&mut self.connections, key, &mut self.out);
        let app = &mut self.app;
        let result = engine.feed(bytes, &self.engine_limits, &mut |event| {
            match event {
                // After our close frame what the client says no longer matters, but for its own.
                Event::Message(_) | Event::Ping(_) | Event::Pong(_) if closing => {}
                Event::Message(message) => {
                    received += 1;
                    app.message(message, &mut replies);
                }
                Event::Ping(payload) => replies.control(Control::Pong, payload),
                Event::Pong(_) => {}
                Event::Close(frame) => close = Some(frame.map(|(code, _)| code)),
            }
            ControlFlow::Continue(())
        });
        let sent = replies.finish();
        self.count_messages(key, received, sent);
        match (result, close) {
            (Ok(()), None) if engine.is_idle() => {}
            (Ok(()), None) => {
                if let Some(volatile) = self.connections.volatile_or_new(key) {
                    volatile.engine = Some(kept.unwrap_or_else(|| Box::new(fresh)));
                }
            }
            (Ok(()), Some(code)) => self.connections.finish_close(key, code, "", CloseReason::Client),
            (Err(violation), _) => {
                log::debug!("connection on descriptor {}: {violation}", key.row);
                self.connections.finish_close(
                    key,
                    Some(violation.code()),
                    violation.text(),
                    violation.reason(),
                );
            }
        }
    }

    fn count_messages(&mut self, key: Key, received: u64, sent: u64) {
        let counters = self.connections.table.counters();
        counters.messages_received += received;
        counters.messages_sent += sent;
        let now_ms = self.connections.now_ms;
        if let Some(record) = self.connections.get_mut(key)
            && received > 0
        {
            record.messages_received += received;
            record.active_ms = now_ms;
        }
    }
}

/// The accept key as it waits in the record for the verdict: 28 characters of base64, padded with zeros.
struct AcceptKey([u8; 32]);

impl AcceptKey {
    fn as_str(&self) -> &str {
        let length = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

impl From<&Upgrade> for AcceptKey {
    fn from(upgrade: &Upgrade) -> Self {
        let mut bytes = [0; 32];
        for (byte, character) in bytes.iter_mut().zip(upgrade.accept.bytes()) {
            *byte = character;
        }
        Self(bytes)
    }
}
