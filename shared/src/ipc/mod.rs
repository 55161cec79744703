//! How a slot's processes and the supervisor talk: [`message`] says what, [`codec`] how it looks on the wire,
//! [`link`] how it gets there.

pub mod codec;
pub mod hub;
pub mod link;
pub mod message;
pub mod moving;
pub mod reconnect;
pub mod settings;
pub mod settings_memory;
