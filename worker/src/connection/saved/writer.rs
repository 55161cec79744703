//! Writing states, one after the other: never more than one of them is in memory twice.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use holdfast_shared::clock;
use holdfast_shared::ipc::codec::{self, CodecError};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{HEAD_SIZE, Head, SavedState};

/// Why states could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("no memory to save connections in: {0}")]
    Memory(#[from] io::Error),
    #[error("cannot save the connection on descriptor {row}: {source}")]
    Encode { row: u32, source: CodecError },
    #[error("cannot save the connection on descriptor {row}: {length} bytes are too many")]
    TooLong { row: u32, length: usize },
}

/// States being saved.
#[derive(Debug)]
pub struct Writer {
    memory: BufWriter<File>,
    count: u32,
    state: Vec<u8>,
}

impl Writer {
    /// Makes the memory. It is not close-on-exec: the next worker may be of another program.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> Result<Self, WriteError> {
        let memory = memfd_create("holdfast-saved", MFdFlags::empty()).map_err(io::Error::from)?;
        let mut memory = File::from(memory);
        memory.seek(SeekFrom::Start(HEAD_SIZE as u64))?;
        Ok(Self { memory: BufWriter::with_capacity(64 * 1024, memory), count: 0, state: Vec::new() })
    }

    /// Saves one state.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn push(&mut self, state: &SavedState<'_>) -> Result<(), WriteError> {
        let row = state.row;
        self.state.clear();
        codec::append_bare(state, &mut self.state).map_err(|source| WriteError::Encode { row, source })?;
        let length = self.state.len();
        let short = u32::try_from(length).map_err(|_| WriteError::TooLong { row, length })?;
        self.memory.write_all(&short.to_le_bytes())?;
        self.memory.write_all(&self.state)?;
        self.count += 1;
        Ok(())
    }

    /// Writes the head: from now on the memory is valid. `stopped` is when the worker stopped serving.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn finish(self, stopped: Duration) -> Result<OwnedFd, WriteError> {
        let mut memory = self.memory.into_inner().map_err(io::IntoInnerError::into_error)?;
        memory.rewind()?;
        memory.write_all(&Head { count: self.count, stopped_ms: clock::milliseconds(stopped) }.to_bytes())?;
        Ok(memory.into())
    }
}
