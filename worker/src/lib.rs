//! The Holdfast worker.

pub mod timer_wheel;
pub mod client_address;
pub mod websocket;
