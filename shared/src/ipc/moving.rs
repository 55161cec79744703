//! What two workers say to each other while connections move from one to the other, over a SEQPACKET pair that
//! the supervisor made for it. One batch is on its way at a time, and a batch that was sent is the giver's
//! again only when the pair is broken: until then the taker may have it.

use serde::{Deserialize, Serialize};

use crate::ipc::codec::{self, Kind, Message};
use crate::ipc::link::{Link, MAX_DESCRIPTORS};
use crate::table::{Record, TABLE_FORMAT};

/// Most connections in one batch.
pub const MAX_CONNECTIONS: u32 = 64;

// With the memory of their halves they fit into one message.
const _: () = assert!((MAX_CONNECTIONS as usize) < MAX_DESCRIPTORS);

/// The end of the worker that gives.
pub type GiverEnd = Link<ToTaker, ToGiver>;
/// The end of the worker that takes.
pub type TakerEnd = Link<ToGiver, ToTaker>;

/// From the giver to the taker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToTaker {
    /// Connections, at most [`MAX_CONNECTIONS`]. With them come their descriptors, in the order of the records;
    /// behind them, if some have sessions, a memory of those, where `session` of their records leads and their
    /// place in the batch is the row; last, if some have heap state, the memory in which that was saved. Answered
    /// by `Taken`, or by hanging up.
    Batch {
        /// The records' `table::TABLE_FORMAT`: its version, and since which it is read.
        layout: (u32, u32),
        /// The records' bytes.
        records: Vec<u8>,
        /// Is the last descriptor the memory of halves?
        has_halves: bool,
    },
}

impl ToTaker {
    /// A batch of these records.
    #[must_use]
    pub fn batch<'a>(records: impl Iterator<Item = &'a Record>, has_halves: bool) -> Self {
        let records = records.flat_map(|record| bytemuck::bytes_of(record).iter().copied()).collect();
        Self::Batch { layout: (TABLE_FORMAT.version, TABLE_FORMAT.reads_since), records, has_halves }
    }
}

/// The records of a batch; `None` if the bytes are no whole number of them.
#[must_use]
pub fn records(bytes: &[u8]) -> Option<Vec<Record>> {
    let (records, rest) = bytes.as_chunks::<{ size_of::<Record>() }>();
    rest.is_empty().then(|| records.iter().map(|bytes| bytemuck::pod_read_unaligned(bytes)).collect())
}

/// From the taker to the giver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGiver {
    /// There is room for one batch.
    Room,
    /// There is no room.
    Full,
    /// The batch has arrived: its connections are the taker's.
    Taken,
}

impl Message for ToTaker {
    fn kind(payload: &[u8]) -> Option<Kind> {
        codec::only_kind::<Self>(payload)
    }

    fn may_be_lost(&self) -> bool {
        false
    }
}

impl Message for ToGiver {
    fn kind(payload: &[u8]) -> Option<Kind> {
        codec::only_kind::<Self>(payload)
    }

    fn may_be_lost(&self) -> bool {
        false
    }
}
