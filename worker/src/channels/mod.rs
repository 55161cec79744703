//! Channels as a worker has them: what it is handed, who is subscribed, what clients ask for and what they get. Pure;
//! delivering is the business of `connection::feed`.

pub(crate) mod envelope;
pub(crate) mod index;
pub(crate) mod request;
pub mod token;

use std::os::fd::RawFd;

use holdfast_shared::channels::memory::ChannelMemory;

/// What became of a client's publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    /// It is on its way.
    Said,
    /// The client may not publish, or is not subscribed yet.
    Forbidden,
    /// The server is degraded.
    Degraded,
    /// It is longer than any may be.
    TooLong,
    /// There is no room.
    NoRoom,
}

/// What a worker of a server with channels is handed.
#[derive(Debug)]
pub struct ChannelAccess {
    /// The channel memory, mapped read-only by the keeper: no descriptor leads to it.
    pub memory: ChannelMemory,
    /// The slot's up-ring.
    pub ring: RawFd,
    /// What wakes this worker.
    pub bell: RawFd,
    /// What wakes the hub.
    pub hub_bell: RawFd,
}
