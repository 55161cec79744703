//! The connection table: the layout that survives a worker. A header page, then one record for each
//! descriptor number. A connection *is* its record; the process serving it comes and goes.
//!
//! One live worker at a time reads and writes a table. Nothing here touches sockets.

mod flags;
mod key;
mod phase;
mod scan;
mod subprotocol;
mod subscriber;
#[cfg(test)]
mod tests;
mod to_hub;

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{Ordering, compiler_fence};

use bytemuck::{Pod, Zeroable};
use nix::sys::uio::{pread, pwrite};

use crate::counters::Counters;
use crate::format::Format;
use crate::id::SlotId;
use crate::sys::mapping::{self, Mapping};
pub use flags::Flags;
pub use key::Key;
pub use phase::Phase;
pub use scan::scan;
pub use subscriber::Subscriber;

/// The tables of this program. A field is appended in the reserve behind its group, so that zeros mean "none".
pub const TABLE_FORMAT: Format = Format { name: "connection table", version: 6, reads_since: 3 };

const MAGIC: u64 = u64::from_le_bytes(*b"holdfast");
const HEADER_SIZE: usize = 4096;
const RECORD_SIZE: usize = size_of::<Record>();

/// Records in 4 KiB, the smallest page there is. A table gives memory back in whole pages.
pub const ROWS_PER_PAGE: u32 = 32;

/// Where the counters begin in the header page: behind the slot's own fields and a reserve.
const COUNTERS_OFFSET: usize = 512;

const _: () = assert!(std::mem::offset_of!(Header, counters) == COUNTERS_OFFSET);
// The counters may grow to as much again and more.
const _: () = assert!(COUNTERS_OFFSET + 2 * size_of::<Counters>() <= HEADER_SIZE);
const _: () = assert!(RECORD_SIZE == 128);
const _: () = assert!(ROWS_PER_PAGE as usize * RECORD_SIZE == 4096);

/// What can be wrong with a table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The memory could not be made, grown or mapped.
    #[error("cannot map a connection table of {rows} rows")]
    Map {
        /// Rows asked for.
        rows: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The memory is not a connection table.
    #[error("the memory handed over is not a connection table (magic {found:#x})")]
    NotATable {
        /// What stood where the magic should.
        found: u64,
    },
    /// The table was written by a Holdfast that does not fit to this one.
    #[error("the connection table has layout version {found}; this binary has {TABLE_FORMAT}")]
    Version {
        /// The version found.
        found: u32,
    },
}

/// One connection. What an idle connection costs is this and nothing else.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Record {
    /// Differs between two connections that had the same descriptor, so that a stale event or verdict
    /// misses.
    pub serial: u32,
    phase: u8,
    /// Why it is ending: a `CloseReason`'s index, while `Closing` or `Lingering`.
    pub ending: u8,
    /// See [`Flags`].
    pub flags: Flags,
    /// Key of the heap state plus one; 0 is none. Means nothing to another worker.
    pub heap_state: u32,
    /// The timer wheel's link: next and previous. Means nothing to another worker.
    pub timer: [u32; 2],
    /// The link's place in the wheel; 0 is unarmed. Means nothing to another worker.
    pub timer_place: u16,
    /// The protocol that serves it, as the program's `Protocol::id` has it; 0 is the program's first.
    pub protocol: u16,
    /// The connection's name, unique in the cluster.
    pub id: u64,
    address: [u8; 16],
    /// When it was accepted.
    pub opened_ms: u64,
    /// When anything was last heard from the client.
    pub seen_ms: u64,
    /// When the client last sent data: a frame of a message, not a ping or pong.
    pub active_ms: u64,
    /// When its phase ends: handshake, close or lingering. In phase `Open`, when the idle timer ends is
    /// computed.
    pub deadline_ms: u64,
    /// When the next ping is due; while a pong is awaited, when it must have come.
    pub ping_due_ms: u64,
    /// Complete messages from the client.
    pub messages_received: u64,
    /// In `AwaitingAdmission`: the bytes whose base64 form is Sec-WebSocket-Accept. In `Open`, when nobody needs them any
    /// more: see [`Record::rate_taken`], then [`Record::part`], [`Record::position`] and [`Record::channel`].
    pub accept_key: [u8; 20],
    /// Where the application's session lies in the slot's memory of sessions; 0 is none.
    pub session: u32,
    /// Output that waits for the client to read it, in bytes.
    pub queued: u32,
    /// What it is to channels.
    pub subscriber: Subscriber,
    /// Room for what later programs add. Zeros in a new record, and in one that comes from another slot: what is
    /// there may mean something in that slot alone.
    reserved: [u8; 3],
}

