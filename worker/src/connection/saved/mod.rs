//! Saved states: what a worker that leaves on purpose has on its heap for its connections, written into
//! memory for the next worker to go on with. Knows the format; which connections have any, and when they
//! are written and taken up, is `connection`'s and `hand_over`'s business.
//!
//! ```text
//! head    magic, SAVED_VERSION, how many states, when the worker stopped serving
//! states  each: its length (u32), then its bytes as `codec::append_bare` makes them
//! ```
//!
//! The head is written last, so memory that was not finished has none. Lengths frame the states, so one that
//! cannot be read costs its own connection and no other. Nothing that is read here is believed.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

use serde::{Deserialize, Serialize};

pub use reader::{ReadError, Reader};
pub use writer::{WriteError, Writer};

use crate::websocket::saved::{SavedEngine, as_bytes};

/// Raised whenever the bytes of the head, of a state, or their meaning change.
pub const SAVED_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"hfsaved\0";
const HEAD_SIZE: usize = 24;

/// One connection's state. What is not here is in its record.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedState<'a> {
    /// The connection's descriptor.
    pub row: u32,
    /// Its record's serial.
    pub serial: u32,
    /// The beginning of an upgrade request, or frames that came glued to it. How far it was looked at is not
    /// saved: a request is short, and is looked at again.
    #[serde(serialize_with = "as_bytes")]
    pub request: &'a [u8],
    /// Half a frame or half a message.
    #[serde(borrow)]
    pub engine: Option<SavedEngine<'a>>,
    /// What the kernel did not take.
    #[serde(serialize_with = "as_bytes")]
    pub outbox: &'a [u8],
}

/// What is said about all states together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    count: u32,
    /// When the worker stopped serving, in milliseconds of the monotonic clock.
    stopped_ms: u64,
}

impl Head {
    fn to_bytes(self) -> [u8; HEAD_SIZE] {
        let mut bytes = [0; HEAD_SIZE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&SAVED_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..].copy_from_slice(&self.stopped_ms.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; HEAD_SIZE]) -> Result<Self, ReadError> {
        let [.., v0, v1, v2, v3, c0, c1, c2, c3, s0, s1, s2, s3, s4, s5, s6, s7] = bytes;
        if bytes[..8] != MAGIC {
            return Err(ReadError::NotSaved);
        }
        match u32::from_le_bytes([v0, v1, v2, v3]) {
            SAVED_VERSION => Ok(Self {
                count: u32::from_le_bytes([c0, c1, c2, c3]),
                stopped_ms: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            }),
            found => Err(ReadError::Version { found }),
        }
    }
}
