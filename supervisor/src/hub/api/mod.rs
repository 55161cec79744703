//! The HTTP API of the hub: what applications say and ask, and what they get. One thread with its own runtime serves two
//! sites: the API address, where a key is needed, and a socket in the run directory for the own user. It holds no state
//! that matters and decides nothing.
//!
//! ```text
//! client -> host::http -> routes -> Call -> bounded channel + Waker -> the hub's loop
//! client <- host::http <- routes <- oneshot <--------------- Reply::send -------'
//! ```
//!
//! Field names are what applications rely on: add, never rename.

mod answer;
mod body;
pub mod call;
mod command;
mod data;
mod error;
mod event;
mod keys;
mod routes;
mod server;
#[cfg(test)]
mod tests;

pub use answer::{
    Answer, ChannelRow, ChannelView, Channels, ConnectionRow, Connections, Events, History, Outcome,
    Presence, PresenceRow, Publication, Published, Reached,
};
pub use call::{Call, Inbox, Reply};
pub use command::{
    Broadcast, ChannelsQuery, Command, ConnectionsQuery, Disconnect, EventsQuery, HistoryQuery, Publish,
    Send, Subscription, Target,
};
pub use data::Data;
pub use error::ApiError;
pub use event::{Event, EventName, RenderedEvent};
pub use keys::Keys;
pub use server::{Counts, Server};
