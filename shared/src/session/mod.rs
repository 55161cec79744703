//! The memory of sessions: bytes of an application that belong to a connection and outlive the worker, in a
//! memfd beside the connection table. What makes a session valid is one store of its handle in the record, after
//! its bytes were written; what is free is on the heap, and found again by looking at the records.
//!
//! One live worker at a time reads and writes a memory. Nothing that is found in it is believed: a block says
//! whose it is and how long, and a handle that leads elsewhere leads to no session.

mod spans;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytemuck::{Pod, Zeroable};

use crate::format::Format;
use crate::sys::descriptor;
use crate::sys::mapping::{self, Mapping};
use spans::{Block, LARGEST, Spans, UNIT};

const MAGIC: u64 = u64::from_le_bytes(*b"hfsessn\0");

/// What a block says of its format: it changes only when programs from before cannot read it.
const BLOCK_FORMAT: u8 = 1;

/// The sessions of this program.
pub const SESSION_FORMAT: Format =
    Format { name: "session memory", version: 1, reads_since: BLOCK_FORMAT as u32 };

const HEADER_SIZE: usize = 4096;
const BLOCK_HEAD: usize = size_of::<BlockHead>();

/// The longest session, in bytes.
pub const MAX_SESSION: usize = LARGEST as usize * UNIT - BLOCK_HEAD;

const _: () = assert!(BLOCK_HEAD == UNIT);

/// Why a session could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It is longer than any may be.
    #[error("a session of {length} bytes; at most {MAX_SESSION} are kept")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// There is no memory for it.
    #[error("no memory for sessions: {0}")]
    Memory(#[from] io::Error),
    /// The connection is gone.
    #[error("the connection is gone")]
    Gone,
}

/// What stands at the start of the memory.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    magic: u64,
}

/// What stands before a session's bytes.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct BlockHead {
    row: u32,
    serial: u32,
    /// Bytes of the session.
    length: u32,
    /// Units of the block.
    units: u16,
    format: u8,
    spare: u8,
}

/// The connection whose session it is, as its record names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The record's index.
    pub row: u32,
    /// The record's serial.
    pub serial: u32,
}

type Memory = Mapping<Header, u8, HEADER_SIZE>;

/// All sessions of a slot.
#[derive(Debug)]
pub struct Sessions {
    memory: Memory,
    /// Bytes of sessions that the mapping has.
    mapped: usize,
    spans: Spans,
}

/// Makes memory for sessions. It is not close-on-exec: the next worker may be of another program.
///
/// # Errors
/// What the kernel says.
pub fn create() -> io::Result<OwnedFd> {
    let memory = mapping::create("holdfast-sessions", Memory::size(0))?;
    Memory::new(memory.as_fd(), 0)?.head_mut().magic = MAGIC;
    descriptor::set_inherited(memory.as_fd(), true)?;
    Ok(memory)
}

impl Sessions {
    /// Maps the memory. No session is known until it is claimed.
    ///
    /// # Errors
    /// When it cannot be mapped or was not made by [`create`].
    pub fn open(memory: BorrowedFd<'_>) -> io::Result<Self> {
        let length = nix::sys::stat::fstat(memory)?.st_size;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let mapped = length.checked_sub(HEADER_SIZE).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mapping = Memory::new(memory, mapped)?;
        if mapping.head().magic != MAGIC || !mapping::cannot_shrink(memory) {
            return Err(io::Error::other("it is no memory of sessions"));
        }
        let units = u32::try_from(mapped / UNIT).unwrap_or(u32::MAX);
        Ok(Self { memory: mapping, mapped, spans: Spans::new(units) })
    }

    /// The session that a record of an earlier worker speaks of: it is live from now on. False when `handle` does
    /// not lead to a session of `owner`.
    pub fn claim(&mut self, handle: u32, owner: Owner) -> bool {
        self.find(handle, owner).is_some_and(|(block, _)| self.spans.claim(block))
    }

    /// The session's bytes. `None` when `handle` does not lead to a session of `owner`.
    #[must_use]
    pub fn get(&self, handle: u32, owner: Owner) -> Option<&[u8]> {
        let (_, bytes) = self.find(handle, owner)?;
        self.memory.items().get(bytes)
    }

    /// Writes a session and returns its handle, which is not 0. Whoever stores it makes the session valid, and
    /// frees the one before it then. `memory` is what `self` was opened from.
    ///
    /// # Errors
    /// When it is too long, or there is no memory. What was kept before is as it was.
    pub fn put(&mut self, memory: BorrowedFd<'_>, owner: Owner, session: &[u8]) -> Result<u32, SessionError> {
        let length = session.len();
        if length > MAX_SESSION {
            return Err(SessionError::TooLong { length });
        }
        let units = u32::try_from((BLOCK_HEAD + length).div_ceil(UNIT)).unwrap_or(u32::MAX);
        let block = self.spans.allocate(units).ok_or(io::Error::from(io::ErrorKind::StorageFull))?;
        if let Err(error) = self.grow(memory) {
            self.spans.free(block.start);
            return Err(error.into());
        }
        let head = BlockHead {
            row: owner.row,
            serial: owner.serial,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            units: u16::try_from(block.units).unwrap_or(u16::MAX),
            format: BLOCK_FORMAT,
            spare: 0,
        };
        let start = block.start as usize * UNIT;
        let place = self.memory.items_mut().get_mut(start..start + BLOCK_HEAD + length);
        let place = place.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let (place_of_head, place_of_bytes) = place.split_at_mut(BLOCK_HEAD);
        place_of_head.copy_from_slice(bytemuck::bytes_of(&head));
        place_of_bytes.copy_from_slice(session);
        Ok(block.start + 1)
    }

    /// The session behind `handle` is needed no more. Its bytes stay until others take their place, for what
    /// says that it is over may be a store that a death prevents.
    pub fn free(&mut self, handle: u32) {
        if let Some(start) = handle.checked_sub(1) {
            self.spans.free(start);
        }
    }

    /// Gives memory back that was not needed since the last call.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn give_back(&mut self) -> io::Result<()> {
        for Range { start, end } in self.spans.take_unneeded() {
            self.memory.discard(start as usize * UNIT..end as usize * UNIT)?;
        }
        Ok(())
    }

    /// The block behind `handle`, and where its bytes are.
    fn find(&self, handle: u32, owner: Owner) -> Option<(Block, Range<usize>)> {
        let start = handle.checked_sub(1)?;
        let head_at = (start as usize).checked_mul(UNIT)?;
        let bytes_at = head_at.checked_add(BLOCK_HEAD)?;
        let head: BlockHead = bytemuck::pod_read_unaligned(self.memory.items().get(head_at..bytes_at)?);
        let units = u32::from(head.units);
        let fits = BLOCK_HEAD.checked_add(head.length as usize)? <= units as usize * UNIT;
        let is_of = (head.row, head.serial) == (owner.row, owner.serial);
        let bytes = bytes_at..bytes_at.checked_add(head.length as usize)?;
        (head.format == BLOCK_FORMAT && fits && is_of).then_some((Block { start, units }, bytes))
    }

    /// Maps all that there are blocks in. Grows to twice what there was, so that it is done seldom: what is not
    /// used costs nothing.
    fn grow(&mut self, memory: BorrowedFd<'_>) -> io::Result<()> {
        let needed = self.spans.end() as usize * UNIT;
        if needed <= self.mapped {
            return Ok(());
        }
        let wanted = needed.max(self.mapped.saturating_mul(2));
        mapping::resize(memory, Memory::size(wanted))?;
        self.memory = Memory::new(memory, wanted)?;
        self.mapped = wanted;
        Ok(())
    }
}
