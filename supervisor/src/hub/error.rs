//! Why a hub cannot go on.

use std::io;

use holdfast_shared::channels::memory::ChannelMemoryError;
use holdfast_shared::channels::up_ring::UpRingError;
use holdfast_shared::ipc::link::LinkError;
use holdfast_shared::sys::descriptor::ClaimError;

/// All that ends a hub but an order. Its supervisor starts the next.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("cannot take the link over: {0}")]
    TakeLink(#[from] ClaimError),
    #[error("cannot make this process one that no other may look into: {0}")]
    Hide(#[source] io::Error),
    #[error("cannot wait for what is to be done: {0}")]
    Poll(#[source] io::Error),
    #[error(transparent)]
    Memory(#[from] ChannelMemoryError),
    #[error("no descriptor came with the message {message}, where there must be one")]
    Missing { message: &'static str },
    #[error(transparent)]
    Ring(#[from] UpRingError),
    #[error(transparent)]
    Link(#[from] LinkError),
}
