//! Sessions: what an application keeps for a connection beyond the worker's death. Which bytes they are is the
//! application's business; where they lie is `shared::session`'s.

use std::io;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, compiler_fence};

use holdfast_shared::session::{self, Owner, SessionError, Sessions};
use holdfast_shared::sys::descriptor;
use holdfast_shared::table::{Flags, Header, Record};

use super::{Connections, Key};

/// The slot's memory of sessions. Its descriptor is the slot's: it outlives this worker.
#[derive(Debug)]
pub(super) struct SessionMemory {
    number: RawFd,
    sessions: Sessions,
}

/// The descriptor of the slot's memory of sessions, if it has one.
pub(crate) fn memory(header: &Header) -> Option<RawFd> {
    header.sessions.checked_sub(1).and_then(|number| RawFd::try_from(number).ok())
}

impl SessionMemory {
    /// What an earlier worker has noted in `header`, with no session claimed yet.
    pub(super) fn of(header: &Header) -> Option<Self> {
        let number = memory(header)?;
        let opened = descriptor::with(number, Sessions::open).flatten();
        let opened = opened.map(|sessions| Self { number, sessions });
        opened.map_err(|error| log::error!("the sessions of earlier workers cannot be read: {error}")).ok()
    }
}

impl Connections {
    /// What the application keeps for this connection; empty if nothing.
    pub(crate) fn session(&self, key: Key) -> &[u8] {
        let found = || {
            let handle = self.record_of(key).map(|record| record.session).filter(|&handle| handle != 0)?;
            self.sessions.as_ref()?.sessions.get(handle, owner(key))
        };
        found().unwrap_or_default()
    }

    /// The same of a connection whose record is at hand.
    pub(super) fn session_of_row(&self, row: u32, record: &Record) -> &[u8] {
        let owner = Owner { row, serial: record.serial };
        let memory = self.sessions.as_ref().filter(|_| record.session != 0);
        memory.and_then(|memory| memory.sessions.get(record.session, owner)).unwrap_or_default()
    }

    /// Keeps `session` for this connection in place of what was kept before: all of it or, should the worker
    /// die meanwhile, all of that. Empty keeps nothing.
    pub(crate) fn set_session(&mut self, key: Key, session: &[u8]) -> Result<(), SessionError> {
        let before = self.get(key).ok_or(SessionError::Gone)?.session;
        if before == 0 && session.is_empty() {
            return Ok(());
        }
        let handle = if session.is_empty() {
            0
        } else {
            let SessionMemory { number, sessions } = self.session_memory()?;
            descriptor::with(*number, |memory| sessions.put(memory, owner(key), session))??
        };
        // Whoever finds the handle must find the bytes; whoever finds the old one must find those as they were.
        compiler_fence(Ordering::SeqCst);
        if let Some(record) = self.get_mut(key) {
            record.session = handle;
        }
        compiler_fence(Ordering::SeqCst);
        self.free_session(before);
        Ok(())
    }

    /// The session of a connection that an earlier worker left goes on with it. One that cannot be found makes
    /// the connection as lost as the stream of one whose worker died in the middle of it.
    pub(super) fn claim_session(&mut self, key: Key) {
        let Some(handle) = self.record_of(key).map(|record| record.session).filter(|&handle| handle != 0)
        else {
            return;
        };
        let is_found = self.sessions.as_mut().is_some_and(|memory| memory.sessions.claim(handle, owner(key)));
        if !is_found && let Some(record) = self.get_mut(key) {
            log::error!("connection {}: its session cannot be found", record.id);
            record.session = 0;
            record.flags.set(Flags::BUSY, true);
        }
    }

    /// The session behind `handle` is needed no more. To be called when no record has the handle.
    pub(super) fn free_session(&mut self, handle: u32) {
        if handle != 0
            && let Some(memory) = &mut self.sessions
        {
            memory.sessions.free(handle);
        }
    }

    /// Gives memory back that was needed for sessions and is not any more.
    pub(super) fn give_back_sessions(&mut self) -> io::Result<()> {
        self.sessions.as_mut().map_or(Ok(()), |memory| memory.sessions.give_back())
    }

