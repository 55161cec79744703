//! The Holdfast worker: one event loop that serves a slot's connections, and the keeper that holds them for
//! it. Each folder uses those before it in this order and none behind it: `websocket`, `channels`, `app`, `connection`,
//! `serve`, `life`, `keeper`.

pub mod app;
pub mod channels;
pub mod connection;
pub mod keeper;
mod life;
mod serve;
mod test_hooks;
pub mod websocket;

pub use app::Program;
