//! One connection as its application reaches it, and through it the others of the worker.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use holdfast_shared::clock::milliseconds;
use holdfast_shared::id::ConnectionId;
use holdfast_shared::ipc::settings::ChannelSettings;
use holdfast_shared::reason::CloseReason;
use holdfast_shared::session::SessionError;
use holdfast_shared::table::Phase;
use tungstenite::protocol::frame::coding::CloseCode;

use super::{Connections, Key};
use crate::app::Host;
use crate::channels::Published;
use crate::websocket::{MessageKind, frame};

pub(super) struct Client<'a> {
    connections: &'a mut Connections,
    key: Key,
    /// What is written to it answers a message that it sent.
    is_answered: bool,
}

impl<'a> Client<'a> {
    pub(super) fn new(connections: &'a mut Connections, key: Key) -> Self {
        Self { connections, key, is_answered: false }
    }

    /// One that is spoken of since it sent something.
    pub(super) fn answered(connections: &'a mut Connections, key: Key) -> Self {
        Self { is_answered: true, ..Self::new(connections, key) }
    }

    /// Does this to `client`, which is not in hand as `self` is, if it is open. Says whether it was.
    fn with_open(&mut self, client: Key, act: impl FnOnce(&mut Connections)) -> bool {
        let is_reachable = self.connections.is_in(client, Phase::Open) && !self.connections.is_given(client);
        if is_reachable && client == self.key {
            act(self.connections);
        } else if is_reachable {
            self.connections.set_busy(client);
            act(self.connections);
            self.connections.settle(client);
        }
        is_reachable
    }
}

impl Host for Client<'_> {
    fn key(&self) -> Key {
        self.key
    }

    fn id(&self) -> ConnectionId {
        ConnectionId(self.connections.record_of(self.key).map_or(0, |record| record.id))
    }

    fn address(&self) -> IpAddr {
        self.connections.record_of(self.key).map_or(IpAddr::from([0, 0, 0, 0]), |record| record.address())
    }

    /// A connection that is no longer open, since its client does not read, gets nothing after its close
    /// frame.
    fn write(&mut self, frames: &[u8]) {
        if !self.connections.is_in(self.key, Phase::Open) {
            return;
        }
        if self.is_answered {
            self.connections.write_answer(self.key, frames);
        } else {
            self.connections.write(self.key, frames);
        }
    }

    fn set_timer(&mut self, after: Option<Duration>) {
        if self.connections.is_in(self.key, Phase::Open) {
            self.connections.set_timer(self.key, after);
        }
    }

    fn session(&self) -> &[u8] {
        self.connections.session(self.key)
    }

    fn set_session(&mut self, session: &[u8]) -> Result<(), SessionError> {
        self.connections.set_session(self.key, session)
    }

    fn find(&mut self, id: ConnectionId) -> Option<Key> {
        self.connections.find(id)
    }

    fn channels(&self) -> Option<&ChannelSettings> {
        self.connections.settings.channels.as_ref()
    }

    fn join(&mut self) {
        self.connections.join(self.key);
    }

    fn has_joined(&self) -> bool {
        self.connections.has_joined(self.key)
    }

    fn publish(&mut self, kind: MessageKind, data: &[u8]) -> Published {
        self.connections.publish(self.key, kind, data)
    }

    fn may_broadcast(&self) -> bool {
        !self.connections.settings.broadcasts_are_off
    }

    fn send_to(&mut self, client: Key, kind: MessageKind, payload: &[u8]) -> bool {
        self.with_open(client, |connections| {
            let mut message = Vec::new();
            frame::append_frame(&mut message, kind.into(), payload);
            connections.table.counters().messages_sent += 1;
            connections.write(client, &message);
        })
    }

    fn close(&mut self, client: Key, code: u16, reason: &str) -> bool {
        let code = Some(CloseCode::from(code)).filter(|code| code.is_allowed()).unwrap_or(CloseCode::Error);
        self.with_open(client, |connections| {
            connections.begin_close(client, code, reason, CloseReason::Application);
        })
    }
}

impl Connections {
    /// Has an open connection's application called `after` this time, or never.
    pub(super) fn set_timer(&mut self, key: Key, after: Option<Duration>) {
        let due_ms = after.map_or(u64::MAX, |after| self.now_ms.saturating_add(milliseconds(after)));
        if let Some(record) = self.get_mut(key) {
            record.deadline_ms = due_ms;
        }
        self.arm_open(key);
    }

    /// The connection of this name. Until the first one is looked for there is no index, and no cost.
    pub(super) fn find(&mut self, id: ConnectionId) -> Option<Key> {
        if self.names.is_none() {
            let records = self.table.records();
            let named =
                |row: u32| Some((records.get(row as usize).filter(|record| record.is_live())?.id, row));
            self.names = Some(self.occupied_rows(0).filter_map(named).collect::<HashMap<_, _>>());
        }
        let row = *self.names.as_ref()?.get(&id.0)?;
        self.key_at(row)
    }
}
