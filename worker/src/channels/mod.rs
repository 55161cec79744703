//! Channels as a worker has them: what it is handed, who is subscribed, what clients ask for and what they get. Pure;
//! delivering is the business of `connection::feed`.

pub mod token;

use std::os::fd::RawFd;

use holdfast_shared::channels::memory::ChannelMemory;

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
