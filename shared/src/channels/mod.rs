//! Channels: the memory in which publications, the directory of channels and what workers say to the hub outlive
//! the processes that deliver them. Bytes and positions only; what they mean for a client or for the HTTP API is
//! the hub's and the worker's business.

pub mod directory;
pub mod entry;
pub mod journal;
pub mod memory;
pub mod rules;
mod said;
pub mod sleep;
pub mod token_keys;
pub mod up_ring;
