//! The Holdfast worker: one event loop that serves a slot's connections, and the keeper that holds them for
//! it.

mod admission;
pub mod app;
pub mod client_address;
mod connection;
mod drain;
mod event_loop;
mod hand_over;
pub mod keeper;
mod link;
mod listener;
mod moving;
mod orphan;
mod program;
mod rendezvous;
mod resume;
pub mod run;
pub mod saved;
pub mod timer_wheel;
pub mod websocket;

pub use program::Program;