impl Record {
    /// Where it is in its life.
    #[must_use]
    pub fn phase(&self) -> Phase {
        Phase::from_byte(self.phase)
    }

    /// Is there a connection, and is it not over?
    #[must_use]
    #[inline]
    pub fn is_live(&self) -> bool {
        self.phase != Phase::Free as u8 && self.phase != Phase::Ended as u8
    }

    /// Moves it to another phase.
    pub fn set_phase(&mut self, phase: Phase) {
        self.phase = phase as u8;
    }

    /// In `Open`: thousandths of messages that were missing from what its rate allows, at `active_ms`.
    #[must_use]
    pub fn rate_taken(&self) -> i32 {
        let [a, b, c, d, ..] = self.accept_key;
        i32::from_le_bytes([a, b, c, d])
    }

    /// Sets that.
    pub fn set_rate_taken(&mut self, taken: i32) {
        self.accept_key[..4].copy_from_slice(&taken.to_le_bytes());
    }

    /// The client's address: the peer's, or what a trusted proxy says.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self.address)).to_canonical()
    }

    /// Sets the client's address.
    pub fn set_address(&mut self, address: IpAddr) {
        self.address = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
    }

    /// Makes the record that of a new connection in phase `Handshake`, which ends at `deadline_ms`.
    /// `sequence` makes its serial, so that it differs from that of every connection that had the
    /// descriptor before.
    pub fn begin(&mut self, id: u64, sequence: u64, address: IpAddr, now_ms: u64, deadline_ms: u64) {
        *self = Self {
            serial: u32::try_from(sequence & u64::from(u32::MAX)).unwrap_or_default(),
            id,
            opened_ms: now_ms,
            seen_ms: now_ms,
            active_ms: now_ms,
            deadline_ms,
            ..Self::zeroed()
        };
        self.set_address(address);
        // Whoever finds the phase after a death must find the rest.
        compiler_fence(Ordering::SeqCst);
        self.set_phase(Phase::Handshake);
    }

    /// Makes the record that of a connection of another slot, as it was there. `sequence` is as for
    /// [`begin`](Self::begin).
    pub fn arrive(&mut self, from: &Self, sequence: u64) {
        *self = Self {
            serial: u32::try_from(sequence & u64::from(u32::MAX)).unwrap_or_default(),
            phase: Phase::Free as u8,
            heap_state: 0,
            timer: [0; 2],
            timer_place: 0,
            session: 0,
            reserved: [0; 3],
            ..*from
        };
        self.flags.set(Flags::TAKEN, true);
        // As in `begin`.
        compiler_fence(Ordering::SeqCst);
        self.phase = from.phase;
    }

    /// Makes the record that of no connection.
    pub fn end(&mut self) {
        self.set_phase(Phase::Free);
        // Whoever finds a phase after a death must find the rest, not half of it.
        compiler_fence(Ordering::SeqCst);
        *self = Self::zeroed();
    }
}

/// What belongs to the slot rather than to one connection.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    magic: u64,
    /// The format's version and `reads_since`, of the program that wrote it last.
    version: u32,
    reads_since: u32,
    record_size: u32,
    /// How many bytes that program knows: from the start to the reserve, and of counters.
    known_fields: u32,
    known_counters: u32,
    /// Rows the memory has.
    pub rows: u32,
    slot: u32,
    /// No record beyond it has a connection: the highest descriptor number a connection ever had, plus one,
    /// or less once those at the top have ended.
    pub rows_used: u32,
    /// The descriptor of the heap states that the last worker saved when it left on purpose, plus one; 0 is none.
    /// Cleared by the worker that has taken all of them up, before it serves anybody.
    pub saved: u32,
    /// The descriptor of the program that the slot's next worker is to be made by, plus one; 0 is the one
    /// that runs.
    pub binary: u32,
    /// The incarnation of the last worker that became ready.
    pub ready_incarnation: u32,
    /// The descriptor of the memory of the settings in force, plus one; 0 is none.
    pub settings: u32,
    /// How many connections the slot has accepted, ever: the source of connection ids.
    pub sequence: u64,
    /// Connections on their way in or being turned away.
    pub pending: u32,
    /// The descriptor of the memory of sessions, plus one; 0 is none. It stays as long as the slot does.
    pub sessions: u32,
    /// Established connections that came from other slots.
    pub moved_in: u64,
    /// Established connections that went to other slots.
    pub moved_out: u64,
    /// The descriptors of the slot's up-ring, of what wakes its worker and of what wakes the hub, plus one each; 0 is none.
    pub channels: [u32; 3],
    /// Zero: what follows may be a word of 8 bytes.
    unused: u32,
    /// From here on room for what later programs add.
    reserved: [u8; COUNTERS_OFFSET - 104],
    /// What the slot has counted, over all its workers. The rest of the page is room for more.
    pub counters: Counters,
}

