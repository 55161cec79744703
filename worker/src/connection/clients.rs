//! All clients of a worker: its connections, the applications that serve them, and the buffers they share. What
//! becomes of readiness, of time and of verdicts is decided here; the loop brings them.

use holdfast_shared::ipc::message::CloseTarget;
use holdfast_shared::ipc::settings::Settings;
use holdfast_shared::level::Level;
use holdfast_shared::reason::CloseReason;
use holdfast_shared::table::{Flags, Phase, Record};
use tungstenite::protocol::frame::coding::CloseCode;

use super::client::Client;
use super::ignored_proxies::IgnoredProxies;
use super::{Connections, Key};
use crate::app::{App, Apps, Context, Program};
use crate::websocket::assembly::Assembly;
use crate::websocket::client_address::ProxyPolicy;
use crate::websocket::handshake::HandshakePolicy;
use crate::websocket::refusal::Availability;

/// One read takes at most this much; larger messages take several.
const SCRATCH_SIZE: usize = 64 * 1024;

/// Timers handled in one turn; more wait for the next, which then comes at once.
const EXPIRIES_PER_TURN: usize = 1024;

/// All clients, and what serving them takes.
pub(crate) struct Clients {
    pub(crate) connections: Connections,
    /// What the supervisor has said that holds, and at which level of the server.
    configured: Settings,
    level: Level,
    /// Whether newcomers are welcome.
    pub(crate) availability: Availability,
    pub(super) apps: Apps,
    pub(super) policy: HandshakePolicy,
    pub(super) ignored_proxies: IgnoredProxies,
    /// What messages in several pieces are put together with.
    pub(super) assembly: Assembly,
    /// Connections whose admission is to be asked for.
    pub(super) asking: Vec<Key>,
    /// Where reads go.
    pub(super) scratch: Vec<u8>,
    /// Where replies are gathered, so that a read is answered by one write.
    pub(super) out: Vec<u8>,
}

impl Clients {
    pub(crate) fn new(connections: Connections, program: Program) -> Self {
        Self {
            configured: connections.settings.clone(),
            level: Level::Normal,
            availability: Availability::Ok,
            apps: Apps::new(program),
            policy: policy(&connections.settings),
            ignored_proxies: IgnoredProxies::default(),
            assembly: Assembly::new(max_message_size(&connections.settings)),
            connections,
            asking: Vec::new(),
            scratch: vec![0; SCRATCH_SIZE],
            out: Vec::with_capacity(SCRATCH_SIZE),
        }
    }

    /// Other settings hold from now on.
    pub(crate) fn configure(&mut self, settings: Settings) {
        self.configured = settings;
        self.policy = policy(&self.configured);
        self.put_in_force();
    }

    /// The server is fuller, or less full, than it was.
    pub(crate) fn set_level(&mut self, level: Level) {
        if std::mem::replace(&mut self.level, level) != level {
            self.put_in_force();
        }
    }

    fn put_in_force(&mut self) {
        let settings = self.configured.at(self.level);
        if settings != self.connections.settings {
            self.assembly.max_message_size = max_message_size(&settings);
            let before = std::mem::replace(&mut self.connections.settings, settings);
            self.connections.rearm_all(&before);
        }
    }

    /// What new clients are told of the level, if they are.
    pub(super) fn notice(&self) -> Option<String> {
        let degraded = self.configured.degraded.as_ref().filter(|degraded| degraded.notify_clients)?;
        (self.level >= Level::Degraded).then(|| {
            let Settings { max_message_size, messages_per_second, ping_interval, .. } =
                &self.connections.settings;
            format!(
                r#"{{"type":"system","level":"{}","message":"The server is near its limits","limitations":{{"max_message_size":{max_message_size},"messages_per_second":{messages_per_second},"ping_interval_seconds":{},"broadcast":{}}}}}"#,
                self.level,
                ping_interval.as_secs_f64(),
                degraded.allow_broadcast
            )
        })
    }

    /// The socket of `key` has bytes, takes bytes, or ended.
    pub(crate) fn on_ready(&mut self, key: Key, readable: bool, writable: bool, read_closed: bool) {
        let Some(record) = self.connections.get_mut(key) else { return };
        if record.flags.contains(Flags::GIVEN) {
            return;
        }
        record.flags.set(Flags::BUSY, true);
        let may_have_output = record.heap_state != 0;
        let is_queued = record.flags.contains(Flags::READ_QUEUED);
        if may_have_output && writable {
            self.connections.flush(key);
        }
        if readable && !is_queued {
            self.read(key, read_closed);
        }
        if writable && self.connections.lags(key) {
            self.connections.catch_up(key);
        }
        self.connections.settle(key);
    }