    /// Copies the sessions of a batch that goes to another slot into memory of its own, and puts their places
    /// there into `records`. `None` if there are none.
    pub(crate) fn copy_sessions(
        &self,
        keys: impl Iterator<Item = Key>,
        records: &mut [Record],
    ) -> Result<Option<OwnedFd>, SessionError> {
        let mut copy: Option<(OwnedFd, Sessions)> = None;
        for ((place, record), key) in (0..).zip(records).zip(keys) {
            let session = self.session(key);
            if session.is_empty() {
                continue;
            }
            if copy.is_none() {
                let memory = session::create()?;
                let sessions = Sessions::open(memory.as_fd())?;
                copy = Some((memory, sessions));
            }
            if let Some((memory, sessions)) = &mut copy {
                record.session =
                    sessions.put(memory.as_fd(), Owner { row: place, serial: record.serial }, session)?;
            }
        }
        Ok(copy.map(|(memory, _)| memory))
    }

    fn session_memory(&mut self) -> Result<&mut SessionMemory, SessionError> {
        if self.sessions.is_none() {
            let descriptor = session::create()?;
            let sessions = Sessions::open(descriptor.as_fd())?;
            // From here on the descriptor is the slot's.
            let number = descriptor.into_raw_fd();
            self.table.header_mut().sessions = number.unsigned_abs() + 1;
            self.sessions = Some(SessionMemory { number, sessions });
        }
        self.sessions.as_mut().ok_or(SessionError::Gone)
    }
}

fn owner(key: Key) -> Owner {
    Owner { row: key.row, serial: key.serial }
}

#[cfg(test)]
mod tests {
    use holdfast_shared::id::SlotId;
    use holdfast_shared::ipc::settings::Settings;
    use holdfast_shared::sys::mapping;
    use holdfast_shared::table::{self, Phase, Table};

    use super::*;

    const ROWS: u32 = 8;

    fn connections(table: Table) -> Connections {
        Connections::new(SlotId(0), table, Settings::default(), 0)
    }

    fn open(connections: &mut Connections, row: u32) -> Key {
        connections.table.header_mut().rows_used = ROWS;
        let record = &mut connections.table.records_mut()[row as usize];
        record.begin(row.into(), u64::from(row) + 100, "::1".parse().unwrap(), 0, 0);
        record.set_phase(Phase::Open);
        connections.take_over(row)
    }

    #[test]
    fn sessions_go_on_with_their_connections_and_one_that_is_lost_takes_its_own_along() {
        let memory = mapping::create("table", table::size(ROWS)).unwrap();
        let mut old = connections(Table::format(memory.as_fd(), SlotId(0), ROWS).unwrap());
        let keys: Vec<Key> = (1..5).map(|row| open(&mut old, row)).collect();
        for (key, session) in keys.iter().zip([&b"one"[..], b"two", b"three"]) {
            old.set_session(*key, b"before").unwrap();
            old.set_session(*key, session).unwrap();
        }
        old.table.records_mut()[3].session += 1;
        drop(old);

        let mut new = connections(Table::open(memory.as_fd()).unwrap());
        for key in &keys {
            new.take_over(key.row);
        }
        let sessions: Vec<&[u8]> = keys.iter().map(|&key| new.session(key)).collect();
        assert_eq!(sessions, [&b"one"[..], b"two", b"", b""]);
        let is_busy = |key: &Key| new.get(*key).unwrap().flags.contains(Flags::BUSY);
        assert_eq!(keys.iter().map(is_busy).collect::<Vec<_>>(), [false, false, true, false]);
        new.set_session(keys[0], b"").unwrap();
        assert_eq!((new.session(keys[0]), new.session(keys[1])), (&b""[..], &b"two"[..]));
        assert!(matches!(new.set_session(Key { row: 1, serial: 9 }, b"x"), Err(SessionError::Gone)));
    }

    #[test]
    fn what_is_copied_for_another_slot_is_found_at_its_place() {
        let memory = mapping::create("table", table::size(ROWS)).unwrap();
        let mut ours = connections(Table::format(memory.as_fd(), SlotId(0), ROWS).unwrap());
        let keys: Vec<Key> = (1..4).map(|row| open(&mut ours, row)).collect();
        let mut records: Vec<Record> = keys.iter().map(|&key| *ours.get(key).unwrap()).collect();
        assert!(ours.copy_sessions(keys.iter().copied(), &mut records).unwrap().is_none());
        ours.set_session(keys[1], b"one").unwrap();
        ours.set_session(keys[2], &[7; 5000]).unwrap();
        let copy = ours.copy_sessions(keys.iter().copied(), &mut records).unwrap().unwrap();
        let found = Sessions::open(copy.as_fd()).unwrap();
        let session = |place: u32| {
            let record = &records[place as usize];
            found.get(record.session, Owner { row: place, serial: record.serial })
        };
        assert_eq!((session(0), session(1), session(2)), (None, Some(&b"one"[..]), Some(&[7; 5000][..])));
    }
}
