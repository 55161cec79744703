//! Established connections that come from the table of another slot, or go there: the one other way, besides
//! beginning and ending, for a connection to be counted here or no more. What is said about it, and to whom,
//! is `moving`'s business.

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use holdfast_shared::sys::descriptor;
use holdfast_shared::table::{Flags, Phase, Record, Subscriber};

use super::{Connections, Key, TableLinks, descriptor_of, index};
use crate::connection::saved::{SavedState, WriteError, Writer};

impl Connections {
    /// Up to `most` connections that can go to another slot, from row `first` on.
    pub(crate) fn movable(&self, first: u32, most: usize) -> Vec<Key> {
        let keys = self.occupied_rows(first).filter_map(|row| self.key_at(row));
        keys.filter(|&key| self.is_movable(key)).take(most).collect()
    }

    /// Can this one go? It is established, and nothing is being done with it.
    pub(crate) fn is_movable(&self, key: Key) -> bool {
        let in_hand = Flags::BUSY.union(Flags::RESUMING).union(Flags::GIVEN).union(Flags::TAKEN);
        self.get(key).is_some_and(|record| {
            record.phase() == Phase::Open
                && record.flags.contains(Flags::ADMITTED)
                && !record.flags.intersects(in_hand)
                // Until the hub has answered, the answer comes to where it was asked for.
                && (!record.subscriber.contains(Subscriber::JOINED)
                    || record.subscriber.contains(Subscriber::SUBSCRIBED))
        })
    }

    /// Is it with another slot, as far as is known?
    pub(crate) fn is_given(&self, key: Key) -> bool {
        self.get(key).is_some_and(|record| record.flags.contains(Flags::GIVEN))
    }

    /// From now on another slot may have it: nothing happens to it here.
    pub(crate) fn set_given(&mut self, key: Key) {
        self.wheel.cancel(&mut TableLinks(&mut self.table), key.row);
        if let Some(record) = self.get_mut(key) {
            record.flags.set(Flags::GIVEN, true);
        }
    }

    /// The other slot does not have it.
    pub(crate) fn take_back(&mut self, key: Key) {
        if let Some(record) = self.get_mut(key) {
            record.flags.set(Flags::GIVEN, false);
        }
        self.arm_open(key);
    }

    /// The other slot has it: frees its record and closes the copy of its descriptor, and counts nothing but
    /// that it went.
    pub(crate) fn give_away(&mut self, key: Key) {
        let Some(&record) = self.get(key) else { return };
        self.wheel.cancel(&mut TableLinks(&mut self.table), key.row);
        self.drop_heap_state(key);
        self.clear_row(key.row, &record);
        self.admitted -= 1;
        self.table.header_mut().moved_out += 1;
        close(key);
    }

    /// Puts a connection of another slot into the table, where it is that slot's still until
    /// [`Connections::commit_arrival`]. `None`, and the descriptor closed, when the table has no row for it.
    pub(crate) fn arrive(&mut self, descriptor: OwnedFd, from: &Record) -> Option<Key> {
        let row = u32::try_from(descriptor.as_raw_fd()).ok()?;
        // As those that were accepted here: it must survive the keeper's exec of a new binary.
        descriptor::set_inherited(std::os::fd::AsFd::as_fd(&descriptor), true).ok()?;
        let header = self.table.header_mut();
        if row >= header.rows {
            return None;
        }
        header.rows_used = header.rows_used.max(row + 1);
        header.sequence += 1;
        let sequence = header.sequence;
        let record = &mut self.table.records_mut()[index(row)];
        record.arrive(from, sequence);
        let key = Key { row, serial: record.serial };
        self.note_row(row);
        // From here on the record owns the descriptor.
        let _ = descriptor.into_raw_fd();
        Some(key)
    }

    /// The other slot was told: the connection is ours, and counted.
    pub(crate) fn commit_arrival(&mut self, key: Key) {
        let Some(record) = self.get_mut(key) else { return };
        record.flags.set(Flags::TAKEN.union(Flags::READ_QUEUED), false);
        self.admitted += 1;
        self.table.header_mut().moved_in += 1;
        self.settle(key);
        self.arm_open(key);
        self.take_in_subscriptions(key);
    }

    /// The other slot keeps it: forgets what arrived, and does nothing to the client.
    pub(crate) fn send_back(&mut self, key: Key) {
        let Some(&record) = self.get(key) else { return };
        self.drop_heap_state(key);
        self.clear_row(key.row, &record);
        close(key);
    }

    /// The last worker died while this one was between two slots: the other one has it, or nobody. To be
    /// called before anything is taken over. Says whether it was.
    pub(crate) fn drop_in_transit(&mut self, key: Key, descriptor_is_open: bool) -> bool {
        let Some(&Record { flags, .. }) = self.get(key) else { return false };
        if !flags.intersects(Flags::GIVEN.union(Flags::TAKEN)) {
            return false;
        }
        self.table.records_mut()[index(key.row)].end();
        self.table.header_mut().moved_out += u64::from(flags.contains(Flags::GIVEN));
        if descriptor_is_open {
            close(key);
        }
        true
    }

    /// Saves the state of `key`, if it has one, under the number `row`. Says whether it had.
    pub(crate) fn save_heap_state(
        &self,
        key: Key,
        row: u32,
        writer: &mut Writer,
    ) -> Result<bool, WriteError> {
        let Some(record) = self.get(key) else { return Ok(false) };
        let Some(state) = self.heap_state_of(record) else { return Ok(false) };
        writer.push(&SavedState {
            row,
            serial: record.serial,
            request: &state.request,
            engine: state.engine.as_ref().map(|engine| engine.save()),
            outbox: state.outbox.front(),
            message_since_ms: state.message_since_ms,
            subprotocol: &state.subprotocol,
        })?;
        Ok(true)
    }
}

fn close(key: Key) {
    if let Err(error) = nix::unistd::close(descriptor_of(key)) {
        log::error!("cannot close descriptor {}: {error}", key.row);
    }
}
