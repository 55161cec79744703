//! Reading states back, one after the other. Whatever the memory holds, this does not panic, and allocates no
//! more than the memory is long.

use std::io::{self, BufReader, Read};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use holdfast_shared::ipc::codec::{self, CodecError};
use nix::errno::Errno;
use nix::sys::uio::pread;

use super::{HEAD_SIZE, Head, SAVED_FORMAT, SavedState};

/// Why a state, or all of them, could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the memory holds no saved connections")]
    NotSaved,
    #[error("connections saved in version {found}; this binary has {SAVED_FORMAT}")]
    Version { found: u16 },
    #[error("cannot read saved connections: {0}")]
    Memory(#[from] io::Error),
    #[error("saved connections end early: {length} bytes announced, {left} left")]
    CutOff { length: u32, left: u64 },
    #[error("a saved connection that cannot be decoded: {0}")]
    Decode(#[from] CodecError),
}

impl ReadError {
    /// Can the states after this one still be read?
    #[must_use]
    pub fn is_of_one_connection(&self) -> bool {
        matches!(self, Self::Decode(_))
    }
}

/// States being read.
#[derive(Debug)]
pub struct Reader<'a> {
    memory: BufReader<Bytes<'a>>,
    head: Head,
    /// States and bytes still to be read.
    states: u32,
    bytes: u64,
    state: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Looks at the head.
    ///
    /// # Errors
    /// When there is none, or it is of another version.
    pub fn new(memory: BorrowedFd<'a>) -> Result<Self, ReadError> {
        let size = nix::sys::stat::fstat(memory).map_err(io::Error::from)?.st_size;
        let size = u64::try_from(size).unwrap_or(0);
        let bytes = size.checked_sub(HEAD_SIZE as u64).ok_or(ReadError::NotSaved)?;
        let mut memory = BufReader::with_capacity(64 * 1024, Bytes { memory, at: 0 });
        let mut head = [0; HEAD_SIZE];
        memory.read_exact(&mut head)?;
        let head = Head::from_bytes(head)?;
        Ok(Self { memory, head, states: head.count, bytes, state: Vec::new() })
    }

    /// When the worker that saved them stopped serving.
    #[must_use]
    pub fn stopped(&self) -> Duration {
        Duration::from_millis(self.head.stopped_ms)
    }

    /// The next state; `None` when there are no more.
    ///
    /// # Errors
    /// See [`ReadError`]. After one that is not of one state alone there are no more.
    pub fn next_state(&mut self) -> Result<Option<SavedState<'_>>, ReadError> {
        if self.states == 0 {
            return Ok(None);
        }
        // All the same if this fails: what follows cannot be found then.
        let states = std::mem::take(&mut self.states);
        let mut length = [0; 4];
        self.memory.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        self.bytes = self.bytes.saturating_sub(4);
        if u64::from(length) > self.bytes {
            return Err(ReadError::CutOff { length, left: self.bytes });
        }
        self.state.resize(length as usize, 0);
        self.memory.read_exact(&mut self.state)?;
        self.bytes -= u64::from(length);
        self.states = states - 1;
        Ok(Some(codec::read_bare(&self.state)?))
    }
}

/// The memory's bytes from the start. The descriptor's own position is left alone: it is shared with every
/// other process that has it, and a worker that dies while it reads leaves the memory to the next.
#[derive(Debug)]
struct Bytes<'a> {
    memory: BorrowedFd<'a>,
    at: i64,
}

impl Read for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match pread(self.memory, buffer, self.at) {
                Ok(length) => {
                    self.at += i64::try_from(length).map_err(io::Error::other)?;
                    return Ok(length);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
