//! Publications, of clients and of applications.

use bytemuck::Zeroable;
use holdfast_shared::channels::entry::{EntryHead, Kind};
use holdfast_shared::channels::journal::Writer;
use holdfast_shared::channels::rules;
use holdfast_shared::channels::up_ring::MessageHead;
use holdfast_worker::websocket::MessageKind;
use holdfast_worker::websocket::frame;

use super::{Desk, From};

/// The longest header of a frame.
pub(in crate::hub) const LONGEST_HEADER: usize = 10;

/// Close codes (RFC 6455, section 7.4.1).
const POLICY_VIOLATION: u16 = 1008;
const MESSAGE_TOO_BIG: u16 = 1009;

impl Desk {
    #[inline]
    pub(super) fn on_publish(&mut self, from: From, head: &MessageHead, data: &[u8]) {
        let (channel, now) = (head.channel, self.now.monotonic);
        let Some(rule) = self.channels.get(channel).map(|found| found.rule) else { return };
        let rule = rule.and_then(|rule| self.settings.rules.get(rule));
        let is_granted = head.flags & MessageHead::GRANTED != 0;
        let (may_publish, rate) = rule.map_or((false, 0), |rule| (rule.client_publish, rule.publish_rate));
        if !may_publish && !is_granted {
            self.disconnect(from, head.connection, POLICY_VIOLATION, "client_publish");
        } else if data.len() + LONGEST_HEADER > self.memory.largest_entry() {
            self.disconnect(from, head.connection, MESSAGE_TOO_BIG, "channels.journal_size");
        } else if !self.rates.take(channel, rate, now) {
            self.disconnect(from, head.connection, POLICY_VIOLATION, "publish_rate");
        } else {
            let kind = match head.flags & MessageHead::TEXT {
                0 => MessageKind::Binary,
                _ => MessageKind::Text,
            };
            self.publish_frame(from, channel, kind, data, [0; 16], 0);
        }
    }

    /// Publishes the message; its frame fits into an entry. Returns its number.
    #[inline]
    pub(super) fn publish_frame(
        &mut self,
        from: From,
        channel: u32,
        kind: MessageKind,
        data: &[u8],
        key: [u8; 16],
        exclude: u64,
    ) -> u64 {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame::append_message(&mut frame, kind, data);
        let flags = if kind == MessageKind::Text { EntryHead::TEXT } else { 0 };
        let head = EntryHead { channel, flags, connection: exclude, key, ..EntryHead::zeroed() };
        let offset = self.append_publication(from, head, &frame);
        self.published += 1;
        self.frame = frame;
        offset
    }

    /// Writes an entry that is the channel's next publication, and returns its number.
    #[inline]
    pub(super) fn append_publication(&mut self, from: From, head: EntryHead, bytes: &[u8]) -> u64 {
        let Some(state) = self.channels.touch(head.channel) else { return 0 };
        state.offset += 1;
        let (offset, previous) = (state.offset, state.last);
        let position = self.writer.position();
        state.last = position;
        self.concerns_clients |= state.subscribers > 0;
        let head = EntryHead { offset, previous, time_ms: self.now.wall_ms, ..head };
        self.append(Kind::Publication, from, head, bytes);
        Writer::link(&self.memory, previous, position);
        self.idempotency.note(&head);
        offset
    }

    /// Closes the connection.
    pub(super) fn disconnect(&mut self, from: From, connection: u64, code: u16, text: &str) {
        let head = EntryHead { connection, argument: code.into(), ..self.addressed(connection) };
        self.append(Kind::Disconnect, from, head, text.as_bytes());
    }

    /// What an entry for the connection says of where it is.
    pub(super) fn addressed(&self, connection: u64) -> EntryHead {
        let row = self.members.who(connection).map(|who| who.row);
        EntryHead { connection, channel: row.map_or(0, |row| row + 1), ..EntryHead::zeroed() }
    }

    /// What holds for a channel of this name, which need not be there.
    pub(super) fn rule_for(&self, name: &str) -> Option<&rules::Rule> {
        rules::find(&self.settings.rules, name)
    }
}
