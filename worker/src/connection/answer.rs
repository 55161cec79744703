//! What a request is answered with. The answer to a valid one is kept until the supervisor has decided: in its record, so
//! that it outlives the worker.

use std::time::Duration;

use data_encoding::BASE64;
use holdfast_shared::reason::Rejection;
use holdfast_shared::table::{Flags, Phase};
use tungstenite::protocol::frame::coding::CloseCode;

use super::{Connections, Key};
use crate::websocket::frame;
use crate::websocket::handshake::{Upgrade, asks_for_head, write_switching};
use crate::websocket::refusal::{Refusal, Status};

impl Connections {
    /// The request is valid, whatever will be decided about it.
    pub(super) fn keep_accept_key(&mut self, key: Key, upgrade: &Upgrade) {
        if let Some(record) = self.get_mut(key) {
            let bytes = BASE64.decode(upgrade.accept.as_bytes()).ok();
            record.accept_key = bytes.and_then(|bytes| bytes.try_into().ok()).unwrap_or_default();
        }
    }

    /// The answer will name this subprotocol. A long name is kept with what dies with a worker: then its client has to
    /// connect again.
    pub(super) fn keep_subprotocol(&mut self, key: Key, name: &str) {
        let is_kept = self.get_mut(key).is_some_and(|record| record.set_subprotocol(name));
        if !is_kept && let Some(heap) = self.heap_state_or_new(key) {
            heap.subprotocol = name.to_owned();
        }
    }

    /// Appends the answer that opens the connection, and forgets what was kept for it. Says whether there was
    /// one: not before the request was valid.
    pub(super) fn take_switching(&mut self, key: Key, out: &mut Vec<u8>) -> bool {
        let long = self.heap_state(key).map(|heap| std::mem::take(&mut heap.subprotocol));
        let Some(record) = self.get_mut(key) else { return false };
        let subprotocol = record.subprotocol().or(long).unwrap_or_default();
        let accept_key = std::mem::take(&mut record.accept_key);
        record.flags.set(Flags::SUBPROTOCOL, false);
        // A hash is not zero, and that of an answer less than any.
        let is_kept = accept_key != [0; 20];
        if is_kept {
            write_switching(out, self.date(), &BASE64.encode(&accept_key), &subprotocol);
        }
        is_kept
    }

    /// Turns a client away with a complete answer, which it can read: the write half is shut behind it, the
    /// read half drained, for closing a socket with unread bytes sends a reset that destroys what the
    /// client has not read yet.
    pub(crate) fn refuse(&mut self, key: Key, refusal: &Refusal) {
        self.table.counters().reject(refusal.rejection);
        let retry_after = match refusal.status {
            Status::ServiceUnavailable | Status::TooManyRequests => Some(self.jittered_retry_after()),
            _ => None,
        };
        let mut answer = Vec::new();
        let is_opened = self.settings.refuses_with_close
            // A request that is wrong, or that an application does not want, is told so in HTTP.
            && refusal.rejection != Rejection::BadRequest
            && self.take_switching(key, &mut answer);
        if is_opened {
            frame::append_close(&mut answer, CloseCode::Again, &refusal.close_reason(retry_after));
        } else {
            // A HEAD request that was never whole, such as one that took too long, gets no body either.
            let asked_for_head = self.heap_state(key).is_some_and(|heap| asks_for_head(&heap.request));
            let refusal = Refusal { head_only: refusal.head_only || asked_for_head, ..*refusal };
            answer = refusal.response(self.date(), retry_after);
        }
        self.respond(key, &answer);
    }

    /// Sends a complete answer and shuts the write half behind it.
    pub(crate) fn respond(&mut self, key: Key, answer: &[u8]) {
        self.enter(key, Phase::Refusing, self.close_deadline_ms());
        self.write(key, answer);
        self.shut_when_flushed(key);
    }

    /// Half less to half more than configured, so that a refused crowd does not come back in one second.
    fn jittered_retry_after(&self) -> Duration {
        self.settings.retry_after.mul_f64(0.5 + fastrand::f64())
    }
}
