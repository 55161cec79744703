//! When a connection has been quiet for too long, and what then. Timers are lazy: activity only writes a time
//! into the record; when the wheel fires, the true deadline is computed, and the timer armed again if it is
//! not reached.

use std::time::Duration;

use holdfast_shared::clock::milliseconds;
use holdfast_shared::ipc::settings::Settings;
use holdfast_shared::reason::{CloseReason, Rejection};
use holdfast_shared::sys::descriptor;
use holdfast_shared::table::{Flags, Phase, Record, Subscriber};
use tungstenite::protocol::frame::coding::{CloseCode, Control, OpCode};

use super::{Connections, Key, TableLinks, descriptor_of, message_rate};
use crate::websocket::frame;
use crate::websocket::refusal::{Refusal, Status};

/// The supervisor did not answer in time: it is not the client's fault, and may be over soon.
const NO_VERDICT: Refusal = Refusal {
    status: Status::ServiceUnavailable,
    rejection: Rejection::HandshakeTimeout,
    detail: "The server cannot admit anybody now",
    head_only: false,
};

/// What an open connection may come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// It has taken none of its queued output for too long.
    Stalled,
    /// Its message takes too long.
    Message,
    /// It has sent no message for too long.
    Idle,
    /// It gave no sign of life since the last ping.
    Pong,
    /// It is to be pinged.
    Ping,
}

impl Connections {
    /// Sets the connection's timer.
    pub(crate) fn arm(&mut self, key: Key, deadline_ms: u64) {
        self.wheel.arm(&mut TableLinks(&mut self.table), key.row, deadline_ms);
    }

    /// Arms the timer of an open connection.
    pub(crate) fn arm_open(&mut self, key: Key) {
        if let Some(record) = self.get(key) {
            let deadline_ms = self.deadline_ms(record);
            self.arm(key, deadline_ms);
        }
    }

    /// The next connection whose time has come, if there is one.
    pub(super) fn next_expired(&mut self) -> Option<(Key, Record)> {
        loop {
            let key = self.pop_expired()?;
            let Some(&record) = self.get(key) else { continue };
            if record.flags.contains(Flags::GIVEN) {
                // Armed again should it come back.
                continue;
            }
            let deadline_ms = self.deadline_ms(&record);
            if deadline_ms <= self.now_ms {
                return Some((key, record));
            }
            self.arm(key, deadline_ms);
        }
    }

