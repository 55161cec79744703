//! Saved states: what a worker that leaves on purpose has on its heap for its connections, written into
//! memory for the next worker to go on with. Knows the format; which connections have any, and when they
//! are written and taken up, is `connection`'s and `hand_over`'s business.
//!
//! ```text
//! head    magic, SAVED_FORMAT, how many states, when the worker stopped serving
//! states  each: its length (u32), then its bytes as `codec::append_bare` makes them
//! ```
//!
//! The head is written last, so memory that was not finished has none. Lengths frame the states, so one that
//! cannot be read costs its own connection and no other. Nothing that is read here is believed.
//!
//! Fields are appended to `SavedState` and to `SavedEngine`: a reader ignores what it does not know, and finds zeros
//! where an older program has written nothing.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

use holdfast_shared::format::Format;
use holdfast_shared::ipc::codec;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use reader::{ReadError, Reader};
pub use writer::{WriteError, Writer};

use crate::websocket::saved::{SavedEngine, as_bytes};

/// The saved states of this program.
pub const SAVED_FORMAT: Format = Format { name: "saved connections", version: 4, reads_since: 2 };

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
    #[serde(borrow, serialize_with = "as_group", deserialize_with = "from_group")]
    pub engine: Option<SavedEngine<'a>>,
    /// What the kernel did not take.
    #[serde(serialize_with = "as_bytes")]
    pub outbox: &'a [u8],
    /// When the message began that is not complete, in milliseconds of the monotonic clock.
    pub message_since_ms: u64,
    /// The subprotocol that the request is answered with, if its record had no room for it.
    pub subprotocol: &'a str,
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
        bytes[8..10].copy_from_slice(&short(SAVED_FORMAT.version));
        bytes[10..12].copy_from_slice(&short(SAVED_FORMAT.reads_since));
        bytes[12..16].copy_from_slice(&self.count.to_le_bytes());
        bytes[16..].copy_from_slice(&self.stopped_ms.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; HEAD_SIZE]) -> Result<Self, ReadError> {
        let [.., v0, v1, r0, r1, c0, c1, c2, c3, s0, s1, s2, s3, s4, s5, s6, s7] = bytes;
        if bytes[..8] != MAGIC {
            return Err(ReadError::NotSaved);
        }
        let (version, reads_since) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([r0, r1]));
        let theirs = Format { version: version.into(), reads_since: reads_since.into(), ..SAVED_FORMAT };
        if !SAVED_FORMAT.fits(&theirs) {
            return Err(ReadError::Version { found: version });
        }
        Ok(Self {
            count: u32::from_le_bytes([c0, c1, c2, c3]),
            stopped_ms: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        })
    }
}

fn short(version: u32) -> [u8; 2] {
    u16::try_from(version).unwrap_or(u16::MAX).to_le_bytes()
}

/// As bytes of their own, so that fields can be appended to it.
fn as_group<S: Serializer>(engine: &Option<SavedEngine<'_>>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut bytes = Vec::new();
    codec::append_bare(engine, &mut bytes).map_err(serde::ser::Error::custom)?;
    serializer.serialize_bytes(&bytes)
}

fn from_group<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SavedEngine<'de>>, D::Error> {
    codec::read_bare(Deserialize::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}
