//! Clients from the accept queue to their last byte: taking them in, asking for their admission, telling them
//! to go.

mod admission;
mod drain;
mod listener;
mod server;

pub(crate) use admission::Admission;
pub(crate) use server::{EVENTS_PER_TURN, Server, Watched};