    /// How long until a timer may fire.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        self.wheel.next_wakeup(self.now_ms)
    }

    /// Settings changed: every timer is computed anew, those of pings that are out too. Pings that would come later than the
    /// new interval are spread over it.
    pub(crate) fn rearm_all(&mut self, before: &Settings) {
        let rows: Vec<u32> = self.occupied_rows(0).collect();
        let (now_ms, interval_ms) = (self.now_ms, self.ping_interval_ms());
        let (pong_before_ms, pong_ms) = (milliseconds(before.pong_timeout), self.pong_timeout_ms());
        let rates = (before.messages_per_second, self.settings.messages_per_second);
        for row in rows {
            let Some(key) = self.key_at(row) else { continue };
            let delay_ms = self.random_ping_delay_ms();
            let Some(record) = self.get_mut(key) else { continue };
            if record.phase() == Phase::Open {
                let taken = message_rate::after_change(record.rate_taken(), rates.0, rates.1);
                record.set_rate_taken(taken);
            }
            if record.flags.contains(Flags::AWAITING_PONG) {
                record.ping_due_ms = record.ping_due_ms.saturating_sub(pong_before_ms) + pong_ms;
            } else if record.phase() == Phase::Open {
                record.ping_due_ms = ping_due_within(interval_ms, record.ping_due_ms, now_ms, delay_ms);
            }
            self.arm_open(key);
        }
    }

    /// Arms the timer of a connection that nobody listened to for a while, as none of its worker's did: what came due meanwhile
    /// must not all come at once now.
    pub(crate) fn arm_resumed(&mut self, key: Key) {
        if self.get(key).is_some_and(|record| record.ping_due_ms <= self.now_ms) {
            self.ping_again(key);
        } else {
            self.arm_open(key);
        }
    }

    pub(crate) fn handshake_deadline_ms(&self) -> u64 {
        self.now_ms + milliseconds(self.settings.handshake_timeout)
    }

    /// Until when a client waits for the verdict on its request: at the cap, for a place as well.
    pub(crate) fn verdict_deadline_ms(&self) -> u64 {
        self.handshake_deadline_ms() + milliseconds(self.settings.waiting_room_timeout)
    }

    pub(crate) fn close_deadline_ms(&self) -> u64 {
        self.now_ms + milliseconds(self.settings.close_timeout)
    }

    /// A random part of the ping interval: a crowd that came at once, or was resumed at once, is not pinged
    /// at once.
    pub(crate) fn random_ping_delay_ms(&self) -> u64 {
        fastrand::u64(1..=self.ping_interval_ms().max(1))
    }

    /// Anything from the client proves it alive.
    pub(crate) fn heard_from(&mut self, key: Key) {
        let now_ms = self.now_ms;
        if let Some(record) = self.get_mut(key) {
            record.seen_ms = now_ms;
        }
        self.is_alive(key);
    }

    /// No sign of life is awaited any more.
    pub(super) fn is_alive(&mut self, key: Key) {
        let (now_ms, pong_ms, ping_ms) = (self.now_ms, self.pong_timeout_ms(), self.ping_interval_ms());
        let Some(record) = self.get_mut(key) else { return };
        if record.flags.contains(Flags::AWAITING_PONG) {
            record.flags.set(Flags::AWAITING_PONG, false);
            // One interval after the last ping, not after the answer: so pings stay spread as they were.
            record.ping_due_ms = (record.ping_due_ms.saturating_sub(pong_ms) + ping_ms).max(now_ms + 1);
            // That may be before the deadline for the answer, which is what the wheel knows of.
            self.arm_open(key);
        }
    }

    /// A pong came, of a ping that was sent at `sent`. What no ping of ours can have said, or comes again, is not counted.
    pub(super) fn note_pong(&mut self, key: Key, sent: u32) {
        let elapsed_ms = stamp(self.now_ms).wrapping_sub(sent).into();
        let longest_ms = self.ping_interval_ms().saturating_add(self.pong_timeout_ms());
        let Some(record) = self.get_mut(key) else { return };
        if record.flags.contains(Flags::PONG_DUE) && elapsed_ms <= longest_ms {
            record.flags.set(Flags::PONG_DUE, false);
            self.table.counters().pong(Duration::from_millis(elapsed_ms));
        }
    }

    fn pop_expired(&mut self) -> Option<Key> {
        let row = self.wheel.pop_expired(&mut TableLinks(&mut self.table), self.now_ms)?;
        self.key_at(row)
    }

    fn pong_timeout_ms(&self) -> u64 {
        milliseconds(self.settings.pong_timeout)
    }

    /// Zero is never, as everywhere in the configuration; here that is the longest time there is.
    fn ping_interval_ms(&self) -> u64 {
        or_never(self.settings.ping_interval)
    }

    fn deadline_ms(&self, record: &Record) -> u64 {
        match record.phase() {
            // In phase `Open` the record's deadline is the application's timer.
            Phase::Open => self.next_due(record).0.min(record.deadline_ms),
            Phase::Free | Phase::Ended => u64::MAX,
            Phase::Handshake
            | Phase::AwaitingAdmission
            | Phase::Refusing
            | Phase::Closing
            | Phase::Lingering => record.deadline_ms,
        }
    }

    /// What an open connection comes to first, and when. While output waits for a client, what it takes of that shows whether
    /// it lives: a ping would wait behind it. While it is not read, it cannot be heard, and is not idle.
    fn next_due(&self, record: &Record) -> (u64, Due) {
        let heap = self.heap_state_of(record);
        let has_output = heap.is_some_and(|heap| !heap.outbox.is_empty());
        let is_read = heap.is_none_or(|heap| heap.unread_since_ms.is_none());
        let stalled = match heap {
            Some(heap) if has_output => heap.taken_ms.saturating_add(or_never(self.settings.stalled_timeout)),
            _ => u64::MAX,
        };
        let message = match heap {
            Some(heap) if is_read && heap.message_since_ms > 0 => {
                heap.message_since_ms.saturating_add(or_never(self.settings.message_timeout))
            }
            _ => u64::MAX,
        };
        // Only data frames count: a client that answers pings is alive, not active.
        // Nor is it idle if it is there to listen.
        let idle = match record.subscriber.contains(Subscriber::SUBSCRIBED) {
            true => u64::MAX,
            false => record.active_ms.saturating_add(or_never(self.settings.idle_timeout)),
        };
        let sign_of_life = match record.flags.contains(Flags::AWAITING_PONG) {
            true => (record.ping_due_ms, Due::Pong),
            false if self.settings.ping_interval.is_zero() => (u64::MAX, Due::Ping),
            false => (record.ping_due_ms, Due::Ping),
        };
        [
            (stalled, Due::Stalled),
            (message, Due::Message),
            (if is_read { idle } else { u64::MAX }, Due::Idle),
            if has_output { (u64::MAX, Due::Ping) } else { sign_of_life },
        ]
        .into_iter()
        .min_by_key(|&(due_ms, _)| due_ms)
        .unwrap_or((u64::MAX, Due::Ping))
    }

    pub(super) fn expire(&mut self, key: Key, record: &Record) {
        match record.phase() {
            Phase::Free | Phase::Ended => {}
            Phase::Handshake => self.refuse(key, &Refusal::admission(Rejection::HandshakeTimeout)),
            // Gone, most likely: no verdict came while its answer was waited for.
            Phase::AwaitingAdmission if record.flags.contains(Flags::READ_ENDED) => self.end(key),
            Phase::AwaitingAdmission => {
                self.has_withdrawn = true;
                self.refuse(key, &NO_VERDICT);
            }
            Phase::Refusing | Phase::Closing | Phase::Lingering => {
                if usize::from(record.ending) == CloseReason::SlowReader.index() {
                    // It does not read its close frame either. A failure leaves it to the kernel's patience.
                    let _ = descriptor::with(descriptor_of(key), descriptor::reset_on_close);
                }
                self.end(key);
            }
            Phase::Open => self.expire_open(key, self.next_due(record).1),
        }
    }

    fn expire_open(&mut self, key: Key, due: Due) {
        match due {
            Due::Stalled => self.close_if_stalled(key),
            Due::Message => self.close_unfinished(key),
            Due::Idle => self.begin_close(key, CloseCode::Normal, "Idle timeout", CloseReason::IdleTimeout),
            Due::Pong => {
                // It has not answered; it will hardly answer a close frame, but may still read it.
                self.begin_close(key, CloseCode::Away, "Ping timeout", CloseReason::PingTimeout);
                self.end(key);
            }
            Due::Ping => self.ping(key),
        }
    }

    /// It is in the middle of a message, so it could not answer a close frame with its own.
    fn close_unfinished(&mut self, key: Key) {
        if let Some(heap) = self.heap_state(key) {
            (heap.engine, heap.message_since_ms) = (None, 0);
        }
        let (code, reason) = (CloseCode::Policy, CloseReason::MessageTimeout);
        self.finish_close(key, Some(code), "Message timeout", reason);
    }

    fn ping(&mut self, key: Key) {
        let due_ms = self.now_ms + self.pong_timeout_ms();
        if let Some(record) = self.get_mut(key) {
            record.flags.set(Flags::AWAITING_PONG.union(Flags::PONG_DUE), true);
            record.ping_due_ms = due_ms;
        }
        self.arm_open(key);
        let mut ping = Vec::new();
        frame::append_frame(&mut ping, OpCode::Control(Control::Ping), &stamp(self.now_ms).to_be_bytes());
        self.write(key, &ping);
    }
}