/// The header's fields that this program knows, the counters apart.
const KNOWN_FIELDS: usize = std::mem::offset_of!(Header, reserved);

impl Header {
    /// The header in `memory` as it is now, while another process writes it: a copy that the kernel makes, so
    /// that nothing here refers to what changes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(memory: BorrowedFd<'_>) -> io::Result<Self> {
        let mut header = Self::zeroed();
        let bytes = bytemuck::bytes_of_mut(&mut header);
        let wanted = bytes.len();
        match pread(memory, bytes, 0)? {
            length if length == wanted => {
                header.forget_unkept();
                Ok(header)
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// How many connections the slot has, on their way in or admitted and not yet closed.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.admitted().saturating_add(self.pending.into())
    }

    /// How many connections of the slot are established and not closed. After a crash, until the next worker has
    /// looked through the records, one that was being let in may be missing, or one that has left counted.
    #[must_use]
    pub fn admitted(&self) -> u64 {
        self.came().saturating_sub(self.went())
    }

    /// Established connections that the slot has ever had.
    #[must_use]
    pub fn came(&self) -> u64 {
        self.counters.accepted.saturating_add(self.moved_in)
    }

    /// Those of them that it has no more.
    #[must_use]
    pub fn went(&self) -> u64 {
        self.counters.closed.iter().fold(self.moved_out, |sum, &count| sum.saturating_add(count))
    }
}

impl Header {
    /// The settings in force are in the memory with this descriptor.
    pub fn set_settings(&mut self, number: RawFd) {
        self.settings = u32::try_from(number).unwrap_or(u32::MAX - 1) + 1;
    }

    /// Forgets the program noted in the header in `memory`, of which no worker lives.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn clear_binary(memory: BorrowedFd<'_>) -> io::Result<()> {
        let place = i64::try_from(std::mem::offset_of!(Self, binary)).map_err(io::Error::other)?;
        match pwrite(memory, &0_u32.to_ne_bytes(), place)? {
            4 => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Is it the header of a table, and one that this program can read?
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self) -> Result<(), TableError> {
        if self.magic != MAGIC {
            return Err(TableError::NotATable { found: self.magic });
        }
        let theirs = Format { version: self.version, reads_since: self.reads_since, ..TABLE_FORMAT };
        if !TABLE_FORMAT.fits(&theirs) || usize::try_from(self.record_size) != Ok(RECORD_SIZE) {
            return Err(TableError::Version { found: self.version });
        }
        Ok(())
    }

    /// Zeros the fields that the program which wrote last does not know: an earlier one may have left there what
    /// is true no more, as the number of a descriptor. Counters go on where they were.
    fn forget_unkept(&mut self) {
        let known = usize::try_from(self.known_fields).unwrap_or(usize::MAX);
        let known = known.max(std::mem::offset_of!(Self, rows));
        let unkept = bytemuck::bytes_of_mut(self).get_mut(known..KNOWN_FIELDS);
        unkept.unwrap_or_default().fill(0);
    }

