//! The settings a slot last applied, in memory that outlives its workers: a worker that starts while there is
//! no supervisor serves with these. Written by one live worker at a time.
//!
//! Two halves, written in turn, each with a checksum over all that it holds: a worker that dies while it
//! writes one leaves the other as it was.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytemuck::{Pod, Zeroable};
use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};

use crate::ipc::codec::{self, CodecError, MAX_MESSAGE};
use crate::ipc::settings::Settings;
use crate::sys::mapping;

const HALVES: usize = 2;
const HEAD: usize = size_of::<Head>();
const HALF: usize = HEAD + MAX_MESSAGE;

/// Why settings could not be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum SettingsMemoryError {
    /// The memory could not be made.
    #[error("cannot make memory for the settings: {0}")]
    Create(#[source] io::Error),
    /// The memory could not be read.
    #[error("cannot read the settings' memory: {0}")]
    Read(#[source] io::Error),
    /// The memory could not be written.
    #[error("cannot write to the settings' memory: {0}")]
    Write(#[source] io::Error),
    /// Neither half is whole.
    #[error("the settings' memory holds none")]
    Empty,
    /// They are not settings as this binary knows them.
    #[error("the settings' memory holds {0}")]
    Codec(#[from] CodecError),
}

/// What stands before a half's bytes.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Head {
    checksum: u64,
    /// Counts up with each write; the higher half is the newer. 0 was never written.
    sequence: u64,
    length: u64,
}

/// Makes memory that holds `settings`.
///
/// # Errors
/// See [`SettingsMemoryError`].
pub fn create(generation: u64, settings: &Settings) -> Result<OwnedFd, SettingsMemoryError> {
    let memory = mapping::create("holdfast-settings", HALVES * HALF).map_err(SettingsMemoryError::Create)?;
    write(memory.as_fd(), generation, settings)?;
    Ok(memory)
}

/// Replaces what the memory holds.
///
/// # Errors
/// See [`SettingsMemoryError`]; the memory then holds what it held.
pub fn write(
    memory: BorrowedFd<'_>,
    generation: u64,
    settings: &Settings,
) -> Result<(), SettingsMemoryError> {
    let mut payload = Vec::new();
    codec::append_bare(&(generation, settings), &mut payload)?;
    if payload.len() > MAX_MESSAGE {
        return Err(CodecError::TooLong { length: payload.len() }.into());
    }
    let newest = newest(memory)?;
    let (half, sequence) = newest.map_or((0, 1), |(half, head, _)| (1 - half, head.sequence.wrapping_add(1)));
    let checksum = checksum(sequence, &payload);
    let head = Head { checksum, sequence, length: payload.len() as u64 };
    let bytes = [bytemuck::bytes_of(&head), &payload].concat();
    let written = pwrite(memory, &bytes, offset(half)?);
    let written = written.map_err(|error: Errno| SettingsMemoryError::Write(error.into()))?;
    if written == bytes.len() {
        Ok(())
    } else {
        Err(SettingsMemoryError::Write(io::ErrorKind::WriteZero.into()))
    }
}

/// The settings and their generation.
///
/// # Errors
/// See [`SettingsMemoryError`].
pub fn read(memory: BorrowedFd<'_>) -> Result<(u64, Settings), SettingsMemoryError> {
    let (_, _, payload) = newest(memory)?.ok_or(SettingsMemoryError::Empty)?;
    Ok(codec::read_bare(&payload)?)
}

/// The half that is whole and newer than the other.
fn newest(memory: BorrowedFd<'_>) -> Result<Option<(usize, Head, Vec<u8>)>, SettingsMemoryError> {
    let mut newest: Option<(usize, Head, Vec<u8>)> = None;
    for half in 0..HALVES {
        let mut bytes = vec![0; HALF];
        let length = pread(memory, &mut bytes, offset(half)?)
            .map_err(|error: Errno| SettingsMemoryError::Read(error.into()))?;
        let Some((head, rest)) = bytes[..length].split_at_checked(HEAD) else { continue };
        let head: Head = bytemuck::pod_read_unaligned(head);
        let Some(payload) = usize::try_from(head.length).ok().and_then(|length| rest.get(..length)) else {
            continue;
        };
        let is_whole = head.sequence > 0 && head.checksum == checksum(head.sequence, payload);
        if is_whole && newest.as_ref().is_none_or(|(_, other, _)| head.sequence > other.sequence) {
            newest = Some((half, head, payload.to_vec()));
        }
    }
    Ok(newest)
}

fn offset(half: usize) -> Result<i64, SettingsMemoryError> {
    i64::try_from(half * HALF).map_err(|error| SettingsMemoryError::Read(io::Error::other(error)))
}

/// FNV-1a: tells a torn write, not an enemy.
fn checksum(sequence: u64, payload: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = sequence.to_le_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fold);
    payload.iter().fold(hash, fold)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings(rows: u32) -> Settings {
        Settings {
            rows,
            max_pending_handshakes: 2,
            max_message_size: 3,
            max_queued_output: 4,
            retry_after: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(6),
            ping_interval: Duration::from_secs(7),
            pong_timeout: Duration::from_secs(8),
            idle_timeout: Duration::from_secs(9),
            close_timeout: Duration::from_secs(10),
            path: "/".to_owned(),
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            routes: Vec::new(),
            max_buffered_total: 11,
        }
    }

    #[test]
    fn the_last_written_are_read() {
        let memory = create(1, &settings(1)).unwrap();
        assert_eq!(read(memory.as_fd()).unwrap(), (1, settings(1)));
        for generation in 2..6 {
            write(memory.as_fd(), generation, &settings(9)).unwrap();
            assert_eq!(read(memory.as_fd()).unwrap(), (generation, settings(9)));
        }
    }

    #[test]
    fn a_torn_write_leaves_those_before_it() {
        let memory = create(1, &settings(1)).unwrap();
        write(memory.as_fd(), 2, &settings(2)).unwrap();
        // The second write went to the second half; half of its bytes did not arrive.
        pwrite(&memory, &[0xff; 40], offset(1).unwrap() + 30).unwrap();
        assert_eq!(read(memory.as_fd()).unwrap(), (1, settings(1)));
        write(memory.as_fd(), 3, &settings(3)).unwrap();
        assert_eq!(read(memory.as_fd()).unwrap(), (3, settings(3)));
    }

    #[test]
    fn what_holds_none_says_so() {
        let memory = mapping::create("empty", HALVES * HALF).unwrap();
        assert!(matches!(read(memory.as_fd()), Err(SettingsMemoryError::Empty)));
        let short = mapping::create("short", 3).unwrap();
        assert!(matches!(read(short.as_fd()), Err(SettingsMemoryError::Empty)));
    }
}
