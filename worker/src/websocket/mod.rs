//! WebSocket on the server's side, without sockets or clocks: bytes in, events and bytes out.
//!
//! A connection goes through two readers: [`handshake`] until its request is answered, [`engine`] from then
//! on. What the other side does wrong comes back as a [`refusal::Refusal`] or a [`violation::Violation`],
//! which know what to send and under which reason to count it. Nothing here reads, writes, waits or decides
//! about limits.

pub mod assembly;
pub mod client_address;
mod control;
pub mod engine;
mod forwarded;
pub mod frame;
pub mod handshake;
mod headers;
mod mask;
mod message;
mod proxy_header;
pub mod refusal;
pub mod saved;
mod subprotocol;
mod target;
mod utf8;
pub mod violation;

pub use message::{Message, MessageKind};