/// The time as pings carry it, so that their pongs say when they were sent.
fn stamp(now_ms: u64) -> u32 {
    u32::try_from(now_ms & u64::from(u32::MAX)).unwrap_or_default()
}

fn or_never(duration: Duration) -> u64 {
    if duration.is_zero() { u64::MAX / 2 } else { milliseconds(duration) }
}

/// When a ping is due that was due at `due_ms`, now that the interval is `interval_ms`. Only what would come too
/// late is drawn anew: the earlier of two random times, reload after reload, would bring all pings together.
fn ping_due_within(interval_ms: u64, due_ms: u64, now_ms: u64, random_delay_ms: u64) -> u64 {
    if due_ms > now_ms.saturating_add(interval_ms) { now_ms.saturating_add(random_delay_ms) } else { due_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_000_000;

    /// The mean time until a ping after so many reloads, of connections whose pings were spread over
    /// `before_ms`.
    fn mean_after(reloads: usize, before_ms: u64, interval_ms: u64) -> u64 {
        let mut random = fastrand::Rng::with_seed(7);
        let mut dues: Vec<_> = (0..10_000).map(|_| NOW_MS + random.u64(1..=before_ms)).collect();
        for _ in 0..reloads {
            for due_ms in &mut dues {
                *due_ms = ping_due_within(interval_ms, *due_ms, NOW_MS, random.u64(1..=interval_ms));
                assert!((NOW_MS..=NOW_MS + interval_ms).contains(due_ms));
            }
        }
        dues.iter().map(|due_ms| due_ms - NOW_MS).sum::<u64>() / dues.len() as u64
    }

    #[test]
    fn reloads_leave_pings_spread_over_the_interval() {
        for (before_ms, interval_ms) in [(30_000, 30_000), (600_000, 30_000)] {
            let mean_ms = mean_after(50, before_ms, interval_ms);
            assert!((13_500..16_500).contains(&mean_ms), "{mean_ms} ms");
        }
        let longer_ms = mean_after(50, 30_000, 600_000);
        assert!((13_500..16_500).contains(&longer_ms), "{longer_ms} ms");
    }
}