    /// Those whose requests came since the last call and are valid: the supervisor is to be asked.
    pub(crate) fn take_asking(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.asking)
    }

    /// Is there more to read than the last turn allowed?
    pub(crate) fn has_unread(&self) -> bool {
        !self.connections.unread.is_empty()
    }

    /// The client is to go: the service ends.
    pub(crate) fn tell_to_go(&mut self, key: Key) {
        if self.connections.is_given(key) {
            return;
        }
        self.connections.set_busy(key);
        self.connections.begin_close(key, CloseCode::Away, "Server is shutting down", CloseReason::Drain);
        self.connections.settle(key);
    }

    /// An operator, or a lowered cap, ends this connection, if it is still the one that was found. Says whether it does.
    pub(crate) fn close(&mut self, target: &CloseTarget, code: u16, text: &str, reason: CloseReason) -> bool {
        let found =
            self.connections.key_at(target.row).and_then(|key| Some((key, *self.connections.get(key)?)));
        let Some((key, record)) = found else { return false };
        let is_as_found = target.idle_since_ms == 0 || record.active_ms == target.idle_since_ms;
        if record.id != target.id.0
            || record.phase() != Phase::Open
            || !is_as_found
            || self.connections.is_given(key)
        {
            return false;
        }
        self.connections.set_busy(key);
        self.connections.begin_close(key, CloseCode::from(code), text, reason);
        self.connections.settle(key);
        true
    }

    /// Handles the timers that are due.
    pub(crate) fn expire_timers(&mut self) {
        for _ in 0..EXPIRIES_PER_TURN {
            let Some((key, record)) = self.connections.next_expired() else { return };
            self.connections.set_busy(key);
            if record.phase() == Phase::Open && record.deadline_ms <= self.connections.now_ms {
                self.connections.set_timer(key, None);
                self.tell_app(key, |app, context| app.timer(context));
            } else {
                self.connections.expire(key, &record);
            }
            self.connections.settle(key);
        }
    }

    /// Tells applications of connections that are over, and only then frees them.
    pub(crate) fn finish_ended(&mut self) {
        while let Some(key) = self.connections.ended.pop() {
            let Some(&record) = self.connections.record_of(key) else { continue };
            let reason = CloseReason::from_index(usize::from(record.ending)).unwrap_or(CloseReason::Error);
            if !self.connections.say_gone(key, &record, reason) {
                // There is no room for it: its place is kept until there is.
                return self.connections.ended.push(key);
            }
            self.connections.set_telling(key);
            self.tell_app_of(key, &record, |app, context| app.closed(reason, context));
            self.connections.finish_end(key);
        }
    }

    /// This worker serves the connection from now on, which opened in an earlier one or in another slot.
    pub(crate) fn resume(&mut self, key: Key) {
        let Some(record) = self.connections.get_mut(key).filter(|record| record.phase() == Phase::Open)
        else {
            return;
        };
        record.flags.set(Flags::OPENED, true);
        if self.apps.get(record.protocol).is_none() {
            log::error!("connection {}: this program does not have its protocol", record.id);
            let text = "The protocol is not served any more";
            self.connections.begin_close(key, CloseCode::Restart, text, CloseReason::Error);
        }
        self.tell_app(key, |app, context| app.resumed(context));
    }

    /// The connection is about to go to another slot. Says whether it can.
    pub(crate) fn leave(&mut self, key: Key) -> bool {
        if !self.connections.is_movable(key) {
            return false;
        }
        self.tell_app(key, |app, context| app.moved(context));
        self.connections.detach_from_slot(key);
        self.connections.is_movable(key)
    }

    /// The other slot does not have it.
    pub(crate) fn take_back(&mut self, key: Key) {
        self.connections.take_back(key);
        self.connections.attach_to_slot(key);
        self.resume(key);
    }

    /// Gives memory back that a burst needed, one step; to be called about once a second. Says whether a burst is
    /// over.
    pub(crate) fn give_back_memory(&mut self) -> bool {
        self.assembly.trim();
        self.connections.give_back_pages();
        self.connections.give_back_feed();
        let is_over = self.connections.burst_is_over();
        if is_over {
            self.connections.unread.shrink_to_fit();
            self.out.shrink_to(SCRATCH_SIZE);
        }
        is_over
    }

    pub(super) fn tell_app(&mut self, key: Key, tell: impl FnOnce(&mut dyn App, &mut Context<'_>)) {
        if let Some(&record) = self.connections.get(key) {
            self.tell_app_of(key, &record, tell);
        }
    }

    fn tell_app_of(&mut self, key: Key, record: &Record, tell: impl FnOnce(&mut dyn App, &mut Context<'_>)) {
        let Some(app) = self.apps.get(record.protocol) else { return };
        let mut client = Client::new(&mut self.connections, key);
        let mut context = Context::new(&mut client, &mut self.out);
        tell(app, &mut context);
        let sent = context.finish();
        self.connections.table.counters().messages_sent += sent;
    }
}

fn policy(settings: &Settings) -> HandshakePolicy {
    HandshakePolicy {
        path: settings.path.clone(),
        allowed_origins: settings.allowed_origins.clone(),
        proxies: ProxyPolicy {
            trusted: settings.trusted_proxies.clone(),
            reads_forwarded: settings.reads_forwarded,
            has_proxy_header: settings.has_proxy_header,
        },
    }
}

fn max_message_size(settings: &Settings) -> usize {
    usize::try_from(settings.max_message_size).unwrap_or(usize::MAX)
}
