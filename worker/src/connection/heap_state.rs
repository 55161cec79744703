//! Heap state on their way from one worker to the next: out of the heap of the one that leaves, into
//! that of the one that comes. The bytes between are `saved`'s business.

use holdfast_shared::table::Flags;

use super::{Connections, Key, Outbox};
use crate::connection::saved::{SavedState, WriteError, Writer};

impl Connections {
    /// Saves every state there is.
    pub(crate) fn save_heap_states(&self, writer: &mut Writer) -> Result<(), WriteError> {
        for row in self.occupied_rows(0) {
            if let Some(key) = self.key_at(row) {
                self.save_heap_state(key, row, writer)?;
            }
        }
        Ok(())
    }

    /// Gives a connection that was taken over the state that was saved for it. Says whether it can go on with
    /// it: if not, its state is as lost as if its worker had died.
    pub(crate) fn put_back(&mut self, state: &SavedState<'_>) -> bool {
        let Some(key) = self.key_at(state.row).filter(|key| key.serial == state.serial) else { return false };
        // One that a worker crashed on taking it up is not tried again.
        let is_out_of_hand = Flags::BUSY.union(Flags::RESUMING);
        let is_expected = self
            .get(key)
            .is_some_and(|record| record.heap_state == 0 && !record.flags.intersects(is_out_of_hand));
        if !is_expected {
            return false;
        }
        self.set_resuming(key, true);
        let is_back = self.put_in(key, state).is_some();
        self.set_resuming(key, false);
        is_back
    }

    /// Gives a connection this state. `None` when it could not go on with it.
    pub(crate) fn put_in(&mut self, key: Key, state: &SavedState<'_>) -> Option<()> {
        let engine = match state.engine.as_ref().map(|engine| engine.restore()) {
            Some(engine) => Some(Box::new(engine?)),
            None => None,
        };
        let is_cut = self.get(key)?.flags.contains(Flags::FRAME_CUT);
        let outbox = Outbox::restored(state.outbox, !is_cut);
        let queued = outbox.len() as u64;
        let now_ms = self.now_ms;
        let heap = self.heap_state_or_new(key)?;
        heap.request = state.request.to_vec();
        // A program before this one has not saved when it began.
        heap.message_since_ms = match (&engine, state.message_since_ms) {
            (Some(engine), since_ms) if engine.is_in_message() => {
                if since_ms == 0 {
                    now_ms
                } else {
                    since_ms.min(now_ms)
                }
            }
            _ => 0,
        };
        state.subprotocol.clone_into(&mut heap.subprotocol);
        heap.engine = engine;
        heap.outbox = outbox;
        // How long it had been stalled is not saved.
        heap.taken_ms = now_ms;
        self.queued_bytes += queued;
        self.note_heap_state(key);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use holdfast_shared::id::SlotId;
    use holdfast_shared::ipc::settings::Settings;
    use holdfast_shared::sys::mapping;
    use holdfast_shared::table::{self, Phase, Table};

    use super::*;
    use crate::connection::saved::Reader;
    use crate::websocket::assembly::Assembly;
    use crate::websocket::engine::{Engine, Event};

    const ROWS: u32 = 8;

    fn connections(table: Table) -> Connections {
        Connections::new(SlotId(0), table, Settings::default(), 0)
    }

    /// Rows 1 to 4 in the middle of something.
    fn busy_worker(table: Table) -> Connections {
        let mut connections = connections(table);
        connections.table.header_mut().rows_used = ROWS;
        for row in 1..5 {
            let record = &mut connections.table.records_mut()[row as usize];
            record.begin(row.into(), row.into(), "::1".parse().unwrap(), 0, 0);
            record.set_phase(Phase::Open);
            let key = connections.take_over(row);
            let mut engine = Engine::default();
            let mut assembly = Assembly::new(1000);
            engine
                .feed(&mut [0x81, 0x85, 0], &mut assembly, &mut |_: Event<'_>| ControlFlow::Continue(()))
                .unwrap();
            let state = connections.heap_state_or_new(key).unwrap();
            state.request = vec![u8::try_from(row).unwrap(); 3];
            state.engine = Some(Box::new(engine));
            state.message_since_ms = 70;
            state.outbox.push(b"four");
            state.outbox.advance(1);
            connections.queued_bytes += 3;
            connections.settle(key);
        }
        connections
    }

    #[test]
    fn the_next_worker_has_every_half_once_and_only_of_the_connection_it_was_of() {
        let memory = mapping::create("table", table::size(ROWS)).unwrap();
        let old = busy_worker(Table::format(memory.as_fd(), SlotId(0), ROWS).unwrap());
        let mut writer = Writer::new().unwrap();
        old.save_heap_states(&mut writer).unwrap();
        let saved = writer.finish(Duration::ZERO).unwrap();

        let mut new = connections(Table::open(memory.as_fd()).unwrap());
        new.now_ms = 100;
        let keys: Vec<Key> = (1..5).map(|row| new.take_over(row)).collect();
        // One whose worker died in the middle of it after all, and one that is somebody else by now.
        new.set_busy(keys[2]);
        new.table.records_mut()[4].serial = 77;
        for has_none_yet in [true, false] {
            let mut reader = Reader::new(saved.as_fd()).unwrap();
            let mut put_back = Vec::new();
            while let Some(state) = reader.next_state().unwrap() {
                put_back.push(new.put_back(&state));
            }
            assert_eq!(put_back, [has_none_yet, has_none_yet, false, false]);
        }
        assert_eq!(new.queued_bytes(), 6);
        for key in &keys[..2] {
            let state = new.heap_state(*key).unwrap();
            assert_eq!(state.request, vec![u8::try_from(key.row).unwrap(); 3]);
            assert_eq!(state.outbox.front(), b"our");
            assert!(!state.engine.as_ref().unwrap().is_idle());
            assert_eq!(state.message_since_ms, 70, "its deadline is where it was");
        }
        assert!(new.heap_state(keys[2]).is_none());
    }
}
