//! The hub: what applications and clients say to channels becomes entries of one journal, in one order. One process beside
//! the workers, whose whole state follows from the channel memory and from what workers name to it: it may die at any
//! moment, and the next one goes on. It never speaks to a client.

pub mod api;
mod calls;
mod desk;
mod error;
mod reconnect;
mod rings;
mod run;

pub use error::HubError;
pub use run::{HubStart, run};
