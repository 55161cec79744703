//! A worker's life: from its first instruction to its last, whoever its supervisor is and whatever becomes of
//! its keeper.

pub(crate) mod event_loop;
mod hand_over;
mod keeper_start;
mod keeper_takeover;
mod link;
mod moving;
mod reconnect;
mod resume;
pub(crate) mod run;
mod settings;

pub(crate) use keeper_start::OURSELVES;
pub use keeper_start::{KEEPER_FORMAT, KeeperStart, PROCESS_NAME};