    /// This program writes from now on.
    fn take_over(&mut self) {
        self.forget_unkept();
        self.version = TABLE_FORMAT.version;
        self.reads_since = TABLE_FORMAT.reads_since;
        self.known_fields = u32::try_from(KNOWN_FIELDS).unwrap_or_default();
        self.known_counters = u32::try_from(size_of::<Counters>()).unwrap_or_default();
    }
}

type Memory = Mapping<Header, Record, HEADER_SIZE>;

/// The slot whose table this memory is. Reads without mapping, so that the table's worker may be writing it.
///
/// # Errors
/// When the memory cannot be read, is not a table, one of another layout, or shorter than it says.
pub fn owner(memory: BorrowedFd<'_>) -> Result<SlotId, TableError> {
    let unreadable = |source| TableError::Map { rows: 0, source };
    let header = Header::read(memory).map_err(unreadable)?;
    header.check()?;
    let length = nix::sys::stat::fstat(memory).map_err(|error| unreadable(error.into()))?.st_size;
    match u16::try_from(header.slot) {
        Ok(slot) if usize::try_from(length).is_ok_and(|length| length >= size(header.rows)) => {
            Ok(SlotId(slot))
        }
        _ => Err(TableError::NotATable { found: header.magic }),
    }
}

/// Bytes of memory that a table of `rows` needs.
#[must_use]
pub fn size(rows: u32) -> usize {
    Memory::size(rows as usize)
}

/// A table, mapped.
#[derive(Debug)]
pub struct Table {
    memory: Memory,
}

impl Table {
    /// Writes an empty table for `slot` into fresh memory.
    ///
    /// # Errors
    /// When the memory cannot be mapped.
    pub fn format(memory: BorrowedFd<'_>, slot: SlotId, rows: u32) -> Result<Self, TableError> {
        let mut table = Self::map(memory, rows)?;
        *table.header_mut() = Header {
            magic: MAGIC,
            known_fields: u32::try_from(KNOWN_FIELDS).unwrap_or_default(),
            record_size: u32::try_from(RECORD_SIZE).unwrap_or(u32::MAX),
            rows,
            slot: u32::from(slot.0),
            ..Header::zeroed()
        };
        table.header_mut().take_over();
        Ok(table)
    }

    /// Maps a table that an earlier process wrote, to be written by this one from now on.
    ///
    /// # Errors
    /// When the memory cannot be mapped, is not a table, or one of another layout.
    pub fn open(memory: BorrowedFd<'_>) -> Result<Self, TableError> {
        let mut table = Self::map(memory, 0)?;
        let header = *table.header();
        header.check()?;
        table.memory = Self::map(memory, header.rows)?.memory;
        table.header_mut().take_over();
        Ok(table)
    }

    /// Makes room for at least `rows`; what is there stays. Never shrinks.
    ///
    /// # Errors
    /// When the memory cannot be grown; the table is then as it was.
    pub fn grow(&mut self, memory: BorrowedFd<'_>, rows: u32) -> Result<(), TableError> {
        if rows <= self.header().rows {
            return Ok(());
        }
        mapping::resize(memory, size(rows)).map_err(|source| TableError::Map { rows, source })?;
        self.memory = Self::map(memory, rows)?.memory;
        self.header_mut().rows = rows;
        Ok(())
    }

    /// The slot's own data.
    #[must_use]
    pub fn header(&self) -> &Header {
        self.memory.head()
    }

    /// The slot's own data, to be changed.
    #[must_use]
    pub fn header_mut(&mut self) -> &mut Header {
        self.memory.head_mut()
    }

    /// The slot's counters.
    #[must_use]
    pub fn counters(&mut self) -> &mut Counters {
        &mut self.header_mut().counters
    }

    /// All records, by descriptor number.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        self.memory.items()
    }

    /// All records, to be changed.
    #[must_use]
    pub fn records_mut(&mut self) -> &mut [Record] {
        self.memory.items_mut()
    }

    /// Gives the memory of these rows back, as far as it is whole pages. They must be free: they read as
    /// `Phase::Free` from then on. Looking at one makes it cost memory again.
    ///
    /// # Errors
    /// When the kernel cannot; the records are as they were.
    pub fn discard(&mut self, rows: std::ops::Range<u32>) -> io::Result<()> {
        self.memory.discard(rows.start as usize..rows.end as usize)
    }

    /// The rows worth looking at: no row beyond has a connection.
    #[must_use]
    pub fn used(&self) -> std::ops::Range<u32> {
        0..self.header().rows_used.min(self.header().rows)
    }

    fn map(memory: BorrowedFd<'_>, rows: u32) -> Result<Self, TableError> {
        let memory = Memory::new(memory, rows as usize).map_err(|source| TableError::Map { rows, source })?;
        Ok(Self { memory })
    }
}
